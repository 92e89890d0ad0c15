//! Endpoints: what [`crate::endpoint_slice`] tells, in its older form, for clients that still read that.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_informer::{Key, Next, Queue, runner};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams};

use crate::context::Context;
use crate::endpoint_slice::plan::{self, LAST_CHANGE, target_port};
use crate::endpoint_slice::{Triggers, wake_on_changes};
use crate::error::{Doing, Result, code, namespace_terminating, taken_in};
use crate::pods::{is_finished, is_ready};
use crate::selection::{pods_of, selector};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// An object holds at most this many addresses.
const CAPACITY: usize = 1000;

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    wake_on_changes(&context, &queue);
    context.endpoints.subscribe(Box::new({
        let (queue, services) = (queue.clone(), context.services.clone());
        move |change| {
            let Some(endpoints) = change.last() else {
                return;
            };
            let key = Key::of(&endpoints.metadata);
            // Also one whose service went while nobody watched.
            let managed = endpoints.metadata.labels.as_ref();
            let managed = managed.and_then(|labels| labels.get(MANAGED_BY));
            if services.get(&key).is_some() || managed.map(String::as_str) == Some(MANAGER) {
                queue.add(key);
            }
        }
    }));
    let triggers = Arc::new(Triggers::default());
    let stop = context.stop.clone();
    runner::run("endpoints", queue, 8, stop, move |key| {
        let (context, triggers) = (context.clone(), triggers.clone());
        async move { reconcile(&context, &triggers, &key).await }
    })
    .await;
}

async fn reconcile(context: &Context, triggers: &Triggers, key: &Key) -> Result<Next> {
    let api: Api<Endpoints> = Api::namespaced(context.client.clone(), &key.namespace);
    let known = context.endpoints.get(key);
    let Some(service) = context.services.get(key) else {
        triggers.forget(key);
        let managed = |endpoints: &Endpoints| {
            let labels = endpoints.metadata.labels.as_ref();
            labels.is_some_and(|labels| labels.contains_key(MANAGED_BY))
        };
        if known.is_some_and(|known| managed(&known)) {
            match api.delete(&key.name, &DeleteParams::default()).await {
                Err(error) if code(&error) != Some(404) => {
                    return Err(error).doing("deleting endpoints", key);
                }
                _ => {}
            }
        }
        return Ok(Next::Changed);
    };
    if selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
        return Ok(Next::Changed);
    }
    let pods = pods_of(&context.pods, &service);
    let last_change = triggers.latest(key, &service, &pods);
    let mut wanted = wanted(&service, &pods, known.as_deref());
    let parameters = PostParams::default();
    let written = match known {
        Some(known) if *known == wanted => return Ok(Next::Changed),
        Some(_) => {
            note_change(&mut wanted, last_change);
            api.replace(&key.name, &parameters, &wanted).await
        }
        None => {
            note_change(&mut wanted, last_change);
            api.create(&parameters, &wanted).await
        }
    };
    match taken_in(written, &api, &context.endpoints, &key.name).await {
        Ok(()) => Ok(Next::Changed),
        Err(error) if namespace_terminating(&error) || code(&error) == Some(404) => {
            Ok(Next::Changed)
        }
        Err(error) => Err(error).doing("writing endpoints", key),
    }
}

fn note_change(endpoints: &mut Endpoints, last_change: Option<String>) {
    let annotations = endpoints.metadata.annotations.get_or_insert_default();
    match last_change {
        Some(time) => {
            annotations.insert(LAST_CHANGE.to_owned(), time);
        }
        None => {
            annotations.remove(LAST_CHANGE);
        }
    }
    if annotations.is_empty() {
        endpoints.metadata.annotations = None;
    }
}

/// The object as it should be, from what it is.
fn wanted(service: &Service, pods: &[Arc<Pod>], known: Option<&Endpoints>) -> Endpoints {
    let mut endpoints = known.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    endpoints.metadata.labels = Some(labels);
    let (subsets, truncated) = subsets(service, pods);
    endpoints.subsets = Some(subsets).filter(|subsets| !subsets.is_empty());
    let annotations = endpoints.metadata.annotations.get_or_insert_default();
    if truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        endpoints.metadata.annotations = None;
    }
    endpoints
}

/// Addresses grouped by the ports behind the service's, and whether some did not fit.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let spec = service.spec.clone().unwrap_or_default();
    let publish = spec.publish_not_ready_addresses.unwrap_or(false);
    // This form of endpoints knows one family: the service's first.
    let family = plan::families(service).first().copied().unwrap_or("IPv4");
    let mut groups: BTreeMap<Vec<(String, String, i32)>, EndpointSubset> = BTreeMap::new();
    let mut ready_first: Vec<&Arc<Pod>> = pods.iter().collect();
    ready_first.sort_by_key(|pod| !is_ready(pod));
    let mut count = 0;
    let mut truncated = false;
    for pod in ready_first {
        let Some(ip) = plan::address(pod, family) else {
            continue;
        };
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if is_finished(pod) || (leaving && !publish) {
            continue;
        }
        if count == CAPACITY {
            truncated = true;
            break;
        }
        count += 1;
        let ports: Vec<EndpointPort> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone(),
                    port: target_port(pod, port)?,
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        let key = ports
            .iter()
            .map(|port| {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                (text(&port.name), text(&port.protocol), port.port)
            })
            .collect();
        let subset = groups.entry(key).or_insert_with(|| EndpointSubset {
            ports: Some(ports).filter(|ports| !ports.is_empty()),
            ..EndpointSubset::default()
        });
        let list = if publish || is_ready(pod) {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address(service, pod, ip));
    }
    let mut subsets: Vec<_> = groups.into_values().collect();
    for subset in &mut subsets {
        let lists = [&mut subset.addresses, &mut subset.not_ready_addresses];
        for list in lists.into_iter().flatten() {
            list.sort_by(|left, right| left.ip.cmp(&right.ip));
        }
    }
    (subsets, truncated)
}

