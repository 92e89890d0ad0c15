//! The way to pods of other hosts in a real kernel: the contract that the fake keeps as well, and everything that only
//! packets can show.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_network::{
    BridgeNetwork, FakeOverlay, HostPort, NetworkError, Overlay, OverlayMode, PeerNode, PeerPath,
    PodNetwork, PodRoute, Protocol, VxlanOverlay,
};
use lab::hosts::{
    Cluster, Far, Host, among_hosts, datagram, datagram_at_last, echo, there_and_back,
};
use lab::{ask, ask_udp, command, inside, ip, serve};

const PORT: u16 = 8080;
const ECHO: u16 = 8081;
/// What an underlay of Ethernet leaves for pods.
const MTU: usize = 1450;
const MIB: usize = 1 << 20;

fn node(name: &str, address: &str, pod_cidr: &str) -> PeerNode {
    PeerNode {
        name: name.into(),
        address: address.parse().unwrap(),
        pod_cidrs: vec![pod_cidr.parse().unwrap()],
    }
}

/// Ranges and where they are reached.
fn places(routes: &[PodRoute]) -> Vec<(String, String)> {
    routes
        .iter()
        .map(|route| (route.pod_cidr.to_string(), route.address.to_string()))
        .collect()
}

fn place(pod_cidr: &str, address: &str) -> (String, String) {
    (pod_cidr.to_owned(), address.to_owned())
}

/// What every [`Overlay`] keeps, on a node 192.0.2.1 with the pods of 10.244.1.0/24. `process` begins anew, as an
/// agent that is started again.
async fn contract<T: Overlay>(process: impl Fn() -> T) {
    let a = node("a", "198.51.100.2", "10.244.2.0/24");
    let b = node("b", "198.51.100.3", "10.244.3.0/24");
    let at_first = [
        place("10.244.2.0/24", "198.51.100.2"),
        place("10.244.3.0/24", "198.51.100.3"),
    ];
    let overlay = process();
    overlay.reassert().await.unwrap();
    overlay.sync(vec![]).await.unwrap();
    for _ in 0..2 {
        overlay.sync(vec![b.clone(), a.clone()]).await.unwrap();
        assert_eq!(places(&overlay.routes().await.unwrap()), at_first);
    }
    overlay.reassert().await.unwrap();
    assert_eq!(places(&overlay.routes().await.unwrap()), at_first);

    let moved = node("a", "198.51.100.9", "10.244.2.0/24");
    overlay.sync(vec![moved, b.clone()]).await.unwrap();
    assert_eq!(
        places(&overlay.routes().await.unwrap())[0],
        place("10.244.2.0/24", "198.51.100.9")
    );

    let later = process();
    assert_eq!(
        later.routes().await.unwrap().len(),
        2,
        "what the earlier one left is still there"
    );
    later.sync(vec![b.clone()]).await.unwrap();
    assert_eq!(places(&later.routes().await.unwrap()), at_first[1..]);

    let greedy = node("c", "198.51.100.4", "10.244.0.0/16");
    let same_address = node("d", "192.0.2.1", "10.244.5.0/24");
    let late = node("e", "198.51.100.6", "10.244.6.0/24");
    let refused = later
        .sync(vec![greedy, late, same_address, b])
        .await
        .unwrap_err();
    match &refused {
        NetworkError::Peer { name, problem } => {
            assert!(
                name == "c" && problem.contains("10.244.0.0/16"),
                "{refused}"
            );
        }
        other => panic!("{other}"),
    }
    assert_eq!(
        places(&later.routes().await.unwrap()),
        [at_first[1].clone(), place("10.244.6.0/24", "198.51.100.6")],
        "the others are programmed, and this node's own address needs no way"
    );
    later.sync(vec![]).await.unwrap();
    assert!(later.routes().await.unwrap().is_empty());
}

#[test]
fn the_kernel_keeps_the_contract() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        let host = world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto);
        host.on(async || {
            let alone = VxlanOverlay::new(host.node.clone()).unwrap();
            alone.sync(vec![]).await.unwrap();
            assert!(!ip("link").contains("gt-vx"), "a node alone makes nothing");
            contract(|| VxlanOverlay::new(host.node.clone()).unwrap()).await;
        });
    });
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    let fake = FakeOverlay::new(
        "192.0.2.1".parse().unwrap(),
        "10.244.1.0/24".parse().unwrap(),
    );
    contract(|| fake.clone()).await;
}

