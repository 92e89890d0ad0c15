//! Claims that pods use, and volumes that claims are bound to, stay until they are used no more: each has a finalizer from its
//! creation, which is taken off here once it is to go and nobody uses it.

mod classes;

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_api::kinds::{persistent_volume, persistent_volume_claim};
use gantry_informer::object::controller_of;
use gantry_informer::{Cache, Informer, Informers, Key, Next, Object, Queue, runner};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use self::classes::Classes;
use crate::context::Context;
use crate::error::{Doing, Result, code, taken_in};
use crate::listing::each_page;
use crate::pods::is_finished;

/// Index: pods by the claims that they name, as `namespace/name`.
const CLAIMS: &str = "claims";
/// Index: claims that something is to be done about, by namespace.
const UNSETTLED: &str = "unsettled";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Work {
    /// The claims of a namespace: its pods are listed once for all of them.
    Claims(Arc<str>),
    /// A volume.
    Volume(Key),
    /// A class of volumes' attributes.
    Class(Key),
}

struct Caches {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    pods: Informer<Pod>,
    classes: Classes,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers) {
    let (claims, volumes) = (informers.of().index(UNSETTLED, unsettled), informers.of());
    let classes = Classes::of(informers, &claims, &volumes);
    let caches = Arc::new(Caches {
        claims,
        volumes,
        classes,
        pods: context.pods.clone().index(CLAIMS, claims_of),
    });
    let queue = Arc::new(Queue::<Work>::default());
    let classes = queue.clone();
    let look = move |class: Key| classes.add(Work::Class(class));
    caches.classes.follow(look);
    caches.claims.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(claim) = change.new.filter(|claim| is_unsettled(claim)) {
                queue.add(Work::Claims(Key::of(&claim.metadata).namespace));
            }
        }
    }));
    caches.volumes.subscribe(Box::new({
        let queue = queue.clone();
        move |change| {
            if let Some(volume) = change.new {
                queue.add(Work::Volume(Key::of(&volume.metadata)));
            }
        }
    }));
    caches.pods.subscribe(Box::new({
        let (queue, claims) = (queue.clone(), caches.claims.clone());
        move |change| {
            let replaced = match (change.old, change.new) {
                (Some(old), Some(new)) => old.metadata.uid != new.metadata.uid,
                _ => true,
            };
            let gone = change.old.filter(|_| replaced);
            let idle = change
                .new
                .filter(|pod| is_finished(pod) || node_of(pod).is_empty() || is_shut_down(pod));
            for pod in gone.into_iter().chain(idle) {
                let namespace = Key::of(&pod.metadata).namespace;
                let awaited = named(pod).into_iter().any(|named| {
                    let claim = claims.get(&Key::new(&namespace, &named.claim));
                    claim.is_some_and(|claim| is_unsettled(&claim))
                });
                if awaited {
                    queue.add(Work::Claims(namespace));
                }
            }
        }
    }));
    let stop = context.stop.clone();
    let filled = async {
        caches.claims.synced().await;
        caches.volumes.synced().await;
    };
    if stop.run_until_cancelled(filled).await.is_none() {
        return;
    }
    runner::run("volume-protection", queue, 4, stop, move |work| {
        let (context, caches) = (context.clone(), caches.clone());
        async move { reconcile(&context, &caches, &work).await }
    })
    .await;
}

async fn reconcile(context: &Context, caches: &Caches, work: &Work) -> Result<Next> {
    match work {
        Work::Claims(namespace) => settle_claims(context, caches, namespace).await?,
        Work::Volume(key) => settle_volume(context, caches, key).await?,
        Work::Class(key) => caches.classes.settle(context, key).await?,
    }
    Ok(Next::Changed)
}

/// What is to be done about the finalizer of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// It has none, and is to stay.
    Adding,
    /// It has one, and is to go when nobody uses it.
    Removing,
}

fn due(metadata: &ObjectMeta, protection: &str) -> Option<Due> {
    let mut finalizers = metadata.finalizers.iter().flatten();
    let has = finalizers.any(|known| known == protection);
    match (&metadata.deletion_timestamp, has) {
        (None, false) => Some(Due::Adding),
        (Some(_), true) => Some(Due::Removing),
        _ => None,
    }
}

