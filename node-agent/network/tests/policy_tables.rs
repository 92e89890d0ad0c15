//! The tables of policies in a real kernel: every difference is taken and leads where a fresh start does, and pods stay
//! isolated whatever happens to the agent or to the tables.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;
mod policy_lab;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use gantry_network::{
    BridgeNetwork, FakePolicyRules, IsolatedPod, NftPolicyRules, NodePolicies, PeerSet,
    PolicyPeers, PolicyPort, PolicyRule, PolicyRuleSet, PolicyRules, Protocol,
};
use lab::{SILENCE, ask, ask_within, command, on_own_machine};
use policy_lab::{reached_by, received};

/// What every [`PolicyRules`] keeps.
async fn contract(rules: &impl PolicyRules) {
    let pod = |policy: &str| IsolatedPod {
        addresses: vec!["10.244.1.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        ingress: true,
        egress: false,
        policies: [policy.to_owned()].into(),
        ports: BTreeSet::new(),
    };
    rules.sync(NodePolicies::default()).await.unwrap();
    let mut desired = NodePolicies {
        pods: [("one".to_owned(), pod("p"))].into(),
        ..NodePolicies::default()
    };
    let error = rules.sync(desired.clone()).await.unwrap_err().to_string();
    assert!(error.contains("policy p"), "{error}");
    desired.policies.insert("p".to_owned(), Arc::default());
    rules.sync(desired.clone()).await.unwrap();
    rules
        .sync(desired.clone())
        .await
        .expect("again, to no effect");
    desired.pods.insert("a b".to_owned(), pod("p"));
    let error = rules.sync(desired.clone()).await.unwrap_err().to_string();
    assert!(error.contains("\"a b\""), "{error}");
    desired.pods.remove("a b");
    rules
        .sync(desired)
        .await
        .expect("a refusal changes nothing");
    rules.sync(NodePolicies::default()).await.unwrap();
}

#[test]
fn the_kernels_rules_keep_the_contract() {
    on_own_machine(async |lab| contract(&NftPolicyRules::new(&lab.node).unwrap()).await);
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    contract(&FakePolicyRules::default()).await;
}

/// What both tables hold, without the counters' values, in an order of its own: the kernel lists chains in the order of
/// their making, which does not matter.
fn tables() -> Vec<String> {
    let mut objects = Vec::new();
    for family in ["inet", "bridge"] {
        let listed = command("nft", &["-s", "list", "table", family, "gt-policy"]);
        let (_, inside) = listed.split_once("{\n").unwrap();
        let (inside, _) = inside.rsplit_once('}').unwrap();
        objects.extend(inside.split("\n\n").map(|object| object.trim().to_owned()));
    }
    objects.sort();
    objects
}

/// What nft prints, it takes: others save and restore the whole ruleset.
fn read_again() {
    let before = tables();
    let file = tempfile::NamedTempFile::new().unwrap();
    let printed = command("nft", &["-s", "list", "ruleset"]);
    std::fs::write(file.path(), format!("flush ruleset\n{printed}")).unwrap();
    command("nft", &["-f", &file.path().to_string_lossy()]);
    assert_eq!(tables(), before);
}

/// A different world for each number: other pods, policies that come and go, peers in both families.
fn numbered(number: u16) -> NodePolicies {
    let mut desired = NodePolicies::default();
    for set in 0..3u16 {
        let members = (0..8u16).filter(|member| (number >> ((member + set) % 7)) & 1 == 1);
        let peers = members.flat_map(|member| {
            let port = if set == 2 { 8000 + member } else { 0 };
            [
                (IpAddr::from([10, 9, set as u8, member as u8]), port),
                (format!("fd09:{set}::{member}").parse().unwrap(), port),
            ]
        });
        let with_ports = set == 2;
        desired.peers.insert(
            format!("s{set}"),
            PeerSet {
                with_ports,
                peers: peers.collect(),
            },
        );
    }
    let of = |sets: &[&str]| PolicyPeers::Of {
        sets: sets.iter().map(|set| (*set).to_owned()).collect(),
        blocks: vec![
            "192.0.2.0/24".parse().unwrap(),
            "fd08::/16".parse().unwrap(),
        ],
    };
    let range = |first| PolicyPort::Range(Protocol::Tcp, first, first + number % 3);
    let rules = [
        PolicyRule {
            peers: of(&["s0", "s1"]),
            ports: Some(vec![range(80), PolicyPort::All(Protocol::Sctp)]),
        },
        PolicyRule {
            peers: of(&["s1"]),
            ports: None,
        },
        PolicyRule {
            peers: PolicyPeers::Anyone,
            ports: Some(vec![PolicyPort::Named(Protocol::Udp, "dns".to_owned())]),
        },
    ];
    let to = PolicyRule {
        peers: of(&["s2"]),
        ports: Some(vec![PolicyPort::OfPeer(Protocol::Tcp)]),
    };
    for policy in (0..4u16).filter(|policy| (number >> policy) & 1 == 0) {
        let set = PolicyRuleSet {
            ingress: rules[..usize::from((policy + number) % 4)].to_vec(),
            egress: if policy == 0 {
                vec![to.clone()]
            } else {
                vec![]
            },
        };
        desired.policies.insert(format!("p{policy}"), Arc::new(set));
    }
    for pod in (0..4u16).filter(|pod| (number >> (pod + 2)) & 1 == 0) {
        let isolated = IsolatedPod {
            addresses: vec![
                IpAddr::from([10, 244, 1, pod as u8]),
                format!("fd00::{pod}").parse().unwrap(),
            ],
            ingress: number.is_multiple_of(2),
            egress: (number + pod).is_multiple_of(3),
            policies: desired
                .policies
                .keys()
                .take(usize::from(pod))
                .cloned()
                .collect(),
            ports: [(Protocol::Udp, "dns".to_owned(), 53 + number % 2)].into(),
        };
        desired.pods.insert(format!("pod-{pod}"), isolated);
    }
    let always = IsolatedPod {
        addresses: vec![IpAddr::from([10, 244, 1, 99])],
        ingress: true,
        egress: true,
        policies: BTreeSet::new(),
        ports: BTreeSet::new(),
    };
    desired.pods.insert("always".to_owned(), always);
    if number.is_multiple_of(5) {
        desired
            .policies
            .values_mut()
            .for_each(|policy| *policy = Arc::default());
        desired.peers.clear();
    }
    desired
}

#[test]
fn the_kernel_takes_every_difference_and_ends_where_a_fresh_start_does() {
    on_own_machine(async |lab| {
        let rules = NftPolicyRules::new(&lab.node).unwrap();
        for number in [0, 0x55, 0x1ff, 0x2a, 3, 0x80, 5, 0x7f, 0x33, 0xcc, 1, 0] {
            rules.sync(numbered(number)).await.unwrap();
            let by_difference = tables();
            NftPolicyRules::new(&lab.node)
                .unwrap()
                .sync(numbered(number))
                .await
                .unwrap();
            assert_eq!(by_difference, tables(), "{number:#x}");
            read_again();
            for next in [!number & 0x1ff, number] {
                let again = NftPolicyRules::new(&lab.node).unwrap();
                again.sync(numbered(next)).await.unwrap();
            }
            assert_eq!(by_difference, tables(), "taken over, {number:#x}");
        }
    });
}

#[test]
fn pods_stay_isolated_while_agents_start_again_and_policies_change_and_after_a_flush() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let rules = NftPolicyRules::new(&lab.node).unwrap();
        let web = lab.pod(&network, "web", 8080).await;
        let stranger = lab.pod(&network, "stranger", 8080).await;
        let desired = reached_by(&web, &[], 8080);
        // Other peers and other ports, neither of which is about the stranger.
        let otherwise = reached_by(&web, &[&web], 8081);
        rules.sync(desired.clone()).await.unwrap();
        let to = SocketAddr::new(web.ip.into(), 8080);
        let before = received(lab, &web);
        let done = AtomicBool::new(false);
        let lab = &*lab;
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                lab.inside(&stranger.netns, || {
                    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                    let mut sent = 0u64;
                    while !done.load(Ordering::Relaxed) {
                        let _may_be_refused = socket.send_to(b"?", to);
                        sent += 1;
                    }
                    sent
                })
            });
            let restarts = scope.spawn(|| {
                lab.on_host(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .unwrap();
                    runtime.block_on(async {
                        for _ in 0..20 {
                            let again = NftPolicyRules::new(&lab.node).unwrap();
                            again.sync(desired.clone()).await.unwrap();
                            again.sync(otherwise.clone()).await.unwrap();
                        }
                    });
                });
            });
            let restarted = restarts.join();
            done.store(true, Ordering::Relaxed);
            restarted.unwrap();
            assert!(flood.join().unwrap() > 100);
        });
        assert_eq!(
            received(lab, &web),
            before,
            "not one packet passed meanwhile"
        );

        command("nft", &["flush", "ruleset"]);
        network.reassert().await.unwrap();
        assert!(
            lab.inside(&stranger.netns, || ask(web.ip, 8080)).is_ok(),
            "nothing isolates it"
        );
        rules.reassert().await.unwrap();
        assert!(
            lab.inside(&stranger.netns, || ask_within(SILENCE, web.ip, 8080))
                .is_err()
        );
        command("nft", &["flush", "ruleset"]);
        network.reassert().await.unwrap();
        rules
            .sync(reached_by(&web, &[&stranger], 8080))
            .await
            .unwrap();
        assert!(lab.inside(&stranger.netns, || ask(web.ip, 8080)).is_ok());
        assert!(
            lab.inside(&stranger.netns, || ask_within(SILENCE, web.ip, 8081))
                .is_err()
        );
        BridgeNetwork::teardown(&lab.node).unwrap();
        assert!(!command("nft", &["list", "tables"]).contains("gt-"));
    });
}

