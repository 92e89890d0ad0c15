//! Pods that wait to be scheduled: by priority, then in the order of their arrival.
//!
//! A pod is *ready* (to be tried), *waiting* (tried in vain; until its backoff is over or something changes) or *taken*
//! (being tried). Leaving *taken* is by [`PodQueue::remove`], [`PodQueue::park`], [`PodQueue::retry`] or [`PodQueue::bind`]: a
//! pod that is being bound is not in the queue, but how often it was tried is known until it is bound or gone.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use gantry_informer::Key;
use gantry_informer::queue::Backoff;
use tokio::time::Instant;

use crate::pod::PodInfo;

const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(10),
};
/// A pod that fits nowhere is tried again after this even if nothing changed, should a change have been missed.
const PATIENCE: Duration = Duration::from_secs(300);

type Uid = Arc<str>;
type Rank = (Reverse<i32>, u64);

enum State {
    Ready(Rank),
    Waiting {
        due: Instant,
        /// When a change may wake it: not before its backoff is over.
        earliest: Instant,
    },
    Taken,
}

struct Entry {
    pod: Arc<PodInfo>,
    attempts: u32,
    state: State,
}

/// The queue; see the module's documentation.
#[derive(Default)]
pub(crate) struct PodQueue {
    entries: HashMap<Uid, Entry>,
    ready: BTreeMap<Rank, Uid>,
    waiting: BTreeSet<(Instant, Uid)>,
    /// Those that other pods matter to.
    looking: HashSet<Uid>,
    /// Those that name a claim, by it.
    by_claim: HashMap<Key, HashSet<Uid>>,
    /// How often those were tried that are being bound.
    binding: HashMap<Uid, u32>,
    arrivals: u64,
}

impl PodQueue {
    /// A pod that came or changed. One that waits is tried again at once when its spec changed.
    pub(crate) fn put(&mut self, pod: Arc<PodInfo>) {
        let attempts = match self.entries.get_mut(&pod.uid) {
            Some(entry) => {
                let changed =
                    entry.pod.generation != pod.generation || entry.pod.labels != pod.labels;
                entry.pod = pod.clone();
                if !changed || !matches!(entry.state, State::Waiting { .. }) {
                    return;
                }
                0
            }
            None => 0,
        };
        self.remove(&pod.uid);
        self.make_ready(pod, attempts);
    }

    /// Notes what the pod is to be woken by.
    fn note(&mut self, pod: &PodInfo) {
        if pod.looks_at_others() {
            self.looking.insert(pod.uid.clone());
        }
        for claim in &pod.claims {
            let pods = self.by_claim.entry(claim.key.clone()).or_default();
            pods.insert(pod.uid.clone());
        }
    }

    fn make_ready(&mut self, pod: Arc<PodInfo>, attempts: u32) {
        self.arrivals += 1;
        let rank = (Reverse(pod.priority), self.arrivals);
        self.ready.insert(rank, pod.uid.clone());
        let state = State::Ready(rank);
        self.note(&pod);
        self.entries.insert(
            pod.uid.clone(),
            Entry {
                pod,
                attempts,
                state,
            },
        );
    }

    /// The pod no longer waits, nor is it being bound.
    pub(crate) fn remove(&mut self, uid: &str) {
        self.binding.remove(uid);
        self.withdraw(uid);
    }

    /// The taken pod fits, and is being bound: it leaves the queue until it is bound, which ends with [`PodQueue::remove`], or
    /// that is refused, which ends with [`PodQueue::retry`].
    pub(crate) fn bind(&mut self, uid: &str) {
        if let Some((uid, attempts)) = self.withdraw(uid) {
            self.binding.insert(uid, attempts);
        }
    }

    /// Takes a pod out, with how often it was tried.
    fn withdraw(&mut self, uid: &str) -> Option<(Uid, u32)> {
        let (uid, entry) = self.entries.remove_entry(uid)?;
        self.looking.remove(&uid);
        for claim in &entry.pod.claims {
            if let Some(pods) = self.by_claim.get_mut(&claim.key) {
                pods.remove(&uid);
                if pods.is_empty() {
                    self.by_claim.remove(&claim.key);
                }
            }
        }
        match entry.state {
            State::Ready(rank) => {
                self.ready.remove(&rank);
            }
            State::Waiting { due, .. } => {
                self.waiting.remove(&(due, uid.clone()));
            }
            State::Taken => {}
        }
        Some((uid, entry.attempts))
    }

    /// Takes the next pod to try.
    pub(crate) fn take(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        while let Some((due, uid)) = self.waiting.first().cloned() {
            if due > now {
                break;
            }
            self.waiting.remove(&(due, uid.clone()));
            if let Some(entry) = self.entries.remove(&uid) {
                self.make_ready(entry.pod, entry.attempts);
            }
        }
        let (_, uid) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.attempts += 1;
        entry.state = State::Taken;
        Some(entry.pod.clone())
    }

