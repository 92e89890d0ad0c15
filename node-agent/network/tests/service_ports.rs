//! Services that are reached from outside, in a real kernel: node ports, external and load balancer addresses,
//! traffic policies, and whose address is replaced.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv4Addr;

use gantry_network::{
    BridgeNetwork, Endpoint, NftServiceRules, NodeNetwork, Protocol, ServiceRules,
};
use lab::{
    HOST, Lab, OUTSIDE, SILENCE, ask, ask_udp, ask_within, on_own_machine, only, serve, service,
    who,
};

const VIP: [u8; 4] = [10, 96, 0, 50];
const BALANCER: [u8; 4] = [198, 51, 100, 7];
/// A pod of another node: the neighbour has its address.
const ELSEWHERE: [u8; 4] = [10, 244, 7, 7];

fn start(node: &NodeNetwork) -> (BridgeNetwork, NftServiceRules) {
    (
        BridgeNetwork::new(node.clone()).unwrap(),
        NftServiceRules::new(node).unwrap(),
    )
}

/// Makes the neighbour a node with a pod.
fn other_node(lab: &Lab) -> Endpoint {
    lab::ip(&format!("route add 10.244.7.0/24 via {OUTSIDE}"));
    lab.inside(&lab.outside, || {
        lab::ip("addr add 10.244.7.7/32 dev lo");
        serve("elsewhere", ELSEWHERE, 8080);
    });
    Endpoint {
        local: false,
        ..lab::endpoint(ELSEWHERE, 8080)
    }
}

fn gateway(lab: &Lab) -> Ipv4Addr {
    lab.node.pod_cidr.hosts().next().unwrap()
}

#[test]
fn a_node_port_answers_on_all_addresses_of_the_node() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        let mut web_service = service(VIP, vec![web.endpoint(8080)]);
        web_service.node_port = Some(30080);
        let mut dns = service([10, 96, 0, 51], vec![web.endpoint(8080)]);
        (dns.protocol, dns.node_port) = (Protocol::Udp, Some(30080));
        rules
            .apply(only([("web", web_service), ("dns", dns)]))
            .await
            .unwrap();
        // Replies of a pod on this node pass it by themselves, so the client's address is kept.
        let answer = Ok(format!("web {OUTSIDE}"));
        assert_eq!(lab.inside(&lab.outside, || ask(HOST, 30080)), answer);
        assert_eq!(lab.inside(&lab.outside, || ask_udp(HOST, 30080)), answer);
        for address in [HOST, Ipv4Addr::LOCALHOST, gateway(lab)] {
            let answer = lab.on_host(|| ask(address, 30080)).unwrap();
            assert_eq!(who(&answer), "web", "{answer} on {address}");
            let answer = lab.on_host(|| ask_udp(address, 30080)).unwrap();
            assert_eq!(who(&answer), "web", "{answer} on {address} over UDP");
        }
        let answer = lab.inside(&web.netns, || ask(HOST, 30080)).unwrap();
        assert_eq!(who(&answer), "web", "{answer}");
    });
}

#[test]
fn only_what_comes_from_outside_and_goes_to_another_node_gets_this_nodes_address() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let client = lab.pod(&network, "client", 8080).await;
        let elsewhere = other_node(lab);
        let mut web = service(VIP, vec![elsewhere]);
        web.node_port = Some(30080);
        rules.apply(only([("web", web)])).await.unwrap();
        assert_eq!(
            lab.inside(&lab.outside, || ask(HOST, 30080)),
            Ok(format!("elsewhere {HOST}"))
        );
        let of_the_pod = Ok(format!("elsewhere {}", client.ip));
        assert_eq!(lab.inside(&client.netns, || ask(VIP, 80)), of_the_pod);
        assert_eq!(lab.inside(&client.netns, || ask(HOST, 30080)), of_the_pod);
        let of_the_node = lab.on_host(|| ask(VIP, 80)).unwrap();
        let own = [HOST, gateway(lab)].map(|ip| format!("elsewhere {ip}"));
        assert!(own.contains(&of_the_node), "{of_the_node}");
    });
}

