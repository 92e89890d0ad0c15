//! A network that somebody takes apart: it is noticed in one look and put right, pods that run included.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};

use gantry_network::{
    BridgeNetwork, Ipv6Network, LinkWatch, Looked, Overlay, OverlayMode, PodNetwork,
};
use lab::hosts::{Cluster, PORT, among_hosts};
use lab::{Lab, Pod, ask, command, inside, on_own_machine, serve};

/// Servers stay as long as the process.
static NEXT_PORT: AtomicU16 = AtomicU16::new(8100);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

fn shell(line: &str) {
    command("sh", &["-c", line]);
}

/// Two pods, the DNS service's address with somebody who answers there, and IPv6.
async fn set_up(lab: &mut Lab) -> (BridgeNetwork, [Pod; 2]) {
    lab.node.ipv6 = Some(Ipv6Network {
        pod_cidr: "fd00:10:244:1::/64".parse().unwrap(),
        cluster_pod_cidr: "fd00:10:244::/48".parse().unwrap(),
        service_cidr: Some("fd00:10:96::/112".parse().unwrap()),
    });
    let network = BridgeNetwork::new(lab.node.clone()).unwrap();
    network.bind_dns_address(DNS).await.unwrap();
    lab.on_host(|| serve("dns", DNS, 53));
    let pods = [
        lab.pod(&network, "a", 8080).await,
        lab.pod(&network, "b", 8080).await,
    ];
    (network, pods)
}

/// That both pods reach each other by both families, the host and what the host serves, and the host them.
async fn works(lab: &Lab, network: &BridgeNetwork, pods: &[Pod; 2]) {
    let attached = network.attached().await.unwrap();
    assert_eq!(attached.len(), 2);
    let [a, b] = pods;
    for (from, to) in [(a, b), (b, a)] {
        let netns = File::open(&attached[if std::ptr::eq(from, a) { "a" } else { "b" }].netns);
        let netns = netns.unwrap();
        lab.inside(&netns, || {
            assert!(ask(to.ip, 8080).unwrap().ends_with(&from.ip.to_string()));
            assert!(ask(DNS, 53).unwrap().starts_with("dns"));
        });
        assert!(lab.on_host(|| ask(to.ip, 8080)).is_ok());
    }
    let name = |pod: &Pod| attached.values().find(|one| one.ip == pod.ip).unwrap().ip6;
    let to = name(b).unwrap();
    let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
    lab.inside(&b.netns, || serve("six", to, port));
    let answer = lab.inside(&a.netns, || ask(to, port)).unwrap();
    assert!(answer.starts_with("six"), "{answer}");
}

#[test]
fn whatever_is_taken_apart_is_put_right_in_one_look() {
    for harm in [
        "ip link del gt-br",
        "ip link set gt-br down",
        "ip link set gt-br down; ip link set gt-br up",
        "ip addr flush dev gt-br",
        "ip addr del 10.96.0.10/32 dev gt-br",
        "ip -6 addr del fd00:10:244:1::1/64 dev gt-br",
        "ip link set gt-br address 02:00:00:00:00:01",
        "ip link del gt-br; ip link add gt-br type bridge; ip link set gt-br up",
        "ip link set gt.2 nomaster",
        "ip link set gt.2 down",
        "ip link del gt.2",
        "ip link set gt.2 down; ip link set gt.2 name other; ip link set other up",
        "ip link add other-br type bridge; ip link set gt.3 master other-br",
        "for link in gt.2 gt.3; do ip link del $link; done; ip link del gt-br",
        "ip route flush dev gt-br",
        "ip route del 10.96.0.0/12",
        "ip -6 route flush dev gt-br",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
        "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
        "echo 0 > /proc/sys/net/ipv4/conf/gt-br/route_localnet",
    ] {
        on_own_machine(async |lab| {
            let (network, pods) = set_up(lab).await;
            works(lab, &network, &pods).await;
            assert_eq!(network.look().await.unwrap(), Looked::default());
            lab.on_host(|| shell(harm));
            let Looked { found, left } = network.look().await.unwrap();
            assert!(!found.is_empty(), "{harm} was not noticed");
            assert!(left.is_empty(), "{harm}: {left:?}");
            let again = network.look().await.unwrap();
            assert_eq!(again, Looked::default(), "{harm}");
            works(lab, &network, &pods).await;
        });
    }
}

#[test]
fn an_agent_that_starts_finds_a_bridge_removed_and_connects_the_pods_of_before() {
    on_own_machine(async |lab| {
        let (network, pods) = set_up(lab).await;
        drop(network);
        lab.on_host(|| shell("ip link del gt-br; ip link del gt.3"));
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        network.bind_dns_address(DNS).await.unwrap();
        assert_eq!(network.look().await.unwrap(), Looked::default());
        works(lab, &network, &pods).await;
    });
}

