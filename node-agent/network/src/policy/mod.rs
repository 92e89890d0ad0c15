//! Policies in nftables: a pure [`plan`] of what should be there, a [`script`] of the difference, one transaction.
//!
//! ```text
//! forward hook: a packet's connection, by its original source and the address that replies come from
//!   egress_4/6:  source      -> chain pod_egress_UID  --jump--> policy_egress_P ...  any accepts, else drop
//!   ingress_4/6: destination -> chain pod_ingress_UID --jump--> policy_ingress_P ... any accepts, else drop
//! ```
//!
//! **Connections, not packets, are judged**: rules look at the connection tracking entry, which is the same for requests
//! and replies and says where the packets really go, behind services' translations. So a reply needs no rule of its own,
//! a change of policies takes effect on connections that exist (what is no longer allowed stops, in both directions;
//! what still is goes on), and nothing has to be remembered or flushed.
//!
//! A rule whose peers and ports are many is two chains, of its ports and then of its peers, so that it is their sum in rules
//! and not their product, in the kernel's memory as for each packet. All policies of a node together have a bound, in which
//! each pod that a policy allows something is a rule; what is beyond it isolates its pods and allows nothing. A policy that
//! allows nothing in a direction has no chain there: `drop` at the end of the pod's is all there is to it.
//!
//! The cluster's DNS is a server on the node, which questions reach by the input hook, untracked: what a pod's egress allows
//! is decided in the plan, and the addresses of those that may not ask are a set that a rule of its own drops.
//!
//! Peers are sets that many rules share; a pod that comes or goes is an element of each set it belongs to. Chains change
//! when policies do, never because of peers.
//!
//! Clients from outside whose address a service hides (`externalTrafficPolicy: Cluster` by way of another node) are seen
//! as the node that they came through, as everywhere in Kubernetes; with `Local` they are seen as themselves.

mod plan;
mod script;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;

use crate::blocking::blocking;
use crate::names::Names;
use crate::nft::Nft;
use crate::nft_programmer::Programmer;
use crate::{
    NetworkError, NodeNetwork, NodePolicies, PolicyPeers, PolicyPort, PolicyRule, PolicyRules,
};

use plan::{Direction, Plan};
use script::{Found, Skeleton};

/// The kernel's names have room for a prefix and this.
const LONGEST_NAME: usize = 128;

/// What tells that a table is there: its family and a chain of it.
const MARKS: [(&str, &str); 2] = [("inet", "ingress"), ("bridge", "from_pods")];

/// Programs the node's policies into the tables `<prefix>-policy` of the families `inet` and `bridge`.
pub struct NftPolicyRules {
    kernel: Arc<Mutex<Kernel>>,
}

struct Kernel {
    programmer: Programmer,
    skeleton: Skeleton,
    tables: Tables,
    /// Policies that were said to have no room for their rules.
    told: BTreeSet<String>,
}

/// The kernel's tables, as far as we know them.
enum Tables {
    /// They may hold anything, for instance what an earlier agent left.
    Unknown,
    /// Nothing was ever isolated: packets pay for nothing, and the kernel need not know all that policies need.
    Absent,
    /// They are there.
    Programmed(Plan),
}

impl NftPolicyRules {
    /// Finds `nft`. The kernel is touched by the first [`PolicyRules::sync`], which takes over our own tables (and nothing
    /// else) in one transaction, so that pods stay isolated while the agent restarts.
    pub fn new(node: &NodeNetwork) -> Result<Self, NetworkError> {
        Self::judging(node, None)
    }

    /// As [`NftPolicyRules::new`], on a node that answers for the cluster's DNS at port 53 of `dns`: pods that are isolated
    /// in egress ask it when a rule allows them to.
    pub fn with_dns(node: &NodeNetwork, dns: Ipv4Addr) -> Result<Self, NetworkError> {
        Self::judging(node, Some(dns))
    }

