//! What a machine has, found out by trying: in a real kernel, on a machine of the test's own.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod lab;

use std::collections::BTreeSet;

use gantry_network::{
    BridgeNetwork, NetworkError, OverlaySettings, nft_version, pod_mtu, routes_into, try_out,
    vxlan_devices,
};
use lab::{HOST, command, ip, on_own_machine};

/// What is mounted here: the mount's number and place.
fn mounted() -> BTreeSet<(String, String)> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let field = |line: &str, at| line.split(' ').nth(at).unwrap().to_owned();
    let mounts = table.lines().map(|line| (field(line, 0), field(line, 4)));
    mounts.collect()
}

#[test]
fn a_trial_does_everything_and_leaves_nothing() {
    on_own_machine(async |_| {
        let everything = || {
            let forward = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
            let rules = command("nft", &["list ruleset"]);
            (ip("link"), ip("route"), rules, forward)
        };
        let (before, mounts) = (everything(), mounted());
        let directory = tempfile::tempdir().unwrap();
        let trials = try_out(directory.path());
        for trial in &trials {
            assert!(trial.outcome.is_ok(), "{trial:?}");
        }
        let tried: Vec<&str> = trials.iter().map(|trial| trial.what).collect();
        assert_eq!(
            tried,
            [
                "network namespaces",
                "bridge",
                "veth",
                "vxlan",
                "ip_forward",
                "nft",
                "pod network",
                "service rules",
                "held connections",
                "policy rules",
                "overlay"
            ]
        );
        assert_eq!(everything(), before);
        // No more than that: mounts of the machine's other programs go from here too, with the directories they are on.
        let left: Vec<_> = mounted().difference(&mounts).cloned().collect();
        assert!(left.is_empty(), "{left:?}");
        // Nothing is mounted in it any more.
        directory.close().unwrap();
        let version = nft_version().unwrap();
        assert!(version.starts_with('v'), "{version}");
    });
}

#[test]
fn a_link_too_narrow_for_pods_is_named() {
    on_own_machine(async |_| {
        assert_eq!(pod_mtu(Some(HOST)).unwrap(), ("uplink".to_owned(), 1450));
        ip("link set uplink mtu 600");
        let error = pod_mtu(Some(HOST)).unwrap_err();
        assert!(matches!(&error, NetworkError::Unsupported(words) if words.contains("uplink")));
    });
}

#[test]
fn routes_of_others_into_the_clusters_ranges_are_found() {
    on_own_machine(async |lab| {
        let _network = BridgeNetwork::new(lab.node.clone()).unwrap();
        let ranges = [lab.node.cluster_pod_cidr, lab.node.service_cidr];
        let overlapping = |prefix: &str| {
            let prefixes = ["unknown".to_owned(), prefix.to_owned()];
            let found = routes_into(&ranges, &prefixes).unwrap();
            let words = found.iter().map(|(net, link)| format!("{net} {link}"));
            words.collect::<Vec<_>>()
        };
        assert!(overlapping("gt").is_empty());
        assert!(!overlapping("other").is_empty(), "the bridge's own");
        ip("route add 10.0.0.0/8 via 192.0.2.2");
        ip("route add 10.100.7.0/24 via 192.0.2.2");
        ip("route add default via 192.0.2.2");
        ip("route add 172.16.0.0/12 via 192.0.2.2");
        ip("route add 10.244.9.0/24 via 192.0.2.2 proto 71");
        assert_eq!(
            overlapping("gt"),
            ["10.0.0.0/8 uplink", "10.100.7.0/24 uplink"]
        );
    });
}

#[test]
fn who_holds_the_overlays_port_is_known() {
    on_own_machine(async |_| {
        let port = OverlaySettings::PORT;
        assert!(vxlan_devices(port).unwrap().is_empty());
        ip(&format!(
            "link add vx1 type vxlan id 1 dstport {port} local {HOST}"
        ));
        ip(&format!(
            "link add vx2 type vxlan id 2 dstport {} local {HOST}",
            port + 1
        ));
        assert_eq!(vxlan_devices(port).unwrap(), ["vx1"]);
    });
}
