use std::collections::BTreeMap;
use std::time::Duration;

use gantry_api::conditions;
use gantry_api::kinds::pod_disruption_budget::DISRUPTION_ALLOWED;
use gantry_informer::cache::IndexFn;
use gantry_informer::{Cache, Informer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::plan::{DELETION_TIMEOUT, Plan};
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).expect("in range")
}

fn budget(spec: Value) -> PodDisruptionBudget {
    let object = json!({
        "metadata": {"name": "b", "namespace": "ns", "uid": "b", "generation": 3, "resourceVersion": "1"}, "spec": spec,
    });
    serde_json::from_value(object).expect("a budget")
}

fn pod(name: &str, ready: bool, deleted: bool) -> Arc<Pod> {
    let status = if ready { "True" } else { "False" };
    let deleted = deleted.then_some("2026-01-02T03:04:05Z");
    let pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "deletionTimestamp": deleted},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn numbers(plan: &Plan) -> [i32; 4] {
    let status = plan.status.clone().expect("it is told");
    let numbers = [
        status.expected_pods,
        status.desired_healthy,
        status.current_healthy,
        status.disruptions_allowed,
    ];
    numbers.map(Option::unwrap_or_default)
}

fn reason(status: &PodDisruptionBudgetStatus) -> String {
    let told = conditions::find(status.conditions.as_deref(), DISRUPTION_ALLOWED);
    told.expect("it is told").reason.clone()
}

#[test]
fn amounts_and_shares_are_of_what_is_wanted() {
    let pods: Vec<_> = (0..5)
        .map(|number| pod(&number.to_string(), number < 4, false))
        .collect();
    for (spec, wanted, expected) in [
        (json!({"minAvailable": 2}), 0, [5, 2, 4, 2]),
        (json!({"minAvailable": 9}), 0, [5, 9, 4, 0]),
        (json!({"minAvailable": "30%"}), 7, [7, 3, 4, 1]),
        (json!({"minAvailable": "100%"}), 5, [5, 5, 4, 0]),
        (json!({"maxUnavailable": 2}), 5, [5, 3, 4, 1]),
        (json!({"maxUnavailable": 9}), 5, [5, 0, 4, 4]),
        (json!({"maxUnavailable": "30%"}), 5, [5, 3, 4, 1]),
        (json!({"maxUnavailable": 0}), 5, [5, 5, 4, 0]),
        (json!({}), 5, [0, 0, 4, 0]),
    ] {
        let budget = budget(spec.clone());
        let is_share = spec["minAvailable"].is_string() || !spec["maxUnavailable"].is_null();
        assert_eq!(asks_owners(&budget), is_share, "{spec}");
        let found = plan(&budget, &pods, wanted, at(0));
        assert_eq!(numbers(&found), expected, "{spec}");
        let status = found.status.expect("it is told");
        assert_eq!(status.observed_generation, Some(3));
        let enough = expected[3] > 0;
        let why = if enough {
            "SufficientPods"
        } else {
            "InsufficientPods"
        };
        assert_eq!(reason(&status), why);
    }
    // A budget without pods lets none go.
    assert_eq!(
        numbers(&plan(&budget(json!({"minAvailable": 0})), &[], 0, at(0))),
        [0; 4]
    );
}

#[test]
fn who_was_evicted_is_not_counted_until_it_has_stayed_for_too_long() {
    let mut budget = budget(json!({"minAvailable": 1}));
    let evicted = |seconds: [i64; 3]| {
        let names = ["gone", "going", "stays"];
        let times = seconds.map(|second| Time(at(second)));
        names
            .map(str::to_owned)
            .into_iter()
            .zip(times)
            .collect::<BTreeMap<_, _>>()
    };
    budget.status.get_or_insert_default().disrupted_pods = Some(evicted([0, 0, 30]));
    let pods = [
        pod("going", true, true),
        pod("stays", true, false),
        pod("other", true, false),
    ];
    let first = plan(&budget, &pods, 0, at(40));
    assert_eq!(numbers(&first), [3, 1, 1, 0]);
    assert_eq!(first.again, Some(Duration::from_secs(110)));
    assert!(first.stayed.is_empty());
    budget.status = first.status;
    let awaited = budget
        .status
        .as_ref()
        .and_then(|status| status.disrupted_pods.clone());
    let awaited: Vec<String> = awaited.unwrap_or_default().into_keys().collect();
    assert_eq!(awaited, ["stays"]);
    let later = plan(&budget, &pods, 0, at(150));
    assert_eq!(numbers(&later), [3, 1, 2, 1]);
    assert_eq!((later.again, later.stayed.len()), (None, 1));
    let status = later.status.expect("it is told");
    assert_eq!(status.disrupted_pods, None);
}

