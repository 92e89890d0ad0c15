use std::sync::Arc;

use super::super::tests::{named, policies};
use super::*;

/// A policy of one ingress rule: so many selections of peers, and so many ports that do not touch.
fn large(sets: usize, ports: u16) -> PolicyRuleSet {
    let rule = PolicyRule {
        peers: PolicyPeers::Of {
            sets: (0..sets).map(|number| format!("s{number}")).collect(),
            blocks: vec![],
        },
        ports: Some(
            (0..ports)
                .map(|number| PolicyPort::Range(Protocol::Tcp, 2 * number + 1, 2 * number + 1))
                .collect(),
        ),
    };
    PolicyRuleSet {
        ingress: vec![rule],
        egress: vec![],
    }
}

/// The policies of [`policies`], and these, which isolate the same pod.
fn with(more: &[(&str, PolicyRuleSet)]) -> NodePolicies {
    let mut desired = policies();
    for (name, rules) in more {
        for rule in &rules.ingress {
            if let PolicyPeers::Of { sets, .. } = &rule.peers {
                desired
                    .peers
                    .extend(sets.iter().map(|set| (set.clone(), PeerSet::default())));
            }
        }
        let name = (*name).to_owned();
        desired.policies.insert(name.clone(), rules.clone().into());
        desired.pods.get_mut("one").unwrap().policies.insert(name);
    }
    desired
}

fn rules(plan: &Plan) -> usize {
    plan.chains.values().map(Vec::len).sum()
}

#[test]
fn many_peers_and_ports_are_added_and_not_multiplied() {
    let plan = Plan::new(&with(&[("many", large(2, 3))]));
    assert_eq!(
        plan.chains["policy_ingress_many"],
        ["jump ports_ingress_many_0"]
    );
    assert_eq!(
        plan.chains["ports_ingress_many_0"],
        [1, 3, 5].map(|port| format!(
            "meta l4proto 6 ct reply proto-src {port} goto peers_ingress_many_0"
        ))
    );
    assert_eq!(
        plan.chains["peers_ingress_many_0"],
        [
            "ct original ip saddr @peers_s0_4 accept",
            "ct original ip6 saddr @peers_s0_6 accept",
            "ct original ip saddr @peers_s1_4 accept",
            "ct original ip6 saddr @peers_s1_6 accept",
        ]
    );
    let before = rules(&Plan::new(&policies()));
    let plan = Plan::new(&with(&[("many", large(4_000, 4_000))]));
    assert!(plan.without_room.is_empty());
    assert_eq!(
        rules(&plan) - before,
        1 + 1 + 8_000 + 4_000,
        "and the pod's jump"
    );
}

#[test]
fn policies_that_are_too_large_allow_nothing_and_harm_no_others() {
    let more = [
        ("huge", large(MOST_RULES, 1)),
        ("large-a", large(6_000, 1)),
        ("large-b", large(6_000, 1)),
    ];
    let plan = Plan::new(&with(&more));
    assert!(rules(&plan) <= MOST_RULES);
    let closed: Vec<&str> = plan.without_room.iter().map(String::as_str).collect();
    assert_eq!(closed, ["huge", "large-b"]);
    for name in closed {
        assert!(!plan.chains.contains_key(&format!("policy_ingress_{name}")));
        assert!(!plan.chains.contains_key(&format!("peers_ingress_{name}_0")));
    }
    assert_eq!(
        plan.chains["pod_ingress_one"].last().unwrap(),
        "counter drop"
    );
    assert_eq!(
        plan.chains["policy_ingress_allow"],
        Plan::new(&policies()).chains["policy_ingress_allow"]
    );
}

/// So many pods, isolated in both directions by the same policies, of the same rules.
fn crowd(pods: usize, policies: usize, rules: &PolicyRuleSet) -> NodePolicies {
    let names: BTreeSet<String> = (0..policies).map(|number| format!("p{number}")).collect();
    let pod = |number: usize| IsolatedPod {
        addresses: vec![IpAddr::from([10, 244, 1, number as u8])],
        ingress: true,
        egress: true,
        policies: names.clone(),
        ports: BTreeSet::new(),
    };
    let rules = Arc::new(rules.clone());
    NodePolicies {
        pods: (0..pods)
            .map(|number| (format!("u{number}"), pod(number)))
            .collect(),
        policies: names
            .iter()
            .map(|name| (name.clone(), rules.clone()))
            .collect(),
        peers: BTreeMap::new(),
    }
}

