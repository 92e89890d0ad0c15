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

use gantry_network::{
    IsolatedPod, NodePolicies, PeerSet, PolicyPeer, PolicyPeers, PolicyPort, PolicyRule,
    PolicyRuleSet, PolicyRules, Protocol,
};
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

/// As the server says it.
#[derive(Clone, Debug, Default)]
struct Known {
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
    known: Option<Known>,
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
            state.known = Some(Known::default());
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
                let refusal = refusal.map(|error| crate::pod::words(&error));
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

impl Known {
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
mod tests {
    use gantry_network::FakePolicyRules;

    use super::*;

    fn change() -> PolicyChange {
        let rule = rpc::PolicyRule {
            peers: vec!["web".to_owned()],
            blocks: vec!["192.0.2.0/24".to_owned()],
            ports: vec![rpc::PolicyPort {
                protocol: rpc::Protocol::Tcp.into(),
                ports: Some(Ports::Range(rpc::PortRange {
                    first: 80,
                    last: 81,
                })),
            }],
            ..rpc::PolicyRule::default()
        };
        PolicyChange {
            revision: 7,
            snapshot: true,
            more: false,
            peers: vec![peers(&[[10, 0, 0, 1], [10, 0, 0, 2]], &[])],
            policies: vec![rpc::PolicyRules {
                uid: "policy".to_owned(),
                ingress: vec![rule],
                ..rpc::PolicyRules::default()
            }],
            pods: vec![pod("one")],
        }
    }

    fn pod(uid: &str) -> rpc::PodIsolation {
        rpc::PodIsolation {
            uid: uid.to_owned(),
            ingress: true,
            policies: vec!["policy".to_owned()],
            ports: vec![rpc::NamedPort {
                name: "http".to_owned(),
                protocol: rpc::Protocol::Tcp.into(),
                number: 8080,
            }],
            ..rpc::PodIsolation::default()
        }
    }

    fn peers(added: &[[u8; 4]], removed: &[[u8; 4]]) -> rpc::PeerSetChange {
        let peers = |addresses: &[[u8; 4]]| {
            let peer = |address: &[u8; 4]| write_peer(&(IpAddr::from(*address), 0));
            addresses.iter().map(peer).collect()
        };
        rpc::PeerSetChange {
            id: "web".to_owned(),
            added: peers(added),
            removed: peers(removed),
            ..rpc::PeerSetChange::default()
        }
    }

    fn address(last: u8) -> IpAddr {
        [10, 1, 0, last].into()
    }

