//! Pods that take more of the disk than they may, and pods that go because the node runs short of it.
//!
//! The disk's state is asked for every second, which costs nothing. Trees are walked for pods with limits, at most so
//! often that it stays a small part of a processor, and for all pods only while the node is short. Nothing here needs to
//! write: a full disk does not keep a pod from being ended, and its room is given back before its end is told.

mod places;
mod usage;
mod verdict;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_image::Images;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::AgentConfig;
use crate::desired::Desired;
use crate::image_gc::Squeeze;
use crate::pod::{Eviction, News};
use crate::presence::Presence;
use crate::pressure::{Disk, Share};
use places::Places;
use usage::unlinked;
use verdict::{Limits, PodUsage, Signal};

/// Between looks at the disk.
const PERIOD: Duration = Duration::from_secs(1);
/// Between walks over the trees of a pod with limits, as a kubelet's.
const WALK_EVERY: Duration = Duration::from_secs(10);
/// A walk is not repeated before so many times as long as it took are over.
const REST: u32 = 20;
/// Walks for pods' limits end after this.
const WALK: Duration = Duration::from_secs(3);
/// Walks over all pods, to find the one to go, end after this.
const WALK_ALL: Duration = Duration::from_secs(5);
/// What the termination messages of a pod may take of the memory that they are in.
const LAST_WORDS: u64 = 16 << 20;
/// After this long without its end, another pod is looked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks after the node's disk.
pub(crate) struct Evictor {
    desired: Arc<Desired>,
    images: Arc<dyn Images>,
    presence: Arc<Presence>,
    news: mpsc::UnboundedSender<News>,
    squeeze: Squeeze,
    data_dir: PathBuf,
    pods_dir: PathBuf,
    logs_dir: PathBuf,
    run_dir: PathBuf,
    /// When the trees of a pod are walked next, by uid.
    walks: BTreeMap<String, Instant>,
    /// The last one that had to go, while its room is not back.
    leaving: Option<(CancellationToken, Instant)>,
    /// Whether what nobody uses was removed in this shortage.
    squeezed: bool,
}

impl Evictor {
    pub(crate) fn new(
        config: &AgentConfig,
        desired: Arc<Desired>,
        images: Arc<dyn Images>,
        presence: Arc<Presence>,
        news: mpsc::UnboundedSender<News>,
        squeeze: Squeeze,
    ) -> Self {
        Self {
            desired,
            images,
            presence,
            news,
            squeeze,
            data_dir: config.data_dir.clone(),
            pods_dir: config.pods_dir(),
            logs_dir: config.logs_dir(),
            run_dir: config.run_dir.clone(),
            walks: BTreeMap::new(),
            leaving: None,
            squeezed: false,
        }
    }

