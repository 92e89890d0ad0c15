//! The claims of a set's pods: which are missing, and whom they go with.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::identity::{claim_name, ordinals};
use crate::claim::controller_reference;

/// Finds a claim of the set's namespace by its name.
pub(super) type Known<'a> = &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>;

/// What is to be done about the claims of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// To be made.
    pub(crate) make: Vec<PersistentVolumeClaim>,
    /// Those whose owners are to change, and to which.
    pub(crate) own: Vec<(Arc<PersistentVolumeClaim>, Vec<OwnerReference>)>,
    /// The names of those that go with somebody else, whatever the set asks for.
    pub(crate) conflicts: Vec<String>,
    /// The names of those that are on their way out: the pod would lose them.
    pub(crate) leaving: Vec<String>,
}

impl Work {
    pub(super) fn is_none(&self) -> bool {
        self.make.is_empty() && self.own.is_empty()
    }
}

/// Whom claims go with.
#[derive(Clone, Copy)]
struct Policy {
    when_deleted: bool,
    when_scaled: bool,
}

impl Policy {
    fn of(set: &StatefulSet) -> Self {
        let policy = set.spec.as_ref();
        let policy = policy.and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
        let deletes = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
        Self {
            when_deleted: deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
            when_scaled: deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        }
    }
}

/// The claims that the pod of an ordinal mounts, as they are made.
fn claims_of(set: &StatefulSet, ordinal: i64) -> impl Iterator<Item = PersistentVolumeClaim> {
    let spec = set.spec.as_ref();
    let selected = spec.and_then(|spec| spec.selector.match_labels.as_ref());
    let templates = spec
        .into_iter()
        .flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    templates.map(move |template| {
        let mut claim = template.clone();
        let name = template.metadata.name.as_deref().unwrap_or_default();
        claim.metadata.name = Some(claim_name(name, set, ordinal));
        claim.metadata.namespace.clone_from(&set.metadata.namespace);
        if let Some(selected) = selected {
            let labels = claim.metadata.labels.get_or_insert_default();
            labels.extend(selected.clone());
        }
        claim.status = None;
        claim
    })
}

/// Compares the claims of a pod of the set, which may not be there yet, with what should be.
pub(super) fn work(set: &StatefulSet, pod: &ObjectMeta, ordinal: i64, known: Known<'_>) -> Work {
    let mut work = Work::default();
    for mut claim in claims_of(set, ordinal) {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let Some(has) = known(&name) else {
            if let Ownership::Wrong(owners) = ownership(set, pod, ordinal, &[]).0 {
                claim.metadata.owner_references = Some(owners);
            }
            work.make.push(claim);
            continue;
        };
        if has.metadata.deletion_timestamp.is_some() {
            work.leaving.push(name);
            continue;
        }
        let owners = has.metadata.owner_references.as_deref();
        let (ownership, conflict) = ownership(set, pod, ordinal, owners.unwrap_or_default());
        if conflict {
            work.conflicts.push(name);
        }
        if let Ownership::Wrong(owners) = ownership {
            work.own.push((has, owners));
        }
    }
    work
}

/// The same for a pod that is to go: nothing is made for it.
pub(super) fn parting(set: &StatefulSet, pod: &ObjectMeta, ordinal: i64, known: Known<'_>) -> Work {
    Work {
        make: Vec::new(),
        leaving: Vec::new(),
        ..work(set, pod, ordinal, known)
    }
}

/// Whether a claim of a pod that is to be made is still that of the one before, and goes with it: to be waited for.
pub(super) fn is_stale(set: &StatefulSet, pod: &str, ordinal: i64, known: Known<'_>) -> bool {
    Policy::of(set).when_scaled
        && claims_of(set, ordinal).any(|claim| {
            let claim = known(claim.metadata.name.as_deref().unwrap_or_default());
            let owners = claim.and_then(|claim| claim.metadata.owner_references.clone());
            owners
                .iter()
                .flatten()
                .any(|owner| owner.api_version == "v1" && owner.kind == "Pod" && owner.name == pod)
        })
}

