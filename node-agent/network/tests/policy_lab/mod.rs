//! One isolated pod in the lab.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use gantry_network::{
    IsolatedPod, NodePolicies, PeerSet, PolicyPeers, PolicyPort, PolicyRule, PolicyRuleSet,
    Protocol,
};

use crate::lab::{Lab, Pod};

fn addresses(pods: &[&Pod]) -> PeerSet {
    PeerSet {
        with_ports: false,
        peers: pods.iter().map(|pod| (IpAddr::from(pod.ip), 0)).collect(),
    }
}

fn isolated(pod: &Pod) -> IsolatedPod {
    IsolatedPod {
        addresses: vec![pod.ip.into()],
        ingress: true,
        egress: true,
        policies: ["p".to_owned()].into(),
        ports: BTreeSet::new(),
    }
}

/// One pod that may only be reached by `clients` on a port.
pub(crate) fn reached_by(pod: &Pod, clients: &[&Pod], port: u16) -> NodePolicies {
    let rule = PolicyRule {
        peers: PolicyPeers::Of {
            sets: vec!["clients".to_owned()],
            blocks: vec![],
        },
        ports: Some(vec![PolicyPort::Range(Protocol::Tcp, port, port)]),
    };
    let rules = PolicyRuleSet {
        ingress: vec![rule],
        egress: vec![],
    };
    NodePolicies {
        pods: [("web".to_owned(), isolated(pod))].into(),
        policies: [("p".to_owned(), Arc::new(rules))].into(),
        peers: [("clients".to_owned(), addresses(clients))].into(),
    }
}

/// UDP datagrams that a pod has taken in.
pub(crate) fn received(lab: &Lab, pod: &Pod) -> u64 {
    let counters = lab.inside(&pod.netns, || {
        std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap()
    });
    let udp = counters
        .lines()
        .filter(|line| line.starts_with("Udp:"))
        .nth(1)
        .unwrap();
    udp.split(' ').nth(1).unwrap().parse().unwrap()
}
