//! Which dependents a controller owns: adopts orphans that match its selector, releases its own that no longer do.

use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use serde_json::{Value, json};

/// What to do with a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Ours already.
    Own,
    /// An orphan that matches.
    Adopt,
    /// Ours, but it no longer matches.
    Release,
    /// Not ours.
    Ignore,
}

/// Decides on one candidate. An owner that is being deleted neither adopts nor releases.
pub(crate) fn claim(owner: &ObjectMeta, selector: &LabelSelector, candidate: &ObjectMeta) -> Claim {
    let matches = selector.matches_map(candidate.labels.as_ref());
    let leaving = owner.deletion_timestamp.is_some();
    match controller_of(candidate) {
        Some(controller) if Some(&controller.uid) == owner.uid.as_ref() => {
            if matches {
                Claim::Own
            } else if leaving {
                Claim::Ignore
            } else {
                Claim::Release
            }
        }
        Some(_) => Claim::Ignore,
        None if matches && !leaving && candidate.deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The reference by which `owner` controls a dependent.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The strategic merge patch by which `owner` adopts the object with that uid.
pub(crate) fn adoption<K: Resource<DynamicType = ()>>(owner: &K, uid: Option<&str>) -> Value {
    json!({"metadata": {"uid": uid, "ownerReferences": [controller_reference(owner)]}})
}

/// The strategic merge patch that gives the object with that uid free.
pub(crate) fn release(owner: &ObjectMeta, uid: Option<&str>) -> Value {
    json!({"metadata": {"uid": uid, "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(labels: &[(&str, &str)], controller: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            uid: Some("me".to_owned()),
            labels: Some(
                labels
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
            ),
            owner_references: controller.map(|uid| {
                vec![OwnerReference {
                    uid: uid.to_owned(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn adopts_and_releases_by_labels() {
        let owner = meta(&[], None);
        let selector = LabelSelector::parse("app=x").expect("parses");
        let cases = [
            (meta(&[("app", "x")], Some("me")), Claim::Own),
            (meta(&[("app", "y")], Some("me")), Claim::Release),
            (meta(&[("app", "x")], Some("other")), Claim::Ignore),
            (meta(&[("app", "x")], None), Claim::Adopt),
            (meta(&[("app", "y")], None), Claim::Ignore),
        ];
        for (candidate, expected) in cases {
            assert_eq!(
                claim(&owner, &selector, &candidate),
                expected,
                "{candidate:?}"
            );
        }
    }

    #[test]
    fn an_owner_on_its_way_out_leaves_everything_as_it_is() {
        let mut owner = meta(&[], None);
        owner.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        ));
        let selector = LabelSelector::parse("app=x").expect("parses");
        for (labels, controller, expected) in [
            ([("app", "x")], None, Claim::Ignore),
            ([("app", "y")], Some("me"), Claim::Ignore),
            ([("app", "x")], Some("me"), Claim::Own),
        ] {
            assert_eq!(
                claim(&owner, &selector, &meta(&labels, controller)),
                expected
            );
        }
    }
}
