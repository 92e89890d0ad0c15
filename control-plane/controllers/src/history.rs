//! What a workload's template was at a time, kept as ControllerRevisions of the form and the names that Kubernetes gives
//! them, so that either goes on with the other's, and `kubectl rollout` reads both.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_api::selector::LabelSelector;
use gantry_informer::{Cache, Key, Object};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Map, Value, json};

use crate::claim::{Claim, claim, controller_reference, settle};
use crate::context::ORPHANS;
use crate::error::{Doing, Result, code};
use crate::template_hash::{OFFSET, PRIME, safe, template_hash};

/// A revision's name begins with no more than this of its owner's.
const PREFIX: usize = 223;

/// What a revision holds: the patch that makes the template what it was.
fn data(template: &PodTemplateSpec) -> Value {
    // A type of the API is always JSON.
    let mut template = serde_json::to_value(template).unwrap_or_default();
    if let Value::Object(parts) = &mut template {
        for part in ["metadata", "spec"] {
            parts
                .entry(part)
                .or_insert_with(|| Value::Object(Map::new()));
        }
        parts.insert("$patch".to_owned(), json!("replace"));
    }
    json!({"spec": {"template": template}})
}

/// The data as Go writes it: keys in order, and what HTML would read as its own escaped.
fn written(data: &Value) -> String {
    let text = data.to_string();
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
    }
    out
}

/// How the revisions of a kind are told apart, and named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By what they hold, as those of StatefulSets.
    ByData,
    /// By the template, as ReplicaSets are, and as those of DaemonSets.
    ByTemplate,
}

impl Naming {
    /// The label of a revision that says its hash.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::ByData => "controller.kubernetes.io/hash",
            Self::ByTemplate => "controller-revision-hash",
        }
    }

    /// `collisions` is how many names were taken before, if that is known to the owner's status.
    fn hash(self, data: &Value, template: &PodTemplateSpec, collisions: Option<i32>) -> String {
        match self {
            Self::ByData => hash(data, collisions.unwrap_or(0)),
            Self::ByTemplate => template_hash(template, collisions),
        }
    }
}

/// FNV-1 of the data and of the digits of `collisions`, which set apart data of the same hash.
fn hash(data: &Value, collisions: i32) -> String {
    let text = written(data) + &collisions.to_string();
    let sum = text.bytes().fold(OFFSET, |hash, byte| {
        hash.wrapping_mul(PRIME) ^ u32::from(byte)
    });
    safe(&sum.to_string())
}

/// The revision of that number for a template of `owner`.
pub(crate) fn revision_of<K: Object>(
    owner: &K,
    template: &PodTemplateSpec,
    number: i64,
    naming: Naming,
    collisions: Option<i32>,
) -> ControllerRevision {
    let data = data(template);
    let hash = naming.hash(&data, template, collisions);
    let name = owner.meta().name.as_deref().unwrap_or_default();
    // Names are ASCII.
    let prefix = name.get(..PREFIX).unwrap_or(name);
    let labels = template.metadata.as_ref();
    let mut labels = labels
        .and_then(|metadata| metadata.labels.clone())
        .unwrap_or_default();
    let name = format!("{prefix}-{hash}");
    labels.insert(naming.label().to_owned(), hash);
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// The template that a revision holds; none where it is no revision of a template.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.as_ref()?.0.pointer("/spec/template")?;
    serde_json::from_value(template.clone()).ok()
}

/// The name of a revision, by which pods are labelled.
pub(crate) fn name_of(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

fn order(left: &ControllerRevision, right: &ControllerRevision) -> Ordering {
    let created = |revision: &ControllerRevision| {
        let time = revision.metadata.creation_timestamp.as_ref();
        time.map(|time| time.0)
    };
    left.revision
        .cmp(&right.revision)
        .then_with(|| created(left).cmp(&created(right)))
        .then_with(|| left.metadata.name.cmp(&right.metadata.name))
}

/// Sorts revisions, the oldest first.
fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|left, right| order(left, right));
}

/// How the revision of the current template comes about.
#[derive(Debug, PartialEq)]
pub(crate) enum Wanted {
    /// It is the latest already.
    Latest(Arc<ControllerRevision>),
    /// It was before, and becomes the latest again under this number.
    Again(Arc<ControllerRevision>, i64),
    /// There is none yet.
    New(Box<ControllerRevision>),
}