fn paths(host: &Host, overlay: &VxlanOverlay) -> Vec<PeerPath> {
    let routes = host.on(async || overlay.routes().await.unwrap());
    routes.iter().map(|route| route.path).collect()
}

/// Every way from the first host's pod and host to the second's, and what the other side sees.
fn everything_gets_through(cluster: &Cluster, outside: Ipv4Addr) {
    let ([here, there], [near, far]) = (&cluster.hosts[..2], &cluster.pods[..2]) else {
        panic!("two hosts");
    };
    for (pod, name) in [(near, "near"), (far, "far")] {
        inside(&pod.netns, || {
            serve(name, Ipv4Addr::UNSPECIFIED, PORT);
            echo(Ipv4Addr::UNSPECIFIED, ECHO);
        });
    }
    let from = |pod: &Far, to: &Far| {
        let (tcp, udp) = inside(&pod.netns, || (ask(to.ip, PORT), ask_udp(to.ip, PORT)));
        (tcp.unwrap(), udp.unwrap())
    };
    let seen = |name: &str, pod: &Far| (format!("{name} {}", pod.ip), format!("{name} {}", pod.ip));
    assert_eq!(from(near, far), seen("far", near), "the source is kept");
    assert_eq!(from(far, near), seen("near", far));

    inside(&near.netns, || {
        assert_eq!(there_and_back(far.ip, ECHO, MIB), MIB);
        // IP's and UDP's headers take 28; Linux forbids to fragment what fits the link.
        for length in [1, MTU - 28, MTU - 27, 60_000] {
            assert_eq!(datagram(far.ip, ECHO, length).unwrap(), length);
        }
    });

    let device: IpAddr = here.node.pod_cidr.network().into();
    inside(&here.netns, || {
        assert_eq!(
            ask(far.ip, PORT).unwrap(),
            format!("far {device}"),
            "the host speaks from an address that the other side can answer"
        );
        assert_eq!(there_and_back(far.ip, ECHO, MIB), MIB);
    });
    inside(&there.netns, || serve("host", there.address, 7000));
    assert_eq!(
        inside(&near.netns, || ask(there.address, 7000)).unwrap(),
        format!("host {}", here.address),
        "nodes see nodes"
    );
    assert_eq!(
        inside(&near.netns, || ask(outside, 7001)).unwrap(),
        format!("outside {}", here.address),
        "what leaves the cluster comes from the node"
    );
}

#[test]
fn pods_of_hosts_on_one_subnet_are_reached_directly() {
    among_hosts(|world| {
        let cluster = Cluster::of(world.pair(OverlayMode::Auto));
        let outside = world.machine("lan", [192, 0, 2, 9].into());
        inside(&outside, || serve("outside", [192, 0, 2, 9].into(), 7001));
        everything_gets_through(&cluster, [192, 0, 2, 9].into());
        for (host, overlay) in cluster.hosts.iter().zip(&cluster.overlays) {
            assert_eq!(paths(host, overlay), [PeerPath::Direct]);
            let counters = host.on(async || overlay.counters().await.unwrap());
            assert_eq!((counters.tx_packets, counters.tx_dropped), (0, 0));
        }
    });
}

#[test]
fn pods_are_reached_through_vxlan_where_that_is_asked_for() {
    among_hosts(|world| {
        let cluster = Cluster::of(world.pair(OverlayMode::Always));
        let outside = world.machine("lan", [192, 0, 2, 9].into());
        inside(&outside, || serve("outside", [192, 0, 2, 9].into(), 7001));
        everything_gets_through(&cluster, [192, 0, 2, 9].into());
        all_by_vxlan(&cluster);
    });
}

#[test]
fn pods_of_hosts_behind_a_router_are_reached_through_vxlan() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        world.subnet("wan", "198.51.100");
        let cluster = Cluster::of([
            world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto),
            world.host("wan", [198, 51, 100, 2], 2, OverlayMode::Auto),
        ]);
        let outside = world.machine("wan", [198, 51, 100, 9].into());
        inside(&outside, || {
            serve("outside", [198, 51, 100, 9].into(), 7001)
        });
        everything_gets_through(&cluster, [198, 51, 100, 9].into());
        all_by_vxlan(&cluster);
    });
}

