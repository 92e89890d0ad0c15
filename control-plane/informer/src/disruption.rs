//! What the status of a pod says before somebody takes it away who is not its owner: the scheduler, for the room that it has,
//! or a controller, for what has become of its node. Others, such as a Job, tell by it that the pod did not fail by itself.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::clock::seconds;

/// The type of the condition.
pub const TARGET: &str = "DisruptionTarget";

/// Why a pod goes, as Kubernetes tells it.
#[derive(Clone, Copy, Debug)]
pub struct Disruption<'a> {
    /// Such as `DeletionByTaintManager`.
    pub reason: &'a str,
    /// In words.
    pub message: &'a str,
}

impl Disruption<'_> {
    /// The condition of a pod of this generation that has the condition `known` already; none when that says it all.
    pub fn condition(
        &self,
        known: Option<&PodCondition>,
        generation: Option<i64>,
        now: Timestamp,
    ) -> Option<PodCondition> {
        let known = known.filter(|known| known.status == "True");
        let is_told = known.is_some_and(|known| {
            known.reason.as_deref() == Some(self.reason)
                && known.message.as_deref() == Some(self.message)
                && known.observed_generation == generation
        });
        if is_told {
            return None;
        }
        let since = known.and_then(|known| known.last_transition_time.clone());
        Some(PodCondition {
            type_: TARGET.to_owned(),
            status: "True".to_owned(),
            reason: Some(self.reason.to_owned()),
            message: Some(self.message.to_owned()),
            observed_generation: generation,
            last_transition_time: Some(since.unwrap_or_else(|| seconds(now))),
            ..PodCondition::default()
        })
    }

    /// What a strategic merge patch says of the status of the pod: the condition in the place that it has, or behind all
    /// others. Without an order, the patch would put what is new first. None when the pod says it all.
    pub fn status(&self, pod: &Pod, now: Timestamp) -> Option<Map<String, Value>> {
        let conditions = conditions(pod);
        let known = conditions.iter().find(|known| known.type_ == TARGET);
        let condition = self.condition(known, pod.metadata.generation, now)?;
        let mut types: Vec<&str> = Vec::new();
        for type_ in conditions.iter().map(|known| &*known.type_).chain([TARGET]) {
            if !types.contains(&type_) {
                types.push(type_);
            }
        }
        let order = types.iter().map(|type_| json!({"type": type_}));
        let mut status = Map::new();
        status.insert("$setElementOrder/conditions".to_owned(), order.collect());
        status.insert("conditions".to_owned(), json!([condition]));
        Some(status)
    }
}

fn conditions(pod: &Pod) -> &[PodCondition] {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    conditions.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Disruption<'static> = Disruption {
        reason: "DeletionByPodGC",
        message: "PodGC: node no longer exists",
    };

    fn pod(conditions: Value) -> Pod {
        let pod = json!({"metadata": {"generation": 1}, "status": {"conditions": conditions}});
        serde_json::from_value(pod).expect("a pod")
    }

    fn said(conditions: Value) -> Option<Value> {
        let now = Timestamp::from_second(1_000_000_000).expect("in range");
        GONE.status(&pod(conditions), now).map(Value::Object)
    }

    #[test]
    fn a_pod_says_once_why_it_goes() {
        let other = json!({"type": TARGET, "status": "True", "reason": "EvictionByEvictionAPI", "message": "m",
            "observedGeneration": 1, "lastTransitionTime": "1970-01-01T00:00:00Z"});
        let over = json!({"type": TARGET, "status": "False", "reason": "DeletionByPodGC",
            "message": GONE.message, "observedGeneration": 1, "lastTransitionTime": "1970-01-01T00:00:00Z"});
        // For another reason, it has been a target all along.
        for (known, since) in [
            (json!([]), "2001-09-09T01:46:40Z"),
            (json!([other]), "1970-01-01T00:00:00Z"),
            (json!([over]), "2001-09-09T01:46:40Z"),
        ] {
            let told = said(known).expect("it is news");
            let told = &told["conditions"];
            let expected = json!([{"type": TARGET, "status": "True", "reason": "DeletionByPodGC",
                "message": GONE.message, "observedGeneration": 1, "lastTransitionTime": since}]);
            assert_eq!(*told, expected);
            assert_eq!(said(told.clone()), None, "it is told");
        }
    }

    #[test]
    fn what_is_told_comes_behind_what_was_or_in_its_place() {
        let order = |types: &[&str]| {
            let known = types
                .iter()
                .map(|type_| json!({"type": type_, "status": "False"}));
            let said = said(known.collect()).expect("it is news");
            let order = said["$setElementOrder/conditions"].as_array().cloned();
            let order = order.expect("an order").into_iter();
            order
                .map(|of| of["type"].as_str().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        let ready = ["Ready", "PodScheduled"];
        assert_eq!(order(&ready), ["Ready", "PodScheduled", TARGET]);
        assert_eq!(order(&[TARGET, "Ready"]), [TARGET, "Ready"]);
        assert_eq!(order(&[]), [TARGET]);
    }
}
