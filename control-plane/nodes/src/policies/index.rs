//! All policies, pods and namespaces, and what follows from them: who is in which set of peers, which pod is isolated
//! by which policies. Pure; a change costs what it affects.
//!
//! - A changed pod is looked up in each distinct selection, and its own isolation is computed anew.
//! - A changed namespace moves its pods in or out of the selections that ask for namespaces by label.
//! - A changed policy fills the selections that nobody had, drops those that nobody has any more, and concerns the
//!   isolation of its own namespace's pods.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use gantry_rpc::node::{NamedPort, PodIsolation};
use imbl::OrdSet;

use super::compile::{Policy, Selection};
use super::delivery::{self, NodeView, PeerSet};
use super::facts::{Labels, PodFacts};

/// Policies with rules that count for one pod: those that come first by name. The others allow it nothing. What isolates
/// a pod without allowing anything is not counted, since nobody has to know of it.
pub(super) const MOST_OF_A_POD: usize = 256;
/// Bytes of rules and peers that one node is told.
const MOST_OF_A_NODE: usize = 32 << 20;

/// Namespace and name.
type PodKey = (String, String);

/// A selection that some policy refers to.
#[derive(Debug)]
struct Selected {
    selection: Selection,
    /// Policies that refer to it.
    users: usize,
    /// How many pods each peer stands for: while one pod takes over an address from another, both have it.
    pods: BTreeMap<(IpAddr, u16), u32>,
    published: OrdSet<(IpAddr, u16)>,
}

impl Selected {
    fn add(&mut self, pod: &PodFacts) {
        let Some(port) = self.selection.takes_pod(pod) else {
            return;
        };
        for address in &pod.addresses {
            let count = self.pods.entry((*address, port)).or_default();
            *count += 1;
            if *count == 1 {
                self.published.insert((*address, port));
            }
        }
    }

    fn remove(&mut self, pod: &PodFacts) {
        let Some(port) = self.selection.takes_pod(pod) else {
            return;
        };
        for address in &pod.addresses {
            let peer = (*address, port);
            let Some(count) = self.pods.get_mut(&peer) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.pods.remove(&peer);
                self.published.remove(&peer);
            }
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    namespaces: BTreeMap<String, Labels>,
    /// By namespace, then name.
    pods: BTreeMap<String, BTreeMap<String, PodFacts>>,
    by_node: BTreeMap<String, BTreeSet<PodKey>>,
    policies: BTreeMap<String, BTreeMap<String, Policy>>,
    selected: BTreeMap<String, Selected>,
    isolation: BTreeMap<PodKey, Arc<PodIsolation>>,
    generation: u64,
}

impl Index {
    /// Grows whenever what some node is told may have changed.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Counts on from an earlier index, of which nobody knows what was different.
    pub(super) fn follow_on(&mut self, generation: u64) {
        self.generation += generation + 1;
    }

    /// A pod as it is now, or that it is gone.
    pub(super) fn set_pod(&mut self, namespace: &str, name: &str, now: Option<PodFacts>) {
        let before = self
            .pods
            .get(namespace)
            .and_then(|pods| pods.get(name))
            .cloned();
        if before == now {
            return;
        }
        let labels = self.namespaces.get(namespace);
        for selected in self.selected.values_mut() {
            if !selected.selection.takes_namespace(namespace, labels) {
                continue;
            }
            let published = selected.published.clone();
            // The new state first: what both have is never missing in between.
            if let Some(pod) = &now {
                selected.add(pod);
            }
            if let Some(pod) = &before {
                selected.remove(pod);
            }
            if !published.ptr_eq(&selected.published) {
                self.generation += 1;
            }
        }
        let key = (namespace.to_owned(), name.to_owned());
        let node = |pod: &Option<PodFacts>| pod.as_ref().and_then(|pod| pod.node.clone());
        let (old_node, new_node) = (node(&before), node(&now));
        if old_node != new_node {
            if let Some(node) = old_node {
                self.leave_node(&node, &key);
            }
            if let Some(node) = new_node {
                self.by_node.entry(node).or_default().insert(key.clone());
            }
            self.generation += 1;
        }
        let pods = self.pods.entry(namespace.to_owned()).or_default();
        match now {
            Some(pod) => {
                pods.insert(name.to_owned(), pod);
            }
            None => {
                pods.remove(name);
                if pods.is_empty() {
                    self.pods.remove(namespace);
                }
            }
        }
        self.isolate(&key);
    }