fn all_by_vxlan(cluster: &Cluster) {
    for (host, overlay) in cluster.hosts.iter().zip(&cluster.overlays) {
        assert!(
            paths(host, overlay)
                .iter()
                .all(|path| *path == PeerPath::Vxlan)
        );
        let counters = host.on(async || overlay.counters().await.unwrap());
        assert!(
            counters.tx_packets > 100 && counters.rx_packets > 100,
            "{counters:?}"
        );
        assert_eq!(
            (
                counters.tx_errors,
                counters.rx_errors,
                counters.tx_dropped,
                counters.rx_dropped
            ),
            (0, 0, 0, 0),
            "nothing is flooded, nothing is lost"
        );
        let tracked = std::fs::read_to_string("/proc/net/nf_conntrack").unwrap_or_default();
        assert!(!tracked.contains("dport=8472"), "{tracked}");
    }
}

#[test]
fn three_hosts_of_which_two_are_neighbours() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        world.subnet("wan", "198.51.100");
        let cluster = Cluster::of([
            world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto),
            world.host("lan", [192, 0, 2, 2], 2, OverlayMode::Auto),
            world.host("wan", [198, 51, 100, 3], 3, OverlayMode::Auto),
        ]);
        assert_eq!(
            paths(&cluster.hosts[0], &cluster.overlays[0]),
            [PeerPath::Direct, PeerPath::Vxlan]
        );
        assert_eq!(
            paths(&cluster.hosts[2], &cluster.overlays[2]),
            [PeerPath::Vxlan, PeerPath::Vxlan]
        );
        for (index, pod) in cluster.pods.iter().enumerate() {
            inside(&pod.netns, || {
                serve(&index.to_string(), Ipv4Addr::UNSPECIFIED, PORT)
            });
        }
        for from in &cluster.pods {
            for (index, to) in cluster.pods.iter().enumerate() {
                assert_eq!(
                    inside(&from.netns, || ask(to.ip, PORT)).unwrap(),
                    format!("{index} {}", from.ip)
                );
            }
        }
    });
}

/// Asks a server again and again while `work` is done; answers how many questions had an answer, and how many none.
fn meanwhile(from: &Far, to: &Far, work: impl FnOnce()) -> (u32, u32) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            inside(&from.netns, || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.connect((to.ip, ECHO)).unwrap();
                socket
                    .set_read_timeout(Some(Duration::from_secs(1)))
                    .unwrap();
                let (mut answered, mut lost) = (0_u32, 0);
                let mut buffer = [0; 4];
                while !done.load(Ordering::Relaxed) {
                    let question = (answered + lost).to_be_bytes();
                    socket.send(&question).unwrap();
                    match socket.recv(&mut buffer) {
                        Ok(_) if buffer == question => answered += 1,
                        _ => lost += 1,
                    }
                }
                (answered, lost)
            })
        });
        work();
        done.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    })
}

#[test]
fn a_peer_changes_its_way_without_losing_a_packet() {
    among_hosts(|world| {
        let cluster = Cluster::of(world.pair(OverlayMode::Auto));
        let [near, far] = &cluster.pods[..] else {
            panic!("two pods");
        };
        inside(&far.netns, || echo(Ipv4Addr::UNSPECIFIED, ECHO));
        let host = &cluster.hosts[0];
        let (answered, lost) = meanwhile(near, far, || {
            for round in 0..20 {
                let mut node = host.node.clone();
                let mode = [OverlayMode::Always, OverlayMode::Auto][round % 2];
                node.overlay.as_mut().unwrap().mode = mode;
                let overlay = host.on(async || {
                    let overlay = VxlanOverlay::new(node).unwrap();
                    overlay.sync(vec![cluster.hosts[1].peer()]).await.unwrap();
                    overlay
                });
                let expected = [PeerPath::Vxlan, PeerPath::Direct][round % 2];
                assert_eq!(paths(host, &overlay), [expected]);
            }
        });
        assert_eq!(lost, 0, "of {answered}");
        assert!(answered > 100, "{answered}");
    });
}

