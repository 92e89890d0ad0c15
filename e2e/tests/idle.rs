//! A Deployment that sleeps while nobody asks for it: its Service answers all the same, at once, and refuses nobody.
//!
//! `GANTRY_REACTION=full` (`make reaction`) wakes it as often as figures need, and holds them to their budgets.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, WEB, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
/// A client that waits longer has been forgotten.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that begin in the same moment.
const AT_ONCE: usize = 1000;

/// How often it is woken, and the budget of what 99 of 100 first requests take.
fn extent() -> (usize, Duration) {
    match std::env::var("GANTRY_REACTION").as_deref() {
        Ok("full") => (200, Duration::from_millis(500)),
        _ => (4, Duration::from_secs(5)),
    }
}

fn web(fleet: &Fleet) -> Result<Value> {
    let shown = fleet.kubectl("s1", &["get", "deploy", "web", "-o", "json"])?;
    serde_json::from_str(&shown).context("reading the Deployment")
}

fn service(fleet: &Fleet) -> Result<SocketAddr> {
    let path = "jsonpath={.spec.clusterIP}";
    let address = fleet.kubectl("s1", &["get", "svc", "web", "-o", path])?;
    let address: IpAddr = address.trim().parse().context("the Service's address")?;
    Ok((address, 80).into())
}

/// Waits until it sleeps: nothing of it is left.
fn wait_asleep(fleet: &Fleet) -> Result<()> {
    eventually("the Deployment to sleep", || {
        let deployment = web(fleet)?;
        ensure!(deployment["spec"]["replicas"] == 0, "{deployment:#}");
        let pods = fleet.pods(WEB)?;
        ensure!(pods.is_empty(), "{pods:?}");
        Ok(())
    })
    .with_context(|| fleet.logs())
}

/// Puts it to sleep as its time without connections would.
fn put_to_sleep(fleet: &Fleet) -> Result<()> {
    let patch = json!({
        "metadata": {"annotations": {"gantry.dev/idle-replicas": "1"}}, "spec": {"replicas": 0},
    });
    let patch = patch.to_string();
    let patch = ["patch", "deploy", "web", "--type=merge", "--patch", &patch];
    fleet.kubectl("s1", &patch)?;
    wait_asleep(fleet)
}

/// Asks, and says how long the answer took.
fn ask(address: SocketAddr) -> Result<Duration> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("reading the answer")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(began.elapsed())
}

/// As [`ask`], by many at once; how long the last took.
fn ask_all(address: SocketAddr, count: usize) -> Result<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build()?;
    runtime.block_on(async {
        let began = Instant::now();
        let mut asking = JoinSet::new();
        for _ in 0..count {
            asking.spawn(async move {
                let mut stream = tokio::net::TcpStream::connect(address)
                    .await
                    .context("connecting")?;
                stream.write_all(REQUEST).await?;
                let mut answer = String::new();
                stream
                    .read_to_string(&mut answer)
                    .await
                    .context("reading the answer")?;
                ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                anyhow::Ok(())
            });
        }
        let all = async {
            while let Some(asked) = asking.join_next().await {
                asked??;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, all)
            .await
            .context("some were never answered")??;
        Ok(began.elapsed())
    })
}

fn events(fleet: &Fleet, reason: &str) -> Result<String> {
    let selector = ["--field-selector=reason=", reason].concat();
    fleet.kubectl("s1", &["get", "events", &selector])
}

#[test]
fn a_service_that_sleeps_answers() -> Result<()> {
    let fleet = Fleet::of_machines(1, 3)?;
    fleet.apply_web(3, |_| {})?;
    let address = service(&fleet)?;
    fleet.kubectl("s1", &["scale", "deploy/web", "--replicas=1"])?;
    fleet.wait_serving_pods(WEB, 1)?;
    let annotate = ["annotate", "deploy", "web", "gantry.dev/idle-after=10s"];
    let began = Instant::now();
    fleet.kubectl("s1", &annotate)?;
    wait_asleep(&fleet)?;
    ensure!(
        began.elapsed() >= Duration::from_secs(10),
        "it slept after {:?}",
        began.elapsed()
    );
    let idled = events(&fleet, "Idled")?;
    ensure!(idled.contains("deployment/web"), "{idled}");

    let (times, budget) = extent();
    let nodes = fleet.node_names();
    let mut took = Vec::new();
    for round in 0..times {
        let node = &nodes[round % nodes.len()];
        let asked = fleet.on_node(node, || ask(address));
        let asked = asked
            .with_context(|| format!("request {round}, from {node}"))
            .with_context(|| fleet.logs())?;
        took.push(asked);
        put_to_sleep(&fleet)?;
    }
    took.sort();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    println!(
        "{times} first requests of a Service that slept: answered after {:.0} ms (p50), {:.0} ms (p99), none refused",
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3,
    );
    ensure!(at(99) <= budget, "{took:?}");
    let woken = events(&fleet, "Woken")?;
    ensure!(woken.contains("deployment/web"), "{woken}");

    let last = fleet
        .on_node(&nodes[0], || ask_all(address, AT_ONCE))
        .with_context(|| fleet.logs())?;
    println!(
        "{AT_ONCE} connections at once while it slept: all answered, the last after {:.0} ms",
        last.as_secs_f64() * 1e3
    );
    put_to_sleep(&fleet)?;

    // A pod's connection goes the way of the pod's own packets.
    fleet.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client"},
        "spec": {
            "nodeName": nodes[1], "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": gantry_e2e::TOOLS, "command": ["/bin/sleep", "3600"]}],
        },
    }))?;
    eventually("the client", || {
        let pod = fleet.pod("client")?;
        ensure!(pod.ready, "{pod:?}");
        Ok(())
    })?;
    let url = format!("http://{}/client", address.ip());
    let seen = fleet.exec("client", &["/web", "get", &url])?;
    let own = fleet.pod("client")?.ip;
    ensure!(seen.trim() == own, "a pod at {own} is seen as {seen}");
    Ok(())
}
