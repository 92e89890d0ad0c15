//! Policies in a real kernel: who reaches whom on the same and on different nodes, and what becomes of connections when
//! policies change.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;
mod policy_lab;
mod policy_world;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;

use gantry_network::{
    BridgeNetwork, NftPolicyRules, NftServiceRules, PolicyPeers, PolicyPort, PolicyRule,
    PolicyRules as _, Protocol, ServiceRules as _,
};
use lab::{DEADLINE, Pod, SILENCE, ask, ask_within, ip, on_own_machine, only, service};
use policy_lab::{reached_by, received};
use policy_world::policy_cases::cases;
use policy_world::{World, echoes, udp};
use serde_json::json;

fn truth_table(v6: bool) {
    on_own_machine(async |lab| {
        let world = World::new(lab);
        let mut wrong = Vec::new();
        let mut lines = 0;
        for case in cases(&|id| world.address(id, v6).to_string()) {
            lines += case.probes.len();
            wrong.extend(world.wrong(&case, v6));
        }
        assert!(lines >= 40, "{lines}");
        assert!(wrong.is_empty(), "{} of {lines}: {wrong:#?}", wrong.len());
    });
}

#[test]
fn the_truth_table_holds_over_real_connections() {
    truth_table(false);
}

#[test]
fn the_truth_table_holds_over_real_connections_of_ipv6() {
    truth_table(true);
}

/// A policy of the table's world that lets only one app of its namespace in.
fn only_from(app: &str) -> (&'static str, serde_json::Value) {
    let peer = json!({"podSelector": {"matchLabels": {"app": app}}});
    (
        "shop",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [peer]}]}),
    )
}

#[test]
fn a_change_takes_effect_on_connections_that_exist() {
    on_own_machine(async |lab| {
        let world = World::new(lab);
        let web = SocketAddr::new(world.address("shop/web", false), 80);
        let connect =
            |from: &str| world.at(from, || TcpStream::connect_timeout(&web, DEADLINE).unwrap());
        let mut streams = BTreeMap::from([
            ("shop/api", connect("shop/api")),
            ("shop/db", connect("shop/db")),
        ]);
        for stream in streams.values_mut() {
            assert!(echoes(stream, b"before", DEADLINE));
        }
        world.program(&[only_from("api")]);
        assert!(
            echoes(streams.get_mut("shop/api").unwrap(), b"still", DEADLINE),
            "what is allowed goes on"
        );
        assert!(
            !echoes(streams.get_mut("shop/db").unwrap(), b"cut", SILENCE),
            "what is not stops"
        );
        world.program(&[only_from("db")]);
        assert!(!echoes(
            streams.get_mut("shop/api").unwrap(),
            b"cut",
            SILENCE
        ));
        // What was sent meanwhile is sent again by TCP, and arrives.
        let db = streams.get_mut("shop/db").unwrap();
        let mut answer = [0; 3];
        db.set_read_timeout(Some(DEADLINE)).unwrap();
        std::io::Read::read_exact(db, &mut answer).unwrap();
        assert_eq!(&answer, b"cut");
        world.program(&[]);
        assert!(world.at("shop/api", || udp(web, DEADLINE)));
    });
}

#[test]
fn a_server_cannot_go_on_sending_to_a_client_it_may_not_hear() {
    on_own_machine(async |lab| {
        let world = World::new(lab);
        let to = SocketAddr::new(world.address("shop/web", false), 9999);
        let server = world.at("shop/web", || {
            std::net::UdpSocket::bind("0.0.0.0:9999").unwrap()
        });
        let client = world.at("shop/db", || {
            std::net::UdpSocket::bind("0.0.0.0:0").unwrap()
        });
        client.send_to(b"subscribe", to).unwrap();
        let mut buffer = [0; 16];
        server.set_read_timeout(Some(DEADLINE)).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let (_, subscriber) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"news", subscriber).unwrap();
        client.recv(&mut buffer).unwrap();
        world.program(&[only_from("api")]);
        client.set_read_timeout(Some(SILENCE)).unwrap();
        // The firewall's refusal may already be an error for the sender.
        let _may_be_refused = server.send_to(b"news", subscriber);
        assert!(client.recv(&mut buffer).is_err(), "in either direction");
    });
}

