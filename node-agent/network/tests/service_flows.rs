//! Flows whose endpoint is gone, in a real kernel.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gantry_network::{
    BridgeNetwork, Endpoint, NftServiceRules, NodeNetwork, Protocol, ServicePort, ServiceRules,
};
use lab::{
    DEADLINE, HOST, UdpClient, ask_within, changed, on_own_machine, only, serve, service, who,
};

const VIP: [u8; 4] = [10, 96, 0, 50];

fn start(node: &NodeNetwork) -> (BridgeNetwork, NftServiceRules) {
    (
        BridgeNetwork::new(node.clone()).unwrap(),
        NftServiceRules::new(node).unwrap(),
    )
}

fn udp(endpoints: Vec<Endpoint>) -> ServicePort {
    let mut udp = service(VIP, endpoints);
    (udp.protocol, udp.node_port) = (Protocol::Udp, Some(30053));
    udp
}

#[test]
fn a_client_that_keeps_its_port_leaves_an_endpoint_that_is_gone() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let first = lab.pod(&network, "first", 8080).await;
        let second = lab.pod(&network, "second", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let other = service([10, 96, 0, 51], vec![first.endpoint(8080)]);
        let bystander = ServicePort {
            protocol: Protocol::Udp,
            ..other
        };
        rules
            .apply(only([
                ("dns", udp(vec![first.endpoint(8080)])),
                ("other", bystander),
            ]))
            .await
            .unwrap();
        let inside = lab.inside(&client.netns, || UdpClient::new(VIP, 80).unwrap());
        let outside = lab.inside(&lab.outside, || UdpClient::new(HOST, 30053).unwrap());
        let unrelated = lab.inside(&client.netns, || {
            UdpClient::new([10, 96, 0, 51], 80).unwrap()
        });
        let answers =
            || [&inside, &outside, &unrelated].map(|client| who(&client.ask().unwrap()).to_owned());
        assert_eq!(answers(), ["first", "first", "first"]);
        let both = vec![first.endpoint(8080), second.endpoint(8080)];
        rules.apply(changed([("dns", udp(both))])).await.unwrap();
        assert_eq!(answers(), ["first", "first", "first"], "flows stay");
        rules
            .apply(changed([("dns", udp(vec![second.endpoint(8080)]))]))
            .await
            .unwrap();
        assert_eq!(answers(), ["second", "second", "first"]);
    });
}

#[test]
fn a_client_that_was_early_is_answered_when_the_service_comes() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let web = lab.pod(&network, "web", 8080).await;
        rules.apply(only([])).await.unwrap();
        let client = lab.inside(&lab.outside, || UdpClient::new(HOST, 30053).unwrap());
        assert_eq!(client.ask(), Err(ErrorKind::ConnectionRefused));
        rules.apply(changed([("dns", udp(vec![]))])).await.unwrap();
        assert_eq!(client.ask(), Err(ErrorKind::ConnectionRefused));
        rules
            .apply(changed([("dns", udp(vec![web.endpoint(8080)]))]))
            .await
            .unwrap();
        let answer = client.ask().unwrap();
        assert_eq!(who(&answer), "web", "{answer}");
    });
}

#[test]
fn an_agent_that_starts_forgets_what_its_predecessor_did_not() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let first = lab.pod(&network, "first", 8080).await;
        let second = lab.pod(&network, "second", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let on_host = lab.on_host(|| {
            serve("host", HOST, 7000);
            UdpClient::new(HOST, 7000).unwrap()
        });
        assert_eq!(who(&on_host.ask().unwrap()), "host");
        rules
            .apply(only([("dns", udp(vec![first.endpoint(8080)]))]))
            .await
            .unwrap();
        let inside = lab.inside(&client.netns, || UdpClient::new(VIP, 80).unwrap());
        assert_eq!(who(&inside.ask().unwrap()), "first");
        let later = NftServiceRules::new(&lab.node).unwrap();
        later
            .apply(only([("dns", udp(vec![second.endpoint(8080)]))]))
            .await
            .unwrap();
        assert_eq!(who(&inside.ask().unwrap()), "second");
        assert_eq!(who(&on_host.ask().unwrap()), "host");
    });
}

#[test]
fn a_connection_that_a_dead_endpoint_never_answered_reaches_the_one_that_takes_its_place() {
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let alive = lab.pod(&network, "alive", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        // A machine that has lost its power answers nothing, not even that it is gone.
        lab::ip("route add 10.244.9.9 via 192.0.2.2");
        let dead = Endpoint {
            ip: [10, 244, 9, 9].into(),
            port: 8080,
            local: false,
        };
        rules
            .apply(only([("web", service(VIP, vec![dead]))]))
            .await
            .unwrap();
        let netns = client.netns.try_clone().unwrap();
        let asking = std::thread::spawn(move || {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            ask_within(DEADLINE, VIP, 80)
        });
        let begun = Instant::now();
        let tracked = || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
        while !lab.on_host(tracked).contains("dst=10.96.0.50") {
            assert!(begun.elapsed() < DEADLINE, "the connection is not tracked");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let web = service(VIP, vec![alive.endpoint(8080)]);
        rules.apply(changed([("web", web)])).await.unwrap();
        let answer = tokio::task::spawn_blocking(move || asking.join().unwrap());
        assert_eq!(who(&answer.await.unwrap().unwrap()), "alive");
    });
}

#[test]
fn no_connection_is_refused_while_endpoints_come_and_go() {
    const CHANGES: usize = 1500;
    on_own_machine(async |lab| {
        let (network, rules) = start(&lab.node);
        let stays = lab.pod(&network, "stays", 8080).await;
        let changes = lab.pod(&network, "changes", 8080).await;
        let client = lab.pod(&network, "client", 8080).await;
        let web = |endpoints: &[&lab::Pod]| {
            let endpoints = endpoints.iter().map(|pod| pod.endpoint(8080)).collect();
            changed([("web", service(VIP, endpoints))])
        };
        rules.apply(web(&[&stays])).await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let netns = client.netns.try_clone().unwrap();
        let asking = std::thread::spawn({
            let done = done.clone();
            move || {
                nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                let mut asked = 0;
                while !done.load(Ordering::SeqCst) {
                    if let Err(error) = ask_within(DEADLINE, VIP, 80) {
                        return Err((asked, error));
                    }
                    asked += 1;
                }
                Ok(asked)
            }
        });
        for number in 0..CHANGES {
            let endpoints: &[&lab::Pod] = match number.is_multiple_of(2) {
                true => &[&stays, &changes],
                false => &[&stays],
            };
            rules.apply(web(endpoints)).await.unwrap();
            if asking.is_finished() {
                break;
            }
        }
        done.store(true, Ordering::SeqCst);
        let asked = asking.join().unwrap();
        let asked =
            asked.unwrap_or_else(|(asked, error)| panic!("{error} after {asked} connections"));
        assert!(asked > 100, "only {asked} connections");
    });
}
