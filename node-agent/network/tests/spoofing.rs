//! What a pod may send: with its own addresses everything that makes sense, with anybody else's nothing at all.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on says so by panicking; packets are short"
)]

mod frames;
mod lab;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;

use frames::claims::{GATEWAY, Own, forged, forged_discovery, honest};
use frames::*;
use gantry_network::{
    BridgeNetwork, Ipv6Network, IsolatedPod, NftPolicyRules, NodePolicies, OverlayMode, PeerSet,
    PodNetwork, PolicyPeers, PolicyPort, PolicyRule, PolicyRuleSet, PolicyRules, Protocol,
};
use lab::hosts::{Cluster, among_hosts};
use lab::{Lab, ask, command, inside, ip, on_own_machine};

fn dual_stack(lab: &mut Lab) {
    lab.node.ipv6 = Some(Ipv6Network {
        pod_cidr: "fd00:10:244:1::/64".parse().unwrap(),
        cluster_pod_cidr: "fd00:10:244::/48".parse().unwrap(),
        service_cidr: None,
    });
}

async fn attach(network: &BridgeNetwork, name: &str) -> (Own, File) {
    let attachment = network.attach(name, &[]).await.unwrap();
    let own = Own::of(attachment.ip);
    (own, File::open(&attachment.netns).unwrap())
}

fn marks(frames: &[(String, Vec<u8>)]) -> BTreeSet<String> {
    frames.iter().map(|(mark, _)| mark.clone()).collect()
}

/// Sends frames of a pod, then an honest one to the gateway; what has arrived until that.
fn seen(
    watcher: &Watcher,
    netns: &File,
    a: Own,
    to: Own,
    frames: &[(String, Vec<u8>)],
) -> BTreeSet<String> {
    let last = "<the last>";
    let mut all: Vec<Vec<u8>> = frames.iter().map(|(_, frame)| frame.clone()).collect();
    all.push(datagram4((to.mac, to.ip), (a.mac, a.ip), last));
    send_frames(netns, &all);
    watcher.seen_until(last)
}

/// Which of the frames have arrived.
fn arrived(
    watcher: &Watcher,
    netns: &File,
    a: Own,
    to: Own,
    frames: &[(String, Vec<u8>)],
) -> BTreeSet<String> {
    // There may be others' from before.
    let seen = seen(watcher, netns, a, to, frames);
    seen.intersection(&marks(frames)).cloned().collect()
}

#[test]
fn a_pod_speaks_for_itself_and_for_nobody_else() {
    on_own_machine(async |lab| {
        dual_stack(lab);
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let (a, from) = attach(&network, "a").await;
        let (b, victim) = attach(&network, "b").await;
        let gateway = Own::of(GATEWAY);
        let host = lab.on_host(|| Watcher::new("gt-br"));
        for to in [gateway.mac, BROADCAST] {
            let frames = honest(a, b, to);
            assert_eq!(arrived(&host, &from, a, gateway, &frames), marks(&frames));
            let seen = arrived(&host, &from, a, gateway, &forged(a, b, to));
            assert!(seen.is_empty(), "{seen:#?}");
        }
        // From here on: what honest frames were sent to everybody has come.
        let neighbour = inside(&victim, || Watcher::new("eth0"));
        for to in [b.mac, BROADCAST, [0x33, 0x33, 0, 0, 0, 1]] {
            let seen = arrived(&neighbour, &from, a, b, &forged(a, b, to));
            assert!(seen.is_empty(), "{seen:#?}");
        }
        // Whoever takes over learns of every pod, and so does whoever puts back what was flushed.
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let seen = arrived(&host, &from, a, gateway, &forged(a, b, gateway.mac));
        assert!(seen.is_empty(), "{seen:#?}");
        command("nft", &["flush", "ruleset"]);
        network.reassert().await.unwrap();
        let seen = arrived(&host, &from, a, gateway, &forged(a, b, gateway.mac));
        assert!(seen.is_empty(), "{seen:#?}");
        let frames = honest(a, b, gateway.mac);
        assert_eq!(arrived(&host, &from, a, gateway, &frames), marks(&frames));

        let guard = || command("nft", &["list", "table", "bridge", "gt-guard"]);
        let link = format!("\"gt.{}\"", a.ip.octets()[3]);
        assert_eq!(guard().matches(&link).count(), 7, "{}", guard());
        network.detach("a").await.unwrap();
        assert!(!guard().contains(&link), "{}", guard());
    });
}