    fn judging(node: &NodeNetwork, dns: Option<Ipv4Addr>) -> Result<Self, NetworkError> {
        let names = Names::new(node)?;
        let kernel = Kernel {
            programmer: Programmer::new(Nft::find()?),
            skeleton: Skeleton {
                table: names.policy_table(),
                links: names.host_links(),
                gateway: names.gateway(),
                dns,
            },
            tables: Tables::Unknown,
            told: BTreeSet::new(),
        };
        Ok(Self {
            kernel: Arc::new(Mutex::new(kernel)),
        })
    }

    /// Makes sure that the tables are still there: another firewall may have flushed them. Cheap when they are; meant to
    /// be called now and then.
    pub async fn reassert(&self) -> Result<(), NetworkError> {
        let mut kernel = Arc::clone(&self.kernel).lock_owned().await;
        blocking(move || kernel.reassert()).await
    }
}

#[async_trait]
impl PolicyRules for NftPolicyRules {
    async fn sync(&self, desired: NodePolicies) -> Result<(), NetworkError> {
        check(&desired)?;
        let mut kernel = Arc::clone(&self.kernel).lock_owned().await;
        let kernel = blocking(move || {
            let plan = Plan::with_dns(&desired, kernel.skeleton.dns);
            kernel.tell_of(&plan.without_room);
            kernel.program(plan)?;
            Ok(kernel)
        })
        .await?;
        kernel.programmer.retire_when_idle();
        Ok(())
    }
}

impl Kernel {
    /// Says which policies allow nothing because they are too large, when that has changed.
    fn tell_of(&mut self, without_room: &BTreeSet<String>) {
        for policy in without_room.difference(&self.told) {
            tracing::error!(
                policy,
                "the network policies of this node's pods have more rules than there is room for; the policy of this uid is \
                 one of the largest and allows nothing: make it smaller, or spread its pods over more nodes"
            );
        }
        self.told.clone_from(without_room);
    }

    /// Makes the tables equal to the plan: by the difference when what is there is known, from scratch otherwise.
    fn program(&mut self, plan: Plan) -> Result<(), NetworkError> {
        match std::mem::replace(&mut self.tables, Tables::Unknown) {
            Tables::Programmed(now) => {
                let script = script::difference(&self.skeleton, &now, &plan);
                let applied = match script.is_empty() {
                    true => Ok(()),
                    false => self.programmer.apply(&script),
                };
                match applied {
                    Ok(()) => {
                        self.tables = Tables::Programmed(plan);
                        return Ok(());
                    }
                    Err(NetworkError::Nft(words)) => {
                        tracing::warn!(
                            words,
                            table = self.skeleton.table,
                            "the tables of policies are not as they were left"
                        );
                    }
                    Err(other) => return Err(other),
                }
            }
            Tables::Absent if plan.isolated.is_empty() => {
                self.tables = Tables::Absent;
                return Ok(());
            }
            Tables::Unknown if plan.isolated.is_empty() => return self.remove(),
            Tables::Absent | Tables::Unknown => {}
        }
        self.set_up(plan)
    }

    /// Sets up the tables: fills those that are there, or makes them anew should they be of another make.
    fn set_up(&mut self, plan: Plan) -> Result<(), NetworkError> {
        let filled = match self.programmer.names("inet", &self.skeleton.table) {
            None => None,
            Some(listing) => {
                let script = script::take_over(&self.skeleton, &Found::parse(&listing), &plan);
                match self.programmer.apply(&script) {
                    Err(NetworkError::Nft(words)) => {
                        tracing::warn!(
                            words,
                            table = self.skeleton.table,
                            "the tables of policies cannot be taken over; making them anew"
                        );
                        None
                    }
                    other => Some(other?),
                }
            }
        };
        if filled.is_none() {
            let script = script::from_scratch(&self.skeleton, &plan);
            self.programmer.set_up(&script)?;
        }
        tracing::info!(
            table = self.skeleton.table,
            isolated = plan.isolated.len(),
            chains = plan.chains.len(),
            taken_over = filled.is_some(),
            "policies programmed"
        );
        self.tables = Tables::Programmed(plan);
        Ok(())
    }

