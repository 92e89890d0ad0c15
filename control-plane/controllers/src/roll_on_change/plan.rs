//! Whether a workload is to be rolled, by what its pods name now and what it has been rolled for.
//!
//! What it has been rolled for is written as two hashes with a dot between them: of which objects its pods name, and of which
//! versions of these. A template that names others has rolled already; versions that contain the same roll nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sha2::{Digest as _, Sha256};

use super::references::Named;

/// Of what an object contains.
pub(super) type Digest = [u8; 32];
/// Hexadecimal digits of each hash that is written.
const DIGITS: usize = 16;
/// So many of the objects that changed are told.
const TOLD: usize = 3;

/// An object as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    uid: String,
    /// `metadata.resourceVersion`.
    revision: String,
    digest: Digest,
}

/// Something that pods name.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) named: Named,
    pub(super) is_optional: bool,
    /// None where there is no such object.
    pub(super) version: Option<Version>,
}

/// What was contained in that which a workload has been rolled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    rolled_for: String,
    digests: BTreeMap<Named, Option<Digest>>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until something changes.
    Wait,
    /// Its pods have what is there: that is to be remembered.
    Note(String),
    /// Its pods are to be replaced.
    Roll { seen: String, why: String },
}

/// Feeds a hash with a field that has an end.
fn feed(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn version<'a>(
    metadata: &ObjectMeta,
    entries: impl IntoIterator<Item = (&'a String, &'a [u8])>,
) -> Version {
    let mut hash = Sha256::new();
    for (key, value) in entries {
        feed(&mut hash, key.as_bytes());
        feed(&mut hash, value);
    }
    Version {
        uid: metadata.uid.clone().unwrap_or_default(),
        revision: metadata.resource_version.clone().unwrap_or_default(),
        digest: hash.finalize().into(),
    }
}

pub(super) fn of_config_map(map: &ConfigMap) -> Version {
    let text = map.data.iter().flatten();
    let text = text.map(|(key, value)| (key, value.as_bytes()));
    let binary = map.binary_data.iter().flatten();
    let binary = binary.map(|(key, value)| (key, value.0.as_slice()));
    version(&map.metadata, text.chain(binary))
}

pub(super) fn of_secret(secret: &Secret) -> Version {
    let data = secret.data.iter().flatten();
    let data = data.map(|(key, value)| (key, value.0.as_slice()));
    version(&secret.metadata, data)
}

fn written(hash: Sha256) -> String {
    let digest = hash.finalize();
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.chars().take(DIGITS).collect()
}

/// Which objects are named, and which versions of them there are.
fn seen(found: &[Found]) -> (String, String) {
    let (mut names, mut versions) = (Sha256::new(), Sha256::new());
    for found in found {
        feed(&mut names, found.named.to_string().as_bytes());
        match &found.version {
            Some(version) => {
                feed(&mut versions, version.uid.as_bytes());
                feed(&mut versions, version.revision.as_bytes());
            }
            None => feed(&mut versions, b""),
        }
    }
    (written(names), written(versions))
}

fn digests(found: &[Found]) -> BTreeMap<Named, Option<Digest>> {
    let digest = |found: &Found| found.version.as_ref().map(|version| version.digest);
    found
        .iter()
        .map(|found| (found.named.clone(), digest(found)))
        .collect()
}

/// What has changed, as far as that is known.
fn why(known: Option<&Contents>, now: &BTreeMap<Named, Option<Digest>>) -> String {
    let Some(known) = known else {
        return "A ConfigMap or a Secret that its pods name has changed".to_owned();
    };
    let changed = now
        .iter()
        .filter(|(named, digest)| known.digests.get(*named) != Some(*digest));
    let mut changed: Vec<String> = changed.map(|(named, _)| named.to_string()).collect();
    let more = changed.len().saturating_sub(TOLD);
    changed.truncate(TOLD);
    let verb = if changed.len() == 1 { "has" } else { "have" };
    let mut told = changed.join(", ");
    if more > 0 {
        told = format!("{told} and {more} more");
    }
    format!("{told} {verb} changed")
}

/// Decides, by what the workload's annotation says and what is known of that. The contents of what there is now are to be
/// known once the step is done; without any, pods need something that is not there.
pub(super) fn plan(
    rolled_for: Option<&str>,
    found: &[Found],
    known: Option<&Contents>,
) -> (Step, Option<Contents>) {
    let is_missing = |found: &Found| found.version.is_none() && !found.is_optional;
    if found.iter().any(is_missing) {
        // Pods that are made now would not start: it is looked at again when it is there.
        return (Step::Wait, None);
    }
    let (names, versions) = seen(found);
    let seen = format!("{names}.{versions}");
    let now = Contents {
        rolled_for: seen.clone(),
        digests: digests(found),
    };
    let step = match rolled_for {
        None => Step::Note(seen),
        Some(before) if before == seen => Step::Wait,
        Some(before) => {
            let names_others = before
                .split_once('.')
                .is_none_or(|(known, _)| known != names);
            let known = known.filter(|known| known.rolled_for == before);
            let is_same = known.is_some_and(|known| known.digests == now.digests);
            match names_others || is_same {
                true => Step::Note(seen),
                false => Step::Roll {
                    why: why(known, &now.digests),
                    seen,
                },
            }
        }
    };
    (step, Some(now))
}
