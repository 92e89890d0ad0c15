//! How far each node's service rules are, and who waits for all of them. Pure bookkeeping: the hub sends the answers.
//!
//! A pod that is deleted leaves the endpoints first. It is told to stop once no node sends connections to it any more,
//! which is when every node that could has acknowledged the revision at which the pod left. A node whose link is down
//! still routes by the rules that it has: it counts until it is given up as lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::metrics::METRICS;

/// Changes whose way is measured at once; of more, the oldest are not.
const MEASURED: usize = 4096;
/// Revisions that one node may wait for at once; who asks for more waits for their time limit.
const ASKED: usize = 1024;
/// How long an agent waits for an answer (`DRAIN_LIMIT` in `pods/src/pod/stop.rs`).
const PATIENCE: Duration = Duration::from_secs(2);

/// Told to the node that asked: every node has programmed this revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Everywhere {
    pub(crate) node: String,
    pub(crate) revision: u64,
}

/// The nodes that may route, and what they have programmed.
#[derive(Default)]
pub(crate) struct Routing {
    /// By node, the revision that its rules reflect; 0 for one that has said nothing yet.
    programmed: BTreeMap<String, u64>,
    /// Whether every node that may route is known: a server that has just begun to lead knows only those that found it.
    complete: bool,
    /// By revision, who waits for it.
    waiting: BTreeMap<u64, BTreeSet<String>>,
    /// By node, the revisions that it has asked about of late, and when; some of them may be answered.
    asked: BTreeMap<String, VecDeque<(Instant, u64)>>,
    /// When a revision was first sent to a node.
    sent: BTreeMap<u64, Instant>,
}

impl Routing {
    /// A node has a new link, on which it says anew how far it is.
    pub(crate) fn joined(&mut self, node: &str) {
        self.programmed.insert(node.to_owned(), 0);
    }

    /// These nodes route or may still, whether they are linked or not; others do not.
    pub(crate) fn expect(&mut self, nodes: impl IntoIterator<Item = String>) -> Vec<Everywhere> {
        let before = std::mem::take(&mut self.programmed);
        let known = |node: String| {
            let revision = before.get(&node).copied().unwrap_or(0);
            (node, revision)
        };
        self.programmed = nodes.into_iter().map(known).collect();
        self.complete = true;
        self.answer()
    }

    /// A change is on its way to nodes.
    pub(crate) fn sending(&mut self, revision: u64, now: Instant) {
        self.sent.entry(revision).or_insert(now);
        if self.sent.len() > MEASURED {
            self.sent.pop_first();
        }
    }

    /// A node's rules reflect a revision. Answers those who have waited for that.
    pub(crate) fn programmed(&mut self, node: &str, revision: u64) -> Vec<Everywhere> {
        if let Some(known) = self.programmed.get_mut(node) {
            *known = (*known).max(revision);
        }
        self.answer()
    }

    /// A node wants to know when all are that far. O(log waiting), and what the node itself waits for no more.
    pub(crate) fn wait(&mut self, node: &str, revision: u64, now: Instant) -> Vec<Everywhere> {
        self.forget(node, now);
        let asked = self.asked.entry(node.to_owned()).or_default();
        if asked.len() < ASKED {
            let nodes = self.waiting.entry(revision).or_default();
            // One answer serves for all that is asked of the same revision; a node asks for as many as it stops pods.
            if nodes.insert(node.to_owned()) {
                asked.push_back((now, revision));
            }
        }
        self.answer()
    }

    /// Drops what a node has asked and waits for no more, and what it was answered.
    fn forget(&mut self, node: &str, now: Instant) {
        let Some(asked) = self.asked.get_mut(node) else {
            return;
        };
        while let Some((since, revision)) = asked.front() {
            let waits = self.waiting.get_mut(revision);
            let waits = waits.filter(|nodes| nodes.contains(node));
            match waits {
                Some(_) if now.saturating_duration_since(*since) < PATIENCE => return,
                Some(nodes) => {
                    nodes.remove(node);
                    if nodes.is_empty() {
                        self.waiting.remove(revision);
                    }
                }
                None => {}
            }
            asked.pop_front();
        }
        self.asked.remove(node);
    }

