//! Gives every pod its worker, and every worker its news.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use gantry_cri::image::ImageError;
use gantry_cri::runtime::{ContainerState, PodUid, Runtime, RuntimeEvent, SandboxStatus};
use gantry_tasks::{Panicked, caught};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::setup;
use super::worker::{Eviction, Input, Worker};
use crate::traits::Severity;

/// Between attempts at a worker whose directory cannot be written.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What workers are told: a kubelet's pod updates, and what concerns all pods of a namespace or of the node.
#[derive(Clone, Debug)]
pub enum PodUpdate {
    /// A pod is new or has changed.
    Pod(Arc<Pod>),
    /// A pod no longer exists.
    Gone(Arc<Pod>),
    /// Something in this namespace that pods may refer to has changed.
    References(String),
    /// The server has said everything: what it did not name is left over.
    Synced,
    /// The pod of this uid has to go.
    Evict(String, Eviction),
    /// The disk is nearly full: what pods that are over have left is to go.
    Reclaim,
}

struct Handle {
    namespace: String,
    inputs: mpsc::UnboundedSender<Input>,
}

/// A kubelet's pod workers: those of all pods of the node.
pub struct PodWorkers {
    node: Arc<Node>,
    workers: BTreeMap<String, Handle>,
    /// A worker's pod by uid, and how its worker ended.
    running: JoinSet<(String, Result<(), Panicked>)>,
    /// Sandboxes of an earlier process that no worker has taken over yet.
    found: BTreeMap<String, SandboxStatus>,
    /// Removed from this node, but not yet from the cluster.
    removed: BTreeSet<String>,
    /// Pods whose worker could not begin, by uid.
    refused: BTreeMap<String, Arc<Pod>>,
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

impl PodWorkers {
    /// Nobody has a worker yet.
    pub fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            workers: BTreeMap::new(),
            running: JoinSet::new(),
            found: BTreeMap::new(),
            removed: BTreeSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Takes over what runs, then follows the news until stopped. Containers are left running.
    pub async fn run(
        mut self,
        mut news: mpsc::UnboundedReceiver<PodUpdate>,
        stop: CancellationToken,
    ) {
        let mut events = self.node.runtime.events();
        self.take_over().await;
        let mut again = tokio::time::interval(TRY_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(news) = news.recv() => match news {
                    PodUpdate::Pod(pod) => self.pod(pod),
                    PodUpdate::Gone(pod) => self.gone(&pod),
                    PodUpdate::References(namespace) => {
                        for handle in self.workers.values().filter(|handle| handle.namespace == namespace) {
                            handle.inputs.send(Input::References).ok();
                        }
                    }
                    PodUpdate::Synced => self.remove_leftovers().await,
                    PodUpdate::Evict(uid, eviction) => match self.workers.get(&uid) {
                        Some(handle) => {
                            handle.inputs.send(Input::Evict(eviction)).ok();
                        }
                        // It has gone by itself.
                        None => eviction.reclaimed.cancel(),
                    },
                    PodUpdate::Reclaim => {
                        for handle in self.workers.values() {
                            handle.inputs.send(Input::Reclaim).ok();
                        }
                    }
                },
                event = events.recv() => self.runtime_event(event, &mut events).await,
                _ = again.tick(), if !self.refused.is_empty() => {
                    for pod in std::mem::take(&mut self.refused).into_values() {
                        self.pod(pod);
                    }
                }
                Some(finished) = self.running.join_next() => match finished {
                    Ok((uid, Ok(()))) => {
                        self.workers.remove(&uid);
                        self.removed.insert(uid);
                    }
                    Ok((uid, Err(panicked))) => self.begin_anew(uid, &panicked).await,
                    Err(error) => tracing::error!(%error, "a pod's worker failed"),
                },
            }
        }
    }

    /// Gives the known pods their workers and what runs already, and removes what nobody knows.
    pub(super) async fn take_over(&mut self) {
        match self.node.runtime.sandboxes().await {
            Ok(found) => {
                self.found = found
                    .into_iter()
                    .map(|sandbox| (sandbox.spec.pod.0.clone(), sandbox))
                    .collect()
            }
            Err(error) => tracing::error!(%error, "looking for pods of an earlier agent"),
        }
        if !self.found.is_empty() {
            tracing::info!(
                pods = self.found.len(),
                "taking over the pods of an earlier agent"
            );
        }
        for pod in self.node.objects.pods() {
            self.pod(pod);
        }
        if self.node.objects.is_synced() {
            self.remove_leftovers().await;
        }
    }

    fn pod(&mut self, pod: Arc<Pod>) {
        let uid = uid_of(&pod);
        if uid.is_empty() || self.removed.contains(&uid) {
            return;
        }
        if let Some(handle) = self.workers.get(&uid) {
            handle.inputs.send(Input::Pod(pod)).ok();
            return;
        }
        self.refused.remove(&uid);
        let found = self.found.remove(&uid);
        let (inputs, receiver) = mpsc::unbounded_channel();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        match Worker::new(self.node.clone(), pod.clone(), found.as_ref(), receiver) {
            Ok(worker) => {
                tracing::info!(
                    namespace,
                    pod = pod.metadata.name,
                    uid,
                    resumed = found.is_some(),
                    "pod taken"
                );
                let finished = uid.clone();
                self.running.spawn(async move {
                    let ended = caught(worker.run()).await;
                    (finished, ended)
                });
                self.workers.insert(uid, Handle { namespace, inputs });
            }
            Err(error) => {
                let message = format!(
                    "error syncing pod: preparing {}: {error}",
                    self.node.pod_dir(&uid).display()
                );
                self.node
                    .reports
                    .event(&pod, None, Severity::Warning, "FailedSync", &message);
                self.found
                    .extend(found.map(|sandbox| (uid.clone(), sandbox)));
                self.refused.insert(uid, pod);
            }
        }
    }

