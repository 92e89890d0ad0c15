//! Pods on a bridge: the real [`PodNetwork`].
//!
//! Attaching makes, in this order: the lease (address and host ports, on disk), the guard's elements, the namespace's
//! mount, the veth pair and the pod's inside, the host ports' rules; then the lease is marked ready. Detaching goes the
//! other way. What a crash leaves in between is removed at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_cri::network::check_uid;
use ipnet::{IpNet, Ipv4Net};
use parking_lot::Mutex;

use crate::blocking::blocking;
use crate::connections::PodConnections;
use crate::forwarding::Passing;
use crate::guard::Guard;
use crate::ipam::AddressPool;
use crate::leases::{Lease, LeaseFiles};
use crate::links::Bridge;
use crate::names::{Names, at_offset};
use crate::netlink::Netlink;
use crate::nft::Nft;
use crate::underlay::Underlay;
use crate::{
    HostPort, MakeNamespace, NetworkError, NodeNetwork, NodeTraffic, PodAttachment, PodNetwork,
    dns_rules, forwarding, links, listeners, loopback, netns, overlay, pod_link, pod_rules, ports,
};

mod counted;
mod look;

pub use look::Looked;

/// Operations on one pod are one after the other, those on different pods (mostly) at the same time.
const STRIPES: usize = 64;

/// Connects the pods of one node over a bridge. Cloning is cheap and shares everything.
#[derive(Clone)]
pub struct BridgeNetwork {
    shared: Arc<Shared>,
}

struct Shared {
    node: NodeNetwork,
    names: Names,
    nft: Nft,
    leases: LeaseFiles,
    guard: Guard,
    /// Held while the guard changes, and locked before `state`: what fills it sees every lease whose pod was admitted.
    guarding: Mutex<()>,
    state: Mutex<State>,
    connections: PodConnections,
    stripes: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
}

struct State {
    bridge: Bridge,
    pool: AddressPool,
    pods: BTreeMap<String, Lease>,
    dns: BTreeSet<Ipv4Addr>,
}

