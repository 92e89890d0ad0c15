//! What the node's network needs of a machine: tried out, and looked up.
//!
//! The trial sets up everything that a node has (links, rules, services, policies, the overlay, a pod) by the code that
//! does it on nodes, in a network and a mount namespace of its own, which the kernel takes away with all that is in
//! them. So it says what works, not which modules are listed, and nothing on the machine changes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::{LinkBridge, LinkVeth, LinkVxlan, RouteMessageBuilder};
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::local_hosts::destination;
use crate::netlink::{Change, Netlink};
use crate::nft::Nft;
use crate::overlay::ROUTES;
use crate::underlay::Underlay;
use crate::{
    BridgeNetwork, Endpoint, HoldingLimits, IsolatedPod, LoggedHolding, NetworkError,
    NftPolicyRules, NftServiceRules, NodeNetwork, NodePolicies, Overlay as _, OverlayMode,
    OverlaySettings, PeerNode, PodNetwork as _, PolicyPeers, PolicyPort, PolicyRule, PolicyRuleSet,
    PolicyRules as _, Protocol, ServiceChanges, ServiceName, ServicePort, ServiceRules as _,
    VxlanOverlay, forwarding, links, netns,
};

const HELD: &str = "held connections";

/// One thing that was tried.
#[derive(Debug)]
pub struct Trial {
    /// What it is, in a word or two.
    pub what: &'static str,
    /// Whether nodes work without it, and lack only what the error tells.
    pub is_optional: bool,
    /// Whether it works; the error says what is missing and what to do.
    pub outcome: Result<(), NetworkError>,
}

/// Tries out what a node's network does. Files go into `directory`, which should be removed afterwards. Needs root.
pub fn try_out(directory: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    let outcome = netns::on_own_thread(|| {
        own_namespaces()?;
        trials = inside(directory);
        Ok(())
    });
    let what = "network namespaces";
    let first = Trial {
        what,
        is_optional: false,
        outcome,
    };
    trials.insert(0, first);
    trials
}

/// Moves the thread into namespaces in which nothing is the machine's.
fn own_namespaces() -> Result<(), NetworkError> {
    let failed = |doing: &str, source: std::io::Error| NetworkError::Io {
        doing: doing.to_owned(),
        source,
    };
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|error| failed("making a network and a mount namespace", error.into()))?;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).map_err(|error| failed("making mounts private", error.into()))
}

fn inside(directory: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut note = |what, outcome: Result<(), NetworkError>| {
        let works = outcome.is_ok();
        trials.push(Trial {
            what,
            is_optional: what == HELD,
            outcome,
        });
        works
    };
    note("bridge", link(LinkBridge::new("trial-br").build()));
    note("veth", link(LinkVeth::new("trial-a", "trial-b").build()));
    let vxlan = LinkVxlan::new("trial-vx", OverlaySettings::VNI)
        .port(OverlaySettings::PORT)
        .learning(false);
    note("vxlan", link(vxlan.build()));
    note("ip_forward", forwarding::switch_on(false));
    if !note("nft", Nft::find().map(|_| ())) {
        return trials;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| NetworkError::Io {
            doing: "starting threads".to_owned(),
            source,
        });
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            note("pod network", Err(error));
            return trials;
        }
    };
    // The runtime's threads are made by this one, and so are where it is.
    let node = node(directory);
    note("pod network", runtime.block_on(pods(&node)));
    note("service rules", runtime.block_on(services(&node)));
    note(HELD, runtime.block_on(held(&node)));
    note("policy rules", runtime.block_on(policies(&node)));
    note("overlay", runtime.block_on(overlay(node)));
    trials
}

fn link(message: LinkMessage) -> Result<(), NetworkError> {
    let change = Change::new(
        "creating a link",
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewLink(message),
    );
    Ok(Netlink::open()?.change(change)?)
}

/// Addresses do not matter where nobody else is.
fn node(directory: &Path) -> NodeNetwork {
    let net = |network: [u8; 4], length| Ipv4Net::new_assert(network.into(), length);
    NodeNetwork {
        prefix: "trial2".to_owned(),
        pod_cidr: net([10, 244, 0, 0], 24),
        cluster_pod_cidr: net([10, 244, 0, 0], 16),
        service_cidr: net([10, 96, 0, 0], 12),
        data_dir: directory.to_owned(),
        ipv6: None,
        overlay: Some(OverlaySettings {
            mode: OverlayMode::Always,
            // That of the links tried before is another one.
            vni: OverlaySettings::VNI + 1,
            ..OverlaySettings::new(Ipv4Addr::new(192, 0, 2, 1).into())
        }),
    }
}

async fn pods(node: &NodeNetwork) -> Result<(), NetworkError> {
    let network = BridgeNetwork::new(node.clone())?;
    network
        .bind_dns_address(Ipv4Addr::new(10, 96, 0, 10))
        .await?;
    network.attach("trial", &[]).await?;
    network.detach("trial").await
}

async fn services(node: &NodeNetwork) -> Result<(), NetworkError> {
    let endpoint = |last| Endpoint {
        ip: [10, 244, 0, last].into(),
        port: 8080,
        local: true,
    };
    let port = |protocol| ServicePort {
        port_name: String::new(),
        protocol,
        cluster_ip: [10, 96, 0, 1].into(),
        port: 80,
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        node_port: Some(30080),
        client_ip_affinity: (protocol == Protocol::Tcp).then_some(60),
        external_local: false,
        internal_local: false,
        endpoints: vec![endpoint(2), endpoint(3)],
        local_endpoints: Vec::new(),
        held: None,
    };
    let name = ServiceName {
        namespace: "trial".to_owned(),
        name: "trial".to_owned(),
    };
    let ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(port);
    let changes = ServiceChanges {
        complete: true,
        services: BTreeMap::from([(name, ports.to_vec())]),
    };
    NftServiceRules::new(node)?.apply(changes).await
}