#[test]
fn a_peer_whose_address_changes_is_found_there() {
    among_hosts(|world| {
        let mut cluster = Cluster::of(world.pair(OverlayMode::Always));
        inside(&cluster.pods[1].netns, || {
            serve("far", Ipv4Addr::UNSPECIFIED, PORT);
        });
        let new: Ipv4Addr = [192, 0, 2, 77].into();
        inside(&cluster.hosts[1].netns, || {
            // The old one first: the new one would go with it, being of the same subnet.
            ip("addr del 192.0.2.2/24 dev eth0");
            ip(&format!("addr add {new}/24 dev eth0"));
            ip("route replace default via 192.0.2.254");
        });
        cluster.hosts[1].address = new;
        let overlay = cluster.hosts[1].node.overlay.as_mut().unwrap();
        overlay.node_address = new.into();
        // The host that moved says so when its agent starts again; the other one hears of it.
        let (_, again) = cluster.hosts[1].start();
        cluster.hosts[1].know(&again, &[&cluster.hosts[0]]);
        cluster.hosts[0].know(&cluster.overlays[0], &[&cluster.hosts[1]]);
        let near = &cluster.pods[0];
        assert_eq!(
            inside(&near.netns, || ask(cluster.pods[1].ip, PORT)).unwrap(),
            format!("far {}", near.ip)
        );
        let forwarding = inside(&cluster.hosts[0].netns, || {
            command("bridge", &["fdb", "show", "dev", "gt-vx"])
        });
        assert_eq!(
            forwarding.trim(),
            "02:67:0a:f4:02:00 dst 192.0.2.77 self permanent"
        );
    });
}

/// Everything that leads to other hosts, as iproute2 sees it.
fn entries() -> String {
    [
        ip("-4 route show proto 71"),
        ip("-6 route show proto 71"),
        ip("neigh show dev gt-vx nud permanent"),
        command("bridge", &["fdb", "show", "dev", "gt-vx"]),
    ]
    .concat()
}

#[test]
fn a_peer_that_leaves_takes_its_entries_along() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        world.subnet("wan", "198.51.100");
        let cluster = Cluster::of([
            world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto),
            world.host("lan", [192, 0, 2, 2], 2, OverlayMode::Auto),
            world
                .host("wan", [198, 51, 100, 3], 3, OverlayMode::Auto)
                .dual_stack(),
        ]);
        let (host, overlay) = (&cluster.hosts[0], &cluster.overlays[0]);
        assert_eq!(
            inside(&host.netns, entries).lines().collect::<Vec<_>>(),
            [
                "10.244.2.0/24 via 192.0.2.2 dev eth0 src 10.244.1.0 ",
                "10.244.3.0/24 via 10.244.3.0 dev gt-vx src 10.244.1.0 onlink ",
                "10.244.3.0 lladdr 02:67:0a:f4:03:00 PERMANENT ",
                "02:67:0a:f4:03:00 dst 198.51.100.3 self permanent",
            ],
            "what a node without IPv6 needs of one that has it"
        );
        host.know(overlay, &[&cluster.hosts[1]]);
        let left = inside(&host.netns, entries);
        assert_eq!(
            left.trim(),
            "10.244.2.0/24 via 192.0.2.2 dev eth0 src 10.244.1.0"
        );
        host.know(overlay, &[]);
        assert_eq!(inside(&host.netns, entries), "");
    });
}

#[test]
fn a_new_agent_process_takes_over_and_removes_who_left_meanwhile() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        let mut hosts: Vec<Host> = (1..=3)
            .map(|number| world.host("lan", [192, 0, 2, number], number, OverlayMode::Always))
            .collect();
        let gone = hosts.pop().unwrap();
        let cluster = Cluster::of(hosts);
        let host = &cluster.hosts[0];
        let before = inside(&host.netns, entries);
        host.know(&cluster.overlays[0], &[&cluster.hosts[1], &gone]);
        inside(&cluster.pods[1].netns, || echo(Ipv4Addr::UNSPECIFIED, ECHO));
        let device = inside(&host.netns, || ip("-o link show gt-vx"));
        let (_, lost) = meanwhile(&cluster.pods[0], &cluster.pods[1], || {
            let (_, again) = host.start();
            host.know(&again, &[&cluster.hosts[1]]);
        });
        assert_eq!(lost, 0);
        assert_eq!(inside(&host.netns, entries), before);
        assert_eq!(
            inside(&host.netns, || ip("-o link show gt-vx")),
            device,
            "the device is the same"
        );
    });
}

