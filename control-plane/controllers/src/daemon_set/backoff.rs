//! How long a pod that has failed stays before it makes way for another. A node that refuses pods, or ends them at once, would
//! else be given them as fast as it can.

use std::collections::HashMap;
use std::time::Duration;

use gantry_informer::Key;
use gantry_informer::queue::Backoff;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;

const BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(15 * 60),
};
/// What nothing has been added to for so long is over.
const OVER: Duration = Duration::from_secs(30 * 60);

/// The pods of a set that failed on a node.
struct Failed {
    count: u32,
    last: Timestamp,
}

impl Failed {
    fn passed(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.last)).unwrap_or_default()
    }
}

/// Those of a set, as it was at a generation.
#[derive(Default)]
struct OfSet {
    uid: Option<String>,
    generation: Option<i64>,
    nodes: HashMap<String, Failed>,
}

/// What has failed lately. It is in memory alone: who leads next begins anew.
#[derive(Default)]
pub(crate) struct Failures {
    sets: Mutex<HashMap<Key, OfSet>>,
}

impl Failures {
    /// How long failed pods of the set have to stay, by their nodes. What another generation of it did is forgotten.
    pub(crate) fn held(&self, set: &DaemonSet, now: Timestamp) -> HashMap<String, Duration> {
        let key = Key::of(&set.metadata);
        let mut sets = self.sets.lock();
        let Some(known) = sets.get_mut(&key) else {
            return HashMap::new();
        };
        known.nodes.retain(|_, failed| failed.passed(now) < OVER);
        if known.nodes.is_empty() || !known.is_of(set) {
            sets.remove(&key);
            return HashMap::new();
        }
        let held = known.nodes.iter().filter_map(|(node, failed)| {
            let left = BACKOFF
                .after(failed.count)
                .checked_sub(failed.passed(now))?;
            (!left.is_zero()).then(|| (node.clone(), left))
        });
        held.collect()
    }

    /// A failed pod of the set is taken off the node.
    pub(crate) fn note(&self, set: &DaemonSet, node: &str, now: Timestamp) {
        let mut sets = self.sets.lock();
        let known = sets.entry(Key::of(&set.metadata)).or_default();
        if !known.is_of(set) {
            *known = OfSet {
                uid: set.metadata.uid.clone(),
                generation: set.metadata.generation,
                nodes: HashMap::new(),
            };
        }
        let failed = known.nodes.entry(node.to_owned()).or_insert(Failed {
            count: 0,
            last: now,
        });
        failed.count = failed.count.saturating_add(1);
        failed.last = now;
    }

    /// The set is gone.
    pub(crate) fn forget(&self, set: &Key) {
        self.sets.lock().remove(set);
    }
}

impl OfSet {
    fn is_of(&self, set: &DaemonSet) -> bool {
        self.uid == set.metadata.uid && self.generation == set.metadata.generation
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;

    use super::*;

    #[test]
    fn each_failure_on_a_node_stays_longer_than_the_one_before() {
        let failures = Failures::default();
        let mut set = DaemonSet::default();
        set.metadata.name = Some("d".to_owned());
        set.metadata.uid = Some("1".to_owned());
        set.metadata.generation = Some(1);
        let at = |seconds| Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds);
        let held = |set: &DaemonSet, seconds: i64| {
            let held = failures.held(set, at(seconds));
            held.get("n").map(|left| left.as_secs())
        };
        assert_eq!(held(&set, 0), None);
        failures.note(&set, "n", at(0));
        assert_eq!(held(&set, 0), Some(1));
        assert_eq!(held(&set, 1), None);
        failures.note(&set, "n", at(1));
        assert_eq!(held(&set, 2), Some(1));
        for _ in 0..20 {
            failures.note(&set, "n", at(10));
        }
        assert_eq!(held(&set, 10), Some(900));
        // What changed may work.
        let mut changed = set.clone();
        changed.metadata.generation = Some(2);
        assert_eq!(held(&changed, 10), None);
        failures.note(&set, "n", at(10));
        assert_eq!(held(&set, 10), Some(1));
        assert_eq!(held(&set, 10 + 1800), None);
        assert!(
            failures.sets.lock().is_empty(),
            "what is over takes no room"
        );
        failures.note(&set, "n", at(20));
        failures.forget(&Key::new("", "d"));
        assert_eq!(held(&set, 20), None);
    }
}
