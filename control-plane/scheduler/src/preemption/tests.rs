use k8s_openapi::api::core::v1::{
    Affinity, Pod, PodCondition, PodStatus, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::cycle;
use crate::snapshot::tests::{node, pod};
use crate::trial;

/// Nodes of that many CPUs, each in the zone of its first letter.
fn cluster(nodes: &[(&str, &str)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, cpu) in nodes {
        let mut node = node(name, cpu, "16Gi");
        let zone: String = name.chars().take(1).collect();
        node.metadata.labels = Some([("zone".to_owned(), zone)].into());
        snapshot.set_node(&node);
    }
    snapshot
}

fn of(uid: &str, priority: i32, cpu: &str) -> Pod {
    let mut pod = pod(uid, cpu, "");
    pod.spec.get_or_insert_default().priority = Some(priority);
    pod
}

fn since(mut pod: Pod, second: i64) -> Pod {
    let time = Timestamp::from_second(second).expect("in range");
    pod.status.get_or_insert_default().start_time = Some(Time(time));
    pod
}

/// With the label `app`, and what it says of others.
fn saying(mut pod: Pod, app: &str, affinity: Value) -> Pod {
    pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
    let affinity: Affinity = serde_json::from_value(affinity).expect("an affinity");
    pod.spec.get_or_insert_default().affinity = Some(affinity);
    pod
}

fn required(kind: &str, app: &str) -> Value {
    let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}});
    json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})
}

fn run(snapshot: &mut Snapshot, node: &str, pods: &[Pod]) {
    for pod in pods {
        snapshot.assign(Arc::new(PodInfo::new(pod)), node);
    }
}

/// What comes of the pod's attempt, and what it is told.
fn attempt_of(pod: &Pod, snapshot: &mut Snapshot, nominations: &Nominations) -> (Outcome, String) {
    attempt_within(&Budgets::default(), pod, snapshot, nominations)
}

/// The same where there are budgets of disruptions.
fn attempt_within(
    budgets: &Budgets,
    pod: &Pod,
    snapshot: &mut Snapshot,
    nominations: &Nominations,
) -> (Outcome, String) {
    let pod = PodInfo::new(pod);
    cycle::prepare(&pod, snapshot);
    let snapshot = &*snapshot;
    let mut cycle = Cycle::new(&pod, snapshot);
    let mut diagnosis = Diagnosis::default();
    for node in snapshot.nodes() {
        let refusal = trial::check(&mut cycle, node, nominations).expect_err("it does not fit");
        diagnosis.add(&node.name, refusal);
    }
    let outcome = attempt(
        &mut cycle,
        snapshot,
        nominations,
        budgets,
        &mut diagnosis,
        1,
    );
    let explanation = diagnosis.explain(&pod, Timestamp::UNIX_EPOCH);
    (outcome, explanation.message)
}

/// The node that is chosen, with the victims in their order.
fn choice(pod: &Pod, snapshot: &mut Snapshot, nominations: &Nominations) -> (String, Vec<String>) {
    choice_within(&Budgets::default(), pod, snapshot, nominations)
}

/// The same where there are budgets of disruptions.
fn choice_within(
    budgets: &Budgets,
    pod: &Pod,
    snapshot: &mut Snapshot,
    nominations: &Nominations,
) -> (String, Vec<String>) {
    match attempt_within(budgets, pod, snapshot, nominations) {
        (Outcome::Room(chosen), _) => {
            let victims = chosen.victims.iter();
            let victims = victims.map(|victim| victim.uid.to_string());
            (chosen.node.to_string(), victims.collect())
        }
        (other, message) => panic!("nobody is chosen: {other:?} {message}"),
    }
}

/// What the pod is told of its attempt, which is in vain.
fn vain(pod: &Pod, snapshot: &mut Snapshot, nominations: &Nominations) -> String {
    let (outcome, message) = attempt_of(pod, snapshot, nominations);
    assert!(matches!(outcome, Outcome::Vain), "{outcome:?}");
    let (_, told) = message.split_once("preemption: ").expect("it is told");
    told.to_owned()
}

fn chosen(node: &str, victims: &[&str]) -> (String, Vec<String>) {
    let victims = victims.iter().map(|uid| (*uid).to_owned());
    (node.to_owned(), victims.collect())
}

