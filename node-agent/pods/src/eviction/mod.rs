//! Pods that take more of the disk than they may, and pods that go because the node runs short of it.
//!
//! The disk's state is asked for every second, which costs nothing. Trees are walked for pods with limits, at most so
//! often that it stays a small part of a processor, and for all pods only while the node is short. Nothing here needs to
//! write: a full disk does not keep a pod from being ended, and its room is given back before its end is told.
//!
//! A count that is not through when its time is over goes on at the next look. Who arranges files so that they cannot be
//! counted does not gain by it: after some time that counts as too much.

mod nameless;
mod places;
mod usage;
mod verdict;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_cri::image::Images;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::disk::{Disk, Share};
use crate::image_gc::UnusedImages;
use crate::pod::{Eviction, PodUpdate};
use crate::traits::Objects;
use nameless::{FileSystem, Nameless, processes};
use places::{Count, Places};
use verdict::{Limits, PodUsage, Signal};

/// Between looks at the disk.
const PERIOD: Duration = Duration::from_secs(1);
/// Between walks over the trees of a pod with limits, as a kubelet's.
const WALK_EVERY: Duration = Duration::from_secs(10);
/// A walk is not repeated before so many times as long as it took are over.
const REST: u32 = 20;
/// A count that is not through goes on after so many times as long as its last part took: soon, yet not all the time.
const SHORT_REST: u32 = 5;
/// Walks for pods' limits end after this.
const WALK: Duration = Duration::from_secs(3);
/// Walks over all pods, to find the one to go, end after this.
const WALK_ALL: Duration = Duration::from_secs(5);
/// A pod that has not been counted after so much time of counting cannot be: a million files take seconds, and on a slow
/// disk not this long.
const LONGEST: Duration = Duration::from_secs(60);
/// Nor can one that was not counted within this, where many pods are counted and each has little of the time. Thirty pods
/// of some million files each are through by then.
const OVERDUE: Duration = Duration::from_secs(15 * 60);
/// Nor can one of which so many counts in a row have missed something.
const MISSED: u32 = 3;
/// Looks in a shortage for which a pod that is not counted yet is waited for, before one has to go.
const ROUNDS: u32 = 3;
/// Bytes of memory of all counts of the node that are kept to go on with. One takes up to some 20 MiB, and most take a few
/// KiB and some descriptors, see [`usage::DESCRIPTOR`]. Where they are more together, the largest ones begin anew.
const KEPT: usize = 128 << 20;
/// What a pod is told that cannot be counted.
const UNCOUNTED: &str = "What the pod takes of the node's disk could not be counted in time: it has too many files, or moves them \
     while they are counted. ";
/// After this long without its end, another pod is looked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a node keeps what its pods take of the disk.
#[derive(Clone, Debug)]
pub struct Directories {
    /// On the disk that is watched.
    pub data: PathBuf,
    /// One for each pod, by uid.
    pub pods: PathBuf,
    /// `<namespace>_<name>_<uid>` for each pod.
    pub logs: PathBuf,
}

/// Called at each look while the node is short of the disk, so that its conditions are looked at anew.
pub type OnShortage = Box<dyn Fn() + Send + Sync>;

/// Looks after the node's disk: a kubelet's eviction manager.
pub struct Evictor {
    objects: Arc<dyn Objects>,
    images: Arc<dyn Images>,
    on_shortage: OnShortage,
    news: mpsc::UnboundedSender<PodUpdate>,
    removal: Removal,
    directories: Directories,
    /// What is known of counting a pod, by uid.
    watches: BTreeMap<String, Watch>,
    /// The last one that had to go, while its room is not back.
    leaving: Option<(CancellationToken, Instant)>,
    /// Whether what nobody uses was removed in this shortage.
    removed: bool,
    /// Looks at the pods in this shortage since one had to go.
    rounds: u32,
}

impl Evictor {
    /// `news` leads to the pods' [`PodWorkers`](crate::PodWorkers).
    pub fn new(
        directories: Directories,
        objects: Arc<dyn Objects>,
        images: Arc<dyn Images>,
        news: mpsc::UnboundedSender<PodUpdate>,
        unused: UnusedImages,
        on_shortage: OnShortage,
    ) -> Self {
        Self {
            objects,
            images,
            on_shortage,
            news,
            removal: Removal::new(unused),
            directories,
            watches: BTreeMap::new(),
            leaving: None,
            removed: false,
            rounds: 0,
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.keep_limits().await;
            match Disk::of(&self.directories.data) {
                Ok(disk) => self.relieve(disk).await,
                Err(error) => tracing::warn!(%error, "measuring the disk"),
            }
        }
    }