#[test]
fn nobody_believes_a_pod_that_claims_anothers_address() {
    on_own_machine(async |lab| {
        dual_stack(lab);
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let (a, from) = attach(&network, "a").await;
        let (b, victim) = attach(&network, "b").await;
        let believed = || {
            let own = ip("neigh show dev gt-br");
            let theirs = inside(&victim, || ip("neigh show dev eth0"));
            format!("{own}{theirs}")
        };
        let before = believed();
        for permanent in [&b.ip.to_string(), &b.ip6.to_string(), &GATEWAY.to_string()] {
            assert!(
                before
                    .lines()
                    .any(|line| line.starts_with(&format!("{permanent} "))
                        && line.ends_with("PERMANENT ")),
                "{permanent}: {before}"
            );
        }
        for flushed in [false, true] {
            if flushed {
                // Without any rule, the entries still are not the pods' to change.
                command("nft", &["flush", "ruleset"]);
            }
            let mut frames = Vec::new();
            for to in [mac_of(GATEWAY), b.mac, BROADCAST] {
                frames.extend(forged_discovery(a, b, to));
                for sender in [b.ip, GATEWAY] {
                    frames.extend(
                        [1, 2].map(|operation| arp(to, a.mac, operation, (a.mac, sender), GATEWAY)),
                    );
                }
            }
            // Many hardware addresses of nobody.
            frames.extend((0..2000_u32).map(|number| {
                let [_, x, y, z] = number.to_be_bytes();
                datagram4(
                    (mac_of(GATEWAY), GATEWAY),
                    ([0x02, 1, 1, x, y, z], a.ip),
                    "<many>",
                )
            }));
            send_frames(&from, &frames);
            let claimed: Vec<String> = believed()
                .lines()
                .filter(|line| line.contains(&words(a.mac)))
                .filter(|line| {
                    !line.starts_with(&format!("{} ", a.ip))
                        && !line.starts_with(&format!("{} ", a.ip6))
                })
                .filter(|line| !line.starts_with(&link_local(a.mac).to_string()))
                .map(str::to_owned)
                .collect();
            // A link-local address may be claimed while nobody guards it; pods do not speak to each other by them.
            assert!(flushed || claimed.is_empty(), "{claimed:#?}");
            for known in before.lines().filter(|line| line.ends_with("PERMANENT ")) {
                assert!(believed().contains(known), "{known}: {}", believed());
            }
            let learned = command("bridge", &["fdb", "show", "br", "gt-br"]);
            assert!(!learned.contains("02:01:01"), "{learned}");
        }
    });
}

fn words(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

#[test]
fn links_that_a_pod_makes_itself_lead_nowhere() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let (a, from) = attach(&network, "a").await;
        let (b, _) = attach(&network, "b").await;
        let gateway = Own::of(GATEWAY);
        let host = lab.on_host(|| Watcher::new("gt-br"));
        let ping = |what: &str| {
            let came = inside(&from, || {
                let socket = std::net::UdpSocket::bind((b.ip, 0)).unwrap();
                socket
                    .send_to(format!("<{what}>").as_bytes(), (GATEWAY, PORT))
                    .map(drop)
            });
            drop(came);
            let seen = seen(&host, &from, a, gateway, &[]);
            assert!(!seen.contains(&format!("<{what}>")), "{what}");
        };
        inside(&from, || ip(&format!("addr add {}/32 dev eth0", b.ip)));
        ping("an address of its own choice");
        for kind in ["macvlan mode bridge", "macvlan mode private"] {
            inside(&from, || {
                ip(&format!("addr del {}/32 dev eth0", b.ip));
                ip(&format!("link add own0 link eth0 type {kind}"));
                ip("link set own0 up");
                ip(&format!("addr add {}/32 dev own0", b.ip));
                ip(&format!("route replace {GATEWAY}/32 dev own0"));
                ip(&format!(
                    "neigh replace {GATEWAY} lladdr {} dev own0",
                    words(gateway.mac)
                ));
            });
            ping(kind);
            inside(&from, || {
                ip("link del own0");
                ip(&format!("route replace {GATEWAY}/32 dev eth0"));
                ip(&format!("addr add {}/32 dev eth0", b.ip));
            });
        }
    });
}

