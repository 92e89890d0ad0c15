//! Pods in a real kernel: the contract that the fake keeps as well, and everything only a kernel can show.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;

use gantry_network::{BridgeNetwork, FakePodNetwork, HostPort, NetworkError, PodNetwork, Protocol};
use lab::{
    DEADLINE, HOST, OUTSIDE, Pod, ask, ask_udp, ask_within, command, ip, on_own_machine, serve,
};
use tokio::io::AsyncReadExt as _;

fn host_port(host_ip: Option<Ipv4Addr>, host_port: u16, protocol: Protocol) -> HostPort {
    HostPort {
        host_ip: host_ip.map(IpAddr::from),
        host_port,
        container_port: 8080,
        protocol,
    }
}

/// What every [`PodNetwork`] keeps.
async fn contract(network: &impl PodNetwork) {
    let web = [host_port(None, 18080, Protocol::Tcp)];
    let first = network.attach("first", &web).await.unwrap();
    let second = network.attach("second", &[]).await.unwrap();
    assert_ne!(first.ip, second.ip);
    assert_ne!(first.netns, second.netns);
    assert_eq!(
        network.attach("first", &web).await.unwrap(),
        first,
        "attaching again changes nothing"
    );
    let attached = network.attached().await.unwrap();
    assert_eq!(attached.keys().collect::<Vec<_>>(), ["first", "second"]);
    assert_eq!(attached["first"], first);
    let passed = network.traffic().await.unwrap();
    assert!(passed.pods.keys().eq(attached.keys()), "{passed:?}");
    assert!(passed.connections.keys().eq(attached.keys()), "{passed:?}");

    match network.attach("third", &web).await {
        Err(NetworkError::HostPortInUse {
            port: 18080,
            protocol,
        }) => assert_eq!(protocol, "TCP"),
        other => panic!("a host port was given twice: {other:?}"),
    }
    assert!(
        !network.attached().await.unwrap().contains_key("third"),
        "a refused pod holds nothing"
    );
    network
        .attach("third", &[host_port(None, 18080, Protocol::Udp)])
        .await
        .unwrap();

    network.detach("first").await.unwrap();
    network.detach("first").await.unwrap();
    network.detach("never attached").await.unwrap_err();
    network.detach("never-attached").await.unwrap();
    assert!(!network.attached().await.unwrap().contains_key("first"));
    network.attach("fourth", &web).await.unwrap();

    let mut addresses = BTreeSet::new();
    for index in 0..10 {
        addresses.insert(
            network
                .attach(&format!("more-{index}"), &[])
                .await
                .unwrap()
                .ip,
        );
    }
    assert_eq!(addresses.len(), 10);
    let full = loop {
        if let Err(error) = network
            .attach(&format!("full-{}", addresses.len()), &[])
            .await
        {
            break error;
        }
        addresses.insert(
            network
                .attach(&format!("full-{}", addresses.len()), &[])
                .await
                .unwrap()
                .ip,
        );
    };
    assert!(matches!(full, NetworkError::NoFreeAddress(_)), "{full}");
    for uid in network.attached().await.unwrap().into_keys() {
        network.detach(&uid).await.unwrap();
    }
    assert_eq!(network.attached().await.unwrap().len(), 0);
    network.attach("after", &[]).await.unwrap();
}

#[test]
fn the_bridge_keeps_the_contract() {
    on_own_machine(async |lab| {
        lab.node.pod_cidr = "10.244.1.0/27".parse().unwrap();
        contract(&BridgeNetwork::new(lab.node.clone()).unwrap()).await;
    });
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    contract(&FakePodNetwork::new("10.244.1.0/27".parse().unwrap())).await;
}

#[test]
fn pods_reach_each_other_the_host_and_beyond() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let (a, b) = (
            lab.pod(&network, "a", 8080).await,
            lab.pod(&network, "b", 8080).await,
        );
        assert_eq!(
            lab.inside(&a.netns, || ask(b.ip, 8080)).unwrap(),
            format!("b {}", a.ip)
        );
        assert_eq!(
            lab.inside(&a.netns, || ask_udp(b.ip, 8080)).unwrap(),
            format!("b {}", a.ip)
        );
        assert_eq!(
            lab.inside(&a.netns, || ask([127, 0, 0, 1], 8080)).unwrap(),
            "a 127.0.0.1",
            "loopback is up"
        );
        assert!(lab.on_host(|| ask(a.ip, 8080)).unwrap().starts_with("a "));
        lab.on_host(|| serve("host", HOST, 7000));
        assert_eq!(
            lab.inside(&a.netns, || ask(HOST, 7000)).unwrap(),
            format!("host {}", a.ip)
        );
        lab.inside(&lab.outside, || serve("outside", OUTSIDE, 7001));
        assert_eq!(
            lab.inside(&a.netns, || ask(OUTSIDE, 7001)).unwrap(),
            format!("outside {HOST}"),
            "what leaves the cluster comes from the node's address"
        );
    });
}

