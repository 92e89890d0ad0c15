//! Looks after what others may take apart: the bridge, its addresses and routes, the pods' ports, the kernel's switches.
//!
//! A look costs what the node's own pods cost, whatever else the host has: one request for the bridge, one for its ports, one
//! route each. What is not as it should be is put right, pods that run included; what cannot be is told.
//!
//! What is wrong with a single pod is never the node's trouble: a pod with CAP_NET_ADMIN can take its own link apart as
//! often as it likes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{BridgeNetwork, Shared, bridge_parameters, set_up};
use crate::blocking::blocking;
use crate::leases::Lease;
use crate::links::{Bridge, Place, has_hardware_address, is_bridge, place_of};
use crate::netlink::{Change, Netlink};
use crate::{NetworkError, forwarding, links, ports};

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// What was not as it should be, in words.
    pub found: Vec<String>,
    /// What of it could not be put right and cuts pods off.
    pub left: Vec<String>,
}

/// What is not as it should be, in words.
#[derive(Default)]
struct Faults {
    node: Vec<String>,
    /// Routes that lead elsewhere. Made anew, they may still be hidden by the host's own rules: its owner's business.
    routes: Vec<String>,
    /// By the pod's uid.
    pods: BTreeMap<String, String>,
    /// Ports of the bridge that are no pod's, by name, and their links. A pod with CAP_NET_ADMIN can make some (`guard.rs`):
    /// they are taken off, and never are the node's trouble either.
    strangers: BTreeMap<String, u32>,
}

impl Faults {
    fn words(&self) -> Vec<String> {
        let all = self.node.iter().chain(&self.routes);
        let strangers = self
            .strangers
            .keys()
            .map(|link| format!("the link {link} is a port of the bridge and no pod's"));
        let known = all.chain(self.pods.values()).cloned();
        known.chain(strangers).collect()
    }
}

impl BridgeNetwork {
    /// Looks whether links, addresses, routes and parameters are as [`BridgeNetwork::new`] and
    /// [`attach`](crate::PodNetwork::attach) left them, and puts right what is not.
    pub async fn look(&self) -> Result<Looked, NetworkError> {
        let shared = Arc::clone(&self.shared);
        let faults = blocking(move || shared.inspect(&mut Netlink::open()?)).await?;
        let found = faults.words();
        if found.is_empty() {
            return Ok(Looked::default());
        }
        let strangers = faults.strangers;
        if !strangers.is_empty() {
            blocking(move || take_off(&mut Netlink::open()?, &strangers)).await?;
        }
        let mut left = Vec::new();
        let mut lost: Vec<String> = faults.pods.into_keys().collect();
        if !faults.node.is_empty() || !faults.routes.is_empty() {
            let shared = Arc::clone(&self.shared);
            match blocking(move || shared.set_up_again()).await {
                // Pods' neighbour entries went with the bridge, or with its hardware address.
                Ok(pods) => lost = pods,
                Err(error) => left.push(error.to_string()),
            }
        }
        if left.is_empty() {
            for uid in lost {
                let _one_at_a_time = self.shared.stripe(&uid).lock().await;
                let (shared, pod) = (Arc::clone(&self.shared), uid.clone());
                if let Err(error) = blocking(move || shared.reconnect(&pod)).await {
                    tracing::warn!(pod = uid, %error, "connecting a pod again");
                }
            }
            let shared = Arc::clone(&self.shared);
            left = blocking(move || shared.inspect(&mut Netlink::open()?))
                .await?
                .node;
        }
        Ok(Looked { found, left })
    }
}

/// Takes links off their bridge. One that went away meanwhile, or stays, is left to the next look.
fn take_off(netlink: &mut Netlink, links: &BTreeMap<String, u32>) -> Result<(), NetworkError> {
    let changes = links.iter().map(|(name, index)| {
        Change::new(
            format!("taking the link {name} off the bridge"),
            0,
            RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(*index).nocontroller().build()),
        )
    });
    if let Err(refusal) = netlink.batch(changes.collect()) {
        tracing::warn!(?refusal, "taking links that are no pod's off the bridge");
    }
    Ok(())
}