impl BridgeNetwork {
    /// Sets up (or takes over) the node's bridge, rules and leases, and removes what belongs to no living pod.
    ///
    /// Needs root, `nft`, and a kernel with bridge, veth and nftables; what is missing is named in the error.
    pub fn new(node: NodeNetwork) -> Result<Self, NetworkError> {
        let names = Names::new(&node)?;
        let nft = Nft::find()?;
        let leases = LeaseFiles::open(names.lease_dir())?;
        make_dir(&names.netns_dir())?;
        let mut netlink = Netlink::open()?;
        let pods = reconcile(&mut netlink, &names, &leases)?;
        // Before a bridge carries anything.
        let guard = Guard::new(nft.clone(), &names, &node);
        guard.fill(pods.values())?;
        loopback::guard(&nft, &names)?;
        let bridge = set_up(&mut netlink, &node, &names, &BTreeSet::new())?;
        nft.set_up(&pod_rules::table(&names, &node, pods.values()))?;
        forwarding::accept(&nft, &passing(&node, &names), node.ipv6.is_some())?;
        let pool = AddressPool::new(node.pod_cidr, pods.values().map(|lease| lease.ip));
        let shared = Shared {
            node,
            names,
            nft,
            leases,
            guard,
            guarding: Mutex::default(),
            state: Mutex::new(State {
                bridge,
                pool,
                pods,
                dns: BTreeSet::new(),
            }),
            connections: PodConnections::default(),
            stripes: (0..STRIPES).map(|_| tokio::sync::Mutex::new(())).collect(),
            hasher: RandomState::new(),
        };
        let pods = shared.reconnect_all();
        tracing::info!(bridge = shared.names.bridge(), gateway = %bridge.gateway, mtu = bridge.mtu, pods, "pod network is ready");
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Gives the node the address of the cluster's DNS service, so that a server on this node can listen on it.
    /// Pods and processes of the host then reach it as a local address, with no translation and no connection tracking
    /// on the way.
    pub async fn bind_dns_address(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut state = shared.state.lock();
            links::ensure_address(&mut Netlink::open()?, state.bridge.index, address)?;
            state.dns.insert(address);
            drop(state);
            shared.untrack_dns()
        })
        .await
    }

    /// Makes sure that rules set up by [`BridgeNetwork::new`] are still there: another firewall may have flushed them, or
    /// been started since. Cheap when they are; meant to be called now and then. Links and parameters are for
    /// [`BridgeNetwork::look`].
    pub async fn reassert(&self) -> Result<(), NetworkError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            shared.fill_guard()?;
            shared.settle_all()?;
            loopback::guard(&shared.nft, &shared.names)?;
            let table = shared.names.pod_table();
            let families: &[&str] = match shared.node.ipv6 {
                None => &["ip"],
                Some(_) => &["ip", "ip6"],
            };
            let there = |family: &&str| {
                let chain = ["list", "chain", *family, &table, "postrouting"];
                shared.nft.list(&chain).is_some()
            };
            if !families.iter().all(there) {
                tracing::warn!(table, "the table of pods is gone; setting it up again");
                shared.rebuild_table()?;
            }
            let table = shared.names.dns_table();
            let serves = !shared.state.lock().dns.is_empty();
            if serves
                && shared
                    .nft
                    .list(&["list", "chain", "inet", &table, "output"])
                    .is_none()
            {
                tracing::warn!(table, "the table of DNS is gone; setting it up again");
                shared.untrack_dns()?;
            }
            forwarding::accept(
                &shared.nft,
                &passing(&shared.node, &shared.names),
                shared.node.ipv6.is_some(),
            )
        })
        .await
    }

    /// Removes everything that this node's network made: tables, bridge, links, namespaces, leases. Idempotent; goes
    /// on after an error and answers the first.
    pub fn teardown(node: &NodeNetwork) -> Result<(), NetworkError> {
        let names = Names::new(node)?;
        let mut first = Ok(());
        let mut keep = |result: Result<(), NetworkError>| {
            if first.is_ok() {
                first = result;
            }
        };
        keep(overlay::teardown(node, &names));
        keep(remove_links(&names));
        let closed = loopback::close(&names);
        // As long as a link is open, it is guarded.
        let unguard = closed.is_ok();
        keep(closed);
        match Nft::find() {
            Ok(nft) => {
                keep(forwarding::forget(&nft, &everything_passing(node, &names)));
                let mut tables = vec![
                    ("ip", names.pod_table()),
                    ("ip", names.service_table()),
                    ("inet", names.policy_table()),
                    ("bridge", names.policy_table()),
                    ("inet", names.dns_table()),
                    ("bridge", names.guard_table()),
                    ("inet", names.guard_table()),
                ];
                tables.extend(unguard.then(|| ("ip", names.loopback_table())));
                tables.extend([names.pod_table(), names.service_table()].map(|name| ("ip6", name)));
                let there = nft.list(&["list", "tables"]).unwrap_or_default();
                for (family, table) in tables {
                    let table = format!("table {family} {table}");
                    if there.lines().any(|line| line == table) {
                        keep(nft.apply(&format!("delete {table}\n")));
                    }
                }
            }
            Err(error) => keep(Err(error)),
        }
        match mounted_names(&names.netns_dir()) {
            Ok(uids) => uids
                .iter()
                .for_each(|uid| keep(netns::remove(&names.netns_dir().join(uid)))),
            Err(error) => keep(Err(error)),
        }
        for dir in [names.netns_dir(), names.lease_dir()] {
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    keep(Err(doing("removing", &dir, e)))
                }
                _ => {}
            }
        }
        first
    }
}

#[async_trait]
impl PodNetwork for BridgeNetwork {
    async fn attach_namespace(
        &self,
        pod_uid: &str,
        host_ports: &[HostPort],
        make: Option<MakeNamespace>,
    ) -> Result<PodAttachment, NetworkError> {
        check_uid(pod_uid)?;
        let _one_at_a_time = self.shared.stripe(pod_uid).lock().await;
        let (shared, uid, ports) = (
            Arc::clone(&self.shared),
            pod_uid.to_owned(),
            host_ports.to_vec(),
        );
        let attached = blocking(move || shared.attach(&uid, ports, make.as_ref())).await;
        self.shared.guard.retire_when_idle();
        attached
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        check_uid(pod_uid)?;
        let _one_at_a_time = self.shared.stripe(pod_uid).lock().await;
        let (shared, uid) = (Arc::clone(&self.shared), pod_uid.to_owned());
        let detached = blocking(move || shared.detach(&uid)).await;
        self.shared.guard.retire_when_idle();
        detached
    }

