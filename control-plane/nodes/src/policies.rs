//! NetworkPolicies, compiled for the nodes that enforce them: who may speak with whom, as addresses.
//!
//! One [`Policies`] serves all links of a server. A task of its own follows the store and keeps an [`index`]; each
//! session holds a [`Feed`], which knows what its node was told and makes the differences. The task runs for as long as
//! there are feeds, and looks at pods only when there are policies: a server without links and a cluster without policies
//! pay nothing.
//!
//! ```text
//! store --watch--> Index (shared) --view of a node--> Feed (per session) --PolicyChange--> node
//! ```
//!
//! A session asks [`Feed::up_to`] with a pod's revision before it sends the pod, so that a pod's isolation is always on
//! the link before the pod is.

mod blocks;
mod compile;
mod delivery;
mod facts;
mod index;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod truth_table;

use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use gantry_rpc::node::PolicyChange;
use gantry_store::{Event, Revision, Store, Table, Watch};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use compile::Policy;
use delivery::NodeView;
use facts::PodFacts;
use index::Index;

const PODS: &str = "core/pods";
const NAMESPACES: &str = "core/namespaces";
const POLICIES: &str = "networking.k8s.io/networkpolicies";
/// Where the cluster's DNS is for policies, under a name that no pod can have.
const DNS: (&str, &str) = ("kube-system", "the cluster's DNS");
/// Between attempts at following a store that went on faster than its events could be read.
const AGAIN: Duration = Duration::from_millis(100);

/// Compiled policies, made when the first link wants them.
pub(crate) struct Policies {
    store: Store,
    /// Of the service of the cluster's DNS.
    dns: Option<IpAddr>,
    shared: Mutex<Weak<Shared>>,
}

/// Never reached by a store that runs.
const STOPPED: Revision = Revision(u64::MAX);

/// How far the index is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Everything up to here is in it; `None` before it is filled.
    revision: Option<Revision>,
    /// Of the index.
    generation: u64,
}

/// The index, and the task that keeps it.
struct Shared {
    store: Store,
    index: Mutex<Index>,
    progress: watch::Sender<Progress>,
    /// The largest revision that a feed waits for.
    asked: watch::Sender<Revision>,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
}

/// The store stopped.
#[derive(Debug, thiserror::Error)]
#[error("the policies cannot be followed: the store has stopped")]
pub(crate) struct Stopped;

impl Policies {
    pub(crate) fn new(store: Store, dns: Option<IpAddr>) -> Self {
        Self {
            store,
            dns,
            shared: Mutex::new(Weak::new()),
        }
    }

    /// What one node has to be told, from the beginning.
    pub(crate) fn feed(&self, node: &str) -> Feed {
        let mut known = self.shared.lock();
        let shared = known.upgrade().unwrap_or_else(|| {
            let shared = Arc::new(Shared {
                store: self.store.clone(),
                index: Mutex::new(Index::default()),
                progress: watch::Sender::new(Progress::default()),
                asked: watch::Sender::new(Revision(0)),
                task: Mutex::new(None),
            });
            // The task itself must not keep what its end depends on.
            let (store, known_by) = (self.store.clone(), Arc::downgrade(&shared));
            let (asked, dns) = (shared.asked.subscribe(), self.dns);
            let never = CancellationToken::new();
            *shared.task.lock() = Some(tokio::spawn(async move {
                gantry_tasks::supervised("policies", &never, || {
                    follow(store.clone(), dns, known_by.clone(), asked.clone())
                })
                .await;
            }));
            *known = Arc::downgrade(&shared);
            shared
        });
        Feed {
            node: node.to_owned(),
            progress: shared.progress.subscribe(),
            shared,
            told: None,
            generation: 0,
        }
    }
}

/// Whether there is any policy.
fn has_policies(store: &Store) -> bool {
    store
        .snapshot(&Table(POLICIES.into()))
        .iter()
        .next()
        .is_some()
}

