//! The index against a fresh one, what travels against what is meant, and a feed against the store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use gantry_rpc::node as rpc;
use gantry_store::{Key, Operation, Transaction};
use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

use super::index::MOST_OF_A_POD;
use super::truth_table::{place, world};
use super::*;

/// What a node makes of the messages it is sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    pub(super) pods: BTreeMap<String, rpc::PodIsolation>,
    pub(super) policies: BTreeMap<String, rpc::PolicyRules>,
    pub(super) peers: BTreeMap<String, BTreeSet<(IpAddr, u32)>>,
}

fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    }
}

impl Told {
    pub(super) fn take(&mut self, pieces: Vec<PolicyChange>) {
        for (index, change) in pieces.iter().enumerate() {
            assert_eq!(change.more, index + 1 < pieces.len());
            if change.snapshot {
                assert_eq!(index, 0);
                *self = Self::default();
            }
            for set in &change.peers {
                if set.deleted {
                    self.peers.remove(&set.id).expect("only what is there goes");
                    continue;
                }
                let peers = self.peers.entry(set.id.clone()).or_default();
                for peer in &set.removed {
                    assert!(peers.remove(&(address(&peer.address), peer.port)));
                }
                for peer in &set.added {
                    assert!(peers.insert((address(&peer.address), peer.port)));
                }
            }
            for policy in &change.policies {
                match policy.deleted {
                    true => drop(self.policies.remove(&policy.uid).expect("known")),
                    false => drop(self.policies.insert(policy.uid.clone(), policy.clone())),
                }
            }
            for pod in &change.pods {
                match pod.deleted {
                    true => drop(self.pods.remove(&pod.uid).expect("known")),
                    false => drop(self.pods.insert(pod.uid.clone(), pod.clone())),
                }
            }
        }
        self.is_whole();
    }

    /// Whatever is referred to is there, and nothing else is.
    fn is_whole(&self) {
        let named: BTreeSet<&String> = self.pods.values().flat_map(|pod| &pod.policies).collect();
        assert_eq!(named, self.policies.keys().collect());
        let rules = self
            .policies
            .values()
            .flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
        let named: BTreeSet<&String> = rules.flat_map(|rule| &rule.peers).collect();
        assert_eq!(named, self.peers.keys().collect());
    }
}

pub(super) fn pod_json(
    id: &str,
    app: &str,
    node: &str,
    http: u16,
    address: Option<String>,
) -> Value {
    let (namespace, name) = id.split_once('/').unwrap();
    let ips: Vec<Value> = address.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"namespace": namespace, "name": name, "uid": id.replace('/', "-"), "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": http}]}]},
        "status": {"phase": "Running", "podIPs": ips},
    })
}

pub(super) fn compiled(namespace: &str, name: &str, spec: &Value) -> Policy {
    let policy = json!({"metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}")}, "spec": spec});
    Policy::compile(&serde_json::from_value(policy).unwrap())
}

pub(super) fn facts(pod: &Value) -> PodFacts {
    PodFacts::parse(pod.to_string().as_bytes()).unwrap()
}

#[test]
fn a_node_is_told_of_its_own_pods_policies_and_of_nothing_else() {
    let mut index = world(&place);
    let spec = json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [{"podSelector": {}}]}]});
    index.set_policy("shop", "db", Some(compiled("shop", "db", &spec)));
    assert_eq!(
        index.view("n0"),
        NodeView::default(),
        "shop/db is on the other node"
    );
    let view = index.view("n1");
    assert_eq!(view.pods.keys().collect::<Vec<_>>(), ["shop-db"]);
    assert_eq!((view.policies.len(), view.peers.len()), (1, 1));
    index.set_pod("shop", "db", None);
    assert_eq!(index.view("n1"), NodeView::default());
}