    async fn attached(&self) -> Result<BTreeMap<String, PodAttachment>, NetworkError> {
        let state = self.shared.state.lock();
        let ready = state.pods.iter().filter(|(_, lease)| lease.ready);
        Ok(ready
            .map(|(uid, lease)| (uid.clone(), self.shared.attachment(uid, lease)))
            .filter(|(_, attachment)| netns::is_mounted(&attachment.netns))
            .collect())
    }

    async fn traffic(&self) -> Result<NodeTraffic, NetworkError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.traffic()).await
    }
}

/// See [`MakeNamespace`].
fn check_told_apart(pod_cidr: Ipv4Net) -> Result<(), NetworkError> {
    match pod_cidr.prefix_len() {
        0..16 => Err(NetworkError::Unsupported(format!(
            "pods with users of their own (hostUsers: false) need a pod CIDR of the node of /16 or narrower, not {pod_cidr}"
        ))),
        _ => Ok(()),
    }
}

impl Shared {
    fn stripe(&self, uid: &str) -> &tokio::sync::Mutex<()> {
        &self.stripes[self.hasher.hash_one(uid) as usize % STRIPES]
    }

    fn attachment(&self, uid: &str, lease: &Lease) -> PodAttachment {
        PodAttachment {
            netns: self.names.netns_dir().join(uid),
            ip: lease.ip,
            ip6: lease.ip6,
        }
    }

    /// The IPv6 address that comes with an IPv4 address.
    fn address6(&self, ip: Ipv4Addr) -> Option<Ipv6Addr> {
        let ipv6 = self.node.ipv6?;
        Some(at_offset(
            ipv6.pod_cidr.trunc(),
            self.node.pod_cidr.trunc(),
            ip,
        ))
    }

    fn attach(
        &self,
        uid: &str,
        ports: Vec<HostPort>,
        make: Option<&MakeNamespace>,
    ) -> Result<PodAttachment, NetworkError> {
        if make.is_some() {
            check_told_apart(self.node.pod_cidr)?;
        }
        let (lease, before) = self.lease(uid, ports)?;
        let attachment = self.attachment(uid, &lease);
        let connected = self
            .admit(&lease)
            .and_then(|()| {
                self.connect(
                    &attachment,
                    before.as_ref().is_some_and(|lease| lease.ready),
                    make,
                )
            })
            .and_then(|()| self.exchange_rules(before.as_ref(), Some(&lease)))
            .and_then(|()| {
                self.record(
                    uid,
                    Lease {
                        ready: true,
                        ..lease
                    },
                )
            });
        if let Err(error) = connected {
            // A pod that was connected before keeps what it has: its containers run in it.
            if before.is_none_or(|lease| !lease.ready)
                && let Err(also) = self.detach(uid)
            {
                tracing::warn!(pod = uid, error = %also, "removing a half-made attachment failed as well");
            }
            return Err(error);
        }
        tracing::debug!(pod = uid, ip = %attachment.ip, "pod attached");
        Ok(attachment)
    }