#[test]
fn a_pod_of_lower_priority_makes_room_and_nobody_is_told_why_not() {
    let mut snapshot = cluster(&[("a", "8"), ("b", "4")]);
    run(&mut snapshot, "a", &[of("low", 0, "6")]);
    let (outcome, message) = attempt_of(
        &of("high", 1000, "6"),
        &mut snapshot,
        &Nominations::default(),
    );
    assert!(matches!(outcome, Outcome::Room(_)), "{outcome:?}");
    assert_eq!(message, "0/2 nodes are available: 2 Insufficient cpu.");
}

#[test]
fn pods_of_the_same_priority_stay() {
    let mut snapshot = cluster(&[("a", "8"), ("b", "4")]);
    run(&mut snapshot, "a", &[of("same", 5, "6")]);
    assert_eq!(
        vain(&of("p", 5, "6"), &mut snapshot, &Nominations::default()),
        "0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for \
         scheduling."
    );
    // Nor do those of a lower one, where that would not be enough.
    run(&mut snapshot, "a", &[of("low", 0, "1")]);
    assert_eq!(
        vain(&of("p", 5, "6"), &mut snapshot, &Nominations::default()),
        "0/2 nodes are available: 1 Insufficient cpu, 1 Preemption is not helpful for scheduling."
    );
}

#[test]
fn who_never_preempts_does_not() {
    let mut snapshot = cluster(&[("a", "8")]);
    run(&mut snapshot, "a", &[of("low", 0, "6")]);
    let mut high = of("high", 1000, "6");
    high.spec.get_or_insert_default().preemption_policy = Some("Never".to_owned());
    let (outcome, message) = attempt_of(&high, &mut snapshot, &Nominations::default());
    assert!(matches!(outcome, Outcome::Unchanged), "{outcome:?}");
    assert_eq!(
        message,
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to \
         preemptionPolicy=Never."
    );
}

#[test]
fn nobody_else_goes_while_those_who_were_chosen_are_leaving() {
    let two = || cluster(&[("a", "8"), ("b", "8")]);
    let high = of("high", 1000, "6");
    let mut nominations = Nominations::default();
    nominations.set(Arc::new(PodInfo::new(&high)), "a".into());
    let waits = |snapshot: &mut Snapshot, nominations: &Nominations| {
        let (outcome, message) = attempt_of(&high, snapshot, nominations);
        let waits = matches!(outcome, Outcome::Unchanged);
        assert_eq!(waits, message.ends_with(LEAVING), "{outcome:?} {message}");
        waits
    };
    // As told by its status, also to a scheduler that has just begun.
    for (reason, deleting, expected) in [
        ("PreemptionByScheduler", true, true),
        ("PreemptionByScheduler", false, false),
        ("EvictionByEvictionAPI", true, false),
    ] {
        let mut snapshot = two();
        let mut leaving = of("low", 0, "6");
        leaving.metadata.deletion_timestamp = deleting.then_some(Time(Timestamp::UNIX_EPOCH));
        leaving.status = Some(PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "DisruptionTarget".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        });
        run(&mut snapshot, "a", &[leaving]);
        run(&mut snapshot, "b", &[of("other", 0, "6")]);
        let found = waits(&mut snapshot, &nominations);
        assert_eq!(found, expected, "{reason} {deleting}");
    }
    // And before that is known.
    let mut snapshot = two();
    run(&mut snapshot, "a", &[of("low", 0, "6")]);
    run(&mut snapshot, "b", &[of("other", 0, "6")]);
    assert!(nominations.begin_leaving(&"low".into()));
    assert!(!nominations.begin_leaving(&"low".into()));
    assert!(waits(&mut snapshot, &nominations));
    // On a node that will not do whoever leaves, there is nothing to wait for.
    let mut cordoned = node("a", "8", "16Gi");
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    snapshot.set_node(&cordoned);
    assert_eq!(
        choice(&high, &mut snapshot, &nominations),
        chosen("b", &["other"])
    );
    nominations.end_leaving("low");
    snapshot.set_node(&node("a", "8", "16Gi"));
    assert!(!waits(&mut snapshot, &nominations));
}