/// Bridge netfilter, where the kernel has it.
fn bridge_netfilter(lab: &lab::Lab, on: &str) {
    let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if std::path::Path::new(switch).exists() {
        lab.on_host(|| std::fs::write(switch, on)).unwrap();
    }
}

#[test]
fn policies_see_pods_behind_services_and_a_pod_reaches_itself_through_its_service() {
    const VIP: [u8; 4] = [10, 96, 0, 50];
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let services = NftServiceRules::new(&lab.node).unwrap();
        let policies = NftPolicyRules::new(&lab.node).unwrap();
        let web = lab.pod(&network, "web", 8080).await;
        let friend = lab.pod(&network, "friend", 8080).await;
        let stranger = lab.pod(&network, "stranger", 8080).await;
        let mut to_web = service(VIP, vec![web.endpoint(8080)]);
        to_web.node_port = Some(30080);
        services.apply(only([("web", to_web)])).await.unwrap();
        policies
            .sync(reached_by(&web, &[&friend], 8080))
            .await
            .unwrap();
        for on in ["0", "1"] {
            bridge_netfilter(lab, on);
            let from = |pod: &Pod, wait| lab.inside(&pod.netns, || ask_within(wait, VIP, 80));
            assert!(from(&friend, DEADLINE).is_ok(), "bridge netfilter {on}");
            assert!(from(&stranger, SILENCE).is_err(), "bridge netfilter {on}");
            assert!(
                from(&web, DEADLINE).is_ok(),
                "itself, with bridge netfilter {on}"
            );
            let direct =
                |pod: &Pod, wait| lab.inside(&pod.netns, || ask_within(wait, web.ip, 8080));
            assert!(direct(&friend, DEADLINE).is_ok() && direct(&stranger, SILENCE).is_err());
            assert!(lab.on_host(|| ask(VIP, 80)).is_ok(), "the node itself");
            assert!(
                lab.inside(&lab.outside, || ask_within(SILENCE, lab::HOST, 30080))
                    .is_err()
            );
        }
    });
}

#[test]
fn a_pod_asks_the_clusters_dns_when_its_egress_allows_that() {
    const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        network.bind_dns_address(DNS).await.unwrap();
        let rules = NftPolicyRules::with_dns(&lab.node, DNS).unwrap();
        let web = lab.pod(&network, "web", 8080).await;
        let other = lab.pod(&network, "other", 8080).await;
        let server = lab.on_host(|| UdpSocket::bind((DNS, 53)).unwrap());
        let asks = |pod: &Pod, wait| {
            lab.inside(&pod.netns, || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"?", (DNS, 53)).unwrap();
            });
            server.set_read_timeout(Some(wait)).unwrap();
            server.recv(&mut [0; 8]).is_ok()
        };
        let mut desired = reached_by(&web, &[], 8080);
        rules.sync(desired.clone()).await.unwrap();
        assert!(!asks(&web, SILENCE), "nothing allows it");
        assert!(asks(&other, DEADLINE), "it is not isolated");
        for (block, protocol, passes) in [
            ("10.96.0.10/32", Protocol::Udp, true),
            ("10.96.0.10/32", Protocol::Tcp, false),
            ("10.96.0.11/32", Protocol::Udp, false),
            ("0.0.0.0/0", Protocol::Udp, true),
        ] {
            let policy = Arc::make_mut(desired.policies.get_mut("p").unwrap());
            policy.egress = vec![PolicyRule {
                peers: PolicyPeers::Of {
                    sets: vec![],
                    blocks: vec![block.parse().unwrap()],
                },
                ports: Some(vec![PolicyPort::Range(protocol, 53, 53)]),
            }];
            rules.sync(desired.clone()).await.unwrap();
            let wait = if passes { DEADLINE } else { SILENCE };
            assert_eq!(asks(&web, wait), passes, "{block} by {protocol:?}");
        }
    });
}

