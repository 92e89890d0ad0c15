//! A pod's veth pair, and what is inside of its namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::links::{Bridge, add_address, add_address6, find, vanished};
use crate::names::hardware_address;
use crate::neighbours::neighbour;
use crate::netlink::{Change, Netlink};
use crate::netns::Namespace;
use crate::{NetworkError, ports};

/// The pod's end of its pair.
pub(crate) const POD_LINK: &str = "eth0";
/// Every namespace's first link.
const LOOPBACK: u32 = 1;

/// Makes the pair of a pod, with its end on the bridge in hairpin mode, and configures the pod's inside: loopback,
/// the address as a /32, and everything else by way of the gateway.
///
/// The /32 is what makes services work without bridge netfilter: two pods of one bridge would otherwise answer each
/// other directly, past the connection tracking that has to undo the address translation.
pub(crate) fn connect_pod(
    host: &mut Netlink,
    bridge: &Bridge,
    host_link: &str,
    inside: &mut Namespace,
    ip: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
) -> Result<(), ConnectError> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(POD_LINK.to_owned())
        .address(hardware_address(ip).to_vec())
        .mtu(bridge.mtu)
        .setns_by_fd(inside.file.as_raw_fd())
        .build();
    let pair = LinkVeth::new(host_link, POD_LINK)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .mtu(bridge.mtu)
        .controller(bridge.index)
        .up()
        .build();
    let create = Change::new(
        format!("creating the pair {host_link} - {POD_LINK}"),
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewLink(pair),
    );
    host.change(create).map_err(|refusal| match refusal {
        refusal if refusal.is(libc::EEXIST) => ConnectError::Exists,
        other => ConnectError::Failed(other.into()),
    })?;
    let port = find(host, host_link)?
        .ok_or_else(|| vanished(host_link))?
        .header
        .index;
    let eth0 = find(&mut inside.netlink, POD_LINK)?
        .ok_or_else(|| vanished(POD_LINK))?
        .header
        .index;
    host.batch(ports::settle(bridge, port, host_link, ip, ip6))
        .map_err(NetworkError::from)?;
    // The pod's end cannot be brought up in the message that makes it: it has no peer yet.
    let mut changes = vec![
        Change::new(
            format!("bringing up the pod's {POD_LINK}"),
            0,
            RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(eth0).up().build()),
        ),
        Change::new(
            "bringing up the pod's loopback",
            0,
            RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(LOOPBACK).up().build()),
        ),
        add_address(
            &format!("adding {ip} to the pod's {POD_LINK}"),
            eth0,
            ip,
            32,
        ),
        Change::new(
            "adding the pod's route to its gateway",
            NLM_F_CREATE | NLM_F_REPLACE,
            RouteNetlinkMessage::NewRoute(
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(bridge.gateway, 32)
                    .output_interface(eth0)
                    .scope(RouteScope::Link)
                    .build(),
            ),
        ),
        Change::new(
            "adding the pod's default route",
            NLM_F_CREATE | NLM_F_REPLACE,
            RouteNetlinkMessage::NewRoute(
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .gateway(bridge.gateway)
                    .output_interface(eth0)
                    .build(),
            ),
        ),
        gateways_hardware(eth0, bridge, bridge.gateway.into()),
    ];
    if let (Some(ip6), Some(gateway6)) = (ip6, bridge.gateway6) {
        changes.extend(inside_of_ipv6(eth0, ip6, gateway6));
        changes.push(gateways_hardware(eth0, bridge, gateway6.into()));
    }
    Ok(inside.netlink.batch(changes).map_err(NetworkError::from)?)
}

/// Tells the pod its gateway's hardware address, so that it need not believe anybody who claims to be the gateway.
fn gateways_hardware(eth0: u32, bridge: &Bridge, gateway: IpAddr) -> Change {
    let mac = hardware_address(bridge.gateway);
    Change::new(
        format!("telling the pod the hardware address of its gateway {gateway}"),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewNeighbour(neighbour(eth0, gateway, Some(mac))),
    )
}

/// The pod's IPv6 address and routes, as those of IPv4.
fn inside_of_ipv6(eth0: u32, ip6: Ipv6Addr, gateway: Ipv6Addr) -> [Change; 3] {
    let route = |doing: &str, message: RouteMessageBuilder<Ipv6Addr>| {
        Change::new(
            doing,
            NLM_F_CREATE | NLM_F_REPLACE,
            RouteNetlinkMessage::NewRoute(message.output_interface(eth0).build()),
        )
    };
    [
        add_address6(
            &format!("adding {ip6} to the pod's {POD_LINK}"),
            eth0,
            ip6,
            128,
        ),
        route(
            "adding the pod's route to its IPv6 gateway",
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(gateway, 128),
        ),
        route(
            "adding the pod's default route of IPv6",
            RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway),
        ),
    ]
}

/// Why a pod could not be connected.
pub(crate) enum ConnectError {
    /// A link of that name is there, from something that was never finished.
    Exists,
    /// Anything else.
    Failed(NetworkError),
}

impl From<NetworkError> for ConnectError {
    fn from(error: NetworkError) -> Self {
        Self::Failed(error)
    }
}

impl From<ConnectError> for NetworkError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Failed(error) => error,
            ConnectError::Exists => Self::Netlink {
                doing: "creating a pod's pair of links".to_owned(),
                cause: "it exists again right after it was removed".to_owned(),
            },
        }
    }
}
