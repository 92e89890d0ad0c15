//! The effects of preemption: those expected on the node who must give way are told, and the victims evicted.

use std::sync::Arc;

use gantry_informer::clock::seconds;
use gantry_informer::{Clock, Recorder, words};
use k8s_openapi::api::core::v1::{Event, ObjectReference, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::pod::{PREEMPTED, PodInfo};

/// The condition of a pod that is being evicted.
const TARGET: &str = "DisruptionTarget";
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
        if let Some(condition) = condition(victim, &self.scheduler, self.clock.now()) {
            let current = api.get_opt(&victim.key.name).await?;
            let current = current.filter(|pod| pod.metadata.uid.as_deref() == Some(&*victim.uid));
            let Some(current) = current else {
                return Ok(false);
            };
            let status = json!({
                "$setElementOrder/conditions": order(&current),
                "conditions": [condition],
            });
            if !was_there(self.patch(victim, status).await)? {
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

/// The conditions of a pod in their order, with that of its being evicted behind them: a patch that names no order would put
/// what is new first.
fn order(pod: &Pod) -> Vec<Value> {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let known = conditions.into_iter().flatten();
    let mut types: Vec<&str> = Vec::new();
    for type_ in known.map(|known| &*known.type_).chain([TARGET]) {
        if !types.contains(&type_) {
            types.push(type_);
        }
    }
    types.iter().map(|type_| json!({"type": type_})).collect()
}

/// What the victim's status is to say; nothing when it says so already.
fn condition(victim: &PodInfo, scheduler: &str, now: Timestamp) -> Option<Value> {
    let message = format!("{scheduler}: preempting to accommodate a higher priority pod");
    let known = victim.disruption.as_deref();
    let known = known.filter(|known| known.status == "True");
    let is_told = known.is_some_and(|known| {
        known.reason.as_deref() == Some(PREEMPTED)
            && known.message.as_deref() == Some(&*message)
            && known.observed_generation == victim.generation
    });
    if is_told {
        return None;
    }
    let since = known
        .and_then(|known| known.last_transition_time.clone())
        .unwrap_or_else(|| seconds(now));
    Some(json!({
        "type": TARGET,
        "status": "True",
        "reason": PREEMPTED,
        "message": message,
        "observedGeneration": victim.generation,
        "lastTransitionTime": since,
    }))
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
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::snapshot::tests::pod;

    const WORDS: &str = "default-scheduler: preempting to accommodate a higher priority pod";

    fn victim(reason: &str) -> PodInfo {
        let mut pod = pod("victim", "", "");
        pod.status = Some(PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "DisruptionTarget".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(WORDS.to_owned()),
                observed_generation: Some(1),
                last_transition_time: Some(Time(Timestamp::UNIX_EPOCH)),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        });
        PodInfo::new(&pod)
    }

    #[test]
    fn the_victims_status_says_once_why_it_goes() {
        let now = Timestamp::from_second(1_000_000_000).expect("in range");
        let say = |victim: &PodInfo| condition(victim, "default-scheduler", now);
        let told = say(&PodInfo::new(&pod("victim", "", ""))).expect("it is news");
        assert_eq!(
            told,
            json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": WORDS,
                "observedGeneration": 1, "lastTransitionTime": "2001-09-09T01:46:40Z"})
        );
        assert_eq!(say(&victim("PreemptionByScheduler")), None);
        // For another reason, it has been a target all along.
        let told = say(&victim("EvictionByEvictionAPI")).expect("it is news");
        assert_eq!(told["reason"], "PreemptionByScheduler");
        assert_eq!(told["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn what_is_told_of_the_victim_comes_behind_what_was() {
        let types = |known: &[&str]| {
            let mut pod = pod("victim", "", "");
            let conditions = known.iter().map(|type_| PodCondition {
                type_: (*type_).to_owned(),
                ..PodCondition::default()
            });
            pod.status.get_or_insert_default().conditions = Some(conditions.collect());
            json!(order(&pod))
        };
        assert_eq!(
            types(&["Ready", "PodScheduled"]),
            json!([{"type": "Ready"}, {"type": "PodScheduled"}, {"type": "DisruptionTarget"}])
        );
        assert_eq!(
            types(&["DisruptionTarget", "Ready"]),
            json!([{"type": "DisruptionTarget"}, {"type": "Ready"}])
        );
        assert_eq!(types(&[]), json!([{"type": "DisruptionTarget"}]));
    }

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
