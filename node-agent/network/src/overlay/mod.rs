//! The way to the pods of other nodes: the real [`Overlay`].
//!
//! Nodes on this node's subnet are sent the packets of pods as they are; to all others, packets are wrapped into VXLAN.
//! Either way the entries are programmed from what is known of the nodes: no multicast, no flooding, no learning.
//! `plan` says which entries, `kernel` reads and writes them, `device` keeps the VXLAN device.
//!
//! Every node that knows another has the device, whether it sends through it or not: two nodes may disagree on whether
//! they share a subnet, and each accepts what the other sends. A node alone makes nothing.

mod device;
mod kernel;
mod plan;
mod rules;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use parking_lot::Mutex;

use self::device::Device;
use self::kernel::Ours;
pub(crate) use self::kernel::PROTOCOL as ROUTES;
pub(crate) use self::plan::usable;
use self::plan::{Entries, Here, Step};
use crate::blocking::blocking;
use crate::names::{Names, device_address, device_address6};
use crate::netlink::Netlink;
use crate::nft::Nft;
use crate::{
    NetworkError, NodeNetwork, Overlay, OverlayCounters, OverlaySettings, PeerNode, PeerPath,
    PodRoute, links, loopback,
};

/// Routes that one look is about.
const ROUTES_PER_LOOK: usize = 8;

/// Programs the ways to other nodes into the kernel. Cloning is cheap and shares everything.
#[derive(Clone)]
pub struct VxlanOverlay {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeNetwork,
    settings: OverlaySettings,
    names: Names,
    nft: Nft,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Set up by this process.
    device: Option<Device>,
    /// What the kernel holds; unknown at first, and after a change that failed.
    known: Option<Entries>,
    /// Set up by this process; those of an earlier one may be for other settings.
    rules: Option<String>,
    /// The nodes that the rules take wrapped packets from, where that is known.
    nodes: Option<BTreeSet<IpAddr>>,
    /// How many looks there were.
    looks: usize,
    /// Of the last sync.
    peers: Option<Vec<PeerNode>>,
}

impl VxlanOverlay {
    /// For a node with an overlay. Touches nothing yet: that is for the first sync, which can be tried again.
    pub fn new(node: NodeNetwork) -> Result<Self, NetworkError> {
        let names = Names::new(&node)?;
        let settings = node.overlay.clone().ok_or_else(|| {
            NetworkError::Unsupported(
                "this node has no overlay: give it an address that other nodes reach".to_owned(),
            )
        })?;
        let shared = Shared {
            settings,
            names,
            nft: Nft::find()?,
            state: Mutex::default(),
            node,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The UDP port that wrapped packets go to, on every node.
    pub fn port(&self) -> u16 {
        self.shared.settings.port
    }

    /// What is wrong with the ways to other nodes, in words; [`Overlay::reassert`] puts it right. Cheap, however many nodes
    /// there are; meant to be called now and then.
    pub async fn look(&self) -> Result<Option<String>, NetworkError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.inspect(&mut shared.state.lock())).await
    }

    /// What the VXLAN device has counted.
    pub async fn counters(&self) -> Result<OverlayCounters, NetworkError> {
        let name = self.shared.names.vxlan();
        blocking(move || device::counters(&mut Netlink::open()?, &name)).await
    }
}

#[async_trait]
impl Overlay for VxlanOverlay {
    async fn sync(&self, peers: Vec<PeerNode>) -> Result<(), NetworkError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut state = shared.state.lock();
            state.peers = Some(peers);
            shared.program(&mut state)
        })
        .await
    }

    async fn reassert(&self) -> Result<(), NetworkError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut state = shared.state.lock();
            if state.peers.is_none() {
                return Ok(());
            }
            state.device = None;
            state.known = None;
            shared.program(&mut state)
        })
        .await
    }

    async fn routes(&self) -> Result<Vec<PodRoute>, NetworkError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut netlink = Netlink::open()?;
            let Some(link) = links::find(&mut netlink, &shared.names.vxlan())? else {
                return Ok(Vec::new());
            };
            let ours = ours(&shared.node, link.header.index);
            Ok(pod_routes(
                &kernel::read(&mut netlink, &ours)?,
                link.header.index,
            ))
        })
        .await
    }
}