    /// The link of a node is gone, and with it what the node waits for: it asks again on the next.
    pub(crate) fn left(&mut self, node: &str) {
        for (_, revision) in self.asked.remove(node).into_iter().flatten() {
            if let Some(nodes) = self.waiting.get_mut(&revision) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.waiting.remove(&revision);
                }
            }
        }
    }

    fn answer(&mut self) -> Vec<Everywhere> {
        let Some(everywhere) = self
            .complete
            .then(|| self.programmed.values().min().copied())
            .flatten()
        else {
            return Vec::new();
        };
        let later = self.sent.split_off(&everywhere.saturating_add(1));
        for sent in std::mem::replace(&mut self.sent, later).into_values() {
            METRICS
                .services_programmed
                .observe(sent.elapsed().as_secs_f64());
        }
        let later = self.waiting.split_off(&everywhere.saturating_add(1));
        let answered = std::mem::replace(&mut self.waiting, later).into_iter();
        let answered = answered.flat_map(|(revision, nodes)| {
            let nodes = nodes.into_iter();
            nodes.map(move |node| Everywhere { node, revision })
        });
        answered.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    fn nodes(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn revisions(answers: &[Everywhere]) -> Vec<(&str, u64)> {
        answers
            .iter()
            .map(|answer| (answer.node.as_str(), answer.revision))
            .collect()
    }

    #[test]
    fn who_waits_is_told_when_the_last_node_is_that_far() {
        let mut routing = Routing::default();
        for node in ["a", "b"] {
            routing.joined(node);
        }
        assert!(routing.expect(nodes(&["a", "b"])).is_empty());
        assert!(routing.wait("a", 7, now()).is_empty());
        assert!(routing.wait("b", 9, now()).is_empty());
        assert!(routing.programmed("a", 10).is_empty());
        assert_eq!(revisions(&routing.programmed("b", 8)), [("a", 7)]);
        assert_eq!(revisions(&routing.programmed("b", 9)), [("b", 9)]);
        assert_eq!(revisions(&routing.wait("a", 9, now())), [("a", 9)]);
    }

    #[test]
    fn a_node_that_cannot_be_heard_counts_until_it_is_given_up() {
        let mut routing = Routing::default();
        routing.joined("a");
        routing.expect(nodes(&["a", "silent"]));
        routing.programmed("a", 5);
        assert!(routing.wait("a", 5, now()).is_empty());
        assert_eq!(revisions(&routing.expect(nodes(&["a"]))), [("a", 5)]);
    }

    #[test]
    fn a_new_leader_answers_nobody_before_it_knows_the_nodes() {
        let mut routing = Routing::default();
        routing.joined("a");
        routing.programmed("a", 5);
        assert!(routing.wait("a", 5, now()).is_empty());
        assert!(routing.expect(nodes(&["a", "b"])).is_empty());
        routing.joined("b");
        assert_eq!(revisions(&routing.programmed("b", 5)), [("a", 5)]);
    }

    #[test]
    fn a_new_link_begins_anew_and_forgets_what_was_asked() {
        let mut routing = Routing::default();
        routing.joined("a");
        routing.expect(nodes(&["a"]));
        routing.programmed("a", 5);
        assert!(routing.wait("a", 6, now()).is_empty());
        routing.left("a");
        routing.joined("a");
        assert!(routing.programmed("a", 9).is_empty());
    }

    #[test]
    fn what_a_node_may_ask_is_bounded() {
        let (mut routing, start) = (Routing::default(), now());
        for revision in 1..10_000 {
            routing.wait("a", revision, start);
            routing.wait("a", 7, start);
        }
        routing.wait("b", 1, start);
        let waiting =
            |routing: &Routing| -> usize { routing.waiting.values().map(BTreeSet::len).sum() };
        assert_eq!(waiting(&routing), ASKED + 1);
        // Nobody waits for these any more.
        routing.wait("a", 10_000, start + PATIENCE);
        assert_eq!(waiting(&routing), 2);
        routing.left("a");
        routing.left("b");
        assert!(routing.waiting.is_empty() && routing.asked.is_empty());
    }

    #[test]
    fn a_message_costs_what_it_answers() {
        let (mut routing, start) = (Routing::default(), now());
        for node in ["a", "mute"] {
            routing.joined(node);
        }
        routing.expect(nodes(&["a", "mute"]));
        // One after the other, each answered: nothing is left of them, however many there were.
        for revision in 1..10_000 {
            routing.programmed("a", revision);
            assert!(routing.wait("a", revision, start).is_empty());
            assert_eq!(
                revisions(&routing.programmed("mute", revision)),
                [("a", revision)]
            );
        }
        assert!(routing.waiting.is_empty());
        assert!(routing.asked["a"].len() <= 1);
    }

    #[test]
    fn what_is_measured_is_bounded() {
        let mut routing = Routing::default();
        let now = Instant::now();
        for revision in 0..10_000 {
            routing.sending(revision, now);
        }
        assert_eq!(routing.sent.len(), MEASURED);
        routing.joined("a");
        routing.expect(nodes(&["a"]));
        routing.programmed("a", 9_998);
        assert_eq!(routing.sent.keys().copied().collect::<Vec<_>>(), [9_999]);
    }
}