#[test]
fn policies_that_allow_nothing_cost_nothing_however_many_they_are() {
    let plan = Plan::new(&crowd(110, 2_000, &PolicyRuleSet::default()));
    assert_eq!(rules(&plan), 2 * 110);
    assert_eq!(plan.chains.len(), 2 * 110);
    for rules in plan.chains.values() {
        assert_eq!(*rules, ["counter drop"]);
    }
    assert_eq!(plan.verdicts.len(), 2 * 110);
    assert!(plan.without_room.is_empty());
}

#[test]
fn the_rules_that_lead_pods_to_policies_are_counted() {
    let anyone = PolicyRule {
        peers: PolicyPeers::Anyone,
        ports: None,
    };
    let allow = PolicyRuleSet {
        ingress: vec![anyone],
        egress: vec![],
    };
    let few = Plan::new(&crowd(110, 20, &allow));
    assert!(few.without_room.is_empty());
    assert_eq!(few.chains["pod_ingress_u0"].len(), 20 + 1);
    assert_eq!(few.chains["pod_egress_u0"], ["counter drop"]);
    let plan = Plan::new(&crowd(110, 2_000, &allow));
    assert!(!plan.without_room.is_empty());
    assert!(rules(&plan) <= MOST_RULES + 2 * 110);
    for chain in plan.chains.values().flatten() {
        if let Some(to) = chain.strip_prefix("jump ") {
            assert!(plan.chains.contains_key(to), "{to}");
        }
    }
    let u0 = &plan.chains["pod_ingress_u0"];
    assert_eq!(u0.len(), 2_000 - plan.without_room.len() + 1);
    assert_eq!(u0.last().unwrap(), "counter drop");
}

#[test]
fn peers_of_policies_without_room_are_not_in_the_kernel() {
    let plan = Plan::new(&with(&[("huge", large(MOST_RULES, 1))]));
    let sets: Vec<&String> = plan.sets.keys().collect();
    assert_eq!(sets, ["peers_web", "ports_named"]);
}

#[test]
fn what_a_policy_becomes_is_never_more_than_was_reckoned() {
    let mut desired = with(&[("many", large(20, 30)), ("few", large(1, 1))]);
    named(&mut desired, "http", &[("one", 8080)]);
    for (name, policy) in &desired.policies {
        let mut plan = Plan::default();
        plan.policy(name, policy, &desired.peers);
        assert!(rules(&plan) <= size(policy), "{name}");
    }
}

#[test]
fn a_pod_is_judged_by_its_policies_in_the_directions_it_is_isolated_in() {
    let plan = Plan::new(&policies());
    assert_eq!(
        plan.chains["pod_ingress_one"],
        ["jump policy_ingress_allow", "counter drop"],
        "one that allows nothing is nowhere to jump to"
    );
    assert!(!plan.chains.contains_key("pod_egress_one"));
    let one: IpAddr = "10.244.1.2".parse().unwrap();
    assert_eq!(plan.verdicts[&(Direction::Ingress, one)], "pod_ingress_one");
    assert!(!plan.verdicts.contains_key(&(Direction::Egress, one)));
    assert_eq!(plan.isolated.len(), 2, "both addresses of the one pod");
}

#[test]
fn rules_speak_of_the_connection_and_of_each_family() {
    let plan = Plan::new(&policies());
    assert_eq!(
        plan.chains["policy_ingress_allow"],
        [
            "ct original ip saddr @peers_web_4 meta l4proto 6 ct reply proto-src 80 accept",
            "ct original ip saddr @peers_web_4 meta l4proto 6 ct reply proto-src 8000-9001 accept",
            "ct original ip saddr @peers_web_4 meta l4proto 17 accept",
            "ct original ip6 saddr @peers_web_6 meta l4proto 6 ct reply proto-src 80 accept",
            "ct original ip6 saddr @peers_web_6 meta l4proto 6 ct reply proto-src 8000-9001 accept",
            "ct original ip6 saddr @peers_web_6 meta l4proto 17 accept",
            "ct original ip saddr { 10.0.0.0/8, 192.0.2.0/24 } accept",
            "meta nfproto ipv6 accept",
        ]
    );
    assert_eq!(
        plan.chains["policy_egress_allow"],
        [
            "meta l4proto 6 ct reply ip saddr . ct reply proto-src @ports_named_4 accept",
            "meta l4proto 6 ct reply ip6 saddr . ct reply proto-src @ports_named_6 accept",
        ]
    );
    assert!(!plan.chains.contains_key("policy_ingress_deny"));
}

