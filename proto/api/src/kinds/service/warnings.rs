//! What a valid service is warned of.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::{is_headless, type_of};

/// Warnings about a spec, in Kubernetes' order.
pub(super) fn of(spec: &ServiceSpec) -> Vec<String> {
    let mut warnings = Vec::new();
    let has_external = spec
        .external_ips
        .as_ref()
        .is_some_and(|all| !all.is_empty());
    if is_headless(spec) {
        let balanced = spec
            .load_balancer_ip
            .as_ref()
            .is_some_and(|address| !address.is_empty());
        let affine = spec.session_affinity.as_deref().unwrap_or("None") != "None";
        for (is_set, field) in [
            (balanced, "spec.loadBalancerIP"),
            (has_external, "spec.externalIPs"),
            (affine, "spec.SessionAffinity"),
        ] {
            if is_set {
                warnings.push(format!("{field} is ignored for headless services"));
            }
        }
    }
    if has_external && type_of(spec) == "ExternalName" {
        warnings.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if spec.traffic_distribution.as_deref() == Some("PreferClose") {
        let warning =
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"";
        warnings.push(warning.to_owned());
    }
    if has_external {
        let warning =
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters";
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
        let told = |spec| of(&serde_json::from_value(spec).expect("a spec"));
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
        assert_eq!(told(named).len(), 3);
    }
}
