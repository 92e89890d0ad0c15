//! The effects of preemption: those expected on the node who must give way are told, and the victims evicted.

use std::sync::Arc;

use gantry_informer::{Clock, Disruption, Recorder, words};
use k8s_openapi::api::core::v1::{Event, ObjectReference, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::pod::{PREEMPTED, PodInfo};

/// Victims that are evicted at once: each waits for the store's disk.
const AT_ONCE: usize = 16;

/// What is to be done for a pod to get its room.
#[derive(Debug)]
pub(crate) struct Eviction {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) node: Arc<str>,
    /// They go.
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// They were expected on the node, and are not any more.
    pub(crate) displaced: Vec<Arc<PodInfo>>,
}

/// By whom, and how others learn of it.
#[derive(Clone)]
pub(crate) struct Evictor {
    pub(crate) client: kube::Client,
    pub(crate) events: Recorder,
    pub(crate) clock: Clock,
    /// As in the pod's `schedulerName`.
    pub(crate) scheduler: Arc<str>,
    /// How this process calls itself in events.
    pub(crate) instance: Arc<str>,
}

impl Evictor {
    /// Does it all. Whether that went well: victims that are gone already are no trouble.
    pub(crate) async fn carry_out(&self, eviction: Eviction) -> bool {
        for pod in &eviction.displaced {
            if let Err(error) = self.displace(pod).await {
                tracing::debug!(pod = %pod.key, error = words(&error), "telling that it is not expected on a node any more");
            }
        }
        let mut evictions: JoinSet<bool> = JoinSet::new();
        let mut all_well = true;
        for victim in eviction.victims {
            while evictions.len() >= AT_ONCE {
                all_well &= matches!(evictions.join_next().await, Some(Ok(true)));
            }
            let (evictor, pod, node) = (self.clone(), eviction.pod.clone(), eviction.node.clone());
            evictions.spawn(async move { evictor.evict(&victim, &pod, &node).await });
        }
        while let Some(outcome) = evictions.join_next().await {
            all_well &= matches!(outcome, Ok(true));
        }
        all_well
    }

    async fn displace(&self, pod: &PodInfo) -> kube::Result<bool> {
        let status = json!({"nominatedNodeName": null});
        was_there(self.patch(pod, status).await)
    }

    async fn evict(&self, victim: &PodInfo, pod: &PodInfo, node: &str) -> bool {
        match self.try_evict(victim).await {
            Ok(false) => true,
            Ok(true) => {
                tracing::info!(pod = %victim.key, for_pod = %pod.key, node, "evicted for a pod of higher priority");
                self.events.record(event(victim, pod, node, &self.instance));
                true
            }
            Err(error) => {
                tracing::info!(pod = %victim.key, error = words(&error), "evicting it failed; trying again");
                false
            }
        }
    }

    /// Whether the victim was still there.
    async fn try_evict(&self, victim: &PodInfo) -> kube::Result<bool> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &victim.key.namespace);
        let message = format!(
            "{}: preempting to accommodate a higher priority pod",
            self.scheduler
        );
        let disruption = Disruption {
            reason: PREEMPTED,
            message: &message,
        };
        let (known, now) = (victim.disruption.as_deref(), self.clock.now());
        if disruption
            .condition(known, victim.generation, now)
            .is_some()
        {
            let current = api.get_opt(&victim.key.name).await?;
            let current = current.filter(|pod| pod.metadata.uid.as_deref() == Some(&*victim.uid));
            let Some(current) = current else {
                return Ok(false);
            };
            if let Some(status) = disruption.status(&current, now)
                && !was_there(self.patch(victim, Value::Object(status)).await)?
            {
                return Ok(false);
            }
        }
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: Some(victim.uid.to_string()),
            resource_version: None,
        });
        let deleted = api.delete(&victim.key.name, &parameters).await;
        was_there(deleted.map(drop))
    }

    async fn patch(&self, pod: &PodInfo, status: Value) -> kube::Result<()> {
        let patch = json!({"metadata": {"uid": pod.uid}, "status": status});
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let patch = Patch::Strategic(patch);
        api.patch_status(&pod.key.name, &PatchParams::default(), &patch)
            .await
            .map(drop)
    }
}

/// Whether the pod that the request was about was there.
fn was_there(outcome: kube::Result<()>) -> kube::Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

fn event(victim: &PodInfo, pod: &PodInfo, node: &str, instance: &str) -> Event {
    Event {
        involved_object: reference(victim),
        related: Some(reference(pod)),
        type_: Some("Normal".to_owned()),
        reason: Some("Preempted".to_owned()),
        action: Some("Preempting".to_owned()),
        message: Some(format!("Preempted by pod {} on node {node}", pod.uid)),
        reporting_component: Some(crate::scheduling::COMPONENT.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

fn reference(pod: &PodInfo) -> ObjectReference {
    let reference = pod.reference();
    ObjectReference {
        api_version: Some(reference.api_version),
        kind: Some(reference.kind),
        namespace: Some(reference.namespace),
        name: Some(reference.name),
        uid: Some(reference.uid),
        resource_version: Some(reference.resource_version),
        field_path: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::pod;

    #[test]
    fn the_event_is_about_the_victim_and_names_who_comes() {
        let (victim, comes) = (pod("victim", "", ""), pod("comes", "", ""));
        let (victim, comes) = (PodInfo::new(&victim), PodInfo::new(&comes));
        let event = event(&victim, &comes, "n", "here");
        assert_eq!(
            event.message.as_deref(),
            Some("Preempted by pod comes on node n")
        );
        assert_eq!(event.involved_object.name.as_deref(), Some("victim"));
        let related = event.related.expect("who comes");
        assert_eq!(related.name.as_deref(), Some("comes"));
    }
}
