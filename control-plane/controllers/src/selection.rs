//! Which pods and deployments a service selects, which services select a deployment's pods, and which slices tell of a
//! service: by index, so that a change costs what it concerns, however many others there are in the namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_api::selector::LabelSelector;
use gantry_informer::{Cache, Informer, Key, Object};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::selecting::{Selecting, Selects, Wanted};

/// Index of pods: each of their labels.
pub(crate) const LABELLED: &str = "labelled";
/// Index of deployments: each label of their template.
pub(crate) const TEMPLATE_LABELLED: &str = "template labelled";
/// Index of slices: the service they belong to.
const OF_SERVICE: &str = "service";
/// The label of a slice that names its service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// How an index tells a label of an object in a namespace.
fn pair(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

fn namespace(namespace: Option<&String>) -> &str {
    namespace.map(String::as_str).unwrap_or_default()
}

fn pairs(namespace: Option<&String>, labels: Option<&BTreeMap<String, String>>) -> Vec<String> {
    let namespace = self::namespace(namespace);
    let labels = labels.into_iter().flatten();
    labels
        .map(|(key, value)| pair(namespace, key, value))
        .collect()
}

pub(crate) fn labelled(pod: &Pod) -> Vec<String> {
    pairs(
        pod.metadata.namespace.as_ref(),
        pod.metadata.labels.as_ref(),
    )
}

/// The labels that a deployment's pods get.
pub(crate) fn template_labels(deployment: &Deployment) -> Option<&BTreeMap<String, String>> {
    let template = &deployment.spec.as_ref()?.template;
    template.metadata.as_ref()?.labels.as_ref()
}

pub(crate) fn template_labelled(deployment: &Deployment) -> Vec<String> {
    pairs(
        deployment.metadata.namespace.as_ref(),
        template_labels(deployment),
    )
}

/// The service that a slice names.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let namespace = namespace(slice.metadata.namespace.as_ref());
    Some(Key::new(namespace, name))
}

fn of_service(slice: &EndpointSlice) -> Vec<String> {
    let service = service_of(slice);
    service.map(|key| key.to_string()).into_iter().collect()
}

/// Slices that are found by their service: see [`slices_of`].
pub fn by_service(slices: Informer<EndpointSlice>) -> Informer<EndpointSlice> {
    slices.index(OF_SERVICE, of_service)
}

/// The slices of a service, out of those that were indexed [`by_service`].
pub fn slices_of(slices: &Cache<EndpointSlice>, service: &Key) -> Vec<Arc<EndpointSlice>> {
    slices.indexed(OF_SERVICE, &service.to_string())
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

impl Selects for Service {
    fn wanted(&self) -> Option<Wanted<'_>> {
        selector(self).map(Wanted::Labels)
    }
}

/// The services whose selector matches the deployment's pods.
pub(crate) fn services_of_template(
    services: &Selecting<Service>,
    deployment: &Deployment,
) -> Vec<Key> {
    let namespace = deployment.metadata.namespace.as_ref();
    services.selecting_labels(namespace, template_labels(deployment))
}

/// The pods that the service's selector matches.
pub(crate) fn pods_of(pods: &Cache<Pod>, service: &Service) -> Vec<Arc<Pod>> {
    matching(pods, LABELLED, service, |pod| pod.metadata.labels.as_ref())
}

/// The deployments whose pods the service's selector matches, or would match if there were any.
pub(crate) fn deployments_of(
    deployments: &Cache<Deployment>,
    service: &Service,
) -> Vec<Arc<Deployment>> {
    matching(deployments, TEMPLATE_LABELLED, service, template_labels)
}

/// Whether the service's selector matches the deployment's pods.
pub(crate) fn selects(service: &Service, deployment: &Deployment) -> bool {
    selector(service).is_some_and(|labels| {
        LabelSelector::from_map(labels).matches_map(template_labels(deployment))
    })
}

