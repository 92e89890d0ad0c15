//! The kernel's entries that lead to other hosts while those move, leave, and are interfered with.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_network::{BridgeNetwork, Overlay, OverlayMode, PeerPath, VxlanOverlay};
use lab::hosts::{Cluster, ECHO, Far, Host, PORT, among_hosts, echo, node, paths};
use lab::{ask, command, inside, ip, serve};

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