/// Connections can wait for what sleeps where the kernel tells of the packets that rules log.
async fn held(node: &NodeNetwork) -> Result<(), NetworkError> {
    let pods = Arc::new(BridgeNetwork::new(node.clone())?);
    let holding = LoggedHolding::listen(pods, HoldingLimits::default())?;
    NftServiceRules::with_holding(node, Arc::new(holding))?;
    Ok(())
}

async fn policies(node: &NodeNetwork) -> Result<(), NetworkError> {
    let block = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
    let rule = PolicyRule {
        peers: PolicyPeers::Of {
            sets: Vec::new(),
            blocks: vec![block.into()],
        },
        ports: Some(vec![PolicyPort::Range(Protocol::Tcp, 80, 81)]),
    };
    let rules = PolicyRuleSet {
        ingress: vec![rule.clone()],
        egress: vec![rule],
    };
    let pod = IsolatedPod {
        addresses: vec![[10, 244, 0, 2].into()],
        ingress: true,
        egress: true,
        policies: ["trial".to_owned()].into(),
        ports: Default::default(),
    };
    let policies = NodePolicies {
        pods: [("trial".to_owned(), pod)].into(),
        policies: [("trial".to_owned(), rules.into())].into(),
        peers: BTreeMap::new(),
    };
    NftPolicyRules::new(node)?.sync(policies).await
}

async fn overlay(node: NodeNetwork) -> Result<(), NetworkError> {
    let peer = PeerNode {
        name: "trial".to_owned(),
        address: [192, 0, 2, 2].into(),
        pod_cidrs: vec![Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 1, 0), 24).into()],
    };
    VxlanOverlay::new(node)?.sync(vec![peer]).await
}

/// The version of `nft`, as it says itself.
pub fn nft_version() -> Result<String, NetworkError> {
    Nft::find()?.version()
}

/// The link that leads to other nodes from an address (that of the default route where it is `None`), and the MTU that it
/// leaves for pods. An error says that it is too small.
pub fn pod_mtu(address: Option<Ipv4Addr>) -> Result<(String, u32), NetworkError> {
    let address = address.map(IpAddr::V4);
    let underlay = Underlay::find(&mut Netlink::open()?, address)?;
    let node = NodeNetwork {
        overlay: Some(OverlaySettings::new(
            address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        )),
        ..node(Path::new("/"))
    };
    let mtu = underlay.pod_mtu(&node)?;
    Ok((underlay.name, mtu))
}

/// This machine's routes to any of some ranges, with the links they lead to: packets to pods or services would go there
/// instead, or the other way around. What agents with these prefixes have made themselves is left out.
pub fn routes_into(
    ranges: &[Ipv4Net],
    prefixes: &[String],
) -> Result<Vec<(Ipv4Net, String)>, NetworkError> {
    let mut netlink = Netlink::open()?;
    let names: BTreeMap<u32, String> = all_links(&mut netlink)?
        .iter()
        .filter_map(|link| Some((link.header.index, links::name_of(link)?)))
        .collect();
    let request = RouteNetlinkMessage::GetRoute(RouteMessageBuilder::<Ipv4Addr>::new().build());
    let found = netlink.dump("listing routes", request)?;
    let own = |link: &str| {
        prefixes.iter().any(|prefix| {
            let rest = link.strip_prefix(prefix.as_str());
            !prefix.is_empty() && rest.is_some_and(|rest| rest.starts_with(['-', '.']))
        })
    };
    let foreign = found.iter().filter_map(|message| {
        let RouteNetlinkMessage::NewRoute(route) = message else {
            return None;
        };
        if route.header.table != RouteHeader::RT_TABLE_MAIN || route.header.protocol == ROUTES {
            return None;
        }
        let destination = destination(message)?;
        let link = names.get(&link_of(route)?).cloned().unwrap_or_default();
        let within = |range: &Ipv4Net| {
            range.contains(&destination.network()) || destination.contains(&range.network())
        };
        (!own(&link) && ranges.iter().any(within)).then_some((destination, link))
    });
    Ok(foreign.collect())
}

fn link_of(route: &RouteMessage) -> Option<u32> {
    let mut links = route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
    links.next()
}

fn all_links(netlink: &mut Netlink) -> Result<Vec<LinkMessage>, NetworkError> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let found = netlink.dump("listing links", request)?;
    let links = found.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links.collect())
}

/// The VXLAN devices of this machine that take packets at a UDP port: the kernel holds the port for them, and several
/// share it.
pub fn vxlan_devices(port: u16) -> Result<Vec<String>, NetworkError> {
    let links = all_links(&mut Netlink::open()?)?;
    let devices = links.iter().filter(|link| takes(link, port));
    Ok(devices.filter_map(links::name_of).collect())
}

fn takes(link: &LinkMessage, port: u16) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => {
            infos.contains(&LinkInfo::Kind(InfoKind::Vxlan))
                && infos.iter().any(|info| {
                    matches!(info, LinkInfo::Data(InfoData::Vxlan(data)) if data.contains(&InfoVxlan::Port(port)))
                })
        }
        _ => false,
    })
}