#[test]
fn an_address_that_a_pod_hands_on_stays_until_the_last_has_gone() {
    let mut index = world(&place);
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "job"}}}]}]});
    index.set_policy("shop", "jobs", Some(compiled("shop", "jobs", &spec)));
    let peers = |index: &Index| index.view("n0").peers.values().next().unwrap().peers.len();
    let ip = || Some("10.244.1.77".to_owned());
    index.set_pod(
        "shop",
        "old",
        Some(facts(&pod_json("shop/old", "job", "n1", 1, ip()))),
    );
    index.set_pod(
        "shop",
        "new",
        Some(facts(&pod_json("shop/new", "job", "n1", 1, ip()))),
    );
    assert_eq!(peers(&index), 1);
    let mut over = pod_json("shop/old", "job", "n1", 1, ip());
    over["status"]["phase"] = json!("Succeeded");
    index.set_pod("shop", "old", Some(facts(&over)));
    assert_eq!(peers(&index), 1);
    index.set_pod("shop", "new", None);
    assert_eq!(peers(&index), 0, "a pod that is over is no peer");
    assert!(
        index.view("n1").pods.contains_key("shop-old"),
        "but it stays isolated until its node has removed it"
    );
}

#[test]
fn pods_with_the_nodes_network_are_neither_isolated_nor_peers() {
    let mut index = world(&place);
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    index.set_policy("lab", "all", Some(compiled("lab", "all", &spec)));
    let mut pod = pod_json("lab/host", "probe", "n1", 1, Some("192.0.2.1".to_owned()));
    pod["spec"]["hostNetwork"] = json!(true);
    index.set_pod("lab", "host", Some(facts(&pod)));
    let view = index.view("n1");
    assert_eq!(view.pods.keys().collect::<Vec<_>>(), ["lab-probe"]);
    assert_eq!(view.peers.values().next().unwrap().peers.len(), 1);
}

#[test]
fn what_concerns_nobody_is_no_news() {
    let mut index = world(&place);
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    index.set_policy("shop", "all", Some(compiled("shop", "all", &spec)));
    let before = index.generation();
    let mut pod = pod_json("shop/web", "web", "n0", 80, Some(place("shop/web")));
    pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    index.set_pod("shop", "web", Some(facts(&pod)));
    let labels = BTreeMap::from([("team".to_owned(), "green".to_owned())]);
    index.set_namespace("bank", Some(labels));
    assert_eq!(index.generation(), before);
    index.set_pod(
        "shop",
        "other",
        Some(facts(&pod_json(
            "shop/other",
            "x",
            "n9",
            1,
            Some("10.244.9.9".to_owned()),
        ))),
    );
    assert!(index.generation() > before);
}

