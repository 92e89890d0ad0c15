//! The annotation of a Service that names the Deployments to bring back when it is wanted. Nodes hold connections to a Service
//! that has it, and refuse them otherwise, where nothing serves it.

use gantry_api::annotations::WAKES;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Service, ServicePort};

/// The most names. A Deployment that finds no room for its own is not idled.
const MOST: usize = 64;

fn ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    let spec = service.spec.iter();
    spec.flat_map(|spec| spec.ports.iter().flatten())
}

fn is_tcp(port: &ServicePort) -> bool {
    port.protocol.as_deref().unwrap_or("TCP") == "TCP"
}

/// Whether nodes can hold connections to the Service: it has an address of its own, and a port for connections.
fn holds(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let address = spec.and_then(|spec| spec.cluster_ip.as_deref());
    let has_address = address.is_some_and(|address| !address.is_empty() && address != "None");
    has_address && ports(service).any(is_tcp)
}

/// The annotation that a Service is to have, if any: `names` are those of the Deployments that it selects and that may be woken.
pub(super) fn mark(service: &Service, names: impl IntoIterator<Item = String>) -> Option<String> {
    if !holds(service) {
        return None;
    }
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort();
    names.truncate(MOST);
    (!names.is_empty()).then(|| names.join(","))
}

/// The annotation that a Service has.
pub(super) fn marked(service: &Service) -> Option<&str> {
    let annotations = service.metadata.annotations.as_ref()?;
    annotations.get(WAKES).map(String::as_str)
}

/// The Deployments that a Service names.
pub(super) fn named(service: &Service) -> impl Iterator<Item = &str> {
    let names = marked(service).into_iter();
    names.flat_map(|names| names.split(',').take(MOST))
}

/// What keeps a Deployment from being idled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Nothing would bring it back.
    NoService,
    /// Its pods can be reached past every Service, and nobody who does that would wake them.
    NodePorts(String),
    /// Connections are not all that this Service brings: what else there is, nobody counts.
    OtherTraffic { service: String, port: String },
    /// No Service says yet that it would bring it back.
    Unmarked,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoService => formatter.write_str(
                "no Service with a cluster IP and a TCP port selects its pods, and nothing else could wake it",
            ),
            Self::NodePorts(what) => write!(
                formatter,
                "its template has {what}, and only connections to a Service could wake it"
            ),
            Self::OtherTraffic { service, port } => write!(
                formatter,
                "Service {service} has the port {port}, and only TCP connections are counted and held"
            ),
            Self::Unmarked => write!(formatter, "no Service has the annotation {WAKES} for it yet"),
        }
    }
}

/// How pods of a Deployment can be reached on their nodes' own addresses.
fn node_ports(deployment: &Deployment) -> Option<Obstacle> {
    let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
    if pod.host_network == Some(true) {
        return Some(Obstacle::NodePorts("hostNetwork".to_owned()));
    }
    let sidecars = pod.init_containers.iter().flatten();
    let mut ports = pod.containers.iter().chain(sidecars);
    let port = ports.find_map(|container| {
        let mut ports = container.ports.iter().flatten();
        ports.find_map(|port| port.host_port.filter(|port| *port != 0))
    })?;
    Some(Obstacle::NodePorts(format!("the hostPort {port}")))
}

