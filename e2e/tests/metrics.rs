//! Autoscalers that go by what pods expose, and by what a Prometheus server outside of the cluster says.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Load, LoadOptions, WEB, eventually};
use serde_json::{Value, json};

/// Where Prometheus listens, on the machine of the only server.
const PROMETHEUS: &str = "127.0.0.1:9090";
/// Requests per second.
const RATE: u32 = 200;

/// A server that ends with the value.
struct Prometheus {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    /// Starts one that measures nobody, and waits until it answers.
    fn start(fleet: &Fleet) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config = directory.path().join("prometheus.yml");
        std::fs::write(&config, "global: {}\n")?;
        let child = fleet
            .machine_command("s1", Path::new("prometheus"))?
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                directory.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting prometheus")?;
        let started = Self {
            child,
            _directory: directory,
        };
        let address: SocketAddr = PROMETHEUS.parse()?;
        eventually("prometheus to listen", || {
            fleet.on_node("s1", || Ok(TcpStream::connect(address).map(drop)?))
        })?;
        Ok(started)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn autoscaler(metric: Value) -> Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 2, "maxReplicas": 5, "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    })
}

/// Status, reason and message of its condition ScalingActive.
fn active(fleet: &Fleet) -> Result<(String, String, String)> {
    let shown = fleet.kubectl("s1", &["get", "hpa", "web", "-o", "json"])?;
    let shown: Value = serde_json::from_str(&shown)?;
    let conditions = shown["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    let known = conditions.find(|known| known["type"] == "ScalingActive");
    let known = known.with_context(|| format!("{shown:#}"))?;
    let text = |field: &str| known[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason"), text("message")))
}

fn wait_inactive(fleet: &Fleet, reason: &str, says: &str) -> Result<()> {
    eventually(reason, || {
        let (status, why, message) = active(fleet)?;
        ensure!(
            status == "False" && why == reason && message.contains(says),
            "{status} {why}: {message}"
        );
        Ok(())
    })
    .with_context(|| fleet.logs())
}

#[test]
fn replicas_follow_what_pods_expose_and_what_is_told_outside() -> Result<()> {
    let fleet = Fleet::of_machines(1, 2)?;
    let scraped = |port: &str| json!({"prometheus.io/scrape": "true", "prometheus.io/port": port});
    fleet.apply_web(2, |template| {
        if let Some(Value::Object(metadata)) = template.pointer_mut("/metadata") {
            metadata.insert("annotations".to_owned(), scraped("9"));
        }
    })?;
    fleet.apply(&autoscaler(json!({"type": "Pods", "pods": {
        "metric": {"name": "web_requests_per_second"},
        "target": {"type": "AverageValue", "averageValue": "25"},
    }})))?;
    wait_inactive(&fleet, "FailedGetPodsMetric", "web-")?;

    let template = json!({"spec": {"template": {"metadata": {"annotations": scraped("8080")}}}});
    let template = template.to_string();
    fleet.kubectl("s1", &["patch", "deploy", "web", "--patch", &template])?;
    fleet.gantry("s1", &["rollout", "status", "deploy/web"])?;
    let load = Load::outside(
        &fleet,
        LoadOptions::new(fleet.web_node_port("node-1")?, RATE),
    )?;
    fleet
        .wait_serving_pods(WEB, 5)
        .with_context(|| fleet.logs())?;
    let total = load.finish(&fleet)?;
    ensure!(total.failed == 0, "{total:?}");
    fleet
        .wait_serving_pods(WEB, 2)
        .with_context(|| fleet.logs())?;

    let _prometheus = Prometheus::start(&fleet)?;
    let source = |query: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "sources", "labels": {"gantry.dev/external-metrics": "true"}},
            "data": {"queue": format!("url: http://{PROMETHEUS}\nquery: {query}\nperiod: 1s\n")},
        })
    };
    fleet.apply(&source("vector(120)"))?;
    fleet.apply(&autoscaler(json!({"type": "External", "external": {
        "metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "30"},
    }})))?;
    // What listens on the server's own loopback is nobody's but an administrator's to give.
    wait_inactive(&fleet, "FailedGetExternalMetric", "127.0.0.1")?;
    let allow = "gantry.dev/external-metrics-allow=127.0.0.1/32";
    fleet.kubectl("s1", &["annotate", "namespace", "default", allow])?;
    fleet
        .wait_serving_pods(WEB, 4)
        .with_context(|| fleet.logs())?;
    fleet.apply(&source("vector(60)"))?;
    fleet
        .wait_serving_pods(WEB, 2)
        .with_context(|| fleet.logs())
        .map(drop)
}