#[test]
fn host_ports_lead_to_the_pod_and_end_with_it() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let loopback = Some(Ipv4Addr::LOCALHOST);
        let ports = [
            host_port(None, 18080, Protocol::Tcp),
            host_port(None, 18080, Protocol::Udp),
            host_port(loopback, 18081, Protocol::Tcp),
        ];
        let attachment = network.attach("web", &ports).await.unwrap();
        let netns = File::open(&attachment.netns).unwrap();
        lab.inside(&netns, || serve("web", Ipv4Addr::UNSPECIFIED, 8080));
        let client = lab.pod(&network, "client", 8080).await;

        assert_eq!(
            lab.inside(&lab.outside, || ask(HOST, 18080)).unwrap(),
            format!("web {OUTSIDE}"),
            "source kept"
        );
        assert_eq!(
            lab.inside(&lab.outside, || ask_udp(HOST, 18080)).unwrap(),
            format!("web {OUTSIDE}")
        );
        assert_eq!(
            lab.inside(&client.netns, || ask(HOST, 18080)).unwrap(),
            format!("web {}", client.ip)
        );
        for (address, port) in [
            (HOST, 18080),
            (Ipv4Addr::LOCALHOST, 18080),
            (Ipv4Addr::LOCALHOST, 18081),
        ] {
            assert!(
                lab.on_host(|| ask(address, port))
                    .unwrap()
                    .starts_with("web "),
                "{address}:{port}"
            );
        }
        assert!(
            lab.inside(&netns, || ask(HOST, 18080))
                .unwrap()
                .starts_with("web "),
            "the pod reaches itself"
        );
        assert_eq!(
            lab.inside(&lab.outside, || ask(HOST, 18081)),
            Err(ErrorKind::ConnectionRefused)
        );

        network.detach("web").await.unwrap();
        assert_eq!(
            lab.inside(&lab.outside, || ask(HOST, 18080)),
            Err(ErrorKind::ConnectionRefused)
        );
        let held = lab.on_host(|| TcpListener::bind((HOST, 18080))).unwrap();
        let refused = network.attach("web", &ports).await.unwrap_err();
        assert!(
            matches!(refused, NetworkError::HostPortInUse { port: 18080, .. }),
            "{refused}"
        );
        drop(held);
        network.attach("web", &ports).await.unwrap();
    });
}

#[test]
fn a_new_agent_process_finds_the_pods_of_the_last_one() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let ports = [host_port(None, 18080, Protocol::Tcp)];
        let web = network.attach("web", &ports).await.unwrap();
        let netns = File::open(&web.netns).unwrap();
        lab.inside(&netns, || serve("web", Ipv4Addr::UNSPECIFIED, 8080));
        let lost = network.attach("lost", &[]).await.unwrap();
        drop(network);
        // As after a crash between two steps, and after something removed a namespace's mount.
        rustix::mount::unmount(&lost.netns, rustix::mount::UnmountFlags::DETACH).unwrap();
        ip("link add gt.77 type veth peer name stray");
        File::create(lab.node.data_dir.join("netns/stray")).unwrap();
        std::fs::write(lab.node.data_dir.join("leases/broken.json"), "{").unwrap();

        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        assert_eq!(
            network
                .attached()
                .await
                .unwrap()
                .into_iter()
                .collect::<Vec<_>>(),
            [("web".to_owned(), web.clone())]
        );
        assert!(
            lab.inside(&lab.outside, || ask(HOST, 18080))
                .unwrap()
                .starts_with("web ")
        );
        assert_eq!(network.attach("web", &ports).await.unwrap(), web);
        assert!(!ip("-o link").contains("gt.77"), "{}", ip("-o link"));
        assert!(!lab.node.data_dir.join("netns/stray").exists());
        assert_ne!(network.attach("new", &[]).await.unwrap().ip, web.ip);
    });
}

#[test]
fn many_pods_at_once_get_addresses_of_their_own_and_all_work() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let mut attaching = tokio::task::JoinSet::new();
        for index in 0..40 {
            let network = network.clone();
            // Every pod twice at the same time: the second finds what the first made.
            attaching.spawn(async move {
                network
                    .attach(&format!("pod-{}", index / 2), &[])
                    .await
                    .unwrap()
            });
        }
        let attached = attaching.join_all().await;
        let addresses: BTreeSet<Ipv4Addr> = attached.iter().map(|pod| pod.ip).collect();
        assert_eq!(addresses.len(), 20);
        for pod in &attached {
            let netns = File::open(&pod.netns).unwrap();
            let address = lab.inside(&netns, || ip("-4 -o addr show dev eth0"));
            assert!(address.contains(&format!(" {}/32 ", pod.ip)), "{address}");
        }
        let mut detaching = tokio::task::JoinSet::new();
        for index in 0..40 {
            let network = network.clone();
            detaching
                .spawn(async move { network.detach(&format!("pod-{}", index / 2)).await.unwrap() });
        }
        detaching.join_all().await;
        assert!(network.attached().await.unwrap().is_empty());
        assert!(!ip("-o link").contains("gt."), "{}", ip("-o link"));
    });
}