#[test]
fn what_others_removed_is_put_back() {
    among_hosts(|world| {
        let cluster = Cluster::of(world.pair(OverlayMode::Always));
        let (host, overlay) = (&cluster.hosts[0], &cluster.overlays[0]);
        inside(&cluster.pods[1].netns, || {
            serve("far", Ipv4Addr::UNSPECIFIED, PORT);
        });
        let before = inside(&host.netns, entries);
        for harm in [
            "route del 10.244.2.0/24",
            "route replace 10.244.2.0/24 via 192.0.2.2 proto 71 src 10.244.1.0",
            "neigh flush dev gt-vx nud permanent",
            "link set gt-vx down",
            "link del gt-vx",
            "addr flush dev gt-vx",
        ] {
            inside(&host.netns, || ip(harm));
            host.on(async || overlay.reassert().await.unwrap());
            assert_eq!(inside(&host.netns, entries), before, "{harm}");
        }
        inside(&host.netns, || command("nft", &["flush ruleset"]));
        host.on(async || overlay.reassert().await.unwrap());
        let rules = inside(&host.netns, || command("nft", &["list ruleset"]));
        assert!(rules.contains("gt-overlay"), "{rules}");
        // Without waiting to be told: the next change finds the device gone.
        inside(&host.netns, || ip("link del gt-vx"));
        let third = node("third", "192.0.2.3", "10.244.3.0/24");
        let peers = vec![cluster.hosts[1].peer(), third];
        host.on(async || overlay.sync(peers).await.unwrap());
        assert_eq!(paths(host, overlay), [PeerPath::Vxlan, PeerPath::Vxlan]);
        let near = &cluster.pods[0];
        assert_eq!(
            inside(&near.netns, || ask(cluster.pods[1].ip, PORT)).unwrap(),
            format!("far {}", near.ip)
        );
    });
}

#[test]
fn firewalls_and_reverse_path_filters_of_the_hosts_do_not_cut_pods_off() {
    for mode in [OverlayMode::Auto, OverlayMode::Always] {
        among_hosts(|world| {
            let hosts = world.pair(mode);
            for host in &hosts {
                inside(&host.netns, || {
                    command(
                        "nft",
                        &[
                            "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
                        ],
                    );
                    for link in ["all", "default"] {
                        let setting = format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
                        std::fs::write(setting, "1").unwrap();
                    }
                });
            }
            let cluster = Cluster::of(hosts);
            let [near, far] = &cluster.pods[..] else {
                panic!("two pods");
            };
            inside(&far.netns, || serve("far", Ipv4Addr::UNSPECIFIED, PORT));
            assert_eq!(
                inside(&near.netns, || ask(far.ip, PORT)).unwrap(),
                format!("far {}", near.ip)
            );
            // A packet that comes from elsewhere for a pod of another host, as one to a node port does.
            let outside = world.machine("lan", [192, 0, 2, 9].into());
            inside(&cluster.hosts[0].netns, || {
                let translate = format!(
                    "table ip t {{ chain p {{ type nat hook prerouting priority -110; tcp dport 30080 dnat to {}:{PORT}; }}; \
                     chain q {{ type nat hook postrouting priority 50; ct status dnat masquerade; }}; }}",
                    far.ip
                );
                command("nft", &[&translate]);
            });
            let here = &cluster.hosts[0];
            let source = match mode {
                OverlayMode::Auto => here.address,
                OverlayMode::Always => here.node.pod_cidr.network(),
            };
            assert_eq!(
                inside(&outside, || ask(here.address, 30080)).unwrap(),
                format!("far {source}")
            );
        });
    }
}

