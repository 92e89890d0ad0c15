//! Service: one address for many pods.
//!
//! Addresses and node ports are allocated, and address families chosen, by the API server's admission after a service
//! has passed here.

mod dependents;
mod validation;
mod warnings;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::table::{self, Printer};
use super::workload;
use crate::field::{ErrorList, FieldError};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::names;
use crate::parts;

/// See [`Service`].
pub struct ServiceKind;

/// Seconds of ClientIP affinity when none are named: three hours.
const AFFINITY_SECONDS: i32 = 10800;

fn type_of(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or("ClusterIP")
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_deref().unwrap_or_default().is_empty()
}

/// What the user left out, whether absent or empty.
fn fill(field: &mut Option<String>, default: &str) {
    if is_empty(field) {
        *field = Some(default.to_owned());
    }
}

impl Kind for ServiceKind {
    type Object = Service;

    const INFO: StaticInfo = StaticInfo {
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

    const PARTS: Parts<Service> = parts!(Service: spec, status);

    const NAME_RULE: crate::meta::NameRule = names::dns1123_label;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const FIELD_LABELS: &'static [&'static str] = &["spec.clusterIP", "spec.type"];

    fn default(object: &mut Service) {
        let spec = object.spec.get_or_insert_default();
        fill(&mut spec.session_affinity, "None");
        fill(&mut spec.type_, "ClusterIP");
        match spec.session_affinity.as_deref() {
            Some("ClientIP") => {
                let config = spec.session_affinity_config.get_or_insert_default();
                let client = config.client_ip.get_or_insert_default();
                client.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
            }
            Some("None") => spec.session_affinity_config = None,
            _ => {}
        }
        for port in spec.ports.iter_mut().flatten() {
            fill(&mut port.protocol, "TCP");
            let unset = match &port.target_port {
                None | Some(IntOrString::Int(0)) => true,
                Some(IntOrString::Int(_)) => false,
                Some(IntOrString::String(name)) => name.is_empty(),
            };
            if unset {
                port.target_port = Some(IntOrString::Int(port.port));
            }
        }
        if matches!(type_of(spec), "ClusterIP" | "NodePort" | "LoadBalancer") {
            fill(&mut spec.internal_traffic_policy, "Cluster");
        }
        if dependents::has_external_traffic(spec) {
            fill(&mut spec.external_traffic_policy, "Cluster");
        }
        let balanced = type_of(spec) == "LoadBalancer";
        if balanced {
            spec.allocate_load_balancer_node_ports.get_or_insert(true);
        }
        let status = object.status.get_or_insert_default();
        let balancer = status.load_balancer.get_or_insert_default();
        for ingress in balancer.ingress.iter_mut().flatten() {
            if balanced && !is_empty(&ingress.ip) {
                fill(&mut ingress.ip_mode, "VIP");
            }
        }
    }

    fn prepare_create(object: &mut Service) {
        let status = object.status.insert(Default::default());
        status.load_balancer.get_or_insert_default();
        if let Some(spec) = &mut object.spec {
            dependents::follow_cluster_ip(spec, None);
        }
    }

    fn validate(object: &Service, errors: &mut ErrorList) {
        if let Some(spec) = &object.spec {
            validation::service(&object.metadata, spec, errors);
        }
    }

    fn prepare_update(new: &mut Service, old: &Service) {
        if let (Some(new), Some(old)) = (&mut new.spec, &old.spec) {
            dependents::keep_allocated(new, old);
            dependents::follow_cluster_ip(new, Some(old));
            dependents::drop_second_family(new, old);
            dependents::drop_with_type(new, old);
        }
        dependents::drop_balancer_status(new);
    }

    fn validate_update(new: &Service, old: &Service, errors: &mut ErrorList) {
        let mut found = ErrorList::default();
        Self::validate(new, &mut found);
        // Addresses of one request that contradict each other say nothing about the stored one.
        let contradicts =
            |error: &FieldError| error.path.to_string().starts_with("spec.clusterIPs");
        if !found.0.iter().any(contradicts)
            && let (Some(new), Some(old)) = (&new.spec, &old.spec)
        {
            validation::cluster_ips_update(new, old, errors);
        }
        if let (Some(new), Some(old)) = (&new.spec, &old.spec) {
            validation::balancer_update(new, old, errors);
        }
        errors.0.append(&mut found.0);
    }

    fn validate_status_update(new: &Service, _old: &Service, errors: &mut ErrorList) {
        let balancer = new
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref());
        if let (Some(balancer), Some(spec)) = (balancer, &new.spec) {
            validation::balancer_status(balancer, spec, errors);
        }
    }

    fn warnings(new: &Service, _old: Option<&Service>) -> Vec<String> {
        let spec = new.spec.as_ref();
        spec.map(|spec| warnings::of(&new.metadata, spec))
            .unwrap_or_default()
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

    fn printer() -> Printer<Service> {
        let text = |name, field, priority| {
            table::column(
                name,
                "string",
                table::field_doc::<ServiceSpec>(field),
                priority,
            )
        };
        let columns = [
            text("Type", "type", 0),
            text("Cluster-IP", "clusterIP", 0),
            text("External-IP", "externalIPs", 0),
            text("Port(s)", "ports", 0),
        ];
        Printer::<Service>::named()
            .columns(columns, |object, _| {
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
                            .filter_map(|ingress| {
                                ingress.ip.clone().or_else(|| ingress.hostname.clone())
                            })
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
                [
                    json!(type_of(spec)),
                    json!(or(spec.cluster_ip.clone().unwrap_or_default(), "<none>")),
                    json!(external),
                    json!(or(ports.join(","), "<none>")),
                ]
            })
            .age()
            .column(text("Selector", "selector", 1), |object| {
                let spec = object.spec.as_ref();
                json!(workload::labels_text(
                    spec.and_then(|spec| spec.selector.as_ref())
                ))
            })
    }
}

#[cfg(test)]
mod tests;
