//! Which entries of the kernel lead to which peers, and what has to change. Pure.
//!
//! ```text
//! pod of this node -> 10.244.2.7
//!   route       10.244.2.0/24 via 10.244.2.0 dev gt-vx    the next hop is the device of the peer
//!   neighbour   10.244.2.0 is 02:67:0a:f4:02:00           nobody is asked for its hardware address
//!   forwarding  02:67:0a:f4:02:00 is at 192.0.2.2         the node that the packet is wrapped for
//! or, on one subnet
//!   route       10.244.2.0/24 via 192.0.2.2 dev eth0
//! ```
//!
//! Every entry is replaced in one step where it changes, and steps are ordered so that a route by VXLAN never lacks
//! the two entries behind it: a peer that moves loses no packet to the change itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::names::{Mac, device_address, hardware_address, link_local};
use crate::{NetworkError, OverlayMode, PeerNode};

/// Entries of the kernel, by what they are looked up with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) routes: BTreeMap<IpNet, Route>,
    /// Of the VXLAN device.
    pub(super) neighbours: BTreeMap<IpAddr, Mac>,
    /// Of the VXLAN device.
    pub(super) forwarding: BTreeMap<Mac, IpAddr>,
}

/// A route to the pods of a peer. What the kernel holds may lack what ours always have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) link: u32,
    pub(super) via: Option<IpAddr>,
    /// What the node itself speaks from.
    pub(super) source: Option<IpAddr>,
    /// The next hop is on the link although no subnet says so.
    pub(super) on_link: bool,
}

/// This node, as far as it decides how peers are reached.
#[derive(Clone, Debug)]
pub(super) struct Here {
    pub(super) address: IpAddr,
    pub(super) mode: OverlayMode,
    /// Whose members are reached without a router.
    pub(super) on_link: Option<IpNet>,
    pub(super) underlay: u32,
    pub(super) vxlan: u32,
    pub(super) pod_cidrs: Vec<IpNet>,
    /// The VXLAN device's addresses.
    pub(super) source: Ipv4Addr,
    pub(super) source6: Option<Ipv6Addr>,
}

/// One change of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    SetForwarding(Mac, IpAddr),
    SetNeighbour(IpAddr, Mac),
    SetRoute(IpNet, Route),
    RemoveRoute(IpNet, Route),
    RemoveNeighbour(IpAddr),
    RemoveForwarding(Mac),
}

/// The entries that lead to the peers, and why some peers have none.
pub(super) fn plan(here: &Here, peers: &[PeerNode]) -> (Entries, Vec<NetworkError>) {
    let (usable, problems) = usable(here.address, &here.pod_cidrs, peers);
    let mut entries = Entries::default();
    for peer in usable {
        if let Some(first) = first_ipv4(peer) {
            let device = device_address(first.trunc());
            for cidr in &peer.pod_cidrs {
                lead(here, peer.address, device, cidr.trunc(), &mut entries);
            }
        }
    }
    (entries, problems)
}

/// The peers that can be programmed on a node with this address and these pods, in the order of their names, and what
/// is wrong with others. Of two peers that claim the same addresses, the one whose name is first has them.
pub(crate) fn usable<'a>(
    address: IpAddr,
    pod_cidrs: &[IpNet],
    peers: &'a [PeerNode],
) -> (Vec<&'a PeerNode>, Vec<NetworkError>) {
    // Nodes that share an address share a kernel, which reaches the pods of all of them by itself.
    let mut others: Vec<&PeerNode> = peers
        .iter()
        .filter(|peer| peer.address != address)
        .collect();
    others.sort_by(|a, b| a.name.cmp(&b.name));
    let mut problems = Vec::new();
    let mut claimed = Claims::default();
    for cidr in pod_cidrs {
        claimed.add(*cidr, "this node");
    }
    others.retain(|peer| match check(address, peer, &claimed) {
        Ok(()) => {
            for cidr in &peer.pod_cidrs {
                claimed.add(cidr.trunc(), &peer.name);
            }
            true
        }
        Err(problem) => {
            problems.push(NetworkError::Peer {
                name: peer.name.clone(),
                problem,
            });
            false
        }
    });
    (others, problems)
}

fn first_ipv4(peer: &PeerNode) -> Option<Ipv4Net> {
    peer.pod_cidrs.iter().find_map(|cidr| match cidr {
        IpNet::V4(cidr) => Some(*cidr),
        IpNet::V6(_) => None,
    })
}