    /// The pod's lease, made when there is none, and what it held before.
    fn lease(
        &self,
        uid: &str,
        host_ports: Vec<HostPort>,
    ) -> Result<(Lease, Option<Lease>), NetworkError> {
        let mut state = self.state.lock();
        let before = state.pods.get(uid).cloned();
        let others = state.pods.iter().filter(|(other, _)| *other != uid);
        let held: Vec<HostPort> = others
            .flat_map(|(_, lease)| lease.host_ports.iter().cloned())
            .collect();
        let mine = before
            .as_ref()
            .map(|lease| lease.host_ports.as_slice())
            .unwrap_or_default();
        let by_others = HostPort::conflict(&host_ports, &held);
        let by_a_process = match by_others {
            None => listeners::first_held(host_ports.iter().filter(|port| !mine.contains(port)))?,
            Some(_) => None,
        };
        if let Some(port) = by_others.or(by_a_process) {
            let protocol = port.protocol.word().to_uppercase();
            return Err(NetworkError::HostPortInUse {
                port: port.host_port,
                protocol,
            });
        }
        let (ip, ip6) = match &before {
            Some(lease) => (lease.ip, lease.ip6),
            None => {
                let ip = state.pool.take()?;
                (ip, self.address6(ip))
            }
        };
        let refused = host_ports
            .iter()
            .find_map(|port| pod_rules::impossible(port, ip6));
        if let Some(refused) = refused {
            if before.is_none() {
                state.pool.free(ip);
            }
            return Err(NetworkError::Unsupported(refused));
        }
        let lease = Lease {
            ip,
            ip6,
            host_ports,
            ready: before.as_ref().is_some_and(|lease| lease.ready),
        };
        if before.as_ref() != Some(&lease) {
            if let Err(error) = self.leases.write(uid, &lease) {
                if before.is_none() {
                    state.pool.free(ip);
                }
                return Err(error);
            }
            state.pods.insert(uid.to_owned(), lease.clone());
        }
        Ok((lease, before))
    }

    fn record(&self, uid: &str, lease: Lease) -> Result<(), NetworkError> {
        let mut state = self.state.lock();
        if state.pods.get(uid) == Some(&lease) {
            return Ok(());
        }
        self.leases.write(uid, &lease)?;
        state.pods.insert(uid.to_owned(), lease);
        Ok(())
    }

    /// Makes the namespace and the pair, as far as they are missing. What an earlier attempt left half-done (not
    /// `ready`) is made anew.
    fn connect(
        &self,
        attachment: &PodAttachment,
        ready: bool,
        make: Option<&MakeNamespace>,
    ) -> Result<(), NetworkError> {
        let mut host = Netlink::open()?;
        let link = self.names.host_link(attachment.ip);
        let mut inside = if netns::is_mounted(&attachment.netns) {
            let linked = links::find(&mut host, &link)?.is_some();
            if linked && ready {
                return Ok(());
            }
            netns::open(&attachment.netns)?
        } else {
            netns::create(&attachment.netns, || {
                make.map(|make| make(attachment.ip)).transpose()
            })?
        };
        let PodAttachment { ip, ip6, .. } = *attachment;
        let bridge = self.state.lock().bridge;
        let connect = |host: &mut Netlink, inside: &mut netns::Namespace| {
            pod_link::connect_pod(host, &bridge, &link, inside, ip, ip6)
        };
        match connect(&mut host, &mut inside) {
            Err(pod_link::ConnectError::Exists) => {
                // Either end may be what is in the way: the host's, or the pod's, whose other end was renamed or moved.
                links::remove(&mut host, &link)?;
                links::remove(&mut inside.netlink, pod_link::POD_LINK)?;
                Ok(connect(&mut host, &mut inside)?)
            }
            other => Ok(other?),
        }
    }

    /// Replaces the host ports of one lease by those of another in one transaction. Should the table have been
    /// flushed by someone, it is set up again from what is known.
    fn exchange_rules(&self, old: Option<&Lease>, new: Option<&Lease>) -> Result<(), NetworkError> {
        if old.map(|lease| &lease.host_ports) == new.map(|lease| &lease.host_ports) {
            return Ok(());
        }
        let script = [
            old.map(|lease| pod_rules::remove(&self.names, lease))
                .unwrap_or_default(),
            new.map(|lease| pod_rules::add(&self.names, lease))
                .unwrap_or_default(),
        ]
        .concat();
        if script.is_empty() {
            return Ok(());
        }
        match self.nft.apply(&script) {
            Err(NetworkError::Nft(words)) => {
                tracing::warn!(
                    words,
                    "the table of pods is not as it was left; setting it up again"
                );
                self.rebuild_table()
            }
            other => other,
        }
    }

    fn admit(&self, lease: &Lease) -> Result<(), NetworkError> {
        let _alone = self.guarding.lock();
        match self.guard.admit(lease) {
            Err(NetworkError::Nft(words)) => {
                tracing::warn!(words, "the guard is not as it was left; filling it again");
                self.guard.fill(self.state.lock().pods.values())
            }
            other => other,
        }
    }

