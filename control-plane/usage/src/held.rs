//! Connections that nodes hold to Services: by node, and from a Service to the nodes that hold any to it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::sample::ServiceName;

/// What nodes hold, each as it said last.
#[derive(Default)]
pub(crate) struct Held {
    by_service: HashMap<ServiceName, HashSet<Arc<str>>>,
    by_node: HashMap<Arc<str>, HashMap<ServiceName, u64>>,
}

impl Held {
    /// All that a node holds now, in place of what it held before. Costs what it held and what it holds.
    pub(crate) fn take(&mut self, node: &Arc<str>, held: HashMap<ServiceName, u64>) {
        let before = self.by_node.remove(node).unwrap_or_default();
        for service in before.keys().filter(|service| !held.contains_key(service)) {
            if let Some(nodes) = self.by_service.get_mut(service) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.by_service.remove(service);
                }
            }
        }
        for service in held.keys() {
            let nodes = self.by_service.entry(service.clone()).or_default();
            nodes.insert(node.clone());
        }
        if !held.is_empty() {
            self.by_node.insert(node.clone(), held);
        }
    }

    /// How many connections the nodes that count hold to a Service together.
    pub(crate) fn of(&self, service: &ServiceName, counts: impl Fn(&str) -> bool) -> u64 {
        let nodes = self.by_service.get(service).into_iter().flatten();
        nodes
            .filter(|node| counts(node))
            .filter_map(|node| self.by_node.get(node)?.get(service))
            .fold(0, |sum, held| sum.saturating_add(*held))
    }

    /// Forgets what all nodes hold.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceName {
        ServiceName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn what_nodes_hold_is_added_up_and_what_they_let_go_is_forgotten() {
        let (mut held, one, two) = (Held::default(), Arc::from("one"), Arc::from("two"));
        let of = |held: &Held, name: &str| held.of(&service(name), |_| true);
        held.take(&one, [(service("a"), 2), (service("b"), 1)].into());
        held.take(&two, [(service("a"), 40)].into());
        assert_eq!((of(&held, "a"), of(&held, "b"), of(&held, "c")), (42, 1, 0));
        assert_eq!(held.of(&service("a"), |node| node == "two"), 40);
        held.take(&one, [(service("a"), 3)].into());
        assert_eq!((of(&held, "a"), of(&held, "b")), (43, 0));
        held.take(&two, [(service("a"), u64::MAX)].into());
        assert_eq!(of(&held, "a"), u64::MAX);
        for node in [&one, &two] {
            held.take(node, HashMap::new());
        }
        assert!(held.by_service.is_empty() && held.by_node.is_empty());
    }
}
