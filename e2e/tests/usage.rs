//! What nodes and pods use, as clients see it: through every server, and soon after an election.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, eventually};
use serde_json::Value;

/// From the moment that another server leads until it has figures of everything.
const AFTER_ELECTION: Duration = Duration::from_secs(2);

/// The figures of all nodes, or of the pods of a namespace.
fn figures(fleet: &Fleet, server: &str, of: &str) -> Result<Vec<Value>> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/{of}");
    let text = fleet.kubectl(server, &["get", "--raw", &path, "--request-timeout=5s"])?;
    let list: Value = serde_json::from_str(&text)?;
    let items = list["items"].as_array();
    Ok(items.context("a list has items")?.clone())
}

/// Whether a server has figures of so many nodes, and of these pods.
fn complete(fleet: &Fleet, server: &str, nodes: usize, pods: &[String]) -> Result<()> {
    let of_nodes = figures(fleet, server, "nodes")?.len();
    ensure!(of_nodes == nodes, "figures of {of_nodes} nodes");
    let found = figures(fleet, server, "namespaces/default/pods")?;
    for pod in pods {
        let own = found
            .iter()
            .find(|one| one["metadata"]["name"] == pod.as_str());
        let own = own.with_context(|| format!("no figures of {pod}"))?;
        let used = &own["containers"][0]["usage"];
        let memory = used["memory"].as_str().unwrap_or("0");
        ensure!(memory != "0", "{own}");
    }
    Ok(())
}

#[test]
fn every_server_tells_what_is_used_and_so_does_a_new_leader() -> Result<()> {
    let mut fleet = Fleet::of_machines(3, 2)?;
    let pods = fleet.apply_web(2, |_| {})?;
    let pods: Vec<String> = pods.into_iter().map(|pod| pod.name).collect();
    for server in fleet.names() {
        eventually("figures of everything", || {
            complete(&fleet, &server, 2, &pods)
        })
        .with_context(|| fleet.logs())?;
    }
    let top = fleet.kubectl("s2", &["top", "pods", "--containers"])?;
    ensure!(pods.iter().all(|pod| top.contains(pod)), "{top}");
    let top = fleet.kubectl("s3", &["top", "nodes", "--no-headers"])?;
    ensure!(
        top.contains("node-1") && top.matches('%').count() == 4,
        "{top}"
    );
    let top = fleet.gantry("s1", &["top", "pods", "--sort-by", "memory"])?;
    ensure!(pods.iter().all(|pod| top.contains(pod)), "{top}");
    for page in ["metrics/cadvisor", "metrics/resource", "stats/summary"] {
        let path = format!("/api/v1/nodes/node-1/proxy/{page}");
        let text = fleet.kubectl("s2", &["get", "--raw", &path])?;
        ensure!(pods.iter().any(|pod| text.contains(pod)), "{page}: {text}");
    }

    let leader = fleet.leader("s1")?;
    fleet.kill(&leader)?;
    let mut left = fleet.names();
    left.retain(|name| *name != leader);
    let asked = left.first().context("two are left")?.clone();
    eventually("another leader", || {
        let leads = fleet.leader(&asked)?;
        ensure!(leads != leader, "{leads} leads");
        Ok(())
    })?;
    let began = Instant::now();
    eventually("figures after an election", || {
        complete(&fleet, &asked, 2, &pods)
    })
    .with_context(|| fleet.logs())?;
    let passed = began.elapsed();
    println!(
        "a new leader had figures of everything after {:.2} s",
        passed.as_secs_f64()
    );
    ensure!(passed <= AFTER_ELECTION, "{passed:?}");
    Ok(())
}