    /// Evicts pods that take more than their limits.
    async fn keep_limits(&mut self) {
        let pods = self.running();
        self.watches
            .retain(|uid, _| pods.iter().any(|pod| uid_of(pod) == uid));
        let now = Instant::now();
        let is_due = |pod: &Pod| {
            let limits = pod.spec.as_ref().map(Limits::of).unwrap_or_default();
            let watch = self.watches.get(uid_of(pod));
            let due = watch.and_then(|watch| watch.next);
            due.is_none_or(|at| at <= now) && !limits.are_none()
        };
        let due: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| is_due(pod)).collect();
        if due.is_empty() {
            return;
        }
        for found in self.measure(due, WALK).await {
            let pod = &found.pod;
            let next = Instant::now() + found.pause();
            let watch = self.watches.entry(uid_of(pod).to_owned()).or_default();
            watch.next = Some(next);
            let limits = pod.spec.as_ref().map(Limits::of).unwrap_or_default();
            // What was found so far is a lower bound.
            let uncounted = || found.uncounted.then(|| UNCOUNTED.to_owned());
            if let Some(message) = limits.exceeded(&found.usage).or_else(uncounted) {
                self.evict(pod, message, Eviction::LIMIT_GRACE);
            }
        }
    }

    /// While the node is short of disk: removes what nobody uses, then one pod after the other.
    async fn relieve(&mut self, disk: Disk) {
        let Some((signal, threshold, share)) = shortage(disk) else {
            self.removed = false;
            self.rounds = 0;
            return;
        };
        // Nothing more is to be placed here, from now on and not from the next look at the node on.
        (self.on_shortage)();
        if let Some((gone, since)) = &self.leaving
            && !gone.is_cancelled()
            && since.elapsed() < PATIENCE
        {
            return;
        }
        if !std::mem::replace(&mut self.removed, true) {
            self.news.send(PodUpdate::Reclaim).ok();
            self.removal.begin();
            return;
        }
        // Limits are kept meanwhile.
        if self.removal.is_under_way() {
            return;
        }
        let pods = self.running();
        let measured = self.measure(pods, WALK_ALL).await;
        self.rounds += 1;
        let is_open = |found: &Measured| !found.through && !found.uncounted;
        if self.rounds < ROUNDS && measured.iter().any(is_open) {
            // Somebody else would go in its stead.
            return;
        }
        self.rounds = 0;
        let ranked = measured
            .iter()
            .map(|found| (&*found.pod, &found.usage, found.is_unknown()));
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
        if let Some(found) = found {
            let pod = &found.pod;
            let mut message = verdict::low(pod, &found.usage, signal, threshold, share);
            if found.is_unknown() {
                message.push_str(UNCOUNTED);
            }
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
        let mut pods = self.objects.pods();
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
        self.news.send(PodUpdate::Evict(uid, eviction)).ok();
        reclaimed
    }

    /// What pods take, as far as that can be found out in time.
    async fn measure(&mut self, pods: Vec<Arc<Pod>>, within: Duration) -> Vec<Measured> {
        let layers = self.images.writable_layers().await;
        let directories = self.directories.clone();
        let mut begun: Vec<(Arc<Pod>, Option<Count>)> = pods
            .into_iter()
            .map(|pod| {
                let watch = self.watches.get_mut(uid_of(&pod));
                let count = watch.and_then(|watch| watch.count.take());
                (pod, count)
            })
            .collect();
        // What the others leave of their time is for those that were not through in theirs.
        begun.sort_by_key(|(_, count)| count.is_some());
        let walk = tokio::task::spawn_blocking(move || {
            let places = Places {
                pods_dir: &directories.pods,
                logs_dir: &directories.logs,
                layers: &layers,
            };
            look(begun, &places, &directories.data, within)
        });
        let looks = walk.await.unwrap_or_default();
        let measured = looks.into_iter().map(|look| self.note(look)).collect();
        keep(&mut self.watches, KEPT);
        measured
    }

    /// Takes in what a look came to.
    fn note(&mut self, look: Look) -> Measured {
        let Look {
            pod,
            usage,
            through,
            whole,
            took,
            count,
        } = look;
        let watch = self.watches.entry(uid_of(&pod).to_owned()).or_default();
        watch.count = count;
        let now = Instant::now();
        match through {
            Some(missed) => watch.tries.ended(missed),
            None => watch.tries.goes_on(took, now),
        }
        Measured {
            pod,
            usage,
            through: through.is_some(),
            uncounted: watch.tries.are_enough(now),
            whole,
            took,
        }
    }
}

