//! The annotations that tie replica sets to revisions of a deployment.

use std::cmp::Ordering;
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
pub(crate) const NOT_COPIED: [&str; 12] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
    crate::roll_on_change::ROLLED_FOR,
    super::rollback::HEALTHY,
    super::rollback::WARM,
    super::rollback::FAILED,
    super::canary::MARK,
    super::canary::CONTINUE,
];

/// The revision an object is annotated with; zero when there is none.
pub(crate) fn revision_of(meta: &ObjectMeta) -> i64 {
    text(meta, REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// A count of pods in an annotation.
pub(crate) fn count(meta: &ObjectMeta, name: &str) -> Option<i32> {
    let text = text(meta, name)?;
    // A sign is none of a count's.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// What an annotation says.
pub(crate) fn text<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The sets in the order in which they were made, and of these the place of that which has the deployment's template: of
/// several the oldest.
pub(crate) fn sorted(
    deployment: &Deployment,
    mut sets: Vec<ReplicaSet>,
) -> (Vec<ReplicaSet>, Option<usize>) {
    sets.sort_by(by_age);
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    let current = sets.iter().position(|set| {
        let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        matches!((own, template), (Some(own), Some(template)) if same_template(own, template))
    });
    (sets, current)
}

/// Older first; the name decides between those of the same second.
pub(crate) fn by_age(left: &ReplicaSet, right: &ReplicaSet) -> Ordering {
    let (left, right) = (&left.metadata, &right.metadata);
    left.creation_timestamp
        .cmp(&right.creation_timestamp)
        .then_with(|| left.name.cmp(&right.name))
}

/// Whether two templates are the same but for the hash label.
pub(crate) fn same_template(left: &PodTemplateSpec, right: &PodTemplateSpec) -> bool {
    fn evened(template: &PodTemplateSpec) -> ObjectMeta {
        let mut metadata = template.metadata.clone().unwrap_or_default();
        if let Some(labels) = &mut metadata.labels {
            labels.remove(TEMPLATE_HASH);
        }
        metadata.labels = metadata.labels.filter(|labels| !labels.is_empty());
        metadata.annotations = metadata.annotations.filter(|all| !all.is_empty());
        metadata.finalizers = metadata.finalizers.filter(|all| !all.is_empty());
        metadata
    }
    left.spec == right.spec && evened(left) == evened(right)
}

/// Copies what the deployment is annotated with to its current replica set, and gives that its revision. One whose revision
/// is no number is left as it is.
pub(crate) fn annotate_new(deployment: &Deployment, set: &mut ReplicaSet, revision: i64) {
    let old = text(&set.metadata, REVISION).map(str::to_owned);
    let old_number = match old.as_deref() {
        None | Some("") => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(number) => number,
            Err(_) => return,
        },
    };
    let annotations = set.metadata.annotations.get_or_insert_default();
    copy_annotations(deployment, annotations);
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
    fn a_revision_that_is_no_number_is_left_alone() {
        let mut deployment = Deployment::default();
        deployment.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
        let mut set = ReplicaSet::default();
        set.metadata.annotations = Some([(REVISION.to_owned(), "latest".to_owned())].into());
        let before = set.clone();
        annotate_new(&deployment, &mut set, 4);
        assert_eq!(set, before);
    }

    #[test]
    fn a_count_has_digits_alone() {
        let of = |text: &str| {
            let annotations = Some([(MAX_REPLICAS.to_owned(), text.to_owned())].into());
            let meta = ObjectMeta {
                annotations,
                ..ObjectMeta::default()
            };
            count(&meta, MAX_REPLICAS)
        };
        assert_eq!(of("12"), Some(12));
        for text in ["", "+1", "-1", "1.5", "2147483648", "x"] {
            assert_eq!(of(text), None, "{text:?}");
        }
    }

    #[test]
    fn all_of_a_template_counts_but_its_hash() {
        let template = |label: (&str, &str), finalizer: Option<&str>| PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([(label.0.to_owned(), label.1.to_owned())].into()),
                finalizers: finalizer.map(|finalizer| vec![finalizer.to_owned()]),
                ..ObjectMeta::default()
            }),
            spec: None,
        };
        let hashed = template((TEMPLATE_HASH, "x"), None);
        assert!(same_template(&hashed, &PodTemplateSpec::default()));
        let labelled = template(("app", "x"), None);
        assert!(!same_template(&labelled, &PodTemplateSpec::default()));
        let held = template(("app", "x"), Some("a.example/hold"));
        assert!(!same_template(&labelled, &held));
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
