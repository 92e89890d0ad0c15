//! Clients outside the machine that write objects, and what they know of them: an acknowledged write must be there after the
//! cut, one that was under way may be.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::random::Random;

const LABEL: &str = "power-cuts";
const WRITERS: usize = 4;
const NAMES_PER_WRITER: usize = 8;
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is known of one object: its number, or that there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    acknowledged: Option<u64>,
    /// What was asked for and not answered.
    pending: Option<Option<u64>>,
}

/// All objects of all writers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Objects {
    known: BTreeMap<String, Known>,
    /// The last number that was written anywhere.
    number: u64,
    /// The highest revision of an acknowledged write.
    revision: u64,
    pub(crate) acknowledged: usize,
}

fn object(name: &str, number: u64) -> Result<ConfigMap> {
    let object = json!({
        "metadata": {"name": name, "labels": {LABEL: ""}},
        "data": {"number": number.to_string(), "ballast": "x".repeat(500)},
    });
    Ok(serde_json::from_value(object)?)
}

fn number(object: &ConfigMap) -> Option<u64> {
    object.data.as_ref()?.get("number")?.parse().ok()
}

fn revision(object: &ConfigMap) -> Option<u64> {
    object.metadata.resource_version.as_ref()?.parse().ok()
}

impl Objects {
    /// Compares what is there with what was acknowledged, and goes on from it.
    pub(crate) async fn verify(&mut self, client: &Client) -> Result<()> {
        let objects: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let list = objects.list(&ListParams::default().labels(LABEL)).await?;
        let at: u64 = list
            .metadata
            .resource_version
            .context("a list without a revision")?
            .parse()?;
        ensure!(
            at >= self.revision,
            "the cluster is at revision {at}, but {} was acknowledged",
            self.revision
        );
        let mut found = BTreeMap::new();
        for object in &list.items {
            let name = object.metadata.name.clone().unwrap_or_default();
            let number = number(object).with_context(|| format!("{name} has lost its data"))?;
            found.insert(name, number);
        }
        for (name, known) in &mut self.known {
            let there = found.remove(name);
            ensure!(
                there == known.acknowledged || Some(there) == known.pending,
                "{name} is {there:?}; acknowledged was {:?}, under way {:?}",
                known.acknowledged,
                known.pending
            );
            *known = Known {
                acknowledged: there,
                pending: None,
            };
        }
        ensure!(found.is_empty(), "nobody wrote {found:?}");
        Ok(())
    }

    /// Writes from several clients at once until told to stop, or until the machine no longer answers.
    pub(crate) async fn write(
        self,
        client: Client,
        random: &mut Random,
        stop: CancellationToken,
    ) -> Self {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let names = (0..NAMES_PER_WRITER).map(|index| format!("object-{writer}-{index}"));
            let known = names.map(|name| {
                let known = self.known.get(&name).copied().unwrap_or_default();
                (name, known)
            });
            let own = Self {
                known: known.collect(),
                // Numbers of different writers never meet.
                number: self.number + writer as u64 * 1_000_000,
                revision: self.revision,
                acknowledged: 0,
            };
            let random = Random::new(random.below(usize::MAX) as u64);
            writers.spawn(own.write_alone(client.clone(), random, stop.clone()));
        }
        let mut all = self;
        while let Some(Ok(own)) = writers.join_next().await {
            all.known.extend(own.known);
            all.number = all.number.max(own.number);
            all.revision = all.revision.max(own.revision);
            all.acknowledged += own.acknowledged;
        }
        all
    }

    async fn write_alone(
        mut self,
        client: Client,
        mut random: Random,
        stop: CancellationToken,
    ) -> Self {
        let objects: Api<ConfigMap> = Api::default_namespaced(client);
        let names: Vec<String> = self.known.keys().cloned().collect();
        while !stop.is_cancelled() {
            let name = &names[random.below(names.len())];
            let there = self.known[name].acknowledged;
            self.number += 1;
            let next = match there {
                Some(_) if random.below(4) == 0 => None,
                _ => Some(self.number),
            };
            self.known.entry(name.clone()).or_default().pending = Some(next);
            let written = tokio::time::timeout(PATIENCE, put(&objects, name, there, next)).await;
            match written {
                Ok(Ok(revision)) => {
                    self.revision = self.revision.max(revision.unwrap_or_default());
                    self.acknowledged += 1;
                    self.known.insert(
                        name.clone(),
                        Known {
                            acknowledged: next,
                            pending: None,
                        },
                    );
                }
                // The power is gone, or nobody can say what became of it.
                _ => break,
            }
        }
        self
    }
}

/// Creates, replaces or deletes an object.
async fn put(
    objects: &Api<ConfigMap>,
    name: &str,
    there: Option<u64>,
    next: Option<u64>,
) -> Result<Option<u64>> {
    let parameters = PostParams::default();
    let written = match (there, next) {
        (_, None) => {
            objects.delete(name, &DeleteParams::default()).await?;
            return Ok(None);
        }
        (None, Some(number)) => objects.create(&parameters, &object(name, number)?).await?,
        (Some(_), Some(number)) => {
            objects
                .replace(name, &parameters, &object(name, number)?)
                .await?
        }
    };
    Ok(revision(&written))
}