impl Shared {
    /// Makes the kernel's entries those of the last peers. What fails because someone has taken away what was there
    /// is tried once more from the beginning.
    fn program(&self, state: &mut State) -> Result<(), NetworkError> {
        let assumed = state.device.is_some();
        match self.attempt(state) {
            Err(error) if assumed && !matches!(error, NetworkError::Peer { .. }) => {
                tracing::warn!(%error, "programming the ways to other nodes; beginning anew");
                self.attempt(state)
            }
            other => other,
        }
    }

    fn attempt(&self, state: &mut State) -> Result<(), NetworkError> {
        let mut netlink = Netlink::open()?;
        let peers = state.peers.as_deref().unwrap_or_default();
        let device = match state.device.take() {
            Some(device) => device,
            None => {
                let (usable, problems) =
                    plan::usable(self.settings.node_address, &pod_cidrs(&self.node), peers);
                if usable.is_empty() && links::find(&mut netlink, &self.names.vxlan())?.is_none() {
                    state.known = Some(Entries::default());
                    return problems.into_iter().next().map_or(Ok(()), Err);
                }
                state.known = None;
                state.nodes = None;
                self.set_up(&mut netlink, &mut state.rules, peers)?
            }
        };
        let now = match state.known.take() {
            Some(known) => known,
            None => kernel::read(&mut netlink, &ours(&self.node, device.index))?,
        };
        let (wanted, problems) = plan::plan(&self.here(&device), peers);
        self.take_from(&mut state.nodes, peers)?;
        let steps = plan::steps(&now, &wanted);
        log(&steps);
        let changes = steps
            .into_iter()
            .map(|step| kernel::change(device.index, step));
        netlink.batch(changes.collect())?;
        state.device = Some(device);
        state.known = Some(wanted);
        problems.into_iter().next().map_or(Ok(()), Err)
    }

    fn set_up(
        &self,
        netlink: &mut Netlink,
        made: &mut Option<String>,
        peers: &[PeerNode],
    ) -> Result<Device, NetworkError> {
        loopback::guard(&self.nft, &self.names)?;
        let device = device::ensure(netlink, &self.node, &self.names, &self.settings)?;
        if self.settings.node_address.is_ipv4() && device.underlay.index != 0 {
            // Node ports answer at 127.0.0.1 as well when their endpoints are on other nodes.
            loopback::open(&self.names, &device.underlay.name)?;
        }
        let table = self.names.overlay_table();
        let rules = rules::table(
            &self.names,
            &self.node,
            &self.settings,
            device.underlay.has_address,
        );
        let chain = ["list", "chain", "inet", &table, rules::CHAIN];
        if made.as_ref() != Some(&rules) || self.nft.list(&chain).is_none() {
            // Together: until others are known, nothing of theirs would be taken.
            let nodes = rules::exchange_nodes(&self.names, None, &addresses(peers));
            self.nft.set_up(&format!("{rules}{nodes}"))?;
            *made = Some(rules);
        }
        tracing::debug!(
            device = self.names.vxlan(),
            underlay = device.underlay.name,
            on_link = ?device.underlay.on_link,
            "the VXLAN device is ready"
        );
        Ok(device)
    }

    /// Takes wrapped packets from these peers alone, at a cost that is that of the difference.
    fn take_from(
        &self,
        now: &mut Option<BTreeSet<IpAddr>>,
        peers: &[PeerNode],
    ) -> Result<(), NetworkError> {
        let next = addresses(peers);
        let script = rules::exchange_nodes(&self.names, now.as_ref(), &next);
        if !script.is_empty() {
            *now = None;
            self.nft.apply(&script)?;
        }
        *now = Some(next);
        Ok(())
    }

