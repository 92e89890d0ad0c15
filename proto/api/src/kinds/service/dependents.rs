//! Fields of a service that others bring along: `clusterIPs` by `clusterIP`, and those that only some types have.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::{is_empty, type_of};

/// The policy of services with one address family.
pub(super) const SINGLE_STACK: &str = "SingleStack";
const NOWHERE: &str = "ExternalName";

fn exposed(spec: &ServiceSpec) -> bool {
    matches!(type_of(spec), "NodePort" | "LoadBalancer")
}

/// Whether traffic from outside the cluster can reach the service.
pub(super) fn has_external_traffic(spec: &ServiceSpec) -> bool {
    let listed = spec
        .external_ips
        .as_ref()
        .is_some_and(|ips| !ips.is_empty());
    exposed(spec) || (type_of(spec) == "ClusterIP" && listed)
}

/// Whether a load balancer asks each node if it has endpoints of its own.
pub(super) fn has_health_check(spec: &ServiceSpec) -> bool {
    type_of(spec) == "LoadBalancer" && spec.external_traffic_policy.as_deref() == Some("Local")
}

/// Makes `clusterIPs` follow `clusterIP`, for a client that knows only the latter.
pub(super) fn follow_cluster_ip(new: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    let listed = new.cluster_ips.as_ref().is_some_and(|ips| !ips.is_empty());
    match old {
        None if !listed && !is_empty(&new.cluster_ip) => {
            new.cluster_ips = new.cluster_ip.clone().map(|address| vec![address]);
        }
        // The list is the old one, the address is not: the client changed what it knows of.
        Some(old) if new.cluster_ip != old.cluster_ip && new.cluster_ips == old.cluster_ips => {
            new.cluster_ips = match is_empty(&new.cluster_ip) {
                true => None,
                false => new.cluster_ip.clone().map(|address| vec![address]),
            };
        }
        Some(_) if !listed && !is_empty(&new.cluster_ip) => {
            new.cluster_ips = new.cluster_ip.clone().map(|address| vec![address]);
        }
        _ => {}
    }
}

/// Keeps what was allocated when a client leaves it out of a replacement.
pub(super) fn keep_allocated(new: &mut ServiceSpec, old: &ServiceSpec) {
    if type_of(new) != NOWHERE && type_of(old) != NOWHERE {
        if is_empty(&new.cluster_ip) {
            new.cluster_ip.clone_from(&old.cluster_ip);
        }
        if new.cluster_ip == old.cluster_ip {
            keep_list(&mut new.cluster_ips, &old.cluster_ips);
            keep_list(&mut new.ip_families, &old.ip_families);
        }
        if is_empty(&new.ip_family_policy) {
            new.ip_family_policy.clone_from(&old.ip_family_policy);
        }
    }
    if has_health_check(new) && has_health_check(old) {
        let asked = new.health_check_node_port.filter(|port| *port != 0);
        new.health_check_node_port = asked.or(old.health_check_node_port);
    }
}

fn keep_list(new: &mut Option<Vec<String>>, old: &Option<Vec<String>>) {
    if new.as_ref().is_none_or(Vec::is_empty) {
        new.clone_from(old);
    }
}

/// A service that is to have one family only gives up the second one, with its address; what changed in the same
/// request stays, to be refused.
pub(super) fn drop_second_family(new: &mut ServiceSpec, old: &ServiceSpec) {
    let single = |spec: &ServiceSpec| spec.ip_family_policy.as_deref() == Some(SINGLE_STACK);
    if !single(new) || single(old) {
        return;
    }
    let lists = [
        (&mut new.cluster_ips, &old.cluster_ips),
        (&mut new.ip_families, &old.ip_families),
    ];
    for (new, old) in lists {
        if new == old
            && let Some(list) = new
        {
            list.truncate(1);
        }
    }
}

/// Drops the fields that the old type had and the new one has not. Those that changed in the same request stay, to be
/// refused: the client meant them.
pub(super) fn drop_with_type(new: &mut ServiceSpec, old: &ServiceSpec) {
    if type_of(old) != NOWHERE && type_of(new) == NOWHERE {
        let unchanged = new.cluster_ip == old.cluster_ip && new.cluster_ips == old.cluster_ips;
        if unchanged {
            (new.cluster_ip, new.cluster_ips) = (None, None);
        }
        drop_unchanged(&mut new.ip_families, &old.ip_families);
        drop_unchanged(&mut new.ip_family_policy, &old.ip_family_policy);
        drop_unchanged(
            &mut new.internal_traffic_policy,
            &old.internal_traffic_policy,
        );
    }
    if exposed(old) && !exposed(new) {
        let node_ports = |spec: &ServiceSpec| -> Vec<Option<i32>> {
            let ports = spec.ports.iter().flatten();
            ports.map(|port| port.node_port).collect()
        };
        if node_ports(new) == node_ports(old) {
            for port in new.ports.iter_mut().flatten() {
                port.node_port = None;
            }
        }
    }
    if has_health_check(old) && !has_health_check(new) {
        drop_unchanged(&mut new.health_check_node_port, &old.health_check_node_port);
    }
    if has_external_traffic(old) && !has_external_traffic(new) {
        drop_unchanged(
            &mut new.external_traffic_policy,
            &old.external_traffic_policy,
        );
    }
    if type_of(old) == "LoadBalancer" && type_of(new) != "LoadBalancer" {
        drop_unchanged(
            &mut new.allocate_load_balancer_node_ports,
            &old.allocate_load_balancer_node_ports,
        );
        drop_unchanged(&mut new.load_balancer_class, &old.load_balancer_class);
    }
}

fn drop_unchanged<T: PartialEq>(new: &mut Option<T>, old: &Option<T>) {
    if new == old {
        *new = None;
    }
}

/// A service that balances no longer has no addresses of a balancer.
pub(super) fn drop_balancer_status(new: &mut Service) {
    let balanced = new
        .spec
        .as_ref()
        .is_some_and(|spec| type_of(spec) == "LoadBalancer");
    if let (false, Some(status)) = (balanced, &mut new.status) {
        status.load_balancer = Some(Default::default());
    }
}
