//! Node ports on the host's loopback whose endpoints are on another node, and that nobody else reaches that loopback.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};

use gantry_network::{
    BridgeNetwork, Endpoint, NftServiceRules, Overlay, OverlayMode, Protocol, ServiceRules,
};
use lab::hosts::{Cluster, ECHO, Host, MIB, PORT, World, among_hosts, echo, there_and_back};
use lab::{
    SILENCE, ask, ask_udp, ask_within, command, endpoint, inside, ip, only, serve, service, who,
};

const VIP: [u8; 4] = [10, 96, 0, 50];
const NODE_PORT: u16 = 30080;
const OF_THE_HOST: u16 = 30081;
const ECHOING: u16 = 30082;
const SECRET: u16 = 7002;

fn elsewhere(address: Ipv4Addr, port: u16) -> Endpoint {
    Endpoint {
        local: false,
        ..endpoint(address, port)
    }
}

/// Node ports of the first host that lead to the second: to its pod, and to what listens on the host itself.
fn node_ports(cluster: &Cluster) -> NftServiceRules {
    let ([here, there], far) = (&cluster.hosts[..2], &cluster.pods[1]) else {
        panic!("two hosts");
    };
    inside(&far.netns, || {
        serve("far", Ipv4Addr::UNSPECIFIED, PORT);
        echo(Ipv4Addr::UNSPECIFIED, ECHO);
    });
    inside(&there.netns, || serve("host", there.address, PORT));
    let mut pod = service(VIP, vec![elsewhere(far.ip, PORT)]);
    pod.node_port = Some(NODE_PORT);
    let mut udp = pod.clone();
    udp.protocol = Protocol::Udp;
    let mut host = service([10, 96, 0, 51], vec![elsewhere(there.address, PORT)]);
    host.node_port = Some(OF_THE_HOST);
    let mut echoing = service([10, 96, 0, 52], vec![elsewhere(far.ip, ECHO)]);
    echoing.node_port = Some(ECHOING);
    here.on(async || {
        let rules = NftServiceRules::new(&here.node).unwrap();
        let services = [
            ("pod", pod),
            ("udp", udp),
            ("host", host),
            ("echo", echoing),
        ];
        rules.apply(only(services)).await.unwrap();
        rules
    })
}

/// Hosts that drop what comes by another link than the answer would leave by.
fn strict(hosts: [Host; 2]) -> [Host; 2] {
    for host in &hosts {
        inside(&host.netns, || {
            for link in ["all", "default"] {
                let setting = format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
                fs::write(setting, "1").unwrap();
            }
        });
    }
    hosts
}

fn behind_a_router(world: &World) -> [Host; 2] {
    world.subnet("lan", "192.0.2");
    world.subnet("wan", "198.51.100");
    [
        world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto),
        world.host("wan", [198, 51, 100, 2], 2, OverlayMode::Auto),
    ]
}

/// What the second host's pod sees is the first one's own address where packets go as they are, and that of its end of
/// the overlay where they are wrapped.
fn loopback_leads_to_the_other_node(cluster: &Cluster, seen: Ipv4Addr) {
    let _rules = node_ports(cluster);
    let here = &cluster.hosts[0];
    inside(&here.netns, || {
        let answer = Ok(format!("far {seen}"));
        assert_eq!(ask(Ipv4Addr::LOCALHOST, NODE_PORT), answer);
        assert_eq!(ask_udp(Ipv4Addr::LOCALHOST, NODE_PORT), answer);
        assert_eq!(ask([127, 7, 7, 7], NODE_PORT), answer);
        assert_eq!(there_and_back(Ipv4Addr::LOCALHOST, ECHOING, MIB), MIB);
        assert_eq!(
            ask(Ipv4Addr::LOCALHOST, OF_THE_HOST),
            Ok(format!("host {}", here.address))
        );
    });
}

#[test]
fn a_node_port_on_the_loopback_leads_to_a_node_that_is_reached_directly() {
    among_hosts(|world| {
        let cluster = Cluster::of(strict(world.pair(OverlayMode::Auto)));
        loopback_leads_to_the_other_node(&cluster, cluster.hosts[0].address);
    });
}

#[test]
fn a_node_port_on_the_loopback_leads_to_a_node_through_vxlan() {
    among_hosts(|world| {
        let cluster = Cluster::of(strict(world.pair(OverlayMode::Always)));
        loopback_leads_to_the_other_node(&cluster, [10, 244, 1, 0].into());
    });
}

#[test]
fn a_node_port_on_the_loopback_leads_to_a_node_behind_a_router() {
    among_hosts(|world| {
        let cluster = Cluster::of(strict(behind_a_router(world)));
        loopback_leads_to_the_other_node(&cluster, [10, 244, 1, 0].into());
    });
}