fn address(service: &Service, pod: &Pod, ip: String) -> EndpointAddress {
    let spec = pod.spec.as_ref();
    let subdomain = spec.and_then(|spec| spec.subdomain.as_ref());
    EndpointAddress {
        ip,
        hostname: spec
            .and_then(|spec| spec.hostname.clone())
            .filter(|name| !name.is_empty() && subdomain == service.metadata.name.as_ref()),
        node_name: spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "ns", "labels": {"l": "v"}},
            "spec": {
                "selector": {"app": "x"},
                "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "adm", "port": 81, "targetPort": 9000}],
            },
        }))
        .expect("a service")
    }

    fn pod(name: &str, ip: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name},
            "spec": {"nodeName": "n", "containers": [
                {"name": "c", "ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .expect("a pod")
    }

    #[test]
    fn as_recorded() {
        let pods = [
            pod("b", "10.244.1.6", "False"),
            pod("a", "10.244.1.5", "True"),
        ]
        .map(Arc::new);
        let wanted = wanted(&service(), &pods, None);
        let json: Value = serde_json::to_value(&wanted).expect("JSON");
        let target =
            |name: &str| json!({"kind": "Pod", "namespace": "ns", "name": name, "uid": name});
        assert_eq!(
            json["subsets"],
            json!([{
                "addresses": [{"ip": "10.244.1.5", "nodeName": "n", "targetRef": target("a")}],
                "notReadyAddresses": [{"ip": "10.244.1.6", "nodeName": "n", "targetRef": target("b")}],
                "ports": [
                    {"name": "http", "port": 8080, "protocol": "TCP"},
                    {"name": "adm", "port": 9000, "protocol": "TCP"},
                ],
            }])
        );
        assert_eq!(
            json["metadata"]["labels"],
            json!({"l": "v", "endpoints.kubernetes.io/managed-by": "endpoint-controller"})
        );
        // And what is as it should be stays.
        assert_eq!(super::wanted(&service(), &pods, Some(&wanted)), wanted);
    }

    #[test]
    fn what_does_not_fit_is_told_and_those_that_are_ready_come_first() {
        let many: Vec<Arc<Pod>> = (0..CAPACITY + 5)
            .map(|number| {
                let ready = if number < 5 { "False" } else { "True" };
                let ip = format!("10.244.{}.{}", number / 250, number % 250);
                Arc::new(pod(&format!("p{number:04}"), &ip, ready))
            })
            .collect();
        let full = wanted(&service(), &many, None);
        let subsets = full.subsets.clone().unwrap_or_default();
        let ready: usize = subsets
            .iter()
            .flat_map(|set| &set.addresses)
            .map(Vec::len)
            .sum();
        assert_eq!(ready, CAPACITY);
        let annotated = |endpoints: &Endpoints| {
            let annotations = endpoints.metadata.annotations.as_ref();
            annotations.and_then(|all| all.get(OVER_CAPACITY)).cloned()
        };
        assert_eq!(annotated(&full).as_deref(), Some("truncated"));
        let fewer = wanted(&service(), &many[..CAPACITY], Some(&full));
        assert_eq!(annotated(&fewer), None, "it fits again");
    }

    #[test]
    fn addresses_are_of_the_first_family() {
        let mut service = service();
        let families = ["IPv6", "IPv4"].map(str::to_owned);
        service.spec.get_or_insert_default().ip_families = Some(families.to_vec());
        let mut dual = pod("a", "10.244.1.5", "True");
        dual.status.get_or_insert_default().pod_ips =
            serde_json::from_value(json!([{"ip": "10.244.1.5"}, {"ip": "fd00::5"}])).expect("IPs");
        let subsets = wanted(&service, &[Arc::new(dual)], None)
            .subsets
            .unwrap_or_default();
        let addresses = subsets[0].addresses.iter().flatten();
        assert_eq!(
            addresses
                .map(|address| address.ip.as_str())
                .collect::<Vec<_>>(),
            ["fd00::5"]
        );
    }

    #[test]
    fn a_pod_on_its_way_out_is_no_endpoint() {
        let mut leaving = pod("a", "10.244.1.5", "True");
        leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        assert_eq!(wanted(&service(), &[Arc::new(leaving)], None).subsets, None);
    }
}
