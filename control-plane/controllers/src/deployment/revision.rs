//! The annotations that tie replica sets to revisions of a deployment.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
pub(crate) const TEMPLATE_HASH: &str = "pod-template-hash";
/// A replica set keeps this much of its history.
const HISTORY_LENGTH: usize = 2000;

/// Annotations that are the deployment's own, or the replica set's own: not copied from one to the other.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

/// The revision an object is annotated with; zero when there is none.
pub(crate) fn revision_of(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).unwrap_or(0)
}

/// A number in an annotation.
pub(crate) fn annotation<T: std::str::FromStr>(meta: &ObjectMeta, name: &str) -> Option<T> {
    meta.annotations.as_ref()?.get(name)?.parse().ok()
}

/// Whether two templates are the same but for the hash label.
pub(crate) fn same_template(left: &PodTemplateSpec, right: &PodTemplateSpec) -> bool {
    fn labels(template: &PodTemplateSpec) -> impl Iterator<Item = (&String, &String)> {
        template
            .metadata
            .iter()
            .flat_map(|metadata| metadata.labels.iter().flatten())
            .filter(|(key, _)| *key != TEMPLATE_HASH)
    }
    fn annotations(template: &PodTemplateSpec) -> impl Iterator<Item = (&String, &String)> {
        template
            .metadata
            .iter()
            .flat_map(|metadata| metadata.annotations.iter().flatten())
    }
    left.spec == right.spec
        && labels(left).eq(labels(right))
        && annotations(left).eq(annotations(right))
}

/// Copies what the deployment is annotated with to its current replica set, and gives that its revision.
pub(crate) fn annotate_new(deployment: &Deployment, set: &mut ReplicaSet, revision: i64) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    copy_annotations(deployment, annotations);
    let old: Option<String> = annotations.get(REVISION).cloned();
    let old_number: i64 = old
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    if old_number >= revision {
        return;
    }
    annotations.insert(REVISION.to_owned(), revision.to_string());
    if let Some(old) = old {
        // A rollback: the set was an earlier revision before.
        let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
        *history = extended(history, &old);
    }
}

fn copy_annotations(deployment: &Deployment, annotations: &mut BTreeMap<String, String>) {
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
}

fn extended(history: &str, revision: &str) -> String {
    let mut revisions: Vec<&str> = history.split(',').filter(|text| !text.is_empty()).collect();
    revisions.push(revision);
    let length = |revisions: &[&str]| revisions.iter().map(|text| text.len() + 1).sum::<usize>();
    while length(&revisions) > HISTORY_LENGTH + 1 {
        revisions.remove(0);
    }
    revisions.join(",")
}

/// Notes the deployment's size in a set; by it a later change of size is told from a rollout.
pub(crate) fn annotate_size(set: &mut ReplicaSet, desired: i32, max: i32) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED_REPLICAS.to_owned(), desired.to_string());
    annotations.insert(MAX_REPLICAS.to_owned(), max.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_remembers_which_revision_it_was() {
        let deployment = Deployment::default();
        let mut set = ReplicaSet::default();
        for (revision, history) in [(1, None), (3, Some("1")), (3, Some("1")), (7, Some("1,3"))] {
            annotate_new(&deployment, &mut set, revision);
            assert_eq!(revision_of(&set.metadata), revision);
            let annotations = set.metadata.annotations.clone().unwrap_or_default();
            assert_eq!(
                annotations.get(REVISION_HISTORY).map(String::as_str),
                history
            );
        }
    }

    #[test]
    fn history_forgets_its_oldest() {
        let history = (0..900).fold(String::new(), |history, at| {
            extended(&history, &at.to_string())
        });
        assert!(history.len() <= HISTORY_LENGTH);
        assert!(history.ends_with(",899") && !history.starts_with("0,"));
    }

    #[test]
    fn the_users_annotations_are_copied_and_kubectls_are_not() {
        let mut deployment = Deployment::default();
        deployment.metadata.annotations = Some(
            [
                ("kubernetes.io/change-cause", "why"),
                ("kubectl.kubernetes.io/last-applied-configuration", "{}"),
                (REVISION, "9"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        );
        let mut set = ReplicaSet::default();
        annotate_new(&deployment, &mut set, 1);
        let annotations = set.metadata.annotations.unwrap_or_default();
        assert_eq!(
            annotations.keys().collect::<Vec<_>>(),
            [REVISION, "kubernetes.io/change-cause"]
        );
    }
}