#[test]
fn a_local_policy_keeps_the_source_and_to_this_node_but_not_its_own_pods() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let elsewhere = other_node(lab);
        let mut local = service(VIP, vec![web.endpoint(8080), elsewhere]);
        (local.node_port, local.external_ips) = (Some(30082), vec![BALANCER.into()]);
        (local.external_local, local.internal_local) = (true, true);
        local.local_endpoints = vec![web.endpoint(8080)];
        rules.apply(only([("local", local.clone())])).await.unwrap();
        for _ in 0..20 {
            let answer = Ok(format!("web {OUTSIDE}"));
            assert_eq!(lab.inside(&lab.outside, || ask(HOST, 30082)), answer);
            assert_eq!(lab.inside(&lab.outside, || ask(BALANCER, 80)), answer);
            assert_eq!(
                lab.inside(&client.netns, || ask(VIP, 80)),
                Ok(format!("web {}", client.ip))
            );
        }
        for (address, port) in [(HOST, 30082), (BALANCER.into(), 80)] {
            let answers: BTreeSet<String> = (0..40)
                .map(|_| lab.inside(&client.netns, || ask(address, port)).unwrap())
                .map(|answer| who(&answer).to_owned())
                .collect();
            assert_eq!(
                answers,
                BTreeSet::from(["elsewhere".to_owned(), "web".to_owned()]),
                "a pod reaches all endpoints through {address}"
            );
        }
        // Where none is ready, one that still serves while it terminates is better than nothing.
        local.endpoints = vec![elsewhere];
        rules.apply(only([("local", local.clone())])).await.unwrap();
        assert_eq!(
            lab.inside(&lab.outside, || ask(HOST, 30082)),
            Ok(format!("web {OUTSIDE}"))
        );
        local.local_endpoints.clear();
        rules.apply(only([("local", local)])).await.unwrap();
        assert_eq!(
            lab.inside(&lab.outside, || ask_within(SILENCE, HOST, 30082)),
            Err(ErrorKind::TimedOut),
            "no endpoint here: dropped, so that balancers look elsewhere"
        );
        assert_eq!(
            lab.inside(&client.netns, || ask_within(SILENCE, VIP, 80)),
            Err(ErrorKind::TimedOut)
        );
        let answer = lab.inside(&client.netns, || ask(HOST, 30082)).unwrap();
        assert_eq!(who(&answer), "elsewhere", "{answer}");
    });
}

#[test]
fn a_load_balancer_is_for_its_source_ranges() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let mut balanced = service(VIP, vec![web.endpoint(8080)]);
        balanced.load_balancer_ips = vec![BALANCER.into(), HOST.into()];
        balanced.node_port = Some(30083);
        let steps: [(&[&str], bool, bool); 4] = [
            (&[], true, true),
            (&["192.0.2.0/30", "203.0.113.0/24"], true, false),
            (&["10.244.0.0/16", "10.244.1.0/24"], false, true),
            (&["192.0.2.2/32", "10.0.0.0/8"], true, true),
        ];
        for (ranges, outside, inside) in steps {
            balanced.source_ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
            rules
                .apply(only([("balanced", balanced.clone())]))
                .await
                .unwrap();
            for (address, port, guarded) in [
                (Ipv4Addr::from(BALANCER), 80, true),
                (HOST, 80, true),
                (HOST, 30083, false),
            ] {
                for (namespace, allowed) in [(&lab.outside, outside), (&client.netns, inside)] {
                    let answer = lab.inside(namespace, || {
                        let deadline = if allowed { lab::DEADLINE } else { SILENCE };
                        ask_within(deadline, address, port).map(|answer| who(&answer).to_owned())
                    });
                    let expected = if allowed || !guarded {
                        Ok("web".to_owned())
                    } else {
                        Err(ErrorKind::TimedOut)
                    };
                    assert_eq!(answer, expected, "{ranges:?} {address} {port}");
                }
            }
        }
    });
}