    pub(crate) async fn run(mut self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.keep_limits().await;
            match Disk::of(&self.data_dir) {
                Ok(disk) => self.relieve(disk).await,
                Err(error) => tracing::warn!(%error, "measuring the disk"),
            }
        }
    }

    /// Evicts pods that take more than their limits.
    async fn keep_limits(&mut self) {
        let pods = self.running();
        self.walks
            .retain(|uid, _| pods.iter().any(|pod| uid_of(pod) == uid));
        for pod in &pods {
            let said = places::last_words(&self.run_dir, uid_of(pod));
            if said > LAST_WORDS {
                let message = format!(
                    "Termination messages of the pod take more than {} MiB of the node's memory. ",
                    LAST_WORDS >> 20
                );
                self.evict(pod, message, Duration::ZERO);
            }
        }
        let now = Instant::now();
        let is_due = |pod: &Pod| {
            let limits = pod.spec.as_ref().map(Limits::of).unwrap_or_default();
            let due = self.walks.get(uid_of(pod)).is_none_or(|at| *at <= now);
            due && !limits.are_none()
        };
        let due: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| is_due(pod)).collect();
        if due.is_empty() {
            return;
        }
        for Measured { pod, usage, took } in self.measure(due, WALK).await {
            let pause = WALK_EVERY.max(took * REST);
            let next = Instant::now() + pause;
            self.walks.insert(uid_of(&pod).to_owned(), next);
            let limits = pod.spec.as_ref().map(Limits::of).unwrap_or_default();
            if let Some(message) = limits.exceeded(&usage) {
                self.evict(&pod, message, Eviction::LIMIT_GRACE);
            }
        }
    }

    /// While the node is short of disk: removes what nobody uses, then one pod after the other.
    async fn relieve(&mut self, disk: Disk) {
        let Some((signal, threshold, share)) = shortage(disk) else {
            self.squeezed = false;
            return;
        };
        // Nothing more is to be placed here, from now on and not from the next look at the node on.
        self.presence.look_again();
        if let Some((gone, since)) = &self.leaving
            && !gone.is_cancelled()
            && since.elapsed() < PATIENCE
        {
            return;
        }
        if !std::mem::replace(&mut self.squeezed, true) {
            self.news.send(News::Reclaim).ok();
            self.squeeze.all().await;
            return;
        }
        let pods = self.running();
        let measured = self.measure(pods, WALK_ALL).await;
        let ranked = measured.iter().map(|found| (&*found.pod, &found.usage));
        let Some(first) = verdict::first(ranked, signal) else {
            tracing::warn!(
                ?share,
                "the disk is nearly full, and no pod of this node takes any of it: make room on it"
            );
            return;
        };
        let found = measured
            .iter()
            .find(|found| found.pod.metadata.uid == first.metadata.uid);
        if let Some(Measured { pod, usage, .. }) = found {
            let message = verdict::low(pod, usage, signal, threshold, share);
            let gone = self.evict(pod, message, Duration::ZERO);
            self.leaving = Some((gone, Instant::now()));
        }
    }

    /// Pods that may take disk and can be ended.
    fn running(&self) -> Vec<Arc<Pod>> {
        let is_over = |pod: &Pod| {
            let phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        let mut pods = self.desired.pods();
        pods.retain(|pod| !is_over(pod));
        pods
    }

    fn evict(&self, pod: &Pod, message: String, grace: Duration) -> CancellationToken {
        tracing::warn!(
            namespace = pod.metadata.namespace,
            pod = pod.metadata.name,
            message,
            "evicting a pod"
        );
        let reclaimed = CancellationToken::new();
        let eviction = Eviction {
            message,
            grace,
            reclaimed: reclaimed.clone(),
        };
        let uid = uid_of(pod).to_owned();
        // Without a manager there are no pods either.
        self.news.send(News::Evict(uid, eviction)).ok();
        reclaimed
    }

    /// What pods take, as far as that can be found out in time.
    async fn measure(&self, pods: Vec<Arc<Pod>>, within: Duration) -> Vec<Measured> {
        let layers = self.images.writable_layers().await;
        let (pods_dir, logs_dir) = (self.pods_dir.clone(), self.logs_dir.clone());
        let data_dir = self.data_dir.clone();
        let walk = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + within;
            let uids: Vec<String> = pods.iter().map(|pod| uid_of(pod).to_owned()).collect();
            let of_pod = |cgroups: &str| uids.iter().find(|uid| cgroups.contains(*uid)).cloned();
            let device = data_dir.metadata().map_or(0, |metadata| metadata.dev());
            // Fast, and what trees do not show.
            let mut nameless = unlinked(device, of_pod, deadline);
            let count = pods.len();
            pods.into_iter()
                .enumerate()
                .map(|(done, pod)| {
                    // Each has its part of the time: one that is slow to look at must not hide the others.
                    let left = deadline.saturating_duration_since(Instant::now());
                    let parts = u32::try_from(count - done).unwrap_or(u32::MAX);
                    let begun = Instant::now();
                    let until = begun + left / parts;
                    let places = Places {
                        pods_dir: &pods_dir,
                        logs_dir: &logs_dir,
                        layers: &layers,
                    };
                    let mut usage = places.usage(&pod, until);
                    usage.rest += nameless.remove(uid_of(&pod)).unwrap_or_default();
                    Measured {
                        pod,
                        usage,
                        took: begun.elapsed(),
                    }
                })
                .collect()
        });
        walk.await.unwrap_or_default()
    }
}

/// A pod and what it takes.
struct Measured {
    pod: Arc<Pod>,
    usage: PodUsage,
    /// How long that took to find out.
    took: Duration,
}

fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// What runs out, at which amount, and what is left.
fn shortage(disk: Disk) -> Option<(Signal, u64, Share)> {
    [
        (Signal::Bytes, disk.threshold(), disk.bytes),
        (Signal::Inodes, disk.inodes_threshold(), disk.inodes),
    ]
    .into_iter()
    .find(|(_, threshold, share)| share.available < *threshold)
}