    /// Removes the tables that are there.
    fn remove(&mut self) -> Result<(), NetworkError> {
        let table = &self.skeleton.table;
        let script: String = MARKS
            .iter()
            .filter(|(family, chain)| self.programmer.has_chain(family, table, chain))
            .map(|(family, _)| format!("delete table {family} {table}\n"))
            .collect();
        if !script.is_empty() {
            self.programmer.apply(&script)?;
        }
        self.tables = Tables::Absent;
        Ok(())
    }

    fn reassert(&mut self) -> Result<(), NetworkError> {
        let Tables::Programmed(plan) = &self.tables else {
            return Ok(());
        };
        let table = &self.skeleton.table;
        let there =
            |(family, chain): &(&str, &str)| self.programmer.has_chain(family, table, chain);
        if MARKS.iter().all(there) {
            return Ok(());
        }
        tracing::warn!(
            table,
            "the tables of policies are gone; setting them up again"
        );
        let plan = plan.clone();
        self.set_up(plan)
    }
}

/// Refuses what cannot be programmed: names that are no names of the kernel, and references to nothing.
pub(crate) fn check(desired: &NodePolicies) -> Result<(), NetworkError> {
    let names = desired
        .pods
        .keys()
        .chain(desired.policies.keys())
        .chain(desired.peers.keys());
    names.map(String::as_str).try_for_each(check_name)?;
    for (uid, pod) in &desired.pods {
        if let Some(name) = pod
            .policies
            .iter()
            .find(|name| !desired.policies.contains_key(*name))
        {
            return Err(refused(format!(
                "pod {uid} is isolated by policy {name}, whose rules are not there"
            )));
        }
    }
    for (name, policy) in &desired.policies {
        for rule in &policy.ingress {
            check_rule(name, Direction::Ingress, rule, desired)?;
        }
        for rule in &policy.egress {
            check_rule(name, Direction::Egress, rule, desired)?;
        }
    }
    Ok(())
}

