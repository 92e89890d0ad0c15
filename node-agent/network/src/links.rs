//! The links of a node, their addresses and routes: its bridge is made, the others are found.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{AddressMessageBuilder, LinkBridge, LinkUnspec, RouteMessageBuilder};

use crate::names::{Names, at_offset, hardware_address};
use crate::netlink::{Change, Netlink, family};
use crate::{NetworkError, NodeNetwork};

/// How the pods of a node are reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge {
    pub(crate) index: u32,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) gateway6: Option<Ipv6Addr>,
    /// Of pods that are attached from now on.
    pub(crate) mtu: u32,
}

/// Creates or finds the bridge, gives it the gateway's address and none of an earlier configuration, and routes the
/// service range to it: a host without a default route can reach services, and its connections to them come from the
/// gateway's address, which pods know how to answer.
pub(crate) fn ensure_bridge(
    netlink: &mut Netlink,
    node: &NodeNetwork,
    names: &Names,
    mtu: u32,
) -> Result<Bridge, NetworkError> {
    let name = &names.bridge();
    let (pod_cidr, service_cidr) = (node.pod_cidr.trunc(), node.service_cidr.trunc());
    let gateway = names.gateway();
    let mac = hardware_address(gateway).to_vec();
    // Pods of before may have narrower links: what is too big for them would be dropped without a word, but for a
    // bridge that says so first.
    let carried = narrowest_pod(netlink, names)?.map_or(mtu, |narrowest| narrowest.min(mtu));
    let shape = || {
        LinkBridge::new(name)
            .forward_delay(0)
            .mcast_snooping(false)
            .stp_state(BridgeStpState::Disabled)
    };
    let create = shape().address(mac.clone()).mtu(carried).build();
    match netlink.change(Change::new(
        format!("creating the bridge {name}"),
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewLink(create),
    )) {
        Err(refusal) if !refusal.is(libc::EEXIST) => return Err(refusal.into()),
        _ => {}
    }
    let link = find(netlink, name)?.ok_or_else(|| vanished(name))?;
    if !is_bridge(&link) {
        return Err(NetworkError::Unsupported(format!(
            "the link {name} exists and is not a bridge: remove it (ip link del {name}) or choose another prefix"
        )));
    }
    let index = link.header.index;
    only_address(netlink, name, index, gateway, pod_cidr.prefix_len())?;
    let mut up = LinkUnspec::new_with_index(index).mtu(carried).up();
    if !has_hardware_address(&link, gateway) {
        // Not otherwise: even the same address once more makes the kernel forget the pods' hardware addresses.
        up = up.address(mac);
    }
    netlink.batch(vec![
        // One that somebody else made, or has changed.
        Change::new(
            format!("setting up the bridge {name}"),
            0,
            RouteNetlinkMessage::NewLink(shape().build()),
        ),
        Change::new(
            format!("bringing up the bridge {name}"),
            0,
            RouteNetlinkMessage::SetLink(up.build()),
        ),
        Change::new(
            format!("routing the pods {pod_cidr} to the bridge {name}"),
            NLM_F_CREATE | NLM_F_REPLACE,
            // As the kernel made it with the address, should somebody have removed it since.
            RouteNetlinkMessage::NewRoute(
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(pod_cidr.network(), pod_cidr.prefix_len())
                    .output_interface(index)
                    .pref_source(gateway)
                    .scope(RouteScope::Link)
                    .protocol(RouteProtocol::Kernel)
                    .build(),
            ),
        ),
        Change::new(
            format!("routing the service range {service_cidr} to the bridge {name}"),
            NLM_F_CREATE | NLM_F_REPLACE,
            RouteNetlinkMessage::NewRoute(
                RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(service_cidr.network(), service_cidr.prefix_len())
                    .output_interface(index)
                    .pref_source(gateway)
                    .scope(RouteScope::Link)
                    .build(),
            ),
        ),
    ])?;
    let gateway6 = match node.ipv6 {
        None => None,
        Some(ipv6) => {
            let cidr = ipv6.pod_cidr.trunc();
            let gateway6 = at_offset(cidr, pod_cidr, gateway);
            only_address6(netlink, name, index, gateway6, cidr.prefix_len())?;
            if let Some(services) = ipv6.service_cidr {
                netlink.change(route_services6(name, index, gateway6, services.trunc()))?;
            }
            Some(gateway6)
        }
    };
    Ok(Bridge {
        index,
        gateway,
        gateway6,
        mtu,
    })
}

