//! IPv6 beside IPv4 in a real kernel: between pods of one host and of several, and out of the cluster.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use gantry_network::{HostPort, OverlayMode, PeerPath, PodNetwork, Protocol};
use lab::hosts::{
    Cluster, ECHO, Host, MIB, MTU, PORT, among_hosts, datagram, echo, paths, there_and_back,
};
use lab::{inside, ip};

/// As the lab's server, on IPv6 and over TCP alone.
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
        let of_one = HostPort {
            host_ip: Some("2001:db8::1".parse().unwrap()),
            host_port: 18081,
            ..port.clone()
        };
        let web = host.on(async || network.attach("web", &[port, of_one]).await.unwrap());
        let netns = std::fs::File::open(&web.netns).unwrap();
        inside(&netns, || serve6("web", PORT));
        for client in [&outside, &host.netns, &pod.netns, &netns] {
            let answer = inside(client, || ask6("2001:db8::1", 18080));
            assert!(answer.starts_with("web "), "{answer}");
        }
        let gateway = "fd00:10:244:1::1";
        assert!(inside(&pod.netns, || ask6(gateway, 18080)).starts_with("web "));
        assert!(inside(&outside, || ask6("2001:db8::1", 18081)).starts_with("web "));
        let elsewhere = inside(&pod.netns, || {
            lab::ask(gateway.parse::<Ipv6Addr>().unwrap(), 18081)
        });
        assert_eq!(elsewhere, Err(std::io::ErrorKind::ConnectionRefused));
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
