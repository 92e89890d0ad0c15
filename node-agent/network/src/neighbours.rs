//! Entries that say which hardware address somebody has, and by which port of the bridge it is reached. Made by the node
//! itself and never learned, so that no packet can change them.

use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use crate::names::Mac;
use crate::underlay::family;

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
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message
        .attributes
        .push(NeighbourAttribute::LinkLocalAddress(mac.to_vec()));
    message
}