enum Ownership {
    AsItShouldBe,
    /// With the owners that it should have.
    Wrong(Vec<OwnerReference>),
}

/// Whether the owners of a claim are those that the set's policy asks for, and whether somebody else controls it although
/// the set asks for something. Owners that are neither the set nor the pod stay.
fn ownership(
    set: &StatefulSet,
    pod: &ObjectMeta,
    ordinal: i64,
    owners: &[OwnerReference],
) -> (Ownership, bool) {
    let policy = Policy::of(set);
    let the_set = controller_reference(set);
    let the_pod = controller_reference(&Pod {
        metadata: pod.clone(),
        ..Pod::default()
    });
    let names = |owner: &OwnerReference, is: &OwnerReference| {
        owner.api_version == is.api_version && owner.kind == is.kind && owner.name == is.name
    };
    let ours = |owner: &OwnerReference| names(owner, &the_set) || names(owner, &the_pod);
    let has = |uid: &str| !uid.is_empty() && owners.iter().any(|owner| owner.uid == uid);
    let is_of_before = |is: &OwnerReference| {
        let named = owners.iter().find(|owner| names(owner, is));
        named.is_some_and(|named| named.uid != is.uid)
    };
    if is_of_before(&the_set) || is_of_before(&the_pod) {
        // It is about to go with a set or a pod that is no more.
        return (Ownership::AsItShouldBe, false);
    }
    let (has_set, has_pod) = (has(&the_set.uid), has(&the_pod.uid));
    let is_own = |owner: &OwnerReference| {
        ours(owner) || owner.uid == the_set.uid || (has_pod && owner.uid == the_pod.uid)
    };
    let others = || owners.iter().filter(|owner| !is_own(owner)).cloned();
    let asks = policy.when_deleted || policy.when_scaled;
    if asks && others().any(|owner| owner.controller == Some(true)) {
        let wrong = has_set || has_pod;
        let ownership = match wrong {
            true => Ownership::Wrong(others().collect()),
            false => Ownership::AsItShouldBe,
        };
        return (ownership, true);
    }
    let stays = set
        .spec
        .as_ref()
        .is_some_and(|spec| ordinals(spec).contains(&ordinal));
    let with_set = policy.when_deleted && (stays || !policy.when_scaled);
    let with_pod = policy.when_scaled && !stays;
    let controls = |owner: &OwnerReference| owner.controller == Some(true);
    let all_control = owners.iter().filter(|owner| is_own(owner)).all(controls);
    if all_control && has_set == with_set && has_pod == with_pod {
        return (Ownership::AsItShouldBe, false);
    }
    let wanted = [with_set.then_some(&the_set), with_pod.then_some(&the_pod)];
    let owners = others().chain(wanted.into_iter().flatten().cloned());
    (Ownership::Wrong(owners.collect()), false)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(policy: Value) -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "s"},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "x"}}, "template": {},
                "persistentVolumeClaimRetentionPolicy": policy,
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data", "labels": {"l": "m"}, "annotations": {"a": "b"}},
                    "spec": {"storageClassName": "none"}, "status": {"phase": "Pending"},
                }],
            },
        }))
        .expect("a set")
    }

    fn pod(ordinal: i64) -> ObjectMeta {
        ObjectMeta {
            name: Some(format!("db-{ordinal}")),
            uid: Some(format!("p{ordinal}")),
            ..ObjectMeta::default()
        }
    }

    fn claim(owners: &Value) -> Arc<PersistentVolumeClaim> {
        let metadata = json!({"name": "data-db-0", "ownerReferences": owners});
        Arc::new(serde_json::from_value(json!({"metadata": metadata})).expect("a claim"))
    }

    fn owner(kind: &str, name: &str, uid: &str) -> Value {
        let version = match kind {
            "StatefulSet" => "apps/v1",
            _ => "v1",
        };
        json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true})
    }

    #[test]
    fn a_claim_is_made_of_its_template() {
        let retain = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
        let work = work(&set(retain), &ObjectMeta::default(), 1, &|_| None);
        let made = serde_json::to_value(&work.make).expect("JSON");
        assert_eq!(
            made,
            json!([{
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {
                    "name": "data-db-1", "namespace": "ns", "labels": {"l": "m", "app": "x"}, "annotations": {"a": "b"},
                },
                "spec": {"storageClassName": "none"},
            }])
        );
    }

    #[test]
    fn a_claim_goes_with_whom_the_policy_says() {
        let (the_set, here, beyond) = (
            owner("StatefulSet", "db", "s"),
            owner("Pod", "db-0", "p0"),
            owner("Pod", "db-7", "p7"),
        );
        let cases = [
            ("Retain", "Retain", 0, json!([])),
            ("Retain", "Retain", 7, json!([])),
            ("Delete", "Retain", 0, json!([the_set])),
            ("Delete", "Retain", 7, json!([the_set])),
            ("Retain", "Delete", 0, json!([])),
            ("Retain", "Delete", 7, json!([beyond])),
            ("Delete", "Delete", 0, json!([the_set])),
            ("Delete", "Delete", 7, json!([beyond])),
        ];
        let stranger = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "c"});
        for (deleted, scaled, ordinal, expected) in cases {
            let set = set(json!({"whenDeleted": deleted, "whenScaled": scaled}));
            let of_pod = if ordinal == 0 { &here } else { &beyond };
            for before in [
                json!([]),
                json!([the_set]),
                json!([of_pod]),
                json!([the_set, of_pod]),
                json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": "s"}]),
            ] {
                let mut before = before.as_array().cloned().expect("a list");
                before.insert(0, stranger.clone());
                let has = claim(&Value::Array(before.clone()));
                let work = work(&set, &pod(ordinal), ordinal, &|_| Some(has.clone()));
                let after = match work.own.first() {
                    Some((_, owners)) => serde_json::to_value(owners).expect("JSON"),
                    None => Value::Array(before),
                };
                let mut wanted = expected.as_array().cloned().expect("a list");
                wanted.insert(0, stranger.clone());
                assert_eq!(after, Value::Array(wanted), "{deleted} {scaled} {ordinal}");
                let settled = claim(&after);
                let again = super::work(&set, &pod(ordinal), ordinal, &|_| Some(settled.clone()));
                assert!(again.is_none(), "it stays so");
            }
        }
    }

    #[test]
    fn a_claim_of_others_is_left_to_them() {
        let set = set(json!({"whenDeleted": "Delete", "whenScaled": "Delete"}));
        let other = owner("ReplicaSet", "o", "o");
        let has = claim(&json!([other]));
        let found = work(&set, &pod(0), 0, &|_| Some(has.clone()));
        assert!(found.is_none());
        assert_eq!(found.conflicts, ["data-db-0"]);
        let has = claim(&json!([other, owner("StatefulSet", "db", "s")]));
        let found = work(&set, &pod(0), 0, &|_| Some(has.clone()));
        let owners = serde_json::to_value(&found.own[0].1).expect("JSON");
        assert_eq!(owners, json!([other]));
    }

    #[test]
    fn a_claim_that_goes_with_the_pod_before_is_waited_for() {
        let stale = claim(&json!([owner("Pod", "db-0", "before")]));
        let known = |_: &str| Some(stale.clone());
        let deleting = set(json!({"whenDeleted": "Retain", "whenScaled": "Delete"}));
        assert!(is_stale(&deleting, "db-0", 0, &known));
        assert!(!is_stale(&deleting, "db-0", 0, &|_| None));
        assert!(!is_stale(&set(json!({})), "db-0", 0, &known));
        // It is about to go, and nothing is changed about that.
        assert!(work(&deleting, &pod(0), 0, &known).is_none());
    }
}
