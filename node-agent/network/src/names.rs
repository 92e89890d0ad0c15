//! Names of what an agent creates in the kernel, all derived from the node's prefix.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{NetworkError, NodeNetwork};

/// IFNAMSIZ leaves 15 characters: the prefix, a separator, and the five digits of an address' offset.
const LONGEST_PREFIX: usize = 8;
/// Offsets are at most five digits long, so that a link's name fits.
const WIDEST_POD_CIDR: u8 = 16;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// The names of one node's network.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    prefix: String,
    pod_cidr: Ipv4Net,
    data_dir: PathBuf,
}

impl Names {
    /// Checks what names are made from: the prefix is an interface name, and the pod CIDR has room for pods.
    pub(crate) fn new(node: &NodeNetwork) -> Result<Self, NetworkError> {
        let prefix = &node.prefix;
        let well_formed = prefix.starts_with(|c: char| c.is_ascii_lowercase())
            && prefix
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !well_formed || prefix.len() > LONGEST_PREFIX {
            return Err(NetworkError::Unsupported(format!(
                "network prefix {prefix:?}: use 1 to {LONGEST_PREFIX} of a-z, 0-9 and '-', beginning with a letter"
            )));
        }
        let length = node.pod_cidr.prefix_len();
        if !(WIDEST_POD_CIDR..=30).contains(&length) {
            return Err(NetworkError::Unsupported(format!(
                "pod CIDR {}: a node's pod CIDR is between /{WIDEST_POD_CIDR} and /30",
                node.pod_cidr
            )));
        }
        if let Some(ipv6) = &node.ipv6
            && 128 - ipv6.pod_cidr.prefix_len() < 32 - length
        {
            return Err(NetworkError::Unsupported(format!(
                "IPv6 pod CIDR {}: it must have room for as many addresses as the IPv4 pod CIDR {}: make it /{} or wider",
                ipv6.pod_cidr,
                node.pod_cidr,
                128 - (32 - length)
            )));
        }
        Ok(Self {
            prefix: prefix.clone(),
            pod_cidr: node.pod_cidr.trunc(),
            data_dir: node.data_dir.clone(),
        })
    }

    /// The bridge.
    pub(crate) fn bridge(&self) -> String {
        format!("{}-br", self.prefix)
    }

    /// The VXLAN device.
    pub(crate) fn vxlan(&self) -> String {
        format!("{}-vx", self.prefix)
    }

    /// The bridge's address, which is every pod's default gateway: the first usable of the pod CIDR.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        gateway_of(self.pod_cidr)
    }

    /// The host's end of the pair whose other end has `ip`.
    pub(crate) fn host_link(&self, ip: Ipv4Addr) -> String {
        format!(
            "{}.{}",
            self.prefix,
            u32::from(ip).wrapping_sub(u32::from(self.pod_cidr.network()))
        )
    }

    /// Whether a link of the host is the end of some pod's pair.
    pub(crate) fn is_host_link(&self, link: &str) -> bool {
        link.strip_prefix(&self.prefix)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|offset| !offset.is_empty() && offset.bytes().all(|b| b.is_ascii_digit()))
    }

    /// The nftables table of pods: host ports and masquerade.
    pub(crate) fn pod_table(&self) -> String {
        format!("{}-pods", self.prefix)
    }

    /// The nftables table of what travels between nodes.
    pub(crate) fn overlay_table(&self) -> String {
        format!("{}-overlay", self.prefix)
    }

    /// What names the node in rules that belong to no link.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The nftables table that keeps others from the host's loopback.
    pub(crate) fn loopback_table(&self) -> String {
        format!("{}-loopback", self.prefix)
    }

    /// Names the links of the host that were opened for the loopback's addresses.
    pub(crate) fn opened_links_file(&self) -> PathBuf {
        self.data_dir.join("opened-links")
    }

    /// The nftables table of services.
    pub(crate) fn service_table(&self) -> String {
        format!("{}-services", self.prefix)
    }

    /// The nftables table of the node's DNS.
    pub(crate) fn dns_table(&self) -> String {
        format!("{}-dns", self.prefix)
    }

    /// The nftables tables of policies, in the families `inet` and `bridge`.
    pub(crate) fn policy_table(&self) -> String {
        format!("{}-policy", self.prefix)
    }

    /// The nftables tables that keep pods to their own addresses, in the families `bridge` and `inet`.
    pub(crate) fn guard_table(&self) -> String {
        format!("{}-guard", self.prefix)
    }

    /// What the names of all pods' host links begin with.
    pub(crate) fn host_links(&self) -> String {
        format!("{}.", self.prefix)
    }

    /// Where namespaces are mounted, by pod uid.
    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.data_dir.join("netns")
    }

    /// Where address leases are kept, by pod uid.
    pub(crate) fn lease_dir(&self) -> PathBuf {
        self.data_dir.join("leases")
    }
}