#[test]
fn mtus_follow_the_underlay_and_one_too_small_is_refused() {
    among_hosts(|world| {
        let [mut host, other] = world.pair(OverlayMode::Auto);
        inside(&host.netns, || ip("link set eth0 mtu 1400"));
        let mut cluster_node = host.node.clone();
        let (network, overlay) = host.start();
        host.know(&overlay, &[&other]);
        let old = host.pod(&network, "old");
        let mtu = |link: &str| ip(&format!("link show dev {link}"));
        assert!(inside(&old.netns, || mtu("eth0")).contains("mtu 1350 "));
        inside(&host.netns, || {
            assert!(mtu("gt-br").contains("mtu 1350 "));
            assert!(mtu("gt-vx").contains("mtu 1350 "));
            ip("link set eth0 mtu 1500");
        });
        let (network, overlay) = host.start();
        host.know(&overlay, &[&other]);
        let new = host.pod(&network, "new");
        assert!(inside(&new.netns, || mtu("eth0")).contains("mtu 1450 "));
        inside(&host.netns, || {
            assert!(
                mtu("gt-br").contains("mtu 1350 "),
                "as long as a pod needs it"
            );
            assert!(mtu("gt-vx").contains("mtu 1450 "));
        });
        inside(&old.netns, || echo(Ipv4Addr::UNSPECIFIED, ECHO));
        inside(&new.netns, || {
            assert_eq!(there_and_back(old.ip, ECHO, MIB), MIB);
            assert_eq!(datagram_at_last(old.ip, ECHO, MTU - 28), MTU - 28);
        });
        inside(&host.netns, || ip("link set eth0 mtu 620"));
        let error = host.on(async || BridgeNetwork::new(host.node.clone()).err().unwrap());
        let error = error.to_string();
        assert!(
            error.contains("eth0") && error.contains("620") && error.contains("mtu 1500"),
            "{error}"
        );
        // A node alone wraps nothing: its pods have all of it.
        host.on(async || BridgeNetwork::teardown(&host.node).unwrap());
        cluster_node.overlay = None;
        host.node = cluster_node;
        let network = host.on(async || BridgeNetwork::new(host.node.clone()).unwrap());
        let alone = host.pod(&network, "alone");
        assert!(inside(&alone.netns, || mtu("eth0")).contains("mtu 620 "));
        host.on(async || BridgeNetwork::teardown(&host.node).unwrap());
    });
}

#[test]
fn pods_attached_before_the_overlay_talk_through_it() {
    among_hosts(|world| {
        let hosts = world.pair(OverlayMode::Always);
        let wide: Vec<Far> = hosts
            .iter()
            .map(|host| {
                let mut alone = host.node.clone();
                alone.overlay = None;
                let network = host.on(async || BridgeNetwork::new(alone).unwrap());
                host.pod(&network, "wide")
            })
            .collect();
        let _cluster = Cluster::of(hosts);
        let [near, far] = &wide[..] else {
            panic!("two pods");
        };
        inside(&far.netns, || {
            assert!(ip("link show dev eth0").contains("mtu 1500 "));
            echo(Ipv4Addr::UNSPECIFIED, ECHO);
        });
        inside(&near.netns, || {
            let mss = format!("sport = :{ECHO} or dport = :{ECHO}");
            let stream = TcpStream::connect((far.ip, ECHO)).unwrap();
            let sockets = command("ss", &["-tin", &mss]);
            assert!(
                sockets.contains(" pmtu:1500 ")
                    && sockets.contains(&format!(" mss:{} ", MTU - 40 - 12)),
                "both know from the start, by the clamped segment size alone: {sockets}"
            );
            drop(stream);
            assert_eq!(there_and_back(far.ip, ECHO, MIB), MIB);
            assert_eq!(datagram_at_last(far.ip, ECHO, 1500 - 28), 1500 - 28);
        });
    });
}

#[test]
fn teardown_leaves_nothing_of_the_way_to_other_hosts() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        world.subnet("wan", "198.51.100");
        let hosts = [
            world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto),
            world.host("lan", [192, 0, 2, 2], 2, OverlayMode::Auto),
            world.host("wan", [198, 51, 100, 3], 3, OverlayMode::Auto),
        ]
        .map(Host::dual_stack);
        let state = || {
            [
                ip("-o link").lines().count().to_string(),
                ip("-4 route show table all"),
                ip("-6 route show proto 71"),
                command("nft", &["list", "ruleset"]),
            ]
        };
        for family in ["ip", "ip6"] {
            let firewall = format!(
                "add table {family} filter; add chain {family} filter FORWARD {{ type filter hook forward priority 0; }}"
            );
            inside(&hosts[0].netns, || command("nft", &[&firewall]));
        }
        let before = inside(&hosts[0].netns, state);
        let cluster = Cluster::of(hosts);
        let host = &cluster.hosts[0];
        assert_ne!(inside(&host.netns, state), before);
        // Who tears down need not know how the node was reached.
        let mut alone = host.node.clone();
        alone.overlay = None;
        for _ in 0..2 {
            host.on(async || BridgeNetwork::teardown(&alone).unwrap());
            assert_eq!(inside(&host.netns, state), before);
        }
    });
}