#[test]
fn only_as_many_go_as_have_to_and_the_important_ones_stay() {
    let mut snapshot = cluster(&[("a", "8")]);
    let pods = [of("one", 1, "2"), of("five", 5, "2"), of("three", 3, "4")];
    run(&mut snapshot, "a", &pods);
    let none = Nominations::default();
    assert_eq!(
        choice(&of("p", 9, "4"), &mut snapshot, &none),
        chosen("a", &["three"])
    );
    assert_eq!(
        choice(&of("p", 9, "5"), &mut snapshot, &none),
        chosen("a", &["three", "one"])
    );
    // Of one priority, those stay that run for longest.
    let mut snapshot = cluster(&[("a", "8")]);
    let pods = [since(of("young", 1, "4"), 20), since(of("old", 1, "4"), 10)];
    run(&mut snapshot, "a", &pods);
    assert_eq!(
        choice(&of("p", 9, "4"), &mut snapshot, &none),
        chosen("a", &["young"])
    );
}

#[test]
fn the_node_is_chosen_where_the_least_is_lost() {
    type Case = (&'static str, Vec<Pod>, Vec<Pod>);
    let none = Nominations::default();
    let cases: [Case; 5] = [
        (
            "the least important",
            vec![of("x", 4, "8")],
            vec![of("y", 3, "4"), of("z", 3, "4")],
        ),
        (
            "the smallest sum",
            vec![of("x", 3, "4"), of("y", 2, "4")],
            vec![of("z", 3, "4"), of("w", 1, "4")],
        ),
        (
            "the fewest",
            vec![of("x", 3, "4"), of("y", 3, "4")],
            vec![of("z", 3, "8")],
        ),
        (
            "those that run since late",
            vec![since(of("x", 3, "8"), 10)],
            vec![since(of("z", 3, "8"), 20)],
        ),
        (
            "those that do not run yet",
            vec![since(of("x", 3, "8"), 10)],
            vec![of("z", 3, "8")],
        ),
    ];
    for (what, worse, better) in cases {
        for turned in [false, true] {
            let mut snapshot = cluster(&[("a", "8"), ("b", "8")]);
            let (first, second) = if turned { ("b", "a") } else { ("a", "b") };
            run(&mut snapshot, first, &worse);
            run(&mut snapshot, second, &better);
            let (found, _) = choice(&of("p", 9, "8"), &mut snapshot, &none);
            assert_eq!(found, second, "{what}");
        }
    }
}

#[test]
fn room_that_others_wait_for_is_theirs_unless_they_matter_less() {
    let mut snapshot = cluster(&[("a", "8")]);
    run(&mut snapshot, "a", &[of("low", 0, "6")]);
    let mut nominations = Nominations::default();
    let expected = PodInfo::new(&of("expected", 5, "6"));
    nominations.set(Arc::new(expected), "a".into());
    let full = "0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!(vain(&of("p", 5, "6"), &mut snapshot, &nominations), full);
    let low = chosen("a", &["low"]);
    assert_eq!(choice(&of("p", 6, "6"), &mut snapshot, &nominations), low);
    // What they leave is anybody's.
    let mut snapshot = cluster(&[("a", "11")]);
    run(&mut snapshot, "a", &[of("low", 0, "10")]);
    assert_eq!(choice(&of("p", 5, "4"), &mut snapshot, &nominations), low);
}

#[test]
fn who_must_not_be_near_the_pod_goes_where_that_is_enough() {
    let excluding = |uid: &str| saying(of(uid, 0, "1"), "db", required("podAntiAffinity", "web"));
    let web = saying(of("web", 9, "1"), "web", json!({}));
    let none = Nominations::default();
    let mut snapshot = cluster(&[("a1", "8"), ("a2", "8")]);
    run(&mut snapshot, "a1", &[excluding("x"), of("other", 0, "1")]);
    // On the other node of the zone, it would still be too near.
    assert_eq!(choice(&web, &mut snapshot, &none), chosen("a1", &["x"]));
    run(&mut snapshot, "a2", &[excluding("y")]);
    assert_eq!(
        vain(&web, &mut snapshot, &none),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    // The other way round.
    let far = saying(of("p", 9, "1"), "web", required("podAntiAffinity", "db"));
    let mut snapshot = cluster(&[("a1", "8"), ("a2", "8")]);
    run(
        &mut snapshot,
        "a1",
        &[saying(of("db", 0, "1"), "db", json!({}))],
    );
    assert_eq!(choice(&far, &mut snapshot, &none), chosen("a1", &["db"]));
}

#[test]
fn nobody_goes_whom_the_pod_needs_near() {
    let mut snapshot = cluster(&[("a", "8")]);
    run(
        &mut snapshot,
        "a",
        &[saying(of("db", 0, "6"), "db", json!({}))],
    );
    let near = saying(of("p", 9, "6"), "web", required("podAffinity", "db"));
    assert_eq!(
        vain(&near, &mut snapshot, &Nominations::default()),
        "0/1 nodes are available: 1 node(s) didn't match pod affinity rules."
    );
}

#[test]
fn pods_go_by_which_too_many_are_in_one_place() {
    let mut snapshot = cluster(&[("a1", "8"), ("a2", "8"), ("b1", "8")]);
    let replica = |uid: &str, priority: i32| saying(of(uid, priority, "1"), "x", json!({}));
    let mut wants = replica("p", 9);
    let constraint = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "x"}}}]);
    let constraints: Vec<TopologySpreadConstraint> =
        serde_json::from_value(constraint).expect("constraints");
    wants
        .spec
        .get_or_insert_default()
        .topology_spread_constraints = Some(constraints);
    // The zone with room has one more than the other already, which is full.
    run(&mut snapshot, "a1", &[replica("r", 0), of("other", 0, "1")]);
    run(&mut snapshot, "b1", &[of("full", 9, "8")]);
    assert_eq!(
        choice(&wants, &mut snapshot, &Nominations::default()),
        chosen("a1", &["r"])
    );
}