fn check_rule(
    policy: &str,
    direction: Direction,
    rule: &PolicyRule,
    desired: &NodePolicies,
) -> Result<(), NetworkError> {
    if let PolicyPeers::Of { sets, .. } = &rule.peers
        && let Some(set) = sets.iter().find(|set| !desired.peers.contains_key(*set))
    {
        return Err(refused(format!(
            "policy {policy} refers to the peers {set}, which are not there"
        )));
    }
    for port in rule.ports.iter().flatten() {
        match port {
            PolicyPort::Named(_, name) if direction == Direction::Ingress => check_name(name)?,
            PolicyPort::OfPeer(_) if direction == Direction::Egress => {}
            PolicyPort::Named(..) | PolicyPort::OfPeer(_) => {
                return Err(refused(format!(
                    "policy {policy}: a port is named by its destination, the pod for ingress and the peer for egress"
                )));
            }
            PolicyPort::Range(_, first, last) if first > last => {
                return Err(refused(format!(
                    "policy {policy}: the ports {first}-{last} are none: the first is after the last"
                )));
            }
            PolicyPort::Range(..) | PolicyPort::All(_) => {}
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), NetworkError> {
    let well_formed = !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if well_formed {
        return Ok(());
    }
    Err(refused(format!(
        "the name {name:?}: use 1 to {LONGEST_NAME} letters, digits and '-'"
    )))
}

fn refused(words: String) -> NetworkError {
    NetworkError::Unsupported(format!("network policies: {words}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::{IsolatedPod, PeerSet, PolicyPeer, PolicyRuleSet, Protocol};

    fn rule(peers: PolicyPeers, ports: Option<Vec<PolicyPort>>) -> PolicyRule {
        PolicyRule { peers, ports }
    }

    fn sets(names: &[&str]) -> PolicyPeers {
        PolicyPeers::Of {
            sets: names.iter().map(|name| (*name).to_owned()).collect(),
            blocks: vec![],
        }
    }

    fn pod(addresses: &[&str], policies: &[&str]) -> IsolatedPod {
        IsolatedPod {
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            ingress: true,
            egress: false,
            policies: policies.iter().map(|name| (*name).to_owned()).collect(),
            ports: BTreeSet::new(),
        }
    }

    /// One pod with two addresses, isolated by a policy that allows some and one that allows nothing.
    pub(super) fn policies() -> NodePolicies {
        let web: PeerSet = PeerSet {
            with_ports: false,
            peers: [("10.244.0.7".parse().unwrap(), 0)].into_iter().collect(),
        };
        let named = PeerSet {
            with_ports: true,
            peers: [("10.244.0.7".parse().unwrap(), 8080)]
                .into_iter()
                .collect(),
        };
        let ports = vec![
            PolicyPort::Range(Protocol::Tcp, 8500, 9001),
            PolicyPort::Range(Protocol::Tcp, 80, 80),
            PolicyPort::Range(Protocol::Tcp, 8000, 8999),
            PolicyPort::All(Protocol::Udp),
            PolicyPort::Range(Protocol::Udp, 53, 53),
        ];
        let blocks = ["10.0.0.0/8", "192.0.2.0/24", "::/0"];
        let allow = PolicyRuleSet {
            ingress: vec![
                rule(sets(&["web"]), Some(ports)),
                rule(
                    PolicyPeers::Of {
                        sets: vec![],
                        blocks: blocks.map(|block| block.parse().unwrap()).into(),
                    },
                    None,
                ),
            ],
            egress: vec![rule(
                sets(&["named"]),
                Some(vec![PolicyPort::OfPeer(Protocol::Tcp)]),
            )],
        };
        NodePolicies {
            pods: BTreeMap::from([(
                "one".to_owned(),
                pod(&["10.244.1.2", "fd00::2"], &["allow", "deny"]),
            )]),
            policies: BTreeMap::from([
                ("allow".to_owned(), Arc::new(allow)),
                ("deny".to_owned(), Arc::new(PolicyRuleSet::default())),
            ]),
            peers: BTreeMap::from([("web".to_owned(), web), ("named".to_owned(), named)]),
        }
    }

    /// Adds a policy that names a port, which these pods have.
    pub(super) fn named(desired: &mut NodePolicies, port: &str, pods: &[(&str, u16)]) {
        let named = PolicyPort::Named(Protocol::Tcp, port.to_owned());
        let policy = PolicyRuleSet {
            ingress: vec![rule(PolicyPeers::Anyone, Some(vec![named]))],
            egress: vec![],
        };
        desired
            .policies
            .insert("named".to_owned(), Arc::new(policy));
        for (uid, number) in pods {
            let pod = desired.pods.get_mut(*uid).unwrap();
            pod.policies.insert("named".to_owned());
            pod.ports.insert((Protocol::Tcp, port.to_owned(), *number));
        }
    }

    /// Up to four policies over three sets of peers, and up to four pods, some with a port of a name.
    pub(super) fn any_policies() -> impl Strategy<Value = NodePolicies> {
        let addresses = proptest::collection::btree_set(0u8..6, 0..5);
        let rules = proptest::collection::vec((0usize..4, 0u8..6), 0..3);
        let policy = (rules.clone(), rules);
        let isolated = (
            any::<[bool; 3]>(),
            proptest::collection::btree_set(0usize..4, 0..4),
        );
        (
            proptest::collection::vec(addresses, 3),
            proptest::collection::vec(proptest::option::of(policy), 4),
            proptest::collection::vec(proptest::option::of(isolated), 4),
        )
            .prop_map(|(peers, policies, pods)| {
                let mut desired = NodePolicies::default();
                for (index, members) in peers.iter().enumerate() {
                    let peer = |last: &u8| -> PolicyPeer {
                        let port = if index == 2 { 8080 } else { 0 };
                        match last % 2 {
                            0 => (IpAddr::from([10, 244, 0, *last]), port),
                            _ => (format!("fd00::{last}").parse().unwrap(), port),
                        }
                    };
                    desired.peers.insert(
                        format!("set-{index}"),
                        PeerSet {
                            with_ports: index == 2,
                            peers: members.iter().map(peer).collect(),
                        },
                    );
                }
                let ports = |port: u8, direction| match (port, direction) {
                    (0, _) => None,
                    (1, _) => Some(vec![PolicyPort::Range(Protocol::Tcp, 80, 80)]),
                    (2, _) => Some(vec![PolicyPort::All(Protocol::Sctp)]),
                    // So many that they have a chain of their own.
                    (5, _) => Some(
                        [53, 80, 443, 8080]
                            .map(|port| PolicyPort::Range(Protocol::Tcp, port, port))
                            .into(),
                    ),
                    (_, Direction::Ingress) => Some(vec![PolicyPort::Named(
                        Protocol::Tcp,
                        format!("http{port}"),
                    )]),
                    (_, Direction::Egress) => Some(vec![PolicyPort::OfPeer(Protocol::Udp)]),
                };
                let rules = |rules: &[(usize, u8)], direction| -> Vec<PolicyRule> {
                    let rule_of = |&(set, port): &(usize, u8)| match set {
                        3 => rule(PolicyPeers::Anyone, ports(port, direction)),
                        _ => rule(sets(&[&format!("set-{set}")]), ports(port, direction)),
                    };
                    rules.iter().map(rule_of).collect()
                };
                for (index, policy) in policies.iter().enumerate() {
                    if let Some((ingress, egress)) = policy {
                        let policy = PolicyRuleSet {
                            ingress: rules(ingress, Direction::Ingress),
                            egress: rules(egress, Direction::Egress),
                        };
                        desired
                            .policies
                            .insert(format!("p{index}"), Arc::new(policy));
                    }
                }
                // Peers that no rule refers to go, so that sets come and go as well.
                let mut used = BTreeSet::new();
                for policy in desired.policies.values() {
                    for rule in policy.ingress.iter().chain(&policy.egress) {
                        if let PolicyPeers::Of { sets, .. } = &rule.peers {
                            used.extend(sets.iter().cloned());
                        }
                    }
                }
                desired.peers.retain(|name, _| used.contains(name));
                for (index, isolated) in pods.iter().enumerate() {
                    let Some(([ingress, egress, port], chosen)) = isolated else {
                        continue;
                    };
                    let names = chosen.iter().map(|index| format!("p{index}"));
                    let mut own = pod(
                        &[&format!("10.244.1.{index}"), &format!("fd01::{index}")],
                        &[],
                    );
                    (own.ingress, own.egress) = (*ingress, *egress);
                    own.policies = names
                        .filter(|name| desired.policies.contains_key(name))
                        .collect();
                    if *port {
                        own.ports.insert((
                            Protocol::Tcp,
                            "http".to_owned(),
                            8080 + u16::from(*egress),
                        ));
                    }
                    desired.pods.insert(format!("pod-{index}"), own);
                }
                desired
            })
    }

    #[test]
    fn what_cannot_be_programmed_is_refused_by_name() {
        assert!(check(&policies()).is_ok());
        let broken = |change: fn(&mut NodePolicies)| {
            let mut desired = policies();
            change(&mut desired);
            check(&desired).expect_err("refused").to_string()
        };
        let words = broken(|desired| {
            desired.policies.remove("deny");
        });
        assert!(
            words.contains("pod one") && words.contains("policy deny"),
            "{words}"
        );
        let words = broken(|desired| {
            desired.peers.remove("web");
        });
        assert!(
            words.contains("policy allow") && words.contains("peers web"),
            "{words}"
        );
        let words = broken(|desired| {
            let pod = desired.pods["one"].clone();
            desired.pods.insert("x; flush ruleset".to_owned(), pod);
        });
        assert!(words.contains("x; flush ruleset"), "{words}");
        let words = broken(|desired| {
            let port = PolicyPort::Range(Protocol::Tcp, 9, 3);
            let policy = PolicyRuleSet {
                ingress: vec![rule(PolicyPeers::Anyone, Some(vec![port]))],
                egress: vec![],
            };
            desired.policies.insert("deny".to_owned(), Arc::new(policy));
        });
        assert!(words.contains("9-3"), "{words}");
    }
}
