//! Garbage collection by owner references: background, foreground and orphaning deletion, and absent owners.
//!
//! The graph says what to look at; what is done to an object is decided on the object as the API server has it now,
//! and guarded by its uid and revision, so that a graph that is behind never deletes what it should not.

mod graph;
mod monitor;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use gantry_api::paths::segment;
use gantry_informer::{Next, Queue, Recorder, Reference, runner};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::discovery::verbs;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::graph::{
    Deletion, FOREGROUND, Graph, Node, ORPHAN, Owner, OwnerState, Uid, Verdict, deletion, judge,
};
use crate::context::Context;
use crate::error::{Doing, Error, Result, code, words};
use crate::resources::{ByKind, Resource, Served};

pub(crate) const COMPONENT: &str = "garbage-collector-controller";
const AT_ONCE: usize = 32;
/// How often to look for kinds that were added or removed, and how long to wait for those that cannot be listed.
const REDISCOVER: Duration = Duration::from_secs(30);

/// Shared by the monitors and the workers.
pub(crate) struct Collector {
    context: Arc<Context>,
    recorder: Recorder,
    graph: Mutex<Graph>,
    queue: Arc<Queue<Uid>>,
    kinds: Mutex<ByKind>,
}

impl Collector {
    fn put(&self, uid: Uid, node: Node) {
        let consequences = self.graph.lock().put(uid, node);
        self.look_at(consequences.look);
        for (dependent, owner) in consequences.misplaced {
            self.tell_misplaced(&dependent, &owner);
        }
    }

    /// Says on a dependent that an owner of it is in another namespace, where it counts for nothing.
    fn tell_misplaced(&self, uid: &Uid, owner: &Uid) {
        let Some(node) = self.graph.lock().get(uid).cloned() else {
            return;
        };
        let mut owners = node.owners.iter();
        let Some(owner) = owners.find(|known| known.uid == *owner) else {
            return;
        };
        let namespace = &node.key.namespace;
        let Owner {
            api_version,
            kind,
            name,
            uid: owner_uid,
            ..
        } = owner;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {name}, uid: {owner_uid}] does not exist in \
             namespace \"{namespace}\""
        );
        let about = Reference {
            api_version: node.resource.api.api_version.clone(),
            kind: node.resource.api.kind.clone(),
            namespace: namespace.to_string(),
            name: node.key.name.to_string(),
            uid: uid.to_string(),
            resource_version: String::new(),
        };
        self.recorder
            .warning(about, "OwnerRefInvalidNamespace", message);
    }

    fn remove(&self, uid: &str) {
        let (look, gone) = {
            let mut graph = self.graph.lock();
            let gone = graph.get(uid);
            let gone = gone.map(|node| (node.resource.clone(), node.key.namespace.clone()));
            (graph.remove(uid), gone)
        };
        self.look_at(look);
        if let Some((resource, namespace)) = gone {
            self.context.departures.tell(&resource, &namespace);
        }
    }

    fn forget_missing(&self, resource: &Arc<Resource>, listed: &HashSet<Uid>) {
        let missing = self.graph.lock().missing(resource, listed);
        for uid in missing {
            self.remove(&uid);
        }
    }

    fn look_at(&self, uids: Vec<Uid>) {
        for uid in uids {
            self.queue.add(uid);
        }
    }
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, recorder: Recorder) {
    let stop = context.stop.clone();
    let collector = Arc::new(Collector {
        context,
        recorder,
        graph: Mutex::new(Graph::default()),
        queue: Arc::new(Queue::default()),
        kinds: Mutex::new(ByKind::new()),
    });
    let first = watch::Sender::new(false);
    let mut complete = first.subscribe();
    let monitors = tokio::spawn({
        let (collector, stop) = (collector.clone(), stop.clone());
        async move {
            let all = gantry_tasks::supervised("garbage", &stop, || {
                monitor_all(collector.clone(), first.clone())
            });
            stop.run_until_cancelled(all).await;
        }
    });
    // Not before all objects are known: a foreground deletion would not wait for dependents nobody has heard of. But one kind
    // that cannot be listed does not hold up the others for ever.
    let known = stop
        .run_until_cancelled(async {
            let all = complete.wait_for(|complete| *complete);
            match tokio::time::timeout(REDISCOVER, all).await {
                Ok(known) => known.is_ok(),
                Err(_) => {
                    tracing::warn!("some kinds cannot be listed: collecting without them");
                    true
                }
            }
        })
        .await;
    if known == Some(true) {
        let queue = collector.queue.clone();
        let collector = collector.clone();
        runner::run("garbage", queue, AT_ONCE, stop, move |uid| {
            let collector = collector.clone();
            async move { process(&collector, &uid).await }
        })
        .await;
    }
    monitors.abort();
}

