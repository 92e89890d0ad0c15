//! The links of a node: its bridge, and a veth pair per pod.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use ipnet::Ipv4Net;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteScope};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};

use crate::NetworkError;
use crate::names::hardware_address;
use crate::netlink::{Change, Netlink};
use crate::netns::Namespace;

/// The pod's end of its pair.
const POD_LINK: &str = "eth0";
/// Every namespace's first link.
const LOOPBACK: u32 = 1;
/// What a link carries when nothing says otherwise: Ethernet's.
const DEFAULT_MTU: u32 = 1500;

/// How the pods of a node are reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge {
    pub(crate) index: u32,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: u32,
}

/// Creates or finds the bridge, gives it the gateway's address and none of an earlier configuration, and routes the
/// service range to it: a host without a default route can reach services, and its connections to them come from the
/// gateway's address, which pods know how to answer.
pub(crate) fn ensure_bridge(
    netlink: &mut Netlink,
    name: &str,
    pod_cidr: Ipv4Net,
    gateway: Ipv4Addr,
    service_cidr: Ipv4Net,
) -> Result<Bridge, NetworkError> {
    let mtu = uplink_mtu(netlink)?;
    let create = LinkBridge::new(name)
        .forward_delay(0)
        .mcast_snooping(false)
        .address(hardware_address(gateway))
        .mtu(mtu)
        .build();
    let doing = format!("creating the bridge {name}");
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match netlink.change(Change::new(
        doing,
        flags,
        RouteNetlinkMessage::NewLink(create),
    )) {
        Err(refusal) if !refusal.is(libc::EEXIST) => return Err(refusal.into()),
        _ => {}
    }
    let link = find(netlink, name)?.ok_or_else(|| NetworkError::Netlink {
        doing: format!("finding the bridge {name}"),
        cause: "it vanished right after it was made".to_owned(),
    })?;
    if !is_bridge(&link) {
        return Err(NetworkError::Unsupported(format!(
            "the link {name} exists and is not a bridge: remove it (ip link del {name}) or choose another prefix"
        )));
    }
    let index = link.header.index;
    let keep = Ipv4Net::new(gateway, pod_cidr.prefix_len()).map_or(pod_cidr, |net| net);
    drop_other_addresses(netlink, name, index, keep)?;
    netlink.batch(vec![
        Change::new(
            format!("bringing up the bridge {name}"),
            0,
            RouteNetlinkMessage::SetLink(
                LinkUnspec::new_with_index(index)
                    .address(hardware_address(gateway))
                    .mtu(mtu)
                    .up()
                    .build(),
            ),
        ),
        add_address(
            &format!("adding {keep} to the bridge {name}"),
            index,
            gateway,
            pod_cidr.prefix_len(),
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
    Ok(Bridge {
        index,
        gateway,
        mtu,
    })
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
) -> Result<(), ConnectError> {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(POD_LINK.to_owned())
        .address(hardware_address(ip))
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
    host.change(Change::new(
        format!("setting hairpin mode of {host_link}"),
        0,
        // Only this request heeds a port's settings; SetLink passes over them without a word.
        RouteNetlinkMessage::NewLink(
            LinkBridgePort::new(port)
                .controller(bridge.index)
                .hairpin(true)
                .build(),
        ),
    ))
    .map_err(NetworkError::from)?;
    // The pod's end cannot be brought up in the message that makes it: it has no peer yet.
    let configured = inside.netlink.batch(vec![
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
    ]);
    Ok(configured.map_err(NetworkError::from)?)
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

fn vanished(link: &str) -> NetworkError {
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

fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos
            .iter()
            .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge))),
        _ => false,
    })
}

/// The MTU of the link that the default route leaves by: a pod that sends more loses packets behind it.
fn uplink_mtu(netlink: &mut Netlink) -> Result<u32, NetworkError> {
    let request = RouteNetlinkMessage::GetRoute(RouteMessageBuilder::<Ipv4Addr>::new().build());
    let routes = netlink.dump("listing routes", request)?;
    let uplink = routes.iter().find_map(|message| match message {
        RouteNetlinkMessage::NewRoute(route) if route.header.destination_prefix_length == 0 => {
            route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
        }
        _ => None,
    });
    let Some(uplink) = uplink else {
        return Ok(DEFAULT_MTU);
    };
    let request = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_index(uplink).build());
    let answer = netlink.get("looking up the default route's link", request)?;
    let mtu = link_of(&answer).and_then(|link| {
        link.attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
    });
    Ok(mtu.unwrap_or(DEFAULT_MTU))
}

fn drop_other_addresses(
    netlink: &mut Netlink,
    name: &str,
    link: u32,
    keep: Ipv4Net,
) -> Result<(), NetworkError> {
    let mut request = AddressMessage::default();
    request.header.family = rtnetlink::packet_route::AddressFamily::Inet;
    let found = netlink.dump(
        "listing addresses",
        RouteNetlinkMessage::GetAddress(request),
    )?;
    for message in found {
        let RouteNetlinkMessage::NewAddress(address) = message else {
            continue;
        };
        let kept = address.header.prefix_len == keep.prefix_len()
            && address
                .attributes
                .contains(&AddressAttribute::Local(keep.addr().into()));
        if address.header.index != link || kept {
            continue;
        }
        let doing = format!("removing an old address of the bridge {name}");
        match netlink.change(Change::new(
            doing,
            0,
            RouteNetlinkMessage::DelAddress(address),
        )) {
            // Removing an address takes those of the same subnet behind it along.
            Err(refusal) if !refusal.is(libc::EADDRNOTAVAIL) => return Err(refusal.into()),
            _ => {}
        }
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
