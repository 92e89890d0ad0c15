//! 1,000 autoscalers of 1,000 Deployments in one control plane: what looking at one of them costs, and how soon a Deployment
//! is wanted in another size once its pods' figures say so.
//!
//! Everything is real but the nodes, whose agent only says that pods run, and the figures, which come once a second for every
//! pod as nodes would say them.

#[path = "../tests/common/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use more of it")]
mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use gantry_controllers::ControllersConfig;
use gantry_controllers::figures::fake::FakeFigures;
use gantry_controllers::figures::{
    Arrival, ContainerUsage, Figures, FiguresError, Metric, PodUsage, PodValue, Wake,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, HorizontalPodAutoscaler};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, WatchEvent, WatchParams};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::common::{Cluster, create};

const NAMESPACE: &str = "ns";
/// Pods that a node takes.
const PER_NODE: usize = 100;
/// How long the figures stay as they are.
const STEADY: u32 = 20;
/// Nothing is waited for longer.
const PATIENCE: Duration = Duration::from_secs(300);

/// Figures that count how often they are asked for: once per look at an autoscaler of one pod.
#[derive(Default)]
struct Counted {
    said: FakeFigures,
    asked: AtomicU64,
}

impl Figures for Counted {
    fn usage(&self, pod_uid: &str) -> Result<Option<Arc<PodUsage>>, FiguresError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.said.usage(pod_uid)
    }

    fn of_pods<'a>(
        &'a self,
        metric: Metric<'a>,
        pods: &'a [Arc<Pod>],
    ) -> BoxFuture<'a, Result<Vec<PodValue>, FiguresError>> {
        self.said.of_pods(metric, pods)
    }

    fn of_object<'a>(
        &'a self,
        metric: Metric<'a>,
        object: &'a CrossVersionObjectReference,
    ) -> BoxFuture<'a, Result<i64, FiguresError>> {
        self.said.of_object(metric, object)
    }

    fn external<'a>(&'a self, metric: Metric<'a>) -> BoxFuture<'a, Result<Vec<i64>, FiguresError>> {
        self.said.external(metric)
    }

    fn subscribe(&self, stop: &CancellationToken, wake: Wake) {
        self.said.subscribe(stop, wake);
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn deployment(name: &str) -> serde_json::Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}},
        },
    })
}