/// Counts what each pod takes, in its part of the time; those that have begun go on, and are the last ones.
fn look(
    pods: Vec<(Arc<Pod>, Option<Count>)>,
    places: &Places<'_>,
    data_dir: &std::path::Path,
    within: Duration,
) -> Vec<Look> {
    let is_new =
        |(pod, count): &(Arc<Pod>, Option<Count>)| count.is_none().then(|| uid_of(pod).to_owned());
    let new: Vec<String> = pods.iter().filter_map(is_new).collect();
    let of_pod = |cgroups: &str| new.iter().find(|uid| cgroups.contains(*uid)).cloned();
    let mut processes = match new.is_empty() {
        true => BTreeMap::new(),
        false => processes(of_pod),
    };
    let disk = FileSystem::of(data_dir);
    let deadline = Instant::now() + within;
    let all = pods.len();
    let mut looks = Vec::with_capacity(all);
    for (done, (pod, count)) in pods.into_iter().enumerate() {
        // Each has its part of the time: one that is slow to look at must not hide the others.
        let begun = Instant::now();
        let left = deadline.saturating_duration_since(begun);
        let parts = u32::try_from(all - done).unwrap_or(u32::MAX);
        let mut count = count.unwrap_or_else(|| {
            let own = processes.remove(uid_of(&pod)).unwrap_or_default();
            places.begin(&pod, Nameless::begin(disk, own))
        });
        let through = count.go_on(begun + left / parts);
        looks.push(Look {
            pod,
            usage: count.usage(),
            through: through.then(|| count.has_lost()),
            whole: count.took(),
            took: begun.elapsed(),
            count: (!through).then_some(count),
        });
    }
    looks
}

/// Lets counts go, the largest first, until they take no more than so many bytes of memory. What a look adds meanwhile is
/// bounded by its time.
fn keep(watches: &mut BTreeMap<String, Watch>, room: usize) {
    while watches.values().map(Watch::memory).sum::<usize>() > room {
        if let Some(largest) = watches.values_mut().max_by_key(|watch| watch.memory()) {
            largest.count = None;
        }
    }
}

/// What is known of counting a pod.
#[derive(Default)]
struct Watch {
    /// When it is due.
    next: Option<Instant>,
    /// One that is not through.
    count: Option<Count>,
    tries: Tries,
}

impl Watch {
    /// What it takes itself, in bytes of memory.
    fn memory(&self) -> usize {
        self.count.as_ref().map_or(0, Count::memory)
    }
}

/// How often, and for how long, a pod could not be counted.
#[derive(Default)]
struct Tries {
    took: Duration,
    /// Since when, while a count is not through.
    since: Option<Instant>,
    missed: u32,
}

impl Tries {
    /// Another part of a count has taken so long, and it is not through.
    fn goes_on(&mut self, took: Duration, now: Instant) {
        self.took += took;
        self.since = self.since.or(Some(now));
    }

    fn ended(&mut self, missed: bool) {
        self.took = Duration::ZERO;
        self.since = None;
        self.missed = if missed { self.missed + 1 } else { 0 };
    }

    fn are_enough(&self, now: Instant) -> bool {
        let is_overdue = self
            .since
            .is_some_and(|since| now.saturating_duration_since(since) >= OVERDUE);
        is_overdue || self.took >= LONGEST || self.missed >= MISSED
    }
}

/// What one look at a pod came to.
struct Look {
    pod: Arc<Pod>,
    usage: PodUsage,
    /// Whether its count has missed something, once it is through.
    through: Option<bool>,
    /// How long the count took, this look included.
    whole: Duration,
    /// How long this look took.
    took: Duration,
    /// What to go on with.
    count: Option<Count>,
}

/// A pod and what it takes.
struct Measured {
    pod: Arc<Pod>,
    /// A lower bound while the count is not through.
    usage: PodUsage,
    through: bool,
    /// Whether it has been tried often enough.
    uncounted: bool,
    whole: Duration,
    took: Duration,
}

impl Measured {
    /// Until the next look.
    fn pause(&self) -> Duration {
        let rest = match self.through {
            true => self.whole * REST,
            false => self.took * SHORT_REST,
        };
        WALK_EVERY.max(rest)
    }

    /// Whether it may take anything.
    fn is_unknown(&self) -> bool {
        self.uncounted || !self.through
    }
}

/// Has what nobody uses removed, which can take long on a full disk, while others go on.
struct Removal {
    unused: UnusedImages,
    task: JoinSet<()>,
    begun: Option<Instant>,
}

impl Removal {
    fn new(unused: UnusedImages) -> Self {
        Self {
            unused,
            task: JoinSet::new(),
            begun: None,
        }
    }

    fn begin(&mut self) {
        self.begun = Some(Instant::now());
        // That of an earlier shortage does the same.
        if self.is_under_way() {
            return;
        }
        let unused = self.unused.clone();
        self.task.spawn(async move {
            // It ends with the set of tasks.
            let stop = CancellationToken::new();
            let all = || unused.remove();
            gantry_tasks::supervised("removing what nobody uses", &stop, all).await;
        });
    }

