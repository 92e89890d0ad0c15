//! What comes of services: slices, mirrors of endpoints that users keep, and the addresses of load balancers.

use k8s_openapi::api::core::v1::{Endpoints, Event, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::common::{Cluster, create, gone, wait, wait_list};

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// The addresses of slices with their readiness, sorted.
fn told(slices: &[EndpointSlice]) -> Vec<(String, bool)> {
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten());
    let mut told: Vec<_> = endpoints
        .map(|endpoint| {
            let ready = endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready);
            (endpoint.addresses[0].clone(), ready.unwrap_or(true))
        })
        .collect();
    told.sort();
    told
}

async fn report(nodes: &Api<Node>, name: &str, ready: &str) {
    let condition = json!({"type": "Ready", "status": ready, "reason": "r", "message": "m"});
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    let patched = nodes
        .patch_status(name, &PatchParams::default(), &patch)
        .await;
    patched.expect("the node's status");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_nodes_pods_are_no_ready_endpoints() {
    let cluster = Cluster::start().await.with_node("n", "4").await;
    cluster.namespace("ns").await;
    let services: Api<Service> = cluster.api("ns");
    let spec = json!({"selector": {"app": "x"}, "ports": [{"port": 80}]});
    create(&services, service("s", spec)).await;
    let pods: Api<Pod> = cluster.api("ns");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "x"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}
    });
    create(&pods, pod).await;
    let slices: Api<EndpointSlice> = cluster.api("ns");
    let is = |ready: bool| {
        move |slices: &[EndpointSlice]| {
            let told = told(slices);
            told.len() == 1 && told[0].1 == ready
        }
    };
    wait_list(&slices, "", "the pod is ready", is(true)).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    report(&nodes, "n", "Unknown").await;
    wait_list(&slices, "", "the pod is withdrawn", is(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_a_user_keeps_are_mirrored() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let services: Api<Service> = cluster.api("ns");
    let endpoints: Api<Endpoints> = cluster.api("ns");
    let slices: Api<EndpointSlice> = cluster.api("ns");
    let object = |addresses: Value| {
        json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "s"},
            "subsets": [{"addresses": addresses, "ports": [{"port": 5432}]}]
        })
    };
    create(
        &endpoints,
        object(json!([{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}])),
    )
    .await;
    create(&services, service("s", json!({"ports": [{"port": 5432}]}))).await;
    let ready = |addresses: &[&str]| -> Vec<(String, bool)> {
        addresses
            .iter()
            .map(|address| ((*address).to_owned(), true))
            .collect()
    };
    let both = ready(&["192.0.2.1", "2001:db8::1"]);
    wait_list(&slices, "", "both are mirrored", |slices| {
        slices.len() == 2 && told(slices) == both
    })
    .await;
    let changed: Endpoints =
        serde_json::from_value(object(json!([{"ip": "192.0.2.9"}]))).expect("endpoints");
    let replaced = endpoints
        .replace("s", &PostParams::default(), &changed)
        .await;
    replaced.expect("other endpoints");
    let other = ready(&["192.0.2.9"]);
    wait_list(&slices, "", "the mirror follows", |slices| {
        slices.len() == 1 && told(slices) == other
    })
    .await;
    // With a selector, the pods say where the service is.
    let patch = Patch::Merge(json!({"spec": {"selector": {"app": "x"}}}));
    let patched = services.patch("s", &PatchParams::default(), &patch).await;
    patched.expect("a selector");
    wait_list(&slices, "", "the mirror is gone", |slices| {
        slices.len() == 1 && told(slices).is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_object_of_a_cluster_ip_comes_back_and_goes_with_its_service() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let services: Api<Service> = cluster.api("ns");
    let made = create(&services, service("s", json!({"ports": [{"port": 80}]}))).await;
    let ip = made
        .spec
        .and_then(|spec| spec.cluster_ip)
        .expect("an address");
    let addresses: Api<IPAddress> = Api::all(cluster.client.clone());
    let first = addresses
        .get(&ip)
        .await
        .expect("it came with the service")
        .metadata
        .uid;
    addresses
        .delete(&ip, &DeleteParams::default())
        .await
        .expect("deleted");
    let again = move |address: Option<&IPAddress>| {
        address.is_some_and(|address| {
            address.spec.parent_ref.name == "s" && address.metadata.uid != first
        })
    };
    wait(&addresses, &ip, "it is back", again).await;
    services
        .delete("s", &DeleteParams::default())
        .await
        .expect("deleted");
    gone(&addresses, &ip).await;
    let stray = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": ip, "labels": {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"resource": "services", "namespace": "ns", "name": "s"}}
    });
    create(&addresses, stray).await;
    gone(&addresses, &ip).await;
}

/// A service's balancer: its addresses, and the condition's reason.
fn balanced(service: Option<&Service>) -> (Vec<String>, String) {
    let status = service
        .and_then(|service| service.status.clone())
        .unwrap_or_default();
    let ingress = status.load_balancer.and_then(|balancer| balancer.ingress);
    let addresses = ingress.into_iter().flatten().filter_map(|entry| entry.ip);
    let conditions = status.conditions.into_iter().flatten();
    let reason = conditions.map(|condition| condition.reason).collect();
    (addresses.collect(), reason)
}