#[test]
fn rules_about_kube_dns_are_about_the_clusters_dns() {
    let dns = IpAddr::from([10, 96, 0, 10]);
    let mut index = world(&place);
    let labels = [("kubernetes.io/metadata.name", "kube-system")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    index.set_namespace("kube-system", Some(labels.into()));
    index.set_pod(DNS.0, DNS.1, Some(PodFacts::dns(dns)));
    let system = json!({"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}});
    let kube_dns = json!({"matchLabels": {"k8s-app": "kube-dns"}});
    let number = json!({"port": 53, "protocol": "UDP"});
    let name = json!({"port": "dns", "protocol": "UDP"});
    for (peer, port, expected) in [
        (json!({"namespaceSelector": system}), &number, Some(0)),
        (
            json!({"namespaceSelector": system, "podSelector": kube_dns}),
            &number,
            Some(0),
        ),
        (
            json!({"namespaceSelector": {}, "podSelector": kube_dns}),
            &name,
            Some(53),
        ),
        (json!({"podSelector": {}}), &number, None),
    ] {
        let spec = json!({"podSelector": {}, "egress": [{"to": [peer], "ports": [port]}]});
        index.set_policy("shop", "p", Some(compiled("shop", "p", &spec)));
        let view = index.view("n1");
        let peers = &view.peers.values().next().unwrap().peers;
        let port = peers.iter().find(|(address, _)| *address == dns);
        assert_eq!(port.map(|(_, port)| *port), expected, "{spec}");
    }
}

/// One of the things that happen.
#[derive(Clone, Debug)]
enum Change {
    Pod {
        namespace: u8,
        name: u8,
        state: Option<(u8, u8, u8, bool)>,
    },
    Namespace {
        name: u8,
        label: Option<u8>,
    },
    Policy {
        namespace: u8,
        name: u8,
        rules: Option<(u8, u8, u8)>,
    },
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0u8..3, 0u8..4, proptest::option::of((0u8..3, 0u8..3, 0u8..6, any::<bool>())))
            .prop_map(|(namespace, name, state)| Change::Pod { namespace, name, state }),
        1 => (0u8..3, proptest::option::of(0u8..2)).prop_map(|(name, label)| Change::Namespace { name, label }),
        2 => (0u8..3, 0u8..3, proptest::option::of((0u8..3, 0u8..5, 0u8..4)))
            .prop_map(|(namespace, name, rules)| Change::Policy { namespace, name, rules }),
    ]
}

/// What is stored, by what it is called; the index must not care how it came about.
#[derive(Clone, Debug, Default)]
struct Cluster {
    pods: BTreeMap<(String, String), PodFacts>,
    namespaces: BTreeMap<String, facts::Labels>,
    policies: BTreeMap<(String, String), Value>,
}

impl Cluster {
    fn make(&mut self, index: &mut Index, change: &Change) {
        match change {
            Change::Pod {
                namespace,
                name,
                state,
            } => {
                let (namespace, name) = (format!("ns{namespace}"), format!("p{name}"));
                let pod = state.map(|(app, node, ip, finished)| {
                    let ip = (ip > 0).then(|| format!("10.0.0.{ip}"));
                    let mut pod = pod_json(
                        &format!("{namespace}/{name}"),
                        &format!("a{app}"),
                        &format!("n{node}"),
                        80,
                        ip,
                    );
                    if finished {
                        pod["status"]["phase"] = json!("Failed");
                    }
                    facts(&pod)
                });
                index.set_pod(&namespace, &name, pod.clone());
                match pod {
                    Some(pod) => drop(self.pods.insert((namespace, name), pod)),
                    None => drop(self.pods.remove(&(namespace, name))),
                }
            }
            Change::Namespace { name, label } => {
                let name = format!("ns{name}");
                let labels =
                    label.map(|label| BTreeMap::from([("team".to_owned(), format!("t{label}"))]));
                index.set_namespace(&name, labels.clone());
                match labels {
                    Some(labels) => drop(self.namespaces.insert(name, labels)),
                    None => drop(self.namespaces.remove(&name)),
                }
            }
            Change::Policy {
                namespace,
                name,
                rules,
            } => {
                let (namespace, name) = (format!("ns{namespace}"), format!("np{name}"));
                let spec = rules.map(|(app, peer, port)| policy_spec(app, peer, port));
                let policy = spec.as_ref().map(|spec| compiled(&namespace, &name, spec));
                index.set_policy(&namespace, &name, policy);
                match spec {
                    Some(spec) => drop(self.policies.insert((namespace, name), spec)),
                    None => drop(self.policies.remove(&(namespace, name))),
                }
            }
        }
    }

    fn fresh(&self) -> Index {
        let mut index = Index::default();
        for ((namespace, name), spec) in &self.policies {
            index.set_policy(namespace, name, Some(compiled(namespace, name, spec)));
        }
        for ((namespace, name), pod) in &self.pods {
            index.set_pod(namespace, name, Some(pod.clone()));
        }
        for (name, labels) in &self.namespaces {
            index.set_namespace(name, Some(labels.clone()));
        }
        index
    }
}

fn policy_spec(app: u8, peer: u8, port: u8) -> Value {
    let selector = |app: u8| match app {
        0 => json!({}),
        _ => json!({"matchLabels": {"app": format!("a{app}")}}),
    };
    let peers = match peer {
        0 => json!([]),
        1 => json!([{"podSelector": selector(1)}]),
        2 => json!([{"namespaceSelector": {"matchLabels": {"team": "t1"}}}]),
        3 => json!([{"namespaceSelector": {}, "podSelector": selector(2)}]),
        _ => json!([{"ipBlock": {"cidr": "10.0.0.0/30"}}, {"podSelector": {}}]),
    };
    let ports = match port {
        0 => json!([]),
        1 => json!([{"port": 80}]),
        2 => json!([{"port": "http"}]),
        _ => json!([{"port": "http"}, {"protocol": "UDP"}]),
    };
    json!({
        "podSelector": selector(app), "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": ports}], "egress": [{"to": peers, "ports": ports}],
    })
}