/// What keeps a Deployment from being idled, by its template and the Services that select its pods.
pub(super) fn obstacle<'a>(
    deployment: &Deployment,
    services: impl IntoIterator<Item = &'a Service>,
) -> Option<Obstacle> {
    if let Some(found) = node_ports(deployment) {
        return Some(found);
    }
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let mut found = Some(Obstacle::NoService);
    for service in services {
        if let Some(port) = ports(service).find(|port| !is_tcp(port)) {
            let protocol = port.protocol.as_deref().unwrap_or_default();
            return Some(Obstacle::OtherTraffic {
                service: service.metadata.name.clone().unwrap_or_default(),
                port: format!("{}/{protocol}", port.port),
            });
        }
        if holds(service) && found.is_some() {
            let is_named = named(service).any(|named| named == name);
            found = (!is_named).then_some(Obstacle::Unmarked);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(address: &str, protocols: &[&str], mark: Option<&str>) -> Service {
        let ports = protocols.iter().enumerate();
        let ports =
            ports.map(|(number, protocol)| json!({"port": number + 80, "protocol": protocol}));
        let annotations = mark.map(|mark| json!({WAKES: mark}));
        serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": annotations},
            "spec": {"clusterIP": address, "ports": ports.collect::<Vec<Value>>()},
        }))
        .expect("a service")
    }

    const ADDRESS: &str = "10.96.0.7";

    #[test]
    fn a_service_names_those_that_it_wakes_in_order() {
        let web = service(ADDRESS, &["TCP"], None);
        let of = |service: &Service, names: &[&str]| {
            mark(service, names.iter().map(|name| (*name).to_owned()))
        };
        assert_eq!(of(&web, &[]), None);
        assert_eq!(of(&web, &["web", "blue"]).as_deref(), Some("blue,web"));
        for none in [
            service("None", &["TCP"], None),
            service("", &["TCP"], None),
            service(ADDRESS, &["UDP"], None),
            service(ADDRESS, &[], None),
        ] {
            assert_eq!(of(&none, &["web"]), None);
        }
        let many = (0..1000).map(|number| format!("d{number:03}"));
        let mark = mark(&web, many).expect("some");
        let marked = service(ADDRESS, &["TCP"], Some(&mark));
        let names: Vec<&str> = named(&marked).collect();
        assert_eq!((names.len(), names.first()), (MOST, Some(&"d000")));
        // Whoever wrote it.
        let crafted = service(ADDRESS, &["TCP"], Some(&"web,".repeat(10_000)));
        assert_eq!(named(&crafted).count(), MOST);
        assert_eq!(named(&web).count(), 0);
    }

    fn deployment(pod: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {}, "template": {"spec": pod}},
        }))
        .expect("a deployment")
    }

    #[test]
    fn pods_that_can_be_reached_past_services_are_not_idled() {
        let marked = service(ADDRESS, &["TCP"], Some("web"));
        let container = |port: Value| json!({"name": "c", "ports": [{"containerPort": 80}, port]});
        let open = container(json!({"containerPort": 81, "hostPort": 8081}));
        let closed = container(json!({"containerPort": 81, "hostPort": 0}));
        let on = |what: &str| Some(Obstacle::NodePorts(what.to_owned()));
        for (pod, found) in [
            (json!({"containers": [closed]}), None),
            (
                json!({"containers": [closed, open]}),
                on("the hostPort 8081"),
            ),
            (
                json!({"containers": [closed], "initContainers": [open]}),
                on("the hostPort 8081"),
            ),
            (
                json!({"containers": [closed], "hostNetwork": true}),
                on("hostNetwork"),
            ),
        ] {
            assert_eq!(obstacle(&deployment(pod), [&marked]), found);
        }
    }

    #[test]
    fn what_nothing_would_wake_is_not_idled() {
        let web = deployment(json!({"containers": []}));
        let marked = service(ADDRESS, &["TCP"], Some("blue,web"));
        let unmarked = service(ADDRESS, &["TCP"], Some("blue"));
        let headless = service("None", &["TCP"], Some("web"));
        let both = service(ADDRESS, &["TCP", "UDP"], Some("web"));
        let other = Obstacle::OtherTraffic {
            service: "web".to_owned(),
            port: "81/UDP".to_owned(),
        };
        for (services, found) in [
            (vec![], Some(Obstacle::NoService)),
            (vec![&headless], Some(Obstacle::NoService)),
            (vec![&unmarked], Some(Obstacle::Unmarked)),
            (vec![&headless, &marked, &unmarked], None),
            (vec![&unmarked, &headless, &marked], None),
            (vec![&both], Some(other.clone())),
            (vec![&marked, &both], Some(other)),
        ] {
            assert_eq!(obstacle(&web, services), found);
        }
    }
}
