//! What a node may say of itself, beyond its form: the rules of Kubernetes' NodeRestriction, and for addresses stricter ones,
//! since other nodes send to them what is for a node's pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use gantry_base::names::is_dns1123_subdomain;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeStatus, PodStatus};

use super::addresses::{Address, addresses};
use super::said::{Refused, shown};

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

/// A node that has an address.
pub(crate) struct Holder {
    pub(crate) node: String,
    /// Where its link comes from; `None` when it has none.
    pub(crate) dials_from: Option<IpAddr>,
}

impl Holder {
    /// Whether it shows that it is where it says. One beside a server is believed.
    fn proves(&self, address: IpAddr) -> bool {
        self.dials_from
            .is_some_and(|from| from == address || from.is_loopback())
    }
}

/// More addresses than any machine tells of.
const ADDRESSES: usize = 256;

impl Claim<'_> {
    fn refused(&self, address: &Address, why: &str) -> Refused {
        Refused::NotItsOwn(format!(
            "node \"{}\" cannot have the address {address}: {why}",
            self.node
        ))
    }

    /// Whether the node dials from this address, or from the machine that it shares with the server.
    fn proves(&self, address: IpAddr) -> bool {
        self.dials_from == address || self.dials_from.is_loopback()
    }

    /// Refuses addresses that are somebody else's. `holders` are the nodes that have an address.
    pub(crate) fn check(
        &self,
        addresses: &BTreeSet<Address>,
        holders: impl Fn(&Address) -> Vec<Holder>,
    ) -> Result<(), Refused> {
        if addresses.len() > ADDRESSES {
            return Err(Refused::NotItsOwn(format!(
                "node \"{}\" tells of {} addresses, of which {ADDRESSES} are allowed",
                self.node,
                addresses.len()
            )));
        }
        for address in addresses {
            let ip = match address {
                Address::Ip(ip) => Some(*ip),
                Address::Name(name) if is_dns1123_subdomain(name).is_none() => None,
                Address::Name(_) => {
                    let why = "it is neither an IP address nor a host's name";
                    return Err(self.refused(address, why));
                }
            };
            if let Some(why) = ip.and_then(|ip| self.forbids(ip)) {
                return Err(self.refused(address, why));
            }
            if address.is_loopback() {
                continue;
            }
            for holder in holders(address) {
                let other = &holder.node;
                if *other != self.node && !ip.is_some_and(|ip| self.may_take(ip, &holder)) {
                    let why = format!(
                        "node \"{other}\" has it; remove that one with 'gantry delete node {other}' if it is gone"
                    );
                    return Err(self.refused(address, &why));
                }
            }
        }
        Ok(())
    }

    /// Whether the node may have an address that another says is its own. A machine may come back under another name: whoever
    /// is linked is there still. But one that says so from elsewhere does not keep it from the machine that has it.
    fn may_take(&self, address: IpAddr, holder: &Holder) -> bool {
        match holder.dials_from {
            None => self.proves(address),
            Some(_) => self.dials_from == address && !holder.proves(address),
        }
    }

    /// Why no node, or not this one, can have an address.
    fn forbids(&self, address: IpAddr) -> Option<&'static str> {
        if address.is_unspecified() || address.is_multicast() || is_broadcast(address) {
            Some("no machine has it")
        } else if is_link_local(address) && self.dials_from != address {
            // Each machine has others behind the same one, such as its cloud's credentials.
            Some("it means something else to every machine: name another with --address")
        } else if address.is_loopback() && !self.proves(address) {
            Some("others cannot reach it: name one with --address")
        } else if self.cluster.iter().any(|range| range.contains(&address)) {
            Some("it is in the ranges of pods and services")
        } else if self.servers.contains(&address) && !self.proves(address) {
            Some("a server has it")
        } else {
            None
        }
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whether a node tells of its addresses of this type itself. All others are an administrator's to give it: load balancers
/// prefer ExternalIP, and the whole cluster sends to the service what is for such an address.
pub(crate) fn is_nodes_own(kind: &str) -> bool {
    ["InternalIP", "Hostname"].contains(&kind)
}

