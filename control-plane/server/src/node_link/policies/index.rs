//! All policies, pods and namespaces, and what follows from them: who is in which set of peers, which pod is isolated
//! by which policies. Pure; a change costs what it affects.
//!
//! - A changed pod is looked up in each distinct selection, and its own isolation is computed anew.
//! - A changed namespace moves its pods in or out of the selections that ask for namespaces by label.
//! - A changed policy fills the selections that nobody had, drops those that nobody has any more, and concerns the
//!   isolation of its own namespace's pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use gantry_rpc::node::{NamedPort, PodIsolation};
use imbl::OrdSet;

use super::compile::{Policy, Selection};
use super::delivery::{NodeView, PeerSet};
use super::facts::{Labels, PodFacts};

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
        for selection in now.iter().flat_map(|policy| &policy.selections) {
            self.acquire(selection);
        }
        let policies = self.policies.entry(namespace.to_owned()).or_default();
        let before = match now {
            Some(policy) => policies.insert(name.to_owned(), policy),
            None => policies.remove(name),
        };
        if policies.is_empty() {
            self.policies.remove(namespace);
        }
        for selection in before.iter().flat_map(|policy| &policy.selections) {
            self.release(&selection.id());
        }
        self.generation += 1;
        let pods = self
            .pods
            .get(namespace)
            .into_iter()
            .flat_map(BTreeMap::keys);
        let keys: Vec<PodKey> = pods
            .map(|pod| (namespace.to_owned(), pod.clone()))
            .collect();
        for key in keys {
            self.isolate(&key);
        }
    }

    fn acquire(&mut self, selection: &Selection) {
        let id = selection.id();
        if let Some(selected) = self.selected.get_mut(&id) {
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
        self.selected.insert(id, selected);
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
        let policies: Vec<&Policy> = self
            .policies
            .get(namespace)?
            .values()
            .filter(|policy| policy.selects(pod))
            .collect();
        if policies.is_empty() {
            return None;
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
            ingress: policies.iter().any(|policy| policy.ingress),
            egress: policies.iter().any(|policy| policy.egress),
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

    /// What one node is told: the isolation of its own pods, the rules of the policies that isolate them, and the peers
    /// that those rules refer to. Nothing else of the cluster's policies or pods.
    pub(super) fn view(&self, node: &str) -> NodeView {
        let mut view = NodeView::default();
        for key in self.by_node.get(node).into_iter().flatten() {
            let Some(isolation) = self.isolation.get(key) else {
                continue;
            };
            view.pods.insert(isolation.uid.clone(), isolation.clone());
            let policies = self
                .policies
                .get(&key.0)
                .into_iter()
                .flat_map(BTreeMap::values);
            for policy in
                policies.filter(|policy| isolation.policies.iter().any(|uid| uid == policy.uid()))
            {
                if view
                    .policies
                    .insert(policy.uid().to_owned(), policy.rules.clone())
                    .is_some()
                {
                    continue;
                }
                for selection in &policy.selections {
                    let id = selection.id();
                    if let Some(selected) = self.selected.get(&id) {
                        let peers = PeerSet {
                            with_ports: selection.with_ports(),
                            peers: selected.published.clone(),
                        };
                        view.peers.insert(id, peers);
                    }
                }
            }
        }
        view
    }
}