    /// A worker that panicked leaves its containers as they are; another takes the pod over, as after a restart of the agent.
    async fn begin_anew(&mut self, uid: String, panicked: &Panicked) {
        tracing::error!(uid, %panicked, "a pod's worker ended unexpectedly; another takes over in {TRY_AGAIN:?}");
        self.workers.remove(&uid);
        match self.node.runtime.sandboxes().await {
            Ok(sandboxes) => {
                let own = sandboxes
                    .into_iter()
                    .find(|sandbox| sandbox.spec.pod.0 == uid);
                self.found.extend(own.map(|sandbox| (uid.clone(), sandbox)));
            }
            Err(error) => tracing::error!(uid, %error, "looking for what the pod's worker left"),
        }
        let pods = self.node.objects.pods();
        if let Some(pod) = pods.into_iter().find(|pod| uid_of(pod) == uid) {
            self.refused.insert(uid, pod);
        }
    }

    fn gone(&mut self, pod: &Pod) {
        let uid = uid_of(pod);
        self.node.reports.forget(&uid);
        self.refused.remove(&uid);
        self.removed.remove(&uid);
        if let Some(handle) = self.workers.get(&uid) {
            handle.inputs.send(Input::Gone).ok();
        }
    }

    async fn runtime_event(
        &mut self,
        event: Result<RuntimeEvent, RecvError>,
        events: &mut broadcast::Receiver<RuntimeEvent>,
    ) {
        match event {
            Ok(RuntimeEvent::Exited { id, exit }) => {
                if let Some(handle) = self.workers.get(&id.pod.0) {
                    handle.inputs.send(Input::Exited(id, exit)).ok();
                }
            }
            Ok(RuntimeEvent::SandboxLost { pod }) => {
                if let Some(handle) = self.workers.get(&pod.0) {
                    handle.inputs.send(Input::SandboxLost).ok();
                }
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(
                    missed,
                    "events of the runtime were missed; asking for the state of all containers"
                );
                *events = self.node.runtime.events();
                self.compare().await;
            }
            // The runtime lives as long as the node.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }

    /// Tells workers what has happened to their containers, from the present state.
    async fn compare(&self) {
        let Ok(sandboxes) = self.node.runtime.sandboxes().await else {
            return;
        };
        for sandbox in sandboxes {
            let Some(handle) = self.workers.get(&sandbox.spec.pod.0) else {
                continue;
            };
            for container in sandbox.containers {
                if let ContainerState::Exited(exit) = container.state {
                    handle.inputs.send(Input::Exited(container.id, exit)).ok();
                }
            }
        }
    }

    /// Removes sandboxes, networks and directories of pods that the cluster no longer knows.
    async fn remove_leftovers(&mut self) {
        let known: BTreeSet<String> = self
            .node
            .objects
            .pods()
            .iter()
            .map(|pod| uid_of(pod))
            .chain(self.workers.keys().cloned())
            .collect();
        let mut strangers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let (waiting, gone) = std::mem::take(&mut self.found)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(uid, _)| known.contains(uid));
        self.found = waiting;
        for (uid, sandbox) in gone {
            let keys = sandbox.containers.iter().map(|container| {
                super::launch::rootfs_key(&uid, &container.id.name, container.id.attempt)
            });
            strangers.insert(uid.clone(), keys.collect());
            let spec = &sandbox.spec;
            tracing::info!(
                namespace = spec.namespace,
                pod = spec.name,
                uid,
                "removing a pod that no longer exists"
            );
        }
        match self.node.network.attached().await {
            Ok(attached) => {
                for uid in attached.into_keys() {
                    strangers.entry(uid).or_default();
                }
            }
            Err(error) => tracing::warn!(%error, "listing the pods attached to the network"),
        }
        let directories = std::fs::read_dir(&self.node.pods_dir)
            .into_iter()
            .flatten()
            .flatten();
        for name in directories.filter_map(|entry| entry.file_name().into_string().ok()) {
            strangers.entry(name).or_default();
        }
        for (uid, keys) in strangers
            .into_iter()
            .filter(|(uid, _)| !known.contains(uid))
        {
            let node = self.node.clone();
            let log_dir = node.log_dir_of(&uid);
            let removed = async {
                setup::tear_down(node.clone(), uid.clone(), keys).await?;
                setup::remove(node, uid.clone(), log_dir).await
            };
            if let Err(error) = removed.await {
                tracing::warn!(uid, error, "removing what is left of a pod");
            }
        }
    }
}

/// Removes everything that pods have on this node: for an agent that is not coming back. `unmount` is called once nothing
/// runs any more, and is to remove all root file systems.
pub async fn remove_all(
    runtime: &dyn Runtime,
    unmount: impl FnOnce() -> Result<(), ImageError>,
    pods_dir: &std::path::Path,
) -> Result<(), String> {
    let mut ended = Ok(());
    for sandbox in runtime
        .sandboxes()
        .await
        .map_err(|error| error.to_string())?
    {
        let pod: PodUid = sandbox.spec.pod;
        // One that does not end keeps none of the others.
        ended = ended.and(runtime.remove_sandbox(&pod).await);
    }
    ended.map_err(|error| error.to_string())?;
    unmount().map_err(|error| error.to_string())?;
    crate::volumes::tear_down(pods_dir).map_err(|error| error.to_string())
}