/// A monitor, and whether it has listed its kind.
type Monitor = (Aborting, watch::Receiver<bool>);

/// A task that ends with its handle.
struct Aborting(JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps a monitor per kind; tells `complete` once all of the first are in the graph.
async fn monitor_all(collector: Arc<Collector>, complete: watch::Sender<bool>) {
    let mut monitors: HashMap<Arc<Resource>, Monitor> = HashMap::new();
    loop {
        match Served::discover(&collector.context.client).await {
            Ok(served) => {
                *collector.kinds.lock() = served.by_kind;
                let deletable = served.deletable.into_iter();
                let wanted: HashSet<_> = deletable.filter(|kind| is_followed(kind)).collect();
                monitors.retain(|resource, _| {
                    let keep = wanted.contains(resource);
                    if !keep {
                        collector.forget_missing(resource, &HashSet::new());
                    }
                    keep
                });
                for resource in wanted {
                    monitors.entry(resource).or_insert_with_key(|resource| {
                        let listed = watch::Sender::new(false);
                        let receiver = listed.subscribe();
                        let (collector, resource) = (collector.clone(), resource.clone());
                        let task = async move {
                            let stop = &collector.context.stop;
                            gantry_tasks::supervised("garbage monitor", stop, || {
                                monitor::follow(collector.clone(), resource.clone(), listed.clone())
                            })
                            .await;
                        };
                        (Aborting(tokio::spawn(task)), receiver)
                    });
                }
                let all_listed = async {
                    for (_, listed) in monitors.values_mut() {
                        // Its sender goes only with the monitor.
                        if listed.wait_for(|listed| *listed).await.is_err() {
                            tracing::debug!("a monitor ended early");
                        }
                    }
                };
                // What comes meanwhile is followed, too.
                match tokio::time::timeout(REDISCOVER, all_listed).await {
                    Ok(()) => {
                        complete.send_replace(true);
                    }
                    Err(_) => tracing::debug!("some kinds are not listed yet"),
                }
            }
            Err(error) => {
                tracing::warn!(error = words(&error), "discovering the kinds to collect");
            }
        }
        let wait = if *complete.borrow() {
            REDISCOVER
        } else {
            Duration::from_millis(500)
        };
        tokio::time::sleep(wait).await;
    }
}

/// Events own nothing and have no owners, and there are many of them.
fn is_followed(resource: &Resource) -> bool {
    resource.can(verbs::WATCH) && resource.api.kind != "Event"
}

async fn process(collector: &Collector, uid: &Uid) -> Result<Next> {
    let Some(node) = collector.graph.lock().get(uid).cloned() else {
        return Ok(Next::Changed);
    };
    match node.deletion {
        Deletion::Other => Ok(Next::Changed),
        Deletion::Foreground => finish_foreground(collector, uid, &node).await,
        Deletion::Orphan => orphan(collector, uid, &node).await,
        Deletion::None if node.owners.is_empty() => Ok(Next::Changed),
        Deletion::None => collect(collector, uid, &node).await,
    }
}

/// The object as it is now; none when it is gone, or another has its name.
async fn live(collector: &Collector, uid: &Uid, node: &Node) -> Result<Option<ObjectMeta>> {
    let api = node
        .resource
        .objects(&collector.context.client, &node.key.namespace);
    let found = api
        .get_metadata_opt(&segment(&node.key.name))
        .await
        .doing("looking at", &node.key)?;
    let meta = found.map(|found| found.metadata);
    Ok(meta.filter(|meta| meta.uid.as_deref() == Some(&**uid)))
}

/// Deletes a dependent that has lost its owners.
async fn collect(collector: &Collector, uid: &Uid, node: &Node) -> Result<Next> {
    let Some(meta) = live(collector, uid, node).await? else {
        collector.remove(uid);
        return Ok(Next::Changed);
    };
    let node = Node::new(node.resource.clone(), &meta);
    if node.deletion != Deletion::None {
        return Ok(Next::Changed);
    }
    let mut owners = Vec::with_capacity(node.owners.len());
    for owner in &node.owners {
        let Some(state) = owner_state(collector, &node, owner).await? else {
            // Nothing follows from such references: it stays, whatever becomes of its other owners.
            return Ok(Next::Changed);
        };
        owners.push((owner.uid.clone(), state));
    }
    let has_dependents = !collector.graph.lock().dependents(uid).is_empty();
    match judge(&owners, has_dependents) {
        Verdict::Keep => Ok(Next::Changed),
        Verdict::Release(going) => release(collector, &node, &meta, &going).await,
        Verdict::Delete { foreground } => {
            let has = |finalizer: &str| {
                meta.finalizers
                    .iter()
                    .flatten()
                    .any(|known| known == finalizer)
            };
            let policy = if foreground || has(FOREGROUND) {
                PropagationPolicy::Foreground
            } else if has(ORPHAN) {
                PropagationPolicy::Orphan
            } else {
                PropagationPolicy::Background
            };
            tracing::debug!(object = %node.key, resource = node.resource.qualified(), "its owners are gone");
            let parameters = DeleteParams {
                propagation_policy: Some(policy),
                preconditions: Some(Preconditions {
                    uid: Some(uid.to_string()),
                    // Somebody may give it an owner meanwhile.
                    resource_version: meta.resource_version,
                }),
                ..DeleteParams::default()
            };
            let api = node
                .resource
                .objects(&collector.context.client, &node.key.namespace);
            match api.delete(&segment(&node.key.name), &parameters).await {
                Err(error) if code(&error) != Some(404) => Err(error).doing("deleting", &node.key),
                _ => Ok(Next::Changed),
            }
        }
    }
}

/// What is known of an owner; none when a cluster-wide object names one in a namespace, which cannot be. One of a version that
/// is not served may be anything: whoever names it is left alone until it is known.
async fn owner_state(
    collector: &Collector,
    node: &Node,
    owner: &Owner,
) -> Result<Option<OwnerState>> {
    let state = |deletion: Deletion| match deletion {
        Deletion::Foreground => Some(OwnerState::Waiting),
        _ => Some(OwnerState::Solid),
    };
    let kind = (owner.api_version.clone(), owner.kind.clone());
    let resource = collector.kinds.lock().get(&kind).cloned();
    let Some(resource) = resource else {
        return Err(Error::NotYet {
            object: node.key.to_string(),
            why: format!(
                "it is owned by a {} of {}, which nobody knows",
                owner.kind, owner.api_version
            ),
        });
    };
    let known = collector.graph.lock().owner(node, owner);
    if let Some(deletion) = known {
        return Ok(state(deletion));
    }
    // Not known by that name, in that place: absent, or newer than the graph. The API server knows.
    if resource.namespaced && node.key.namespace.is_empty() {
        return Ok(None);
    }
    let api = resource.objects(&collector.context.client, &node.key.namespace);
    let found = api
        .get_metadata_opt(&segment(&owner.name))
        .await
        .doing("looking for the owner of", &node.key)?;
    Ok(match found {
        Some(found) if found.metadata.uid.as_deref() == Some(&*owner.uid) => {
            state(deletion(&found.metadata))
        }
        _ => Some(OwnerState::Absent),
    })
}

/// Takes references to these owners off an object.
async fn release(
    collector: &Collector,
    node: &Node,
    meta: &ObjectMeta,
    going: &[Uid],
) -> Result<Next> {
    let going: HashSet<&str> = going.iter().map(|uid| &**uid).collect();
    let kept: Vec<_> = meta
        .owner_references
        .iter()
        .flatten()
        .filter(|reference| !going.contains(reference.uid.as_str()))
        .collect();
    let patch =
        json!({"metadata": {"resourceVersion": meta.resource_version, "ownerReferences": kept}});
    patch_metadata(collector, node, patch, "releasing").await
}

/// Changes an object's metadata; one that has gone needs no change.
async fn patch_metadata(
    collector: &Collector,
    node: &Node,
    patch: Value,
    doing: &'static str,
) -> Result<Next> {
    let client = &collector.context.client;
    let api = node.resource.objects(client, &node.key.namespace);
    let (name, params) = (&node.key.name, PatchParams::default());
    match api
        .patch_metadata(&segment(name), &params, &Patch::Merge(patch))
        .await
    {
        Err(error) if code(&error) != Some(404) => Err(error).doing(doing, &node.key),
        _ => Ok(Next::Changed),
    }
}

/// Lets the object go once no dependent blocks it. Those that do were queued when its deletion began, and the last to
/// go brings us back here. Where they wait for the object in turn, it gives up to hold up its owners.
async fn finish_foreground(collector: &Collector, uid: &Uid, node: &Node) -> Result<Next> {
    let circular = {
        let graph = collector.graph.lock();
        graph.is_blocked(uid).then(|| graph.circular_owners(uid))
    };
    match circular {
        None => remove_finalizer(collector, uid, node, FOREGROUND).await,
        Some(owners) if owners.is_empty() => Ok(Next::Changed),
        Some(owners) => unblock(collector, uid, node, &owners).await,
    }
}

/// Lets these owners go without waiting for the object.
async fn unblock(collector: &Collector, uid: &Uid, node: &Node, owners: &[Uid]) -> Result<Next> {
    let Some(meta) = live(collector, uid, node).await? else {
        collector.remove(uid);
        return Ok(Next::Changed);
    };
    let owners: HashSet<&str> = owners.iter().map(|owner| &**owner).collect();
    let mut references = meta.owner_references.unwrap_or_default();
    let mut changed = false;
    for reference in &mut references {
        let circular = owners.contains(reference.uid.as_str());
        if circular && reference.block_owner_deletion == Some(true) {
            reference.block_owner_deletion = Some(false);
            changed = true;
        }
    }
    if !changed {
        return Ok(Next::Changed);
    }
    tracing::debug!(object = %node.key, resource = node.resource.qualified(), "it and its owners wait for each other");
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "ownerReferences": references}});
    patch_metadata(
        collector,
        node,
        patch,
        "breaking a circle of dependencies with",
    )
    .await
}

