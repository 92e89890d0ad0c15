//! The kernel's entries that lead to peers: reading those that are ours, and changing them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::plan::{Entries, Route, Step};
use crate::NetworkError;
use crate::names::Mac;
use crate::neighbours::{behind_node, neighbour};
use crate::netlink::{Change, Netlink, family};

/// Marks routes as Gantry's (`proto 71` in `ip route`). The numbers from 5 on are free for whoever programs routes;
/// this one is none of those that are spoken for in iproute2's table.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(71);
/// There was nothing to remove.
const ABSENT: &[i32] = &[libc::ESRCH, libc::ENOENT];

/// What tells this node's entries from those of others.
#[derive(Clone, Debug)]
pub(super) struct Ours {
    /// The VXLAN device: every entry of it is ours.
    pub(super) vxlan: u32,
    /// Routes over other links that speak from here are ours as well.
    pub(super) sources: Vec<IpAddr>,
}

/// The entries in the kernel that are ours.
pub(super) fn read(netlink: &mut Netlink, ours: &Ours) -> Result<Entries, NetworkError> {
    let mut entries = Entries::default();
    for family in [
        AddressFamily::Inet,
        AddressFamily::Inet6,
        AddressFamily::Bridge,
    ] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let found = netlink.dump(
            "listing neighbours",
            RouteNetlinkMessage::GetNeighbour(request),
        )?;
        for message in found {
            if let RouteNetlinkMessage::NewNeighbour(message) = message
                && message.header.ifindex == ours.vxlan
            {
                record(&message, &mut entries);
            }
        }
    }
    for request in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let found = netlink.dump("listing routes", RouteNetlinkMessage::GetRoute(request))?;
        for message in found {
            if let RouteNetlinkMessage::NewRoute(message) = message
                && let Some((cidr, route)) = own_route(&message, ours)
            {
                entries.routes.insert(cidr, route);
            }
        }
    }
    Ok(entries)
}

fn record(message: &NeighbourMessage, entries: &mut Entries) {
    let mac = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLocalAddress(bytes) => Mac::try_from(bytes.as_slice()).ok(),
            _ => None,
        });
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(address) => address_of(address),
            _ => None,
        });
    let (Some(mac), Some(address)) = (mac, address) else {
        return;
    };
    if message.header.family == AddressFamily::Bridge {
        entries.forwarding.insert(mac, address);
    } else if message.header.state == NeighbourState::Permanent {
        entries.neighbours.insert(address, mac);
    }
}

/// In a forwarding entry the address' family shows only in its length.
fn address_of(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        NeighbourAddress::Other(bytes) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}

fn own_route(message: &RouteMessage, ours: &Ours) -> Option<(IpNet, Route)> {
    let header = &message.header;
    if header.protocol != PROTOCOL
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let mut destination = None;
    let mut route = Route {
        link: 0,
        via: None,
        source: None,
        on_link: header.flags.contains(RouteFlags::Onlink),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => route.via = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.link = *index,
            _ => {}
        }
    }
    let cidr = IpNet::new(destination?, header.destination_prefix_length).ok()?;
    let own = route.link == ours.vxlan
        || route
            .source
            .is_some_and(|source| ours.sources.contains(&source));
    own.then_some((cidr, route))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// A step in the kernel's terms.
pub(super) fn change(vxlan: u32, step: Step) -> Change {
    let set = NLM_F_CREATE | NLM_F_REPLACE;
    match step {
        Step::SetForwarding(mac, at) => Change::new(
            format!("forwarding {} to the node at {at}", words(mac)),
            set,
            RouteNetlinkMessage::NewNeighbour(behind_node(vxlan, mac, Some(at))),
        ),
        Step::RemoveForwarding(mac) => Change::new(
            format!("forwarding {} no longer", words(mac)),
            0,
            RouteNetlinkMessage::DelNeighbour(behind_node(vxlan, mac, None)),
        )
        .fine(ABSENT),
        Step::SetNeighbour(hop, mac) => Change::new(
            format!("making {} known as {hop}", words(mac)),
            set,
            RouteNetlinkMessage::NewNeighbour(neighbour(vxlan, hop, Some(mac))),
        ),
        Step::RemoveNeighbour(hop) => Change::new(
            format!("forgetting the hardware address of {hop}"),
            0,
            RouteNetlinkMessage::DelNeighbour(neighbour(vxlan, hop, None)),
        )
        .fine(ABSENT),
        Step::SetRoute(cidr, route) => Change::new(
            format!("routing the pods of {cidr}"),
            set,
            RouteNetlinkMessage::NewRoute(route_message(cidr, &route)),
        ),
        Step::RemoveRoute(cidr, route) => Change::new(
            format!("removing the route to the pods of {cidr}"),
            0,
            RouteNetlinkMessage::DelRoute(route_message(cidr, &route)),
        )
        .fine(ABSENT),
    }
}

fn words(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn route_message(cidr: IpNet, route: &Route) -> RouteMessage {
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .protocol(PROTOCOL)
        .output_interface(route.link)
        .build();
    message.header.address_family = family(cidr.network());
    message.header.destination_prefix_length = cidr.prefix_len();
    if route.on_link {
        message.header.flags.insert(RouteFlags::Onlink);
    }
    message
        .attributes
        .push(RouteAttribute::Destination(cidr.network().into()));
    let via = route.via.map(|via| RouteAttribute::Gateway(via.into()));
    let source = route
        .source
        .map(|source| RouteAttribute::PrefSource(source.into()));
    message.attributes.extend(via.into_iter().chain(source));
    message
}
