//! Network policies on this node: what the server says about its pods, and the rules in the kernel that follow.
//!
//! The server speaks of pods, the kernel of addresses: a pod is isolated by what both know of it, from the moment it is
//! attached to the network ([`Policies::isolate`]) until it is about to leave it ([`Policies::forget`]). Nothing is
//! programmed before a server or the checkpoint has said what the policies are: what an earlier agent left in the kernel
//! stays in force until then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gantry_network::{
    IsolatedPod, NodePolicies, PeerSet, PolicyPeer, PolicyPeers, PolicyPort, PolicyRule,
    PolicyRuleSet, PolicyRules, Protocol,
};
use gantry_pods::traits::{self, PodIsolation};
use gantry_rpc::node::{self as rpc, PolicyChange, policy_port::Ports};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

use crate::metrics::METRICS;

/// How long a pod waits for its isolation before it says why it does not start.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one change, in however many pieces it comes: several times what a server tells one node.
const LARGEST_CHANGE: usize = 128 << 20;
/// Between attempts at rules that the kernel refused.
const RETRY: Duration = Duration::from_secs(5);

/// Something in a server's message that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the server sent policies that cannot be read: {0}")]
pub(crate) struct Unreadable(String);

/// Why a pod's isolation is not in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotIsolated {
    #[error("no server has said yet which network policies isolate the pod")]
    Unknown,
    #[error(
        "which network policies isolate the pod is not known until a server says everything again: {0}"
    )]
    Missed(Arc<Unreadable>),
    #[error("programming network policies: {0}")]
    Refused(String),
    #[error("programming network policies takes longer than {} s", PATIENCE.as_secs())]
    Late,
}

/// The policies of this node's pods, as the server says them.
#[derive(Clone, Debug, Default)]
struct ServerPolicies {
    revision: u64,
    /// By uid.
    pods: BTreeMap<String, rpc::PodIsolation>,
    /// By uid, as sent and as the network takes them.
    policies: BTreeMap<String, (rpc::PolicyRules, Arc<PolicyRuleSet>)>,
    /// By id.
    peers: BTreeMap<String, PeerSet>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<ServerPolicies>,
    /// Pieces of a change whose last piece has not come.
    pieces: Vec<PolicyChange>,
    /// Their bytes.
    collected: usize,
    /// Why a change was left out. What the server says of differences to it means nothing; a snapshot says everything.
    missed: Option<Arc<Unreadable>>,
    /// The server of this link has spoken of policies.
    heard: bool,
    /// Addresses of the pods that are on the network, by uid.
    attached: BTreeMap<String, Vec<IpAddr>>,
    /// Counts changes of what should be in the kernel.
    version: u64,
    /// The version that was last kept in the checkpoint.
    kept: u64,
}

/// How far the kernel is.
#[derive(Clone, Debug, Default)]
struct Programmed {
    version: u64,
    /// Why a later version is not there.
    refusal: Option<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    state: Mutex<State>,
    wanted: watch::Sender<u64>,
    programmed: watch::Sender<Programmed>,
}

impl Policies {
    /// A new link: its first message will say everything.
    pub(crate) fn link_opened(&self) {
        let mut state = self.state.lock();
        state.drop_pieces();
        state.heard = false;
    }

    /// Takes what a server says. A change that cannot be read, or is too large, is left out as a whole, with all the
    /// differences that follow it: no pod starts from there on until a snapshot has come.
    pub(crate) fn apply(&self, change: PolicyChange) -> Result<(), Arc<Unreadable>> {
        self.apply_within(change, LARGEST_CHANGE)
    }

    fn apply_within(&self, change: PolicyChange, most: usize) -> Result<(), Arc<Unreadable>> {
        let mut state = self.state.lock();
        state.heard = true;
        if change.snapshot {
            state.drop_pieces();
            state.missed = None;
        } else if state.missed.is_some() {
            return Ok(());
        }
        state.collected = state.collected.saturating_add(change.encoded_len());
        if state.collected > most {
            return Err(state.miss(Unreadable(format!("they have more than {most} bytes"))));
        }
        let more = change.more;
        state.pieces.push(change);
        if more {
            return Ok(());
        }
        let pieces = state.drop_pieces();
        let mut known = state.known.clone().unwrap_or_default();
        let taken = pieces.into_iter().try_for_each(|piece| known.take(piece));
        taken.map_err(|error| state.miss(error))?;
        state.known = Some(known);
        self.changed(state);
        Ok(())
    }

    /// The server has said everything. One that knows nothing of policies has none.
    pub(crate) fn synced(&self) {
        let mut state = self.state.lock();
        if !state.heard {
            state.known = Some(ServerPolicies::default());
            state.missed = None;
            self.changed(state);
        }
    }