/// A hardware address that follows from an IPv4 address: a pod that takes over an address takes over its neighbours'
/// ARP entries as well, and the bridge's never changes as links come and go.
pub(crate) fn hardware_address(ip: Ipv4Addr) -> Mac {
    let [a, b, c, d] = ip.octets();
    // 0x02 marks a locally administered unicast address.
    [0x02, 0x67, a, b, c, d]
}

/// The address of a node's bridge, by the node's pod CIDR.
pub(crate) fn gateway_of(pod_cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(pod_cidr.network()).wrapping_add(1))
}

/// The address of a node's VXLAN device, which is the next hop to the node's pods: the first of the pod CIDR, which no
/// pod and no bridge ever has. Its hardware address follows from it, so that whoever knows a node's pod CIDR knows both.
pub(crate) fn device_address(pod_cidr: Ipv4Net) -> Ipv4Addr {
    pod_cidr.network()
}

/// The IPv6 address that the node speaks from to the pods of other nodes. The first of the range is every router's
/// (anycast), so it is the one at the offset of the IPv4 range's last, which is no pod's either.
pub(crate) fn device_address6(pod_cidr: Ipv6Net, beside: Ipv4Net) -> Ipv6Addr {
    at_offset(pod_cidr, beside, beside.broadcast())
}

/// The IPv6 address at the same place in its range as an IPv4 address in its own.
pub(crate) fn at_offset(pod_cidr: Ipv6Net, beside: Ipv4Net, ip: Ipv4Addr) -> Ipv6Addr {
    let offset = u32::from(ip).wrapping_sub(u32::from(beside.network()));
    Ipv6Addr::from(u128::from(pod_cidr.network()) | u128::from(offset))
}

/// The link-local IPv6 address of a hardware address (modified EUI-64, RFC 4291 appendix A): the next hop for IPv6.
pub(crate) fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    let eui64 = u64::from_be_bytes([a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(eui64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(prefix: &str, cidr: &str) -> NodeNetwork {
        NodeNetwork {
            prefix: prefix.into(),
            pod_cidr: cidr.parse().unwrap(),
            cluster_pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            data_dir: "/var/lib/gantry/network".into(),
            ipv6: None,
            overlay: None,
        }
    }

    #[test]
    fn names_fit_the_kernel() {
        let names = Names::new(&node("gantry12", "10.244.0.0/16")).unwrap();
        assert_eq!(
            names.host_link("10.244.255.254".parse().unwrap()),
            "gantry12.65534"
        );
        assert!(names.host_link("10.244.255.254".parse().unwrap()).len() <= 15);
        assert!(names.bridge().len() <= 15);
        assert_eq!(names.gateway(), Ipv4Addr::new(10, 244, 0, 1));
        assert!(names.is_host_link("gantry12.7"));
        for other in [
            "gantry12-br",
            "gantry12.",
            "gantry12.x",
            "gantry1.7",
            "eth0",
        ] {
            assert!(!names.is_host_link(other), "{other}");
        }
    }

    #[test]
    fn a_nodes_device_is_known_by_its_pod_cidr() {
        let cidr: Ipv4Net = "10.244.3.0/24".parse().unwrap();
        let device = device_address(cidr);
        assert_eq!(device, Ipv4Addr::new(10, 244, 3, 0));
        let mac = hardware_address(device);
        assert_eq!(mac, [0x02, 0x67, 10, 244, 3, 0]);
        assert_eq!(link_local(mac).to_string(), "fe80::67:aff:fef4:300");
        let ipv6: Ipv6Net = "fd00:10:244:3::/64".parse().unwrap();
        assert_eq!(device_address6(ipv6, cidr).to_string(), "fd00:10:244:3::ff");
        assert_eq!(
            at_offset(ipv6, cidr, Ipv4Addr::new(10, 244, 3, 7)).to_string(),
            "fd00:10:244:3::7"
        );
    }

    #[test]
    fn an_ipv6_range_has_room_for_every_pod() {
        let mut dual = node("gantry", "10.244.1.0/24");
        let ipv6 = |cidr: &str| {
            Some(crate::Ipv6Network {
                pod_cidr: cidr.parse().unwrap(),
                cluster_pod_cidr: "fd00:10:244::/56".parse().unwrap(),
                service_cidr: None,
            })
        };
        dual.ipv6 = ipv6("fd00:10:244:1::/120");
        Names::new(&dual).unwrap();
        dual.ipv6 = ipv6("fd00:10:244:1::/121");
        let error = Names::new(&dual).unwrap_err().to_string();
        assert!(error.contains("/120 or wider"), "{error}");
    }

    #[test]
    fn bad_prefixes_and_ranges_are_refused_by_name() {
        for bad in ["", "toolongprefix", "9g", "Gantry", "a;b", "a/b"] {
            let error = Names::new(&node(bad, "10.244.0.0/24"))
                .unwrap_err()
                .to_string();
            assert!(error.contains("prefix"), "{error}");
        }
        for bad in ["10.0.0.0/8", "10.0.0.0/31", "10.0.0.0/32"] {
            let error = Names::new(&node("gantry", bad)).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }
}
