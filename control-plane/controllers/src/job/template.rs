//! The pods that a job makes.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::TRACKING;
use super::facts::{is_indexed, spec_of};
use super::indexes::INDEX;
use super::policy::{Judgement, judge};
use crate::pods::from_template;

/// How many pods of an index have failed before this one, and count.
const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How many have failed before this one, and do not count.
const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
const VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// The longest start of a name that the server completes.
const LONGEST: usize = 58;

fn annotated(pod: &Pod, annotation: &str) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    let count = annotations.and_then(|annotations| annotations.get(annotation)?.parse().ok());
    count.filter(|count| *count >= 0).unwrap_or(0)
}

/// How many pods of its index had failed before this one was made, and count.
pub(crate) fn failures_before(pod: &Pod) -> i32 {
    annotated(pod, FAILURES)
}

/// As [`failures_before`], with those that do not count.
pub(crate) fn all_failures_before(pod: &Pod) -> i32 {
    annotated(pod, FAILURES).saturating_add(annotated(pod, IGNORED))
}

/// The next pod of a job without indexes.
pub(crate) fn pod_of(job: &Job) -> Pod {
    let template = spec_of(job).map(|spec| spec.template.clone());
    let mut pod = from_template(job, template.unwrap_or_default());
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|known| known == TRACKING) {
        finalizers.push(TRACKING.to_owned());
    }
    if is_indexed(job)
        && let Some(spec) = &mut pod.spec
    {
        let first = spec.init_containers.iter_mut().flatten();
        first.chain(&mut spec.containers).for_each(tell_index);
    }
    pod
}

fn tell_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == VARIABLE) {
        return;
    }
    variables.push(EnvVar {
        name: VARIABLE.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.labels['{INDEX}']"),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    });
}

/// The next pod of an index, after the one that failed.
pub(crate) fn pod_with_index(job: &Job, index: i32, failed: Option<&Pod>) -> Pod {
    let mut pod = pod_of(job);
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let metadata = &mut pod.metadata;
    metadata.generate_name = Some(start_of_name(name, index));
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(INDEX.to_owned(), index.to_string());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    let spec = spec_of(job);
    if spec.is_some_and(|spec| spec.backoff_limit_per_index.is_some()) {
        let policy = spec.and_then(|spec| spec.pod_failure_policy.as_ref());
        let (mut counted, mut ignored) = (0, 0);
        if let Some(failed) = failed {
            (counted, ignored) = (failures_before(failed), annotated(failed, IGNORED));
            match judge(policy, failed) {
                Judgement::Ignored => ignored = ignored.saturating_add(1),
                _ => counted = counted.saturating_add(1),
            }
        }
        annotations.insert(FAILURES.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED.to_owned(), ignored.to_string());
        }
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{name}-{index}"));
    }
    pod
}

fn start_of_name(job: &str, index: i32) -> String {
    let end = format!("-{index}-");
    let mut kept = job.len().min(LONGEST.saturating_sub(end.len()));
    while !job.is_char_boundary(kept) {
        kept -= 1;
    }
    format!("{}{end}", &job[..kept])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(name: &str, spec: serde_json::Value) -> Job {
        let mut job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": name, "namespace": "ns", "uid": "u"},
            "spec": {"template": {
                "metadata": {"labels": {"a": "b"}, "finalizers": ["example.com/x"]},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}], "initContainers": [
                    {"name": "i", "env": [{"name": "JOB_COMPLETION_INDEX", "value": "mine"}]},
                ]},
            }},
        });
        for (field, value) in spec.as_object().expect("fields") {
            job["spec"][field] = value.clone();
        }
        serde_json::from_value(job).expect("a job")
    }

    #[test]
    fn a_pod_is_tracked_and_knows_its_index() {
        let plain = pod_of(&job("j", json!({})));
        assert_eq!(plain.metadata.generate_name.as_deref(), Some("j-"));
        let finalizers = plain.metadata.finalizers.unwrap_or_default();
        assert_eq!(finalizers, ["example.com/x", TRACKING]);
        assert!(plain.spec.expect("a spec").containers[0].env.is_none());
        let indexed = job("j", json!({"completionMode": "Indexed", "completions": 3}));
        let pod = serde_json::to_value(pod_with_index(&indexed, 2, None)).expect("as JSON");
        assert_eq!(pod["metadata"]["generateName"], "j-2-");
        assert_eq!(pod["metadata"]["labels"], json!({"a": "b", INDEX: "2"}));
        assert_eq!(pod["metadata"]["annotations"], json!({INDEX: "2"}));
        assert_eq!(pod["spec"]["hostname"], "j-2");
        let path = "metadata.labels['batch.kubernetes.io/job-completion-index']";
        let told = json!([{"name": VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": path}}}]);
        assert_eq!(pod["spec"]["containers"][0]["env"], told);
        let kept = json!([{"name": VARIABLE, "value": "mine"}]);
        assert_eq!(pod["spec"]["initContainers"][0]["env"], kept);
    }

    #[test]
    fn a_long_name_leaves_room_for_the_index() {
        let name = "n".repeat(63);
        let start = start_of_name(&name, 123);
        assert_eq!(start, format!("{}-123-", "n".repeat(53)));
    }

    #[test]
    fn an_index_counts_its_failures_from_pod_to_pod() {
        let job = job(
            "j",
            json!({
                "completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 2,
                "podFailurePolicy": {"rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]},
            }),
        );
        let told = |pod: &Pod| {
            let all = pod.metadata.annotations.clone().unwrap_or_default();
            (all.get(FAILURES).cloned(), all.get(IGNORED).cloned())
        };
        let some = |text: &str| Some(text.to_owned());
        let mut pod = pod_with_index(&job, 1, None);
        assert_eq!(told(&pod), (some("0"), None));
        pod = pod_with_index(&job, 1, Some(&pod));
        assert_eq!(told(&pod), (some("1"), None));
        pod.status = serde_json::from_value(json!({"conditions": [
            {"type": "DisruptionTarget", "status": "True"},
        ]}))
        .expect("a status");
        pod = pod_with_index(&job, 1, Some(&pod));
        assert_eq!(told(&pod), (some("1"), some("1")));
        assert_eq!((failures_before(&pod), all_failures_before(&pod)), (1, 2));
    }
}
