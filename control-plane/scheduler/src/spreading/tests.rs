use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use super::*;
use crate::cycle::{self, Cycle};
use crate::snapshot::tests::{node, pod};

/// Nodes by name, with their labels.
fn cluster(nodes: &[(&str, &[(&str, &str)])]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, labels) in nodes {
        let mut node = node(name, "8", "16Gi");
        let labels = labels.iter();
        let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        node.metadata.labels = Some(labels.collect());
        snapshot.set_node(&node);
    }
    snapshot
}

fn labelled(uid: &str, app: &str) -> Pod {
    let mut pod = pod(uid, "", "");
    pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
    pod
}

fn spread(mut pod: Pod, constraints: Value) -> PodInfo {
    let constraints: Vec<TopologySpreadConstraint> =
        serde_json::from_value(constraints).expect("constraints");
    let spec = pod.spec.get_or_insert_default();
    spec.topology_spread_constraints = Some(constraints);
    PodInfo::new(&pod)
}

fn constraint(extra: Value) -> Value {
    let mut whole = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "a"}}});
    let (Value::Object(whole_members), Value::Object(extra)) = (&mut whole, extra) else {
        panic!("an object");
    };
    whole_members.extend(extra);
    whole
}

fn run(snapshot: &mut Snapshot, node: &str, pods: &[Pod]) {
    for pod in pods {
        snapshot.assign(Arc::new(PodInfo::new(pod)), node);
    }
}

/// What each node says to the pod: nothing, or why not and whether evictions may help.
fn verdicts(snapshot: &mut Snapshot, pod: &PodInfo) -> Vec<(String, Option<(String, bool)>)> {
    cycle::prepare(pod, snapshot);
    let cycle = Cycle::new(pod, snapshot);
    let mut verdicts: Vec<_> = snapshot
        .nodes()
        .iter()
        .map(|node| {
            let refusal = cycle.check(node).err();
            let told = refusal.map(|refusal| (refusal.reasons[0].to_string(), refusal.resolvable));
            (node.name.to_string(), told)
        })
        .collect();
    verdicts.sort();
    verdicts
}

fn takers(snapshot: &mut Snapshot, pod: &PodInfo) -> Vec<String> {
    let verdicts = verdicts(snapshot, pod).into_iter();
    let takers = verdicts.filter(|(_, refusal)| refusal.is_none());
    takers.map(|(name, _)| name).collect()
}

const ZONES: [(&str, &[(&str, &str)]); 4] = [
    ("a1", &[("zone", "a")]),
    ("a2", &[("zone", "a")]),
    ("b1", &[("zone", "b")]),
    ("none", &[]),
];

#[test]
fn the_difference_stays_within_its_bound() {
    let mut snapshot = cluster(&ZONES);
    let wants = spread(labelled("p", "a"), json!([constraint(json!({}))]));
    assert_eq!(takers(&mut snapshot, &wants), ["a1", "a2", "b1"]);
    run(
        &mut snapshot,
        "a1",
        &[labelled("q", "a"), labelled("other", "b")],
    );
    let uneven = Some((UNEVEN.to_owned(), true));
    let unlabelled = Some((UNLABELLED.to_owned(), false));
    let expected = [
        ("a1".to_owned(), uneven.clone()),
        ("a2".to_owned(), uneven),
        ("b1".to_owned(), None),
        ("none".to_owned(), unlabelled),
    ];
    assert_eq!(verdicts(&mut snapshot, &wants), expected);
    let wider = spread(
        labelled("p", "a"),
        json!([constraint(json!({"maxSkew": 2}))]),
    );
    assert_eq!(takers(&mut snapshot, &wider), ["a1", "a2", "b1"]);
    // A pod that does not match itself makes nothing more uneven.
    let other = spread(labelled("p", "b"), json!([constraint(json!({}))]));
    assert_eq!(takers(&mut snapshot, &other), ["a1", "a2", "b1"]);
    // One that is on its way out counts no more, nor do those of other namespaces.
    let mut leaving = labelled("q", "a");
    leaving.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        ));
    let mut elsewhere = labelled("r", "a");
    elsewhere.metadata.namespace = Some("elsewhere".to_owned());
    run(&mut snapshot, "a1", &[leaving, elsewhere]);
    assert_eq!(takers(&mut snapshot, &wants), ["a1", "a2", "b1"]);
}

#[test]
fn too_few_domains_count_as_one_that_is_empty() {
    let mut snapshot = cluster(&ZONES);
    run(&mut snapshot, "a1", &[labelled("q", "a")]);
    run(&mut snapshot, "b1", &[labelled("r", "a")]);
    let two = spread(
        labelled("p", "a"),
        json!([constraint(json!({"minDomains": 2}))]),
    );
    assert_eq!(takers(&mut snapshot, &two), ["a1", "a2", "b1"]);
    let three = spread(
        labelled("p", "a"),
        json!([constraint(json!({"minDomains": 3}))]),
    );
    assert!(takers(&mut snapshot, &three).is_empty());
}

