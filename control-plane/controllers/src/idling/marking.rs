//! Keeps the annotation of Services that wake Deployments.

use gantry_api::annotations::WAKES;
use gantry_informer::{Key, Next};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::sync::Arc;

use super::annotations::{idle_after, idled};
use super::marks::{mark, marked};
use super::{Controller, scales_to_zero};
use crate::deployment::wanted;
use crate::error::{Doing, Result, code, taken_in};
use crate::selection::deployments_of;

/// Whether a Deployment is to be brought back when it is wanted: it idles, or would if nobody wanted it. One that was scaled to
/// zero by hand is not, so that connections to it are refused at once.
pub(super) fn may_be_woken(
    deployment: &Deployment,
    autoscalers: &[Arc<HorizontalPodAutoscaler>],
) -> bool {
    let idles = match wanted(deployment) {
        0 => idled(deployment).is_some(),
        _ => matches!(idle_after(deployment), Ok(Some(_))),
    };
    deployment.metadata.deletion_timestamp.is_none()
        && (idles || autoscalers.iter().any(|one| scales_to_zero(one)))
}

impl Controller {
    /// Brings the annotation of a Service to what it is to be.
    pub(super) async fn mark(&self, key: &Key) -> Result<Next> {
        let Some(service) = self.context.services.get(key) else {
            return Ok(Next::Changed);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Changed);
        }
        let selected = deployments_of(&self.context.deployments, &service);
        let names = selected.iter().filter_map(|deployment| {
            let key = Key::of(&deployment.metadata);
            may_be_woken(deployment, &self.autoscalers_of(&key)).then(|| key.name.to_string())
        });
        let due = mark(&service, names);
        if due.as_deref() == marked(&service) {
            return Ok(Next::Changed);
        }
        let patch = Patch::Merge(json!({"metadata": {
            "uid": service.metadata.uid,
            "resourceVersion": service.metadata.resource_version,
            "annotations": {WAKES: due},
        }}));
        let api: Api<Service> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let answer = api.patch(&key.name, &PatchParams::default(), &patch).await;
        match taken_in(answer, &api, &self.context.services, &key.name).await {
            Err(error) if code(&error) == Some(404) => Ok(Next::Changed),
            written => written
                .map(|()| Next::Changed)
                .doing("marking service", key),
        }
    }
}