    /// The taken pod fits nowhere: it waits until something changes.
    pub(crate) fn park(&mut self, uid: &str, now: Instant) {
        self.wait(uid, now, false);
    }

    /// Tries the pod again after its backoff, whether it was taken or is being bound: the longer, the more often it was tried.
    pub(crate) fn retry(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid.clone();
        let attempts = self.binding.remove(&uid).unwrap_or(1);
        self.note(&pod);
        self.entries.entry(uid.clone()).or_insert(Entry {
            pod,
            attempts,
            state: State::Taken,
        });
        self.wait(&uid, now, true);
    }

    fn wait(&mut self, uid: &str, now: Instant, again: bool) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        if !matches!(entry.state, State::Taken) {
            return;
        }
        let earliest = now + BACKOFF.after(entry.attempts);
        let due = if again { earliest } else { now + PATIENCE };
        entry.state = State::Waiting { due, earliest };
        self.waiting.insert((due, entry.pod.uid.clone()));
    }

    /// Something changed by which pods may fit: all that wait are tried once their backoff is over.
    pub(crate) fn wake(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.waiting);
        for (_, uid) in waiting {
            let Some(entry) = self.entries.get_mut(&uid) else {
                continue;
            };
            if let State::Waiting { due, earliest } = &mut entry.state {
                *due = (*due).min((*earliest).max(now));
                self.waiting.insert((*due, uid));
            }
        }
    }

    /// As [`PodQueue::wake`], for one pod alone.
    pub(crate) fn wake_one(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.entries.get_mut(uid)
            && let State::Waiting { due, earliest } = &mut entry.state
        {
            let sooner = (*due).min((*earliest).max(now));
            self.waiting.remove(&(*due, entry.pod.uid.clone()));
            self.waiting.insert((sooner, entry.pod.uid.clone()));
            *due = sooner;
        }
    }

    /// As [`PodQueue::wake`], when what changed matters only to pods that look at others.
    pub(crate) fn wake_looking(&mut self, now: Instant) {
        for uid in &self.looking {
            if let Some(entry) = self.entries.get_mut(uid) {
                hasten(entry, &mut self.waiting, now);
            }
        }
    }

    /// As [`PodQueue::wake`], when what changed matters only to pods that name the claim.
    pub(crate) fn wake_naming(&mut self, claim: &Key, now: Instant) {
        for uid in self.by_claim.get(claim).into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(uid) {
                hasten(entry, &mut self.waiting, now);
            }
        }
    }

    /// When the next waiting pod is due.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }
}