/// Takes the addresses out of a node's status that are not its own to tell of; the error says which, and what is left counts.
pub(crate) fn keep_own_addresses(node: &str, status: &mut NodeStatus) -> Result<(), Refused> {
    let Some(addresses) = &mut status.addresses else {
        return Ok(());
    };
    let told = addresses.len();
    let mut dropped = None;
    addresses.retain(|address| {
        let own = is_nodes_own(&address.type_);
        if !own && dropped.is_none() {
            dropped = Some(format!(
                "{} of type {}",
                shown(&address.address),
                shown(&address.type_)
            ));
        }
        own
    });
    let Some(first) = dropped else {
        return Ok(());
    };
    Err(Refused::NotItsOwn(format!(
        "node \"{node}\" tells of {} addresses that are an administrator's to give, such as {first}: they are left out",
        told - addresses.len()
    )))
}

/// Refuses labels by which others decide about nodes.
pub(crate) fn check_labels(node: &str, reported: &Node) -> Result<(), Refused> {
    let labels = reported.metadata.labels.iter().flatten();
    let refused: Vec<&str> = labels
        .map(|(key, _)| key.as_str())
        .filter(|key| !gantry_base::node_labels::may_set(key))
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
    let own = addresses(node.status.as_ref());
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
    let is_own = |address: &str| own.contains(&Address::new(address));
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
        // The holder is where it says.
        let from = ip("192.0.2.7");
        claim_from(dials_from, address, linked.then_some(from))
    }

    fn claim_from(dials_from: &str, address: &str, holder: Option<IpAddr>) -> Result<(), Refused> {
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
        let others = ["192.0.2.7", "2001:db8::7", "other"].map(Address::new);
        let holders = |address: &Address| match others.contains(address) {
            true => vec![Holder {
                node: "other".to_owned(),
                dials_from: holder,
            }],
            false => Vec::new(),
        };
        claim.check(&BTreeSet::from([Address::new(address)]), holders)
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
            ("192.0.2.9", "::ffff:192.0.2.7", true),
            ("192.0.2.9", "2001:db8:0::07", true),
            ("192.0.2.9", "OTHER", true),
            ("192.0.2.9", "192.0.2.7", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.9", "127.0.0.1", true),
            ("192.0.2.9", "0.0.0.0", true),
            ("192.0.2.9", "255.255.255.255", true),
            ("192.0.2.9", "169.254.169.254", true),
            ("127.0.0.1", "169.254.169.254", true),
            ("192.0.2.9", "fe80::1", true),
            ("192.0.2.9", "::ffff:169.254.169.254", true),
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
    fn who_dials_from_an_address_has_it_rather_than_who_does_not() {
        let elsewhere = Some(ip("198.51.100.1"));
        claim_from("192.0.2.7", "192.0.2.7", elsewhere).expect("its own");
        claim_from("192.0.2.7", "other", elsewhere).expect_err("nobody dials from a name");
        claim_from("192.0.2.9", "192.0.2.7", elsewhere).expect_err("neither does");
        claim_from("127.0.0.1", "192.0.2.7", elsewhere).expect_err("it may be any");
        for holder in ["192.0.2.7", "127.0.0.1"] {
            claim_from("192.0.2.7", "192.0.2.7", Some(ip(holder))).expect_err("it is there");
        }
        // A network of machines that have given themselves addresses.
        claim("169.254.3.4", "169.254.3.4", true).expect("its own");
    }

    #[test]
    fn a_node_tells_of_its_own_addresses_alone() {
        let address = |kind: &str, address: &str| json!({"type": kind, "address": address});
        let own = [address("InternalIP", "192.0.2.7"), address("Hostname", "a")];
        let read = |addresses: Vec<serde_json::Value>| -> NodeStatus {
            serde_json::from_value(json!({ "addresses": addresses })).expect("a status")
        };
        let mut good = read(own.to_vec());
        keep_own_addresses("a", &mut good).expect("its own");
        keep_own_addresses("a", &mut NodeStatus::default()).expect("none");
        let kinds = ["ExternalIP", "ExternalDNS", "InternalDNS", "internalip", ""];
        let others = kinds.map(|kind| address(kind, "1.1.1.1"));
        let mut bold = read(others.into_iter().chain(own).collect());
        let refused = keep_own_addresses("a", &mut bold).expect_err("others'");
        let said = refused.to_string();
        assert!(
            said.contains("5 addresses") && said.contains("1.1.1.1"),
            "{said}"
        );
        assert_eq!(bold, good);
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
