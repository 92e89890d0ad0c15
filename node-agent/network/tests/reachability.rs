//! Signs of life of other hosts in a real kernel, on the way that pods' packets take.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use gantry_network::{GatewayEcho, NetworkError, OverlayMode, OverlaySettings, PeerEcho};
use lab::hosts::{Cluster, Host, among_hosts};
use lab::{DEADLINE, SILENCE, command, ip};

/// Which of the others answer a host, by name. Those that `silent` says are not waited for long.
fn answering(here: &Host, others: &[&Host], silent: &[&str]) -> Vec<String> {
    here.on(async || {
        let echo = GatewayEcho::new(&here.node);
        let mut answered = Vec::new();
        for other in others {
            let name = other.peer().name;
            let within = match silent.contains(&name.as_str()) {
                true => SILENCE,
                false => DEADLINE,
            };
            if echo.answers(other.node.pod_cidr, within).await.unwrap() {
                answered.push(name);
            }
        }
        answered
    })
}

#[test]
fn a_blocked_port_silences_whom_it_leads_to_and_nobody_else() {
    among_hosts(|world| {
        world.subnet("lan", "192.0.2");
        world.subnet("far", "198.51.100");
        let auto = OverlayMode::Auto;
        let cluster = Cluster::of([
            world.host("lan", [192, 0, 2, 1], 1, auto),
            world.host("lan", [192, 0, 2, 2], 2, auto),
            world.host("far", [198, 51, 100, 3], 3, auto),
        ]);
        let [here, near, far] = &cluster.hosts[..] else {
            panic!("three hosts");
        };
        let both = ["host-2", "host-3"];
        assert_eq!(answering(here, &[near, far], &[]), both);

        // The test's own namespace is the router between the subnets.
        let port = OverlaySettings::PORT;
        command(
            "nft",
            &[&format!(
                "add table inet blocked; \
                 add chain inet blocked forward {{ type filter hook forward priority 0; }}; \
                 add rule inet blocked forward udp dport {port} drop"
            )],
        );
        assert_eq!(answering(here, &[near, far], &["host-3"]), ["host-2"]);
        assert!(answering(far, &[here, near], &["host-1", "host-2"]).is_empty());
        assert_eq!(answering(near, &[here], &[]), ["host-1"]);

        command("nft", &["delete table inet blocked"]);
        assert_eq!(answering(here, &[near, far], &[]), both);
    });
}

#[test]
fn a_network_that_drops_pods_addresses_is_noticed_unless_they_are_wrapped() {
    for (mode, expected) in [(OverlayMode::Auto, 0), (OverlayMode::Always, 1)] {
        among_hosts(|world| {
            let cluster = Cluster::of(world.pair(mode));
            let [here, there] = &cluster.hosts[..] else {
                panic!("two hosts");
            };
            assert_eq!(answering(here, &[there], &[]).len(), 1);
            // As the switches of some clouds do.
            command(
                "nft",
                &["add table bridge blocked; \
                   add chain bridge blocked forward { type filter hook forward priority 0; }; \
                   add rule bridge blocked forward ip saddr 10.244.0.0/16 drop"],
            );
            let silent: &[&str] = if expected == 0 { &["host-2"] } else { &[] };
            assert_eq!(answering(here, &[there], silent).len(), expected);
        });
    }
}

#[test]
fn who_has_no_route_or_no_bridge_is_told_at_once() {
    among_hosts(|world| {
        let cluster = Cluster::of(world.pair(OverlayMode::Always));
        let [here, there] = &cluster.hosts[..] else {
            panic!("two hosts");
        };
        here.know(&cluster.overlays[0], &[]);
        here.on(async || {
            ip("route del default");
            let echo = GatewayEcho::new(&here.node);
            let answered = echo.answers(there.node.pod_cidr, DEADLINE).await;
            assert!(!answered.unwrap());
            ip("link del gt-br");
            let error = echo.answers(there.node.pod_cidr, DEADLINE).await;
            let error = error.unwrap_err();
            assert!(
                matches!(&error, NetworkError::Io { doing, .. } if doing.contains("10.244.1.1")),
                "{error:?}"
            );
        });
    });
}
