//! Service: one address for many pods.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::table;
use crate::field::{ErrorList, Path};
use crate::kind::{Column, Kind, ResourceInfo};
use crate::names;

/// See [`Service`].
pub struct ServiceKind;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
/// Seconds of ClientIP affinity when none are named: three hours.
const AFFINITY_SECONDS: i32 = 10800;

fn type_of(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or("ClusterIP")
}

impl Kind for ServiceKind {
    type Object = Service;

    const INFO: ResourceInfo = ResourceInfo {
        group: "",
        version: "v1",
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const NAME_RULE: crate::meta::NameRule = names::is_dns1035_label;

    const FIELD_LABELS: &'static [&'static str] = &["spec.clusterIP", "spec.type"];

    fn default(object: &mut Service) {
        let spec = object.spec.get_or_insert_default();
        spec.session_affinity
            .get_or_insert_with(|| "None".to_owned());
        spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
        if spec.session_affinity.as_deref() == Some("ClientIP") {
            let config = spec.session_affinity_config.get_or_insert_default();
            config
                .client_ip
                .get_or_insert_default()
                .timeout_seconds
                .get_or_insert(AFFINITY_SECONDS);
        } else {
            spec.session_affinity_config = None;
        }
        for port in spec.ports.iter_mut().flatten() {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
            let unset = matches!(&port.target_port, None | Some(IntOrString::Int(0)))
                || matches!(&port.target_port, Some(IntOrString::String(name)) if name.is_empty());
            if unset {
                port.target_port = Some(IntOrString::Int(port.port));
            }
        }
        let kind = type_of(spec).to_owned();
        if kind != "ExternalName" {
            spec.internal_traffic_policy
                .get_or_insert_with(|| "Cluster".to_owned());
        }
        if kind == "NodePort" || kind == "LoadBalancer" {
            spec.external_traffic_policy
                .get_or_insert_with(|| "Cluster".to_owned());
        }
        if kind == "LoadBalancer" {
            spec.allocate_load_balancer_node_ports.get_or_insert(true);
        }
        object
            .status
            .get_or_insert_default()
            .load_balancer
            .get_or_insert_default();
    }

    fn prepare_create(object: &mut Service) {
        object.status = Some(Default::default());
        object
            .status
            .get_or_insert_default()
            .load_balancer
            .get_or_insert_default();
    }

    fn validate(object: &Service, errors: &mut ErrorList) {
        let path = Path::new("spec");
        let Some(spec) = &object.spec else {
            return;
        };
        let kind = type_of(spec);
        if !TYPES.contains(&kind) {
            errors.not_supported(&path.child("type"), kind, TYPES);
        }
        let ports = spec.ports.as_deref().unwrap_or_default();
        let headless = spec.cluster_ip.as_deref() == Some("None");
        if ports.is_empty() && !headless && kind != "ExternalName" {
            errors.required(&path.child("ports"), "");
        }
        for (index, port) in ports.iter().enumerate() {
            let path = path.child("ports").index(index);
            if let Some(message) = names::is_port_number(i64::from(port.port)) {
                errors.invalid(&path.child("port"), port.port, &message);
            }
            if ports.len() > 1 && port.name.as_deref().unwrap_or_default().is_empty() {
                errors.required(&path.child("name"), "");
            }
        }
        if kind == "ExternalName" && spec.external_name.as_deref().unwrap_or_default().is_empty() {
            errors.required(&path.child("externalName"), "");
        }
    }

    fn prepare_update(new: &mut Service, old: &Service) {
        new.status.clone_from(&old.status);
    }

    fn validate_update(new: &Service, old: &Service, errors: &mut ErrorList) {
        Self::validate(new, errors);
        let address = |service: &Service| {
            service
                .spec
                .as_ref()
                .and_then(|spec| spec.cluster_ip.clone())
                .unwrap_or_default()
        };
        let (before, after) = (address(old), address(new));
        if !before.is_empty() && !after.is_empty() && before != after {
            errors.invalid(
                &Path::new("spec").child("clusterIPs").index(0),
                json!([after]),
                "may not change once set",
            );
        }
    }

    fn prepare_status_update(new: &mut Service, old: &Service) {
        new.spec.clone_from(&old.spec);
    }

    fn selectable_fields(object: &Service) -> Vec<(&'static str, String)> {
        let spec = object.spec.as_ref();
        vec![
            (
                "spec.clusterIP",
                spec.and_then(|spec| spec.cluster_ip.clone())
                    .unwrap_or_default(),
            ),
            (
                "spec.type",
                spec.and_then(|spec| spec.type_.clone()).unwrap_or_default(),
            ),
        ]
    }

    fn columns() -> Vec<Column> {
        let doc = |field: &str| table::field_doc::<ServiceSpec>(field);
        vec![
            table::name_column(),
            table::column("Type", "string", doc("type"), 0),
            table::column("Cluster-IP", "string", doc("clusterIP"), 0),
            table::column("External-IP", "string", doc("externalIPs"), 0),
            table::column("Port(s)", "string", doc("ports"), 0),
            table::age_column(),
            table::column("Selector", "string", doc("selector"), 1),
        ]
    }

    fn row(object: &Service, now: i64) -> Vec<Value> {
        let empty = ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let or = |text: String, other: &str| {
            if text.is_empty() {
                other.to_owned()
            } else {
                text
            }
        };
        let ports: Vec<String> = spec
            .ports
            .iter()
            .flatten()
            .map(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                match port.node_port.filter(|port| *port > 0) {
                    Some(node_port) => format!("{}:{node_port}/{protocol}", port.port),
                    None => format!("{}/{protocol}", port.port),
                }
            })
            .collect();
        let external = match type_of(spec) {
            "ExternalName" => spec.external_name.clone().unwrap_or_default(),
            kind => {
                let balanced = object
                    .status
                    .as_ref()
                    .and_then(|status| status.load_balancer.as_ref())
                    .and_then(|balancer| balancer.ingress.as_ref());
                let mut addresses: Vec<String> = balanced
                    .into_iter()
                    .flatten()
                    .filter_map(|ingress| ingress.ip.clone().or_else(|| ingress.hostname.clone()))
                    .collect();
                addresses.extend(spec.external_ips.iter().flatten().cloned());
                or(
                    addresses.join(","),
                    if kind == "LoadBalancer" {
                        "<pending>"
                    } else {
                        "<none>"
                    },
                )
            }
        };
        let selector: Vec<String> = spec
            .selector
            .iter()
            .flatten()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        vec![
            table::name_cell(&object.metadata),
            json!(type_of(spec)),
            json!(or(spec.cluster_ip.clone().unwrap_or_default(), "<none>")),
            json!(external),
            json!(or(ports.join(","), "<none>")),
            table::age_cell(&object.metadata, now),
            json!(or(selector.join(","), "<none>")),
        ]
    }
}
