//! What objects count for, and what becomes of quotas.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// 2026-01-02T03:04:05Z
const NOW: i64 = 1_767_323_045_000_000_000;

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of the kind")
}

fn told(amounts: &Amounts) -> Value {
    json!(printed(amounts))
}

fn pod(containers: Value, more: Value) -> Pod {
    let mut spec = json!({"containers": containers});
    for (field, value) in more.as_object().expect("fields") {
        *crate::json::Members::member(&mut spec, &[field]) = value.clone();
    }
    object(json!({"metadata": {"name": "p"}, "spec": spec}))
}

fn quota(hard: Value, used: Value, spec: Value) -> ResourceQuota {
    let mut whole = json!({"hard": hard});
    for (field, value) in spec.as_object().expect("fields") {
        *crate::json::Members::member(&mut whole, &[field]) = value.clone();
    }
    object(json!({
        "metadata": {"name": "q"}, "spec": whole, "status": {"hard": hard, "used": used}
    }))
}

fn charged(quota: &ResourceQuota, new: Item<'_>, old: Option<Item<'_>>) -> Result<Charge, String> {
    let change = Change { new, old, now: NOW };
    charge(&[quota], &change).map(|charges| charges.into_iter().next().expect("one"))
}

#[test]
fn a_pod_counts_for_what_its_containers_have_at_once_and_for_its_overhead() {
    let containers = json!([{"name": "a", "resources": {
        "requests": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "4Mi", "example.com/gpu": "2"},
        "limits": {"cpu": "2", "hugepages-2Mi": "4Mi", "example.com/gpu": "2"}}}]);
    let overhead = json!({"overhead": {"cpu": "100m", "memory": "1Mi"}});
    let usage = Item::Pod(&pod(containers, overhead)).usage(NOW);
    let expected = json!({
        "count/pods": "1", "pods": "1", "cpu": "1100m", "requests.cpu": "1100m", "limits.cpu": "2100m",
        "memory": "1025Mi", "requests.memory": "1025Mi", "hugepages-2Mi": "4Mi",
        "requests.hugepages-2Mi": "4Mi", "requests.example.com/gpu": "2",
    });
    assert_eq!(told(&usage), expected);
}

#[test]
fn a_pod_that_is_resized_counts_for_the_most_of_what_it_asks_for_and_has() {
    let mut pod = pod(
        json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]),
        json!({}),
    );
    let status = |infeasible: bool| {
        object(json!({
            "containerStatuses": [{
                "name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "resources": {"requests": {"cpu": "2"}}, "allocatedResources": {"cpu": "500m"}}],
            "conditions": [{"type": "PodResizePending", "status": "True",
                "reason": if infeasible { "Infeasible" } else { "Deferred" }}],
        }))
    };
    let cpu = |pod: &Pod| {
        Item::Pod(pod)
            .usage(NOW)
            .get("cpu")
            .map(ToString::to_string)
    };
    pod.status = Some(status(false));
    assert_eq!(cpu(&pod).as_deref(), Some("2"));
    pod.spec = Some(object(
        json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "5"}}}]}),
    ));
    assert_eq!(cpu(&pod).as_deref(), Some("5"));
    pod.status = Some(status(true));
    assert_eq!(cpu(&pod).as_deref(), Some("2"));
}

#[test]
fn a_pod_that_has_ended_counts_as_an_object_alone() {
    let mut pod = pod(json!([{"name": "a"}]), json!({}));
    let counts = |pod: &Pod| Item::Pod(pod).usage(NOW).contains_key("pods");
    assert!(counts(&pod));
    pod.metadata.deletion_timestamp = Some(object(json!("2026-01-02T03:04:00Z")));
    pod.metadata.deletion_grace_period_seconds = Some(30);
    assert!(counts(&pod));
    assert_eq!(counts_until(&pod), Some(NOW + 25_000_000_000));
    pod.metadata.deletion_grace_period_seconds = Some(1);
    assert!(!counts(&pod));
    pod.metadata.deletion_timestamp = None;
    pod.status = Some(object(json!({"phase": "Failed"})));
    let usage = Item::Pod(&pod).usage(NOW);
    assert_eq!(told(&usage), json!({"count/pods": "1"}));
}