    fn changed(&self, mut state: parking_lot::MutexGuard<'_, State>) -> u64 {
        state.version += 1;
        self.wanted.send_replace(state.version);
        state.version
    }

    /// Isolates a pod that has just been attached, as its policies say; answers when the kernel does it. Until then no
    /// container of it may start.
    pub(crate) async fn isolate(
        &self,
        uid: &str,
        addresses: Vec<IpAddr>,
    ) -> Result<(), NotIsolated> {
        let version = {
            let mut state = self.state.lock();
            state.attached.insert(uid.to_owned(), addresses);
            if let Some(why) = state.missed.clone() {
                self.changed(state);
                return Err(NotIsolated::Missed(why));
            }
            self.changed(state)
        };
        let mut programmed = self.programmed.subscribe();
        let in_force = programmed.wait_for(|programmed| programmed.version >= version);
        if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, in_force).await {
            return Ok(());
        }
        if self.state.lock().known.is_none() {
            return Err(NotIsolated::Unknown);
        }
        let refusal = self.programmed.borrow().refusal.clone();
        Err(refusal.map_or(NotIsolated::Late, NotIsolated::Refused))
    }

    /// The addresses of a pod that is on the network.
    pub(crate) fn addresses(&self, uid: &str) -> Option<Vec<IpAddr>> {
        self.state.lock().attached.get(uid).cloned()
    }

    /// A pod is about to give its addresses back.
    pub(crate) fn forget(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.attached.remove(uid).is_some() {
            self.changed(state);
        }
    }

    /// Keeps the kernel as it should be; begins with the pods that an earlier agent attached.
    pub(crate) async fn run(
        self: Arc<Self>,
        rules: Arc<dyn PolicyRules>,
        attached: BTreeMap<String, Vec<IpAddr>>,
    ) {
        let mut wanted = self.wanted.subscribe();
        {
            let mut state = self.state.lock();
            for (uid, addresses) in attached {
                state.attached.entry(uid).or_insert(addresses);
            }
            self.changed(state);
        }
        loop {
            wanted.mark_unchanged();
            let mut refused = false;
            if let Some((version, desired)) = self.desired() {
                let refusal = rules.sync(desired).await.err();
                let refusal = refusal.map(|error| gantry_cri::words(&error));
                if let Some(error) = &refusal {
                    METRICS.policy_failures.inc();
                    tracing::warn!(error, "programming network policies; trying again");
                    refused = true;
                }
                self.programmed.send_modify(|programmed| {
                    if refusal.is_none() {
                        programmed.version = version;
                    }
                    programmed.refusal = refusal;
                });
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if refused => {}
            }
        }
    }

    /// What the kernel should hold, when that is known.
    fn desired(&self) -> Option<(u64, NodePolicies)> {
        let state = self.state.lock();
        let known = state.known.as_ref()?;
        let pods = known.pods.values().filter_map(|pod| {
            let addresses = state.attached.get(&pod.uid)?.clone();
            Some((pod.uid.clone(), isolated(pod, addresses)))
        });
        let policies = known.policies.iter();
        let desired = NodePolicies {
            pods: pods.collect(),
            policies: policies
                .map(|(uid, (_, rules))| (uid.clone(), rules.clone()))
                .collect(),
            peers: known.peers.clone(),
        };
        Some((state.version, desired))
    }

    /// Everything that is known as one message, unless it is as it was when last asked.
    pub(crate) fn news_for_checkpoint(&self) -> Option<PolicyChange> {
        let mut state = self.state.lock();
        if state.kept == state.version {
            return None;
        }
        let snapshot = state.known.as_ref()?.snapshot();
        state.kept = state.version;
        Some(snapshot)
    }
}

#[async_trait]
impl PodIsolation for Policies {
    async fn isolate(&self, uid: &str, addresses: Vec<IpAddr>) -> Result<(), traits::NotIsolated> {
        let isolated = Self::isolate(self, uid, addresses).await;
        isolated.map_err(|error| traits::NotIsolated(error.to_string()))
    }

    fn forget(&self, uid: &str) {
        Self::forget(self, uid);
    }
}

impl State {
    /// Lets go of the pieces that have come.
    fn drop_pieces(&mut self) -> Vec<PolicyChange> {
        self.collected = 0;
        std::mem::take(&mut self.pieces)
    }

    /// Leaves out the change whose pieces have come.
    fn miss(&mut self, why: Unreadable) -> Arc<Unreadable> {
        self.drop_pieces();
        let why = Arc::new(why);
        self.missed = Some(why.clone());
        why
    }
}

