//! Entries that say which hardware address somebody has, and by which port of the bridge it is reached. Made by the node
//! itself and never learned, so that no packet can change them.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::names::Mac;
use crate::netlink::family;

/// That `address` is reached over `link` by this hardware address. Permanent: the kernel takes nobody's word against it.
pub(crate) fn neighbour(link: u32, address: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(address.into()));
    message
        .attributes
        .extend(mac.map(|mac| NeighbourAttribute::LinkLocalAddress(mac.to_vec())));
    message
}

/// That a hardware address is behind a port of its bridge. Static, since a permanent entry would be one of the host itself.
pub(crate) fn behind_port(port: u32, mac: Mac) -> NeighbourMessage {
    forwarded(port, mac, NeighbourState::Noarp, NeighbourFlags::Controller)
}

/// That a VXLAN device sends what is for a hardware address to the node at an address; without one, which entry is meant.
pub(crate) fn behind_node(vxlan: u32, mac: Mac, at: Option<IpAddr>) -> NeighbourMessage {
    // The device's own table, not that of a bridge it might be a port of.
    let mut message = forwarded(vxlan, mac, NeighbourState::Permanent, NeighbourFlags::Own);
    message
        .attributes
        .extend(at.map(|at| NeighbourAttribute::Destination(at.into())));
    message
}

fn forwarded(
    link: u32,
    mac: Mac,
    state: NeighbourState,
    flags: NeighbourFlags,
) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.state = state;
    message.header.flags = flags;
    message
        .attributes
        .push(NeighbourAttribute::LinkLocalAddress(mac.to_vec()));
    message
}
