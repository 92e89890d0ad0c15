//! What a valid service is warned of.

use k8s_openapi::api::core::v1::ServiceSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::validation::{TOPOLOGY_HINTS, TOPOLOGY_MODE};
use super::{is_empty, is_headless, type_of};
use crate::field::Path;
use crate::kinds::addresses;

/// Warnings about a service, in Kubernetes' order.
pub(super) fn of(metadata: &ObjectMeta, spec: &ServiceSpec) -> Vec<String> {
    let mut warnings = Vec::new();
    let annotations = metadata.annotations.as_ref();
    if annotations.is_some_and(|annotations| annotations.contains_key(TOPOLOGY_HINTS)) {
        warnings.push(format!(
            "annotation {TOPOLOGY_HINTS} is deprecated, please use {TOPOLOGY_MODE} instead"
        ));
    }
    let path = Path::new("spec");
    let form = |field: &str, list: &Option<Vec<String>>| -> Vec<String> {
        let list = list.iter().flatten().enumerate();
        list.filter_map(|(index, address)| {
            addresses::form_warning(address, &path.child(field).index(index))
        })
        .collect()
    };
    let headless = type_of(spec) == "ClusterIP" && is_headless(spec);
    if !headless {
        warnings.extend(form("clusterIPs", &spec.cluster_ips));
    }
    let externals = spec.external_ips.as_ref();
    let has_external = externals.is_some_and(|all| !all.is_empty());
    let balanced_at = spec.load_balancer_ip.as_deref().unwrap_or_default();
    if headless {
        let affine = spec.session_affinity.as_deref().unwrap_or("None") != "None";
        for (is_set, field) in [
            (!balanced_at.is_empty(), "spec.loadBalancerIP"),
            (has_external, "spec.externalIPs"),
            (affine, "spec.SessionAffinity"),
        ] {
            if is_set {
                warnings.push(format!("{field} is ignored for headless services"));
            }
        }
    }
    let named = type_of(spec) == "ExternalName";
    warnings.extend(form("externalIPs", &spec.external_ips));
    if has_external && !headless && !named {
        let warning =
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters";
        warnings.push(warning.to_owned());
    }
    let balanced_path = path.child("loadBalancerIP");
    warnings.extend(addresses::form_warning(balanced_at, &balanced_path));
    warnings.extend(form(
        "loadBalancerSourceRanges",
        &spec.load_balancer_source_ranges,
    ));
    if has_external && named {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !is_empty(&spec.external_name) && !named {
        let warning = "spec.externalName is ignored when spec.type is not \"ExternalName\"";
        warnings.push(warning.to_owned());
    }
    if spec.traffic_distribution.as_deref() == Some("PreferClose") {
        let warning =
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"";
        warnings.push(warning.to_owned());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_ignored_or_on_its_way_out_is_told() {
        let told = |spec| {
            let spec = serde_json::from_value(spec).expect("a spec");
            of(&ObjectMeta::default(), &spec)
        };
        assert_eq!(told(json!({"type": "ClusterIP"})), Vec::<String>::new());
        let headless = json!({
            "clusterIP": "None", "clusterIPs": ["None"], "loadBalancerIP": "192.0.2.1", "sessionAffinity": "ClientIP"
        });
        assert_eq!(
            told(headless),
            [
                "spec.loadBalancerIP is ignored for headless services",
                "spec.SessionAffinity is ignored for headless services"
            ]
        );
        let named = json!({"type": "ExternalName", "externalIPs": ["192.0.2.1"], "trafficDistribution": "PreferClose"});
        assert_eq!(told(named).len(), 2);
        let outside = json!({
            "externalIPs": ["2001:DB8::1"], "externalName": "a", "loadBalancerSourceRanges": ["2001:DB8::/32"]
        });
        assert_eq!(
            told(outside),
            [
                "spec.externalIPs[0]: IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")",
                "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
                "spec.loadBalancerSourceRanges[0]: IPv6 CIDR value \"2001:DB8::/32\" should be in RFC 5952 canonical format (\"2001:db8::/32\")",
                "spec.externalName is ignored when spec.type is not \"ExternalName\"",
            ]
        );
    }
}