#[test]
fn a_pod_cannot_go_round_the_node_to_a_neighbour() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let rules = NftPolicyRules::new(&lab.node).unwrap();
        let web = lab.pod(&network, "web", 8080).await;
        let rogue = lab.pod(&network, "rogue", 8080).await;
        let link = |pod: &Pod| {
            let shown = lab.inside(&pod.netns, || ip("-o link show eth0"));
            shown
                .split("link/ether ")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap()
                .to_owned()
        };
        // Each knows the other's hardware address and a route that passes by the gateway.
        for (pod, other) in [(&rogue, &web), (&web, &rogue)] {
            let hardware = link(other);
            lab.inside(&pod.netns, || {
                ip(&format!("route add {} dev eth0", other.ip));
                ip(&format!(
                    "neigh replace {} lladdr {hardware} dev eth0",
                    other.ip
                ));
            });
        }
        let reaches = |wait| {
            lab.inside(&rogue.netns, || ask_within(wait, web.ip, 8080))
                .is_ok()
        };
        assert!(reaches(DEADLINE), "the way is there");
        rules.sync(reached_by(&web, &[], 8080)).await.unwrap();
        for on in ["0", "1"] {
            bridge_netfilter(lab, on);
            assert!(
                !reaches(SILENCE),
                "frames to a neighbour, bridge netfilter {on}"
            );
        }
        // Nor by frames to everybody.
        lab.inside(&rogue.netns, || {
            ip(&format!(
                "neigh replace {} lladdr ff:ff:ff:ff:ff:ff dev eth0",
                web.ip
            ));
        });
        let to = SocketAddr::new(web.ip.into(), 8080);
        for on in ["0", "1"] {
            bridge_netfilter(lab, on);
            let before = received(lab, &web);
            assert!(!lab.inside(&rogue.netns, || udp(to, SILENCE)));
            assert_eq!(
                received(lab, &web),
                before,
                "frames to everybody, bridge netfilter {on}"
            );
        }
    });
}

/// The first packet of an SCTP association, as RFC 9260 has it.
fn sctp_init(port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    for part in [&40_000u16.to_be_bytes()[..], &port.to_be_bytes(), &[0; 8]] {
        packet.extend_from_slice(part);
    }
    // INIT: length, tag, window, streams out and in, first number.
    packet.extend_from_slice(&[1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let mut checksum = u32::MAX;
    for byte in &packet {
        checksum ^= u32::from(*byte);
        for _ in 0..8 {
            checksum = (checksum >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(checksum & 1));
        }
    }
    packet[8..12].copy_from_slice(&(!checksum).to_le_bytes());
    packet
}

/// Linux may be built without SCTP, while its firewall knows it: the packets are made by hand.
#[test]
fn sctp_ports_are_judged_like_others() {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let rules = NftPolicyRules::new(&lab.node).unwrap();
        let web = lab.pod(&network, "web", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let mut desired = reached_by(&web, &[&client], 80);
        let policy = Arc::make_mut(desired.policies.get_mut("p").unwrap());
        policy.ingress[0].ports = Some(vec![PolicyPort::Range(Protocol::Sctp, 3868, 3869)]);
        rules.sync(desired).await.unwrap();
        let raw = || {
            let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
            std::net::UdpSocket::from(socket)
        };
        let server = lab.inside(&web.netns, raw);
        let sender = lab.inside(&client.netns, raw);
        let mut buffer = [0; 128];
        for (port, passes) in [(3867, false), (3868, true), (3869, true), (3870, false)] {
            sender
                .send_to(&sctp_init(port), SocketAddr::new(web.ip.into(), 0))
                .unwrap();
            server
                .set_read_timeout(Some(if passes { DEADLINE } else { SILENCE }))
                .unwrap();
            assert_eq!(server.recv(&mut buffer).is_ok(), passes, "port {port}");
        }
        assert!(
            lab.inside(&client.netns, || ask_within(SILENCE, web.ip, 8080))
                .is_err()
        );
    });
}
