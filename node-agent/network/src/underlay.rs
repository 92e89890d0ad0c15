//! The network between nodes as this node sees it: by which link it is reached, how large packets may be, and who is
//! on the same subnet.
//!
//! **What a pod's packets may measure.** A pod keeps the MTU it was attached with, while nodes that need VXLAN may join
//! at any time. So wherever there is an overlay, every pod gets the underlay's MTU less what VXLAN adds, also while all
//! nodes of today are reached directly: a datagram that fits its link then fits every path to another pod, and no
//! connection depends on the network telling of packets too big. The price is three hundredths of the payload of
//! direct packets. Pods attached under a larger MTU, by an agent of before, are told by the node itself (ICMP, which
//! nothing lies in the way of), and their TCP connections are clamped when they are opened (`overlay/rules.rs`).
//! Packets that VXLAN has wrapped may be fragmented on their way (`DF` is unset): a narrower link between two nodes
//! makes them slow, and swallows nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use crate::links::{self, mtu_of, name_of};
use crate::netlink::{Netlink, family};
use crate::{NetworkError, NodeNetwork};

/// What a link carries when nothing says otherwise: Ethernet's.
const DEFAULT_MTU: u32 = 1500;
/// An inner Ethernet header, VXLAN's, UDP's, and IPv4's or IPv6's.
const VXLAN_OVER_IPV4: u32 = 14 + 8 + 8 + 20;
const VXLAN_OVER_IPV6: u32 = 14 + 8 + 8 + 40;
/// Every host must take IPv4 packets of this size (RFC 791); below it, too much does not work.
const LEAST_IPV4: u32 = 576;
/// Every link of IPv6 must carry packets of this size (RFC 8200).
const LEAST_IPV6: u32 = 1280;

/// The link to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Underlay {
    /// 0 when the node has no network but its own.
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// The node's address is one of this host's own, and not of a translator before it.
    pub(crate) has_address: bool,
    /// Whoever has an address here is sent packets without a router in between.
    pub(crate) on_link: Option<IpNet>,
}

impl Underlay {
    /// The link that holds the node's address, or that the default route leaves by.
    pub(crate) fn find(
        netlink: &mut Netlink,
        address: Option<IpAddr>,
    ) -> Result<Self, NetworkError> {
        let held = match address {
            Some(address) => held(netlink, address)?,
            None => None,
        };
        let has_address = held.is_some();
        if let Some((index, subnet)) = held {
            let link = link(netlink, index)?;
            // An address may live on the loopback of a host that is reached by several ways.
            if !link.header.flags.contains(LinkFlags::Loopback) {
                // Links without neighbours' addresses, such as other tunnels, carry only what they were told to.
                let has_neighbours = link.header.link_layer_type == LinkLayerType::Ether
                    && !link.header.flags.contains(LinkFlags::Noarp);
                return Ok(Self::of(&link, true, has_neighbours.then_some(subnet)));
            }
        }
        match default_link(netlink, address)? {
            Some(index) => Ok(Self::of(&link(netlink, index)?, has_address, None)),
            None => Ok(Self {
                index: 0,
                name: String::new(),
                mtu: DEFAULT_MTU,
                has_address,
                on_link: None,
            }),
        }
    }

    fn of(link: &LinkMessage, has_address: bool, on_link: Option<IpNet>) -> Self {
        Self {
            index: link.header.index,
            name: name_of(link).unwrap_or_default(),
            mtu: mtu_of(link).unwrap_or(DEFAULT_MTU),
            has_address,
            on_link,
        }
    }

    /// Refuses ranges of the cluster that other machines of the node's own subnet have: packets to them would go to
    /// pods or services instead, or the other way around.
    pub(crate) fn check_ranges(&self, node: &NodeNetwork) -> Result<(), NetworkError> {
        let Some(subnet) = self.on_link else {
            return Ok(());
        };
        let ipv6 = node.ipv6.as_ref();
        let ranges = [
            Some(("pod CIDR", "--pod-cidr", IpNet::V4(node.cluster_pod_cidr))),
            Some((
                "service CIDR",
                "--service-cidr",
                IpNet::V4(node.service_cidr),
            )),
            ipv6.map(|ipv6| ("pod CIDR", "--pod-cidr", IpNet::V6(ipv6.cluster_pod_cidr))),
            ipv6.and_then(|ipv6| ipv6.service_cidr)
                .map(|cidr| ("service CIDR", "--service-cidr", IpNet::V6(cidr))),
        ];
        for (what, option, range) in ranges.into_iter().flatten() {
            if range.contains(&subnet.network()) || subnet.contains(&range.network()) {
                return Err(NetworkError::Unsupported(format!(
                    "the subnet {subnet} of this node's link {} overlaps the cluster's {what} {range}: give the node an \
                     address on another network (--address), or make the cluster with another {option}",
                    self.name
                )));
            }
        }
        Ok(())
    }

