//! `gantry-bench BINARY`: measures a whole cluster as its users feel it, and prints one line per figure.
//!
//! Starts its own cluster from a release binary, in a data directory of its own and on a port of its own, and removes
//! it at the end. Figures and the machine they were taken on belong into docs/benchmarks.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};

const PODS: usize = 50;
const OBJECTS: usize = 2000;
const CLIENTS: usize = 32;
const WATCHERS: usize = 50;
const LISTEN: &str = "127.0.0.1:16443";

/// A cluster for measuring.
struct Bench {
    binary: PathBuf,
    directory: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["down", "--purge"]) {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

impl Bench {
    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .arg("--data-dir")
            .arg(self.data_dir())
            .output()
            .with_context(|| format!("running {}", self.binary.display()))?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn client(&self) -> Result<kube::Client> {
        let kubeconfig = Kubeconfig::read_from(self.data_dir().join("admin.kubeconfig"))?;
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Resident bytes of the gantry process.
    fn resident(&self) -> Result<u64> {
        let pid = std::fs::read_to_string(self.data_dir().join("gantry.pid"))?;
        memory(&format!("/proc/{}/smaps_rollup", pid.trim()), "Rss:")
    }

    /// Proportional bytes of all shims of this cluster.
    fn shims(&self) -> Result<u64> {
        let mut total = 0;
        for entry in std::fs::read_dir("/proc")? {
            let path = entry?.path();
            let Ok(command) = std::fs::read(path.join("cmdline")) else {
                continue;
            };
            if command.windows(4).any(|part| part == b"shim") {
                total +=
                    memory(&path.join("smaps_rollup").display().to_string(), "Pss:").unwrap_or(0);
            }
        }
        Ok(total)
    }
}

fn memory(path: &str, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .context("the field is missing")?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kibibytes * 1024)
}

fn pod(name: &str) -> Result<Pod> {
    Ok(serde_json::from_value(serde_json::json!({
        "metadata": {"name": name, "labels": {"bench": "pods"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "web", "image": "gantry.local/web:v1"}]},
    }))?)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

fn print_latencies(what: &str, mut latencies: Vec<Duration>) {
    latencies.sort();
    println!(
        "{what:<48} p50 {:>7.1} ms   p99 {:>7.1} ms",
        percentile(&latencies, 50).as_secs_f64() * 1e3,
        percentile(&latencies, 99).as_secs_f64() * 1e3
    );
}

fn is_running(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        == Some("Running")
}

/// Creates pods, `at_once` or one by one, and measures each from the request to phase Running.
async fn create_pods(client: &kube::Client, at_once: bool) -> Result<Vec<Duration>> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let selector = ListParams::default().labels("bench=pods");
    let start_at = pods
        .list(&selector)
        .await?
        .metadata
        .resource_version
        .unwrap_or_default();
    let mut watch = pods
        .watch(
            &WatchParams::default().labels("bench=pods").timeout(200),
            &start_at,
        )
        .await?
        .boxed();
    let mut started: BTreeMap<String, Instant> = BTreeMap::new();
    let mut latencies = Vec::new();
    let names: Vec<String> = (0..PODS).map(|index| format!("bench-{index}")).collect();
    let groups: Vec<&[String]> = if at_once {
        vec![&names[..]]
    } else {
        names.chunks(1).collect()
    };
    for group in groups {
        for name in group {
            started.insert(name.clone(), Instant::now());
        }
        futures::stream::iter(group)
            .map(|name| {
                let pods = pods.clone();
                async move {
                    pods.create(&PostParams::default(), &pod(name)?)
                        .await
                        .context("creating a pod")
                }
            })
            .buffer_unordered(CLIENTS)
            .try_collect::<Vec<_>>()
            .await?;
        let mut waiting = group.len();
        while waiting > 0 {
            let Some(event) = watch.try_next().await? else {
                bail!("the watch ended with {waiting} pods not running");
            };
            if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
                && is_running(&pod)
                && let Some(start) =
                    started.remove(pod.metadata.name.as_deref().unwrap_or_default())
            {
                latencies.push(start.elapsed());
                waiting -= 1;
            }
        }
    }
    Ok(latencies)
}

async fn delete_pods(client: &kube::Client) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let selector = ListParams::default().labels("bench=pods");
    pods.delete_collection(&DeleteParams::default().grace_period(0), &selector)
        .await?;
    while !pods.list(&selector).await?.items.is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn config_map(index: usize) -> ConfigMap {
    ConfigMap {
        metadata: kube::api::ObjectMeta {
            name: Some(format!("bench-{index}")),
            ..Default::default()
        },
        data: Some(BTreeMap::from([("value".to_owned(), "x".repeat(1024))])),
        ..ConfigMap::default()
    }
}