    fn dismiss(&self, uid: &str, lease: &Lease) -> Result<(), NetworkError> {
        let _alone = self.guarding.lock();
        match self.guard.dismiss(lease) {
            Err(NetworkError::Nft(words)) => {
                tracing::debug!(words, "the guard is not as it was left; filling it again");
                let state = self.state.lock();
                let others = state.pods.iter().filter(|(other, _)| *other != uid);
                self.guard.fill(others.map(|(_, lease)| lease))
            }
            other => other,
        }
    }

    fn fill_guard(&self) -> Result<(), NetworkError> {
        let _alone = self.guarding.lock();
        self.guard.fill(self.state.lock().pods.values())
    }

    fn rebuild_table(&self) -> Result<(), NetworkError> {
        let state = self.state.lock();
        self.nft.set_up(&pod_rules::table(
            &self.names,
            &self.node,
            state.pods.values(),
        ))
    }

    fn untrack_dns(&self) -> Result<(), NetworkError> {
        let addresses = self
            .state
            .lock()
            .dns
            .iter()
            .copied()
            .map(IpAddr::V4)
            .collect();
        self.nft.set_up(&dns_rules::table(&self.names, &addresses))
    }

    fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let lease = self.state.lock().pods.get(uid).cloned();
        if let Some(lease) = &lease {
            // The rules go first, and from what a rebuilt table would contain as well.
            let bridge = {
                let mut state = self.state.lock();
                if let Some(kept) = state.pods.get_mut(uid) {
                    kept.host_ports.clear();
                    // Nobody reconnects it from now on.
                    kept.ready = false;
                }
                state.bridge
            };
            self.exchange_rules(Some(lease), None)?;
            let mut netlink = Netlink::open()?;
            links::remove(&mut netlink, &self.names.host_link(lease.ip))?;
            netlink.batch(ports::forget(&bridge, lease.ip, lease.ip6))?;
            self.dismiss(uid, lease)?;
        }
        netns::remove(&self.names.netns_dir().join(uid))?;
        self.leases.remove(uid)?;
        let mut state = self.state.lock();
        if let Some(lease) = state.pods.remove(uid) {
            state.pool.free(lease.ip);
            tracing::debug!(pod = uid, ip = %lease.ip, "pod detached");
        }
        Ok(())
    }
}

/// Keeps the leases whose pods are as they were left, and removes the leftovers of all others.
fn reconcile(
    netlink: &mut Netlink,
    names: &Names,
    leases: &LeaseFiles,
) -> Result<BTreeMap<String, Lease>, NetworkError> {
    let mut pods = leases.load()?;
    let netns_dir = names.netns_dir();
    let lost = |uid: &str, lease: &Lease| !lease.ready || !netns::is_mounted(&netns_dir.join(uid));
    let gone: Vec<String> = pods
        .iter()
        .filter(|(uid, lease)| lost(uid, lease))
        .map(|(uid, _)| uid.clone())
        .collect();
    for uid in &gone {
        pods.remove(uid);
    }
    let known: BTreeSet<String> = pods
        .values()
        .map(|lease| names.host_link(lease.ip))
        .collect();
    for link in links::names(netlink)?
        .iter()
        .filter(|link| names.is_host_link(link) && !known.contains(*link))
    {
        links::remove(netlink, link)?;
    }
    for uid in mounted_names(&netns_dir)?
        .iter()
        .filter(|uid| !pods.contains_key(*uid))
    {
        netns::remove(&netns_dir.join(uid))?;
    }
    for uid in &gone {
        leases.remove(uid)?;
        tracing::info!(pod = uid, "the network of a pod that is gone was removed");
    }
    Ok(pods)
}

/// What the firewalls of others must let through. Packets that come from elsewhere for a service and go on to a pod of
/// another node pass neither the bridge nor always the VXLAN device, so the pods' addresses are named as well.
fn passing(node: &NodeNetwork, names: &Names) -> Vec<Passing> {
    match node.overlay {
        Some(_) => everything_passing(node, names),
        None => vec![Passing::Link(names.bridge())],
    }
}