proptest! {
    /// However the cluster came to be as it is: the index says the same as one made of it afresh, nothing changes for a
    /// node without being news, and a node that is told differences knows what one is told that connects now.
    #[test]
    fn changes_lead_to_the_same_as_a_fresh_start(
        rounds in proptest::collection::vec(proptest::collection::vec(change(), 1..6), 1..12)
    ) {
        let (mut index, mut cluster) = (Index::default(), Cluster::default());
        let mut told: BTreeMap<String, (NodeView, Told)> = BTreeMap::new();
        for round in &rounds {
            let generation = index.generation();
            for change in round {
                cluster.make(&mut index, change);
            }
            let fresh = cluster.fresh();
            for node in ["n0", "n1", "n2"] {
                let view = index.view(node);
                prop_assert_eq!(&view, &fresh.view(node));
                let (before, known) = told.entry(node.to_owned()).or_default();
                prop_assert!(*before == view || index.generation() != generation);
                known.take(delivery::pieces(before.change_to(&view)));
                let mut anew = Told::default();
                anew.take(delivery::pieces(view.snapshot()));
                prop_assert_eq!(&*known, &anew);
                *before = view;
            }
        }
    }
}

#[test]
fn what_is_large_travels_in_pieces() {
    let peers = (0..200_000u32).map(|number| (IpAddr::from(number.to_be_bytes()), 0));
    let rule = rpc::PolicyRule {
        peers: vec!["s".into()],
        any_port: true,
        ..Default::default()
    };
    let rules = rpc::PolicyRules {
        uid: "u".into(),
        ingress: vec![rule],
        ..Default::default()
    };
    let pod = rpc::PodIsolation {
        uid: "p".into(),
        policies: vec!["u".into()],
        ..Default::default()
    };
    let view = NodeView {
        pods: [("p".to_owned(), Arc::new(pod))].into(),
        policies: [("u".to_owned(), Arc::new(rules))].into(),
        peers: [(
            "s".to_owned(),
            delivery::PeerSet {
                with_ports: false,
                peers: peers.collect(),
            },
        )]
        .into(),
        ..NodeView::default()
    };
    let pieces = delivery::pieces(view.snapshot());
    assert!(pieces.len() > 1);
    for piece in &pieces {
        assert!(piece.encoded_len() <= delivery::ROOM);
    }
    let mut told = Told::default();
    told.take(pieces);
    assert_eq!(told.peers["s"].len(), 200_000);
    let mut told_of_end = told.clone();
    told_of_end.take(delivery::pieces(view.change_to(&NodeView::default())));
    assert_eq!(told_of_end, Told::default());
}

#[test]
fn no_message_is_larger_than_may_travel_whatever_it_is_full_of() {
    const POLICIES: usize = 2_000;
    let uid = |number: usize| format!("{number:036}");
    let sets: Vec<String> = (0..20 * POLICIES)
        .map(|number| format!("{number:032}"))
        .collect();
    let blocks: Vec<String> = (0..9_000u32)
        .map(|number| format!("{}/32", Ipv4Addr::from(0x0a00_0000 + 2 * number)))
        .collect();
    let policy = |number: usize| {
        let rule = rpc::PolicyRule {
            peers: sets[20 * number..][..20].to_vec(),
            blocks: match number < 30 {
                true => blocks.clone(),
                false => Vec::new(),
            },
            any_port: true,
            ..Default::default()
        };
        rpc::PolicyRules {
            uid: uid(number),
            ingress: vec![rule],
            ..Default::default()
        }
    };
    let pod = |number: usize| rpc::PodIsolation {
        uid: format!("pod-{number}"),
        policies: (0..POLICIES).map(uid).collect(),
        ..Default::default()
    };
    let view = NodeView {
        pods: (0..110)
            .map(|number| (format!("pod-{number}"), Arc::new(pod(number))))
            .collect(),
        policies: (0..POLICIES)
            .map(|number| (uid(number), Arc::new(policy(number))))
            .collect(),
        peers: sets
            .iter()
            .map(|id| (id.clone(), delivery::PeerSet::default()))
            .collect(),
        ..NodeView::default()
    };
    let mut told = Told::default();
    for change in [view.snapshot(), view.change_to(&NodeView::default())] {
        let pieces = delivery::pieces(change);
        for piece in &pieces {
            assert!(piece.encoded_len() <= delivery::ROOM);
        }
        told.take(pieces);
    }
    assert_eq!(told, Told::default());
}

