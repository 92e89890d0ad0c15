//! Nodes are drained by kubectl, and what runs on every node is rolled and taken back by it, while requests go on.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, WEB, eventually};
use serde_json::{Value, json};

const REPLICAS: usize = 4;
const DAEMON: &str = "app=daemon";
const RATE: u32 = 200;

/// A pod on every node.
fn daemon() -> Value {
    let labels = json!({"app": "daemon"});
    let container = json!({
        "name": "daemon", "image": "gantry.local/web:v1",
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
    });
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemon"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
            },
        },
    })
}

fn budget(least: usize) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"minAvailable": least, "selector": {"matchLabels": {"app": "web"}}},
    })
}

/// The names of nodes with pods that serve.
fn nodes(fleet: &Fleet, selector: &str, count: usize) -> Result<BTreeSet<String>> {
    let pods = fleet.wait_serving_pods(selector, count)?;
    Ok(pods.into_iter().map(|pod| pod.node).collect())
}

/// Waits until the controller has counted the budget as it is now, and allows so many disruptions.
fn allows(fleet: &Fleet, disruptions: usize) -> Result<()> {
    eventually("the budget to be counted", || {
        let shown = fleet.kubectl("s1", &["get", "pdb", "web", "-o", "json"])?;
        let budget: Value = serde_json::from_str(&shown)?;
        let status = &budget["status"];
        ensure!(
            status["observedGeneration"] == budget["metadata"]["generation"]
                && status["disruptionsAllowed"] == disruptions,
            "{status}"
        );
        Ok(())
    })
}

#[test]
fn a_drained_node_loses_its_pods_as_their_budget_allows_and_keeps_its_daemons() -> Result<()> {
    let fleet = Fleet::of_machines(1, 2)?;
    fleet.apply_web(REPLICAS, |_| {})?;
    fleet.apply_all(&[daemon(), budget(REPLICAS - 1)])?;
    let both = BTreeSet::from(["node-1", "node-2"].map(str::to_owned));
    ensure!(nodes(&fleet, DAEMON, 2)? == both, "a node has none");
    allows(&fleet, 1)?;
    let url = fleet.web_node_port("node-1")?;
    let load = Load::outside(&fleet, LoadOptions::new(&url, RATE))?;

    let drain = |timeout: &str| {
        let arguments = [
            "drain",
            "node-2",
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            timeout,
        ];
        fleet.kubectl("s1", &arguments)
    };
    drain("--timeout=120s").with_context(|| fleet.logs())?;
    let first = BTreeSet::from(["node-1".to_owned()]);
    ensure!(nodes(&fleet, WEB, REPLICAS)? == first, "a pod is left");
    ensure!(nodes(&fleet, DAEMON, 2)? == both, "a daemon went");
    fleet.kubectl("s1", &["uncordon", "node-2"])?;

    // A budget that all pods are needed for keeps them, and the drain says so.
    fleet.apply(&budget(REPLICAS))?;
    allows(&fleet, 0)?;
    let kept = fleet.kubectl(
        "s1",
        &["drain", "node-1", "--ignore-daemonsets", "--timeout=3s"],
    );
    let told = format!("{:#}", kept.err().context("it was drained all the same")?);
    ensure!(
        told.contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{told}"
    );
    fleet.kubectl("s1", &["uncordon", "node-1"])?;
    ensure!(nodes(&fleet, WEB, REPLICAS)? == first, "a pod went");

    let options = load.options.clone();
    let total = load.finish(&fleet)?;
    println!("{}", total.summary("a node port, new connections"));
    total.is_clean(&options).with_context(|| fleet.logs())
}

#[test]
fn a_daemon_set_is_rolled_and_taken_back_by_kubectl() -> Result<()> {
    let fleet = Fleet::of_machines(1, 2)?;
    fleet.apply(&daemon())?;
    let rollout = |arguments: &[&str]| {
        let all = [&["rollout"], arguments].concat();
        fleet.kubectl("s1", &all).with_context(|| fleet.logs())
    };
    let status = ["status", "ds/daemon", "--timeout=60s"];
    let uids = || -> Result<BTreeSet<String>> {
        let pods = fleet.wait_serving_pods(DAEMON, 2)?;
        Ok(pods.into_iter().map(|pod| pod.uid).collect())
    };
    rollout(&status)?;
    let first = uids()?;
    fleet.kubectl("s1", &["set", "env", "ds/daemon", "VERSION=2"])?;
    let told = rollout(&status)?;
    ensure!(told.contains("successfully rolled out"), "{told}");
    ensure!(uids()?.is_disjoint(&first), "a pod was not replaced");
    let history = rollout(&["history", "ds/daemon"])?;
    let revisions = history.lines().filter(|line| line.starts_with(['1', '2']));
    ensure!(revisions.count() == 2, "{history}");
    rollout(&["undo", "ds/daemon"])?;
    rollout(&status)?;
    let path = "jsonpath={.spec.template.spec.containers[0].env}";
    let environment = fleet.kubectl("s1", &["get", "ds", "daemon", "-o", path])?;
    ensure!(environment.is_empty(), "{environment}");
    rollout(&["restart", "ds/daemon"])?;
    let told = rollout(&status)?;
    ensure!(told.contains("successfully rolled out"), "{told}");
    Ok(())
}
