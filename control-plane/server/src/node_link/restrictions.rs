//! What a node may say of itself, beyond its form: the rules of Kubernetes' NodeRestriction, and for addresses stricter ones,
//! since other nodes send to them what is for a node's pods.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeStatus, PodStatus};

use super::said::Refused;

/// What a node's claim to addresses is judged by.
pub(crate) struct Claim<'a> {
    pub(crate) node: &'a str,
    /// Where its connection comes from.
    pub(crate) dials_from: IpAddr,
    /// The addresses of servers.
    pub(crate) servers: &'a [IpAddr],
    /// Those of pods and services: no machine has one.
    pub(crate) cluster: &'a [IpNet],
}

/// Another node, as the claim of its addresses is judged.
pub(crate) struct Other {
    pub(crate) name: String,
    pub(crate) is_linked: bool,
    pub(crate) addresses: Vec<String>,
}

/// The addresses of a status, of every type.
pub(crate) fn addresses(status: Option<&NodeStatus>) -> Vec<String> {
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let addresses = addresses.into_iter().flatten();
    addresses.map(|address| address.address.clone()).collect()
}

impl Claim<'_> {
    fn refused(&self, address: &str, why: &str) -> Refused {
        Refused::NotItsOwn(format!(
            "node \"{}\" cannot have the address {address}: {why}",
            self.node
        ))
    }

    /// Whether the node dials from this address, or from the machine that it shares with the server.
    fn proves(&self, address: IpAddr) -> bool {
        self.dials_from == address || self.dials_from.is_loopback()
    }

    /// Refuses addresses that are somebody else's.
    pub(crate) fn check(
        &self,
        addresses: &[String],
        others: impl Iterator<Item = Other>,
    ) -> Result<(), Refused> {
        for text in addresses {
            let Ok(address) = text.parse::<IpAddr>() else {
                if gantry_api::names::is_dns1123_subdomain(text).is_some() {
                    return Err(self.refused(
                        &text.escape_debug().to_string(),
                        "it is neither an IP address nor a host's name",
                    ));
                }
                continue;
            };
            let address = address.to_canonical();
            if address.is_unspecified() || address.is_multicast() {
                return Err(self.refused(text, "no machine has it"));
            }
            if address.is_loopback() && !self.proves(address) {
                return Err(self.refused(text, "others cannot reach it: name one with --address"));
            }
            if self.cluster.iter().any(|range| range.contains(&address)) {
                return Err(self.refused(text, "it is in the ranges of pods and services"));
            }
            if self.servers.contains(&address) && !self.proves(address) {
                return Err(self.refused(text, "a server has it"));
            }
        }
        for other in others {
            for text in addresses
                .iter()
                .filter(|text| other.addresses.contains(text))
            {
                let address = text
                    .parse::<IpAddr>()
                    .ok()
                    .map(|address| address.to_canonical());
                let is_shared = address.is_some_and(|address| address.is_loopback());
                // A machine may come back under another name; who is linked is there still.
                let has_moved =
                    !other.is_linked && address.is_some_and(|address| self.proves(address));
                if !is_shared && !has_moved {
                    let why = format!(
                        "node \"{0}\" has it; remove that one with 'gantry delete node {0}' if it is gone",
                        other.name
                    );
                    return Err(self.refused(text, &why));
                }
            }
        }
        Ok(())
    }
}

/// Refuses labels by which others decide about nodes.
pub(crate) fn check_labels(node: &str, reported: &Node) -> Result<(), Refused> {
    let labels = reported.metadata.labels.iter().flatten();
    let refused: Vec<&str> = labels
        .map(|(key, _)| key.as_str())
        .filter(|key| !gantry_api::node_labels::may_set(key))
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(Refused::NotItsOwn(format!(
        "nodes \"{node}\" is forbidden: is not allowed to modify labels: {}; an administrator sets them, with 'kubectl label node {node}'",
        refused.join(", ")
    )))
}