/// Releases all dependents, and then lets the object go.
async fn orphan(collector: &Collector, uid: &Uid, node: &Node) -> Result<Next> {
    let dependents: Vec<(Uid, Node)> = {
        let graph = collector.graph.lock();
        let dependents = graph.dependents(uid);
        dependents
            .into_iter()
            .filter_map(|uid| graph.get(&uid).cloned().map(|node| (uid, node)))
            .collect()
    };
    for (dependent_uid, dependent) in &dependents {
        let meta = live(collector, dependent_uid, dependent).await?;
        let owned = |meta: &ObjectMeta| {
            let mut owners = meta.owner_references.iter().flatten();
            owners.any(|owner| *owner.uid == **uid)
        };
        if let Some(meta) = meta.filter(owned) {
            release(collector, dependent, &meta, std::slice::from_ref(uid)).await?;
        }
    }
    remove_finalizer(collector, uid, node, ORPHAN).await
}

async fn remove_finalizer(
    collector: &Collector,
    uid: &Uid,
    node: &Node,
    finalizer: &str,
) -> Result<Next> {
    let Some(meta) = live(collector, uid, node).await? else {
        return Ok(Next::Changed);
    };
    let all = meta.finalizers.clone().unwrap_or_default();
    let kept: Vec<_> = all.iter().filter(|known| *known != finalizer).collect();
    if kept.len() == all.len() {
        return Ok(Next::Changed);
    }
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": kept}});
    patch_metadata(collector, node, patch, "finalizing").await
}