#[test]
fn a_port_of_the_bridge_that_is_no_pods_reaches_no_pod() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let (a, inside_a) = attach(&network, "a").await;
        let (b, victim) = attach(&network, "b").await;
        let (stranger, inside_stranger) = attach(&network, "stranger").await;
        lab.on_host(|| {
            let link = format!("gt.{}", stranger.ip.octets()[3]);
            ip(&format!("link set {link} down"));
            ip(&format!("link set {link} name odd"));
            ip("link set odd up");
        });
        let watcher = inside(&victim, || Watcher::new("eth0"));
        let frames =
            [b.mac, BROADCAST].map(|to| datagram4((to, b.ip), (a.mac, a.ip), "<in the name of a>"));
        send_frames(&inside_stranger, &frames);
        let last = datagram4((mac_of(GATEWAY), b.ip), (a.mac, a.ip), "<a>");
        send_frames(&inside_a, &[last]);
        assert_eq!(
            watcher.seen_until("<a>"),
            BTreeSet::from(["<a>".to_owned()])
        );
    });
}

#[test]
fn addresses_that_no_pod_has_are_not_looked_for() {
    on_own_machine(async |lab| {
        dual_stack(lab);
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let (_, from) = attach(&network, "a").await;
        let (b, _) = attach(&network, "b").await;
        let asked = |to: IpAddr| inside(&from, || ask(to, 9).unwrap_err());
        let cases: [[IpAddr; 2]; 2] = [
            ["10.244.1.200".parse().unwrap(), b.ip.into()],
            ["fd00:10:244:1::200".parse().unwrap(), b.ip6.into()],
        ];
        for [nobody, somebody] in cases {
            assert_eq!(asked(nobody), ErrorKind::HostUnreachable);
            assert_eq!(asked(somebody), ErrorKind::ConnectionRefused);
            let known = lab.on_host(|| ip("neigh show dev gt-br"));
            assert!(!known.contains(&format!("{nobody} ")), "{known}");
        }
        network.detach("b").await.unwrap();
        assert_eq!(asked(b.ip.into()), ErrorKind::HostUnreachable);
    });
}

/// `web` may be sent datagrams by `client` and by nobody else.
fn only_from(web: Ipv4Addr, client: Ipv4Addr) -> NodePolicies {
    let rule = PolicyRule {
        peers: PolicyPeers::Of {
            sets: vec!["clients".to_owned()],
            blocks: vec![],
        },
        ports: Some(vec![PolicyPort::Range(Protocol::Udp, PORT, PORT)]),
    };
    let rules = PolicyRuleSet {
        ingress: vec![rule],
        egress: vec![],
    };
    let isolated = IsolatedPod {
        addresses: vec![web.into()],
        ingress: true,
        egress: false,
        policies: ["p".to_owned()].into(),
        ports: BTreeSet::new(),
    };
    let clients = PeerSet {
        with_ports: false,
        peers: [(client.into(), 0)].into_iter().collect(),
    };
    NodePolicies {
        pods: [("web".to_owned(), isolated)].into(),
        policies: [("p".to_owned(), Arc::new(rules))].into(),
        peers: [("clients".to_owned(), clients)].into(),
    }
}

#[test]
fn a_policy_holds_against_a_neighbour_in_the_clients_name() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let policies = NftPolicyRules::new(&lab.node).unwrap();
        let (web, inside_web) = attach(&network, "web").await;
        let (client, inside_client) = attach(&network, "client").await;
        let (attacker, inside_attacker) = attach(&network, "attacker").await;
        policies.sync(only_from(web.ip, client.ip)).await.unwrap();
        let watcher = inside(&inside_web, || Watcher::new("eth0"));
        for to in [mac_of(GATEWAY), web.mac, BROADCAST] {
            let frames = [
                datagram4((to, web.ip), (attacker.mac, attacker.ip), "<as itself>"),
                datagram4((to, web.ip), (attacker.mac, client.ip), "<by address>"),
                datagram4((to, web.ip), (client.mac, client.ip), "<altogether>"),
            ];
            send_frames(&inside_attacker, &frames);
            let last = datagram4(
                (mac_of(GATEWAY), web.ip),
                (client.mac, client.ip),
                "<client>",
            );
            send_frames(&inside_client, &[last]);
            assert_eq!(
                watcher.seen_until("<client>"),
                BTreeSet::from(["<client>".to_owned()])
            );
        }
    });
}

/// A packet for a node's VXLAN device, in which `inner` is.
fn wrapped(vni: u32, inner: &[u8]) -> Vec<u8> {
    let [_, x, y, z] = vni.to_be_bytes();
    [&[8, 0, 0, 0, x, y, z, 0][..], inner].concat()
}

