//! Workloads by their scale: whatever kind one is, if only it has one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::paths::segment;
use gantry_informer::is_conflict;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use kube::api::{Api, DynamicObject, PostParams};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::{code, words};
use crate::resources::{Resource, deletable};

/// A kind that was not found is asked for again after this time.
const ASKED_AGAIN: Duration = Duration::from_secs(10);
/// How often a scale is written that others write, too.
const ATTEMPTS: usize = 5;

/// The kinds of the cluster by group and name: as many as it serves, replaced as a whole.
#[derive(Default)]
struct Known {
    kinds: HashMap<(String, String), Arc<Resource>>,
    asked: Option<Instant>,
    /// Why they are not known.
    failure: Option<String>,
    /// Whether something was not found where it should have been.
    is_doubted: bool,
}

/// Finds targets.
pub(crate) struct Targets {
    client: kube::Client,
    known: Mutex<Known>,
}

/// A target that was found.
pub(crate) struct Found {
    api: Api<DynamicObject>,
    name: String,
    scale: Scale,
}

impl Targets {
    pub(crate) fn new(client: kube::Client) -> Self {
        Self {
            client,
            known: Mutex::default(),
        }
    }

    /// The scale of a target; why there is none is told in the API server's words.
    pub(crate) async fn find(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> Result<Found, String> {
        let resource = self.kind_of(target).await?;
        let found = self.ask(&resource, namespace, target).await;
        found.map_err(|error| words(&error))
    }

    /// As [`Self::find`]; none of a target that is not there, though its kind has scales.
    pub(crate) async fn look_up(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> Result<Option<Found>, String> {
        let resource = self.kind_of(target).await?;
        match self.ask(&resource, namespace, target).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if code(&error) == Some(404) => match resource.has_scale {
                true => Ok(None),
                false => Err(format!(
                    "{} does not implement the scale subresource",
                    resource.qualified()
                )),
            },
            Err(error) => Err(words(&error)),
        }
    }

    async fn kind_of(&self, target: &CrossVersionObjectReference) -> Result<Arc<Resource>, String> {
        let group = group(target.api_version.as_deref().unwrap_or_default())?;
        self.resource(group, &target.kind).await
    }

    async fn ask(
        &self,
        resource: &Resource,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> kube::Result<Found> {
        let api = resource.objects(&self.client, namespace);
        let name = segment(&target.name);
        match api.get_scale(&name).await {
            Ok(scale) => Ok(Found { api, name, scale }),
            Err(error) => {
                if code(&error) == Some(404) {
                    self.known.lock().await.is_doubted = true;
                }
                Err(error)
            }
        }
    }

    async fn resource(&self, group: &str, kind: &str) -> Result<Arc<Resource>, String> {
        let key = (group.to_owned(), kind.to_owned());
        let mut known = self.known.lock().await;
        let asked = known.asked;
        let recently = asked.is_some_and(|at| at.elapsed() < ASKED_AGAIN);
        if let Some(resource) = known.kinds.get(&key)
            && (recently || !known.is_doubted)
        {
            return Ok(resource.clone());
        }
        if !recently {
            known.asked = Some(Instant::now());
            match deletable(&self.client).await {
                Ok(all) => {
                    let by_kind = all.into_iter().map(|resource| {
                        let key = (resource.api.group.clone(), resource.api.kind.clone());
                        (key, resource)
                    });
                    known.kinds = by_kind.collect();
                    known.is_doubted = false;
                    known.failure = None;
                }
                Err(error) => known.failure = Some(words(&error)),
            }
        }
        if let Some(resource) = known.kinds.get(&key) {
            return Ok(resource.clone());
        }
        let unknown = || format!("no matches for kind {kind:?} in group {group:?}");
        Err(known.failure.clone().unwrap_or_else(unknown))
    }
}

/// The group of an `apiVersion`.
pub(crate) fn group(version: &str) -> Result<&str, String> {
    match version.split_once('/') {
        None => Ok(""),
        Some((_, rest)) if rest.contains('/') => {
            Err(format!("unexpected GroupVersion string: {version}"))
        }
        Some((group, _)) => Ok(group),
    }
}

impl Found {
    /// The uid of what has the scale.
    pub(crate) fn uid(&self) -> Option<&str> {
        self.scale.metadata.uid.as_deref()
    }

    /// The replicas that are wanted.
    pub(crate) fn replicas(&self) -> i32 {
        let spec = self.scale.spec.as_ref();
        spec.and_then(|spec| spec.replicas).unwrap_or(0)
    }

    /// The replicas that there are.
    pub(crate) fn observed(&self) -> i32 {
        let status = self.scale.status.as_ref();
        status.map_or(0, |status| status.replicas)
    }

    /// The selector of its pods; empty where there is none.
    pub(crate) fn selector(&self) -> &str {
        let status = self.scale.status.as_ref();
        let selector = status.and_then(|status| status.selector.as_deref());
        selector.unwrap_or_default()
    }

    /// Scales it.
    pub(crate) async fn set(mut self, replicas: i32) -> Result<(), String> {
        let mut attempts = 1;
        loop {
            self.scale.spec.get_or_insert_default().replicas = Some(replicas);
            let parameters = PostParams::default();
            let written = self
                .api
                .replace_scale(&self.name, &parameters, &self.scale)
                .await;
            match written {
                Ok(_) => return Ok(()),
                Err(error) if is_conflict(&error) && attempts < ATTEMPTS => attempts += 1,
                Err(error) => return Err(words(&error)),
            }
            if let Ok(latest) = self.api.get_scale(&self.name).await {
                self.scale = latest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_found_by_its_group() {
        assert_eq!(group("v1"), Ok(""));
        assert_eq!(group(""), Ok(""));
        assert_eq!(group("apps/v1"), Ok("apps"));
        assert_eq!(group("apps/whatever"), Ok("apps"));
        let why = "unexpected GroupVersion string: a/b/c".to_owned();
        assert_eq!(group("a/b/c"), Err(why));
    }
}