/// A policy of all pods of its namespace that lets each other in.
fn each_other(name: &str) -> Policy {
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    compiled("shop", name, &spec)
}

#[test]
fn policies_that_allow_nothing_isolate_and_nobody_is_told_of_them() {
    let mut index = world(&place);
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
    for number in 0..2_000 {
        let name = format!("p{number}");
        index.set_policy("shop", &name, Some(compiled("shop", &name, &spec)));
    }
    let view = index.view("n1");
    assert!(view.policies.is_empty());
    let db = &view.pods["shop-db"];
    assert!(db.ingress && db.egress && db.policies.is_empty());
    for number in 0..2_000 {
        index.set_policy("shop", &format!("p{number}"), None);
    }
    assert_eq!(index.view("n1"), NodeView::default());
}

#[test]
fn the_first_policies_of_a_pod_count_and_no_others() {
    let mut index = world(&place);
    for number in 0..=MOST_OF_A_POD {
        let name = format!("p{number:03}");
        index.set_policy("shop", &name, Some(each_other(&name)));
    }
    let last = format!("shop-p{MOST_OF_A_POD:03}");
    let counts = |index: &Index| {
        let view = index.view("n1");
        let policies = &view.pods["shop-db"].policies;
        assert_eq!(policies.len(), MOST_OF_A_POD);
        assert_eq!(view.policies.len(), MOST_OF_A_POD);
        policies.contains(&last)
    };
    assert!(!counts(&index));
    index.set_policy("shop", "p000", None);
    assert!(counts(&index));
}

#[test]
fn a_nodes_largest_policies_are_told_without_rules_when_there_is_no_room_for_them() {
    let mut index = world(&place);
    index.set_policy("shop", "small", Some(each_other("small")));
    let blocks: Vec<Value> = (0..2_000u32)
        .map(|number| Ipv4Addr::from(0x0a00_0000 + 2 * number))
        .map(|address| json!({"ipBlock": {"cidr": format!("{address}/32")}}))
        .collect();
    let spec = json!({"podSelector": {}, "ingress": [{"from": blocks}]});
    index.set_policy("shop", "large", Some(compiled("shop", "large", &spec)));
    let all = index.view("n1");
    assert!(all.without_room.is_empty());
    for (room, closed) in [
        (2_000, vec!["shop-large"]),
        (9, vec!["shop-large", "shop-small"]),
    ] {
        let view = index.view_within("n1", room);
        assert_eq!(view.pods, all.pods, "they stay isolated");
        assert_eq!(view.without_room.iter().collect::<Vec<_>>(), closed);
        for (uid, rules) in &view.policies {
            assert_eq!(rules.ingress.is_empty(), view.without_room.contains(uid));
        }
        assert_eq!(view.policies.len(), 2);
        assert_eq!(view.peers.len(), 2 - closed.len());
        Told::default().take(delivery::pieces(view.snapshot()));
    }
}

async fn put(store: &Store, table: &str, object: &Value) -> Revision {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let key = Key {
        table: Table(table.into()),
        namespace: text("namespace").as_str().into(),
        name: text("name").as_str().into(),
    };
    let put = Operation::Put {
        key,
        value: object.to_string().into(),
        index: gantry_store::Index::default(),
    };
    let transaction = Transaction {
        guards: vec![],
        operations: vec![put],
    };
    store.propose(transaction).await.expect("applied")
}