/// The objects that the service's selector matches by these labels, which are in this index.
fn matching<K: Object>(
    cache: &Cache<K>,
    index: &str,
    service: &Service,
    labels_of: impl Fn(&K) -> Option<&BTreeMap<String, String>>,
) -> Vec<Arc<K>> {
    let Some(labels) = selector(service) else {
        return Vec::new();
    };
    let wanted = pairs(service.metadata.namespace.as_ref(), Some(labels));
    let rarest = wanted
        .into_iter()
        .min_by_key(|value| cache.count(index, value));
    let mut found = rarest
        .map(|value| cache.indexed(index, &value))
        .unwrap_or_default();
    let selector = LabelSelector::from_map(labels);
    found.retain(|object| selector.matches_map(labels_of(object)));
    found
}

/// The pods of a namespace that a selector matches.
pub(crate) fn selected(
    pods: &Cache<Pod>,
    namespace: &str,
    selector: &LabelSelector,
) -> Vec<Arc<Pod>> {
    let mut found = match selector.common_label() {
        Some((key, value)) => pods.indexed(LABELLED, &pair(namespace, key, value)),
        None => pods.in_namespace(namespace),
    };
    found.retain(|pod| selector.matches_map(pod.metadata.labels.as_ref()));
    found
}

#[cfg(test)]
mod tests {
    use gantry_informer::cache::IndexFn;
    use serde_json::{Value, json};
    use tokio_util::sync::CancellationToken;

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

    fn deployment(name: &str, labels: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "1"},
            "spec": {"selector": {}, "template": {"metadata": {"labels": labels}}},
        }))
        .expect("a deployment")
    }

    #[test]
    fn pods_and_services_find_each_other() {
        let services = Arc::new(Cache::new(Vec::new()));
        let services = Informer::new(services, &CancellationToken::new());
        let services = Selecting::new(services);
        let pods = Cache::new(vec![("labelled", labelled as IndexFn<Pod>)]);
        let both = service("both", json!({"selector": {"app": "web", "tier": "x"}}));
        services.observe(both.clone());
        services.observe(service("tier", json!({"selector": {"tier": "x"}})));
        services.observe(service("none", json!({"selector": {}})));
        let external = json!({"selector": {"tier": "x"}, "type": "ExternalName"});
        services.observe(service("external", external));
        pods.observe(pod("a", "ns", json!({"app": "web", "tier": "x"})));
        pods.observe(pod("b", "ns", json!({"app": "other", "tier": "x"})));
        pods.observe(pod("c", "elsewhere", json!({"app": "web", "tier": "x"})));
        let found = pods_of(&pods, &both);
        let names: Vec<_> = found.iter().map(|pod| Key::of(&pod.metadata)).collect();
        assert_eq!(names, [Key::new("ns", "a")]);
        for (selector, wanted) in [("tier=x", 2), ("tier in (x,y)", 2), ("app!=web", 1)] {
            let selector = LabelSelector::parse(selector).expect("a selector");
            assert_eq!(selected(&pods, "ns", &selector).len(), wanted);
        }
        let of = |name: &str| {
            let pod = pods.get(&Key::new("ns", name)).expect("present");
            let mut found = services.selecting(&pod.metadata);
            found.sort();
            found.iter().map(Key::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("a"), ["ns/both", "ns/tier"]);
        assert_eq!(of("b"), ["ns/tier"]);
        let mut moved = service("tier", json!({"selector": {"tier": "y"}}));
        let deployments = Cache::new(vec![(
            "template labelled",
            template_labelled as IndexFn<Deployment>,
        )]);
        for (name, tier) in [("one", "x"), ("two", "y")] {
            let labels = json!({"app": "web", "tier": tier});
            deployments.observe(deployment(name, labels));
        }
        let found = deployments_of(&deployments, &both);
        let found: Vec<_> = found.iter().map(|one| Key::of(&one.metadata)).collect();
        assert_eq!(found, [Key::new("ns", "one")]);
        let one = deployments.get(&Key::new("ns", "one")).expect("present");
        let mut found = services_of_template(&services, &one);
        found.sort();
        assert_eq!(found, [Key::new("ns", "both"), Key::new("ns", "tier")]);
        assert!(selects(&both, &one));
        moved.metadata.resource_version = Some("2".to_owned());
        services.observe(moved);
        services.observe_gone(&Key::new("ns", "both"), "both");
        assert_eq!(of("a"), Vec::<String>::new());
    }
}
