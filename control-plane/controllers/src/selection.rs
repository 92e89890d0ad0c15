//! Which pods a service selects, which services select a pod, and which slices tell of a service: by index, so that a
//! change costs what it concerns, however many others there are in the namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_api::selector::LabelSelector;
use gantry_informer::{Cache, Key};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// Index of pods: each of their labels.
pub(crate) const LABELLED: &str = "labelled";
/// Index of services: one label that their pods must have.
pub(crate) const SELECTING: &str = "selecting";
/// Index of slices: the service they belong to.
pub(crate) const OF_SERVICE: &str = "service";
/// The label of a slice that names its service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

fn pair(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

fn namespace(namespace: Option<&String>) -> &str {
    namespace.map(String::as_str).unwrap_or_default()
}

pub(crate) fn labelled(pod: &Pod) -> Vec<String> {
    let namespace = namespace(pod.metadata.namespace.as_ref());
    let labels = pod.metadata.labels.iter().flatten();
    labels
        .map(|(key, value)| pair(namespace, key, value))
        .collect()
}

pub(crate) fn selecting(service: &Service) -> Vec<String> {
    let namespace = namespace(service.metadata.namespace.as_ref());
    // Of several labels, the one with the longest value is most likely that of few services.
    let told = selector(service)
        .into_iter()
        .flatten()
        .max_by_key(|(_, value)| value.len());
    told.map(|(key, value)| pair(namespace, key, value))
        .into_iter()
        .collect()
}

/// The service that a slice names.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let namespace = namespace(slice.metadata.namespace.as_ref());
    Some(Key::new(namespace, name))
}

pub(crate) fn of_service(slice: &EndpointSlice) -> Vec<String> {
    let service = service_of(slice);
    service.map(|key| key.to_string()).into_iter().collect()
}

/// The selector of a service whose endpoints are kept here; none for one whose endpoints are somebody else's.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector
        .as_ref()
        .filter(|selector| !selector.is_empty())
}

/// The services whose selector matches the pod.
pub(crate) fn services_of(services: &Cache<Service>, pod: &Pod) -> Vec<Arc<Service>> {
    let mut found = Vec::new();
    for value in labelled(pod) {
        found.extend(
            services
                .indexed(SELECTING, &value)
                .into_iter()
                .filter(|service| {
                    selector(service)
                        .map(LabelSelector::from_map)
                        .is_some_and(|selector| selector.matches_map(pod.metadata.labels.as_ref()))
                }),
        );
    }
    found
}

/// The pods that the service's selector matches.
pub(crate) fn pods_of(pods: &Cache<Pod>, service: &Service) -> Vec<Arc<Pod>> {
    let Some(labels) = selector(service) else {
        return Vec::new();
    };
    let namespace = namespace(service.metadata.namespace.as_ref());
    let rarest = labels
        .iter()
        .map(|(key, value)| pair(namespace, key, value))
        .min_by_key(|value| pods.count(LABELLED, value));
    let mut found = rarest
        .map(|value| pods.indexed(LABELLED, &value))
        .unwrap_or_default();
    let selector = LabelSelector::from_map(labels);
    found.retain(|pod| selector.matches_map(pod.metadata.labels.as_ref()));
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(name: &str, spec: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1"}, "spec": spec
        }))
        .expect("a service")
    }

    fn pod(name: &str, namespace: &str, labels: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "namespace": namespace, "uid": name, "resourceVersion": "1", "labels": labels
            }
        }))
        .expect("a pod")
    }

    fn names<'a>(names: impl Iterator<Item = &'a Option<String>>) -> Vec<&'a str> {
        names.filter_map(|name| name.as_deref()).collect()
    }

    #[test]
    fn pods_and_services_find_each_other() {
        let services = Cache::new(vec![("selecting", selecting)]);
        let pods = Cache::new(vec![("labelled", labelled)]);
        let both = service(
            "both",
            json!({"selector": {"app": "web-frontend", "tier": "x"}}),
        );
        services.observe(both.clone());
        services.observe(service("tier", json!({"selector": {"tier": "x"}})));
        services.observe(service("none", json!({"selector": {}})));
        let external = json!({"selector": {"tier": "x"}, "type": "ExternalName"});
        services.observe(service("external", external));
        pods.observe(pod("a", "ns", json!({"app": "web-frontend", "tier": "x"})));
        pods.observe(pod("b", "ns", json!({"app": "other", "tier": "x"})));
        pods.observe(pod(
            "c",
            "elsewhere",
            json!({"app": "web-frontend", "tier": "x"}),
        ));
        let found = pods_of(&pods, &both);
        assert_eq!(names(found.iter().map(|pod| &pod.metadata.name)), ["a"]);
        let of = |name: &str| {
            let pod = pods.get(&Key::new("ns", name)).expect("present");
            let found = services_of(&services, &pod);
            names(found.iter().map(|service| &service.metadata.name)).join(",")
        };
        assert_eq!(of("a"), "both,tier");
        assert_eq!(of("b"), "tier");
    }
}