    /// What is wrong with the device or with the routes to peers, of which some are looked at each time: what cuts off
    /// the pods of other nodes mostly cuts off all of them.
    fn inspect(&self, state: &mut State) -> Result<Option<String>, NetworkError> {
        if state.peers.is_none() {
            return Ok(None);
        }
        let name = self.names.vxlan();
        let (Some(device), Some(known)) = (&state.device, &state.known) else {
            return Ok(state
                .known
                .is_none()
                .then(|| "the ways to other nodes are not set up".to_owned()));
        };
        let mut netlink = Netlink::open()?;
        let link = links::find(&mut netlink, &name)?;
        let wrong = match link {
            None => Some("is gone"),
            Some(link) if !device::is_vxlan(&link) => Some("is no VXLAN device"),
            Some(link) if link.header.index != device.index => Some("is another one than before"),
            Some(link) if !links::place_of(&link).up => Some("is down"),
            Some(_) => None,
        };
        if let Some(wrong) = wrong {
            return Ok(Some(format!("the VXLAN device {name} {wrong}")));
        }
        state.looks = state.looks.wrapping_add(ROUTES_PER_LOOK);
        let first = state.looks % known.routes.len().max(1);
        let some = known.routes.iter().cycle().skip(first);
        for (range, route) in some.take(ROUTES_PER_LOOK.min(known.routes.len())) {
            let leads = match links::route_to(&mut netlink, range.network())? {
                // A narrower one is somebody's who means it.
                Some((found, _)) if found.prefix_len() > range.prefix_len() => true,
                Some((found, link)) => found == *range && link == route.link,
                None => false,
            };
            if !leads {
                return Ok(Some(format!("the route to {range} is gone")));
            }
        }
        Ok(None)
    }

    fn here(&self, device: &Device) -> Here {
        Here {
            address: self.settings.node_address,
            mode: self.settings.mode,
            on_link: device.underlay.on_link,
            underlay: device.underlay.index,
            vxlan: device.index,
            pod_cidrs: pod_cidrs(&self.node),
            source: device.address,
            source6: device.address6,
        }
    }
}

fn addresses(peers: &[PeerNode]) -> BTreeSet<IpAddr> {
    peers.iter().map(|peer| peer.address).collect()
}

fn log(steps: &[Step]) {
    for step in steps {
        match step {
            Step::SetRoute(cidr, route) => tracing::info!(
                %cidr,
                via = route.via.map(tracing::field::display),
                link = route.link,
                "pods of another node are reached"
            ),
            Step::RemoveRoute(cidr, _) => {
                tracing::info!(%cidr, "pods of another node are no longer reached");
            }
            other => tracing::debug!(step = ?other, "the way to another node"),
        }
    }
}

fn pod_cidrs(node: &NodeNetwork) -> Vec<IpNet> {
    let ipv6 = node.ipv6.map(|ipv6| IpNet::V6(ipv6.pod_cidr.trunc()));
    [IpNet::V4(node.pod_cidr.trunc())]
        .into_iter()
        .chain(ipv6)
        .collect()
}

fn ours(node: &NodeNetwork, vxlan: u32) -> Ours {
    let pod_cidr = node.pod_cidr.trunc();
    let ipv6 = node
        .ipv6
        .map(|ipv6| IpAddr::V6(device_address6(ipv6.pod_cidr.trunc(), pod_cidr)));
    Ours {
        vxlan,
        sources: [IpAddr::V4(device_address(pod_cidr))]
            .into_iter()
            .chain(ipv6)
            .collect(),
    }
}

/// Routes as others know them: by VXLAN the next hop is a device, and the node is the one its address is forwarded to.
fn pod_routes(entries: &Entries, vxlan: u32) -> Vec<PodRoute> {
    let routes = entries.routes.iter().filter_map(|(cidr, route)| {
        let via = route.via?;
        let (address, path) = match route.link == vxlan {
            true => {
                let mac = entries.neighbours.get(&via)?;
                (*entries.forwarding.get(mac)?, PeerPath::Vxlan)
            }
            false => (via, PeerPath::Direct),
        };
        Some(PodRoute {
            pod_cidr: *cidr,
            address,
            path,
        })
    });
    routes.collect()
}

/// Removes the device, the routes and the table. Idempotent; whether the node has an overlay now does not matter.
pub(crate) fn teardown(node: &NodeNetwork, names: &Names) -> Result<(), NetworkError> {
    let mut netlink = Netlink::open()?;
    let name = names.vxlan();
    // Routes by the device go with it, and those that speak from its IPv4 address as well; the rest are removed here.
    if let Some(link) = links::find(&mut netlink, &name)?
        && device::is_vxlan(&link)
    {
        let index = link.header.index;
        let left = kernel::read(&mut netlink, &ours(node, index))?;
        let steps = plan::steps(&left, &Entries::default());
        let changes = steps.into_iter().map(|step| kernel::change(index, step));
        netlink.batch(changes.collect())?;
        links::remove(&mut netlink, &name)?;
    }
    let table = names.overlay_table();
    Nft::find()?.apply(&format!(
        "add table inet {table}\ndelete table inet {table}\n"
    ))
}