#[tokio::test]
async fn without_policies_nobody_waits_and_the_first_one_is_heard_of() {
    let store = Store::ephemeral();
    let mut leads = store.leadership();
    leads
        .wait_for(|state| state.is_leader)
        .await
        .expect("a leader");
    let policies = Policies::new(store.clone(), None);
    let mut feed = policies.feed("n0");
    let mut told = Told::default();
    told.take(feed.up_to(store.revision()).await.expect("running"));
    let mut pod = pod_json("shop/web", "web", "n0", 80, None);
    for round in 0..3 {
        pod["metadata"]["labels"]["round"] = json!(round.to_string());
        let bound = put(&store, PODS, &pod).await;
        let mut late = policies.feed("n0");
        assert!(late.up_to(bound).await.expect("running")[0].snapshot);
        assert!(feed.up_to(bound).await.expect("running").is_empty());
    }
    let policy = json!({
        "metadata": {"namespace": "shop", "name": "deny", "uid": "u1"}, "spec": {"podSelector": {}},
    });
    put(&store, POLICIES, &policy).await;
    while told.pods.is_empty() {
        told.take(feed.changed().await.expect("running"));
    }
    assert!(told.pods["shop-web"].ingress);
}

#[tokio::test]
async fn a_revision_of_something_else_is_reached_as_well() {
    let store = Store::ephemeral();
    let mut leads = store.leadership();
    leads
        .wait_for(|state| state.is_leader)
        .await
        .expect("a leader");
    let policy = json!({
        "metadata": {"namespace": "shop", "name": "deny", "uid": "u1"}, "spec": {"podSelector": {}},
    });
    put(&store, POLICIES, &policy).await;
    let policies = Policies::new(store.clone(), None);
    let mut feed = policies.feed("n0");
    feed.up_to(store.revision()).await.expect("running");
    for round in 0..100 {
        let node = json!({"metadata": {"name": "n0", "labels": {"round": round.to_string()}}});
        let bound = put(&store, "core/nodes", &node).await;
        let waited = tokio::time::timeout(Duration::from_secs(30), feed.up_to(bound));
        let news = waited
            .await
            .expect("it waits for a pod that may never come");
        assert!(news.expect("running").is_empty());
    }
    let pod = pod_json("shop/web", "web", "n0", 80, None);
    let bound = put(&store, PODS, &pod).await;
    let news = feed.up_to(bound).await.expect("running");
    assert!(news[0].pods[0].ingress, "nothing is missed by it");
}

#[tokio::test]
async fn a_feed_follows_the_store_and_knows_the_policies_before_the_pod() {
    let store = Store::ephemeral();
    let mut leads = store.leadership();
    leads
        .wait_for(|state| state.is_leader)
        .await
        .expect("a leader");
    put(&store, NAMESPACES, &json!({"metadata": {"name": "shop"}})).await;
    let policies = Policies::new(store.clone(), None);
    let mut feed = policies.feed("n0");
    let mut told = Told::default();
    let first = feed.up_to(store.revision()).await.expect("running");
    assert!(first[0].snapshot && told.pods.is_empty());
    told.take(first);

    let policy = json!({
        "metadata": {"namespace": "shop", "name": "deny", "uid": "u1"}, "spec": {"podSelector": {}},
    });
    put(&store, POLICIES, &policy).await;
    let pod = pod_json("shop/web", "web", "n0", 80, None);
    let bound = put(&store, PODS, &pod).await;
    told.take(feed.up_to(bound).await.expect("running"));
    assert!(
        told.pods["shop-web"].ingress,
        "isolated though it has no address yet"
    );

    let later = json!({
        "metadata": {"namespace": "shop", "name": "deny", "uid": "u1"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"]},
    });
    put(&store, POLICIES, &later).await;
    while told.pods["shop-web"].ingress {
        told.take(feed.changed().await.expect("running"));
    }
    assert!(told.pods["shop-web"].egress);

    let later = put(&store, PODS, &pod_json("shop/api", "api", "n2", 80, None)).await;
    let mut other = policies.feed("n1");
    let nothing = other.up_to(later).await.expect("running");
    assert!(nothing[0].snapshot && nothing[0].pods.is_empty() && nothing[0].policies.is_empty());
    let shared = Arc::downgrade(&feed.shared);
    drop((feed, other));
    assert!(shared.upgrade().is_none(), "nothing is compiled for nobody");
    let mut again = policies.feed("n0");
    let mut anew = Told::default();
    anew.take(again.up_to(bound).await.expect("running"));
    assert_eq!(anew, told);
}