    fn leave_node(&mut self, node: &str, key: &PodKey) {
        if let Some(pods) = self.by_node.get_mut(node) {
            pods.remove(key);
            if pods.is_empty() {
                self.by_node.remove(node);
            }
        }
    }

    /// A namespace's labels as they are now, or that it is gone.
    pub(super) fn set_namespace(&mut self, name: &str, now: Option<Labels>) {
        let before = match &now {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels.clone()),
            None => self.namespaces.remove(name),
        };
        if before == now {
            return;
        }
        for selected in self.selected.values_mut() {
            let took = selected.selection.takes_namespace(name, before.as_ref());
            let takes = selected.selection.takes_namespace(name, now.as_ref());
            if took == takes {
                continue;
            }
            for pod in self.pods.get(name).into_iter().flat_map(BTreeMap::values) {
                if takes {
                    selected.add(pod);
                } else {
                    selected.remove(pod);
                }
            }
            self.generation += 1;
        }
    }

    /// A policy as it is now, or that it is gone.
    pub(super) fn set_policy(&mut self, namespace: &str, name: &str, now: Option<Policy>) {
        for (id, selection) in now.iter().flat_map(|policy| &policy.selections) {
            self.acquire(id, selection);
        }
        let policies = self.policies.entry(namespace.to_owned()).or_default();
        let before = match now {
            Some(policy) => policies.insert(name.to_owned(), policy),
            None => policies.remove(name),
        };
        if policies.is_empty() {
            self.policies.remove(namespace);
        }
        for (id, _) in before.iter().flat_map(|policy| &policy.selections) {
            self.release(id);
        }
        self.generation += 1;
        let now = self
            .policies
            .get(namespace)
            .and_then(|policies| policies.get(name));
        let concerned = |pod: &PodFacts| {
            let mut both = now.into_iter().chain(&before);
            both.any(|policy| policy.selects(pod))
        };
        let keys: Vec<PodKey> = self
            .pods
            .get(namespace)
            .into_iter()
            .flatten()
            .filter(|(_, pod)| concerned(pod))
            .map(|(name, _)| (namespace.to_owned(), name.clone()))
            .collect();
        for key in keys {
            self.isolate(&key);
        }
    }

    fn acquire(&mut self, id: &str, selection: &Selection) {
        if let Some(selected) = self.selected.get_mut(id) {
            selected.users += 1;
            return;
        }
        let mut selected = Selected {
            selection: selection.clone(),
            users: 1,
            pods: BTreeMap::new(),
            published: OrdSet::new(),
        };
        let namespaces: Vec<&String> = match selection.namespace() {
            Some(own) => self
                .pods
                .get_key_value(own)
                .map(|(name, _)| name)
                .into_iter()
                .collect(),
            None => self.pods.keys().collect(),
        };
        for namespace in namespaces {
            if !selection.takes_namespace(namespace, self.namespaces.get(namespace)) {
                continue;
            }
            for pod in self.pods[namespace].values() {
                selected.add(pod);
            }
        }
        self.selected.insert(id.to_owned(), selected);
    }

    fn release(&mut self, id: &str) {
        let Some(selected) = self.selected.get_mut(id) else {
            return;
        };
        selected.users -= 1;
        if selected.users == 0 {
            self.selected.remove(id);
        }
    }

    /// Computes a pod's isolation anew.
    fn isolate(&mut self, key: &PodKey) {
        let now = self.isolation_of(key);
        if self.isolation.get(key).map(|before| &**before) == now.as_ref() {
            return;
        }
        self.generation += 1;
        match now {
            Some(isolation) => {
                self.isolation.insert(key.clone(), Arc::new(isolation));
            }
            None => {
                self.isolation.remove(key);
            }
        }
    }