/// Budgets of pods by their label `app`, and how many of those may go.
fn budgets(allowed: &[(&str, i32)]) -> Budgets {
    let mut budgets = Budgets::default();
    for (app, allowed) in allowed {
        let budget = json!({
            "metadata": {"name": app, "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": app}}},
            "status": {"disruptionsAllowed": allowed},
        });
        budgets.set(&serde_json::from_value(budget).expect("a budget"));
    }
    budgets
}

fn guarded(uid: &str, priority: i32, cpu: &str, app: &str) -> Pod {
    let mut pod = saying(of(uid, priority, cpu), app, json!({}));
    pod.metadata.namespace = Some("default".to_owned());
    pod
}

#[test]
fn the_node_is_chosen_where_fewest_budgets_are_exceeded() {
    let none = Nominations::default();
    let high = of("high", 1000, "8");
    for (allowed, expected) in [(0, "b"), (1, "a")] {
        let mut snapshot = cluster(&[("a", "8"), ("b", "8")]);
        run(&mut snapshot, "a", &[guarded("web", 1, "8", "web")]);
        run(&mut snapshot, "b", &[guarded("db", 5, "8", "db")]);
        let budgets = budgets(&[("web", allowed)]);
        let (node, _) = choice_within(&budgets, &high, &mut snapshot, &none);
        assert_eq!(node, expected, "with {allowed} to take");
    }
    // Where nothing else will do, budgets are no obstacle.
    let mut snapshot = cluster(&[("a", "8")]);
    run(&mut snapshot, "a", &[guarded("web", 1, "8", "web")]);
    let budgets = budgets(&[("web", 0)]);
    let found = choice_within(&budgets, &high, &mut snapshot, &none);
    assert_eq!(found, chosen("a", &["web"]));
}

#[test]
fn whom_a_budget_keeps_stays_before_those_who_matter_more() {
    let none = Nominations::default();
    let pods = [
        guarded("kept", 1, "4", "web"),
        guarded("free", 5, "4", "db"),
    ];
    let mut snapshot = cluster(&[("a", "8")]);
    run(&mut snapshot, "a", &pods);
    let high = of("high", 1000, "4");
    let found = choice_within(&budgets(&[("web", 0)]), &high, &mut snapshot, &none);
    assert_eq!(found, chosen("a", &["free"]));
    let found = choice_within(&budgets(&[("web", 1)]), &high, &mut snapshot, &none);
    assert_eq!(found, chosen("a", &["kept"]));
    // All of them go the most important first, whoever keeps them.
    let high = of("higher", 1000, "8");
    let found = choice_within(&budgets(&[("web", 0)]), &high, &mut snapshot, &none);
    assert_eq!(found, chosen("a", &["free", "kept"]));
}
