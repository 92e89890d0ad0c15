//! Services in a real kernel: who answers, from which address the request seems to come, who is refused.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;
use std::io::ErrorKind;

use gantry_network::{BridgeNetwork, NftServiceRules, NodeNetwork, Protocol, ServiceRules};
use lab::{HOST, OUTSIDE, Pod, ask, ask_udp, ask_within, on_own_machine, serve, service};

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
            .sync(vec![service(
                "web",
                VIP,
                web.iter().map(|p| p.endpoint(8080)).collect(),
            )])
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
            .sync(vec![service("web", VIP, vec![web.endpoint(8080)])])
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
fn a_node_port_answers_on_all_addresses_of_the_node() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        let mut web_service = service("web", VIP, vec![web.endpoint(8080)]);
        web_service.node_port = Some(30080);
        let mut dns = service("dns", [10, 96, 0, 51], vec![web.endpoint(8080)]);
        (dns.protocol, dns.node_port) = (Protocol::Udp, Some(30080));
        rules.sync(vec![web_service, dns]).await.unwrap();
        let gateway = network_gateway(lab);
        // Replies must pass this node again: what comes from outside arrives from the node's own address.
        assert_eq!(
            lab.inside(&lab.outside, || ask(HOST, 30080)).unwrap(),
            format!("web {gateway}")
        );
        assert_eq!(
            lab.inside(&lab.outside, || ask_udp(HOST, 30080)).unwrap(),
            format!("web {gateway}")
        );
        for address in [HOST.octets(), [127, 0, 0, 1], gateway.octets()] {
            let answer = lab.on_host(|| ask(address, 30080)).unwrap();
            assert!(answer.starts_with("web "), "{answer} on {address:?}");
            let answer = lab.on_host(|| ask_udp(address, 30080)).unwrap();
            assert!(
                answer.starts_with("web "),
                "{answer} on {address:?} over UDP"
            );
        }
        assert!(
            lab.inside(&web.netns, || ask(HOST, 30080))
                .unwrap()
                .starts_with("web ")
        );
    });
}

#[test]
fn without_endpoints_a_service_is_refused_at_once() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let client = lab.pod(&network, "client", 8080).await;
        lab::ip(&format!("route add default via {OUTSIDE}"));
        let mut none = service("none", VIP, vec![]);
        (none.node_port, none.external_ips) = (Some(30081), vec!["198.51.100.7".parse().unwrap()]);
        let mut udp = none.clone();
        (udp.protocol, udp.service) = (Protocol::Udp, "udp".into());
        rules.sync(vec![none, udp]).await.unwrap();
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
fn external_addresses_and_local_policies() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let elsewhere = gantry_network::Endpoint {
            ip: [10, 244, 7, 7].into(),
            port: 8080,
            local: false,
        };
        let external: std::net::Ipv4Addr = [198, 51, 100, 7].into();
        let mut local = service("local", VIP, vec![web.endpoint(8080), elsewhere]);
        (local.node_port, local.external_ips) = (Some(30082), vec![external]);
        (local.external_local, local.internal_local) = (true, true);
        rules.sync(vec![local.clone()]).await.unwrap();
        for _ in 0..20 {
            let answer = format!("web {OUTSIDE}");
            assert_eq!(
                lab.inside(&lab.outside, || ask(HOST, 30082)).unwrap(),
                answer,
                "the source is kept"
            );
            assert_eq!(
                lab.inside(&lab.outside, || ask(external, 80)).unwrap(),
                answer
            );
            assert_eq!(
                lab.inside(&client.netns, || ask(VIP, 80)).unwrap(),
                format!("web {}", client.ip)
            );
        }
        local.endpoints = vec![elsewhere];
        rules.sync(vec![local]).await.unwrap();
        let silent = lab.inside(&lab.outside, || ask_within(lab::SILENCE, HOST, 30082));
        assert_eq!(
            silent,
            Err(ErrorKind::TimedOut),
            "no endpoint here: dropped, so that balancers look elsewhere"
        );
        assert_eq!(
            lab.inside(&client.netns, || ask_within(lab::SILENCE, VIP, 80)),
            Err(ErrorKind::TimedOut)
        );
    });
}

#[test]
fn session_affinity_keeps_a_client_with_its_endpoint() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let mut web: Vec<Pod> = Vec::new();
        for name in ["web-1", "web-2", "web-3"] {
            web.push(lab.pod(&network, name, 8080).await);
        }
        let mut sticky = service("web", VIP, web.iter().map(|p| p.endpoint(8080)).collect());
        sticky.client_ip_affinity = Some(10_800);
        rules.sync(vec![sticky]).await.unwrap();
        let mut chosen = BTreeSet::new();
        for index in 0..8 {
            let client = lab.pod(&network, &format!("client-{index}"), 8080).await;
            let answers: BTreeSet<String> = (0..10)
                .map(|_| lab.inside(&client.netns, || ask(VIP, 80)).unwrap())
                .collect();
            assert_eq!(answers.len(), 1, "{answers:?}");
            chosen.extend(
                answers
                    .into_iter()
                    .map(|answer| answer.split(' ').next().unwrap().to_owned()),
            );
        }
        assert!(
            chosen.len() > 1,
            "all eight clients were sent to {chosen:?}"
        );
    });
}

#[test]
fn endpoints_follow_each_sync_and_a_flushed_ruleset_heals() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let first = lab.pod(&network, "first", 8080).await;
        let second = lab.pod(&network, "second", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let answer = || {
            lab.inside(&client.netns, || ask(VIP, 80))
                .map(|a| a.split(' ').next().unwrap().to_owned())
        };
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
                .sync(vec![service("web", VIP, endpoints)])
                .await
                .unwrap();
            assert_eq!(answer(), expected.map(str::to_owned));
        }
        lab::command("nft", &["flush", "ruleset"]);
        network.reassert().await.unwrap();
        rules
            .sync(vec![service("web", VIP, vec![first.endpoint(8080)])])
            .await
            .unwrap();
        assert_eq!(answer(), Ok("first".to_owned()));
        rules.sync(vec![]).await.unwrap();
        assert_eq!(answer(), Err(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn a_service_answered_by_the_host_itself_and_an_address_the_host_holds() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let client = lab.pod(&network, "client", 8080).await;
        lab.on_host(|| serve("host", HOST, 6443));
        let dns = std::net::Ipv4Addr::new(10, 96, 0, 10);
        network.bind_dns_address(dns).await.unwrap();
        network.bind_dns_address(dns).await.unwrap();
        lab.on_host(|| serve("dns", dns, 53));
        let on_host = gantry_network::Endpoint {
            ip: HOST,
            port: 6443,
            local: true,
        };
        let mut api = service("kubernetes", [10, 96, 0, 1], vec![on_host]);
        api.node_port = Some(30443);
        let mut of_nobody = service("kube-dns", dns.octets(), vec![]);
        (of_nobody.protocol, of_nobody.port) = (Protocol::Udp, 53);
        rules.sync(vec![api, of_nobody]).await.unwrap();
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

fn network_gateway(lab: &lab::Lab) -> std::net::Ipv4Addr {
    lab.node.pod_cidr.hosts().next().unwrap()
}
