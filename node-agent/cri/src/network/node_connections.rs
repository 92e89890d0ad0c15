//! [`NodeConnections`]: the connections that the node makes to its pods of its own accord.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A pod that is slow to close a connection which the node has closed still has it for so long.
const CLOSING: Duration = Duration::from_millis(100);

/// Connections of one pod.
#[derive(Debug, Default)]
struct Count {
    made: u64,
    open: u64,
    /// When the latest have ended, oldest first.
    ended: VecDeque<Instant>,
}

impl Count {
    fn forget_ended(&mut self, now: Instant) {
        let is_over = |at: &Instant| now.saturating_duration_since(*at) > CLOSING;
        while self.ended.front().is_some_and(is_over) {
            self.ended.pop_front();
        }
    }
}

/// How many connections the node has made to a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeConnected {
    /// Since the pod was first asked about or connected to, those under way included. Falls by those that come to nothing.
    pub made: u64,
    /// Those that the pod may have open now.
    pub open: u64,
}

/// Counts the connections that the node makes to its pods of its own accord (probes, hooks, scrapes): nobody uses the pod for
/// it. They are counted before they are made, so that a pod never has accepted one that is not counted here.
#[derive(Debug, Default)]
pub struct NodeConnections {
    pods: Mutex<HashMap<String, Count>>,
}

impl NodeConnections {
    /// The node is about to connect to a pod.
    pub fn begin(self: &Arc<Self>, pod_uid: &str) -> NodeConnection {
        let mut pods = self.pods.lock();
        let count = pods.entry(pod_uid.to_owned()).or_default();
        count.made += 1;
        count.open += 1;
        NodeConnection {
            of: self.clone(),
            pod_uid: pod_uid.to_owned(),
            is_connected: false,
        }
    }

    /// Those of a pod.
    pub fn of(&self, pod_uid: &str, now: Instant) -> NodeConnected {
        let mut pods = self.pods.lock();
        let Some(count) = pods.get_mut(pod_uid) else {
            return NodeConnected::default();
        };
        count.forget_ended(now);
        let ended = u64::try_from(count.ended.len()).unwrap_or(u64::MAX);
        NodeConnected {
            made: count.made,
            open: count.open.saturating_add(ended),
        }
    }

    /// Forgets all pods but those, and those that it is connected to.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let mut pods = self.pods.lock();
        pods.retain(|uid, count| count.open > 0 || is_there(uid));
    }
}

/// One connection: to be kept for as long as it is open. One that is dropped before it was [`connected`](Self::connected) has
/// come to nothing.
#[derive(Debug)]
pub struct NodeConnection {
    of: Arc<NodeConnections>,
    pod_uid: String,
    is_connected: bool,
}

impl NodeConnection {
    /// The pod has taken it.
    pub fn connected(&mut self) {
        self.is_connected = true;
    }
}

impl Drop for NodeConnection {
    fn drop(&mut self) {
        let mut pods = self.of.pods.lock();
        let Some(count) = pods.get_mut(&self.pod_uid) else {
            return;
        };
        count.open = count.open.saturating_sub(1);
        match self.is_connected {
            true => {
                let now = Instant::now();
                count.forget_ended(now);
                count.ended.push_back(now);
            }
            false => count.made = count.made.saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_from_before_it_is_made_until_it_has_surely_ended() {
        let counted = Arc::new(NodeConnections::default());
        let of = |uid: &str, later: Duration| {
            let count = counted.of(uid, Instant::now() + later);
            (count.made, count.open)
        };
        assert_eq!(of("web", Duration::ZERO), (0, 0));
        let mut connection = counted.begin("web");
        assert_eq!(of("web", Duration::ZERO), (1, 1));
        connection.connected();
        drop(connection);
        assert_eq!(
            of("web", Duration::ZERO),
            (1, 1),
            "the pod may not have closed it"
        );
        assert_eq!(of("web", 2 * CLOSING), (1, 0));
        drop(counted.begin("web"));
        assert_eq!(of("web", Duration::ZERO), (1, 0), "nobody has taken it");
        assert_eq!(of("db", Duration::ZERO), (0, 0));
    }

    #[test]
    fn pods_that_are_gone_leave_nothing() {
        let counted = Arc::new(NodeConnections::default());
        let connections = ["web", "db"].map(|uid| counted.begin(uid));
        counted.retain(|_| false);
        assert_eq!(counted.pods.lock().len(), 2, "they are connected to");
        drop(connections);
        counted.retain(|uid| uid == "db");
        assert_eq!(counted.pods.lock().len(), 1);
        assert_eq!(counted.of("web", Instant::now()), NodeConnected::default());
    }
}
