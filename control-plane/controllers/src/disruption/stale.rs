//! Pods that say they are about to be disrupted, and are not: after a while, they say so no longer.

use std::time::Duration;

use gantry_informer::clock::seconds;
use gantry_informer::{Key, Next};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::context::Context;
use crate::error::{Doing, Result, code, taken_in};
use crate::pods::is_finished;

const TARGET: &str = "DisruptionTarget";
/// Its node may take any time before it ends a pod.
const BY_KUBELET: &str = "TerminationByKubelet";
/// How long a pod may say it.
const TIMEOUT: Duration = Duration::from_secs(120);

fn condition(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions
        .iter()
        .find(|condition| condition.type_ == TARGET)
}

/// How long a pod may still say that it is about to be disrupted; none where it does not, or is.
pub(super) fn left(pod: &Pod, now: Timestamp) -> Option<Duration> {
    if pod.metadata.deletion_timestamp.is_some() || is_finished(pod) {
        return None;
    }
    let condition = condition(pod)
        .filter(|told| told.status == "True" && told.reason.as_deref() != Some(BY_KUBELET))?;
    let since = condition.last_transition_time.as_ref();
    let since = since.map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    // A clock that is behind would have it wait for longer.
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(TIMEOUT.saturating_sub(passed))
}

/// Has a pod say so no longer, once its time is over.
pub(super) async fn clean(context: &Context, key: &Key) -> Result<Next> {
    let Some(pod) = context.pods.get(key) else {
        return Ok(Next::Changed);
    };
    let now = context.clock.now();
    match left(&pod, now) {
        None => return Ok(Next::Changed),
        Some(left) if !left.is_zero() => return Ok(Next::After(left)),
        Some(_) => {}
    }
    // Nothing that was said since is taken back.
    let patch = json!({
        "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": [{
            "type": TARGET,
            "status": "False",
            "reason": null,
            "message": null,
            "observedGeneration": pod.metadata.generation,
            "lastTransitionTime": seconds(now),
        }]},
    });
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let written = api
        .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    match taken_in(written, &api, &context.pods, &key.name).await {
        // Gone, or another pod under its name.
        Err(error) if matches!(code(&error), Some(404 | 422)) => {}
        told => told.doing("taking back the disruption of pod", key)?,
    }
    Ok(Next::Changed)
}
