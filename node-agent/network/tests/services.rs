//! Services in a real kernel: who answers, from which address the request seems to come, who is refused.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};

use gantry_network::{BridgeNetwork, NftServiceRules, NodeNetwork, Protocol, ServiceRules};
use lab::{
    HOST, OUTSIDE, ask, ask_udp, changed, endpoint, on_own_machine, only, serve, service, who,
};

const VIP: [u8; 4] = [10, 96, 0, 50];

fn start(node: &NodeNetwork) -> (BridgeNetwork, NftServiceRules) {
    (
        BridgeNetwork::new(node.clone()).unwrap(),
        NftServiceRules::new(node).unwrap(),
    )
}

#[test]
fn a_cluster_ip_balances_for_pods_and_the_host_and_pods_keep_their_address() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = [
            lab.pod(&network, "web-1", 8080).await,
            lab.pod(&network, "web-2", 8080).await,
        ];
        let client = lab.pod(&network, "client", 8080).await;
        rules
            .apply(only([(
                "web",
                service(VIP, web.iter().map(|p| p.endpoint(8080)).collect()),
            )]))
            .await
            .unwrap();
        let from_pod: BTreeSet<String> = (0..40)
            .map(|_| lab.inside(&client.netns, || ask(VIP, 80)).unwrap())
            .collect();
        assert_eq!(
            from_pod,
            BTreeSet::from([
                format!("web-1 {}", client.ip),
                format!("web-2 {}", client.ip)
            ]),
            "both answer, and see the client's own address"
        );
        let from_host: BTreeSet<String> = (0..40)
            .map(|_| {
                lab.on_host(|| ask(VIP, 80))
                    .unwrap()
                    .split(' ')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(
            from_host,
            BTreeSet::from(["web-1".to_owned(), "web-2".to_owned()])
        );
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service_with_and_without_bridge_netfilter() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        rules
            .apply(only([("web", service(VIP, vec![web.endpoint(8080)]))]))
            .await
            .unwrap();
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        for on in ["0", "1"] {
            if std::path::Path::new(switch).exists() {
                lab.on_host(|| std::fs::write(switch, on)).unwrap();
            }
            let answer = lab.inside(&web.netns, || ask(VIP, 80)).unwrap();
            assert!(
                answer.starts_with("web "),
                "{answer} with bridge netfilter {on}"
            );
            let answer = lab.inside(&client.netns, || ask(VIP, 80)).unwrap();
            assert_eq!(
                answer,
                format!("web {}", client.ip),
                "with bridge netfilter {on}"
            );
        }
    });
}

#[test]
fn without_endpoints_a_service_is_refused_at_once() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let client = lab.pod(&network, "client", 8080).await;
        lab::ip(&format!("route add default via {OUTSIDE}"));
        let mut none = service(VIP, vec![]);
        (none.node_port, none.external_ips) = (Some(30081), vec!["198.51.100.7".parse().unwrap()]);
        let mut udp = none.clone();
        udp.protocol = Protocol::Udp;
        rules
            .apply(only([("none", none), ("udp", udp)]))
            .await
            .unwrap();
        let refused = Err(ErrorKind::ConnectionRefused);
        assert_eq!(lab.inside(&client.netns, || ask(VIP, 80)), refused);
        assert_eq!(lab.inside(&client.netns, || ask_udp(VIP, 80)), refused);
        assert_eq!(lab.on_host(|| ask(VIP, 80)), refused);
        // A packet refused on its way out fails the call that sent it.
        assert_eq!(
            lab.on_host(|| ask_udp(VIP, 80)),
            Err(ErrorKind::PermissionDenied)
        );
        assert_eq!(lab.inside(&lab.outside, || ask(HOST, 30081)), refused);
        assert_eq!(lab.on_host(|| ask([127, 0, 0, 1], 30081)), refused);
        assert_eq!(
            lab.inside(&lab.outside, || ask([198, 51, 100, 7], 80)),
            refused
        );
        assert_eq!(
            lab.inside(&client.netns, || ask([10, 96, 9, 9], 80)),
            refused,
            "an address of no service"
        );
    });
}

#[test]
fn a_service_answered_by_the_host_itself_and_an_address_the_host_holds() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let client = lab.pod(&network, "client", 8080).await;
        lab.on_host(|| serve("host", HOST, 6443));
        let dns = Ipv4Addr::new(10, 96, 0, 10);
        network.bind_dns_address(dns).await.unwrap();
        network.bind_dns_address(dns).await.unwrap();
        lab.on_host(|| serve("dns", dns, 53));
        let mut api = service([10, 96, 0, 1], vec![endpoint(HOST, 6443)]);
        api.node_port = Some(30443);
        let mut of_nobody = service(dns, vec![]);
        (of_nobody.protocol, of_nobody.port) = (Protocol::Udp, 53);
        rules
            .apply(only([("kubernetes", api), ("kube-dns", of_nobody)]))
            .await
            .unwrap();
        assert_eq!(
            lab.inside(&client.netns, || ask([10, 96, 0, 1], 80))
                .unwrap(),
            format!("host {}", client.ip)
        );
        assert!(
            lab.on_host(|| ask([10, 96, 0, 1], 80))
                .unwrap()
                .starts_with("host ")
        );
        assert!(
            lab.on_host(|| ask([127, 0, 0, 1], 30443))
                .unwrap()
                .starts_with("host ")
        );
        assert!(
            lab.inside(&lab.outside, || ask(HOST, 30443))
                .unwrap()
                .starts_with("host ")
        );
        assert_eq!(
            lab.inside(&client.netns, || ask_udp(dns, 53)).unwrap(),
            format!("dns {}", client.ip)
        );
        assert_eq!(
            lab.inside(&client.netns, || ask(dns, 53)).unwrap(),
            format!("dns {}", client.ip)
        );
        assert!(
            lab.on_host(|| ask_udp(dns, 53))
                .unwrap()
                .starts_with("dns ")
        );
    });
}