/// What is wrong with a peer.
fn check(here: IpAddr, peer: &PeerNode, claimed: &Claims<'_>) -> Result<(), String> {
    let address = peer.address;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(format!(
            "its address {address} is not one that other nodes can reach: start its agent with --address"
        ));
    }
    if address.is_ipv4() != here.is_ipv4() {
        return Err(format!(
            "its address {address} is of another IP version than this node's {here}: give both an address of the same \
             version with --address"
        ));
    }
    if first_ipv4(peer).is_none() {
        return Err("spec.podCIDRs has no IPv4 range".to_owned());
    }
    for (index, cidr) in peer.pod_cidrs.iter().enumerate() {
        let other = claimed.overlap(*cidr).or_else(|| {
            let own = peer.pod_cidrs[..index].iter();
            own.copied()
                .find(|own| overlap(*own, *cidr))
                .map(|own| (own, "the node itself"))
        });
        if let Some((other, owner)) = other {
            return Err(format!(
                "its pod CIDR {cidr} overlaps {other} of {owner}: delete one of the two Nodes and let it join anew"
            ));
        }
    }
    Ok(())
}

fn lead(here: &Here, address: IpAddr, device: Ipv4Addr, cidr: IpNet, entries: &mut Entries) {
    let source = match cidr {
        IpNet::V4(_) => IpAddr::V4(here.source),
        IpNet::V6(_) => match here.source6 {
            Some(source) => IpAddr::V6(source),
            // A node without IPv6 has no pod that could send there.
            None => return,
        },
    };
    let is_ipv4 = cidr.addr().is_ipv4();
    let neighbour = here.on_link.is_some_and(|subnet| subnet.contains(&address));
    if neighbour && here.mode == OverlayMode::Auto && is_ipv4 == address.is_ipv4() {
        let route = Route {
            link: here.underlay,
            via: Some(address),
            source: Some(source),
            on_link: false,
        };
        entries.routes.insert(cidr, route);
        return;
    }
    let mac = hardware_address(device);
    let hop = match is_ipv4 {
        true => IpAddr::V4(device),
        false => IpAddr::V6(link_local(mac)),
    };
    let route = Route {
        link: here.vxlan,
        via: Some(hop),
        source: Some(source),
        on_link: is_ipv4,
    };
    entries.routes.insert(cidr, route);
    entries.neighbours.insert(hop, mac);
    entries.forwarding.insert(mac, address);
}

/// Ranges without a common address, and whose they are.
#[derive(Default)]
struct Claims<'a>(BTreeMap<IpAddr, (IpNet, &'a str)>);

impl<'a> Claims<'a> {
    /// Of a range that overlaps none of those here.
    fn add(&mut self, cidr: IpNet, owner: &'a str) {
        self.0.insert(cidr.network(), (cidr, owner));
    }

    /// Only the nearest ranges on either side can have an address of this one: those here have none in common.
    fn overlap(&self, cidr: IpNet) -> Option<(IpNet, &'a str)> {
        let before = self.0.range(..=cidr.network()).next_back();
        let after = self.0.range(cidr.network()..).next();
        let near = before.into_iter().chain(after).map(|(_, claim)| *claim);
        near.into_iter().find(|(other, _)| overlap(*other, cidr))
    }
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The steps from what is to what should be, as many as there are differences.
pub(super) fn steps(now: &Entries, wanted: &Entries) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(
        set(&now.forwarding, &wanted.forwarding).map(|(mac, at)| Step::SetForwarding(mac, at)),
    );
    steps.extend(
        set(&now.neighbours, &wanted.neighbours).map(|(hop, mac)| Step::SetNeighbour(hop, mac)),
    );
    steps.extend(set(&now.routes, &wanted.routes).map(|(cidr, route)| Step::SetRoute(cidr, route)));
    steps.extend(
        gone(&now.routes, &wanted.routes).map(|(cidr, route)| Step::RemoveRoute(cidr, route)),
    );
    steps.extend(
        gone(&now.neighbours, &wanted.neighbours).map(|(hop, _)| Step::RemoveNeighbour(hop)),
    );
    steps.extend(
        gone(&now.forwarding, &wanted.forwarding).map(|(mac, _)| Step::RemoveForwarding(mac)),
    );
    steps
}