fn is_unsettled(claim: &PersistentVolumeClaim) -> bool {
    due(&claim.metadata, persistent_volume_claim::PROTECTION).is_some()
}

fn unsettled(claim: &PersistentVolumeClaim) -> Vec<String> {
    let namespace = claim.metadata.namespace.iter();
    namespace.filter(|_| is_unsettled(claim)).cloned().collect()
}

/// A claim that a pod names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Named {
    claim: String,
    /// The pod's uid, of a claim that is made for it and means no other of that name.
    made_for: Option<String>,
}

impl Named {
    fn means(&self, claim: &PersistentVolumeClaim) -> bool {
        let metadata = &claim.metadata;
        metadata.name.as_ref() == Some(&self.claim)
            && self.made_for.as_ref().is_none_or(|pod| {
                controller_of(metadata).is_some_and(|controller| controller.uid == *pod)
            })
    }
}

fn node_of(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    let node = spec.and_then(|spec| spec.node_name.as_deref());
    node.unwrap_or_default()
}

/// Whether its node has done with a pod, or need not be asked.
fn is_shut_down(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
        && pod.metadata.deletion_grace_period_seconds == Some(0)
}

fn named(pod: &Pod) -> Vec<Named> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes).flatten();
    let named = volumes.filter_map(|volume| match &volume.persistent_volume_claim {
        Some(claim) => Some(Named {
            claim: claim.claim_name.clone(),
            made_for: None,
        }),
        None => volume.ephemeral.as_ref().map(|_| Named {
            claim: format!("{name}-{}", volume.name),
            made_for: Some(pod.metadata.uid.clone().unwrap_or_default()),
        }),
    });
    named.collect()
}

/// The claims that a pod uses: nodes start none that names a claim which is to go.
fn used(pod: &Pod) -> Vec<Named> {
    let mut used = named(pod);
    if node_of(pod).is_empty() {
        used.clear();
    }
    if is_shut_down(pod) {
        // It may wait for its own claims to go.
        used.retain(|named| named.made_for.is_none());
    }
    used
}

fn claims_of(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let named = named(pod).into_iter();
    named
        .map(|named| Key::new(namespace, &named.claim).to_string())
        .collect()
}

/// What the pods of a namespace use, as the API server has them now: a pod may be too young for the cache.
async fn used_in(context: &Context, namespace: &str) -> Result<BTreeSet<Named>> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let mut found = BTreeSet::new();
    let source = &api;
    let listed = each_page(
        move |parameters| async move { source.list(&parameters).await },
        |pods| found.extend(pods.iter().flat_map(used)),
    );
    listed
        .await
        .doing("listing the pods of", &Key::new("", namespace))?;
    Ok(found)
}

async fn settle_claims(context: &Context, caches: &Caches, namespace: &str) -> Result<()> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let mut live = None;
    for claim in caches.claims.indexed(UNSETTLED, namespace) {
        let key = Key::of(&claim.metadata);
        let Some(due) = due(&claim.metadata, persistent_volume_claim::PROTECTION) else {
            continue;
        };
        if due == Due::Removing {
            let pods = caches.pods.indexed(CLAIMS, &key.to_string());
            if pods
                .iter()
                .any(|pod| used(pod).iter().any(|one| one.means(&claim)))
            {
                continue;
            }
            if live.is_none() {
                live = Some(used_in(context, namespace).await?);
            }
            if live.iter().flatten().any(|one| one.means(&claim)) {
                continue;
            }
        }
        let protection = persistent_volume_claim::PROTECTION;
        write(&api, &caches.claims, (&claim.metadata, protection), due).await?;
    }
    Ok(())
}

