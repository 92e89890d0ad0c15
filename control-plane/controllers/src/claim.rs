//! Which dependents a controller owns: adopts orphans that match its selector, releases its own that no longer do.

use std::sync::Arc;

use gantry_api::selector::LabelSelector;
use gantry_informer::object::controller_of;
use gantry_informer::{Cache, Key, Object};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::error::{Doing, Error, Result, code, words};

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

/// Decides on one candidate by its labels. An owner that is being deleted neither adopts nor releases.
pub(crate) fn claim(owner: &ObjectMeta, selector: &LabelSelector, candidate: &ObjectMeta) -> Claim {
    let matches = selector.matches_map(candidate.labels.as_ref());
    claim_matching(owner, matches, candidate)
}

/// The same for an owner that asks for more than labels.
pub(crate) fn claim_matching(owner: &ObjectMeta, matches: bool, candidate: &ObjectMeta) -> Claim {
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

/// The strategic merge patch by which `owner` adopts the object with that uid, which is to have the finalizer from then on.
fn adoption<K: Resource<DynamicType = ()>>(
    owner: &K,
    uid: Option<&str>,
    finalizer: Option<&str>,
) -> Value {
    let owners = [controller_reference(owner)];
    match finalizer {
        None => json!({"metadata": {"uid": uid, "ownerReferences": owners}}),
        Some(finalizer) => {
            json!({"metadata": {"uid": uid, "ownerReferences": owners, "finalizers": [finalizer]}})
        }
    }
}

/// The strategic merge patch that gives the object with that uid free.
fn release(owner: &ObjectMeta, uid: Option<&str>) -> Value {
    json!({"metadata": {"uid": uid, "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}})
}

/// An owner that adopts and releases.
pub(crate) struct Adoption<'a, O> {
    pub(crate) client: &'a kube::Client,
    pub(crate) owner: &'a O,
    /// What the adopted have to have as a finalizer.
    pub(crate) finalizer: Option<&'static str>,
}

/// Adopts and releases as was decided, and returns what is the owner's now.
pub(crate) async fn settle<O, D>(
    client: &kube::Client,
    owner: &O,
    cache: &Cache<D>,
    decided: Vec<(Arc<D>, Claim)>,
) -> Result<Vec<Arc<D>>>
where
    O: Object + Resource<Scope = NamespaceResourceScope>,
    D: Object + Resource<Scope = NamespaceResourceScope>,
{
    let adoption = Adoption {
        client,
        owner,
        finalizer: None,
    };
    adoption.settle(cache, decided).await
}

impl<O> Adoption<'_, O>
where
    O: Object + Resource<Scope = NamespaceResourceScope>,
{
    /// As [`settle`].
    pub(crate) async fn settle<D>(
        &self,
        cache: &Cache<D>,
        decided: Vec<(Arc<D>, Claim)>,
    ) -> Result<Vec<Arc<D>>>
    where
        D: Object + Resource<Scope = NamespaceResourceScope>,
    {
        let owner = self.owner;
        let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
        let api: Api<D> = Api::namespaced(self.client.clone(), namespace);
        let mut ours = Vec::new();
        for (candidate, decision) in decided {
            let uid = candidate.meta().uid.as_deref();
            let patch = match decision {
                Claim::Own => {
                    ours.push(candidate);
                    continue;
                }
                Claim::Ignore => continue,
                Claim::Adopt => {
                    self.confirm_alive().await?;
                    adoption(owner, uid, self.finalizer)
                }
                Claim::Release => release(owner.meta(), uid),
            };
            let key = Key::of(candidate.meta());
            let patched = api
                .patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
                .await;
            match patched {
                Ok(patched) => {
                    cache.observe(patched.clone());
                    if decision == Claim::Adopt {
                        ours.push(Arc::new(patched));
                    }
                }
                // Gone, or another object under its name: nothing to adopt or to release any more.
                Err(error) if matches!(code(&error), Some(404 | 409 | 422)) => {
                    let kind = D::kind(&());
                    tracing::debug!(%kind, %key, error = words(&error), "an object changed while it was claimed");
                }
                Err(error) => return Err(error).doing("claiming a dependent,", &key),
            }
        }
        Ok(ours)
    }

    /// Asks the API server itself whether the owner may still adopt: one deleted a moment ago must not.
    async fn confirm_alive(&self) -> Result<()> {
        let metadata = self.owner.meta();
        let key = Key::of(metadata);
        let api: Api<O> = Api::namespaced(self.client.clone(), &key.namespace);
        let live = api
            .get_metadata_opt(&key.name)
            .await
            .doing("looking at the owner of others,", &key)?;
        match live {
            Some(live)
                if live.metadata.uid == metadata.uid
                    && live.metadata.deletion_timestamp.is_none() =>
            {
                Ok(())
            }
            _ => Err(Error::NotYet {
                object: key.to_string(),
                why: "it is being deleted, and adopts nothing any more".to_owned(),
            }),
        }
    }
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
