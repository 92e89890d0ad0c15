//! Who the pods of a set are: their ordinals and names, and what follows from these.

use std::ops::Range;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use crate::pods::from_template;

/// The label of a pod that says its name, for services of one pod.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label of a pod that says its ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// The label of a pod that says its revision.
pub(super) const REVISION: &str = "controller-revision-hash";

/// A template and the name of its revision.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Version {
    pub(crate) name: String,
    pub(crate) template: PodTemplateSpec,
}

/// The set and the ordinal that a name tells: `db-3` is the fourth of `db`. `db-03` is nobody's, since the set would never
/// give that name.
pub(super) fn parse(name: &str) -> Option<(&str, i64)> {
    let (set, digits) = name.rsplit_once('-')?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = digits == "0" || !digits.starts_with('0');
    if !plain || !canonical {
        return None;
    }
    Some((set, digits.parse().ok()?))
}

/// The ordinal of a pod of the set; none for a pod that the set has no name for.
pub(super) fn ordinal_of(set: &StatefulSet, pod: &ObjectMeta) -> Option<i64> {
    let (named, ordinal) = parse(pod.name.as_deref()?)?;
    (Some(named) == set.metadata.name.as_deref()).then_some(ordinal)
}

/// The ordinals that the set wants pods of.
pub(super) fn ordinals(spec: &StatefulSetSpec) -> Range<i64> {
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start);
    let start = i64::from(start.unwrap_or(0).max(0));
    start..start + i64::from(spec.replicas.unwrap_or(1).max(0))
}

/// `db-3`.
pub(super) fn pod_name(set: &StatefulSet, ordinal: i64) -> String {
    let name = set.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{ordinal}")
}

/// `data-db-3`.
pub(super) fn claim_name(template: &str, set: &StatefulSet, ordinal: i64) -> String {
    format!("{template}-{}", pod_name(set, ordinal))
}

/// The names of the set's templates of claims.
fn claim_templates(set: &StatefulSet) -> impl Iterator<Item = &str> {
    let spec = set.spec.iter();
    spec.flat_map(|spec| spec.volume_claim_templates.iter().flatten())
        .map(|claim| claim.metadata.name.as_deref().unwrap_or_default())
}

/// The volumes by which a pod mounts its claims.
fn claimed(set: &StatefulSet, ordinal: i64) -> impl Iterator<Item = Volume> {
    claim_templates(set).map(move |template| Volume {
        name: template.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(template, set, ordinal),
            read_only: None,
        }),
        ..Volume::default()
    })
}

/// The pod of an ordinal.
pub(super) fn pod_of(set: &StatefulSet, version: &Version, ordinal: i64) -> Pod {
    let mut pod = from_template(set, version.template.clone());
    let name = pod_name(set, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(REVISION.to_owned(), version.name.clone());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    let service = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    spec.subdomain = service.filter(|service| !service.is_empty());
    // A claim of the set goes before a volume of the same name.
    let mut volumes: Vec<_> = claimed(set, ordinal).collect();
    let own = spec.volumes.take().unwrap_or_default();
    let own = own
        .into_iter()
        .filter(|own| claim_templates(set).all(|template| template != own.name));
    volumes.extend(own);
    spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
    pod.metadata.name = Some(name);
    pod
}

/// What must change about a pod that is there, as a strategic merge patch: labels that say who it is, and its claims, which
/// no API server lets change.
pub(super) fn correction(set: &StatefulSet, pod: &Pod, ordinal: i64) -> Option<Value> {
    let name = pod_name(set, ordinal);
    let mut patch = Map::new();
    let labels = pod.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get(POD_NAME)) != Some(&name) {
        let labels = json!({POD_NAME: name, POD_INDEX: ordinal.to_string()});
        let metadata = json!({"uid": pod.metadata.uid, "labels": labels});
        patch.insert("metadata".to_owned(), metadata);
    }
    let mut missing = claimed(set, ordinal)
        .filter(|wanted| {
            let volumes = pod
                .spec
                .iter()
                .flat_map(|spec| spec.volumes.iter().flatten());
            !volumes.into_iter().any(|has| {
                let claim = has.persistent_volume_claim.as_ref();
                let wanted_claim = wanted.persistent_volume_claim.as_ref();
                has.name == wanted.name
                    && claim.map(|claim| &claim.claim_name)
                        == wanted_claim.map(|claim| &claim.claim_name)
            })
        })
        .peekable();
    if missing.peek().is_some() {
        let volumes: Vec<_> = missing.collect();
        patch.insert("spec".to_owned(), json!({"volumes": volumes}));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The name of the revision that a pod is of.
pub(super) fn revision_of(pod: &Pod) -> Option<&str> {
    let labels = pod.metadata.labels.as_ref()?;
    labels.get(REVISION).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_ordinals() {
        assert_eq!(parse("db-3"), Some(("db", 3)));
        assert_eq!(parse("a-b-10"), Some(("a-b", 10)));
        assert_eq!(parse("db-0"), Some(("db", 0)));
        for name in [
            "db",
            "db-",
            "db-x",
            "db-03",
            "db-+3",
            "db-99999999999999999999",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "s"},
            "spec": {
                "serviceName": "svc", "selector": {"matchLabels": {"app": "x"}}, "ordinals": {"start": 5}, "replicas": 2,
                "volumeClaimTemplates": [{"metadata": {"name": "data"}}], "template": {},
            },
        }))
        .expect("a set")
    }

    fn version() -> Version {
        let template = json!({
            "metadata": {"labels": {"app": "x"}, "annotations": {"a": "b"}},
            "spec": {"containers": [{"name": "c"}], "volumes": [{"name": "data", "emptyDir": {}}, {"name": "own", "emptyDir": {}}]},
        });
        Version {
            name: "db-1".to_owned(),
            template: serde_json::from_value(template).expect("a template"),
        }
    }

    #[test]
    fn a_pod_is_who_it_is() {
        let set = set();
        assert_eq!(ordinals(set.spec.as_ref().expect("a spec")), 5..7);
        let pod = pod_of(&set, &version(), 6);
        let told = serde_json::to_value(&pod).expect("JSON");
        assert_eq!(
            told,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "db-6", "generateName": "db-", "namespace": "ns", "annotations": {"a": "b"},
                    "labels": {
                        "app": "x", "apps.kubernetes.io/pod-index": "6", "controller-revision-hash": "db-1",
                        "statefulset.kubernetes.io/pod-name": "db-6",
                    },
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s", "controller": true,
                        "blockOwnerDeletion": true,
                    }],
                },
                "spec": {
                    "hostname": "db-6", "subdomain": "svc", "containers": [{"name": "c"}],
                    "volumes": [
                        {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-6"}},
                        {"name": "own", "emptyDir": {}},
                    ],
                },
            })
        );
        assert_eq!(correction(&set, &pod, 6), None);
    }

    #[test]
    fn an_adopted_pod_is_told_who_it_is() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "db-6", "uid": "p"}}))
            .expect("a pod");
        let patch = correction(&set(), &pod, 6).expect("it is not as it should be");
        let labels = &patch["metadata"]["labels"];
        assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "db-6");
        assert_eq!(labels["apps.kubernetes.io/pod-index"], "6");
        assert_eq!(patch["metadata"]["uid"], "p");
        let volume = &patch["spec"]["volumes"][0];
        assert_eq!(volume["persistentVolumeClaim"]["claimName"], "data-db-6");
    }
}