    /// Whether room may still come of it, within reason.
    fn is_under_way(&mut self) -> bool {
        while self.task.try_join_next().is_some() {}
        let soon = self.begun.is_some_and(|begun| begun.elapsed() < PATIENCE);
        soon && !self.task.is_empty()
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_what_nobody_uses_to_be_removed() {
        let (unused, mut asked) = UnusedImages::new();
        let mut removal = Removal::new(unused);
        assert!(!removal.is_under_way());
        removal.begin();
        removal.begin();
        let done = asked.recv().await.unwrap();
        assert!(asked.try_recv().is_err(), "it is asked for once");
        assert!(removal.is_under_way());
        tokio::time::advance(PATIENCE).await;
        assert!(!removal.is_under_way(), "others go on after some time");
        done.send(()).unwrap();
        removal.task.join_next().await;
        removal.begin();
        assert!(asked.recv().await.is_some(), "once more");
    }

    #[test]
    fn what_cannot_be_counted_is_too_much_after_some_time() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut tries = Tries::default();
        tries.goes_on(LONGEST - second, now);
        assert!(!tries.are_enough(now));
        tries.ended(false);
        tries.goes_on(second, now);
        assert!(!tries.are_enough(now), "it has been counted since");
        tries.goes_on(LONGEST, now);
        assert!(tries.are_enough(now));
        for round in 1..=MISSED {
            tries.ended(true);
            assert_eq!(tries.are_enough(now), round == MISSED);
        }
        tries.ended(false);
        assert!(!tries.are_enough(now));
    }

    #[test]
    fn who_has_little_of_the_time_is_not_counted_for_ever() {
        let begun = Instant::now();
        let mut tries = Tries::default();
        let little = Duration::from_millis(1);
        tries.goes_on(little, begun);
        let late = begun + OVERDUE;
        tries.goes_on(little, late - little);
        assert!(!tries.are_enough(late - little));
        assert!(tries.are_enough(late));
        tries.ended(false);
        tries.goes_on(little, late);
        assert!(!tries.are_enough(late), "it has been counted since");
    }

    #[test]
    fn a_pod_that_is_slow_to_count_has_its_part_of_the_time_and_goes_on_later() {
        let directory = tempfile::tempdir().unwrap();
        let pods: Vec<Arc<Pod>> = (0..6)
            .map(|number| {
                let uid = format!("uid-of-a-pod-{number}");
                let below = directory.path().join(&uid).join("etc/below");
                std::fs::create_dir_all(&below).unwrap();
                std::fs::write(below.join("file"), vec![1; 1 << 20]).unwrap();
                let pod =
                    json!({"metadata": {"name": "p", "uid": uid}, "spec": {"containers": []}});
                Arc::new(serde_json::from_value(pod).unwrap())
            })
            .collect();
        let places = Places {
            pods_dir: directory.path(),
            logs_dir: directory.path(),
            layers: &[],
        };
        let begun = pods.iter().map(|pod| (pod.clone(), None)).collect();
        let looks = look(begun, &places, directory.path(), Duration::ZERO);
        assert!(looks.iter().all(|look| look.through.is_none()));
        let kept: Vec<_> = looks
            .into_iter()
            .map(|look| (look.pod, look.count))
            .collect();
        assert!(kept.iter().all(|(_, count)| count.is_some()));
        let looks = look(kept, &places, directory.path(), Duration::from_secs(60));
        for found in looks {
            assert_eq!(found.through, Some(false));
            assert!(found.usage.total().bytes >= 1 << 20);
            assert!(found.count.is_none());
        }
    }

    #[test]
    fn the_largest_counts_of_the_node_begin_anew_when_there_is_no_room() {
        let nowhere = std::path::Path::new("/nonexistent");
        let places = Places {
            pods_dir: nowhere,
            logs_dir: nowhere,
            layers: &[],
        };
        let mut watches = BTreeMap::new();
        for (uid, files) in [("large", 3_000), ("small", 100)] {
            let count = places.begin(&Pod::default(), Nameless::remembering(files));
            let watch = Watch {
                count: Some(count),
                ..Watch::default()
            };
            watches.insert(uid.to_owned(), watch);
        }
        watches.insert("none".to_owned(), Watch::default());
        let held = |watches: &BTreeMap<String, Watch>| -> Vec<String> {
            let held = watches.iter().filter(|(_, watch)| watch.count.is_some());
            held.map(|(uid, _)| uid.clone()).collect()
        };
        let room = watches["small"].memory();
        assert!(room > 0);
        keep(&mut watches, usize::MAX);
        assert_eq!(held(&watches), ["large", "small"]);
        keep(&mut watches, room);
        assert_eq!(held(&watches), ["small"], "whether they are due or not");
        keep(&mut watches, 0);
        assert!(held(&watches).is_empty());
    }
}
