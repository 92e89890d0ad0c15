//! The nodes, and what is promised of them: kept up to date change by change, never rebuilt.
//!
//! Invariant: a node's sums are exactly those of the pods assigned to it here. A pod counts from the moment its node is
//! chosen, before the binding is answered, so that two pods never get the same room.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gantry_base::node_affinity::Labels;
use gantry_informer::Key;
use k8s_openapi::api::core::v1::{Node, Taint};

use crate::census::{ByNode, Census, Question, Tally};
use crate::pod::{HostPort, PodInfo};
use crate::resources::{Resources, pod_limit};
use crate::selection::{Namespaces, PodTerm};

/// What the pods of one priority take of a node.
#[derive(Clone, Debug, Default)]
struct Share {
    pods: usize,
    requested: Resources,
}

/// A node and its sums.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeInfo {
    pub(crate) name: Arc<str>,
    /// Whether the node itself is known: pods may be bound to one that is not, yet or any more.
    pub(crate) present: bool,
    pub(crate) labels: Labels,
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
    pub(crate) allocatable: Resources,
    pub(crate) pod_limit: i64,
    /// Size of each image it has, by name.
    pub(crate) images: HashMap<String, i64>,
    pub(crate) requested: Resources,
    pub(crate) weight_cpu: i64,
    pub(crate) weight_memory: i64,
    pub(crate) host_ports: Vec<(Arc<str>, HostPort)>,
    pub(crate) pods: HashMap<Arc<str>, Arc<PodInfo>>,
    /// What they take, by their priority; most nodes have few.
    shares: BTreeMap<i32, Share>,
}

impl NodeInfo {
    fn set(&mut self, node: &Node) {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.clone().unwrap_or_default();
        self.present = true;
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        self.taints = spec.taints.unwrap_or_default();
        self.unschedulable = spec.unschedulable.unwrap_or(false);
        self.allocatable = Resources::from_list(status.allocatable.as_ref());
        self.pod_limit = pod_limit(status.allocatable.as_ref());
        self.images = status
            .images
            .into_iter()
            .flatten()
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image
                    .names
                    .into_iter()
                    .flatten()
                    .map(move |name| (name, size))
            })
            .collect();
    }

    /// What pods of this priority and above take, and how many they are.
    pub(crate) fn taken_from(&self, priority: i32) -> (Resources, usize) {
        let (mut requested, mut pods) = (Resources::default(), 0);
        for share in self.shares.range(priority..).map(|(_, share)| share) {
            requested.add(&share.requested);
            pods += share.pods;
        }
        (requested, pods)
    }

    /// Whether it has pods of a lower priority than this.
    pub(crate) fn has_below(&self, priority: i32) -> bool {
        let lowest = self.shares.first_key_value();
        lowest.is_some_and(|(lowest, _)| *lowest < priority)
    }

    pub(crate) fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        let share = self.shares.entry(pod.priority).or_default();
        share.requested.add(&pod.requests);
        share.pods += 1;
        self.weight_cpu = self.weight_cpu.saturating_add(pod.weight_cpu);
        self.weight_memory = self.weight_memory.saturating_add(pod.weight_memory);
        let ports = pod.host_ports.iter().cloned();
        self.host_ports
            .extend(ports.map(|port| (pod.uid.clone(), port)));
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub(crate) fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        if let Some(share) = self.shares.get_mut(&pod.priority) {
            share.requested.subtract(&pod.requests);
            share.pods -= 1;
            if share.pods == 0 {
                self.shares.remove(&pod.priority);
            }
        }
        self.weight_cpu = self.weight_cpu.saturating_sub(pod.weight_cpu);
        self.weight_memory = self.weight_memory.saturating_sub(pod.weight_memory);
        self.host_ports.retain(|(owner, _)| **owner != *uid);
        Some(pod)
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<Arc<str>, usize>,
    /// Where each assigned pod is.
    assigned: HashMap<Arc<str>, Arc<str>>,
    /// On how many nodes each image is.
    spread: HashMap<String, usize>,
    present: usize,
    /// The assigned pods, as they ask for each other.
    census: Census,
    namespaces: Namespaces,
    /// How many assigned pods name each claim, but for those that were made for one pod.
    claims: HashMap<Key, usize>,
}

