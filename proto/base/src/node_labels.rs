//! Which labels a node may give itself: what others decide by must not be in its own hands. The rules are those of
//! Kubernetes' NodeRestriction.

/// The annotation of a Node that says where its link came from when it registered, an IP address. The servers alone write it;
/// load balancers publish what a node says of itself by it.
pub const DIALS_FROM: &str = "gantry.io/dials-from";

/// Labels of Kubernetes' own domains that describe a machine.
const OWN: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains below Kubernetes' that are nodes' own.
const DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

fn is_within(domain: &str, of: &str) -> bool {
    domain
        .strip_suffix(of)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a node may have this label by its own word.
pub fn may_set(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    if is_within(domain, "node-restriction.kubernetes.io") {
        return false;
    }
    let is_kubernetes = is_within(domain, "kubernetes.io") || is_within(domain, "k8s.io");
    !is_kubernetes || OWN.contains(&key) || DOMAINS.iter().any(|own| is_within(domain, own))
}

/// Why some of these labels are refused, as Kubernetes' nodes say it of their own configuration.
pub fn refusal<'a>(keys: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let refused: Vec<&str> = keys.into_iter().filter(|key| !may_set(key)).collect();
    (!refused.is_empty()).then(|| {
        format!(
            "unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: [{}]: --node-labels in the 'kubernetes.io' namespace \
             must begin with an allowed prefix ({}) or be in the specifically allowed set ({})",
            refused.join(" "),
            DOMAINS.join(", "),
            OWN.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_describes_its_machine_and_not_its_role() {
        for own in OWN.iter().copied().chain([
            "zone",
            "example.com/gpu",
            "node.kubernetes.io/anything",
            "x.node.kubernetes.io/y",
            "kubelet.kubernetes.io/z",
            "notkubernetes.io/a",
            "xk8s.io/a",
        ]) {
            assert!(may_set(own), "{own}");
        }
        for others in [
            "node-role.kubernetes.io/control-plane",
            "node-role.kubernetes.io/",
            "node-restriction.kubernetes.io/fips",
            "x.node-restriction.kubernetes.io/fips",
            "kubernetes.io/role",
            "kubernetes.io/cluster-service",
            "a.k8s.io/b",
            "k8s.io/b",
            "xnode.kubernetes.io/a",
            "topology.kubernetes.io/rack",
        ] {
            assert!(!may_set(others), "{others}");
            assert!(refusal(["zone", others]).is_some_and(|said| said.contains(others)));
        }
        assert_eq!(refusal(["zone"]), None);
    }
}