#[test]
fn a_rule_of_many_peers_and_ports_lets_through_what_meets_both() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let rules = NftPolicyRules::new(&lab.node).unwrap();
        let web = lab.pod(&network, "web", 8080).await;
        lab.inside(&web.netns, || lab::serve("other", web.ip, 8081));
        let friend = lab.pod(&network, "friend", 8080).await;
        let stranger = lab.pod(&network, "stranger", 8080).await;
        let mut desired = reached_by(&web, &[&friend], 8080);
        let mut policy = PolicyRuleSet::clone(&desired.policies["p"]);
        let mut sets: Vec<String> = (0..20).map(|number| format!("s{number}")).collect();
        for set in &sets {
            desired.peers.insert(set.clone(), PeerSet::default());
        }
        sets.push("clients".to_owned());
        let ports = (0..20)
            .map(|number| PolicyPort::Range(Protocol::Tcp, 8040 + 2 * number, 8040 + 2 * number));
        policy.ingress[0].peers = PolicyPeers::Of {
            sets,
            blocks: vec![],
        };
        policy.ingress[0].ports = Some(
            ports
                .chain([PolicyPort::Range(Protocol::Tcp, 8080, 8080)])
                .collect(),
        );
        // What comes behind it still counts.
        policy.ingress.push(PolicyRule {
            peers: PolicyPeers::Of {
                sets: vec!["clients".to_owned()],
                blocks: vec![],
            },
            ports: Some(vec![PolicyPort::Range(Protocol::Tcp, 8081, 8081)]),
        });
        desired.policies.insert("p".to_owned(), Arc::new(policy));
        rules.sync(desired).await.unwrap();
        let listed = tables();
        assert!(
            listed
                .iter()
                .any(|object| object.starts_with("chain peers_ingress_p_0 ")),
            "{listed:?}"
        );
        for (port, who) in [(8080, "web"), (8081, "other")] {
            let answer = lab.inside(&friend.netns, || ask(web.ip, port)).unwrap();
            assert!(answer.starts_with(who), "{answer}");
            let refused = lab.inside(&stranger.netns, || ask_within(SILENCE, web.ip, port));
            assert!(refused.is_err(), "{refused:?}");
        }
    });
}