fn route_services6(bridge: &str, index: u32, gateway: Ipv6Addr, services: Ipv6Net) -> Change {
    Change::new(
        format!("routing the service range {services} to the bridge {bridge}"),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewRoute(
            RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(services.network(), services.prefix_len())
                .output_interface(index)
                .pref_source(gateway)
                .build(),
        ),
    )
}

/// The smallest MTU of the pods' links.
fn narrowest_pod(netlink: &mut Netlink, names: &Names) -> Result<Option<u32>, NetworkError> {
    let found = netlink.dump(
        "listing links",
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
    )?;
    let pods = found
        .iter()
        .filter_map(link_of)
        .filter(|link| name_of(link).is_some_and(|name| names.is_host_link(&name)));
    Ok(pods.filter_map(mtu_of).min())
}

/// Adds an address of its own (a /32) to a link. That it is there already is fine.
pub(crate) fn ensure_address(
    netlink: &mut Netlink,
    link: u32,
    address: Ipv4Addr,
) -> Result<(), NetworkError> {
    Ok(netlink.change(add_address(
        &format!("adding {address} to the bridge"),
        link,
        address,
        32,
    ))?)
}

/// Removes a link; absent is fine.
pub(crate) fn remove(netlink: &mut Netlink, name: &str) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_name(name).build();
    match netlink.change(Change::new(
        format!("removing the link {name}"),
        0,
        RouteNetlinkMessage::DelLink(message),
    )) {
        Err(refusal) if !refusal.is(libc::ENODEV) => Err(refusal.into()),
        _ => Ok(()),
    }
}

/// The names of all links.
pub(crate) fn names(netlink: &mut Netlink) -> Result<Vec<String>, NetworkError> {
    let found = netlink.dump(
        "listing links",
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
    )?;
    Ok(found
        .iter()
        .filter_map(|message| link_of(message).and_then(name_of))
        .collect())
}

/// The link called `name`.
pub(crate) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    let request = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).build());
    match netlink.get(&format!("looking up the link {name}"), request) {
        Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
        Ok(_) => Ok(None),
        Err(refusal) if refusal.is(libc::ENODEV) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// A link as far as its place is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: u32,
    pub(crate) up: bool,
    /// The bridge it is a port of.
    pub(crate) bridge: Option<u32>,
}

pub(crate) fn place_of(link: &LinkMessage) -> Place {
    let bridge = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        });
    Place {
        index: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        bridge: bridge.filter(|index| *index != 0),
    }
}

/// The ports of a bridge, by name. What the kernel copies is theirs alone, however many links the host has.
pub(crate) fn ports_of(
    netlink: &mut Netlink,
    bridge: u32,
) -> Result<BTreeMap<String, Place>, NetworkError> {
    let mut request = LinkMessage::default();
    request.attributes = vec![
        LinkAttribute::Controller(bridge),
        LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
    ];
    let found = netlink.dump(
        "listing the ports of the bridge",
        RouteNetlinkMessage::GetLink(request),
    )?;
    let ports = found
        .iter()
        .filter_map(link_of)
        .filter_map(|link| Some((name_of(link)?, place_of(link))));
    Ok(ports
        .filter(|(_, place)| place.bridge == Some(bridge))
        .collect())
}

/// The route that the kernel would take to an address: its range and the link it leads to. `None` when there is none.
pub(crate) fn route_to(
    netlink: &mut Netlink,
    address: IpAddr,
) -> Result<Option<(IpNet, u32)>, NetworkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family(address);
    request.header.destination_prefix_length = IpNet::from(address).prefix_len();
    request.header.flags = RouteFlags::FibMatch;
    request
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    let request = RouteNetlinkMessage::GetRoute(request);
    let message = match netlink.get(&format!("looking up the route to {address}"), request) {
        Ok(RouteNetlinkMessage::NewRoute(message)) => message,
        Ok(_) => return Ok(None),
        Err(refusal)
            if [
                libc::ENETUNREACH,
                libc::EHOSTUNREACH,
                libc::EACCES,
                libc::EINVAL,
            ]
            .iter()
            .any(|errno| refusal.is(*errno)) =>
        {
            return Ok(None);
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let (mut range, mut link) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => range = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => range = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => link = *index,
            _ => {}
        }
    }
    let length = message.header.destination_prefix_length;
    Ok(range
        .and_then(|range| IpNet::new(range, length).ok())
        .map(|range| (range, link)))
}

