//! A Deployment that follows its load: up while requests keep its pods busy, and back when they do not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, WEB, eventually};
use serde_json::{Value, json};

const LEAST: usize = 2;
const MOST: usize = 5;
/// Requests per second, of which two pods cannot take half of what they ask for.
const RATE: u32 = 400;

fn autoscaler(fleet: &Fleet) -> Result<Value> {
    let shown = fleet.kubectl("s1", &["get", "hpa", "web", "-o", "json"])?;
    serde_json::from_str(&shown).context("reading the autoscaler")
}

fn wait_desired(fleet: &Fleet, replicas: usize) -> Result<()> {
    eventually("the wanted number of pods", || {
        let status = autoscaler(fleet)?["status"].clone();
        ensure!(status["desiredReplicas"] == replicas, "{status}");
        Ok(())
    })?;
    fleet.wait_serving_pods(WEB, replicas).map(drop)
}

#[test]
fn replicas_follow_what_pods_use_up_and_back() -> Result<()> {
    let fleet = Fleet::of_machines(1, 2)?;
    fleet.apply_web(LEAST, |template| {
        template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "10m"}});
    })?;
    fleet.apply(&json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": LEAST, "maxReplicas": MOST,
            "metrics": [{"type": "Resource", "resource": {
                "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 20}}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}},
        },
    }))?;
    eventually("figures", || {
        let conditions = autoscaler(&fleet)?["status"]["conditions"].clone();
        let active = conditions.as_array().into_iter().flatten();
        let mut active = active.filter(|known| known["type"] == "ScalingActive");
        ensure!(
            active.any(|known| known["status"] == "True"),
            "{conditions}"
        );
        Ok(())
    })
    .with_context(|| fleet.logs())?;

    let url = fleet.web_node_port("node-2")?;
    let began = Instant::now();
    let load = Load::outside(&fleet, LoadOptions::new(&url, RATE))?;
    wait_desired(&fleet, MOST).with_context(|| fleet.logs())?;
    println!(
        "{LEAST} to {MOST} pods that serve: {:.1} s after the load began",
        began.elapsed().as_secs_f64()
    );
    let options = load.options.clone();
    load.wait(&fleet, Duration::from_secs(1))?;
    let total = load.finish(&fleet)?;
    println!("{}", total.summary("a node port, new connections"));
    total.is_clean(&options).with_context(|| fleet.logs())?;
    let explained = fleet.gantry("s1", &["explain", "hpa", "web"])?;
    ensure!(explained.contains("cpu of the pods is "), "{explained}");
    let metrics = fleet.kubectl("s1", &["get", "--raw", "/metrics"])?;
    let scaled = "horizontal_pod_autoscaler_controller_reconciliations_total{action=\"scale_up\",error=\"none\"}";
    for metric in [
        scaled,
        "workqueue_depth{name=\"horizontal-pod-autoscaler\"} ",
    ] {
        ensure!(metrics.contains(metric), "there is no {metric}");
    }
    let events = fleet.kubectl(
        "s1",
        &["get", "events", "--field-selector=reason=SuccessfulRescale"],
    )?;
    ensure!(
        events.contains("reason: cpu resource utilization (percentage of request) above target"),
        "{events}"
    );

    wait_desired(&fleet, LEAST).with_context(|| fleet.logs())
}