#[test]
fn without_isolated_pods_there_are_no_tables_and_what_was_left_goes() {
    on_own_machine(async |lab| {
        let rules = NftPolicyRules::new(&lab.node).unwrap();
        let mut nobody = numbered(3);
        nobody.pods.clear();
        rules.sync(nobody.clone()).await.unwrap();
        assert_eq!(command("nft", &["list", "tables"]), "");
        rules.sync(numbered(3)).await.unwrap();
        assert!(
            tables()
                .iter()
                .any(|object| object.starts_with("chain pod_ingress_always "))
        );
        NftPolicyRules::new(&lab.node)
            .unwrap()
            .sync(nobody)
            .await
            .unwrap();
        assert_eq!(command("nft", &["list", "tables"]), "");
    });
}

#[test]
fn one_peer_more_costs_the_same_however_many_there_are() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let rules = NftPolicyRules::new(&lab.node).unwrap();
        let web = lab.pod(&network, "web", 8080).await;
        let mut desired = reached_by(&web, &[], 8080);
        let many =
            (0..10_000u32).map(|number| (IpAddr::from((0x0af5_0000 + number).to_be_bytes()), 0));
        desired.peers.get_mut("clients").unwrap().peers = many.collect();
        let start = Instant::now();
        rules.sync(desired.clone()).await.unwrap();
        let all = start.elapsed();
        let mut each = Vec::new();
        for number in 0..50u8 {
            let clients = desired.peers.get_mut("clients").unwrap();
            clients
                .peers
                .insert((IpAddr::from([10, 250, 0, number]), 0));
            let start = Instant::now();
            rules.sync(desired.clone()).await.unwrap();
            each.push(start.elapsed());
        }
        each.sort_unstable();
        println!(
            "10,000 peers: {all:?}; one more: median {:?}, longest {:?}",
            each[25], each[49]
        );
        assert!(each[25] < all, "a change of one is not a change of all");
    });
}
