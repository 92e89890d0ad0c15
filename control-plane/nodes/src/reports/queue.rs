//! What waits to be written of a node's reports: the latest of each pod, and no more of all than one message can hold.

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::api::core::v1 as core;

use super::super::said::{PodRef, Refused};

/// The statuses of one link that wait, in bytes: as much as its largest message, which has those of all its pods.
const BYTES: usize = 8 << 20;

/// What is to be written about one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    /// As it was sent.
    pub(super) status: Option<Bytes>,
    pub(super) terminated: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) pods: BTreeMap<PodRef, Pending>,
    pub(super) node: Option<Box<core::NodeStatus>>,
    /// Of the pods' statuses.
    bytes: usize,
    /// Who could not be taken last time, and is the first of the next.
    next: Option<PodRef>,
}

impl Queue {
    /// The latest status of a pod. Refused where more would wait than a node's pods have to say.
    pub(super) fn say_status(&mut self, pod: PodRef, status: &[u8]) -> Result<(), Refused> {
        let waiting = self.pods.get(&pod);
        let waiting = waiting.and_then(|pending| pending.status.as_ref());
        let before = waiting.map_or(0, Bytes::len);
        let bytes = self.bytes.saturating_sub(before) + status.len();
        if bytes > BYTES && status.len() > before {
            return Err(Refused::TooLarge {
                what: "what waits of the statuses of its pods",
                bytes,
                limit: BYTES,
            });
        }
        self.bytes = bytes;
        // A copy: otherwise the whole message would wait with it.
        let status = Bytes::copy_from_slice(status);
        self.pods.entry(pod).or_default().status = Some(status);
        Ok(())
    }

    /// Nothing of a pod is left on the node.
    pub(super) fn say_terminated(&mut self, pod: PodRef) {
        self.pods.entry(pod).or_default().terminated = true;
    }

    /// Takes one pod after the other for as long as `may` says so. Those that stay come first the next time.
    pub(super) fn take_due(
        &mut self,
        mut may: impl FnMut(&PodRef, &Pending) -> bool,
    ) -> Vec<(PodRef, Pending)> {
        let mut earlier = std::mem::take(&mut self.pods);
        let later = match self.next.take() {
            Some(next) => earlier.split_off(&next),
            None => BTreeMap::new(),
        };
        let mut due = Vec::new();
        for (pod, pending) in later.into_iter().chain(earlier) {
            if self.next.is_none() && may(&pod, &pending) {
                let bytes = pending.status.as_ref().map_or(0, Bytes::len);
                self.bytes = self.bytes.saturating_sub(bytes);
                due.push((pod, pending));
            } else {
                self.next.get_or_insert_with(|| pod.clone());
                self.pods.insert(pod, pending);
            }
        }
        due
    }

    /// What was taken and could not be written. What was said since is newer.
    pub(super) fn put_back(&mut self, failed: Vec<(PodRef, Pending)>) {
        for (pod, pending) in failed {
            let waiting = self.pods.entry(pod).or_default();
            waiting.terminated |= pending.terminated;
            if waiting.status.is_none() {
                self.bytes += pending.status.as_ref().map_or(0, Bytes::len);
                waiting.status = pending.status;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> PodRef {
        PodRef::new("default".to_owned(), name.to_owned(), "1".to_owned()).expect("a pod")
    }

    fn names(due: &[(PodRef, Pending)]) -> Vec<&str> {
        due.iter().map(|(pod, _)| pod.name()).collect()
    }

    #[test]
    fn every_pod_has_its_turn() {
        let mut queue = Queue::default();
        let say = |queue: &mut Queue| {
            for name in ["a", "b", "c", "d", "e"] {
                queue.say_status(pod(name), b"{}").expect("room");
            }
        };
        let two = |queue: &mut Queue| {
            let mut left = 2;
            queue.take_due(|_, _| {
                left -= 1;
                left >= 0
            })
        };
        say(&mut queue);
        assert_eq!(names(&two(&mut queue)), ["a", "b"]);
        // Whoever says more meanwhile does not come before the others.
        say(&mut queue);
        assert_eq!(names(&two(&mut queue)), ["c", "d"]);
        assert_eq!(names(&two(&mut queue)), ["e", "a"]);
        assert_eq!(names(&two(&mut queue)), ["b"]);
        assert_eq!((queue.pods.len(), queue.bytes), (0, 0));
        say(&mut queue);
        assert_eq!(names(&queue.take_due(|_, _| true)).len(), 5);
    }

    #[test]
    fn what_waits_is_bounded_and_the_latest() {
        let mut queue = Queue::default();
        let half = vec![b' '; BYTES / 2];
        queue.say_status(pod("a"), &half).expect("room");
        queue.say_status(pod("b"), &half).expect("room");
        let refused = queue.say_status(pod("c"), b"{}").expect_err("full");
        assert!(matches!(refused, Refused::TooLarge { .. }), "{refused}");
        assert!(!queue.pods.contains_key(&pod("c")));
        queue.say_terminated(pod("c"));
        queue.say_status(pod("a"), b"{}").expect("less than before");
        queue.say_status(pod("c"), b"{}").expect("room again");
        let taken = queue.take_due(|_, _| true);
        assert_eq!((taken.len(), queue.bytes), (3, 0));

        queue.say_status(pod("a"), b"newer").expect("room");
        queue.put_back(taken);
        let status = |name: &str| queue.pods[&pod(name)].status.clone();
        assert_eq!(status("a").as_deref(), Some(b"newer".as_slice()));
        assert_eq!(status("c").as_deref(), Some(b"{}".as_slice()));
        assert!(queue.pods[&pod("c")].terminated);
        assert_eq!(queue.bytes, BYTES / 2 + "newer".len() + "{}".len());
    }
}