/// The same of a node that may have had an overlay: what is torn down is told only where it was.
fn everything_passing(node: &NodeNetwork, names: &Names) -> Vec<Passing> {
    let range = |range| Passing::Range(names.prefix().to_owned(), range);
    let mut passing = vec![
        Passing::Link(names.bridge()),
        Passing::Link(names.vxlan()),
        range(IpNet::V4(node.cluster_pod_cidr.trunc())),
    ];
    passing.extend(
        node.ipv6
            .map(|ipv6| range(IpNet::V6(ipv6.cluster_pod_cidr.trunc()))),
    );
    passing
}

/// Makes the bridge as it should be, with what the kernel must know about it and the addresses that DNS listens on.
fn set_up(
    netlink: &mut Netlink,
    node: &NodeNetwork,
    names: &Names,
    dns: &BTreeSet<Ipv4Addr>,
) -> Result<Bridge, NetworkError> {
    let address = node.overlay.as_ref().map(|overlay| overlay.node_address);
    let underlay = Underlay::find(netlink, address)?;
    underlay.check_ranges(node)?;
    let mtu = underlay.pod_mtu(node)?;
    let bridge = links::ensure_bridge(netlink, node, names, mtu)?;
    for address in dns {
        links::ensure_address(netlink, bridge.index, *address)?;
    }
    forwarding::switch_on(node.ipv6.is_some())?;
    for (parameter, value) in bridge_parameters(&names.bridge(), node.ipv6.is_some()) {
        forwarding::set(&parameter, value)?;
    }
    Ok(bridge)
}

/// What the kernel must know about the bridge.
fn bridge_parameters(bridge: &str, ipv6: bool) -> Vec<(String, &'static str)> {
    let mut parameters = vec![
        // For connections from the host's loopback to host ports and node ports.
        (loopback::parameter(bridge), "1"),
        // Packets between pods come in and leave by the bridge, on purpose: advice to take a shorter way is wrong, and
        // using up the allowance for it keeps the kernel from sending refusals. A link sends redirects unless both its
        // own and the common switch are off; other links keep theirs.
        ("ipv4/conf/all/send_redirects".to_owned(), "0"),
        (format!("ipv4/conf/{bridge}/send_redirects"), "0"),
    ];
    let routers = format!("ipv6/conf/{bridge}/accept_ra");
    if forwarding::exists(&routers) {
        // No pod is a router of the host, which may listen to those of its other links.
        parameters.push((routers, "0"));
    }
    if ipv6 {
        // Pods are looked for from the bridge's link-local address, which the kernel makes with the first pod and by
        // default does not use before it has waited for a duplicate: until then packets to pods are refused as
        // undeliverable. Nobody else on the bridge makes addresses from its hardware address.
        parameters.push((format!("ipv6/conf/{bridge}/accept_dad"), "0"));
    }
    parameters
}

fn remove_links(names: &Names) -> Result<(), NetworkError> {
    let mut netlink = Netlink::open()?;
    for link in links::names(&mut netlink)?
        .iter()
        .filter(|link| names.is_host_link(link))
    {
        links::remove(&mut netlink, link)?;
    }
    links::remove(&mut netlink, &names.bridge())
}

fn mounted_names(dir: &PathBuf) -> Result<Vec<String>, NetworkError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| doing("reading", dir, e))?,
    };
    entries
        .map(|entry| {
            Ok(entry
                .map_err(|e| doing("reading", dir, e))?
                .file_name()
                .to_string_lossy()
                .into_owned())
        })
        .collect()
}

fn make_dir(dir: &PathBuf) -> Result<(), NetworkError> {
    fs::create_dir_all(dir).map_err(|e| doing("creating", dir, e))
}

fn doing(what: &str, path: &std::path::Path, source: io::Error) -> NetworkError {
    NetworkError::Io {
        doing: format!("{what} {}", path.display()),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_a_pods_own_need_addresses_that_differ_in_their_last_half() {
        let check = |cidr: &str| check_told_apart(cidr.parse().unwrap());
        for narrow in ["10.244.3.0/24", "10.244.0.0/16", "10.244.3.8/30"] {
            check(narrow).unwrap();
        }
        for wide in ["10.244.0.0/15", "10.0.0.0/8", "0.0.0.0/0"] {
            let refused = check(wide).unwrap_err().to_string();
            assert!(refused.contains(wide), "{refused}");
        }
    }
}
