use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, Pod};
use serde_json::{Value, json};

use super::*;
use crate::cycle::{self, Cycle};
use crate::snapshot::tests::{node, pod};

/// Two nodes in zone a, one in zone b, one in none; pods are in namespace `ns`.
fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("none", "")] {
        let mut node = node(name, "8", "16Gi");
        let zone = Some(("zone".to_owned(), zone.to_owned())).filter(|(_, zone)| !zone.is_empty());
        node.metadata.labels = Some(zone.into_iter().collect());
        snapshot.set_node(&node);
    }
    for (name, team) in [("ns", "x"), ("other", "y")] {
        let labels = [("team".to_owned(), team.to_owned())];
        snapshot.set_namespace(name, labels.into());
    }
    snapshot
}

fn term(app: &str) -> Value {
    json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}})
}

fn required(terms: Value) -> Value {
    json!({"requiredDuringSchedulingIgnoredDuringExecution": terms})
}

fn preferred(weight: i32, term: Value) -> Value {
    json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": weight, "podAffinityTerm": term}]})
}

fn saying(uid: &str, app: &str, affinity: Value) -> Pod {
    let mut pod = pod(uid, "", "");
    pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
    let affinity: Affinity = serde_json::from_value(affinity).expect("an affinity");
    pod.spec.get_or_insert_default().affinity = Some(affinity);
    pod
}

fn run(snapshot: &mut Snapshot, node: &str, pod: &Pod) {
    snapshot.assign(Arc::new(PodInfo::new(pod)), node);
}

/// The nodes that take the pod, and what the others say, sorted.
fn verdicts(snapshot: &mut Snapshot, pod: &Pod) -> (Vec<String>, Vec<(String, bool)>) {
    let pod = PodInfo::new(pod);
    cycle::prepare(&pod, snapshot);
    let cycle = Cycle::new(&pod, snapshot);
    let (mut takers, mut refusals) = (Vec::new(), Vec::new());
    for node in snapshot.nodes() {
        match cycle.check(node) {
            Ok(()) => takers.push(node.name.to_string()),
            Err(refusal) => refusals.push((refusal.reasons[0].to_string(), refusal.resolvable)),
        }
    }
    takers.sort();
    refusals.sort();
    (takers, refusals)
}

fn takers(snapshot: &mut Snapshot, pod: &Pod) -> Vec<String> {
    verdicts(snapshot, pod).0
}

#[test]
fn a_pod_is_near_those_that_it_needs() {
    let mut snapshot = cluster();
    let wants = saying(
        "p",
        "web",
        json!({"podAffinity": required(json!([term("db")]))}),
    );
    let (found, refusals) = verdicts(&mut snapshot, &wants);
    assert!(found.is_empty());
    assert_eq!(refusals, vec![(FAR.to_owned(), false); 4]);
    run(&mut snapshot, "a1", &saying("db", "db", json!({})));
    assert_eq!(takers(&mut snapshot, &wants), ["a1", "a2"]);
    // Of several terms, the same pods must match all.
    let both = json!([term("db"), {"topologyKey": "zone", "labelSelector": {"matchLabels": {"tier": "x"}}}]);
    let wants = saying("p", "web", json!({"podAffinity": required(both)}));
    run(&mut snapshot, "a2", &saying("x", "x", json!({})));
    assert!(takers(&mut snapshot, &wants).is_empty());
}

#[test]
fn the_first_of_pods_that_need_each_other_goes_anywhere_with_the_label() {
    let mut snapshot = cluster();
    let wants = |uid: &str| {
        saying(
            uid,
            "db",
            json!({"podAffinity": required(json!([term("db")]))}),
        )
    };
    assert_eq!(takers(&mut snapshot, &wants("p")), ["a1", "a2", "b1"]);
    run(&mut snapshot, "b1", &wants("q"));
    assert_eq!(takers(&mut snapshot, &wants("p")), ["b1"]);
}

#[test]
fn pods_that_exclude_others_are_excluded_by_them() {
    let mut snapshot = cluster();
    let excludes = |uid: &str, app: &str, other: &str| {
        saying(
            uid,
            app,
            json!({"podAntiAffinity": required(json!([term(other)]))}),
        )
    };
    run(&mut snapshot, "a1", &excludes("q", "db", "web"));
    let (found, refusals) = verdicts(&mut snapshot, &saying("p", "web", json!({})));
    assert_eq!(found, ["b1", "none"]);
    assert_eq!(refusals, vec![(UNWANTED.to_owned(), true); 2]);
    let (found, refusals) = verdicts(&mut snapshot, &excludes("p", "x", "db"));
    assert_eq!(found, ["b1", "none"]);
    assert_eq!(refusals, vec![(NEAR.to_owned(), true); 2]);
    snapshot.unassign("q");
    assert_eq!(
        takers(&mut snapshot, &saying("p", "web", json!({}))).len(),
        4
    );
    assert_eq!(takers(&mut snapshot, &excludes("p", "x", "db")).len(), 4);
}

