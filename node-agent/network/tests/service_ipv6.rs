//! Services with IPv6 addresses beside those with IPv4, in a real kernel.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv6Addr;

use gantry_network::{
    BridgeNetwork, Endpoint, Ipv6Network, NftServiceRules, PodNetwork as _, Protocol,
    ServiceChanges, ServiceRules,
};
use lab::{
    Lab, Pod, SILENCE, UdpClient, ask, ask_udp, ask_within, changed, name, on_own_machine, serve,
    service, who,
};

const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OUTSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const VIP: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x96, 0, 0, 0, 0, 0, 0x50);
const BALANCER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7);

/// Gives the machine IPv6, and an address to share with the neighbour.
fn dual_stack(lab: &mut Lab) -> (BridgeNetwork, NftServiceRules) {
    lab.node.ipv6 = Some(Ipv6Network {
        pod_cidr: "fd10:244:0:1::/64".parse().unwrap(),
        cluster_pod_cidr: "fd10:244::/48".parse().unwrap(),
        service_cidr: Some("fd10:96::/112".parse().unwrap()),
    });
    let network = BridgeNetwork::new(lab.node.clone()).unwrap();
    let rules = NftServiceRules::new(&lab.node).unwrap();
    lab.on_host(|| lab::ip("-6 addr replace 2001:db8::1/64 dev uplink nodad"));
    lab.inside(&lab.outside, || {
        lab::ip("-6 addr replace 2001:db8::2/64 dev eth0 nodad");
        lab::ip("-6 route replace default via 2001:db8::1");
    });
    (network, rules)
}

/// A pod that answers at both its addresses.
async fn pod(lab: &Lab, network: &BridgeNetwork, name: &str) -> (Pod, Endpoint) {
    let pod = lab.pod(network, name, 8080).await;
    let ip = network.attached().await.unwrap()[name].ip6.unwrap();
    lab.inside(&pod.netns, || serve(name, ip, 8080));
    (pod, lab::endpoint(ip, 8080))
}

#[test]
fn a_dual_stack_service_answers_in_both_families() {
    on_own_machine(async |lab| {
        let (network, rules) = dual_stack(lab);
        let (web, web6) = pod(lab, &network, "web").await;
        let (other, other6) = pod(lab, &network, "other").await;
        let (client, client6) = pod(lab, &network, "client").await;
        let v4 = [10, 96, 0, 50];
        let ports = vec![
            service(v4, vec![web.endpoint(8080), other.endpoint(8080)]),
            service(VIP, vec![web6, other6]),
        ];
        let changes = ServiceChanges {
            complete: true,
            services: [(name("web"), ports)].into(),
        };
        rules.apply(changes).await.unwrap();
        let answers = |address: std::net::IpAddr| -> BTreeSet<String> {
            (0..40)
                .map(|_| lab.inside(&client.netns, || ask(address, 80)).unwrap())
                .collect()
        };
        let from = |ip: &dyn std::fmt::Display| {
            BTreeSet::from([format!("web {ip}"), format!("other {ip}")])
        };
        assert_eq!(answers(v4.into()), from(&client.ip));
        assert_eq!(answers(VIP.into()), from(&client6.ip));
        let itself = lab.inside(&web.netns, || {
            (0..10).map(|_| ask(VIP, 80).unwrap()).collect::<Vec<_>>()
        });
        assert!(
            itself.iter().any(|answer| who(answer) == "web"),
            "{itself:?}"
        );
        let on_host = lab.on_host(|| ask(VIP, 80)).unwrap();
        assert!(["web", "other"].contains(&who(&on_host)), "{on_host}");
    });
}

#[test]
fn the_bridge_looks_for_pods_at_once() {
    on_own_machine(async |lab| {
        let (network, _) = dual_stack(lab);
        let _first = pod(lab, &network, "first").await;
        let addresses = lab.on_host(|| lab::ip("-6 -o addr show dev gt-br scope link"));
        assert!(
            addresses.contains("fe80:") && !addresses.contains("tentative"),
            "{addresses}"
        );
    });
}

#[test]
fn ports_policies_refusals_affinity_and_ranges_are_those_of_ipv4() {
    on_own_machine(async |lab| {
        let (network, rules) = dual_stack(lab);
        let (_web, web6) = pod(lab, &network, "web").await;
        let (_other, other6) = pod(lab, &network, "other").await;
        let (client, _) = pod(lab, &network, "client").await;
        let mut web = service(VIP, vec![web6, other6]);
        (web.node_port, web.external_local) = (Some(30080), true);
        web.local_endpoints = vec![web6];
        web.load_balancer_ips = vec![BALANCER.into()];
        web.source_ranges = vec!["2001:db8::/64".parse().unwrap()];
        web.client_ip_affinity = Some(60);
        rules.apply(changed([("web", web.clone())])).await.unwrap();
        let expected = Ok(format!("web {OUTSIDE}"));
        assert_eq!(lab.inside(&lab.outside, || ask(HOST, 30080)), expected);
        assert_eq!(lab.inside(&lab.outside, || ask(BALANCER, 80)), expected);
        assert_eq!(
            lab.inside(&client.netns, || ask_within(SILENCE, BALANCER, 80)),
            Err(ErrorKind::TimedOut),
            "not of the source ranges"
        );
        let answers: BTreeSet<String> = (0..10)
            .map(|_| lab.inside(&client.netns, || ask(VIP, 80)).unwrap())
            .collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
        (web.endpoints, web.local_endpoints) = (vec![], vec![]);
        rules.apply(changed([("web", web)])).await.unwrap();
        let refused = Err(ErrorKind::ConnectionRefused);
        assert_eq!(lab.inside(&client.netns, || ask(VIP, 80)), refused);
        assert_eq!(lab.inside(&lab.outside, || ask(HOST, 30080)), refused);
        let mut dns = service(VIP, vec![]);
        dns.protocol = Protocol::Udp;
        rules.apply(changed([("dns", dns.clone())])).await.unwrap();
        assert_eq!(lab.inside(&client.netns, || ask_udp(VIP, 80)), refused);
        dns.endpoints = vec![web6];
        rules.apply(changed([("dns", dns.clone())])).await.unwrap();
        let flow = lab.inside(&client.netns, || UdpClient::new(VIP, 80).unwrap());
        assert_eq!(who(&flow.ask().unwrap()), "web");
        dns.endpoints = vec![other6];
        rules.apply(changed([("dns", dns)])).await.unwrap();
        assert_eq!(who(&flow.ask().unwrap()), "other", "the flow was forgotten");
    });
}