impl ServerPolicies {
    fn take(&mut self, change: PolicyChange) -> Result<(), Unreadable> {
        if change.snapshot {
            *self = Self::default();
        }
        self.revision = self.revision.max(change.revision);
        for set in change.peers {
            if set.deleted {
                self.peers.remove(&set.id);
                continue;
            }
            let known = self.peers.entry(set.id).or_default();
            known.with_ports = set.with_ports;
            for peer in &set.removed {
                known.peers.remove(&read_peer(peer)?);
            }
            for peer in &set.added {
                known.peers.insert(read_peer(peer)?);
            }
        }
        for policy in change.policies {
            if policy.deleted {
                self.policies.remove(&policy.uid);
                continue;
            }
            let rules = PolicyRuleSet {
                ingress: policy.ingress.iter().map(rule).collect::<Result<_, _>>()?,
                egress: policy.egress.iter().map(rule).collect::<Result<_, _>>()?,
            };
            self.policies
                .insert(policy.uid.clone(), (policy, Arc::new(rules)));
        }
        for pod in change.pods {
            if pod.deleted {
                self.pods.remove(&pod.uid);
            } else {
                self.pods.insert(pod.uid.clone(), pod);
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> PolicyChange {
        let peers = self.peers.iter().map(|(id, set)| rpc::PeerSetChange {
            id: id.clone(),
            deleted: false,
            with_ports: set.with_ports,
            added: set.peers.iter().map(write_peer).collect(),
            removed: Vec::new(),
        });
        PolicyChange {
            revision: self.revision,
            snapshot: true,
            more: false,
            peers: peers.collect(),
            policies: self
                .policies
                .values()
                .map(|(policy, _)| policy.clone())
                .collect(),
            pods: self.pods.values().cloned().collect(),
        }
    }
}

fn isolated(pod: &rpc::PodIsolation, addresses: Vec<IpAddr>) -> IsolatedPod {
    let port = |port: &rpc::NamedPort| {
        let number = u16::try_from(port.number).ok()?;
        Some((protocol(port.protocol())?, port.name.clone(), number))
    };
    IsolatedPod {
        addresses,
        ingress: pod.ingress,
        egress: pod.egress,
        policies: pod.policies.iter().cloned().collect(),
        ports: pod.ports.iter().filter_map(port).collect::<BTreeSet<_>>(),
    }
}

fn read_peer(peer: &rpc::Peer) -> Result<PolicyPeer, Unreadable> {
    let bytes: &[u8] = &peer.address;
    let address = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6)
    } else {
        return Err(Unreadable(format!(
            "an address has {} bytes instead of 4 or 16",
            bytes.len()
        )));
    };
    Ok((address, number(peer.port)?))
}

fn write_peer((address, port): &PolicyPeer) -> rpc::Peer {
    let address = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    rpc::Peer {
        address: address.into(),
        port: (*port).into(),
    }
}

fn number(port: u32) -> Result<u16, Unreadable> {
    u16::try_from(port).map_err(|_| Unreadable(format!("{port} is not the number of a port")))
}

fn protocol(protocol: rpc::Protocol) -> Option<Protocol> {
    match protocol {
        rpc::Protocol::Unspecified => None,
        rpc::Protocol::Tcp => Some(Protocol::Tcp),
        rpc::Protocol::Udp => Some(Protocol::Udp),
        rpc::Protocol::Sctp => Some(Protocol::Sctp),
    }
}

fn rule(rule: &rpc::PolicyRule) -> Result<PolicyRule, Unreadable> {
    let block = |block: &String| {
        block
            .parse()
            .map_err(|error| Unreadable(format!("the block \"{block}\": {error}")))
    };
    let peers = match rule.anyone {
        true => PolicyPeers::Anyone,
        false => PolicyPeers::Of {
            sets: rule.peers.clone(),
            blocks: rule.blocks.iter().map(block).collect::<Result<_, _>>()?,
        },
    };
    let ports = match rule.any_port {
        true => None,
        false => Some(rule.ports.iter().map(port).collect::<Result<_, _>>()?),
    };
    Ok(PolicyRule { peers, ports })
}

fn port(port: &rpc::PolicyPort) -> Result<PolicyPort, Unreadable> {
    let protocol = protocol(port.protocol())
        .ok_or_else(|| Unreadable(format!("protocol {} of a port", port.protocol)))?;
    Ok(match &port.ports {
        Some(Ports::All(_)) => PolicyPort::All(protocol),
        Some(Ports::Range(range)) => {
            PolicyPort::Range(protocol, number(range.first)?, number(range.last)?)
        }
        Some(Ports::Name(name)) => PolicyPort::Named(protocol, name.clone()),
        Some(Ports::OfPeer(_)) => PolicyPort::OfPeer(protocol),
        None => return Err(Unreadable("a port without a number or name".to_owned())),
    })
}

#[cfg(test)]
mod tests;