async fn settle_volume(context: &Context, caches: &Caches, key: &Key) -> Result<()> {
    let Some(volume) = caches.volumes.get(key) else {
        return Ok(());
    };
    let Some(due) = due(&volume.metadata, persistent_volume::PROTECTION) else {
        return Ok(());
    };
    let status = volume.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if due == Due::Removing && phase == Some("Bound") {
        return Ok(());
    }
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    let protection = persistent_volume::PROTECTION;
    write(&api, &caches.volumes, (&volume.metadata, protection), due).await
}

/// Adds the finalizer, or takes it off; nothing else that somebody has written since is touched.
async fn write<K: Object>(
    api: &Api<K>,
    cache: &Cache<K>,
    (metadata, protection): (&ObjectMeta, &str),
    due: Due,
) -> Result<()> {
    let key = Key::of(metadata);
    let finalizers = metadata.finalizers.iter().flatten().map(String::as_str);
    let finalizers: Vec<&str> = match due {
        Due::Adding => finalizers.chain([protection]).collect(),
        Due::Removing => finalizers.filter(|known| *known != protection).collect(),
    };
    let patch = Patch::Merge(json!({"metadata": {
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
        "finalizers": finalizers,
    }}));
    let answer = api.patch(&key.name, &PatchParams::default(), &patch).await;
    match taken_in(answer, api, cache, &key.name).await {
        Err(error) if code(&error) == Some(404) => Ok(()),
        written => written.doing("protecting", &key),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn pod(more: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "1"},
            "spec": {"nodeName": "a", "containers": [], "volumes": [
                {"name": "x", "emptyDir": {}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "e", "ephemeral": {}}
            ]}
        });
        json_patch(&mut pod, &more);
        serde_json::from_value(pod).expect("a pod")
    }

    /// Merges objects.
    fn json_patch(value: &mut Value, more: &Value) {
        match (value, more) {
            (Value::Object(fields), Value::Object(more)) => {
                for (key, more) in more {
                    json_patch(fields.entry(key.clone()).or_insert(Value::Null), more);
                }
            }
            (value, more) => *value = more.clone(),
        }
    }

    fn claim(name: &str, owner: Option<&str>) -> PersistentVolumeClaim {
        let owners: Vec<Value> = owner
            .iter()
            .map(|uid| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}))
            .collect();
        let claim =
            json!({"metadata": {"name": name, "namespace": "n", "ownerReferences": owners}});
        serde_json::from_value(claim).expect("a claim")
    }

    fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
        used(pod).iter().any(|one| one.means(claim))
    }

    #[test]
    fn a_pod_with_a_node_uses_the_claims_that_it_names_and_those_made_for_it() {
        let running = pod(json!({}));
        assert_eq!(claims_of(&running), ["n/data", "n/p-e"]);
        assert!(uses(&running, &claim("data", None)));
        assert!(uses(&running, &claim("p-e", Some("1"))));
        assert!(!uses(&running, &claim("p-e", Some("2"))));
        assert!(!uses(&running, &claim("p-e", None)));
        assert!(!uses(&running, &claim("other", None)));
        let waiting = pod(json!({"spec": {"nodeName": ""}}));
        assert!(!uses(&waiting, &claim("data", None)));
        let leaving = pod(json!({"metadata": {
            "deletionTimestamp": "2026-01-02T03:04:05Z", "deletionGracePeriodSeconds": 0
        }}));
        assert!(uses(&leaving, &claim("data", None)));
        assert!(!uses(&leaving, &claim("p-e", Some("1"))));
    }

    #[test]
    fn what_stays_is_protected_and_what_goes_is_let_go() {
        let metadata = |deleted: Option<&str>, finalizers: &[&str]| {
            let metadata = json!({"deletionTimestamp": deleted, "finalizers": finalizers});
            serde_json::from_value::<ObjectMeta>(metadata).expect("metadata")
        };
        let time = Some("2026-01-02T03:04:05Z");
        assert_eq!(due(&metadata(None, &["other"]), "p"), Some(Due::Adding));
        assert_eq!(due(&metadata(None, &["p"]), "p"), None);
        assert_eq!(due(&metadata(time, &["p"]), "p"), Some(Due::Removing));
        assert_eq!(due(&metadata(time, &["other"]), "p"), None);
    }
}