#[test]
fn what_could_not_be_counted_lets_nobody_go_and_is_told_once() {
    let mut budget = budget(json!({"maxUnavailable": 1}));
    budget.status = plan(&budget, &[pod("a", true, false)], 1, at(0)).status;
    let told = failed(&budget, "found no controllers", at(1)).expect("it is news");
    assert_eq!(
        (told.disruptions_allowed, &*reason(&told)),
        (Some(0), "SyncFailed")
    );
    budget.status = Some(told);
    assert_eq!(failed(&budget, "found no controllers", at(2)), None);
    let again = plan(&budget, &[pod("a", true, false)], 1, at(3)).status;
    assert_eq!(reason(&again.expect("it is news")), "SufficientPods");
}

#[test]
fn a_pod_says_for_two_minutes_that_it_is_about_to_go() {
    let saying = |status: &str, reason: &str, more: Value| {
        let mut pod = json!({
            "metadata": {"name": "p"},
            "status": {"phase": "Running", "conditions": [{
                "type": "DisruptionTarget", "status": status, "reason": reason,
                "lastTransitionTime": serde_json::to_value(Time(at(0))).expect("a time"),
            }]},
        });
        for (part, fields) in more.as_object().expect("an object") {
            for (field, value) in fields.as_object().expect("an object") {
                pod[part][field] = value.clone();
            }
        }
        serde_json::from_value::<Pod>(pod).expect("a pod")
    };
    let left = |pod: &Pod| stale::left(pod, at(100)).map(|left| left.as_secs());
    assert_eq!(
        left(&saying("True", "EvictionByEvictionAPI", json!({}))),
        Some(20)
    );
    assert_eq!(
        stale::left(&saying("True", "Any", json!({})), at(500)),
        Some(Duration::ZERO)
    );
    assert_eq!(left(&saying("False", "Any", json!({}))), None);
    assert_eq!(
        left(&saying("True", "TerminationByKubelet", json!({}))),
        None
    );
    assert_eq!(
        left(&saying(
            "True",
            "Any",
            json!({"status": {"phase": "Failed"}})
        )),
        None
    );
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}});
    assert_eq!(left(&saying("True", "Any", going)), None);
    assert_eq!(left(&pod("p", true, false)), None);
}

#[test]
fn only_what_budgets_count_wakes_them() {
    let one = pod("p", true, false);
    assert!(counts_alike(&one, &one));
    for other in [
        pod("p", false, false),
        pod("p", true, true),
        pod("q", true, false),
    ] {
        assert!(!counts_alike(&one, &other));
    }
    let mut labelled = (*one).clone();
    labelled.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    assert!(!counts_alike(&one, &labelled));
    let mut annotated = (*one).clone();
    annotated.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
    assert!(counts_alike(&one, &annotated));
}

/// The owners of a cluster whose API server is asked nothing.
fn owners() -> Owners {
    fn informer<K: Object>() -> Informer<K> {
        let none: Vec<(&'static str, IndexFn<K>)> = Vec::new();
        Informer::new(Arc::new(Cache::new(none)), &CancellationToken::new())
    }
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("nobody is asked"))
    });
    Owners {
        deployments: informer(),
        replica_sets: informer(),
        stateful_sets: informer(),
        replication_controllers: informer(),
        others: Targets::new(kube::Client::new(service, "ns")),
    }
}

#[tokio::test]
async fn each_owner_is_counted_once_and_a_deployment_for_its_sets() {
    let owners = owners();
    let metadata = |name: &str, owner: Option<(&str, &str)>| {
        let owner = owner.map(|(kind, name)| {
            let version = if kind == "ReplicationController" { "v1" } else { "apps/v1" };
            json!({"apiVersion": version, "kind": kind, "name": name, "uid": name, "controller": true})
        });
        let owners: Vec<Value> = owner.into_iter().collect();
        json!({"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1", "ownerReferences": owners})
    };
    fn made<K: Object>(metadata: Value, spec: Value) -> K {
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("an object")
    }
    let spec = |replicas: i32| json!({"replicas": replicas, "selector": {}, "serviceName": "s", "template": {}});
    owners
        .deployments
        .observe(made(metadata("web", None), spec(5)));
    for set in ["web-1", "web-2"] {
        let of = Some(("Deployment", "web"));
        owners
            .replica_sets
            .observe(made(metadata(set, of), spec(2)));
    }
    owners
        .replica_sets
        .observe(made(metadata("alone", None), spec(3)));
    owners
        .stateful_sets
        .observe(made(metadata("db", None), spec(7)));
    let controller = json!({"replicas": 11});
    let controllers = &owners.replication_controllers;
    controllers.observe(made(metadata("old", None), controller));
    let of = |name: &str, owner: Option<(&str, &str)>| {
        Arc::new(made::<Pod>(
            metadata(name, owner),
            json!({"containers": []}),
        ))
    };
    let pods = [
        of("a", Some(("ReplicaSet", "web-1"))),
        of("b", Some(("ReplicaSet", "web-1"))),
        of("c", Some(("ReplicaSet", "web-2"))),
        of("d", Some(("ReplicaSet", "alone"))),
        of("e", Some(("StatefulSet", "db"))),
        of("f", Some(("ReplicationController", "old"))),
        of("g", None),
    ];
    let wanted = owners.wanted("ns", &pods).await.expect("all are known");
    assert_eq!(
        (wanted.pods, wanted.unmanaged),
        (5 + 3 + 7 + 11, vec!["g".to_owned()])
    );
    // Of another namespace, or of kinds that are in no cache, the API server is asked.
    let elsewhere = owners.wanted("other", &pods).await;
    assert!(elsewhere.is_err());
}