#[test]
fn endpoints_follow_each_change_and_other_services_stay() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let first = lab.pod(&network, "first", 8080).await;
        let second = lab.pod(&network, "second", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let answer = |address: [u8; 4]| {
            lab.inside(&client.netns, || ask(address, 80))
                .map(|a| who(&a).to_owned())
        };
        let other = [10, 96, 0, 60];
        let bystander = service(other, vec![second.endpoint(8080)]);
        rules.apply(changed([("other", bystander)])).await.unwrap();
        let steps: [(Vec<_>, Result<&str, ErrorKind>); 5] = [
            (vec![first.endpoint(8080)], Ok("first")),
            (vec![second.endpoint(8080)], Ok("second")),
            (vec![], Err(ErrorKind::ConnectionRefused)),
            (
                vec![first.endpoint(8080), first.endpoint(8080)],
                Ok("first"),
            ),
            (vec![second.endpoint(8080)], Ok("second")),
        ];
        for (endpoints, expected) in steps {
            rules
                .apply(changed([("web", service(VIP, endpoints))]))
                .await
                .unwrap();
            assert_eq!(answer(VIP), expected.map(str::to_owned));
            assert_eq!(answer(other), Ok("second".to_owned()));
        }
        let moved = service([10, 96, 0, 61], vec![first.endpoint(8080)]);
        rules.apply(only([("web", moved)])).await.unwrap();
        assert_eq!(answer([10, 96, 0, 61]), Ok("first".to_owned()));
        for gone in [VIP, other] {
            assert_eq!(answer(gone), Err(ErrorKind::ConnectionRefused));
        }
        rules.apply(only([])).await.unwrap();
        assert_eq!(answer([10, 96, 0, 61]), Err(ErrorKind::ConnectionRefused));
        let left = lab::command("nft", &["list", "table", "ip", "gt-services"]);
        assert!(
            !left.contains("elements") && !left.contains("tcp_"),
            "nothing is left of services that are gone: {left}"
        );
    });
}

#[test]
fn a_flushed_ruleset_heals_with_everything_that_is_known() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let answer = |address| {
            lab.inside(&client.netns, || ask(address, 80))
                .map(|a| who(&a).to_owned())
        };
        let to_web = |address| service(address, vec![web.endpoint(8080)]);
        let other = [10, 96, 0, 60];
        rules.reassert().await.unwrap();
        let tables = lab::command("nft", &["list", "tables"]);
        assert!(!tables.contains("services"), "nothing was asked for yet");
        rules
            .apply(only([("web", to_web(VIP)), ("other", to_web(other))]))
            .await
            .unwrap();
        let flush = || lab::command("nft", &["flush", "ruleset"]);
        flush();
        network.reassert().await.unwrap();
        let third = [10, 96, 0, 70];
        rules
            .apply(changed([("third", to_web(third))]))
            .await
            .unwrap();
        for address in [VIP, other, third] {
            assert_eq!(answer(address), Ok("web".to_owned()), "healed by a change");
        }
        flush();
        network.reassert().await.unwrap();
        rules.reassert().await.unwrap();
        for address in [VIP, other, third] {
            assert_eq!(answer(address), Ok("web".to_owned()), "healed by itself");
        }
    });
}

/// The kernel of a test may know SCTP only as something to translate, so an INIT chunk is sent and received as it is.
#[test]
fn sctp_is_balanced_too() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let mut sctp = service(VIP, vec![web.endpoint(3868)]);
        sctp.protocol = Protocol::Sctp;
        rules.apply(only([("web", sctp)])).await.unwrap();
        let receiver = lab.inside(&web.netns, raw_sctp);
        lab.inside(&client.netns, || {
            let to = SocketAddrV4::new(VIP.into(), 0);
            rustix::net::sendto(
                raw_sctp(),
                &sctp_init(40000, 80),
                rustix::net::SendFlags::empty(),
                &to,
            )
        })
        .unwrap();
        let mut packet = [0; 256];
        let (length, _) =
            rustix::net::recv(&receiver, &mut packet[..], rustix::net::RecvFlags::empty()).unwrap();
        let (ip, chunk) = packet[..length].split_at(20);
        assert_eq!(ip[12..16], client.ip.octets(), "from the client itself");
        assert_eq!(
            chunk[..4],
            [40000u16.to_be_bytes(), 3868u16.to_be_bytes()].concat()[..]
        );
        let mut refused = service(VIP, vec![]);
        refused.protocol = Protocol::Sctp;
        rules.apply(only([("web", refused)])).await.unwrap();
    });
}

fn raw_sctp() -> rustix::fd::OwnedFd {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket, sockopt};
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::SCTP)).unwrap();
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(lab::DEADLINE)).unwrap();
    socket
}

/// A packet that opens an association (RFC 9260, section 3.3.2), with its CRC-32C.
fn sctp_init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9]);
    let sum = packet.iter().fold(!0u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    });
    packet[8..12].copy_from_slice(&(!sum).to_le_bytes());
    packet
}