    /// A pod whose containers are over stays isolated until it is removed: only its node knows when they are.
    fn isolation_of(&self, key: &PodKey) -> Option<PodIsolation> {
        let (namespace, name) = key;
        let pod = self.pods.get(namespace)?.get(name)?;
        if pod.host_network || pod.node.is_none() {
            return None;
        }
        let policies = self.policies.get(namespace)?;
        let isolates = |direction: fn(&Policy) -> bool| {
            let mut policies = policies.values().filter(|policy| direction(policy));
            policies.any(|policy| policy.selects(pod))
        };
        let (ingress, egress) = (
            isolates(|policy| policy.ingress),
            isolates(|policy| policy.egress),
        );
        if !ingress && !egress {
            return None;
        }
        let mut policies: Vec<&Policy> = policies
            .values()
            .filter(|policy| policy.allows() && policy.selects(pod))
            .take(MOST_OF_A_POD + 1)
            .collect();
        if policies.len() > MOST_OF_A_POD {
            policies.truncate(MOST_OF_A_POD);
            tracing::warn!(
                namespace,
                name,
                "more than {MOST_OF_A_POD} network policies allow the pod something: only the first by name count"
            );
        }
        let named: BTreeSet<(&str, i32, u16)> = policies
            .iter()
            .flat_map(|policy| &policy.named_ports)
            .filter_map(|(name, protocol)| {
                let number = pod.port(name, *protocol)?;
                Some((name.as_str(), i32::from(*protocol), number))
            })
            .collect();
        Some(PodIsolation {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: pod.uid.clone(),
            deleted: false,
            ingress,
            egress,
            policies: policies
                .iter()
                .map(|policy| policy.uid().to_owned())
                .collect(),
            ports: named
                .into_iter()
                .map(|(name, protocol, number)| NamedPort {
                    name: name.to_owned(),
                    protocol,
                    number: number.into(),
                })
                .collect(),
        })
    }

    /// What one node is told: the isolation of its own pods, the rules of the policies that allow them something, and the
    /// peers that those rules refer to. Nothing else of the cluster's policies or pods.
    pub(super) fn view(&self, node: &str) -> NodeView {
        self.view_within(node, MOST_OF_A_NODE)
    }

    /// As [`Index::view`], with a bound on the bytes of rules and peers. The smallest policies find room first, so that
    /// whoever writes large ones pays for them.
    pub(super) fn view_within(&self, node: &str, mut room: usize) -> NodeView {
        let mut view = NodeView::default();
        let mut uids: HashMap<&str, HashSet<&str>> = HashMap::new();
        let mut before: &[String] = &[];
        for key in self.by_node.get(node).into_iter().flatten() {
            let Some(isolation) = self.isolation.get(key) else {
                continue;
            };
            view.pods.insert(isolation.uid.clone(), isolation.clone());
            // Neighbours mostly have the same.
            if *before != *isolation.policies {
                let known = uids.entry(&key.0).or_default();
                known.extend(isolation.policies.iter().map(String::as_str));
                before = &isolation.policies;
            }
        }
        let mut policies: Vec<(usize, &Policy)> = Vec::new();
        for (namespace, uids) in uids {
            let all = self.policies.get(namespace).into_iter().flatten();
            let theirs = all.filter(|(_, policy)| uids.contains(policy.uid()));
            policies.extend(theirs.map(|(_, policy)| (self.length(policy), policy)));
        }
        policies.sort_unstable_by(|(length, policy), (other_length, other)| {
            (length, policy.uid()).cmp(&(other_length, other.uid()))
        });
        for (_, policy) in policies {
            let uid = policy.uid().to_owned();
            let new = policy
                .selections
                .iter()
                .filter(|(id, _)| !view.peers.contains_key(id));
            let new: Vec<&(String, Selection)> = new.collect();
            let peers: usize = new.iter().map(|(id, _)| self.peers_length(id)).sum();
            let needed = policy.length.saturating_add(peers);
            if needed > room {
                view.policies.insert(uid.clone(), policy.without_rules());
                view.without_room.insert(uid);
                continue;
            }
            room -= needed;
            view.policies.insert(uid, policy.rules.clone());
            for (id, selection) in new {
                if let Some(selected) = self.selected.get(id) {
                    let peers = PeerSet {
                        with_ports: selection.with_ports(),
                        peers: selected.published.clone(),
                    };
                    view.peers.insert(id.clone(), peers);
                }
            }
        }
        view
    }

    /// Bytes of a policy with all its peers as they travel, at most.
    fn length(&self, policy: &Policy) -> usize {
        let peers = policy
            .selections
            .iter()
            .map(|(id, _)| self.peers_length(id));
        peers.fold(policy.length, usize::saturating_add)
    }

    fn peers_length(&self, id: &str) -> usize {
        let peers = self
            .selected
            .get(id)
            .map_or(0, |selected| selected.published.len());
        id.len()
            .saturating_add(peers.saturating_mul(delivery::PEER))
    }
}