#[test]
fn nodes_that_the_pod_cannot_use_count_or_not_as_it_says() {
    let labels: [(&str, &[(&str, &str)]); 3] = [
        ("a", &[("zone", "a"), ("disk", "fast")]),
        ("b", &[("zone", "b"), ("disk", "fast")]),
        ("c", &[("zone", "c")]),
    ];
    let mut snapshot = cluster(&labels);
    let mut tainted = node("b", "8", "16Gi");
    tainted.metadata.labels = Some(
        [("zone", "b"), ("disk", "fast")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    );
    tainted.spec.get_or_insert_default().taints = Some(vec![k8s_openapi::api::core::v1::Taint {
        key: "k".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    }]);
    snapshot.set_node(&tainted);
    run(&mut snapshot, "a", &[labelled("q", "a")]);
    let selecting = || {
        let mut pod = labelled("p", "a");
        let selector = [("disk".to_owned(), "fast".to_owned())];
        pod.spec.get_or_insert_default().node_selector = Some(selector.into());
        pod
    };
    for (policies, expected) in [
        // Zone c does not count, the tainted b does: none is left.
        (json!({}), false),
        (json!({"nodeTaintsPolicy": "Honor"}), true),
        (
            json!({"nodeTaintsPolicy": "Honor", "nodeAffinityPolicy": "Ignore"}),
            false,
        ),
    ] {
        let wants = spread(selecting(), json!([constraint(policies.clone())]));
        let found = takers(&mut snapshot, &wants);
        assert_eq!(found == ["a"], expected, "{policies}: {found:?}");
    }
}

#[test]
fn all_constraints_hold_and_labels_may_be_the_pods_own() {
    let labels: [(&str, &[(&str, &str)]); 3] = [
        ("n1", &[("zone", "a"), ("kubernetes.io/hostname", "n1")]),
        ("n2", &[("zone", "a"), ("kubernetes.io/hostname", "n2")]),
        ("n3", &[("zone", "b"), ("kubernetes.io/hostname", "n3")]),
    ];
    let mut snapshot = cluster(&labels);
    let both = json!([
        constraint(json!({"maxSkew": 2})),
        constraint(json!({"topologyKey": "kubernetes.io/hostname"})),
    ]);
    let wants = spread(labelled("p", "a"), both);
    run(&mut snapshot, "n1", &[labelled("q", "a")]);
    assert_eq!(takers(&mut snapshot, &wants), ["n2", "n3"]);
    run(&mut snapshot, "n2", &[labelled("r", "a")]);
    assert_eq!(takers(&mut snapshot, &wants), ["n3"]);
    let own = json!([constraint(json!({"matchLabelKeys": ["version"]}))]);
    let mut versioned = labelled("p", "a");
    let labels = versioned.metadata.labels.get_or_insert_default();
    labels.insert("version".to_owned(), "2".to_owned());
    assert_eq!(
        takers(&mut snapshot, &spread(versioned, own)),
        ["n1", "n2", "n3"]
    );
}

fn scored(snapshot: &mut Snapshot, pod: &PodInfo) -> Vec<(String, i64)> {
    cycle::prepare(pod, snapshot);
    let all: Vec<usize> = (0..snapshot.nodes().len()).collect();
    let scores = scores(pod, snapshot, &all).expect("somebody cares");
    let nodes = snapshot.nodes().iter().map(|node| node.name.to_string());
    let mut scored: Vec<_> = nodes.zip(scores).collect();
    scored.sort();
    scored
}

#[test]
fn soft_constraints_prefer_where_there_are_fewer() {
    let mut snapshot = cluster(&ZONES);
    run(
        &mut snapshot,
        "a1",
        &[labelled("q", "a"), labelled("r", "a")],
    );
    run(&mut snapshot, "b1", &[labelled("s", "a")]);
    let soft = json!({"whenUnsatisfiable": "ScheduleAnyway"});
    let wants = spread(labelled("p", "a"), json!([constraint(soft)]));
    assert_eq!(takers(&mut snapshot, &wants), ["a1", "a2", "b1", "none"]);
    // Two and one pods, weighed by the logarithm of two zones and two: 3 and 1.
    let pair = |name: &str, score: i64| (name.to_owned(), score);
    assert_eq!(
        scored(&mut snapshot, &wants),
        [
            pair("a1", 33),
            pair("a2", 33),
            pair("b1", 100),
            pair("none", 0)
        ]
    );
    assert!(scores(&PodInfo::new(&labelled("p", "a")), &snapshot, &[0, 1]).is_none());
}

#[test]
fn replicas_are_spread_over_nodes_and_zones_by_themselves() {
    let labels: [(&str, &[(&str, &str)]); 3] = [
        (
            "n1",
            &[
                ("topology.kubernetes.io/zone", "a"),
                ("kubernetes.io/hostname", "n1"),
            ],
        ),
        (
            "n2",
            &[
                ("topology.kubernetes.io/zone", "a"),
                ("kubernetes.io/hostname", "n2"),
            ],
        ),
        (
            "n3",
            &[
                ("topology.kubernetes.io/zone", "b"),
                ("kubernetes.io/hostname", "n3"),
            ],
        ),
    ];
    let mut snapshot = cluster(&labels);
    let owned = |uid: &str, set: &str| {
        let mut pod = labelled(uid, "a");
        pod.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "ReplicaSet".to_owned(),
            uid: set.to_owned(),
            controller: Some(true),
            ..OwnerReference::default()
        }]);
        pod
    };
    run(&mut snapshot, "n1", &[owned("q", "set"), owned("r", "set")]);
    run(&mut snapshot, "n3", &[owned("other", "another")]);
    let wants = PodInfo::new(&owned("p", "set"));
    let scored = scored(&mut snapshot, &wants);
    let mut order: Vec<_> = scored.iter().collect();
    order.sort_by_key(|(_, score)| -score);
    let order: Vec<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(order, ["n3", "n2", "n1"], "{scored:?}");
}
