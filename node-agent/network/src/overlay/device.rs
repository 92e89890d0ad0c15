//! The VXLAN device: made, found again, and made anew when it is not as it should be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkUnspec, LinkVxlan};

use crate::names::{Names, device_address, device_address6, hardware_address};
use crate::netlink::{Change, Netlink};
use crate::underlay::Underlay;
use crate::{
    NetworkError, NodeNetwork, OverlayCounters, OverlaySettings, forwarding, links, loopback,
};

/// The device and what it stands on.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) underlay: Underlay,
    pub(super) address: Ipv4Addr,
    pub(super) address6: Option<Ipv6Addr>,
}

/// Creates or finds the device, with its addresses and parameters.
///
/// It learns nothing and floods nothing: what it has no forwarding entry for, it drops. It is bound to no link, so
/// that packets to a node leave by whatever route leads there.
pub(super) fn ensure(
    netlink: &mut Netlink,
    node: &NodeNetwork,
    names: &Names,
    settings: &OverlaySettings,
) -> Result<Device, NetworkError> {
    let underlay = Underlay::find(netlink, Some(settings.node_address))?;
    let mtu = underlay.pod_mtu(node)?;
    let name = names.vxlan();
    let pod_cidr = node.pod_cidr.trunc();
    let address = device_address(pod_cidr);
    // The node's address may be a translator's; what is sent then comes from the address of the way out.
    let local = underlay.has_address.then_some(settings.node_address);
    let mac = hardware_address(address).to_vec();

    if let Some(link) = links::find(netlink, &name)?
        && !suits(&link, &name, settings, local)?
    {
        tracing::info!(
            device = name,
            "the VXLAN device has other settings; making it anew"
        );
        links::remove(netlink, &name)?;
    }
    let mut create = LinkVxlan::new(&name, settings.vni)
        .port(settings.port)
        .learning(false)
        .address(mac.clone())
        .mtu(mtu);
    create = match local {
        Some(IpAddr::V4(local)) => create.local(local),
        Some(IpAddr::V6(local)) => create.local6(local),
        // Which IP version the device speaks follows from its address.
        None if settings.node_address.is_ipv6() => create.local6(Ipv6Addr::UNSPECIFIED),
        None => create,
    };
    let created = netlink.change(Change::new(
        format!("creating the VXLAN device {name}"),
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewLink(create.build()),
    ));
    match created {
        Err(refusal) if !refusal.is(libc::EEXIST) => return Err(refusal.into()),
        _ => {}
    }
    let Some(link) = links::find(netlink, &name)? else {
        return Err(NetworkError::Unsupported(format!(
            "another VXLAN device has the identifier {} on UDP port {}: remove it (ip -d link show type vxlan lists \
             them), or choose another identifier for all nodes",
            settings.vni, settings.port
        )));
    };
    let index = link.header.index;
    for (parameter, value) in parameters(&name) {
        if forwarding::exists(&parameter) {
            forwarding::set(&parameter, value)?;
        }
    }
    links::only_address(netlink, &name, index, address, 32)?;
    let address6 = node
        .ipv6
        .map(|ipv6| device_address6(ipv6.pod_cidr.trunc(), pod_cidr));
    if let Some(address6) = address6 {
        links::only_address6(netlink, &name, index, address6, 128)?;
    }
    let mut up = LinkUnspec::new_with_index(index).mtu(mtu).up();
    if !link
        .attributes
        .contains(&LinkAttribute::Address(mac.clone()))
    {
        // Not otherwise: even the same address once more makes the kernel forget the device's neighbours.
        up = up.address(mac);
    }
    netlink.change(Change::new(
        format!("bringing up the VXLAN device {name}"),
        0,
        RouteNetlinkMessage::SetLink(up.build()),
    ))?;
    Ok(Device {
        index,
        underlay,
        address,
        address6,
    })
}

/// Below /proc/sys/net; those of IPv6 are missing where the kernel has none.
fn parameters(name: &str) -> [(String, &'static str); 4] {
    [
        // For connections from the host's loopback to node ports; the loopback is guarded.
        (loopback::parameter(name), "1"),
        // While two nodes disagree on the way between them, for a moment or by their settings, packets arrive here that
        // would be answered another way. Loose, because an absent setting here would leave the stricter one for all.
        (format!("ipv4/conf/{name}/rp_filter"), "2"),
        // Nobody is there to hear the device look for routers and duplicates: each would count as dropped.
        (format!("ipv6/conf/{name}/addr_gen_mode"), "1"),
        (format!("ipv6/conf/{name}/accept_ra"), "0"),
    ]
}

fn infos(link: &LinkMessage) -> &[LinkInfo] {
    let infos = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos.as_slice()),
            _ => None,
        });
    infos.unwrap_or_default()
}

pub(super) fn is_vxlan(link: &LinkMessage) -> bool {
    infos(link).contains(&LinkInfo::Kind(InfoKind::Vxlan))
}

/// Whether a link of the device's name is the device as it would be made now. One that is something else altogether
/// is somebody else's.
fn suits(
    link: &LinkMessage,
    name: &str,
    settings: &OverlaySettings,
    local: Option<IpAddr>,
) -> Result<bool, NetworkError> {
    if !is_vxlan(link) {
        return Err(NetworkError::Unsupported(format!(
            "the link {name} exists and is not a VXLAN device: remove it (ip link del {name}) or choose another prefix"
        )));
    }
    let data = infos(link).iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data.as_slice()),
        _ => None,
    });
    let data = data.unwrap_or_default();
    let found = data.iter().find_map(|info| match info {
        InfoVxlan::Local(address) => Some(IpAddr::V4(*address)),
        InfoVxlan::Local6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    Ok(data.contains(&InfoVxlan::Id(settings.vni))
        && data.contains(&InfoVxlan::Port(settings.port))
        && data.contains(&InfoVxlan::Learning(false))
        && found.filter(|address| !address.is_unspecified()) == local)
}

/// What the device has counted.
pub(super) fn counters(netlink: &mut Netlink, name: &str) -> Result<OverlayCounters, NetworkError> {
    let link = links::find(netlink, name)?.ok_or_else(|| NetworkError::Netlink {
        doing: format!("reading the counters of {name}"),
        cause: "there is no such device".to_owned(),
    })?;
    let stats = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(*stats),
            _ => None,
        });
    let stats = stats.unwrap_or_default();
    Ok(OverlayCounters {
        rx_packets: stats.rx_packets,
        tx_packets: stats.tx_packets,
        rx_bytes: stats.rx_bytes,
        tx_bytes: stats.tx_bytes,
        rx_errors: stats.rx_errors,
        tx_errors: stats.tx_errors,
        rx_dropped: stats.rx_dropped,
        tx_dropped: stats.tx_dropped,
    })
}