/// Lets a pod that waits be tried once its backoff is over.
fn hasten(entry: &mut Entry, waiting: &mut BTreeSet<(Instant, Uid)>, now: Instant) {
    if let State::Waiting { due, earliest } = &mut entry.state {
        let sooner = (*due).min((*earliest).max(now));
        waiting.remove(&(*due, entry.pod.uid.clone()));
        waiting.insert((sooner, entry.pod.uid.clone()));
        *due = sooner;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        PersistentVolumeClaimVolumeSource, TopologySpreadConstraint, Volume,
    };

    use super::*;
    use crate::snapshot::tests::pod;

    fn info(uid: &str, priority: i32, generation: i64) -> Arc<PodInfo> {
        let mut pod = pod(uid, "", "");
        pod.spec.get_or_insert_default().priority = Some(priority);
        pod.metadata.generation = Some(generation);
        Arc::new(PodInfo::new(&pod))
    }

    fn taken(queue: &mut PodQueue, now: Instant) -> Option<String> {
        queue.take(now).map(|pod| pod.uid.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn priority_goes_first_then_arrival() {
        let mut queue = PodQueue::default();
        let now = Instant::now();
        for (uid, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.put(info(uid, priority, 1));
        }
        queue.remove("c");
        let order: Vec<_> = std::iter::from_fn(|| taken(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_parked_pod_waits_for_a_change_and_its_backoff() {
        let mut queue = PodQueue::default();
        let now = Instant::now();
        queue.put(info("a", 0, 1));
        assert_eq!(taken(&mut queue, now).as_deref(), Some("a"));
        queue.park("a", now);
        // A change of its status only does not matter.
        queue.put(info("a", 0, 1));
        assert_eq!(taken(&mut queue, now + Duration::from_secs(5)), None);
        queue.wake(now);
        assert_eq!(taken(&mut queue, now), None, "its backoff");
        assert_eq!(queue.next_due(), Some(now + BACKOFF.first));
        let later = now + BACKOFF.first;
        assert_eq!(taken(&mut queue, later).as_deref(), Some("a"));
        queue.park("a", later);
        queue.wake(later);
        assert_eq!(
            queue.next_due(),
            Some(later + BACKOFF.first * 2),
            "longer each time"
        );
        // A change of its spec is worth trying at once.
        queue.put(info("a", 0, 2));
        assert_eq!(taken(&mut queue, later).as_deref(), Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_matters_to_pods_that_look_at_others_wakes_no_others() {
        let mut queue = PodQueue::default();
        let now = Instant::now();
        let mut looking = pod("a", "", "");
        let spec = looking.spec.get_or_insert_default();
        spec.topology_spread_constraints = Some(vec![TopologySpreadConstraint::default()]);
        queue.put(Arc::new(PodInfo::new(&looking)));
        queue.put(info("b", 0, 1));
        for uid in ["a", "b"] {
            assert_eq!(taken(&mut queue, now).as_deref(), Some(uid));
            queue.park(uid, now);
        }
        queue.wake_looking(now);
        let later = now + BACKOFF.first;
        assert_eq!(taken(&mut queue, later).as_deref(), Some("a"));
        assert_eq!(taken(&mut queue, later), None);
        queue.remove("a");
        assert!(queue.looking.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_becomes_of_a_claim_wakes_those_that_name_it_and_no_others() {
        let mut queue = PodQueue::default();
        let now = Instant::now();
        for (uid, claim) in [("a", "data"), ("b", "other")] {
            let mut naming = pod(uid, "", "");
            naming.spec.get_or_insert_default().volumes = Some(vec![Volume {
                name: "v".to_owned(),
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.to_owned(),
                    ..PersistentVolumeClaimVolumeSource::default()
                }),
                ..Volume::default()
            }]);
            queue.put(Arc::new(PodInfo::new(&naming)));
            assert_eq!(taken(&mut queue, now).as_deref(), Some(uid));
            queue.park(uid, now);
        }
        queue.wake_naming(&Key::new("elsewhere", "data"), now);
        let later = now + BACKOFF.first;
        assert_eq!(taken(&mut queue, later), None);
        queue.wake_naming(&Key::new("ns", "data"), now);
        assert_eq!(taken(&mut queue, now), None, "its backoff");
        assert_eq!(taken(&mut queue, later).as_deref(), Some("a"));
        assert_eq!(taken(&mut queue, later), None);
        queue.remove("a");
        queue.remove("b");
        assert!(queue.by_claim.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_pod_is_woken_alone() {
        let mut queue = PodQueue::default();
        let now = Instant::now();
        for uid in ["a", "b"] {
            queue.put(info(uid, 0, 1));
            assert_eq!(taken(&mut queue, now).as_deref(), Some(uid));
            queue.park(uid, now);
        }
        for uid in ["b", "absent"] {
            queue.wake_one(uid, now);
        }
        assert_eq!(taken(&mut queue, now), None, "its backoff");
        let later = now + BACKOFF.first;
        assert_eq!(taken(&mut queue, later).as_deref(), Some("b"));
        assert_eq!(taken(&mut queue, later), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_whose_binding_failed_is_tried_again() {
        let mut queue = PodQueue::default();
        let now = Instant::now();
        queue.put(info("a", 0, 1));
        assert!(taken(&mut queue, now).is_some());
        queue.bind("a");
        queue.retry(info("a", 0, 1), now);
        assert_eq!(taken(&mut queue, now), None);
        assert_eq!(taken(&mut queue, now + BACKOFF.first).as_deref(), Some("a"));
        queue.remove("a");
        assert_eq!(queue.next_due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_whose_binding_always_fails_waits_longer_each_time_and_not_for_ever() {
        let mut queue = PodQueue::default();
        let mut now = Instant::now();
        queue.put(info("a", 0, 1));
        let mut expected = BACKOFF.first;
        for _ in 0..40 {
            assert_eq!(taken(&mut queue, now).as_deref(), Some("a"));
            queue.bind("a");
            assert_eq!(queue.next_due(), None, "it is on its way");
            queue.retry(info("a", 0, 1), now);
            // That its binding failed leaves room, which wakes all: it waits for all that.
            queue.wake(now);
            assert_eq!(queue.next_due(), Some(now + expected));
            now += expected;
            expected = (expected * 2).min(BACKOFF.longest);
        }
        // Once it is bound, or gone, nothing is known of it.
        assert_eq!(taken(&mut queue, now).as_deref(), Some("a"));
        queue.bind("a");
        queue.remove("a");
        assert!(queue.binding.is_empty() && queue.entries.is_empty());
        queue.put(info("a", 0, 1));
        assert_eq!(taken(&mut queue, now).as_deref(), Some("a"));
        queue.park("a", now);
        queue.wake(now);
        assert_eq!(queue.next_due(), Some(now + BACKOFF.first));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_forgotten_for_good() {
        let mut queue = PodQueue::default();
        let now = Instant::now();
        queue.put(info("a", 0, 1));
        assert!(taken(&mut queue, now).is_some());
        queue.park("a", now);
        assert_eq!(taken(&mut queue, now + PATIENCE).as_deref(), Some("a"));
    }
}