fn set<'a, K: Ord + Copy, V: PartialEq + Copy>(
    now: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> + 'a {
    let differs = |(key, value): &(&K, &V)| now.get(key) != Some(*value);
    wanted
        .iter()
        .filter(differs)
        .map(|(key, value)| (*key, *value))
}

fn gone<'a, K: Ord + Copy, V: Copy>(
    now: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> + 'a {
    now.iter()
        .filter(|(key, _)| !wanted.contains_key(key))
        .map(|(key, value)| (*key, *value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNDERLAY: u32 = 2;
    const VXLAN: u32 = 9;

    fn here(mode: OverlayMode) -> Here {
        Here {
            address: "192.0.2.1".parse().unwrap(),
            mode,
            on_link: Some("192.0.2.0/24".parse().unwrap()),
            underlay: UNDERLAY,
            vxlan: VXLAN,
            pod_cidrs: vec![
                "10.244.1.0/24".parse().unwrap(),
                "fd00:1::/64".parse().unwrap(),
            ],
            source: "10.244.1.0".parse().unwrap(),
            source6: Some("fd00:1::ff".parse().unwrap()),
        }
    }

    fn peer(name: &str, address: &str, cidrs: &[&str]) -> PeerNode {
        PeerNode {
            name: name.into(),
            address: address.parse().unwrap(),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        }
    }

    fn route(entries: &Entries, cidr: &str) -> Route {
        entries.routes[&cidr.parse::<IpNet>().unwrap()]
    }

    #[test]
    fn neighbours_are_sent_packets_as_they_are_and_others_wrapped() {
        let peers = [
            peer("near", "192.0.2.2", &["10.244.2.0/24"]),
            peer("far", "198.51.100.3", &["10.244.3.0/24"]),
        ];
        let (entries, problems) = plan(&here(OverlayMode::Auto), &peers);
        assert!(problems.is_empty());
        let near = route(&entries, "10.244.2.0/24");
        assert_eq!((near.link, near.via), (UNDERLAY, Some(peers[0].address)));
        let far = route(&entries, "10.244.3.0/24");
        let hop: IpAddr = "10.244.3.0".parse().unwrap();
        assert_eq!((far.link, far.via, far.on_link), (VXLAN, Some(hop), true));
        let mac = [0x02, 0x67, 10, 244, 3, 0];
        assert_eq!(entries.neighbours, BTreeMap::from([(hop, mac)]));
        assert_eq!(
            entries.forwarding,
            BTreeMap::from([(mac, peers[1].address)])
        );
        let (entries, _) = plan(&here(OverlayMode::Always), &peers);
        assert_eq!(route(&entries, "10.244.2.0/24").link, VXLAN);
        assert_eq!(entries.forwarding.len(), 2);
    }

    #[test]
    fn ipv6_goes_through_vxlan_where_nodes_have_ipv4() {
        let peers = [peer("near", "192.0.2.2", &["10.244.2.0/24", "fd00:2::/64"])];
        let (entries, problems) = plan(&here(OverlayMode::Auto), &peers);
        assert!(problems.is_empty());
        assert_eq!(route(&entries, "10.244.2.0/24").link, UNDERLAY);
        let ipv6 = route(&entries, "fd00:2::/64");
        let hop: IpAddr = "fe80::67:aff:fef4:200".parse().unwrap();
        assert_eq!((ipv6.link, ipv6.via), (VXLAN, Some(hop)));
        assert_eq!(ipv6.source, Some("fd00:1::ff".parse().unwrap()));
        let mut without = here(OverlayMode::Auto);
        without.source6 = None;
        let (entries, problems) = plan(&without, &peers);
        assert!(problems.is_empty());
        assert_eq!(entries.routes.len(), 1);
    }

    #[test]
    fn what_cannot_be_programmed_is_named_and_keeps_nobody_else_out() {
        let peers = [
            peer("a", "192.0.2.2", &["10.244.2.0/24"]),
            peer("b", "192.0.2.3", &["10.244.2.128/25"]),
            peer("c", "192.0.2.4", &["10.244.0.0/16"]),
            peer("d", "2001:db8::5", &["10.244.5.0/24"]),
            peer("e", "0.0.0.0", &["10.244.6.0/24"]),
            peer("f", "192.0.2.7", &["fd00:7::/64"]),
            peer("g", "192.0.2.8", &["10.244.8.0/24"]),
            peer("here too", "192.0.2.1", &["10.244.9.0/24"]),
            peer("h", "192.0.2.9", &["10.244.10.0/24", "10.244.10.0/25"]),
        ];
        let (entries, problems) = plan(&here(OverlayMode::Auto), &peers);
        let programmed: Vec<String> = entries.routes.keys().map(IpNet::to_string).collect();
        assert_eq!(programmed, ["10.244.2.0/24", "10.244.8.0/24"]);
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        for (index, words) in [
            "node b: its pod CIDR 10.244.2.128/25 overlaps 10.244.2.0/24 of a",
            "node c: its pod CIDR 10.244.0.0/16 overlaps 10.244.1.0/24 of this node",
            "node d: its address 2001:db8::5 is of another IP version",
            "node e: its address 0.0.0.0",
            "node f: spec.podCIDRs has no IPv4",
            "node h: its pod CIDR 10.244.10.0/25 overlaps",
        ]
        .iter()
        .enumerate()
        {
            assert!(said[index].starts_with(words), "{said:#?}");
        }
    }

    /// What the kernel holds after a step.
    fn apply(entries: &mut Entries, step: Step) {
        match step {
            Step::SetForwarding(mac, at) => {
                entries.forwarding.insert(mac, at);
            }
            Step::SetNeighbour(hop, mac) => {
                entries.neighbours.insert(hop, mac);
            }
            Step::SetRoute(cidr, route) => {
                entries.routes.insert(cidr, route);
            }
            Step::RemoveRoute(cidr, route) => {
                assert_eq!(entries.routes.remove(&cidr), Some(route));
            }
            Step::RemoveNeighbour(hop) => assert!(entries.neighbours.remove(&hop).is_some()),
            Step::RemoveForwarding(mac) => assert!(entries.forwarding.remove(&mac).is_some()),
        }
    }

    fn any_peers() -> impl Strategy<Value = Vec<PeerNode>> {
        let one = (2_u8..12, 0_u8..3, 2_u8..9, any::<bool>());
        proptest::collection::vec(one, 0..8).prop_map(|peers| {
            peers
                .into_iter()
                .map(|(range, network, host, dual)| {
                    let mut cidrs = vec![format!("10.244.{range}.0/24")];
                    if dual {
                        cidrs.push(format!("fd00:{range}::/64"));
                    }
                    let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
                    peer(
                        &format!("n{range}"),
                        &format!("192.0.{}.{host}", network + 2),
                        &cidrs,
                    )
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn steps_lead_from_any_state_to_any_other_and_no_route_is_ever_without_its_way(
            before in any_peers(),
            after in any_peers(),
            modes in any::<(bool, bool)>(),
        ) {
            let mode = |always| if always { OverlayMode::Always } else { OverlayMode::Auto };
            let (mut now, _) = plan(&here(mode(modes.0)), &before);
            let (wanted, _) = plan(&here(mode(modes.1)), &after);
            for step in steps(&now.clone(), &wanted) {
                apply(&mut now, step);
                for route in now.routes.values().filter(|route| route.link == VXLAN) {
                    let hop = route.via.unwrap();
                    prop_assert!(now.forwarding.contains_key(&now.neighbours[&hop]));
                }
            }
            prop_assert_eq!(&now, &wanted);
            prop_assert!(steps(&now, &wanted).is_empty());
        }
    }

    #[test]
    fn one_peer_more_costs_as_much_among_many() {
        let many: Vec<PeerNode> = (2..200)
            .map(|n| {
                peer(
                    &format!("n{n}"),
                    &format!("198.51.100.{n}"),
                    &[&format!("10.244.{n}.0/24")],
                )
            })
            .collect();
        let (all, _) = plan(&here(OverlayMode::Auto), &many);
        let (fewer, _) = plan(&here(OverlayMode::Auto), &many[1..]);
        assert_eq!(steps(&fewer, &all).len(), 3);
        let mut moved = many.clone();
        moved[5].address = "198.51.100.250".parse().unwrap();
        let (moved, _) = plan(&here(OverlayMode::Auto), &moved);
        assert_eq!(
            steps(&all, &moved),
            [Step::SetForwarding(
                [0x02, 0x67, 10, 244, 7, 0],
                "198.51.100.250".parse().unwrap()
            )]
        );
    }
}