/// Fills the index and keeps it up to date until nobody has it any more or the store stops.
async fn follow(
    store: Store,
    dns: Option<IpAddr>,
    shared: Weak<Shared>,
    asked: watch::Receiver<Revision>,
) {
    loop {
        let from = store.revision();
        let policies = has_policies(&store);
        let names: &[&str] = match policies {
            true => &[NAMESPACES, PODS, POLICIES],
            false => &[POLICIES],
        };
        let tables: Vec<Table> = names.iter().map(|name| Table((*name).into())).collect();
        let mut watch = match store.watch(&tables, from) {
            Ok(watch) => watch,
            Err(error) => {
                tracing::warn!(%error, "following the policies; starting over");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let mut index = Index::default();
        if let Some(address) = dns {
            index.set_pod(DNS.0, DNS.1, Some(PodFacts::dns(address)));
        }
        for table in &tables {
            for ((namespace, name), entry) in store.snapshot(table).iter() {
                index.take(table, namespace, name, Some(&entry.value));
            }
        }
        {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let generation = shared.progress.borrow().generation;
            index.follow_on(generation);
            *shared.index.lock() = index;
        }
        let followed = Followed {
            store: &store,
            tables: &tables,
            asked: asked.clone(),
        };
        let again = match policies {
            true => followed.keep(watch, from, &shared).await,
            false => first_policy(&mut watch, from, &shared).await,
        };
        if !again {
            return;
        }
    }
}

/// Waits for a policy while there is none; whether to go on.
async fn first_policy(watch: &mut Watch, from: Revision, shared: &Weak<Shared>) -> bool {
    publish(shared, from);
    match watch.next().await {
        Some(_) => true,
        None => {
            publish(shared, STOPPED);
            false
        }
    }
}

/// Says how far the index is; false when nobody listens any more.
fn publish(shared: &Weak<Shared>, revision: Revision) -> bool {
    let Some(shared) = shared.upgrade() else {
        return false;
    };
    let generation = shared.index.lock().generation();
    shared.progress.send_replace(Progress {
        revision: Some(revision),
        generation,
    });
    true
}

/// What the index is kept of.
struct Followed<'a> {
    store: &'a Store,
    tables: &'a [Table],
    asked: watch::Receiver<Revision>,
}

impl Followed<'_> {
    /// Applies events as they come; whether to start over. Most of what is stored is no event here, so that whoever waits
    /// for a revision asks for it.
    async fn keep(mut self, mut watch: Watch, from: Revision, shared: &Weak<Shared>) -> bool {
        let mut revision = from;
        while publish(shared, revision) {
            let (asked, mut first) = (&mut self.asked, None);
            tokio::select! {
                event = watch.next() => match event {
                    Some(event) => first = Some(event),
                    None => {
                        publish(shared, STOPPED);
                        return false;
                    }
                },
                there = async { asked.wait_for(|asked| *asked > revision).await.is_ok() } => {
                    if !there {
                        return false;
                    }
                    // What was asked for is applied, but its publication may still be under way, which nothing here would
                    // notice. A watch from where this one is reads the history, to its end.
                    match self.store.watch(self.tables, revision) {
                        Ok(anew) => watch = anew,
                        Err(error) => {
                            tracing::warn!(%error, "following the policies; compiling all of them again");
                            return true;
                        }
                    }
                }
            }
            let Some(shared) = shared.upgrade() else {
                return false;
            };
            let mut index = shared.index.lock();
            // What has gathered is told together.
            for event in first
                .into_iter()
                .chain(std::iter::from_fn(|| watch.try_next()))
            {
                match event {
                    Ok(event) => index.apply(&event),
                    Err(error) => {
                        tracing::warn!(%error, "following the policies; compiling all of them again");
                        return true;
                    }
                }
            }
            revision = watch.progress_revision().max(revision);
        }
        false
    }
}

impl Index {
    fn apply(&mut self, event: &Event) {
        let value = (!event.deleted).then_some(&event.entry.value);
        let key = &event.key;
        self.take(&key.table, &key.namespace, &key.name, value);
    }

