//! `gantry-bench-network`: what services cost when there are many of them, on three nodes. Prints one line per figure.
//!
//! 1,000 services with 10,000 endpoints, which nobody serves, are made through the API; one more leads to a pod. Measured
//! are the time from one change of an endpoint until connections from every node go elsewhere, and until every node has
//! acknowledged it; the CPU time that a change costs; and the time to connect, beside that with ten services. Needs root.
//! Figures and the machine they were taken on belong into docs/benchmarks.md.

mod objects;
mod probe;
mod usage;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, TOOLS};
use objects::Objects;
use probe::Probes;
use serde_json::json;
use usage::{Programmed, Usage};

const FEW: usize = 10;
const MANY: usize = 1000;
/// Changes of the service that leads to a pod.
const SWITCHES: usize = 100;
/// Changes of others, one each.
const CHANGES: usize = 200;
/// Between those: far more than one takes.
const PACE: Duration = Duration::from_millis(50);
const CONNECTS: usize = 3000;
const NODES: usize = 3;

/// Pods that serve, each on a node of its own: name, and address.
fn backends(fleet: &Fleet) -> Result<[(String, String); 2]> {
    for (name, node) in [("backend-a", "node-1"), ("backend-b", "node-2")] {
        fleet.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "backend"}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "web", "image": TOOLS, "command": ["/web"],
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
                }],
            },
        }))?;
    }
    let mut pods = fleet.wait_serving_pods("app=backend", 2)?;
    pods.sort();
    let [first, second] = pods.as_slice() else {
        unreachable!("two were waited for");
    };
    let named = |pod: &gantry_e2e::Pod| (pod.name.clone(), pod.ip.clone());
    Ok([named(first), named(second)])
}

fn print_latencies(what: &str, latencies: &mut [Duration]) {
    latencies.sort();
    let at = |percent: usize| {
        let index = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
        latencies[index].as_secs_f64() * 1e3
    };
    println!("{what:<64} p50 {:>8.3} ms   p99 {:>8.3} ms", at(50), at(99));
}

/// Times to connect from the node that has no backend.
fn connects(fleet: &Fleet, what: &str, address: SocketAddr) -> Result<()> {
    let mut latencies = fleet.on_node("node-3", || probe::connects(address, CONNECTS))?;
    print_latencies(what, &mut latencies);
    Ok(())
}

/// Leads the probed service to the other backend again and again; each time until every node does so.
async fn switches(
    objects: &Objects,
    probes: &mut Probes,
    backends: &[(String, String); 2],
) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    for number in 1..=SWITCHES {
        let (name, address) = &backends[number % 2];
        let began = Instant::now();
        objects.lead_probed_to(address).await?;
        let everywhere = probes.all_reach(name, NODES).await?;
        latencies.push(everywhere.saturating_duration_since(began));
    }
    Ok(latencies)
}

/// Changes one endpoint each of many services, and says what that has cost.
async fn changes(fleet: &Fleet, objects: &Objects) -> Result<()> {
    let programmed = Programmed::read(fleet)?;
    let before = Usage::read(fleet)?;
    let mut pace = tokio::time::interval(PACE);
    for number in 0..CHANGES {
        pace.tick().await;
        objects.change_endpoint_of(number * 7 % MANY).await?;
    }
    for _ in 0..10 {
        pace.tick().await;
    }
    let spent = Usage::read(fleet)?.since(&before);
    let per_change = |total: Duration| total.as_secs_f64() * 1e3 / CHANGES as f64;
    println!(
        "{:<64} server {:>6.2} ms   agents together {:>6.2} ms",
        "CPU time per change",
        per_change(spent.server),
        per_change(spent.agents)
    );
    match (programmed, Programmed::read(fleet)?) {
        (Some(before), Some(after)) => {
            let since = after.since(&before);
            ensure!(since.count() > 0, "no change was acknowledged");
            println!(
                "{:<64} p50 {:>7} s   p99 {:>7} s   ({} acknowledgements)",
                "endpoint change to acknowledged by every node, at most",
                since.percentile(50),
                since.percentile(99),
                since.count()
            );
        }
        _ => println!("the server has no metric {}", usage::PROGRAMMED),
    }
    Ok(())
}

async fn measure(fleet: &Fleet, backends: &[(String, String); 2]) -> Result<()> {
    let objects = Objects::new(fleet.client("s1").await?);
    let (name, address) = &backends[0];
    let service = SocketAddr::new(objects.create_probed(address).await?, 80);
    objects.create(0..FEW).await?;
    let mut probes = Probes::start(fleet, service)?;
    probes.all_reach(name, NODES).await?;
    probes.pause();
    let pod: IpAddr = address.parse().context("a pod's address")?;
    connects(
        fleet,
        "connect to a pod of another node",
        SocketAddr::new(pod, 8080),
    )?;
    connects(
        fleet,
        &format!("connect through a service, one of {FEW}"),
        service,
    )?;

    let began = Instant::now();
    objects.create(FEW..MANY).await?;
    let created = began.elapsed();
    // What was changed last is in the rules last.
    let (name, address) = &backends[1];
    probes.resume();
    objects.lead_probed_to(address).await?;
    let everywhere = probes.all_reach(name, NODES).await?;
    println!(
        "{:<64} {:>8.2} s, in every node's rules {:.2} s later",
        format!(
            "{MANY} services with {} endpoints created",
            objects.endpoints(MANY)
        ),
        created.as_secs_f64(),
        everywhere
            .saturating_duration_since(began + created)
            .as_secs_f64()
    );
    // From the second backend back to the first.
    let turned = [backends[1].clone(), backends[0].clone()];
    let mut latencies = switches(&objects, &mut probes, &turned).await?;
    print_latencies(
        "endpoint change, asked for to effective on every node",
        &mut latencies,
    );
    probes.pause();
    connects(
        fleet,
        &format!("connect through a service, one of {MANY}"),
        service,
    )?;
    changes(fleet, &objects).await
}

fn main() -> Result<()> {
    let fleet = Fleet::of_machines(1, NODES)?;
    let backends = backends(&fleet)?;
    fleet
        .block_on(|| measure(&fleet, &backends))
        .with_context(|| fleet.logs())
}