#[test]
fn links_of_others_are_left_alone_and_named() {
    among_hosts(|world| {
        let [host, _] = world.pair(OverlayMode::Always);
        let overlay = VxlanOverlay::new(host.node.clone()).unwrap();
        let sync = || {
            let peers = vec![node("far", "192.0.2.2", "10.244.2.0/24")];
            host.on(async || overlay.sync(peers).await.map_err(|error| error.to_string()))
        };
        inside(&host.netns, || {
            ip("link add gt-vx type veth peer name other")
        });
        let error = sync().unwrap_err();
        assert!(
            error.contains("gt-vx") && error.contains("ip link del"),
            "{error}"
        );
        host.on(async || BridgeNetwork::teardown(&host.node).unwrap());
        assert!(inside(&host.netns, || ip("link")).contains("gt-vx"));
        inside(&host.netns, || {
            ip("link del gt-vx");
            ip("link add foreign type vxlan id 71 dstport 8472 local 192.0.2.1 nolearning");
        });
        let error = sync().unwrap_err();
        assert!(
            error.contains("identifier 71") && error.contains("8472"),
            "{error}"
        );
        inside(&host.netns, || {
            ip("link del foreign");
            ip("link add gt-vx type vxlan id 99 dstport 4789 local 192.0.2.1");
        });
        sync().unwrap();
        let device = inside(&host.netns, || ip("-d link show gt-vx"));
        for words in ["vxlan id 71 ", "dstport 8472", "nolearning", "mtu 1450"] {
            assert!(device.contains(words), "{words}: {device}");
        }
        let mut other_port = host.node.clone();
        other_port.overlay.as_mut().unwrap().port = 4790;
        let changed = VxlanOverlay::new(other_port).unwrap();
        let peers = vec![node("far", "192.0.2.2", "10.244.2.0/24")];
        host.on(async || changed.sync(peers).await.unwrap());
        inside(&host.netns, || {
            assert!(ip("-d link show gt-vx").contains("dstport 4790"));
            let rules = command("nft", &["list table inet gt-overlay"]);
            assert!(rules.contains("4790") && !rules.contains("8472"), "{rules}");
        });
        host.on(async || BridgeNetwork::teardown(&host.node).unwrap());
    });
}

#[test]
fn a_pod_that_does_not_exist_is_not_looked_for_everywhere() {
    among_hosts(|world| {
        let cluster = Cluster::of(world.pair(OverlayMode::Always));
        let near = &cluster.pods[0];
        // Of a node that is not known: nothing leads there but the default route, whose router refuses or is silent.
        let answer = inside(&near.netns, || {
            lab::ask_within(lab::SILENCE, [10, 244, 9, 9], PORT)
        });
        assert!(answer.is_err_and(|error| error != ErrorKind::ConnectionRefused));
        let counters = cluster.hosts[0].on(async || cluster.overlays[0].counters().await.unwrap());
        assert_eq!(counters.tx_packets, 0, "nothing is flooded");
    });
}

/// As [`serve`], on IPv6 and over TCP alone.
fn serve6(name: &'static str, port: u16) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            if let Ok(peer) = stream.peer_addr() {
                let _client_may_be_gone =
                    stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
            }
        }
    });
}

