//! The connections of pods without those that the node has made itself: what is left was opened by somebody who wants something
//! of them.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use gantry_cri::network::{self as cri, NodeConnected, NodeConnections};
use gantry_rpc::node::Connections;

/// What was seen of each pod, by uid.
#[derive(Debug, Default)]
pub(super) struct OpenedByOthers {
    pods: HashMap<String, Opened>,
}

impl OpenedByOthers {
    /// Takes in what the kernel has counted. `by_node` has counted everything in it that the node has made, and maybe more.
    pub(super) fn take(
        &mut self,
        counted: &BTreeMap<String, cri::Connections>,
        by_node: &NodeConnections,
        now: Instant,
    ) -> BTreeMap<String, Connections> {
        let is_there = |uid: &str| counted.contains_key(uid);
        self.pods.retain(|uid, _| is_there(uid));
        let connections = counted.iter().map(|(uid, counted)| {
            let by_node = by_node.of(uid, now);
            let opened = self.pods.entry(uid.clone()).or_default();
            let connections = Connections {
                open: counted.open.saturating_sub(by_node.open),
                opened: opened.next(counted.accepted, by_node),
            };
            (uid.clone(), connections)
        });
        let connections = connections.collect();
        by_node.retain(is_there);
        connections
    }
}

/// The connections that others than the node have opened to a pod, counted from one reading to the next.
#[derive(Debug, Default)]
struct Opened {
    /// What the pod had accepted, and the node made.
    accepted: u64,
    made: u64,
    /// What the node had made that the pod had not accepted yet.
    expected: u64,
    opened: u64,
}

impl Opened {
    /// The next reading; never less than the one before. A connection of the node's that is counted before the pod has accepted
    /// it is expected there, for as long as it may still come: one that never does hides no other one's for long.
    fn next(&mut self, accepted: u64, by_node: NodeConnected) -> u64 {
        // Of a network that was made anew the kernel counts from the beginning.
        let fresh = accepted.checked_sub(self.accepted).unwrap_or(accepted);
        let made = by_node.made.saturating_sub(self.made);
        let expected = (self.expected + by_node.made).saturating_sub(self.made);
        let came = expected.min(fresh);
        self.opened = self.opened.saturating_add(fresh - came);
        let may_come = made.saturating_add(by_node.open);
        (self.accepted, self.made) = (accepted, by_node.made);
        self.expected = (expected - came).min(may_come);
        self.opened
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// What is said after each of these: accepted, made by the node, open of it.
    fn said(readings: &[(u64, u64, u64)]) -> Vec<u64> {
        let mut opened = Opened::default();
        let readings = readings.iter().map(|(accepted, made, open)| {
            let by_node = NodeConnected {
                made: *made,
                open: *open,
            };
            opened.next(*accepted, by_node)
        });
        readings.collect()
    }

    #[test]
    fn what_the_node_has_made_is_not_counted() {
        assert_eq!(said(&[(1, 1, 0), (2, 2, 0), (3, 3, 0)]), [0, 0, 0]);
        assert_eq!(said(&[(1, 0, 0), (3, 1, 0), (3, 1, 0)]), [1, 2, 2]);
        // Counted before the pod has accepted it.
        assert_eq!(said(&[(0, 1, 1), (1, 1, 0), (2, 1, 0)]), [0, 0, 1]);
        assert_eq!(said(&[(0, 1, 0), (1, 1, 0)]), [0, 0]);
        // It came to nothing.
        assert_eq!(said(&[(0, 1, 1), (0, 0, 0), (1, 0, 0)]), [0, 0, 1]);
        // It never came, and is not waited for.
        assert_eq!(said(&[(0, 1, 0), (0, 1, 0), (1, 1, 0)]), [0, 0, 1]);
        // Another network, and nothing known of the node.
        assert_eq!(said(&[(7, 2, 0), (3, 0, 0), (4, 0, 0)]), [5, 8, 9]);
    }

    #[test]
    fn pods_are_told_apart_and_forgotten() {
        let by_node = Arc::new(NodeConnections::default());
        let mut opened = OpenedByOthers::default();
        let mut probe = by_node.begin("web");
        probe.connected();
        let counted = |open, accepted| cri::Connections { open, accepted };
        let pods = [("web", counted(3, 5)), ("db", counted(1, 1))];
        let pods = pods.map(|(uid, counted)| (uid.to_owned(), counted));
        let mut pods = BTreeMap::from(pods);
        let now = Instant::now();
        let said = opened.take(&pods, &by_node, now);
        assert_eq!((said["web"].open, said["web"].opened), (2, 4));
        assert_eq!((said["db"].open, said["db"].opened), (1, 1));
        drop(probe);
        pods.remove("web");
        assert_eq!(opened.take(&pods, &by_node, now).len(), 1);
        assert_eq!(opened.pods.len(), 1);
        let later = now + Duration::from_secs(9);
        assert_eq!(by_node.of("web", later), NodeConnected::default());
    }

    proptest! {
        /// Connections of the node and of others come in any order; the node counts its own before the pod accepts them.
        #[test]
        fn no_probe_counts_and_everybody_else_does(
            steps in proptest::collection::vec((0_u64..3, 0_u64..3, any::<bool>()), 1..80),
        ) {
            let mut opened = Opened::default();
            let (mut made, mut coming, mut accepted, mut others) = (0, 0, 0, 0);
            let mut before = 0;
            for (probes, clients, all_come) in steps {
                // What was under way has come, and some of the new ones are under way still.
                accepted += coming + clients;
                made += probes;
                coming = if all_come { 0 } else { probes };
                accepted += probes - coming;
                others += clients;
                let by_node = NodeConnected { made, open: coming };
                let said = opened.next(accepted, by_node);
                prop_assert!(said >= before && said <= others, "{said} of {others}");
                if coming == 0 {
                    prop_assert_eq!(said, others);
                }
                before = said;
            }
        }
    }
}
