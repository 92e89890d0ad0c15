//! The way to pods of other hosts in a real kernel: the contract that the fake keeps as well, and what gets through.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpStream};

use gantry_network::{
    BridgeNetwork, FakeOverlay, NetworkError, Overlay, OverlayMode, PeerPath, PodRoute,
    VxlanOverlay,
};
use lab::hosts::{
    Cluster, ECHO, Far, MIB, MTU, PORT, among_hosts, datagram, datagram_at_last, echo, node, paths,
    there_and_back,
};
use lab::{ask, ask_udp, command, inside, ip, serve};

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
        inside(&outside, || serve("outside", [192, 0, 2, 9], 7001));
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
        inside(&outside, || serve("outside", [192, 0, 2, 9], 7001));
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
        inside(&outside, || serve("outside", [198, 51, 100, 9], 7001));
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
        let tracked = inside(&host.netns, || {
            std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap()
        });
        assert!(
            tracked.contains(&format!("dport={PORT} ")) && !tracked.contains("dport=8472"),
            "what is wrapped is tracked, and not the wrapping:
{tracked}"
        );
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