#[test]
fn a_policy_holds_against_pods_of_other_nodes() {
    among_hosts(|world| {
        for mode in [OverlayMode::Auto, OverlayMode::Always] {
            let name = format!("lan{}", mode as u8);
            let network = if mode == OverlayMode::Auto {
                "192.0.2"
            } else {
                "198.51.100"
            };
            world.subnet(&name, network);
            let [x, y, z] = if mode == OverlayMode::Auto {
                [192, 0, 2]
            } else {
                [198, 51, 100]
            };
            let cluster = Cluster::of(
                [1, 2].map(|number| world.host(&name, [x, y, z, number], number, mode)),
            );
            let [web_host, far_host] = &cluster.hosts[..] else {
                panic!("two hosts")
            };
            let web = &cluster.pods[0];
            let client = web_host.pod(&cluster.networks[0], "client");
            let far_client = far_host.pod(&cluster.networks[1], "far-client");
            let attacker = &cluster.pods[1];
            let policies = NftPolicyRules::new(&web_host.node).unwrap();
            let far_gateway = Ipv4Addr::new(10, 244, 2, 1);
            let watcher = inside(&web.netns, || Watcher::new("eth0"));
            for allowed in [client.ip, far_client.ip] {
                web_host.on(async || policies.sync(only_from(web.ip, allowed)).await.unwrap());
                let own = (mac_of(attacker.ip), attacker.ip);
                let device = Ipv4Addr::new(10, 244, 1, 0);
                let forged = datagram4(
                    (mac_of(device), web.ip),
                    (mac_of(Ipv4Addr::new(10, 244, 2, 0)), allowed),
                    "<wrapped>",
                );
                let outer = |to: Ipv4Addr| {
                    let packet = ipv4(own.1, to, 17, 0, &udp(8472, &wrapped(71, &forged)));
                    ethernet(mac_of(far_gateway), own.0, 0x0800, &packet)
                };
                let frames = [
                    datagram4(
                        (mac_of(far_gateway), web.ip),
                        (own.0, allowed),
                        "<by address>",
                    ),
                    datagram4(
                        (mac_of(far_gateway), web.ip),
                        (mac_of(allowed), allowed),
                        "<altogether>",
                    ),
                    datagram4((mac_of(far_gateway), web.ip), own, "<as itself>"),
                    outer(web_host.address),
                    outer(far_host.address),
                ];
                send_frames(&attacker.netns, &frames);
                let (inside_client, gateway) = match allowed == client.ip {
                    true => (&client.netns, GATEWAY),
                    false => (&far_client.netns, far_gateway),
                };
                let last = datagram4(
                    (mac_of(gateway), web.ip),
                    (mac_of(allowed), allowed),
                    "<client>",
                );
                send_frames(inside_client, &[last]);
                assert_eq!(
                    watcher.seen_until("<client>"),
                    BTreeSet::from(["<client>".to_owned()]),
                    "{mode:?}"
                );
            }
            // Nor is a stranger on the same network taken for a node, or for a pod of the node itself.
            let stranger = world.machine(&name, Ipv4Addr::new(x, y, z, 99));
            web_host.on(async || policies.sync(only_from(web.ip, client.ip)).await.unwrap());
            let forged = datagram4(
                (mac_of(Ipv4Addr::new(10, 244, 1, 0)), web.ip),
                (mac_of(Ipv4Addr::new(10, 244, 2, 0)), client.ip),
                "<wrapped by a stranger>",
            );
            inside(&stranger, || {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                socket
                    .send_to(&wrapped(71, &forged), (web_host.address, 8472))
                    .unwrap();
                ip(&format!("route add {}/32 via {}", web.ip, web_host.address));
                ip(&format!("addr add {}/32 dev lo", client.ip));
                let socket = std::net::UdpSocket::bind((client.ip, 0)).unwrap();
                socket.send_to(b"<a stranger>", (web.ip, PORT)).unwrap();
                // It has arrived when an answer to a later packet has.
                ip(&format!("addr del {}/32 dev lo", client.ip));
                let answer = TcpStream::connect((web_host.address, 1));
                assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            });
            let last = datagram4(
                (mac_of(GATEWAY), web.ip),
                (mac_of(client.ip), client.ip),
                "<client>",
            );
            send_frames(&client.netns, &[last]);
            assert_eq!(
                watcher.seen_until("<client>"),
                BTreeSet::from(["<client>".to_owned()]),
                "{mode:?}"
            );
        }
    });
}
