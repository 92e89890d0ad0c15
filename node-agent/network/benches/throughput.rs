//! What a TCP connection carries between pods of two hosts, directly and through VXLAN, beside one between the hosts
//! themselves, in turns (needs root and iperf3). The hosts are network namespaces on a bridge: no wire limits them, so
//! what is measured is the processor's work per byte.
//!
//! `THROUGHPUT_SECONDS` and `THROUGHPUT_ROUNDS` say how long each measurement is and how many there are.

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use gantry_network::{Overlay, OverlayMode, VxlanOverlay};
use lab::hosts::{Cluster, among_hosts};
use lab::{command, inside};

fn number(variable: &str, otherwise: usize) -> usize {
    match std::env::var(variable) {
        Err(_) => otherwise,
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{variable}={text}: {error}")),
    }
}

/// Gbit/s of one connection from a client's namespace to a server's address.
fn measure(client: &File, server: &File, address: IpAddr, seconds: usize) -> f64 {
    let address = address.to_string();
    let mut serving = inside(server, || {
        Command::new("iperf3")
            .args(["-s", "-1", "--forceflush", "-B", &address])
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting iperf3: is it installed (apt-get install iperf3)?")
    });
    let mut said = BufReader::new(serving.stdout.take().expect("its output")).lines();
    said.by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains("Server listening"))
        .expect("iperf3 listens");
    let report = inside(client, || {
        command(
            "iperf3",
            &["-c", &address, "-t", &seconds.to_string(), "-J"],
        )
    });
    said.for_each(drop);
    assert!(serving.wait().expect("its end").success());
    let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3's JSON");
    report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .expect("what was received")
        / 1e9
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Reaches the peers of both hosts in this way from now on.
fn switch(cluster: &Cluster, mode: OverlayMode) {
    for (host, other) in [(0, 1), (1, 0)].map(|(a, b)| (&cluster.hosts[a], &cluster.hosts[b])) {
        let mut node = host.node.clone();
        if let Some(overlay) = &mut node.overlay {
            overlay.mode = mode;
        }
        host.on(async || {
            let overlay = VxlanOverlay::new(node).expect("the overlay");
            overlay.sync(vec![other.peer()]).await.expect("sync");
        });
    }
}

fn main() {
    let seconds = number("THROUGHPUT_SECONDS", 5);
    let rounds = number("THROUGHPUT_ROUNDS", 3);
    among_hosts(|world| {
        let cluster = Cluster::of(world.pair(OverlayMode::Auto));
        let [here, there] = &cluster.hosts[..] else {
            panic!("two hosts");
        };
        let [near, far] = &cluster.pods[..] else {
            panic!("two pods");
        };
        let mut results: [Vec<f64>; 3] = Default::default();
        for _ in 0..rounds {
            results[0].push(measure(
                &here.netns,
                &there.netns,
                there.address.into(),
                seconds,
            ));
            for (index, mode) in [(1, OverlayMode::Auto), (2, OverlayMode::Always)] {
                switch(&cluster, mode);
                results[index].push(measure(&near.netns, &far.netns, far.ip.into(), seconds));
            }
        }
        let of_hosts = median(&results[0]);
        println!("TCP, one connection, {seconds} s, median of {rounds}:");
        for (name, values) in ["host to host", "pod to pod, directly", "pod to pod, VXLAN"]
            .iter()
            .zip(&results)
        {
            let median = median(values);
            println!(
                "{name:<22} {median:6.2} Gbit/s  {:5.2} of host to host  {values:.2?}",
                median / of_hosts
            );
        }
    });
}