/// Compares the revisions there are, sorted, with the template of `owner`. Revisions are the same by what they hold,
/// whatever their names.
pub(crate) fn wanted<K: Object>(
    owner: &K,
    template: &PodTemplateSpec,
    revisions: &[Arc<ControllerRevision>],
    naming: Naming,
    collisions: Option<i32>,
) -> Wanted {
    let latest = revisions.last();
    let number = latest.map_or(0, |latest| latest.revision) + 1;
    let new = revision_of(owner, template, number, naming, collisions);
    let same = revisions.iter().rev().find(|known| {
        // What was left out of a template is the same as what it says by default: `"creationTimestamp": null` of old.
        known.data == new.data || template_of(known).as_ref() == Some(template)
    });
    match (same, latest) {
        (Some(same), Some(latest)) if Arc::ptr_eq(same, latest) => Wanted::Latest(same.clone()),
        (Some(same), _) => Wanted::Again(same.clone(), number),
        (None, _) => Wanted::New(Box::new(new)),
    }
}

/// The revisions beyond the limit, the oldest first, of those that nothing is of any more. A negative limit keeps all.
pub(crate) fn expired(
    revisions: &[Arc<ControllerRevision>],
    live: &BTreeSet<&str>,
    limit: i32,
) -> Vec<Arc<ControllerRevision>> {
    let Ok(limit) = usize::try_from(limit) else {
        return Vec::new();
    };
    let old = revisions
        .iter()
        .filter(|known| !live.contains(name_of(known)));
    let mut old: Vec<_> = old.cloned().collect();
    old.truncate(old.len().saturating_sub(limit));
    old
}

/// The revision of the current template, as it is kept now.
#[derive(Debug)]
pub(crate) enum Kept {
    Is(Arc<ControllerRevision>),
    /// Another object has its name: the next hash has one collision more counted in.
    Collides,
}

/// Makes the wanted revision be there.
pub(crate) async fn keep<K: Object>(
    client: &kube::Client,
    cache: &Cache<ControllerRevision>,
    owner: &K,
    wanted: Wanted,
) -> Result<Kept> {
    let key = Key::of(owner.meta());
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &key.namespace);
    match wanted {
        Wanted::Latest(revision) => Ok(Kept::Is(revision)),
        Wanted::Again(revision, number) => {
            let patch = json!({"metadata": {"uid": revision.metadata.uid}, "revision": number});
            let patched = api
                .patch(
                    name_of(&revision),
                    &PatchParams::default(),
                    &Patch::Merge(patch),
                )
                .await
                .doing("bringing back a revision of", &key)?;
            cache.observe(patched.clone());
            Ok(Kept::Is(Arc::new(patched)))
        }
        Wanted::New(revision) => {
            let refused = match api.create(&PostParams::default(), &revision).await {
                Ok(made) => {
                    cache.observe(made.clone());
                    return Ok(Kept::Is(Arc::new(made)));
                }
                Err(error) if code(&error) == Some(409) => error,
                Err(error) => return Err(error).doing("making a revision of", &key),
            };
            let known = api
                .get_opt(name_of(&revision))
                .await
                .doing("looking at a revision of", &key)?;
            match known {
                // It was made before, by an answer that never arrived; or for an owner of the same name, with which it goes.
                Some(known) if known.data == revision.data => {
                    cache.observe(known.clone());
                    Ok(Kept::Is(Arc::new(known)))
                }
                Some(_) => Ok(Kept::Collides),
                None => Err(refused).doing("making a revision of", &key),
            }
        }
    }
}

/// Deletes revisions of an owner that are of no use any more.
pub(crate) async fn forget(
    client: &kube::Client,
    cache: &Cache<ControllerRevision>,
    expired: &[Arc<ControllerRevision>],
) -> Result<()> {
    for revision in expired {
        let key = Key::of(&revision.metadata);
        let api: Api<ControllerRevision> = Api::namespaced(client.clone(), &key.namespace);
        let uid = &revision.metadata.uid;
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: uid.clone(),
            resource_version: None,
        });
        match api.delete(&key.name, &parameters).await {
            Ok(answer) => {
                if let Some(leaving) = answer.left() {
                    cache.observe_deleting(leaving);
                }
            }
            Err(error) if matches!(code(&error), Some(404 | 409)) => {
                cache.observe_gone(&key, uid.as_deref().unwrap_or_default());
            }
            Err(error) => return Err(error).doing("deleting the old revision", &key),
        }
    }
    Ok(())
}