/// What happens to the pods of a budget.
#[derive(Clone, Debug)]
enum Event {
    /// Somebody asks for a pod to be evicted.
    Evict(usize),
    /// The deletion of an evicted pod is seen, which was under way.
    Delete(usize),
    /// The controller looks.
    Look,
    Pass(i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0usize..8).prop_map(Event::Evict),
        2 => (0usize..8).prop_map(Event::Delete),
        2 => Just(Event::Look),
        1 => (1i64..30).prop_map(Event::Pass),
    ]
}

proptest! {
    /// What is allowed leaves as many healthy pods as there must be, and a plan that was carried out leaves nothing to do.
    #[test]
    fn a_plan_allows_no_more_than_can_go(
        ready in prop::collection::vec((any::<bool>(), any::<bool>(), prop::option::of(0i64..300)), 0..8),
        amount in 0i32..10,
        is_share in any::<bool>(),
        is_least in any::<bool>(),
        wanted in 0i32..10,
        now in 0i64..300,
    ) {
        let amount = match is_share {
            true => json!(format!("{}%", amount * 10)),
            false => json!(amount),
        };
        let name = if is_least { "minAvailable" } else { "maxUnavailable" };
        let mut budget = budget(json!({name: amount}));
        let mut evicted = BTreeMap::new();
        let mut pods = Vec::new();
        for (number, (ready, deleted, time)) in ready.into_iter().enumerate() {
            let name = number.to_string();
            pods.push(pod(&name, ready, deleted));
            if let Some(time) = time {
                evicted.insert(name, Time(at(time)));
            }
        }
        budget.status.get_or_insert_default().disrupted_pods = Some(evicted);
        let first = plan(&budget, &pods, wanted, at(now));
        let [expected, desired, healthy, allowed] = numbers(&first);
        prop_assert!(allowed >= 0 && desired >= 0 && healthy >= 0);
        prop_assert!(allowed == 0 || expected > 0 && healthy - allowed >= desired);
        prop_assert!(allowed > 0 || expected <= 0 || healthy <= desired);
        budget.status = first.status;
        let second = plan(&budget, &pods, wanted, at(now));
        prop_assert_eq!(second.status, None);
        prop_assert!(second.stayed.is_empty());
        prop_assert_eq!(first.again.is_some(), second.again.is_some());
    }

    /// However evictions, deletions and looks follow each other, there are never fewer healthy pods than there must be, as long
    /// as deletions are not lost for longer than they are waited for.
    #[test]
    fn evictions_leave_as_many_as_there_must_be(
        least in 0i32..8,
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut budget = budget(json!({"minAvailable": least}));
        let mut pods: Vec<_> = (0..8).map(|number| pod(&number.to_string(), true, false)).collect();
        // Evicted, and when that was.
        let mut under_way: BTreeMap<usize, i64> = BTreeMap::new();
        let mut now = 0;
        for event in events {
            match event {
                Event::Evict(number) => {
                    let status = budget.status.get_or_insert_default();
                    let allowed = status.disruptions_allowed.unwrap_or(0);
                    let goes = pods[number].metadata.deletion_timestamp.is_some();
                    if allowed > 0 && !goes {
                        status.disruptions_allowed = Some(allowed - 1);
                        let evicted = status.disrupted_pods.get_or_insert_default();
                        evicted.insert(number.to_string(), Time(at(now)));
                        under_way.insert(number, now);
                    }
                }
                Event::Delete(number) => {
                    if under_way.remove(&number).is_some() {
                        pods[number] = pod(&number.to_string(), true, true);
                    }
                }
                Event::Look => {
                    if let Some(status) = plan(&budget, &pods, 0, at(now)).status {
                        budget.status = Some(status);
                    }
                }
                Event::Pass(seconds) => now += seconds,
            }
            // None is lost for so long.
            let limit = i64::try_from(DELETION_TIMEOUT.as_secs()).expect("in range");
            let late: Vec<usize> = under_way
                .iter()
                .filter(|(_, since)| now - **since >= limit)
                .map(|(number, _)| *number)
                .collect();
            for number in late {
                under_way.remove(&number);
                pods[number] = pod(&number.to_string(), true, true);
            }
            let left = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
            let left = left.count() - under_way.len();
            prop_assert!(left >= usize::try_from(least).expect("in range"));
        }
    }
}