/// The claims of a pod that others may name too.
fn shared_claims(pod: &PodInfo) -> impl Iterator<Item = &Key> {
    let claims = pod.claims.iter().filter(|claim| !claim.is_pods_own);
    claims.map(|claim| &claim.key)
}

impl Snapshot {
    /// All nodes, also those that only pods tell of.
    pub(crate) fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    /// A node that is known, by its name.
    pub(crate) fn node(&self, name: &str) -> Option<&NodeInfo> {
        let at = self.by_name.get(name)?;
        self.nodes.get(*at).filter(|node| node.present)
    }

    /// Where a node that is known is among all.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        let at = *self.by_name.get(name)?;
        self.nodes[at].present.then_some(at)
    }

    /// The namespaces with their labels.
    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// A namespace that came or changed. Whether its labels did.
    pub(crate) fn set_namespace(&mut self, name: &str, labels: Labels) -> bool {
        if self.namespaces.get(name) == Some(&labels) {
            return false;
        }
        self.namespaces.insert(name.into(), labels);
        true
    }

    /// A namespace that went.
    pub(crate) fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Finds out what the questions ask, unless that is known, for as long as they are the last that were asked.
    pub(crate) fn ask(&mut self, questions: Vec<Question>) {
        self.census.begin_cycle();
        for question in questions {
            if self.census.ask(&question) {
                continue;
            }
            let uids = self.census.candidates(&question);
            let pods = uids.iter().filter_map(|uid| {
                let node = self.assigned.get(uid)?;
                let info = self.nodes.get(*self.by_name.get(node)?)?;
                Some((&**info.pods.get(uid)?, node))
            });
            self.census.learn(question, pods);
        }
    }

    /// How many pods a question that was asked is about, on each node.
    pub(crate) fn answer(&self, question: &Question) -> Option<&ByNode> {
        self.census.answer(question)
    }

    /// The terms of assigned pods that may be about this one, with what those of each node say of it.
    pub(crate) fn stated<'a>(
        &'a self,
        pod: &'a PodInfo,
    ) -> impl Iterator<Item = (&'a PodTerm, &'a HashMap<Arc<str>, Tally>)> {
        self.census.stated(pod)
    }

    /// Whether an assigned pod names the claim, which was not made for it alone.
    pub(crate) fn is_claim_used(&self, claim: &Key) -> bool {
        self.claims.contains_key(claim)
    }

    /// How many nodes are known.
    pub(crate) fn len(&self) -> usize {
        self.present
    }

    /// On how many nodes the image is.
    pub(crate) fn image_spread(&self, image: &str) -> usize {
        self.spread.get(image).copied().unwrap_or(0)
    }

    fn entry(&mut self, name: &str) -> &mut NodeInfo {
        let at = match self.by_name.get(name) {
            Some(at) => *at,
            None => {
                let name: Arc<str> = name.into();
                self.nodes.push(NodeInfo {
                    name: name.clone(),
                    ..NodeInfo::default()
                });
                self.by_name.insert(name, self.nodes.len() - 1);
                self.nodes.len() - 1
            }
        };
        &mut self.nodes[at]
    }

    /// A node that came or changed; whether in a way by which more pods may fit.
    pub(crate) fn set_node(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.forget_images(name);
        let info = self.entry(name);
        let new = !info.present;
        let offer = |info: &NodeInfo| {
            let taints: Vec<_> = info
                .taints
                .iter()
                .map(|taint| (taint.key.clone(), taint.effect.clone()))
                .collect();
            (
                info.labels.clone(),
                taints,
                info.unschedulable,
                info.allocatable.clone(),
                info.pod_limit,
            )
        };
        let before = offer(info);
        info.set(node);
        let changed = new || before != offer(info);
        let images: Vec<String> = info.images.keys().cloned().collect();
        for image in images {
            *self.spread.entry(image).or_default() += 1;
        }
        self.present += usize::from(new);
        changed
    }

    /// A node that went. Its pods stay counted, for the case that it comes back.
    pub(crate) fn remove_node(&mut self, name: &str) {
        self.forget_images(name);
        let info = self.entry(name);
        let was = info.present;
        info.present = false;
        info.images.clear();
        self.present -= usize::from(was);
        self.drop_if_void(name);
    }

    fn forget_images(&mut self, name: &str) {
        let Some(at) = self.by_name.get(name) else {
            return;
        };
        for image in self.nodes[*at].images.keys() {
            if let Some(count) = self.spread.get_mut(image) {
                *count -= 1;
                if *count == 0 {
                    self.spread.remove(image);
                }
            }
        }
    }

    fn drop_if_void(&mut self, name: &str) {
        let Some(at) = self.by_name.get(name).copied() else {
            return;
        };
        if self.nodes[at].present || !self.nodes[at].pods.is_empty() {
            return;
        }
        self.nodes.swap_remove(at);
        self.by_name.remove(name);
        if let Some(moved) = self.nodes.get(at) {
            self.by_name.insert(moved.name.clone(), at);
        }
    }

    /// Counts the pod on the node; when it was on another, or was different, no longer there.
    pub(crate) fn assign(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.unassign(&pod.uid);
        let uid = pod.uid.clone();
        for claim in shared_claims(&pod) {
            *self.claims.entry(claim.clone()).or_default() += 1;
        }
        let info = self.entry(node);
        info.add(pod.clone());
        let name = info.name.clone();
        self.census.add(&pod, &name);
        self.assigned.insert(uid, name);
    }

    /// The pod no longer counts. Whether it did.
    pub(crate) fn unassign(&mut self, uid: &str) -> bool {
        let Some(node) = self.assigned.remove(uid) else {
            return false;
        };
        if let Some(pod) = self.entry(&node).remove(uid) {
            self.census.remove(&pod, &node);
            for claim in shared_claims(&pod) {
                if let Some(count) = self.claims.get_mut(claim) {
                    *count -= 1;
                    if *count == 0 {
                        self.claims.remove(claim);
                    }
                }
            }
        }
        self.drop_if_void(&node);
        true
    }

    /// The pod no longer counts, unless it is known to be bound. As it was when last heard of.
    pub(crate) fn take_back(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.known(uid).filter(|pod| pod.node.is_none()).cloned()?;
        self.unassign(uid);
        Some(pod)
    }

    /// Newer news of a pod that counts on a node, though they do not tell that it is bound.
    pub(crate) fn renew(&mut self, pod: Arc<PodInfo>) {
        if self
            .known(&pod.uid)
            .is_none_or(|known| known.node.is_some())
        {
            return;
        }
        if let Some(node) = self.assigned.get(&pod.uid).cloned() {
            self.assign(pod, &node);
        }
    }

    /// A pod that counts on some node.
    fn known(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        let at = *self.by_name.get(self.assigned.get(uid)?)?;
        self.nodes.get(at)?.pods.get(uid)
    }

    /// Whether the pod counts on some node, and other pods see nothing new in it.
    pub(crate) fn looks_same(&self, pod: &PodInfo) -> bool {
        let known = self.known(&pod.uid);
        known.is_some_and(|known| known.labels == pod.labels && known.deleting == pod.deleting)
    }

    /// Whether the pod counts on some node, and leaves room there now: it asks for less, or is bound to another.
    pub(crate) fn leaves_room(&self, pod: &PodInfo) -> bool {
        let Some((known, counted)) = self.known(&pod.uid).zip(self.assigned.get(&pod.uid)) else {
            return false;
        };
        let is_elsewhere = pod.node.as_ref().is_some_and(|node| node != counted);
        is_elsewhere || known.requests.exceeds(&pod.requests)
    }

    /// Whether the pod counts on some node.
    pub(crate) fn is_assigned(&self, uid: &str) -> bool {
        self.assigned.contains_key(uid)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use gantry_base::selector::LabelSelector;
    use k8s_openapi::api::core::v1::{
        Container, ContainerImage, ContainerPort, NodeSpec, NodeStatus, Pod, PodSpec,
        ResourceRequirements,
    };
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use proptest::prelude::*;

    use super::*;
    use crate::selection::Selection;

    /// A node with that much room.
    pub(crate) fn node(name: &str, cpu: &str, memory: &str) -> Node {
        let list = [("cpu", cpu), ("memory", memory), ("pods", "110")]
            .map(|(key, value)| (key.to_owned(), Quantity(value.to_owned())));
        Node {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some([("zone".to_owned(), format!("zone-of-{name}"))].into()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec::default()),
            status: Some(NodeStatus {
                allocatable: Some(list.into()),
                images: Some(vec![ContainerImage {
                    names: Some(vec![format!("image-on-{name}:1")]),
                    size_bytes: Some(500 * 1024 * 1024),
                }]),
                ..NodeStatus::default()
            }),
        }
    }

    /// A pod that asks for that much.
    pub(crate) fn pod(uid: &str, cpu: &str, memory: &str) -> Pod {
        let list = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), Quantity(value.to_owned())));
        Pod {
            metadata: ObjectMeta {
                name: Some(uid.to_owned()),
                namespace: Some("ns".to_owned()),
                uid: Some(uid.to_owned()),
                generation: Some(1),
                ..ObjectMeta::default()
            },
            spec: Some(PodSpec {
                containers: vec![Container {
                    image: Some("x:1".to_owned()),
                    resources: Some(ResourceRequirements {
                        requests: Some(list.collect()),
                        ..ResourceRequirements::default()
                    }),
                    ports: Some(vec![ContainerPort {
                        container_port: 1,
                        ..ContainerPort::default()
                    }]),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
            status: None,
        }
    }

    fn heard(cpu: &str, node: Option<&str>) -> Arc<PodInfo> {
        let mut pod = pod("p", cpu, "");
        pod.spec.get_or_insert_default().node_name = node.map(str::to_owned);
        Arc::new(PodInfo::new(&pod))
    }

    #[test]
    fn a_pod_that_is_bound_stays_though_an_answer_says_later_that_it_could_not_be() {
        let mut snapshot = Snapshot::default();
        snapshot.assign(heard("1", None), "n0");
        // By another, or by a request whose answer was lost.
        snapshot.assign(heard("1", Some("n1")), "n1");
        snapshot.renew(heard("2", None));
        assert!(snapshot.take_back("p").is_none());
        let on = |snapshot: &Snapshot| snapshot.assigned.get("p").cloned();
        assert_eq!(on(&snapshot), Some("n1".into()));
        assert_eq!(snapshot.nodes()[0].requested.milli_cpu, 1000);
    }

    #[test]
    fn a_pod_that_could_not_be_bound_is_tried_again_as_it_has_become() {
        let mut snapshot = Snapshot::default();
        snapshot.renew(heard("1", None));
        assert!(!snapshot.is_assigned("p"), "it was not there");
        snapshot.assign(heard("1", None), "n0");
        snapshot.renew(heard("2", None));
        assert_eq!(snapshot.nodes()[0].requested.milli_cpu, 2000);
        let pod = snapshot.take_back("p").expect("it was being bound");
        assert_eq!(pod.requests.milli_cpu, 2000);
        assert!(!snapshot.is_assigned("p"));
        assert!(snapshot.take_back("p").is_none());
    }

    #[test]
    fn a_pod_that_asks_for_less_or_is_elsewhere_leaves_room() {
        let mut snapshot = Snapshot::default();
        assert!(!snapshot.leaves_room(&heard("1", Some("n0"))));
        snapshot.assign(heard("2", None), "n0");
        for (cpu, node, leaves) in [
            ("3", Some("n0"), false),
            ("2", Some("n0"), false),
            ("2", None, false),
            ("1", Some("n0"), true),
            ("", None, true),
            ("2", Some("n1"), true),
        ] {
            let pod = heard(cpu, node);
            assert_eq!(snapshot.leaves_room(&pod), leaves, "{cpu} {node:?}");
        }
    }

    proptest! {
        /// However nodes and pods come and go, a node's sums are those of its pods.
        #[test]
        fn sums_are_those_of_the_pods(steps in prop::collection::vec((0u8..5, 0usize..6, 0usize..3, 1i64..500), 1..80)) {
            let mut snapshot = Snapshot::default();
            for (step, pod_at, node_at, cpu) in steps {
                let name = format!("n{node_at}");
                let uid = format!("p{pod_at}");
                match step {
                    0 => {
                        snapshot.set_node(&node(&name, "8", "16Gi"));
                    }
                    1 => snapshot.remove_node(&name),
                    2 => {
                        snapshot.unassign(&uid);
                    }
                    _ => snapshot.assign(Arc::new(PodInfo::new(&pod(&uid, &format!("{cpu}m"), ""))), &name),
                }
            }
            let mut present = 0;
            for (at, info) in snapshot.nodes().iter().enumerate() {
                let cpu: i64 = info.pods.values().map(|pod| pod.requests.milli_cpu).sum();
                prop_assert_eq!(cpu, info.requested.milli_cpu);
                let (taken, pods) = info.taken_from(i32::MIN);
                prop_assert_eq!((cpu, info.pods.len()), (taken.milli_cpu, pods));
                prop_assert!(info.present || !info.pods.is_empty());
                prop_assert_eq!(snapshot.by_name.get(&info.name), Some(&at));
                present += usize::from(info.present);
                for uid in info.pods.keys() {
                    prop_assert_eq!(snapshot.assigned.get(uid), Some(&info.name));
                }
            }
            prop_assert_eq!(present, snapshot.len());
            for info in snapshot.nodes().iter().filter(|info| info.present) {
                let image = format!("image-on-{}:1", info.name);
                prop_assert_eq!(snapshot.image_spread(&image), 1);
            }
        }

        /// However pods come and go, what was asked of them is what counting them all gives.
        #[test]
        fn answers_are_what_counting_gives(steps in prop::collection::vec((0u8..4, 0usize..6, 0usize..3, 0usize..2), 1..60)) {
            let selector = LabelSelector::parse("app=a0").expect("a selector");
            let question = Question::Staying(Selection::within(&"ns".into(), &selector));
            let mut snapshot = Snapshot::default();
            for (step, pod_at, node_at, app) in steps {
                let uid = format!("p{pod_at}");
                match step {
                    0 => snapshot.ask(vec![question.clone()]),
                    1 => {
                        snapshot.unassign(&uid);
                    }
                    _ => {
                        let mut pod = pod(&uid, "", "");
                        pod.metadata.labels = Some([("app".to_owned(), format!("a{app}"))].into());
                        snapshot.assign(Arc::new(PodInfo::new(&pod)), &format!("n{node_at}"));
                    }
                }
            }
            snapshot.ask(vec![question.clone()]);
            let mut counted = ByNode::new();
            for info in snapshot.nodes() {
                let is_counted = |pod: &&Arc<PodInfo>| selector.matches_map(Some(&pod.labels));
                let count = info.pods.values().filter(is_counted).count();
                if count > 0 {
                    counted.insert(info.name.clone(), i64::try_from(count).expect("few"));
                }
            }
            prop_assert_eq!(snapshot.answer(&question), Some(&counted));
        }
    }
}