impl Shared {
    /// Connects all pods of an earlier agent that are not connected any more; how many pods there are.
    pub(super) fn reconnect_all(&self) -> usize {
        let pods = self.ready();
        for uid in pods.keys() {
            if let Err(error) = self.reconnect(uid) {
                tracing::warn!(pod = uid, %error, "connecting a pod of before");
            }
        }
        pods.len()
    }

    /// Sets every pod's port up once more, whatever it looks like.
    pub(super) fn settle_all(&self) -> Result<(), NetworkError> {
        let bridge = self.state.lock().bridge;
        let mut netlink = Netlink::open()?;
        let there = links::ports_of(&mut netlink, bridge.index)?;
        let changes = self.ready().into_values().flat_map(|lease| {
            let name = self.names.host_link(lease.ip);
            let index = there.get(&name).map(|place| place.index);
            index
                .map(|index| ports::settle(&bridge, index, &name, lease.ip, lease.ip6))
                .unwrap_or_default()
        });
        if let Err(refusal) = netlink.batch(changes.collect()) {
            // Such as one of a pod that went away meanwhile.
            tracing::debug!(?refusal, "setting up the pods' ports");
        }
        Ok(())
    }

    fn ready(&self) -> BTreeMap<String, Lease> {
        let state = self.state.lock();
        let ready = state.pods.iter().filter(|(_, lease)| lease.ready);
        ready
            .map(|(uid, lease)| (uid.clone(), lease.clone()))
            .collect()
    }

    /// Makes the bridge as it should be; all pods, whose ports are to be set up again.
    fn set_up_again(&self) -> Result<Vec<String>, NetworkError> {
        let dns = self.state.lock().dns.clone();
        let bridge = set_up(&mut Netlink::open()?, &self.node, &self.names, &dns)?;
        self.state.lock().bridge = bridge;
        Ok(self.ready().into_keys().collect())
    }

    /// Makes a pod's link if it is gone, and a port of the bridge in any case. To be called by one at a time for a pod.
    fn reconnect(&self, uid: &str) -> Result<(), NetworkError> {
        let (bridge, lease) = {
            let state = self.state.lock();
            let lease = state.pods.get(uid).filter(|lease| lease.ready).cloned();
            (state.bridge, lease)
        };
        let Some(lease) = lease else {
            return Ok(());
        };
        self.connect(&self.attachment(uid, &lease), true, None)?;
        let name = self.names.host_link(lease.ip);
        let mut netlink = Netlink::open()?;
        match links::find(&mut netlink, &name)? {
            Some(link) => Ok(netlink.batch(ports::settle(
                &bridge,
                link.header.index,
                &name,
                lease.ip,
                lease.ip6,
            ))?),
            None => Ok(()),
        }
    }

