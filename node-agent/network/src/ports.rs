//! A pod's port of the bridge, and what the host knows of who is behind it.
//!
//! Nothing is learned from packets: the port's hardware address and the pod's neighbour entries are the node's own. Frames
//! to addresses that bridges keep to themselves (spanning tree, LLDP) would reach the host past the rules that watch the
//! port (`guard.rs`); as frames to be forwarded they meet these rules, which drop them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{LinkBridgePort, LinkUnspec};

use crate::links::Bridge;
use crate::names::hardware_address;
use crate::neighbours::{behind_port, neighbour};
use crate::netlink::Change;

/// All of 01:80:c2:00:00:00 to 0f but the pause frames of 01, which the kernel always drops.
const RESERVED_FRAMES: u16 = 0xfffd;
/// There was nothing to remove.
const ABSENT: &[i32] = &[libc::ENOENT, libc::ENODEV, libc::ESRCH];

/// Makes a link the port of a pod, whatever it was before.
pub(crate) fn settle(
    bridge: &Bridge,
    port: u32,
    name: &str,
    ip: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
) -> Vec<Change> {
    let mac = hardware_address(ip);
    let set = NLM_F_CREATE | NLM_F_REPLACE;
    let mut changes = vec![
        Change::new(
            format!("making {name} a port of the bridge"),
            0,
            RouteNetlinkMessage::SetLink(
                LinkUnspec::new_with_index(port)
                    .controller(bridge.index)
                    .up()
                    .build(),
            ),
        ),
        Change::new(
            format!("setting what the port {name} may do"),
            0,
            // Only this request heeds a port's settings; SetLink passes over them without a word.
            RouteNetlinkMessage::NewLink(
                LinkBridgePort::new(port)
                    .controller(bridge.index)
                    .hairpin(true)
                    .learning(false)
                    .flood(false)
                    .group_fwd_mask(RESERVED_FRAMES)
                    .build(),
            ),
        ),
        Change::new(
            format!("telling the bridge who is behind {name}"),
            set,
            RouteNetlinkMessage::NewNeighbour(behind_port(port, mac)),
        ),
    ];
    changes.extend(addresses(ip, ip6).map(|address| {
        Change::new(
            format!("making the hardware address of {address} known"),
            set,
            RouteNetlinkMessage::NewNeighbour(neighbour(bridge.index, address, Some(mac))),
        )
    }));
    changes
}

/// Forgets who a pod's addresses belonged to; the rest goes with its link.
pub(crate) fn forget(bridge: &Bridge, ip: Ipv4Addr, ip6: Option<Ipv6Addr>) -> Vec<Change> {
    addresses(ip, ip6)
        .map(|address| {
            Change::new(
                format!("forgetting the hardware address of {address}"),
                0,
                RouteNetlinkMessage::DelNeighbour(neighbour(bridge.index, address, None)),
            )
            .fine(ABSENT)
        })
        .collect()
}

fn addresses(ip: Ipv4Addr, ip6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    std::iter::once(IpAddr::V4(ip)).chain(ip6.map(IpAddr::V6))
}
