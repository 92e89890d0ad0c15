//! Hosts of one machine in a real kernel.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::fs::File;
use std::net::Ipv4Addr;

use gantry_network::{LocalHost, LocalHosts, NetworkError};
use ipnet::Ipv4Net;
use lab::{OUTSIDE, ask, command, ip, on_own_machine, serve};

fn subnet() -> Ipv4Net {
    "10.77.3.0/24".parse().unwrap()
}

fn namespace(host: &LocalHost) -> File {
    File::open(&host.netns).unwrap()
}

#[test]
fn hosts_reach_each_other_their_machine_and_the_world() {
    on_own_machine(async |lab| {
        let directory = tempfile::tempdir().unwrap();
        let hosts = LocalHosts::new("lh", subnet(), &directory.path().join("netns")).unwrap();
        hosts.set_up().unwrap();
        let (one, two) = (hosts.add(1).unwrap(), hosts.add(2).unwrap());
        assert_eq!(one.address, Ipv4Addr::new(10, 77, 3, 11));
        lab.inside(&namespace(&one), || serve("one", Ipv4Addr::UNSPECIFIED, 80));
        lab.on_host(|| serve("machine", Ipv4Addr::UNSPECIFIED, 81));
        lab.inside(&lab.outside, || serve("world", OUTSIDE, 82));
        lab.inside(&namespace(&two), || {
            assert_eq!(ask(one.address, 80).unwrap(), "one 10.77.3.12");
            assert_eq!(ask(hosts.gateway(), 81).unwrap(), "machine 10.77.3.12");
            // The world knows only the machine.
            assert_eq!(ask(OUTSIDE, 82).unwrap(), "world 192.0.2.1");
        });
        lab.on_host(|| assert_eq!(ask(one.address, 80).unwrap(), "one 10.77.3.1"));

        hosts.set_up().unwrap();
        assert_eq!(hosts.add(1).unwrap(), one, "what is there is found again");
        lab.inside(&namespace(&two), || assert!(ask(one.address, 80).is_ok()));
        assert_eq!(hosts.present(), [1, 2].into());
        assert!(hosts.any_there());

        // As whoever is killed while it makes or removes one may leave them: a host without its link, and the other way around.
        ip("link del lh-h1");
        ip("link add lh-h7 type veth peer name lh-peer");
        hosts.teardown().unwrap();
        assert!(!hosts.any_there());
        assert!(!ip("link").contains("lh-"), "{}", ip("link"));
        let tables = command("nft", &["list", "tables"]);
        assert!(!tables.contains("lh-"), "{tables}");
        assert!(!directory.path().join("netns").exists());
        hosts.teardown().unwrap();
    });
}

#[test]
fn a_host_whose_link_is_gone_is_made_anew() {
    on_own_machine(async |lab| {
        let directory = tempfile::tempdir().unwrap();
        let hosts = LocalHosts::new("lh", subnet(), &directory.path().join("netns")).unwrap();
        hosts.set_up().unwrap();
        hosts.add(1).unwrap();
        ip("link del lh-h1");
        let again = hosts.add(1).unwrap();
        lab.inside(&namespace(&again), || {
            serve("one", Ipv4Addr::UNSPECIFIED, 80)
        });
        assert_eq!(ask(again.address, 80).unwrap(), "one 10.77.3.1");
        hosts.teardown().unwrap();
    });
}

#[test]
fn a_subnet_that_something_is_routed_to_is_not_chosen() {
    on_own_machine(async |_| {
        let candidates: Vec<Ipv4Net> = ["192.0.2.0/24", "10.9.0.0/24", "10.10.0.0/24"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        ip("route add 10.9.0.128/25 dev uplink");
        let free = LocalHosts::free_subnet(candidates.clone()).unwrap();
        assert_eq!(free, Some(candidates[2]));
        assert_eq!(LocalHosts::free_subnet([candidates[0]]).unwrap(), None);
    });
}

#[test]
fn what_cannot_be_is_refused_with_the_way_out() {
    let place = std::path::Path::new("/nonexistent");
    let wide = LocalHosts::new("lh", "10.0.0.0/16".parse().unwrap(), place);
    assert!(
        matches!(&wide, Err(NetworkError::Unsupported(words)) if words.contains("it is a /24")),
        "{wide:?}"
    );
    let hosts = LocalHosts::new("lh", subnet(), place).unwrap();
    for number in [0, 201] {
        let refused = hosts.address(number);
        assert!(
            matches!(refused, Err(NetworkError::Unsupported(_))),
            "{refused:?}"
        );
    }
}
