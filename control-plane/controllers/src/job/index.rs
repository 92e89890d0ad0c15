//! How jobs are found by the pods that they would adopt.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

use crate::selection::pair;

/// Index of jobs: one of the labels that they select.
pub(crate) const SELECTING: &str = "selecting";

fn any(namespace: &str) -> String {
    format!("{namespace}/")
}

pub(crate) fn selecting(job: &Job) -> Vec<String> {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let selector = job.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let mut labels = selector
        .into_iter()
        .flat_map(|selector| selector.match_labels.iter().flatten());
    // One suffices: a pod that is selected has it.
    let label = labels
        .next()
        .map(|(key, value)| pair(namespace, key, value));
    vec![label.unwrap_or_else(|| any(namespace))]
}

/// Where to look for jobs that may select a pod.
pub(crate) fn of_pod(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let labels = pod.metadata.labels.iter().flatten();
    let pairs = labels.map(|(key, value)| pair(namespace, key, value));
    pairs.chain([any(namespace)]).collect()
}