pub(crate) fn vanished(link: &str) -> NetworkError {
    NetworkError::Netlink {
        doing: format!("configuring the link {link}"),
        cause: "it vanished right after it was made; is something else removing links?".to_owned(),
    }
}

fn link_of(message: &RouteNetlinkMessage) -> Option<&LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

pub(crate) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
}

pub(crate) fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
}

/// Whether a link's hardware address is the one that follows from an address.
pub(crate) fn has_hardware_address(link: &LinkMessage, ip: Ipv4Addr) -> bool {
    let mac = hardware_address(ip).to_vec();
    link.attributes.contains(&LinkAttribute::Address(mac))
}

pub(crate) fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos
            .iter()
            .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge))),
        _ => false,
    })
}

/// Gives a link this address of IPv4 and no other.
pub(crate) fn only_address(
    netlink: &mut Netlink,
    name: &str,
    link: u32,
    address: Ipv4Addr,
    prefix: u8,
) -> Result<(), NetworkError> {
    drop_other_addresses(netlink, name, link, address.into(), prefix)?;
    let doing = format!("adding {address}/{prefix} to {name}");
    Ok(netlink.change(add_address(&doing, link, address, prefix))?)
}

/// Gives a link this address of IPv6, and no other but its link-local one.
pub(crate) fn only_address6(
    netlink: &mut Netlink,
    name: &str,
    link: u32,
    address: Ipv6Addr,
    prefix: u8,
) -> Result<(), NetworkError> {
    drop_other_addresses(netlink, name, link, address.into(), prefix)?;
    let doing = format!("adding {address}/{prefix} to {name}");
    Ok(netlink.change(add_address6(&doing, link, address, prefix))?)
}

/// The address of a link's message; of IPv4, `Address` is the other end's where there is one.
fn address_in(message: &AddressMessage) -> Option<IpAddr> {
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    })
}

/// Every address of a family: its link, and the subnet it is in.
pub(crate) fn addresses(
    netlink: &mut Netlink,
    of: AddressFamily,
) -> Result<Vec<(AddressMessage, IpNet)>, NetworkError> {
    let mut request = AddressMessage::default();
    request.header.family = of;
    let found = netlink.dump(
        "listing addresses",
        RouteNetlinkMessage::GetAddress(request),
    )?;
    let messages = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) => Some(message),
        _ => None,
    });
    let with_nets = messages.filter_map(|message| {
        let net = IpNet::new(address_in(&message)?, message.header.prefix_len).ok()?;
        Some((message, net))
    });
    Ok(with_nets.collect())
}

fn drop_other_addresses(
    netlink: &mut Netlink,
    name: &str,
    link: u32,
    keep: IpAddr,
    prefix: u8,
) -> Result<(), NetworkError> {
    for (message, net) in addresses(netlink, family(keep))? {
        let kept = net.addr() == keep && net.prefix_len() == prefix;
        let link_local =
            matches!(net.addr(), IpAddr::V6(address) if address.is_unicast_link_local());
        if message.header.index != link || kept || link_local {
            continue;
        }
        // Removing an address takes those of the same subnet behind it along.
        netlink.change(
            Change::new(
                format!("removing an old address of {name}"),
                0,
                RouteNetlinkMessage::DelAddress(message),
            )
            .fine(&[libc::EADDRNOTAVAIL]),
        )?;
    }
    Ok(())
}

pub(crate) fn add_address(doing: &str, link: u32, address: Ipv4Addr, prefix: u8) -> Change {
    let mut message = AddressMessageBuilder::<Ipv4Addr>::new()
        .index(link)
        .address(address, prefix)
        .build();
    if prefix == 32 {
        // A broadcast address equal to the address itself would make the kernel route it as a broadcast.
        message
            .attributes
            .retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
    }
    Change::new(
        doing,
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewAddress(message),
    )
}

/// Without the wait for a duplicate to speak up: addresses are leased, so that there is none.
pub(crate) fn add_address6(doing: &str, link: u32, address: Ipv6Addr, prefix: u8) -> Change {
    let mut message = AddressMessageBuilder::<Ipv6Addr>::new()
        .index(link)
        .address(address, prefix)
        .build();
    message.header.flags |= AddressHeaderFlags::Nodad;
    Change::new(
        doing,
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewAddress(message),
    )
}