#[test]
fn namespaces_are_chosen_by_name_or_labels() {
    let mut snapshot = cluster();
    let mut elsewhere = saying("q", "db", json!({}));
    elsewhere.metadata.namespace = Some("other".to_owned());
    run(&mut snapshot, "b1", &elsewhere);
    let near = |extra: Value| {
        let mut term = term("db");
        if let (Value::Object(term), Value::Object(extra)) = (&mut term, extra) {
            term.extend(extra);
        }
        saying("p", "web", json!({"podAffinity": required(json!([term]))}))
    };
    assert!(takers(&mut snapshot, &near(json!({}))).is_empty());
    for extra in [
        json!({"namespaces": ["other"]}),
        json!({"namespaceSelector": {"matchLabels": {"team": "y"}}}),
        json!({"namespaceSelector": {}}),
    ] {
        let found = takers(&mut snapshot, &near(extra.clone()));
        assert_eq!(found, ["b1"], "{extra}");
    }
    // What running pods say of namespaces by their labels holds for those that get them later.
    let selector = json!({"topologyKey": "zone", "labelSelector": {}, "namespaceSelector": {"matchLabels": {"team": "z"}}});
    let excludes = saying(
        "r",
        "db",
        json!({"podAntiAffinity": required(json!([selector]))}),
    );
    run(&mut snapshot, "a1", &excludes);
    let plain = saying("p", "web", json!({}));
    assert_eq!(takers(&mut snapshot, &plain).len(), 4);
    let labels = [("team".to_owned(), "z".to_owned())];
    assert!(snapshot.set_namespace("ns", labels.into()));
    assert_eq!(takers(&mut snapshot, &plain), ["b1", "none"]);
}

fn scored(snapshot: &mut Snapshot, pod: &Pod) -> Option<Vec<(String, i64)>> {
    let pod = PodInfo::new(pod);
    cycle::prepare(&pod, snapshot);
    let all: Vec<usize> = (0..snapshot.nodes().len()).collect();
    let scores = scores(&pod, snapshot, &all)?;
    let nodes = snapshot.nodes().iter().map(|node| node.name.to_string());
    let mut scored: Vec<_> = nodes.zip(scores).collect();
    scored.sort();
    Some(scored)
}

#[test]
fn preferences_of_both_sides_count() {
    let pair = |name: &str, score: i64| (name.to_owned(), score);
    let mut snapshot = cluster();
    let plain = saying("p", "web", json!({}));
    assert_eq!(scored(&mut snapshot, &plain), None);
    run(&mut snapshot, "a1", &saying("q", "db", json!({})));
    assert_eq!(scored(&mut snapshot, &plain), None);
    let near = saying(
        "p",
        "web",
        json!({"podAffinity": preferred(10, term("db"))}),
    );
    let expected = [
        pair("a1", 100),
        pair("a2", 100),
        pair("b1", 0),
        pair("none", 0),
    ];
    assert_eq!(scored(&mut snapshot, &near).as_deref(), Some(&expected[..]));
    let far = saying(
        "p",
        "web",
        json!({"podAntiAffinity": preferred(10, term("db"))}),
    );
    let expected = [
        pair("a1", 0),
        pair("a2", 0),
        pair("b1", 100),
        pair("none", 100),
    ];
    assert_eq!(scored(&mut snapshot, &far).as_deref(), Some(&expected[..]));
    // A running pod that needs the new one near counts a little, one that would rather not have it more.
    run(
        &mut snapshot,
        "b1",
        &saying(
            "r",
            "x",
            json!({"podAffinity": required(json!([term("web")]))}),
        ),
    );
    let expected = [
        pair("a1", 0),
        pair("a2", 0),
        pair("b1", 100),
        pair("none", 0),
    ];
    assert_eq!(
        scored(&mut snapshot, &plain).as_deref(),
        Some(&expected[..])
    );
    run(
        &mut snapshot,
        "b1",
        &saying(
            "s",
            "y",
            json!({"podAntiAffinity": preferred(5, term("web"))}),
        ),
    );
    let expected = [
        pair("a1", 100),
        pair("a2", 100),
        pair("b1", 0),
        pair("none", 100),
    ];
    assert_eq!(
        scored(&mut snapshot, &plain).as_deref(),
        Some(&expected[..])
    );
}

#[test]
fn a_pod_with_more_terms_than_can_be_judged_is_told_so() {
    let mut snapshot = cluster();
    let terms: Vec<Value> = (0..257).map(|at| term(&format!("app-{at}"))).collect();
    let wants = saying(
        "p",
        "web",
        json!({"podAntiAffinity": required(json!(terms))}),
    );
    let (found, refusals) = verdicts(&mut snapshot, &wants);
    assert!(found.is_empty());
    assert!(refusals.iter().all(|(why, _)| why.contains("256 terms")));
}