#[test]
fn what_cannot_be_put_right_is_named_until_it_can() {
    on_own_machine(async |lab| {
        let (network, pods) = set_up(lab).await;
        lab.on_host(|| shell("ip link del gt-br; ip link add gt-br type veth peer name odd"));
        for _ in 0..2 {
            let Looked { left, .. } = network.look().await.unwrap();
            let named = left
                .iter()
                .any(|words| words.contains("gt-br exists and is not a bridge"));
            assert!(named, "{left:?}");
        }
        lab.on_host(|| shell("ip link del gt-br"));
        assert!(network.look().await.unwrap().left.is_empty());
        works(lab, &network, &pods).await;
    });
}

#[test]
fn a_pod_that_takes_itself_apart_is_no_trouble_of_the_nodes() {
    on_own_machine(async |lab| {
        let (network, pods) = set_up(lab).await;
        for harm in [
            "ip link del eth0",
            "ip link set eth0 down; ip link set eth0 name x; ip link add eth0 type veth peer name odd",
            "ip link del eth0; ip link add eth0 type veth peer name odd",
        ] {
            lab.inside(&pods[0].netns, || shell(harm));
            let Looked { left, .. } = network.look().await.unwrap();
            assert!(left.is_empty(), "{left:?}");
        }
        let Looked { left, .. } = network.look().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
        assert!(lab.on_host(|| ask(pods[1].ip, 8080)).is_ok());
    });
}

#[test]
fn a_port_that_is_no_pods_is_taken_off_the_bridge() {
    on_own_machine(async |lab| {
        let (network, pods) = set_up(lab).await;
        lab.on_host(|| {
            shell("ip link add odd type veth peer name even; ip link set odd master gt-br up");
        });
        let Looked { found, left } = network.look().await.unwrap();
        let named = |words: &String| words.contains("odd is a port of the bridge and no pod's");
        assert!(found.len() == 1 && named(&found[0]), "{found:?}");
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(network.look().await.unwrap(), Looked::default());
        let ports = lab.on_host(|| command("ip", &["-o", "link", "show", "master", "gt-br"]));
        assert!(!ports.contains("odd") && ports.contains("gt.2"), "{ports}");
        works(lab, &network, &pods).await;
    });
}

#[test]
fn changes_are_told_once() {
    on_own_machine(async |lab| {
        let mut links = LinkWatch::new().unwrap();
        assert!(!links.stirred());
        for change in [
            "ip link add some type veth peer name odd",
            "ip addr add 192.0.2.77/32 dev lo",
            "ip -6 addr add 2001:db8::77/128 dev lo",
            "for n in $(seq 200); do ip addr add 192.0.2.78/32 dev lo; ip addr del 192.0.2.78/32 dev lo; done",
        ] {
            lab.on_host(|| shell(change));
            assert!(links.stirred(), "{change}");
            assert!(!links.stirred(), "{change}");
        }
    });
}

#[test]
fn the_ways_to_other_nodes_are_looked_after_as_well() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        world.subnet("far", "198.51.100");
        let cluster = Cluster::of([
            world.host("lan", [192, 0, 2, 1], 1, OverlayMode::Auto),
            world.host("lan", [192, 0, 2, 2], 2, OverlayMode::Auto),
            world.host("far", [198, 51, 100, 3], 3, OverlayMode::Auto),
        ]);
        for pod in &cluster.pods {
            inside(&pod.netns, || serve("pod", Ipv4Addr::UNSPECIFIED, PORT));
        }
        let (host, overlay) = (&cluster.hosts[0], &cluster.overlays[0]);
        let reached = || {
            for other in &cluster.pods[1..] {
                inside(&cluster.pods[0].netns, || ask(other.ip, PORT)).unwrap();
            }
        };
        reached();
        let look = || host.on(async || overlay.look().await.unwrap());
        assert_eq!(look(), None);
        for harm in [
            "ip link del gt-vx",
            "ip link set gt-vx down",
            "ip link del gt-vx; ip link add gt-vx type veth peer name odd; ip link set gt-vx up; ip link del gt-vx",
            "ip addr flush dev gt-vx",
            "ip route flush proto 71",
            "ip route flush dev eth0 proto 71",
            "ip link set eth0 down; ip link set eth0 up; ip route add default via 192.0.2.254",
        ] {
            inside(&host.netns, || shell(harm));
            assert!(look().is_some(), "{harm} was not noticed");
            host.on(async || overlay.reassert().await.unwrap());
            assert_eq!(look(), None, "{harm}");
            reached();
        }
        inside(&host.netns, || {
            shell("ip link del gt-vx; ip link add gt-vx type veth peer name odd")
        });
        assert!(look().is_some());
        let error = host.on(async || overlay.reassert().await.unwrap_err());
        assert!(
            error
                .to_string()
                .contains("gt-vx exists and is not a VXLAN device"),
            "{error}"
        );
        assert!(look().is_some());
        inside(&host.netns, || shell("ip link del gt-vx"));
        host.on(async || overlay.reassert().await.unwrap());
        assert_eq!(look(), None);
        reached();
    });
}