fn ask6(address: &str, port: u16) -> String {
    let address = SocketAddr::new(address.parse().unwrap(), port);
    let mut stream = TcpStream::connect_timeout(&address, lab::DEADLINE).unwrap();
    stream.set_read_timeout(Some(lab::DEADLINE)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn dual_stack_pods_are_reached_by_ipv6_too() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        world.subnet("wan", "198.51.100");
        let cluster = Cluster::of(
            [
                world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto),
                world.host("lan", [192, 0, 2, 2], 2, OverlayMode::Auto),
                world.host("wan", [198, 51, 100, 3], 3, OverlayMode::Auto),
            ]
            .map(Host::dual_stack),
        );
        for pod in &cluster.pods {
            inside(&pod.netns, || echo(Ipv6Addr::UNSPECIFIED, ECHO));
        }
        let near = &cluster.pods[0];
        assert_eq!(near.ip6, Some("fd00:10:244:1::2".parse().unwrap()));
        for far in &cluster.pods[1..] {
            let (ip, ip6) = (far.ip, far.ip6.unwrap());
            inside(&near.netns, || {
                assert_eq!(there_and_back(ip6, ECHO, MIB), MIB);
                assert_eq!(there_and_back(ip, ECHO, MIB), MIB);
                // IPv6's and UDP's headers take 48.
                for length in [1, MTU - 48, MTU - 47, 60_000] {
                    assert_eq!(datagram(ip6, ECHO, length).unwrap(), length);
                }
            });
            inside(&cluster.hosts[0].netns, || {
                assert_eq!(there_and_back(ip6, ECHO, MIB), MIB, "from the host");
            });
        }
        let own = near.ip6.unwrap();
        inside(&cluster.hosts[0].netns, || {
            assert_eq!(there_and_back(own, ECHO, 1000), 1000);
        });
        assert_eq!(
            paths(&cluster.hosts[0], &cluster.overlays[0]),
            [
                PeerPath::Direct,
                PeerPath::Vxlan,
                PeerPath::Vxlan,
                PeerPath::Vxlan
            ],
            "IPv6 between nodes of IPv4 is wrapped"
        );
        let second = cluster.hosts[0].pod(&cluster.networks[0], "second");
        inside(&second.netns, || {
            assert_eq!(there_and_back(own, ECHO, MIB), MIB, "on one host");
            let addresses = ip("-6 -o addr show dev eth0 scope global");
            assert!(
                addresses.contains("nodad") && !addresses.contains("tentative"),
                "{addresses}"
            );
        });
    });
}

#[test]
fn ipv6_that_leaves_the_cluster_comes_from_the_node_and_host_ports_lead_to_the_pod() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        let host = world
            .host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto)
            .dual_stack();
        let outside = world.machine("lan", [192, 0, 2, 9].into());
        inside(&host.netns, || {
            ip("-6 addr add 2001:db8::1/64 dev eth0 nodad");
            std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1").unwrap();
        });
        inside(&outside, || {
            ip("-6 addr add 2001:db8::9/64 dev eth0 nodad");
            serve6("outside", 7001);
        });
        let cluster = Cluster::of([host]);
        let (host, network, pod) = (&cluster.hosts[0], &cluster.networks[0], &cluster.pods[0]);
        assert_eq!(
            inside(&pod.netns, || ask6("2001:db8::9", 7001)),
            "outside 2001:db8::1"
        );
        let accepts = inside(&host.netns, || {
            std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra").unwrap()
        });
        assert_eq!(
            accepts.trim(),
            "2",
            "a host that forwards still hears its router"
        );
        let port = HostPort {
            host_ip: None,
            host_port: 18080,
            container_port: PORT,
            protocol: Protocol::Tcp,
        };
        let web = host.on(async || network.attach("web", &[port]).await.unwrap());
        let netns = std::fs::File::open(&web.netns).unwrap();
        inside(&netns, || serve6("web", PORT));
        for client in [&outside, &host.netns, &pod.netns, &netns] {
            let answer = inside(client, || ask6("2001:db8::1", 18080));
            assert!(answer.starts_with("web "), "{answer}");
        }
        assert_eq!(
            host.on(async || network.attached().await.unwrap())["web"],
            web
        );
        // What was attached before the cluster had IPv6 goes on without.
        let (again, _) = host.start();
        let found = host.on(async || again.attached().await.unwrap());
        assert_eq!(found["web"].ip6, web.ip6);
        host.on(async || again.detach("web").await.unwrap());
    });
}

#[test]
fn a_pod_of_before_keeps_to_ipv4_when_the_cluster_gets_ipv6() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        let host = world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto);
        let (network, _) = host.start();
        let old = host.pod(&network, "old");
        let cluster = Cluster::of([host.dual_stack()]);
        let (host, network) = (&cluster.hosts[0], &cluster.networks[0]);
        let attached = host.on(async || network.attach("old", &[]).await.unwrap());
        assert_eq!((attached.ip, attached.ip6), (old.ip, None));
        assert!(cluster.pods[0].ip6.is_some());
    });
}
