//! What a job says of its pods' ends: which failures count, and when enough has succeeded.

use k8s_openapi::api::batch::v1::{
    PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
    PodFailurePolicyOnPodConditionsPattern, SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

use super::indexes::Indexes;

/// What the failure of a pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// One of those that the job, or the pod's index, may have so many of.
    Counts,
    /// Nothing: the pod is replaced.
    Ignored,
    /// The pod's index has failed.
    FailsIndex,
    /// The whole job has, for this reason.
    FailsJob(String),
}

/// Judges a pod that has failed, by the first rule that it matches.
pub(crate) fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Judgement {
    let rules = policy.map(|policy| policy.rules.as_slice());
    for (at, rule) in rules.unwrap_or_default().iter().enumerate() {
        let (namespace, name) = (
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default(),
        );
        let action = rule.action.as_str();
        let why = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (Some(codes), _) => ended_with(pod, codes).map(|(container, code)| {
                format!(
                    "Container {container} for pod {namespace}/{name} failed with exit code {code} matching {action} rule at index {at}"
                )
            }),
            (None, Some(patterns)) => condition_of(pod, patterns).map(|condition| {
                let condition = &condition.type_;
                format!(
                    "Pod {namespace}/{name} has condition {condition} matching {action} rule at index {at}"
                )
            }),
            (None, None) => None,
        };
        match (why, action) {
            (Some(_), "Ignore") => return Judgement::Ignored,
            (Some(_), "FailIndex") => return Judgement::FailsIndex,
            (Some(_), "Count") => return Judgement::Counts,
            (Some(why), "FailJob") => return Judgement::FailsJob(why),
            _ => {}
        }
    }
    Judgement::Counts
}

/// A container that ended with one of the codes, and the code: those of the pod before those that prepare it.
fn ended_with<'a>(
    pod: &'a Pod,
    codes: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let mut containers = containers.chain(status.init_container_statuses.iter().flatten());
    containers.find_map(|container: &ContainerStatus| {
        let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
        let named = codes.container_name.as_ref();
        let listed = codes.values.contains(&code);
        let matches = match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        };
        let meant = named.is_none_or(|name| *name == container.name);
        (code != 0 && meant && matches).then_some((container.name.as_str(), code))
    })
}

fn condition_of<'a>(
    pod: &'a Pod,
    patterns: &[PodFailurePolicyOnPodConditionsPattern],
) -> Option<&'a PodCondition> {
    let mut conditions = pod.status.as_ref()?.conditions.iter().flatten();
    conditions.find(|condition| {
        patterns.iter().any(|pattern| {
            let status = pattern.status.as_deref().unwrap_or("True");
            pattern.type_ == condition.type_ && status == condition.status
        })
    })
}

/// The first rule by which what has succeeded is enough.
pub(crate) fn enough(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    succeeded: &Indexes,
) -> Option<usize> {
    if succeeded.is_empty() {
        return None;
    }
    policy?.rules.iter().position(|rule| {
        let (wanted, count) = (rule.succeeded_indexes.as_deref(), rule.succeeded_count);
        let Some(wanted) = wanted else {
            return count.is_some_and(|count| succeeded.total() >= count);
        };
        let wanted = Indexes::parse(wanted, completions);
        let needed = count.unwrap_or_else(|| wanted.total());
        !wanted.is_empty() && succeeded.shared(&wanted) >= needed
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "status": status});
        serde_json::from_value(pod).expect("a pod")
    }

    fn ended(container: &str, code: i32) -> Value {
        json!({"name": container, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": code}}})
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [7]}},
            {"action": "Count", "onExitCodes": {"operator": "In", "values": [1]}},
            {"action": "FailJob", "onPodConditions": [{"type": "Bad", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [1, 2]}},
        ]}))
        .expect("a policy");
        let disrupted = json!({"type": "DisruptionTarget", "status": "True"});
        let bad = json!({"type": "Bad", "status": "True"});
        let fails = |why: &str| Judgement::FailsJob(why.to_owned());
        for (status, expected) in [
            (json!({}), Judgement::Counts),
            (
                json!({"conditions": [disrupted], "containerStatuses": [ended("main", 42)]}),
                Judgement::Ignored,
            ),
            (
                json!({"containerStatuses": [ended("other", 0), ended("main", 42)]}),
                fails(
                    "Container main for pod ns/p failed with exit code 42 matching FailJob rule at index 1",
                ),
            ),
            (
                json!({"containerStatuses": [ended("other", 42)]}),
                Judgement::Ignored,
            ),
            (
                json!({"initContainerStatuses": [ended("first", 7)]}),
                Judgement::FailsIndex,
            ),
            (
                json!({"conditions": [bad], "containerStatuses": [ended("main", 1)]}),
                Judgement::Counts,
            ),
            (
                json!({"conditions": [bad], "containerStatuses": [ended("main", 2)]}),
                fails("Pod ns/p has condition Bad matching FailJob rule at index 4"),
            ),
            (
                json!({"containerStatuses": [ended("main", 2)]}),
                Judgement::Counts,
            ),
            // It ended well, and is no reason.
            (
                json!({"containerStatuses": [ended("main", 0)]}),
                Judgement::Counts,
            ),
        ] {
            assert_eq!(
                judge(Some(&policy), &pod(status.clone())),
                expected,
                "{status}"
            );
        }
        assert_eq!(judge(None, &pod(json!({}))), Judgement::Counts);
    }

    #[test]
    fn enough_is_what_the_first_rule_that_holds_says() {
        let policy: SuccessPolicy = serde_json::from_value(json!({"rules": [
            {"succeededIndexes": "0,2-4", "succeededCount": 2},
            {"succeededIndexes": "7,8"},
            {"succeededCount": 4},
        ]}))
        .expect("a policy");
        for (succeeded, expected) in [
            ("", None),
            ("0,1", None),
            ("0,1,3", Some(0)),
            ("7", None),
            ("7,8", Some(1)),
            ("1,5-7", Some(2)),
        ] {
            let succeeded = Indexes::parse(succeeded, 10);
            assert_eq!(
                enough(Some(&policy), 10, &succeeded),
                expected,
                "{succeeded}"
            );
        }
        assert_eq!(enough(None, 10, &Indexes::parse("0-9", 10)), None);
    }
}