fn autoscaler(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
        "spec": {
            "minReplicas": 1, "maxReplicas": 2,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "metrics": [{"type": "Resource", "resource": {
                "name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}}}],
        },
    })
}

/// Waits until all Deployments have as many available pods; the pods.
async fn pods(cluster: &Cluster, wanted: usize) -> Vec<Pod> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all: Vec<Pod> = cluster.list(NAMESPACE).await;
        let running = all.iter().filter(|pod| {
            let status = pod.status.as_ref();
            status.and_then(|status| status.phase.as_deref()) == Some("Running")
        });
        if running.count() >= wanted {
            return all;
        }
        assert!(Instant::now() < deadline, "{} of {wanted} pods", all.len());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Says of every pod that it uses so many MiB, each a little later than the one before, within a second.
async fn say(figures: &Counted, pods: &[Pod], used: u64) {
    let begun = Instant::now();
    for (at, pod) in pods.iter().enumerate() {
        let usage = PodUsage {
            at: Timestamp::now(),
            window: Duration::from_secs(1),
            containers: vec![ContainerUsage {
                name: "c".to_owned(),
                cpu_nanocores: 1_000_000,
                working_set_bytes: used << 20,
            }],
        };
        let (uid, name) = (&pod.metadata.uid, &pod.metadata.name);
        figures
            .said
            .say_usage(uid.as_deref().expect("a uid"), usage);
        figures.said.arrive(Arrival::Pod {
            namespace: NAMESPACE,
            name: name.as_deref().expect("a name"),
        });
        // As many nodes as there are hundreds of pods, one after another.
        if at % PER_NODE == PER_NODE - 1 {
            let due = Duration::from_secs(1) * u32::try_from(at + 1).expect("few")
                / u32::try_from(pods.len()).expect("few");
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        }
    }
}

/// When each Deployment was wanted in the size two.
async fn grown(client: kube::Client, wanted: usize) -> HashMap<String, Instant> {
    let api: Api<Deployment> = Api::namespaced(client, NAMESPACE);
    let mut grown = HashMap::new();
    while grown.len() < wanted {
        let parameters = WatchParams::default();
        let mut events = api.watch(&parameters, "0").await.expect("a watch").boxed();
        while let Ok(Some(event)) = events.try_next().await {
            let (WatchEvent::Added(one) | WatchEvent::Modified(one)) = event else {
                continue;
            };
            if one.spec.as_ref().and_then(|spec| spec.replicas) == Some(2)
                && let Some(name) = one.metadata.name
            {
                grown.entry(name).or_insert_with(Instant::now);
                if grown.len() == wanted {
                    break;
                }
            }
        }
    }
    grown
}

async fn measure(count: usize) {
    let figures = Arc::new(Counted::default());
    let config = ControllersConfig {
        figures: figures.clone(),
        ..ControllersConfig::new("PEM")
    };
    let mut cluster = Cluster::start_with(config).await.with_scheduler();
    for node in 0..=(2 * count / PER_NODE) {
        cluster = cluster.with_node(&format!("n{node}"), "64").await;
    }
    cluster.namespace(NAMESPACE).await;
    let deployments: Api<Deployment> = cluster.api(NAMESPACE);
    let autoscalers: Api<HorizontalPodAutoscaler> = cluster.api(NAMESPACE);
    let names: Vec<String> = (0..count).map(|number| format!("web-{number}")).collect();
    for name in &names {
        create(&deployments, deployment(name)).await;
    }
    let all = pods(&cluster, count).await;
    for name in &names {
        create(&autoscalers, autoscaler(name)).await;
    }
    // Their first looks and conditions are written.
    for _ in 0..5 {
        say(&figures, &all, 100).await;
    }
    let (begun, used) = (Instant::now(), cpu());
    tokio::time::sleep(Duration::from_secs(u64::from(STEADY))).await;
    let quiet = (cpu() - used).as_secs_f64() / begun.elapsed().as_secs_f64();

    let (begun, used) = (Instant::now(), cpu());
    let asked = figures.asked.load(Ordering::Relaxed);
    for _ in 0..STEADY {
        say(&figures, &all, 100).await;
    }
    let (passed, used) = (begun.elapsed().as_secs_f64(), (cpu() - used).as_secs_f64());
    let looks = figures.asked.load(Ordering::Relaxed) - asked;
    let each = (used - quiet * passed) / looks as f64;
    println!(
        "{count} autoscalers, figures of each once a second: {:.0} looks a second, {:.0} us of CPU each; \
         {:.1} % of a core with them, {:.1} % without",
        looks as f64 / passed,
        each * 1e6,
        100.0 * used / passed,
        100.0 * quiet,
    );

    let watching = tokio::spawn(grown(cluster.client.clone(), count));
    let begun = Instant::now();
    say(&figures, &all, 200).await;
    let grown = tokio::time::timeout(PATIENCE, watching).await;
    let grown = grown.expect("all have grown").expect("watched");
    let mut took: Vec<Duration> = grown.values().map(|at| *at - begun).collect();
    took.sort();
    let percentile = |of: usize| took[(took.len() * of / 100).min(took.len() - 1)].as_secs_f64();
    println!(
        "all of them overloaded within the same second: another size wanted {:.2} s (p50), {:.2} s (p99), {:.2} s (last) after the second began",
        percentile(50),
        percentile(99),
        percentile(100),
    );
}

fn main() {
    let count = std::env::var("AUTOSCALERS").ok();
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(1_000);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure(count));
}
