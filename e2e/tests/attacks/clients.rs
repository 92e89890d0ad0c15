//! Connections, watches and lists that take what others need.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_e2e::siege::{AT_MOST, Attack, Siege};
use gantry_e2e::{Cluster, eventually};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use serde_json::json;

const MIB: usize = 1 << 20;

/// Whether attacks are to be as large as they once were.
fn is_full() -> bool {
    std::env::var("GANTRY_ATTACK").is_ok_and(|size| size == "full")
}

fn config_map(name: &str, bytes: usize) -> Result<ConfigMap> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "data": {"text": "x".repeat(bytes)},
    }))?)
}

/// Creates objects of a size, one after the other; says how long each took, sorted.
fn create(cluster: &Cluster, prefix: &str, count: usize, bytes: usize) -> Result<Vec<Duration>> {
    cluster.block_on(|client| async move {
        let maps: kube::Api<ConfigMap> = kube::Api::default_namespaced(client);
        // The connection is made before.
        maps.get_opt("kube-root-ca.crt").await?;
        let mut took = Vec::new();
        for number in 0..count {
            let map = config_map(&format!("{prefix}-{number}"), bytes)?;
            let began = Instant::now();
            maps.create(&PostParams::default(), &map).await?;
            took.push(began.elapsed());
        }
        took.sort();
        Ok(took)
    })
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

fn is_ready(cluster: &Cluster) -> Result<()> {
    let ready = cluster.kubectl(&[
        "get",
        "node",
        "node-1",
        "--request-timeout=10s",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
    ])?;
    ensure!(ready == "True", "Ready is {ready:?}");
    Ok(())
}

/// One number of the server's metrics.
fn metric(cluster: &Cluster, series: &str) -> Result<f64> {
    let text = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    Ok(line.map_or(Ok(0.0), |value| value.trim().parse())?)
}

/// Besieges a cluster from several processes.
fn besiege(cluster: &Cluster, attack: Attack, count: usize) -> Result<Vec<Siege>> {
    let processes = count.div_ceil(AT_MOST);
    (0..processes)
        .map(|_| Siege::begin(cluster, attack, count / processes))
        .collect()
}

/// Waits until the process has so little memory, and says how much that is.
fn shrinks(cluster: &Cluster, bytes: usize) -> Result<usize> {
    eventually("the memory to be given back", || {
        // Asking is no load, and paces the wait.
        is_ready(cluster)?;
        let resident = cluster.resident()?;
        ensure!(
            resident <= bytes,
            "{} MiB, which should be {}",
            resident / MIB,
            bytes / MIB
        );
        Ok(resident)
    })
}

#[test]
fn row_15_others_do_not_notice_hostile_connections_unread_watches_and_unread_lists() -> Result<()> {
    let full = is_full();
    let (heads, watches, lists, objects) = match full {
        true => (20_000, 5_000, 100, 30),
        false => (400, 200, 40, 8),
    };
    let limit = match full {
        true => Duration::from_millis(50),
        // A build for development, beside other tests and whatever keeps the machine busy; who is given no place waits longer.
        false => Duration::from_secs(4),
    };
    let cluster = match full {
        true => Cluster::start()?,
        false => Cluster::start_with(&["--client-memory", "32"])?,
    };
    create(&cluster, "large", objects, MIB)?;
    let idle = shrinks(&cluster, usize::MAX)?;

    let mut sieges = besiege(&cluster, Attack::UnreadWatches, watches)?;
    sieges.extend(besiege(&cluster, Attack::UnreadLists, lists)?);
    sieges.extend(besiege(&cluster, Attack::HalfHeads, heads)?);
    let opened: usize = sieges.iter().map(Siege::opened).sum();
    // What the watches do not read.
    create(&cluster, "event", objects, MIB / 4)?;
    let took = create(&cluster, "small", if full { 500 } else { 50 }, 100)?;
    let (median, most) = (percentile(&took, 50), percentile(&took, 99));
    let besieged = cluster.resident()?;
    is_ready(&cluster).with_context(|| cluster.log())?;
    let maps = cluster.kubectl(&["get", "configmaps", "--request-timeout=60s", "-o", "name"])?;
    ensure!(maps.lines().count() > 2 * objects, "{maps}");
    drop(sieges);
    let left = Instant::now();
    let after = shrinks(&cluster, idle * 3 / 2).with_context(|| format!("idle: {}", idle / MIB))?;
    let summary = format!(
        "{opened} connections; create p50 {median:?}, p99 {most:?}; memory {} MiB idle, {} besieged, {} after {:?}",
        idle / MIB,
        besieged / MIB,
        after / MIB,
        left.elapsed(),
    );
    println!("{summary}");
    ensure!(most < limit, "{summary}");
    ensure!(besieged < 512 * MIB, "{summary}");
    ensure!(left.elapsed() < Duration::from_secs(75), "{summary}");
    Ok(())
}

#[test]
fn row_15_half_requests_end_and_take_nobodys_place() -> Result<()> {
    let cluster = Cluster::start()?;
    let connections = || metric(&cluster, "gantry_apiserver_connections ");
    let before = connections()?;
    // More than there are places, of changes and of all classes.
    let count = if is_full() { 5_000 } else { 1_100 };
    let _siege = [
        Siege::begin(&cluster, Attack::HalfBodies, count)?,
        Siege::begin(&cluster, Attack::HalfHeads, 100)?,
        Siege::begin(&cluster, Attack::Silent, 100)?,
    ];
    create(&cluster, "small", 10, 100)?;
    is_ready(&cluster)?;
    eventually("hostile connections to be ended", || {
        let now = connections()?;
        ensure!(now <= before + 10.0, "{now} of {before}");
        Ok(())
    })
}

#[test]
fn row_15_unread_answers_of_every_form_hold_little() -> Result<()> {
    let cluster = Cluster::start_with(&["--client-memory", "32"])?;
    create(&cluster, "large", 8, MIB)?;
    let idle = cluster.resident()?;
    let count = if is_full() { 600 } else { 100 };
    let sieges = [
        Siege::begin(&cluster, Attack::UnreadLists, count)?,
        Siege::begin(&cluster, Attack::UnreadYaml, count)?,
        Siege::begin(&cluster, Attack::UnreadTables, count)?,
    ];
    let resident = cluster.resident()?;
    let opened: usize = sieges.iter().map(Siege::opened).sum();
    let most = match is_full() {
        true => 512 * MIB,
        false => idle + 160 * MIB,
    };
    ensure!(
        resident < most,
        "{opened} unread lists take {} MiB, beside {}",
        resident / MIB,
        idle / MIB
    );
    create(&cluster, "small", 10, 100)?;
    is_ready(&cluster)
}

#[test]
fn row_16_what_is_streamed_is_not_collected_as_yaml() -> Result<()> {
    let cluster = Cluster::start()?;
    let maps = "/api/v1/namespaces/default/configmaps";
    let watched = "/api/v1/watch/namespaces/default/configmaps";
    cluster.block_on(|client| async move {
        let ask = async |path: &str, accept: &str| -> Result<(u16, String)> {
            let request = http::Request::get(path).header("accept", accept);
            let response = client
                .send(request.body(kube::client::Body::empty())?)
                .await?;
            let (parts, body) = response.into_parts();
            let bytes = tokio::time::timeout(Duration::from_secs(10), body.collect_bytes());
            let bytes = bytes.await.context("the answer does not end")??;
            // A refusal may be a message.
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Ok((parts.status.as_u16(), text))
        };
        for path in [
            format!("{maps}?watch=true"),
            format!("{maps}?watch=1&fieldSelector=metadata.name%3Da"),
            format!("{watched}/kube-root-ca.crt"),
            format!("{maps}?watch&resourceVersion=1"),
        ] {
            for accept in [
                "application/yaml",
                "application/yaml;q=0.9, application/json;q=0.1",
                "application/yaml;stream=watch",
                "application/vnd.kubernetes.protobuf",
                "text/event-stream",
            ] {
                let (status, text) = ask(&path, accept).await?;
                // What is told depends on how far such a request comes.
                ensure!(
                    status == 406 && text.contains("application/json"),
                    "{path} {accept}: {status} {text}"
                );
            }
        }
        let (status, text) = ask(maps, "application/yaml").await?;
        ensure!(
            status == 200 && text.contains("kind: ConfigMapList"),
            "{text}"
        );
        Ok(())
    })
}

#[test]
fn row_17_metrics_have_no_series_for_what_clients_make_up() -> Result<()> {
    let cluster = Cluster::start()?;
    for path in [
        "/apis/madeup.example/v1/madeups",
        "/api/v1/madeups/madeup/madeup",
        "/api/v1/namespaces/madeup/madeups?watch=madeup",
        "/api/madeup/pods",
        "/madeup",
    ] {
        let refused = cluster.kubectl(&["get", "--raw", path]);
        ensure!(refused.is_err(), "{path} is served");
    }
    let text = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    if let Some(line) = text.lines().find(|line| line.contains("madeup")) {
        bail!("{line}");
    }
    Ok(())
}

#[test]
fn row_18_watches_of_one_name_are_counted() -> Result<()> {
    let cluster = Cluster::start()?;
    let watches = || {
        let series = "gantry_apiserver_requests_in_flight{class=\"watches\"}";
        metric(&cluster, series)
    };
    let before = watches()?;
    let maps = "/api/v1/namespaces/default/configmaps";
    let watched = "/api/v1/watch/namespaces/default/configmaps";
    let queries = [
        format!("{watched}/kube-root-ca.crt"),
        format!("{watched}?fieldSelector=metadata.name%3Dkube-root-ca.crt"),
        format!("{maps}?fieldSelector=metadata.name%3Dkube-root-ca.crt&watch=True"),
        format!("{maps}?watch=t"),
        format!("{maps}?watch"),
    ];
    let open: Result<Vec<_>> = queries
        .iter()
        .map(|query| {
            let mut kubectl = cluster.command("kubectl");
            kubectl.args(["get", "--raw", query]);
            Ok(kubectl.stdout(std::process::Stdio::null()).spawn()?)
        })
        .collect();
    let mut open = open?;
    let counted = eventually("the watches to be counted", || {
        let now = watches()?;
        ensure!(now == before + 5.0, "{now} of {before}");
        Ok(())
    });
    for child in &mut open {
        child.kill()?;
        child.wait()?;
    }
    counted?;
    eventually("the watches to be gone", || {
        let now = watches()?;
        ensure!(now == before, "{now} of {before}");
        Ok(())
    })
}

#[test]
fn row_22_memory_is_given_back_when_clients_leave() -> Result<()> {
    let cluster = Cluster::start()?;
    let objects = if is_full() { 240 } else { 32 };
    create(&cluster, "large", objects, MIB / 8)?;
    let idle = shrinks(&cluster, usize::MAX)?;
    // Lists that are read, as JSON and as tables, by many at once.
    let readers = if is_full() { 32 } else { 4 };
    cluster.block_on(|client| async move {
        let list = async |accept: &'static str| -> Result<()> {
            for _ in 0..4 {
                let request = http::Request::get("/api/v1/configmaps?includeObject=Object")
                    .header("accept", accept)
                    .body(kube::client::Body::empty())?;
                let body = client.send(request).await?.into_body();
                body.collect_bytes().await?;
            }
            Ok(())
        };
        let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
        let lists = (0..readers).flat_map(|_| [list("application/json"), list(table)]);
        futures::future::try_join_all(lists).await.map(drop)
    })?;
    let loaded = cluster.resident()?;
    let left = Instant::now();
    let after = shrinks(&cluster, idle * 3 / 2)
        .with_context(|| format!("{} MiB idle, {} loaded", idle / MIB, loaded / MIB))?;
    println!(
        "memory {} MiB idle, {} loaded, {} after {:?}",
        idle / MIB,
        loaded / MIB,
        after / MIB,
        left.elapsed()
    );
    Ok(())
}