    /// The MTU of pods, of the bridge, and of the VXLAN device (see the module's words).
    pub(crate) fn pod_mtu(&self, node: &NodeNetwork) -> Result<u32, NetworkError> {
        let added = match node.overlay.as_ref().map(|overlay| overlay.node_address) {
            None => 0,
            Some(IpAddr::V4(_)) => VXLAN_OVER_IPV4,
            Some(IpAddr::V6(_)) => VXLAN_OVER_IPV6,
        };
        let (least, protocol) = match node.ipv6 {
            None => (LEAST_IPV4, "IPv4"),
            Some(_) => (LEAST_IPV6, "IPv6"),
        };
        let left = self.mtu.saturating_sub(added);
        if left < least {
            return Err(NetworkError::Unsupported(format!(
                "the MTU of the link {name} is {mtu}, which leaves packets of {left} bytes for pods when the overlay's \
                 {added} are taken off; {protocol} needs {least}: raise it to {} or more (ip link set {name} mtu {})",
                least + added,
                DEFAULT_MTU.max(least + added),
                name = self.name,
                mtu = self.mtu,
            )));
        }
        Ok(left)
    }
}

/// The link that has an address, and the subnet that comes with it.
fn held(netlink: &mut Netlink, wanted: IpAddr) -> Result<Option<(u32, IpNet)>, NetworkError> {
    let addresses = links::addresses(netlink, family(wanted))?;
    let mut held = addresses
        .into_iter()
        .filter(|(_, net)| net.addr() == wanted)
        .map(|(message, net)| (message.header.index, net.trunc()));
    Ok(held.next())
}

fn link(netlink: &mut Netlink, index: u32) -> Result<LinkMessage, NetworkError> {
    let request = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(index).build());
    match netlink.get("looking up the link to other nodes", request)? {
        RouteNetlinkMessage::NewLink(link) => Ok(link),
        other => Err(NetworkError::Netlink {
            doing: "looking up the link to other nodes".to_owned(),
            cause: format!("the kernel answered with something else: {other:?}"),
        }),
    }
}

/// The link that the default route leaves by, of the address' family.
fn default_link(
    netlink: &mut Netlink,
    address: Option<IpAddr>,
) -> Result<Option<u32>, NetworkError> {
    let request = match address {
        Some(IpAddr::V6(_)) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        _ => RouteMessageBuilder::<Ipv4Addr>::new().build(),
    };
    let routes = netlink.dump("listing routes", RouteNetlinkMessage::GetRoute(request))?;
    Ok(routes.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route)
            if route.header.destination_prefix_length == 0
                && route.header.table == RouteHeader::RT_TABLE_MAIN =>
        {
            route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
        }
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ipv6Network, OverlaySettings};

    fn node(address: Option<&str>, ipv6: bool) -> NodeNetwork {
        NodeNetwork {
            prefix: "gt".into(),
            pod_cidr: "10.244.3.0/24".parse().unwrap(),
            cluster_pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            data_dir: "/d".into(),
            ipv6: ipv6.then(|| Ipv6Network {
                pod_cidr: "fd00:3::/64".parse().unwrap(),
                cluster_pod_cidr: "fd00::/16".parse().unwrap(),
                service_cidr: None,
            }),
            overlay: address.map(|address| OverlaySettings::new(address.parse().unwrap())),
        }
    }

    fn underlay(mtu: u32) -> Underlay {
        Underlay {
            index: 2,
            name: "eth0".into(),
            mtu,
            has_address: true,
            on_link: None,
        }
    }

    #[test]
    fn pods_get_what_vxlan_leaves() {
        let mtu = |address, ipv6, mtu| underlay(mtu).pod_mtu(&node(address, ipv6)).unwrap();
        assert_eq!(mtu(None, false, 1500), 1500, "a node alone wraps nothing");
        assert_eq!(mtu(Some("192.0.2.1"), false, 1500), 1450);
        assert_eq!(mtu(Some("192.0.2.1"), false, 9000), 8950);
        assert_eq!(mtu(Some("2001:db8::1"), false, 1500), 1430);
        assert_eq!(mtu(Some("192.0.2.1"), false, 626), 576);
        assert_eq!(mtu(Some("192.0.2.1"), true, 1330), 1280);
        assert_eq!(mtu(Some("2001:db8::1"), true, 1350), 1280);
    }

    #[test]
    fn a_subnet_that_the_cluster_would_hide_is_named() {
        let check = |subnet: Option<&str>| {
            let mut underlay = underlay(1500);
            underlay.on_link = subnet.map(|subnet| subnet.parse().unwrap());
            underlay
                .check_ranges(&node(Some("192.0.2.1"), true))
                .map_err(|error| error.to_string())
        };
        for fine in [
            None,
            Some("192.0.2.0/24"),
            Some("10.112.0.0/16"),
            Some("fe00::/16"),
        ] {
            check(fine).unwrap();
        }
        for (subnet, option) in [
            ("10.244.7.0/24", "--pod-cidr"),
            ("10.0.0.0/8", "--pod-cidr"),
            ("10.100.0.0/16", "--service-cidr"),
            ("fd00:9::/64", "--pod-cidr"),
        ] {
            let error = check(Some(subnet)).unwrap_err();
            assert!(
                ["eth0", subnet, option]
                    .iter()
                    .all(|words| error.contains(words)),
                "{error}"
            );
        }
    }

    #[test]
    fn a_link_too_narrow_is_named_with_what_would_do() {
        for (address, ipv6, mtu, needed) in [
            ("192.0.2.1", false, 625, "626"),
            ("192.0.2.1", true, 1329, "1330"),
            ("2001:db8::1", true, 1349, "1350"),
        ] {
            let error = underlay(mtu)
                .pod_mtu(&node(Some(address), ipv6))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("eth0") && error.contains(&format!("raise it to {needed}")),
                "{error}"
            );
        }
    }
}