    /// Takes a stored object as it is now. One that cannot be read counts as gone: the API server wrote it, and reads
    /// it by the same types.
    fn take(&mut self, table: &Table, namespace: &str, name: &str, value: Option<&bytes::Bytes>) {
        let unreadable = |error: serde_json::Error| {
            tracing::error!(%error, table = %table.0, namespace, name, "an object that policies depend on cannot be read");
        };
        match &*table.0 {
            PODS => {
                let pod = value.map(|value| PodFacts::parse(value)).transpose();
                self.set_pod(namespace, name, pod.map_err(unreadable).ok().flatten());
            }
            NAMESPACES => {
                let labels = value
                    .map(|value| facts::namespace_labels(value))
                    .transpose();
                self.set_namespace(name, labels.map_err(unreadable).ok().flatten());
            }
            POLICIES => {
                let policy = value.map(|value| serde_json::from_slice(value)).transpose();
                let policy = policy.map_err(unreadable).ok().flatten();
                self.set_policy(namespace, name, policy.as_ref().map(Policy::compile));
            }
            _ => {}
        }
    }
}

/// What one node has been told of the policies, and is to be told next.
pub(crate) struct Feed {
    node: String,
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    /// `None` before the first message of the link.
    told: Option<NodeView>,
    generation: u64,
}

impl Feed {
    /// Waits until everything up to `revision` is compiled, and answers what the node does not know of it yet: nothing,
    /// or messages to be sent in order.
    pub(crate) async fn up_to(&mut self, revision: Revision) -> Result<Vec<PolicyChange>, Stopped> {
        // What was stored up to then is in the store now; without policies there is nothing to wait for.
        if !has_policies(&self.shared.store) {
            if self.told.is_some() {
                return Ok(Vec::new());
            }
            self.told = Some(NodeView::default());
            return Ok(vec![PolicyChange {
                revision: revision.0,
                ..NodeView::default().snapshot()
            }]);
        }
        // What is not stored yet would be asked for without end.
        let asked = revision.min(self.shared.store.revision());
        self.shared.asked.send_if_modified(|at| {
            let later = *at < asked;
            *at = asked.max(*at);
            later
        });
        let reached = |progress: &Progress| progress.revision.is_some_and(|at| at >= revision);
        let progress = *self.progress.wait_for(reached).await.map_err(|_| Stopped)?;
        self.next(progress)
    }

    /// Waits for something new for the node. Cancel safe.
    pub(crate) async fn changed(&mut self) -> Result<Vec<PolicyChange>, Stopped> {
        let generation = self.generation;
        let newer =
            |progress: &Progress| progress.revision.is_some() && progress.generation != generation;
        let progress = *self.progress.wait_for(newer).await.map_err(|_| Stopped)?;
        self.next(progress)
    }

    fn next(&mut self, progress: Progress) -> Result<Vec<PolicyChange>, Stopped> {
        let Some(revision) = progress.revision.filter(|revision| *revision < STOPPED) else {
            return Err(Stopped);
        };
        if self.told.is_some() && self.generation == progress.generation {
            return Ok(Vec::new());
        }
        self.generation = progress.generation;
        let view = self.shared.index.lock().view(&self.node);
        let mut change = match &self.told {
            None => view.snapshot(),
            Some(told) => told.change_to(&view),
        };
        let known = self.told.as_ref().map(|told| &told.without_room);
        for policy in &view.without_room {
            if !known.is_some_and(|known| known.contains(policy)) {
                tracing::error!(
                    node = self.node,
                    policy,
                    "the network policies of the node's pods, and the pods that they are about, are more than a node is told; \
                     the policy of this uid is one of the largest and allows nothing there: make it smaller, or spread its \
                     pods over more nodes"
                );
            }
        }
        self.told = Some(view);
        if delivery::is_empty(&change) {
            return Ok(Vec::new());
        }
        change.revision = revision.0;
        Ok(delivery::pieces(change))
    }
}