#[test]
fn the_clusters_dns_answers_whom_egress_allows_its_port() {
    const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
    let set = |with_ports, port| PeerSet {
        with_ports,
        peers: [(IpAddr::V4(DNS), port)].into_iter().collect(),
    };
    let refused = |peers: PolicyPeers, ports: Option<Vec<PolicyPort>>| -> Vec<u8> {
        let mut desired = policies();
        desired.peers.insert("dns".to_owned(), set(false, 0));
        desired.peers.insert("dns-ports".to_owned(), set(true, 53));
        let rules = PolicyRuleSet {
            ingress: vec![],
            egress: vec![PolicyRule { peers, ports }],
        };
        desired.policies.insert("deny".to_owned(), Arc::new(rules));
        desired.pods.get_mut("one").unwrap().egress = true;
        assert!(Plan::new(&desired).no_dns.is_empty(), "there is none");
        let plan = Plan::with_dns(&desired, Some(DNS));
        let one = Ipv4Addr::new(10, 244, 1, 2);
        assert!(plan.no_dns.iter().all(|(address, _)| *address == one));
        plan.no_dns
            .into_iter()
            .map(|(_, protocol)| protocol)
            .collect()
    };
    let of = |sets: &[&str], blocks: &[&str]| PolicyPeers::Of {
        sets: sets.iter().map(|set| (*set).to_owned()).collect(),
        blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
    };
    let udp = || Some(vec![PolicyPort::Range(Protocol::Udp, 53, 53)]);
    let (none, only_udp, both): ([u8; 0], _, _) = ([], [6], [6, 17]);
    assert_eq!(refused(of(&[], &[]), None), both);
    assert_eq!(refused(PolicyPeers::Anyone, None), none);
    assert_eq!(refused(PolicyPeers::Anyone, udp()), only_udp);
    assert_eq!(refused(of(&[], &["10.96.0.0/12"]), None), none);
    assert_eq!(refused(of(&[], &["10.0.0.0/16"]), None), both);
    assert_eq!(refused(of(&["dns"], &[]), udp()), only_udp);
    assert_eq!(refused(of(&["web"], &[]), udp()), both);
    let other = vec![PolicyPort::Range(Protocol::Udp, 54, 80)];
    assert_eq!(refused(PolicyPeers::Anyone, Some(other)), both);
    let named = vec![PolicyPort::OfPeer(Protocol::Udp)];
    assert_eq!(refused(of(&["dns-ports"], &[]), Some(named)), only_udp);
    let mut desired = policies();
    assert!(
        Plan::with_dns(&desired, Some(DNS)).no_dns.is_empty(),
        "not isolated in egress"
    );
    desired.pods.get_mut("one").unwrap().egress = true;
    assert_eq!(Plan::with_dns(&desired, Some(DNS)).no_dns.len(), 2);
}

#[test]
fn names_of_ports_are_looked_up_with_the_pods_own_address() {
    let mut desired = policies();
    named(&mut desired, "http", &[("one", 8080)]);
    let plan = Plan::new(&desired);
    let ports: Vec<PolicyPeer> = plan.sets["named_tcp_http"]
        .members
        .iter()
        .copied()
        .collect();
    assert_eq!(
        ports,
        [
            ("10.244.1.2".parse().unwrap(), 8080),
            ("fd00::2".parse().unwrap(), 8080)
        ]
    );
    assert_eq!(
        plan.chains["policy_ingress_named"],
        [
            "meta l4proto 6 ct reply ip saddr . ct reply proto-src @named_tcp_http_4 accept",
            "meta l4proto 6 ct reply ip6 saddr . ct reply proto-src @named_tcp_http_6 accept",
        ]
    );
}