async fn api_rates(client: &kube::Client) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let mut latencies = Vec::new();
    for index in 0..200 {
        let start = Instant::now();
        maps.create(&PostParams::default(), &config_map(OBJECTS + index))
            .await?;
        latencies.push(start.elapsed());
    }
    print_latencies("API create, 1 client", latencies);
    let start = Instant::now();
    futures::stream::iter(0..OBJECTS)
        .map(|index| {
            let maps = maps.clone();
            async move {
                maps.create(&PostParams::default(), &config_map(index))
                    .await
            }
        })
        .buffer_unordered(CLIENTS)
        .try_collect::<Vec<_>>()
        .await?;
    let rate = |count: usize, start: Instant| count as f64 / start.elapsed().as_secs_f64();
    println!(
        "{:<48} {:>8.0} /s",
        format!("API create, {CLIENTS} clients"),
        rate(OBJECTS, start)
    );
    let start = Instant::now();
    futures::stream::iter(0..OBJECTS)
        .map(|index| {
            let maps = maps.clone();
            async move { maps.get(&format!("bench-{index}")).await }
        })
        .buffer_unordered(CLIENTS)
        .try_collect::<Vec<_>>()
        .await?;
    println!(
        "{:<48} {:>8.0} /s",
        format!("API get, {CLIENTS} clients"),
        rate(OBJECTS, start)
    );
    let mut latencies = Vec::new();
    for _ in 0..20 {
        let start = Instant::now();
        let request = kube::core::Request::new("/api/v1/namespaces/default/configmaps")
            .list(&ListParams::default())?;
        client.request_text(request).await?;
        latencies.push(start.elapsed());
    }
    print_latencies(
        &format!("API list of {} objects of 1 KiB", OBJECTS + 200),
        latencies,
    );
    watch_rate(client, &maps).await
}

/// Events per second, all watchers together, from the first create until every watcher has seen every object.
async fn watch_rate(client: &kube::Client, maps: &Api<ConfigMap>) -> Result<()> {
    let now = maps.list(&ListParams::default().limit(1)).await?;
    let now = now.metadata.resource_version.unwrap_or_default();
    let request = kube::core::Request::new("/api/v1/namespaces/default/configmaps")
        .watch(&WatchParams::default(), &now)?;
    let mut watches = Vec::new();
    for _ in 0..WATCHERS {
        // A stream is there when the server has answered: no event is missed.
        watches.push(client.request_stream(request.clone()).await?.lines());
    }
    let start = Instant::now();
    let creates = futures::stream::iter(OBJECTS + 200..2 * OBJECTS + 200)
        .map(|index| async move {
            maps.create(&PostParams::default(), &config_map(index))
                .await
        })
        .buffer_unordered(CLIENTS)
        .try_for_each(|_| async { Ok(()) });
    let seen = futures::future::try_join_all(watches.into_iter().map(|lines| async move {
        let seen = lines
            .take(OBJECTS)
            .try_fold(0, |seen, _| async move { Ok(seen + 1) });
        match seen.await? {
            OBJECTS => Ok(()),
            seen => bail!("a watch ended after {seen} of {OBJECTS} events"),
        }
    }));
    let (created, seen) = tokio::join!(creates, seen);
    created?;
    seen?;
    println!(
        "{:<48} {:>8.0} /s",
        format!("API watch, events at {WATCHERS} watchers"),
        (OBJECTS * WATCHERS) as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let Some(binary) = std::env::args_os().nth(1) else {
        bail!("usage: gantry-bench GANTRY_BINARY");
    };
    let bench = Bench {
        binary: Path::new(&binary)
            .canonicalize()
            .context("finding the gantry binary")?,
        directory: tempfile::tempdir()?,
    };
    for what in [
        "gantry up to node Ready, first start",
        "gantry up to node Ready, second start",
    ] {
        let start = Instant::now();
        bench.run(&["up", "--listen", LISTEN])?;
        println!("{what:<48} {:>8.2} s", start.elapsed().as_secs_f64());
        if what.contains("first") {
            bench.run(&["down"])?;
        }
    }
    let archive = bench.directory.path().join("web.tar");
    gantry_demo::pack("v1", std::fs::File::create(&archive)?)?;
    bench.run(&["image", "import", &archive.display().to_string()])?;
    let client = bench.client().await?;
    let idle = bench.resident()?;
    println!(
        "{:<48} {:>8.1} MiB",
        "RSS of server and agent, idle",
        idle as f64 / 1048576.0
    );
    print_latencies(
        &format!("create to Running, {PODS} pods one at a time"),
        create_pods(&client, false).await?,
    );
    delete_pods(&client).await?;
    print_latencies(
        &format!("create to Running, {PODS} pods at once"),
        create_pods(&client, true).await?,
    );
    let per_pod = (bench.resident()?.saturating_sub(idle)) as f64 / PODS as f64;
    println!(
        "{:<48} {:>8.2} MiB",
        "RSS of server and agent per running pod",
        per_pod / 1048576.0
    );
    println!(
        "{:<48} {:>8.2} MiB",
        "PSS of the shim per running pod",
        bench.shims()? as f64 / PODS as f64 / 1048576.0
    );
    delete_pods(&client).await?;
    api_rates(&client).await
}