    /// Policies with a kernel in memory.
    fn running(policies: &Arc<Policies>) -> (Arc<FakePolicyRules>, tokio::task::JoinHandle<()>) {
        let rules = Arc::new(FakePolicyRules::default());
        let attached = BTreeMap::from([("earlier".to_owned(), vec![address(9)])]);
        let task = tokio::spawn(policies.clone().run(rules.clone(), attached));
        (rules, task)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_isolated_when_it_is_attached_and_its_policies_are_known() {
        let policies = Arc::new(Policies::default());
        let (rules, _task) = running(&policies);
        let error = policies.isolate("one", vec![address(1)]).await;
        assert!(matches!(error, Err(NotIsolated::Unknown)), "{error:?}");
        policies.apply(change()).unwrap();
        policies.isolate("one", vec![address(1)]).await.unwrap();
        let programmed = rules.programmed();
        let one = &programmed.pods["one"];
        assert_eq!(
            (one.addresses.as_slice(), one.ingress, one.egress),
            (&[address(1)][..], true, false)
        );
        assert_eq!(one.ports, [(Protocol::Tcp, "http".to_owned(), 8080)].into());
        let rule = &programmed.policies["policy"].ingress[0];
        assert_eq!(
            rule.ports,
            Some(vec![PolicyPort::Range(Protocol::Tcp, 80, 81)])
        );
        assert_eq!(programmed.peers["web"].peers.len(), 2);
        policies.isolate("two", vec![address(2)]).await.unwrap();
        assert_eq!(rules.programmed().pods.len(), 1, "no policy is about it");
        policies.forget("one");
        policies.isolate("three", vec![address(1)]).await.unwrap();
        assert!(
            rules.programmed().pods.is_empty(),
            "the address is another pod's now"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn differences_follow_the_snapshot_and_a_new_link_begins_with_another() {
        let policies = Arc::new(Policies::default());
        let (rules, _task) = running(&policies);
        policies.apply(change()).unwrap();
        let more = PolicyChange {
            more: true,
            peers: vec![peers(&[[10, 0, 0, 3]], &[[10, 0, 0, 1]])],
            ..PolicyChange::default()
        };
        let last = PolicyChange {
            pods: vec![pod("earlier")],
            ..PolicyChange::default()
        };
        policies.apply(more.clone()).unwrap();
        policies.isolate("one", vec![address(1)]).await.unwrap();
        assert!(!rules.programmed().pods.contains_key("earlier"));
        assert!(
            rules.programmed().peers["web"]
                .peers
                .contains(&([10, 0, 0, 1].into(), 0)),
            "nothing holds before the last piece"
        );
        policies.apply(last).unwrap();
        policies.isolate("one", vec![address(1)]).await.unwrap();
        let programmed = rules.programmed();
        assert_eq!(programmed.pods["earlier"].addresses, [address(9)]);
        let expected = [[10, 0, 0, 2], [10, 0, 0, 3]].map(|ip| (IpAddr::from(ip), 0));
        assert_eq!(
            programmed.peers["web"].peers,
            expected.into_iter().collect()
        );

        policies.apply(more).unwrap();
        policies.link_opened();
        policies.isolate("one", vec![address(1)]).await.unwrap();
        assert_eq!(
            rules.programmed(),
            programmed,
            "a link that is lost changes nothing"
        );
        let nothing = PolicyChange {
            snapshot: true,
            ..PolicyChange::default()
        };
        policies.apply(nothing).unwrap();
        policies.synced();
        policies.isolate("one", vec![address(1)]).await.unwrap();
        assert_eq!(rules.programmed(), NodePolicies::default());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_refuses_is_said_and_tried_again() {
        let policies = Arc::new(Policies::default());
        let (rules, _task) = running(&policies);
        policies.apply(change()).unwrap();
        rules.refuse(Some("no room"));
        let failures = METRICS.policy_failures.get();
        let error = policies.isolate("one", vec![address(1)]).await.unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
        assert!(METRICS.policy_failures.get() > failures);
        rules.refuse(None);
        policies.isolate("one", vec![address(1)]).await.unwrap();
        assert!(rules.programmed().pods.contains_key("one"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_policies_has_none() {
        let policies = Arc::new(Policies::default());
        let (rules, _task) = running(&policies);
        policies.link_opened();
        policies.synced();
        policies.isolate("one", vec![address(1)]).await.unwrap();
        assert_eq!(rules.programmed(), NodePolicies::default());
    }

    #[test]
    fn what_is_kept_for_the_next_start_says_the_same() {
        let policies = Policies::default();
        assert!(policies.news_for_checkpoint().is_none(), "nothing is known");
        policies.apply(change()).unwrap();
        let kept = policies.news_for_checkpoint().unwrap();
        assert_eq!(kept, change());
        assert!(policies.news_for_checkpoint().is_none(), "nothing new");
        let later = Policies::default();
        later.apply(kept).unwrap();
        assert_eq!(later.desired().unwrap().1, policies.desired().unwrap().1);
    }

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let policies = Policies::default();
        policies.apply(change()).unwrap();
        let before = policies.desired();
        let broken = |break_it: fn(&mut PolicyChange)| {
            let mut change = change();
            break_it(&mut change);
            policies.apply(change).unwrap_err().to_string()
        };
        let words = broken(|change| change.peers[0].added[0].address = vec![1, 2, 3].into());
        assert!(words.contains("3 bytes"), "{words}");
        let words = broken(|change| change.policies[0].ingress[0].blocks[0] = "x".to_owned());
        assert!(words.contains("\"x\""), "{words}");
        let words = broken(|change| change.policies[0].ingress[0].ports[0].protocol = 99);
        assert!(words.contains("protocol 99"), "{words}");
        assert_eq!(policies.desired(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_change_that_was_left_out_only_a_snapshot_counts() {
        let policies = Arc::new(Policies::default());
        let (rules, _task) = running(&policies);
        policies.apply(change()).unwrap();
        policies.isolate("one", vec![address(1)]).await.unwrap();
        let broken = PolicyChange {
            peers: vec![rpc::PeerSetChange {
                added: vec![rpc::Peer::default()],
                ..rpc::PeerSetChange::default()
            }],
            pods: vec![pod("two")],
            ..PolicyChange::default()
        };
        policies.apply(broken).unwrap_err();
        let difference = PolicyChange {
            pods: vec![pod("three")],
            ..PolicyChange::default()
        };
        policies.apply(difference).unwrap();
        let error = policies.isolate("two", vec![address(2)]).await.unwrap_err();
        assert!(
            matches!(&error, NotIsolated::Missed(_)) && error.to_string().contains("0 bytes"),
            "nobody knows what isolates it: {error}"
        );
        assert!(rules.programmed().pods.contains_key("one"), "it stays");
        let mut whole = change();
        whole.pods.push(pod("two"));
        policies.apply(whole).unwrap();
        policies.isolate("two", vec![address(2)]).await.unwrap();
        policies.isolate("three", vec![address(3)]).await.unwrap();
        let isolated: Vec<String> = rules.programmed().pods.into_keys().collect();
        assert_eq!(
            isolated,
            ["one", "two"],
            "the difference was to something else"
        );
    }

    #[test]
    fn what_is_collected_is_bounded_and_nothing_of_it_holds() {
        let policies = Policies::default();
        let piece = |snapshot, more| PolicyChange {
            snapshot,
            more,
            peers: vec![peers(&[[10, 0, 0, 1]], &[])],
            ..PolicyChange::default()
        };
        let room = 2 * piece(false, true).encoded_len() + piece(true, true).encoded_len();
        let say = |snapshot, more| policies.apply_within(piece(snapshot, more), room);
        say(true, true).unwrap();
        say(false, true).unwrap();
        say(false, false).unwrap();
        assert!(policies.desired().is_some(), "so many have room");
        let before = policies.desired();
        say(true, true).unwrap();
        say(false, true).unwrap();
        say(false, true).unwrap();
        let words = say(false, true).unwrap_err().to_string();
        assert!(words.contains("bytes"), "{words}");
        assert!(policies.state.lock().pieces.is_empty());
        say(false, false).unwrap();
        assert_eq!(policies.desired(), before, "not the rest alone");
        say(true, false).unwrap();
        assert_ne!(policies.desired(), before);
    }
}
