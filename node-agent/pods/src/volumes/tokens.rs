//! Which tokens of its account a pod's projected volumes name, and what they had before.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};

use super::{VOLUMES, atomic, volumes};

/// Seconds that a token counts whose source does not say.
const LIFE: i64 = 3600;
/// No token has more bytes.
const LONGEST: u64 = 16 << 10;
/// Where projected volumes are.
pub(super) const PROJECTED: &str = "kubernetes.io~projected";

/// A token as a source names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenSource {
    /// Whom it is for; empty for the cluster's API.
    pub audience: String,
    /// How long it counts.
    pub seconds: i64,
}

impl TokenSource {
    pub(super) fn of(source: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.clone().unwrap_or_default(),
            seconds: source.expiration_seconds.unwrap_or(LIFE),
        }
    }
}

/// The tokens of a pod, by what its volumes say of them.
pub type PodTokens = BTreeMap<TokenSource, String>;

/// A place in the pod's volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) volume: &'a str,
    pub(crate) path: &'a str,
}

/// The tokens that a pod is to have, and the first place where each is shown.
pub(crate) fn sources(pod: &Pod) -> BTreeMap<TokenSource, Place<'_>> {
    let mut found = BTreeMap::new();
    for volume in volumes(pod) {
        let projected = volume.projected.iter();
        let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
        for source in sources.filter_map(|source| source.service_account_token.as_ref()) {
            let place = Place {
                volume: &volume.name,
                path: &source.path,
            };
            found.entry(TokenSource::of(source)).or_insert(place);
        }
    }
    found
}

/// The token that a place shows now.
pub(crate) fn shown(pod_dir: &Path, place: &Place<'_>) -> Option<String> {
    let directory = pod_dir.join(VOLUMES).join(PROJECTED).join(place.volume);
    let found = atomic::read(&directory, Path::new(place.path), LONGEST)?;
    String::from_utf8(found).ok()
}