/// The revisions that are the owner's, after adopting: sorted, the oldest first. None is ever released. The cache has the index
/// [`ORPHANS`].
pub(crate) async fn claimed<K>(
    client: &kube::Client,
    cache: &Cache<ControllerRevision>,
    owner: &K,
    selector: &LabelSelector,
) -> Result<Vec<Arc<ControllerRevision>>>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    let namespace = owner.meta().namespace.as_deref().unwrap_or_default();
    let mut known = cache.owned_by(uid);
    known.extend(cache.indexed(ORPHANS, namespace));
    let decided = known.into_iter().map(|revision| {
        let decision = match claim(owner.meta(), selector, &revision.metadata) {
            Claim::Release => Claim::Ignore,
            other => other,
        };
        (revision, decision)
    });
    let mut revisions = settle(client, owner, cache, decided.collect()).await?;
    sort(&mut revisions);
    Ok(revisions)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::StatefulSet;

    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        let container = json!({
            "name": "c", "image": image, "imagePullPolicy": "IfNotPresent", "resources": {},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        });
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "x"}},
            "spec": {
                "containers": [container], "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
                "dnsPolicy": "ClusterFirst", "securityContext": {}, "schedulerName": "none",
            },
        }))
        .expect("a template")
    }

    fn owner() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "1", "annotations": {"why": "so"}},
        }))
        .expect("a set")
    }

    fn kept(image: &str, number: i64) -> Arc<ControllerRevision> {
        Arc::new(revision_of(
            &owner(),
            &template(image),
            number,
            Naming::ByData,
            None,
        ))
    }

    #[test]
    fn as_kubernetes_makes_it() {
        let revision = kept("nginx:1", 1);
        assert_eq!(name_of(&revision), "db-6b7b7776b8");
        assert_eq!(name_of(&kept("nginx:2", 1)), "db-869c56c74c");
        let labels = revision.metadata.labels.clone().expect("labels");
        assert_eq!(labels["app"], "x");
        assert_eq!(labels[Naming::ByData.label()], "6b7b7776b8");
        let annotations = revision.metadata.annotations.clone().expect("annotations");
        assert_eq!(annotations["why"], "so");
        let data = &revision.data.as_ref().expect("data").0;
        assert_eq!(data["spec"]["template"]["$patch"], "replace");
        assert_eq!(template_of(&revision), Some(template("nginx:1")));
    }

    #[test]
    fn a_kind_may_name_its_revisions_as_replica_sets_are_named() {
        let template = template("nginx:1");
        let revision = revision_of(&owner(), &template, 1, Naming::ByTemplate, None);
        assert_eq!(name_of(&revision), "db-59f8748c69");
        let labels = revision.metadata.labels.expect("labels");
        assert_eq!(labels["controller-revision-hash"], "59f8748c69");
    }

    #[test]
    fn a_collision_gives_another_name() {
        for naming in [Naming::ByData, Naming::ByTemplate] {
            let of = |collisions| {
                let template = template("nginx:1");
                revision_of(&owner(), &template, 1, naming, Some(collisions))
            };
            let (first, second) = (of(0), of(1));
            assert_ne!(first.metadata.name, second.metadata.name);
            assert_eq!(first.data, second.data);
        }
    }

    #[test]
    fn text_is_written_as_go_does() {
        let data = json!({"b": "<a & b>\n\u{2028}", "a": 1});
        let expected = r#"{"a":1,"b":"\u003ca \u0026 b\u003e\n\u2028"}"#;
        assert_eq!(written(&data), expected);
    }

    #[test]
    fn a_template_of_before_is_brought_back() {
        let (owner, one, two) = (owner(), kept("nginx:1", 1), kept("nginx:2", 2));
        let known = [one.clone(), two.clone()];
        let want = |image: &str| {
            let template = template(image);
            wanted(&owner, &template, &known, Naming::ByData, None)
        };
        assert_eq!(want("nginx:2"), Wanted::Latest(two));
        assert_eq!(want("nginx:1"), Wanted::Again(one, 3));
        let Wanted::New(new) = want("nginx:3") else {
            panic!("there is none of it");
        };
        assert_eq!(new.revision, 3);
    }

    #[test]
    fn what_an_older_release_wrote_is_the_same() {
        let mut revision = (*kept("nginx:1", 1)).clone();
        let data = revision.data.as_mut().expect("data");
        data.0["spec"]["template"]["metadata"]["creationTimestamp"] = Value::Null;
        let known = [Arc::new(revision)];
        let wanted = wanted(&owner(), &template("nginx:1"), &known, Naming::ByData, None);
        assert_eq!(wanted, Wanted::Latest(known[0].clone()));
    }

    #[test]
    fn history_keeps_what_is_in_use_and_the_youngest() {
        let all: Vec<_> = (1..6).map(|n| kept(&format!("i:{n}"), n)).collect();
        let live = BTreeSet::from([name_of(&all[0])]);
        let numbers = |limit| -> Vec<i64> {
            let gone = expired(&all, &live, limit);
            gone.iter().map(|revision| revision.revision).collect()
        };
        assert_eq!(numbers(2), [2, 3]);
        assert_eq!(numbers(0), [2, 3, 4, 5]);
        assert_eq!(numbers(4), [0; 0]);
        assert_eq!(numbers(-1), [0; 0]);
    }

    #[test]
    fn revisions_are_in_the_order_of_their_numbers() {
        let mut all = [kept("i:1", 7), kept("i:2", 3), kept("i:3", 5)];
        sort(&mut all);
        assert_eq!(all.map(|revision| revision.revision), [3, 5, 7]);
    }
}