#[test]
fn a_pair_that_something_removed_is_made_again() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let (a, b) = (
            lab.pod(&network, "a", 8080).await,
            lab.pod(&network, "b", 8080).await,
        );
        ip(&format!("link del gt.{}", a.ip.octets()[3]));
        assert_eq!(network.attach("a", &[]).await.unwrap().ip, a.ip);
        assert_eq!(
            lab.inside(&b.netns, || ask(a.ip, 8080)).unwrap(),
            format!("a {}", b.ip),
            "the same namespace"
        );
    });
}

#[test]
fn a_firewall_that_drops_what_is_forwarded_does_not_cut_pods_off() {
    on_own_machine(async |lab| {
        command(
            "nft",
            &[
                "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
            ],
        );
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if std::path::Path::new(switch).exists() {
            lab.on_host(|| std::fs::write(switch, "1")).unwrap();
        }
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let (a, b): (Pod, Pod) = (
            lab.pod(&network, "a", 8080).await,
            lab.pod(&network, "b", 8080).await,
        );
        lab.inside(&lab.outside, || serve("outside", OUTSIDE, 7001));
        assert_eq!(
            lab.inside(&a.netns, || ask(b.ip, 8080)).unwrap(),
            format!("b {}", a.ip)
        );
        assert!(
            lab.inside(&a.netns, || ask(OUTSIDE, 7001))
                .unwrap()
                .starts_with("outside ")
        );
        network.reassert().await.unwrap();
        let chain = command("nft", &["list", "chain", "ip", "filter", "FORWARD"]);
        assert_eq!(
            chain.matches("gantry: gt-br").count(),
            2,
            "once for each direction:\n{chain}"
        );
        BridgeNetwork::teardown(&lab.node).unwrap();
        let chain = command("nft", &["list", "chain", "ip", "filter", "FORWARD"]);
        assert!(
            !chain.contains("gantry") && chain.contains("policy drop"),
            "{chain}"
        );
    });
}

#[test]
fn pods_cannot_reach_the_hosts_loopback() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let pod = lab.pod(&network, "pod", 8080).await;
        lab.on_host(|| serve("secret", Ipv4Addr::LOCALHOST, 7002));
        let answer = lab.inside(&pod.netns, || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            ip("addr del 127.0.0.1/8 dev lo");
            ip(&format!(
                "route add 127.0.0.1/32 via {} dev eth0 table local",
                lab.node.pod_cidr.hosts().next().unwrap()
            ));
            ask_within(lab::SILENCE, Ipv4Addr::LOCALHOST, 7002)
        });
        assert!(answer.is_err(), "{answer:?}");
        assert!(
            lab.on_host(|| ask_within(DEADLINE, Ipv4Addr::LOCALHOST, 7002))
                .is_ok()
        );
    });
}

#[test]
fn teardown_leaves_nothing_and_can_run_twice() {
    on_own_machine(async |lab| {
        let links = ip("-o link");
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        network
            .attach("a", &[host_port(None, 18080, Protocol::Tcp)])
            .await
            .unwrap();
        network
            .bind_dns_address([10, 96, 0, 10].into())
            .await
            .unwrap();
        drop(network);
        for _ in 0..2 {
            BridgeNetwork::teardown(&lab.node).unwrap();
            assert_eq!(
                ip("-o link").lines().count(),
                links.lines().count(),
                "{}",
                ip("-o link")
            );
            assert_eq!(command("nft", &["list", "tables"]), "");
            let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert!(
                !mounts.contains(lab.node.data_dir.to_str().unwrap()),
                "{mounts}"
            );
            assert_eq!(std::fs::read_dir(&lab.node.data_dir).unwrap().count(), 0);
        }
    });
}

#[test]
fn a_link_of_that_name_that_is_no_bridge_is_named_in_the_error() {
    on_own_machine(async |lab| {
        ip("link add gt-br type veth peer name other");
        let error = BridgeNetwork::new(lab.node.clone())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("gt-br") && error.contains("ip link del"),
            "{error}"
        );
    });
}

#[test]
fn a_pods_loopback_is_reached_from_outside() {
    on_own_machine(async |lab| {
        let network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let attached = network.attach("web", &[]).await.unwrap();
        let netns = File::open(&attached.netns).unwrap();
        lab.inside(&netns, || serve("inside", Ipv4Addr::LOCALHOST, 8080));
        let read = async |netns: Option<&Path>| {
            let mut stream = gantry_network::connect_inside(netns, 8080).await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            tokio::time::timeout(DEADLINE, read).await.unwrap().unwrap();
            answer
        };
        assert_eq!(
            read(Some(attached.netns.as_path())).await,
            "inside 127.0.0.1"
        );
        let refused = gantry_network::connect_inside(Some(&attached.netns), 8081).await;
        let message = refused.unwrap_err().to_string();
        assert_eq!(message, "connecting to localhost:8081");
        assert!(
            gantry_network::connect_inside(Some(Path::new("/nowhere")), 1)
                .await
                .is_err()
        );
    });
}
