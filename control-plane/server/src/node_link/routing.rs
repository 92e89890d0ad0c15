//! How far each node's service rules are, and who waits for all of them. Pure bookkeeping: the hub sends the answers.
//!
//! A pod that is deleted leaves the endpoints first. It is told to stop once no node sends connections to it any more,
//! which is when every node that could has acknowledged the revision at which the pod left. A node whose link is down
//! still routes by the rules that it has: it counts until it is given up as lost.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::metrics::METRICS;

/// Changes whose way is measured at once; of more, the oldest are not.
const MEASURED: usize = 4096;
/// Revisions that one node may wait for at once; who asks for more waits for their time limit.
const ASKED: usize = 1024;

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
    waiting: Vec<Everywhere>,
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

    /// A node wants to know when all are that far.
    pub(crate) fn wait(&mut self, node: &str, revision: u64) -> Vec<Everywhere> {
        let asked = Everywhere {
            node: node.to_owned(),
            revision,
        };
        // One answer serves for all that is asked of the same revision; a node asks for as many as it stops pods.
        let of_node = self.waiting.iter().filter(|waiting| waiting.node == node);
        let (mut count, mut is_known) = (0, false);
        for waiting in of_node {
            count += 1;
            is_known |= waiting.revision == revision;
        }
        if !is_known && count < ASKED {
            self.waiting.push(asked);
        }
        self.answer()
    }

    /// The link of a node is gone, and with it what the node waits for: it asks again on the next.
    pub(crate) fn left(&mut self, node: &str) {
        self.waiting.retain(|waiting| waiting.node != node);
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
        let (answered, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.revision <= everywhere);
        self.waiting = waiting;
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(routing.wait("a", 7).is_empty());
        assert!(routing.wait("b", 9).is_empty());
        assert!(routing.programmed("a", 10).is_empty());
        assert_eq!(revisions(&routing.programmed("b", 8)), [("a", 7)]);
        assert_eq!(revisions(&routing.programmed("b", 9)), [("b", 9)]);
        assert_eq!(revisions(&routing.wait("a", 9)), [("a", 9)]);
    }

    #[test]
    fn a_node_that_cannot_be_heard_counts_until_it_is_given_up() {
        let mut routing = Routing::default();
        routing.joined("a");
        routing.expect(nodes(&["a", "silent"]));
        routing.programmed("a", 5);
        assert!(routing.wait("a", 5).is_empty());
        assert_eq!(revisions(&routing.expect(nodes(&["a"]))), [("a", 5)]);
    }

    #[test]
    fn a_new_leader_answers_nobody_before_it_knows_the_nodes() {
        let mut routing = Routing::default();
        routing.joined("a");
        routing.programmed("a", 5);
        assert!(routing.wait("a", 5).is_empty());
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
        assert!(routing.wait("a", 6).is_empty());
        routing.left("a");
        routing.joined("a");
        assert!(routing.programmed("a", 9).is_empty());
    }

    #[test]
    fn what_a_node_may_ask_is_bounded() {
        let mut routing = Routing::default();
        for revision in 1..10_000 {
            routing.wait("a", revision);
            routing.wait("a", 7);
        }
        routing.wait("b", 1);
        assert_eq!(routing.waiting.len(), ASKED + 1);
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