#[test]
fn services_count_their_ports_and_claims_their_class() {
    let service = |spec: Value| -> Value {
        let service: Service = object(json!({"spec": spec}));
        told(&Item::Service(&service).usage(NOW))
    };
    let usage = |balancers: &str, ports: &str| {
        json!({"count/services": "1", "services": "1",
            "services.loadbalancers": balancers, "services.nodeports": ports})
    };
    let ports = json!([{"port": 1}, {"port": 2, "nodePort": 30000}]);
    assert_eq!(service(json!({"ports": ports})), usage("0", "0"));
    let spec = json!({"type": "NodePort", "ports": ports});
    assert_eq!(service(spec), usage("0", "2"));
    let spec = json!({"type": "LoadBalancer", "ports": ports});
    assert_eq!(service(spec), usage("1", "2"));
    let spec =
        json!({"type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false});
    assert_eq!(service(spec), usage("1", "1"));
    let claim: PersistentVolumeClaim = object(json!({
        "spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"allocatedResources": {"storage": "2Gi"}},
    }));
    let expected = json!({
        "count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "2Gi",
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
        "gold.storageclass.storage.k8s.io/requests.storage": "2Gi",
    });
    assert_eq!(told(&Item::Claim(&claim).usage(NOW)), expected);
}

#[test]
fn every_name_is_of_one_kind_and_kinds_are_told_by_names() {
    let deployments = Counted {
        group: "apps",
        plural: "deployments",
    };
    let maps = Counted::core("configmaps");
    let kinds = [
        Counted::PODS,
        Counted::SERVICES,
        Counted::CLAIMS,
        deployments,
        maps,
    ];
    for (name, of, named) in [
        ("count/pods", Some(Counted::PODS), None),
        ("requests.example.com/gpu", Some(Counted::PODS), None),
        ("hugepages-2Mi", Some(Counted::PODS), None),
        ("requests.hugepages-2Mi", Some(Counted::PODS), None),
        ("services.nodeports", Some(Counted::SERVICES), None),
        ("requests.storage", Some(Counted::CLAIMS), None),
        (
            "a.storageclass.storage.k8s.io/requests.storage",
            Some(Counted::CLAIMS),
            None,
        ),
        ("a.storageclass.storage.k8s.io/other", None, None),
        (
            "count/deployments.apps",
            Some(deployments),
            Some("deployments.apps"),
        ),
        ("count/deployments", None, Some("deployments")),
        ("configmaps", Some(maps), Some("configmaps")),
        ("count/configmaps", Some(maps), Some("configmaps")),
        ("count/events", None, None),
        ("example.com/gpu", None, None),
    ] {
        let having: Vec<_> = kinds.iter().filter(|kind| kind.has(name)).collect();
        assert_eq!(having, of.iter().collect::<Vec<_>>(), "{name}");
        assert_eq!(Counted::named(name), named, "{name}");
    }
    assert!(!Counted::core("events").has("count/events"));
}

#[test]
fn scopes_select_pods_and_claims() {
    let matches = |spec: Value, item: Item<'_>| {
        let quota: ResourceQuota = object(json!({"spec": spec}));
        item.is_in_scopes(&quota)
    };
    let plain = |scope: &str| json!({"scopes": [scope]});
    let by = |scope: &str, operator: &str, values: Value| {
        json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": scope, "operator": operator, "values": values}]}})
    };
    let free = pod(json!([{"name": "a"}]), json!({}));
    let term = json!({"topologyKey": "z", "namespaces": ["other"]});
    let bound = pod(
        json!([{"name": "a", "resources": {"requests": {"cpu": "1"}}}]),
        json!({
            "activeDeadlineSeconds": 0, "priorityClassName": "high",
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 1, "podAffinityTerm": term}]}},
        }),
    );
    for (spec, of_free, of_bound) in [
        (json!({}), true, true),
        (plain("Terminating"), false, true),
        (plain("NotTerminating"), true, false),
        (plain("BestEffort"), true, false),
        (plain("NotBestEffort"), false, true),
        (plain("PriorityClass"), false, true),
        (plain("CrossNamespacePodAffinity"), false, true),
        (plain("VolumeAttributesClass"), false, false),
        (
            by("PriorityClass", "In", json!(["high", "low"])),
            false,
            true,
        ),
        (by("PriorityClass", "NotIn", json!(["high"])), true, false),
        (
            by("PriorityClass", "DoesNotExist", json!(null)),
            true,
            false,
        ),
    ] {
        assert_eq!(matches(spec.clone(), Item::Pod(&free)), of_free, "{spec}");
        assert_eq!(matches(spec.clone(), Item::Pod(&bound)), of_bound, "{spec}");
        let other = Item::Other(Counted::core("secrets"));
        assert_eq!(matches(spec.clone(), other), spec == json!({}));
    }
    let claim: PersistentVolumeClaim = object(json!({
        "spec": {"volumeAttributesClassName": "a"},
        "status": {"currentVolumeAttributesClassName": "b"},
    }));
    let none = PersistentVolumeClaim::default();
    for (spec, of_claim, of_none) in [
        (plain("VolumeAttributesClass"), true, false),
        (by("VolumeAttributesClass", "In", json!(["b"])), true, false),
        (
            by("VolumeAttributesClass", "DoesNotExist", json!(null)),
            false,
            true,
        ),
        (plain("BestEffort"), false, false),
    ] {
        assert_eq!(
            matches(spec.clone(), Item::Claim(&claim)),
            of_claim,
            "{spec}"
        );
        assert_eq!(matches(spec.clone(), Item::Claim(&none)), of_none, "{spec}");
    }
}