    fn inspect(&self, netlink: &mut Netlink) -> Result<Faults, NetworkError> {
        let (bridge, dns) = {
            let state = self.state.lock();
            (state.bridge, state.dns.clone())
        };
        let mut faults = Faults::default();
        let name = self.names.bridge();
        let mut wrong = |what: String| faults.node.push(what);
        match links::find(netlink, &name)? {
            None => wrong(format!("the bridge {name} is gone")),
            Some(link) if !is_bridge(&link) => wrong(format!("the link {name} is not a bridge")),
            Some(link) if link.header.index != bridge.index => {
                wrong(format!("the bridge {name} is another one than before"));
            }
            Some(link) => {
                if !place_of(&link).up {
                    wrong(format!("the bridge {name} is down"));
                }
                if !has_hardware_address(&link, bridge.gateway) {
                    wrong(format!("the bridge {name} has another hardware address"));
                }
                for missing in self.missing_addresses(netlink, &bridge, dns.into_iter())? {
                    wrong(format!("the bridge {name} lacks the address {missing}"));
                }
            }
        }
        for (parameter, value) in self.parameters() {
            if !forwarding::is(&parameter, value) && forwarding::exists(&parameter) {
                let parameter = parameter.replace('/', ".");
                wrong(format!("net.{parameter} is not {value}"));
            }
        }
        let pods = self.ready();
        if faults.node.is_empty() {
            for (address, range) in self.routed(pods.is_empty()) {
                let leads = match links::route_to(netlink, address)? {
                    // A narrower one is somebody's who means it.
                    Some((found, _)) if found.prefix_len() > range.prefix_len() => true,
                    Some((found, link)) => found == range && link == bridge.index,
                    None => false,
                };
                if !leads {
                    let what = format!("the route to {range} does not lead to {name}");
                    faults.routes.push(what);
                }
            }
        }
        let there = links::ports_of(netlink, bridge.index)?;
        let strangers = there
            .iter()
            .filter(|(link, _)| !self.names.is_host_link(link));
        faults.strangers = strangers
            .map(|(link, place)| (link.clone(), place.index))
            .collect();
        for (uid, lease) in pods {
            let link = self.names.host_link(lease.ip);
            let what = match there.get(&link) {
                Some(Place { up: true, .. }) => continue,
                Some(_) => format!("the link {link} of pod {uid} is down"),
                None => format!("the link {link} of pod {uid} is no port of the bridge {name}"),
            };
            faults.pods.insert(uid, what);
        }
        Ok(faults)
    }

    /// The addresses that the bridge should have and has not.
    fn missing_addresses(
        &self,
        netlink: &mut Netlink,
        bridge: &Bridge,
        dns: impl Iterator<Item = Ipv4Addr>,
    ) -> Result<Vec<IpNet>, NetworkError> {
        let gateway = IpNet::new_assert(bridge.gateway.into(), self.node.pod_cidr.prefix_len());
        let mut wanted: Vec<IpNet> = dns.map(|address| IpAddr::V4(address).into()).collect();
        wanted.insert(0, gateway);
        let mut families = vec![AddressFamily::Inet];
        if let (Some(gateway6), Some(ipv6)) = (bridge.gateway6, self.node.ipv6) {
            let length = ipv6.pod_cidr.prefix_len();
            wanted.push(IpNet::new_assert(gateway6.into(), length));
            families.push(AddressFamily::Inet6);
        }
        for family in families {
            for (message, address) in links::addresses(netlink, family)? {
                if message.header.index == bridge.index {
                    wanted.retain(|wanted| *wanted != address);
                }
            }
        }
        Ok(wanted)
    }

    /// Parameters of the kernel that pods depend on.
    fn parameters(&self) -> Vec<(String, &'static str)> {
        let ipv6 = self.node.ipv6.is_some();
        let mut parameters = bridge_parameters(&self.names.bridge(), ipv6);
        parameters.push(("ipv4/ip_forward".to_owned(), "1"));
        if ipv6 {
            parameters.push(("ipv6/conf/all/forwarding".to_owned(), "1"));
        }
        parameters
    }

    /// Addresses that are none of this host's, and the ranges by which they should be reached over the bridge. A bridge
    /// without ports may have no routes of IPv6 yet.
    fn routed(&self, no_pods: bool) -> Vec<(IpAddr, IpNet)> {
        let last = |range: ipnet::Ipv4Net| {
            let broadcast = u32::from(range.broadcast());
            IpAddr::V4(Ipv4Addr::from(broadcast.saturating_sub(1)))
        };
        let second = |range: Ipv6Net| {
            let network = u128::from(range.network());
            IpAddr::V6(Ipv6Addr::from(network | 2))
        };
        let (pods, services) = (self.node.pod_cidr.trunc(), self.node.service_cidr.trunc());
        let mut routed = vec![(last(pods), pods.into()), (last(services), services.into())];
        if let Some(ipv6) = self.node.ipv6.filter(|_| !no_pods) {
            let ranges = [Some(ipv6.pod_cidr), ipv6.service_cidr];
            routed.extend(
                ranges
                    .into_iter()
                    .flatten()
                    .map(|range| (second(range.trunc()), range.trunc().into())),
            );
        }
        routed
    }
}