/// Takes the guard of a host away.
fn unguarded() {
    command("nft", &["delete", "table", "ip", "gt-loopback"]);
}

/// Makes a machine send packets to 127.0.0.1, and from 127.0.0.2, by a link.
fn aim_at_loopbacks(attacker: &File, link: &str, via: Ipv4Addr) {
    inside(attacker, || {
        fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
        ip("addr flush dev lo");
        ip(&format!(
            "route add 127.0.0.1/32 via {via} dev {link} onlink table local"
        ));
        ip(&format!("addr add 127.0.0.2/32 dev {link}"));
    });
}

/// Whether a datagram with a source of 127.0.0.0/8 is received.
fn hears_a_pretender(attacker: &File, host: &Host, address: Ipv4Addr) -> bool {
    let receiver = inside(&host.netns, || UdpSocket::bind((address, 0))).unwrap();
    receiver.set_read_timeout(Some(SILENCE)).unwrap();
    let to = receiver.local_addr().unwrap();
    inside(attacker, || {
        let socket = UdpSocket::bind(("127.0.0.2", 0)).unwrap();
        socket.send_to(b"?", to).unwrap();
    });
    receiver.recv(&mut [0; 8]).is_ok()
}

/// Neither by the subnet nor through VXLAN, and only because of the guard.
#[test]
fn others_reach_neither_the_loopback_nor_pretend_to_be_there() {
    for mode in [OverlayMode::Auto, OverlayMode::Always] {
        among_hosts(|world| {
            let cluster = Cluster::of(world.pair(mode));
            let _rules = node_ports(&cluster);
            let [here, there] = &cluster.hosts[..] else {
                panic!("two hosts");
            };
            inside(&here.netns, || {
                serve("secret", Ipv4Addr::LOCALHOST, SECRET);
                for link in ["all", "eth0"] {
                    let setting = format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
                    fs::write(setting, "0").unwrap();
                }
            });
            let outside = world.machine("lan", [192, 0, 2, 9].into());
            // The link by which a packet comes, and the host's address there.
            let (attacker, link, target) = match mode {
                OverlayMode::Auto => (&outside, "eth0", here.address),
                OverlayMode::Always => (&there.netns, "gt-vx", here.node.pod_cidr.network()),
            };
            if mode == OverlayMode::Always {
                // Which would keep the answers away.
                inside(attacker, unguarded);
            }
            aim_at_loopbacks(attacker, link, target);
            let reaches = || {
                inside(attacker, || {
                    ask_within(SILENCE, Ipv4Addr::LOCALHOST, SECRET).is_ok()
                })
            };
            // Through VXLAN, the device's reverse path filter is in the way besides.
            let pretends =
                || mode == OverlayMode::Auto && hears_a_pretender(attacker, here, target);
            assert!(!reaches() && !pretends(), "{mode:?}");
            inside(&here.netns, || {
                assert!(
                    ask(Ipv4Addr::LOCALHOST, SECRET).is_ok(),
                    "the host itself does"
                );
                unguarded();
            });
            assert!(reaches(), "{mode:?}: by the switch alone, everybody would");
            assert_eq!(pretends(), mode == OverlayMode::Auto);
            let (network, overlay) = (&cluster.networks[0], &cluster.overlays[0]);
            here.on(async || {
                match mode {
                    OverlayMode::Auto => network.reassert().await,
                    OverlayMode::Always => overlay.reassert().await,
                }
                .unwrap();
            });
            assert!(!reaches() && !pretends(), "{mode:?}: put back");
            let answer = inside(&here.netns, || ask(Ipv4Addr::LOCALHOST, NODE_PORT)).unwrap();
            assert_eq!(who(&answer), "far");
        });
    }
}

#[test]
fn links_are_closed_when_the_network_is_torn_down_unless_others_had_opened_them() {
    let switch = || {
        let now = fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/route_localnet").unwrap();
        now.trim().to_owned()
    };
    for before in ["0", "1"] {
        among_hosts(|world| {
            let hosts = world.pair(OverlayMode::Auto);
            let here = &hosts[0];
            inside(&here.netns, || {
                fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", before).unwrap();
            });
            // Twice, as an agent that is started again.
            for expected in [before, "1"] {
                let (_network, overlay) = here.start();
                assert_eq!(
                    inside(&here.netns, switch),
                    expected,
                    "before it knows others"
                );
                here.know(&overlay, &[&hosts[1]]);
                assert_eq!(inside(&here.netns, switch), "1");
            }
            for _ in 0..2 {
                here.on(async || BridgeNetwork::teardown(&here.node).unwrap());
                assert_eq!(inside(&here.netns, switch), before);
                let tables = inside(&here.netns, || command("nft", &["list", "tables"]));
                assert_eq!(tables, "");
            }
        });
    }
}