#[test]
fn what_is_too_much_is_told_in_kubernetes_words() {
    let hard = json!({"pods": "1", "requests.cpu": "1", "requests.memory": "1Gi"});
    let used = json!({"pods": "1", "requests.cpu": "500m", "requests.memory": "0"});
    let quota = quota(hard, used, json!({}));
    let asking = pod(
        json!([{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]),
        json!({}),
    );
    assert_eq!(
        charged(&quota, Item::Pod(&asking), None),
        Err(
            "exceeded quota: q, requested: pods=1,requests.cpu=1, used: pods=1,requests.cpu=500m, limited: pods=1,requests.cpu=1"
                .to_owned()
        )
    );
    let silent = pod(
        json!([{"name": "b"}, {"name": "a", "resources": {"requests": {"cpu": "1"}}}]),
        json!({"initContainers": [{"name": "i"}]}),
    );
    let expected =
        "failed quota: q: must specify requests.cpu for: b,i; requests.memory for: a,b,i";
    assert_eq!(
        charged(&quota, Item::Pod(&silent), None),
        Err(expected.to_owned())
    );
    // One that was there before the quota stays as it is, and may change otherwise.
    let there = Item::Pod(&silent);
    assert_eq!(charged(&quota, there, Some(there)), Ok(Charge::Nothing));
    // What says so of the pod as a whole says enough.
    let whole = pod(
        json!([{"name": "b"}]),
        json!({"resources": {"requests": {"cpu": "100m"}}}),
    );
    let refused = charged(&quota, Item::Pod(&whole), None).expect_err("no place");
    assert!(
        refused.starts_with("exceeded quota: q, requested: pods=1,"),
        "{refused}"
    );
}

#[test]
fn a_quota_that_nobody_has_counted_is_told_of_and_refuses_nothing_or_what_it_cannot_judge() {
    let other = Item::Other(Counted::core("secrets"));
    let mut quota = quota(json!({"secrets": "1"}), json!({}), json!({}));
    let expected = "status unknown for quota: q, resources: secrets";
    assert_eq!(charged(&quota, other, None), Err(expected.to_owned()));
    quota.status = None;
    assert_eq!(charged(&quota, other, None), Ok(Charge::Uncounted));
    assert_eq!(charged(&quota, other, Some(other)), Ok(Charge::Nothing));
    let map = Item::Other(Counted::core("configmaps"));
    assert_eq!(charged(&quota, map, None), Ok(Charge::Nothing));
}

#[test]
fn a_change_is_charged_for_what_is_more_and_for_all_where_it_comes_into_a_scope() {
    let service = |ports: usize| -> Service {
        let ports: Vec<Value> = (1..=ports).map(|port| json!({"port": port})).collect();
        object(json!({"spec": {"type": "NodePort", "ports": ports}}))
    };
    let ports = quota(
        json!({"services": "1", "services.nodeports": "3"}),
        json!({"services": "1", "services.nodeports": "2"}),
        json!({}),
    );
    let (two, three, four) = (service(2), service(3), service(4));
    let (two, three, four) = (
        Item::Service(&two),
        Item::Service(&three),
        Item::Service(&four),
    );
    let used = Amounts::from([
        ("services".to_owned(), Quantity::from_units(1)),
        ("services.nodeports".to_owned(), Quantity::from_units(3)),
    ]);
    assert_eq!(charged(&ports, three, Some(two)), Ok(Charge::Used(used)));
    assert_eq!(charged(&ports, two, Some(three)), Ok(Charge::Nothing));
    assert!(charged(&ports, four, Some(two)).is_err());
    let ending = quota(
        json!({"pods": "1"}),
        json!({"pods": "0"}),
        json!({"scopes": ["Terminating"]}),
    );
    let before = pod(json!([{"name": "a"}]), json!({}));
    let after = pod(json!([{"name": "a"}]), json!({"activeDeadlineSeconds": 5}));
    let used = Amounts::from([("pods".to_owned(), Quantity::from_units(1))]);
    let charge = charged(&ending, Item::Pod(&after), Some(Item::Pod(&before)));
    assert_eq!(charge, Ok(Charge::Used(used)));
}

/// A pod that asks for so much.
fn asking(millis: i64, ends: bool) -> Pod {
    let cpu = Quantity::from_millis(millis).to_string();
    let more = match ends {
        true => json!({"activeDeadlineSeconds": 1}),
        false => json!({}),
    };
    pod(
        json!([{"name": "a", "resources": {"requests": {"cpu": cpu}}}]),
        more,
    )
}

proptest! {
    /// However objects come and change, no quota is exceeded, and as long as nothing shrinks what is used is what there is.
    #[test]
    fn no_quota_is_exceeded_and_what_is_charged_is_what_is_there(
        most in 0i64..5_000,
        pods in 0i64..8,
        writes in proptest::collection::vec((0usize..10, 0i64..2_000, any::<bool>()), 0..40),
    ) {
        let hard = json!({"pods": pods.to_string(), "requests.cpu": Quantity::from_millis(most).to_string()});
        let none = json!({"pods": "0", "requests.cpu": "0"});
        let mut quotas = [
            quota(hard.clone(), none.clone(), json!({})),
            quota(hard, none, json!({"scopes": ["Terminating"]})),
        ];
        let mut there: BTreeMap<usize, Pod> = BTreeMap::new();
        let mut has_shrunk = false;
        for (at, millis, ends) in writes {
            let new = asking(millis, ends);
            let old = there.get(&at);
            let change = Change { new: Item::Pod(&new), old: old.map(Item::Pod), now: NOW };
            let charges = charge(&[&quotas[0], &quotas[1]], &change);
            let Ok(charges) = charges else { continue };
            has_shrunk |= old.is_some_and(|old| {
                let (before, after) = (Item::Pod(old).usage(NOW), Item::Pod(&new).usage(NOW));
                before["cpu"] > after["cpu"] || !ends && Item::Pod(old).is_in_scopes(&quotas[1])
            });
            for (quota, charge) in quotas.iter_mut().zip(charges) {
                if let Charge::Used(used) = charge {
                    quota.status.as_mut().expect("a status").used = Some(printed(&used));
                }
            }
            there.insert(at, new);
        }
        for quota in &quotas {
            let status = quota.status.as_ref().expect("a status");
            let (hard, used) = (parsed(status.hard.as_ref()), parsed(status.used.as_ref()));
            let mut counted = Amounts::new();
            for pod in there.values().map(Item::Pod).filter(|pod| pod.is_in_scopes(quota)) {
                add(&mut counted, &pod.usage(NOW));
            }
            for (name, used) in &used {
                prop_assert!(*used <= hard[name], "{name}: {used}");
                let there = counted.get(name).copied().unwrap_or_default();
                prop_assert!(there <= *used, "{name}: {there} of {used}");
                prop_assert!(has_shrunk || there == *used, "{name}: {there} of {used}");
            }
        }
    }
}
