//! Session affinity in a real kernel.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;
use std::time::Instant;

use gantry_network::{
    BridgeNetwork, Endpoint, NftServiceRules, NodeNetwork, ServicePort, ServiceRules,
};
use lab::{HOST, Lab, OUTSIDE, Pod, ask, changed, on_own_machine, only, service, who};

const VIP: [u8; 4] = [10, 96, 0, 50];

fn start(node: &NodeNetwork) -> (BridgeNetwork, NftServiceRules) {
    (
        BridgeNetwork::new(node.clone()).unwrap(),
        NftServiceRules::new(node).unwrap(),
    )
}

async fn pods<const N: usize>(lab: &Lab, network: &BridgeNetwork, name: &str) -> [Pod; N] {
    let mut pods = Vec::new();
    for number in 0..N {
        pods.push(lab.pod(network, &format!("{name}-{number}"), 8080).await);
    }
    pods.try_into()
        .unwrap_or_else(|_| unreachable!("as many as asked for"))
}

fn sticky(timeout: u32, endpoints: impl IntoIterator<Item = Endpoint>) -> ServicePort {
    let mut sticky = service(VIP, endpoints.into_iter().collect());
    sticky.client_ip_affinity = Some(timeout);
    sticky
}

/// Who answers a client, the same one each time.
fn endpoint_of(lab: &Lab, client: &Pod) -> String {
    let answers: BTreeSet<String> = (0..5)
        .map(|_| lab.inside(&client.netns, || ask(VIP, 80)).unwrap())
        .map(|answer| who(&answer).to_owned())
        .collect();
    assert_eq!(answers.len(), 1, "{answers:?}");
    answers.into_iter().next().unwrap()
}

/// The seconds until the kernel forgets a client of the service, in the only set that knows it.
fn expires(lab: &Lab, client: &Pod) -> Option<f64> {
    let listing = lab.on_host(|| lab::command("nft", &["list", "table", "ip", "gt-services"]));
    let element = format!("{} . 10.96.0.50 . 6 . 80 timeout ", client.ip);
    let mut found = listing.split(&element).skip(1);
    let (_, rest) = found.next()?.split_once("expires ")?;
    assert!(found.next().is_none(), "known in two slots: {listing}");
    // Such as 2s960ms, 2s or 960ms.
    let time = rest.split([' ', ',', '\n']).next()?;
    let (seconds, rest) = match time.split_once('s') {
        Some((seconds, rest)) if !seconds.ends_with('m') => (seconds, rest),
        _ => ("0", time),
    };
    let number = |text: &str| text.parse::<f64>().unwrap_or(0.0);
    Some(number(seconds) + number(rest.trim_end_matches("ms")) / 1000.0)
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + lab::DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "waiting until {what}");
    }
}

#[test]
fn a_client_stays_with_its_endpoint_while_others_come_and_go() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web: [Pod; 4] = pods(lab, &network, "web").await;
        let clients: [Pod; 6] = pods(lab, &network, "client").await;
        let endpoints = web.each_ref().map(|pod| pod.endpoint(8080));
        let apply = async |some: &[Endpoint]| {
            let sticky = sticky(10_800, some.iter().copied());
            rules.apply(changed([("web", sticky)])).await.unwrap();
        };
        let of = || clients.each_ref().map(|client| endpoint_of(lab, client));
        apply(&endpoints[..2]).await;
        let first = of();
        let chosen: BTreeSet<&String> = first.iter().collect();
        assert_eq!(chosen.len(), 2, "clients are spread");
        apply(&endpoints).await;
        assert_eq!(of(), first, "two more endpoints");
        apply(&[endpoints[0], endpoints[1], endpoints[3]]).await;
        assert_eq!(of(), first, "one endpoint less");
        apply(&[endpoints[1], endpoints[3]]).await;
        let then = of();
        for (before, now) in first.iter().zip(&then) {
            assert_ne!(now, "web-0", "it is gone");
            assert!(before == now || before == "web-0", "{before} -> {now}");
        }
        apply(&[endpoints[0], endpoints[1], endpoints[3]]).await;
        assert_eq!(of(), then, "an endpoint that was gone has no clients");
    });
}

#[test]
fn a_client_is_forgotten_when_its_time_is_up() {
    const TIMEOUT: u32 = 3;
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web: [Pod; 6] = pods(lab, &network, "web").await;
        let clients: [Pod; 4] = pods(lab, &network, "client").await;
        let endpoints = web.each_ref().map(|pod| pod.endpoint(8080));
        rules
            .apply(only([("web", sticky(TIMEOUT, [endpoints[0]]))]))
            .await
            .unwrap();
        for client in &clients {
            assert_eq!(endpoint_of(lab, client), "web-0");
        }
        rules
            .apply(changed([("web", sticky(TIMEOUT, endpoints))]))
            .await
            .unwrap();
        // Each connection starts the time anew.
        let client = &clients[0];
        wait_until("a part of the time is over", || {
            expires(lab, client).is_some_and(|left| left < f64::from(TIMEOUT) - 0.7)
        });
        assert_eq!(endpoint_of(lab, client), "web-0");
        assert!(expires(lab, client).unwrap() > f64::from(TIMEOUT) - 0.7);
        wait_until("all clients are forgotten", || {
            clients.iter().all(|client| expires(lab, client).is_none())
        });
        let now: BTreeSet<String> = clients.iter().map(|c| endpoint_of(lab, c)).collect();
        assert!(now.len() > 1, "they choose anew, among all: {now:?}");
    });
}

#[test]
fn affinity_holds_for_node_ports_and_local_policies_and_leaves_nothing_behind() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web: [Pod; 3] = pods(lab, &network, "web").await;
        let endpoints = web.each_ref().map(|pod| pod.endpoint(8080));
        let mut sticky = sticky(60, endpoints);
        sticky.node_port = Some(30084);
        for local in [false, true] {
            sticky.external_local = local;
            sticky.local_endpoints = endpoints.to_vec();
            rules
                .apply(changed([("web", sticky.clone())]))
                .await
                .unwrap();
            let answers: BTreeSet<String> = (0..10)
                .map(|_| lab.inside(&lab.outside, || ask(HOST, 30084)).unwrap())
                .collect();
            assert_eq!(answers.len(), 1, "{answers:?}");
            let answer = answers.first().unwrap();
            assert!(answer.ends_with(&format!(" {OUTSIDE}")), "{answer}");
        }
        sticky.client_ip_affinity = None;
        rules.apply(changed([("web", sticky)])).await.unwrap();
        let left = lab::command("nft", &["list", "table", "ip", "gt-services"]);
        assert!(
            !left.contains("clients_") && !left.contains("slot"),
            "{left}"
        );
    });
}