fn on(addresses: &[&str], reason: &str) -> impl Fn(Option<&Service>) -> bool + Clone {
    let expected: Vec<String> = addresses
        .iter()
        .map(|address| (*address).to_owned())
        .collect();
    let expected = (expected, reason.to_owned());
    move |service: Option<&Service>| balanced(service) == expected
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balanced_service_has_the_addresses_of_the_nodes() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2")] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        create(&nodes, node).await;
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": address}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "r", "message": "m"}]
        }});
        let patched = nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await;
        patched.expect("the node's status");
    }
    let services: Api<Service> = cluster.api("ns");
    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
    create(&services, service("first", spec.clone())).await;
    let both = on(&["192.0.2.1", "192.0.2.2"], "Served");
    wait(&services, "first", "both nodes serve", both.clone()).await;
    create(&services, service("second", spec)).await;
    wait(
        &services,
        "second",
        "the port is taken",
        on(&[], "PortTaken"),
    )
    .await;

    report(&nodes, "b", "Unknown").await;
    wait(
        &services,
        "first",
        "one node serves",
        on(&["192.0.2.1"], "Served"),
    )
    .await;
    report(&nodes, "b", "True").await;
    wait(&services, "first", "both serve again", both.clone()).await;

    let patch = Patch::Merge(json!({"spec": {"externalTrafficPolicy": "Local"}}));
    let patched = services
        .patch("first", &PatchParams::default(), &patch)
        .await;
    assert!(
        patched
            .expect("Local")
            .spec
            .expect("a spec")
            .health_check_node_port
            .is_some()
    );
    // While it has no node, the other one takes the port, which may be over before anybody looks.
    let (none, taken) = (on(&[], "NoNodes"), on(&[], "PortTaken"));
    let has_none = move |service: Option<&Service>| none(service) || taken(service);
    wait(&services, "first", "no node has an endpoint", has_none).await;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "first-1", "labels": {"kubernetes.io/service-name": "first"}},
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": ["10.244.0.1"], "nodeName": "b"}]
    });
    let slices: Api<EndpointSlice> = cluster.api("ns");
    create(&slices, slice).await;
    services
        .delete("second", &DeleteParams::default())
        .await
        .expect("deleted");
    gone(&services, "second").await;
    wait(
        &services,
        "first",
        "its node serves",
        on(&["192.0.2.2"], "Served"),
    )
    .await;

    let patch = Patch::Merge(json!({"spec": {"type": "ClusterIP"}}));
    let patched = services
        .patch("first", &PatchParams::default(), &patch)
        .await;
    patched.expect("another type");
    wait(&services, "first", "nothing is left of it", on(&[], "")).await;
    let events: Api<Event> = cluster.api("ns");
    let reasons = |events: &[Event]| {
        let has = |reason: &str| {
            events
                .iter()
                .any(|event| event.reason.as_deref() == Some(reason))
        };
        [
            "EnsuredLoadBalancer",
            "UpdatedLoadBalancer",
            "UnAvailableLoadBalancer",
            "SyncLoadBalancerFailed",
        ]
        .into_iter()
        .all(has)
    };
    wait_list(
        &events,
        "involvedObject.kind=Service",
        "events tell of it",
        reasons,
    )
    .await;
}

/// What Go clients write of a service that somebody else balances: conditions that never said when, and objects with all
/// fields that are not left out when empty.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_service_is_its_balancers() {
    let cluster = Cluster::start().await;
    cluster.namespace("ns").await;
    let services: Api<Service> = cluster.api("ns");
    let spec = json!({"type": "LoadBalancer", "loadBalancerClass": "a.example/balancer", "ports": [{"name": "http", "port": 80}]});
    create(&services, service("s", spec)).await;
    let resource = ApiResource::erase::<Service>(&());
    let untyped: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "ns", &resource);
    let found = untyped.get_status("s").await.expect("its status");
    assert_eq!(found.data["status"], json!({"loadBalancer": {}}));
    let patch = json!({"metadata": {"annotations": {"patched": "true"}},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
    let parameters = PatchParams::default();
    let patched = untyped
        .patch_status("s", &parameters, &Patch::Merge(patch))
        .await
        .expect("patched");
    let annotations = patched.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations.get("patched").map(String::as_str), Some("true"));
    let ingress = json!([{"ip": "203.0.113.1", "ipMode": "VIP"}]);
    assert_eq!(patched.data["status"]["loadBalancer"]["ingress"], ingress);
    let mut changed = patched;
    let condition = json!({"type": "StatusUpdate", "status": "True", "lastTransitionTime": null, "reason": "R", "message": "m"});
    changed.data = json!({"spec": changed.data["spec"], "status": {
        "loadBalancer": changed.data["status"]["loadBalancer"], "conditions": [condition]}});
    let updated = untyped
        .replace_status("s", &PostParams::default(), &changed)
        .await
        .expect("updated");
    assert_eq!(
        updated.data["status"]["conditions"][0]["type"],
        "StatusUpdate"
    );
    assert_eq!(updated.data["status"]["loadBalancer"]["ingress"], ingress);
    let patch = json!({"metadata": {"labels": {"service": "patched"}, "creationTimestamp": null},
        "spec": {}, "status": {"loadBalancer": {}}});
    let patched = untyped
        .patch("s", &parameters, &Patch::Strategic(patch))
        .await
        .expect("patched");
    let labels = patched.metadata.labels.unwrap_or_default();
    assert_eq!(labels.get("service").map(String::as_str), Some("patched"));
    assert_eq!(
        patched.data["status"], updated.data["status"],
        "the status stays"
    );
    services
        .delete("s", &DeleteParams::default())
        .await
        .expect("deleted");
    gone(&services, "s").await;
}
