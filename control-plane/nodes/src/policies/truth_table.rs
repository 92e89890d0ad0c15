//! The truth table over the compiled form.

#[path = "../../../../e2e/src/policy_cases/mod.rs"]
#[allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "the table is shared with others"
)]
pub(super) mod policy_cases;

use std::net::IpAddr;

use gantry_rpc::node::{self as rpc, Protocol, policy_port::Ports};
use ipnet::IpNet;

use super::delivery;
use super::index::Index;
use super::tests::{Told, compiled, facts, pod_json};
use policy_cases::{Case, Probe, Speaks};

impl Told {
    /// Whether a pod of this node may speak with `peer` in one direction.
    fn allows(
        &self,
        pod: &str,
        ingress: bool,
        own: IpAddr,
        peer: IpAddr,
        speaks: Speaks,
        port: u16,
    ) -> bool {
        let Some(isolation) = self.pods.get(pod) else {
            return true;
        };
        let isolated = if ingress {
            isolation.ingress
        } else {
            isolation.egress
        };
        let destination = if ingress { own } else { peer };
        let allows = |rule: &rpc::PolicyRule| {
            let with_port =
                |set: &String, port: u16| self.peers[set].contains(&(peer, port.into()));
            let in_block = |block: &String| block.parse::<IpNet>().unwrap().contains(&peer);
            let of_peers = rule.anyone
                || rule.peers.iter().any(|set| with_port(set, 0))
                || rule.blocks.iter().any(in_block);
            if rule.any_port {
                return of_peers;
            }
            rule.ports.iter().any(|allowed| {
                let same = match speaks {
                    Speaks::Tcp => allowed.protocol() == Protocol::Tcp,
                    Speaks::Udp => allowed.protocol() == Protocol::Udp,
                    Speaks::Icmp => false,
                };
                same && match allowed.ports.as_ref().unwrap() {
                    Ports::All(_) => of_peers,
                    Ports::Range(range) => {
                        of_peers && (range.first..=range.last).contains(&u32::from(port))
                    }
                    Ports::Name(name) => {
                        let named = |own: &rpc::NamedPort| {
                            own.name == *name
                                && own.protocol == allowed.protocol
                                && own.number == u32::from(port)
                        };
                        of_peers && isolation.ports.iter().any(named)
                    }
                    Ports::OfPeer(_) => {
                        assert_eq!(destination, peer, "a peer's port is the destination's");
                        rule.peers.iter().any(|set| with_port(set, port))
                    }
                }
            })
        };
        !isolated
            || isolation.policies.iter().any(|uid| {
                let policy = &self.policies[uid];
                let rules = if ingress {
                    &policy.ingress
                } else {
                    &policy.egress
                };
                rules.iter().any(allows)
            })
    }
}

/// Nodes are 0 and 1, each with a pod CIDR; outsiders are elsewhere.
pub(super) fn place(id: &str) -> String {
    if let Some(node) = id.strip_prefix("node-") {
        return format!("192.0.2.{node}");
    }
    if let Some(number) = id.strip_prefix("outside-") {
        return format!("198.51.100.{number}");
    }
    let index = policy_cases::PODS
        .iter()
        .position(|pod| pod.id == id)
        .unwrap();
    format!("10.244.{}.{}", policy_cases::PODS[index].node, index + 2)
}

fn place_6(id: &str) -> String {
    format!("fd00::{}", place(id).replace('.', ":"))
}

pub(super) fn world(place: &dyn Fn(&str) -> String) -> Index {
    let mut index = Index::default();
    for (name, team) in policy_cases::NAMESPACES {
        let labels = [("team", team), ("kubernetes.io/metadata.name", name)];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        index.set_namespace(name, Some(labels.into()));
    }
    for pod in policy_cases::PODS {
        let json = pod_json(
            pod.id,
            pod.app,
            &format!("n{}", pod.node),
            pod.http,
            Some(place(pod.id)),
        );
        let (namespace, name) = pod.id.split_once('/').unwrap();
        index.set_pod(namespace, name, Some(facts(&json)));
    }
    index
}

/// The verdict of both ends' nodes.
fn verdict(index: &Index, probe: &Probe, place: &dyn Fn(&str) -> String) -> bool {
    let pod = |id: &str| policy_cases::PODS.iter().find(|pod| pod.id == id).copied();
    let address = |id: &str| place(id).parse::<IpAddr>().unwrap();
    let (from, to) = (address(probe.from), address(probe.to));
    let same_node = |id: &str, node: usize| id == format!("node-{node}");
    let judge = |id: &str, ingress: bool, own, peer, other: &str| {
        let Some(pod) = pod(id) else { return true };
        // These never meet the node's rules.
        if probe.from == probe.to || same_node(other, pod.node) {
            return true;
        }
        let mut told = Told::default();
        told.take(delivery::pieces(
            index.view(&format!("n{}", pod.node)).snapshot(),
        ));
        told.allows(
            &id.replace('/', "-"),
            ingress,
            own,
            peer,
            probe.speaks,
            probe.port,
        )
    };
    judge(probe.from, false, from, to, probe.to) && judge(probe.to, true, to, from, probe.from)
}

fn check(case: &Case, place: &dyn Fn(&str) -> String) {
    let mut index = world(place);
    for (number, (namespace, spec)) in case.policies.iter().enumerate() {
        let name = format!("p{number}");
        index.set_policy(namespace, &name, Some(compiled(namespace, &name, spec)));
    }
    for probe in &case.probes {
        assert_eq!(
            verdict(&index, probe, place),
            probe.allowed,
            "{}: {probe:?}",
            case.name
        );
    }
}

#[test]
fn the_truth_table_holds_over_the_compiled_form() {
    let mut lines = 0;
    for place in [&place as &dyn Fn(&str) -> String, &place_6] {
        for case in policy_cases::cases(place) {
            check(&case, place);
            lines += case.probes.len();
        }
    }
    assert!(lines >= 2 * 40, "{lines}");
}