/// Refuses addresses of a pod that its node does not have to give: the pod's must be of the node's blocks, or the node's own
/// in its network; the host's must be the node's.
pub(crate) fn check_pod_addresses(
    host_network: bool,
    status: &PodStatus,
    node: &Node,
) -> Result<(), Refused> {
    let own: Vec<String> = addresses(node.status.as_ref());
    let spec = node.spec.iter();
    let blocks = spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    let blocks: Vec<IpNet> = blocks.filter_map(|block| block.parse().ok()).collect();
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let refused = |address: &str, whose: &str| {
        Err(Refused::NotItsOwn(format!(
            "{} is not an address that node \"{name}\" can give {whose}",
            address.escape_debug()
        )))
    };
    let is_own = |address: &str| own.iter().any(|own| own == address);
    let hosts = status.host_ips.iter().flatten();
    for address in status.host_ip.iter().chain(hosts.map(|host| &host.ip)) {
        if !address.is_empty() && !is_own(address) {
            return refused(address, "itself");
        }
    }
    let pods = status.pod_ips.iter().flatten();
    for address in status.pod_ip.iter().chain(pods.map(|pod| &pod.ip)) {
        let in_block = address
            .parse()
            .is_ok_and(|address: IpAddr| blocks.iter().any(|block| block.contains(&address)));
        let allowed = match host_network {
            true => is_own(address),
            false => in_block,
        };
        if !address.is_empty() && !allowed {
            return refused(address, "a pod");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn claim(dials_from: &str, address: &str, linked: bool) -> Result<(), Refused> {
        let (servers, cluster) = (
            [ip("192.0.2.1")],
            ["10.244.0.0/16".parse().expect("a range")],
        );
        let claim = Claim {
            node: "new",
            dials_from: ip(dials_from),
            servers: &servers,
            cluster: &cluster,
        };
        let other = Other {
            name: "other".to_owned(),
            is_linked: linked,
            addresses: vec![
                "192.0.2.7".to_owned(),
                "127.0.0.1".to_owned(),
                "other".to_owned(),
            ],
        };
        claim.check(&[address.to_owned()], std::iter::once(other))
    }

    #[test]
    fn an_address_is_one_nodes() {
        for (dials_from, address, linked) in [
            ("192.0.2.9", "192.0.2.9", true),
            // Behind a router.
            ("198.51.100.1", "192.0.2.9", true),
            ("192.0.2.9", "new", true),
            // A node beside a server.
            ("192.0.2.1", "192.0.2.1", true),
            ("127.0.0.1", "192.0.2.1", true),
            ("127.0.0.1", "127.0.0.1", true),
            // The machine of one that is gone.
            ("192.0.2.7", "192.0.2.7", false),
        ] {
            claim(dials_from, address, linked).expect(address);
        }
        for (dials_from, address, linked) in [
            ("192.0.2.9", "192.0.2.1", true),
            ("192.0.2.9", "192.0.2.7", true),
            ("192.0.2.9", "192.0.2.7", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.9", "127.0.0.1", true),
            ("192.0.2.9", "0.0.0.0", true),
            ("192.0.2.9", "224.0.0.1", true),
            ("192.0.2.9", "10.244.3.4", true),
            ("192.0.2.9", "other", false),
            ("192.0.2.9", "a b", true),
            ("192.0.2.9", "", true),
        ] {
            claim(dials_from, address, linked).expect_err(address);
        }
    }

    #[test]
    fn a_pods_addresses_are_of_its_nodes_blocks() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]},
        }))
        .expect("a node");
        let check = |host_network: bool, status: serde_json::Value| {
            let status: PodStatus = serde_json::from_value(status).expect("a status");
            check_pod_addresses(host_network, &status, &node).is_ok()
        };
        let good = json!({"hostIP": "192.0.2.7", "hostIPs": [{"ip": "192.0.2.7"}], "podIP": "10.244.1.9",
            "podIPs": [{"ip": "10.244.1.9"}, {"ip": "fd00:1::9"}]});
        assert!(check(false, good.clone()) && !check(true, good));
        assert!(check(
            true,
            json!({"hostIP": "192.0.2.7", "podIP": "192.0.2.7"})
        ));
        assert!(check(false, json!({})));
        for wrong in [
            json!({"podIP": "10.244.2.9"}),
            json!({"podIPs": [{"ip": "10.244.1.9"}, {"ip": "fd00:2::9"}]}),
            json!({"podIP": "192.0.2.7"}),
            json!({"podIP": "x"}),
            json!({"hostIP": "192.0.2.8"}),
            json!({"hostIPs": [{"ip": "192.0.2.7"}, {"ip": "192.0.2.1"}]}),
        ] {
            assert!(!check(false, wrong.clone()), "{wrong}");
        }
    }
}
