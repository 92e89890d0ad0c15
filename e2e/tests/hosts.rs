//! Three hosts: pods reach each other wherever they are, and clients reach pods through whichever server they ask.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Pod, TOOLS, eventually, gantry};
use serde_json::json;

const NODE_PORT: u16 = 30081;
/// Requests after which every one of three endpoints has answered: the chance that one has not is one in a million.
const ENOUGH: usize = 40;

/// Three nodes, each with a pod `at-NODE` that serves; they have names of their own below `peers`, and the Services
/// `peer` and `peers`.
fn with_peers(servers: usize) -> Result<(Fleet, Vec<Pod>)> {
    let fleet = Fleet::of_machines(servers, 3)?;
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]);
    fleet.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "peer"},
        "spec": {"type": "NodePort", "selector": {"app": "peer"}, "ports": ports},
    }))?;
    fleet.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "peers"},
        "spec": {"clusterIP": "None", "selector": {"app": "peer"}, "ports": [{"name": "http", "port": 8080}]},
    }))?;
    for node in fleet.node_names() {
        let name = format!("at-{node}");
        fleet.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "peer"}},
            "spec": {
                "nodeName": node,
                "hostname": name,
                "subdomain": "peers",
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "web",
                    "image": TOOLS,
                    "command": ["/web"],
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
                }],
            },
        }))?;
    }
    let pods = fleet.wait_serving_pods("app=peer", 3)?;
    Ok((fleet, pods))
}

/// What a pod gets from a URL.
fn fetched(fleet: &Fleet, by: &Pod, url: &str) -> Result<String> {
    fleet
        .exec(&by.name, &["/web", "get", url])
        .with_context(|| format!("from {} on {}", by.name, by.node))
}

/// Asks until everyone has answered who should.
fn all_answer(what: &str, mut ask: impl FnMut() -> Result<String>) -> Result<()> {
    let mut answered = BTreeSet::new();
    for _ in 0..ENOUGH {
        answered.insert(ask()?);
        if answered.len() == 3 {
            return Ok(());
        }
    }
    anyhow::bail!("{what}: after {ENOUGH} requests only {answered:?} have answered")
}

#[test]
fn pods_on_different_nodes_reach_each_other_by_address_service_and_name() -> Result<()> {
    let (fleet, pods) = with_peers(1)?;
    // Names and rules are there on every node once every pod has them.
    for pod in &pods {
        eventually("every name to be known", || {
            let found = fleet.exec(&pod.name, &["nslookup", "peers.default.svc.cluster.local"])?;
            let all = pods.iter().all(|peer| found.contains(&peer.ip));
            ensure!(all, "{} finds {found}", pod.name);
            Ok(())
        })
        .with_context(|| fleet.logs())?;
    }
    for pod in &pods {
        for peer in &pods {
            let expected = format!("web tools from {}\n", peer.name);
            for url in [
                format!("http://{}:8080/", peer.ip),
                format!("http://{}.peers:8080/", peer.name),
                format!("http://{}.peers.default.svc.cluster.local:8080/", peer.name),
            ] {
                let said = fetched(&fleet, pod, &url)?;
                ensure!(said == expected, "{} got {said:?} from {url}", pod.name);
            }
            // Only what leaves the cluster hides behind the node's address.
            let seen = fetched(&fleet, pod, &format!("http://{}:8080/client", peer.ip))?;
            ensure!(seen.trim() == pod.ip, "{} was seen as {seen}", pod.ip);
        }
        all_answer("the Service's name", || {
            fetched(&fleet, pod, "http://peer/")
        })?;
        let full = "http://peer.default.svc.cluster.local/";
        all_answer("the Service's full name", || fetched(&fleet, pod, full))?;
    }
    Ok(())
}

#[test]
fn every_node_serves_every_node_port() -> Result<()> {
    let (fleet, _) = with_peers(1)?;
    for node in fleet.node_names() {
        let url = format!("http://{}:{NODE_PORT}/", fleet.node_address(&node)?);
        eventually("the node port", || fleet.curl(&url))
            .with_context(|| format!("{node}\n{}", fleet.logs()))?;
        all_answer(&format!("a client at {node}"), || fleet.curl(&url))?;
        // From a machine of the cluster, to its own and to others' addresses.
        for other in fleet.node_names() {
            all_answer(&format!("{other} at {node}"), || {
                let mut curl = fleet.node_command(&other, Path::new("curl"));
                curl.args(["--fail", "--silent", "--max-time", "5", &url]);
                let output = curl.output()?;
                ensure!(
                    output.status.success(),
                    "curl on {other} to {url}: {}",
                    output.status
                );
                Ok(String::from_utf8(output.stdout)?)
            })?;
        }
    }
    Ok(())
}

/// Far less than the minute between looks at everything.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn rules_are_back_soon_after_a_firewall_has_flushed_them() -> Result<()> {
    let (fleet, pods) = with_peers(1)?;
    let pod = pods.first().context("a pod")?;
    let answers = || {
        all_answer("the Service's name", || {
            fetched(&fleet, pod, "http://peer/")
        })
    };
    eventually("the Service to answer", answers).with_context(|| fleet.logs())?;
    let mut nft = fleet.node_command(&pod.node, Path::new("nft"));
    let flushed = Instant::now();
    ensure!(nft.args(["flush", "ruleset"]).status()?.success(), "flush");
    eventually("the Service to answer again", answers).with_context(|| fleet.logs())?;
    ensure!(flushed.elapsed() < SOON, "after {:?}", flushed.elapsed());
    let log = fleet.log(&pod.node);
    ensure!(log.contains("nftables tables"), "nobody is told:\n{log}");
    Ok(())
}

/// A program that runs until the value goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Logs, exec, cp and port-forward of a pod through a server. Every pair has local ports of its own, by kubectl and by gantry.
fn streams(fleet: &Fleet, server: &str, pod: &Pod, local_port: u16) -> Result<()> {
    let logs = fleet.kubectl(server, &["logs", &pod.name])?;
    ensure!(logs.contains(&format!("in {}", pod.name)), "{logs}");
    let said = fleet.kubectl(server, &["exec", &pod.name, "--", "hostname"])?;
    ensure!(said.trim() == pod.name, "exec: {said:?}");
    let said = fleet.gantry(server, &["exec", &pod.name, "--", "hostname"])?;
    ensure!(said.trim() == pod.name, "gantry exec: {said:?}");

    let directory = tempfile::tempdir()?;
    let (there, back) = (
        directory.path().join("there"),
        directory.path().join("back"),
    );
    // Larger than any buffer on the way, and different for every pair.
    let content: Vec<u8> = (0..300_000_u32)
        .flat_map(|number| (number ^ u32::from(local_port)).to_le_bytes())
        .collect();
    fs::write(&there, &content)?;
    let remote = format!("{}:/tmp/by-{server}", pod.name);
    fleet.kubectl(server, &["cp", &there.display().to_string(), &remote])?;
    fleet.kubectl(server, &["cp", &remote, &back.display().to_string()])?;
    ensure!(fs::read(&back)? == content, "what was copied differs");
    fs::remove_file(&back)?;
    let remote = format!("{remote}-too");
    fleet.gantry(server, &["cp", &there.display().to_string(), &remote])?;
    fleet.gantry(server, &["cp", &remote, &back.display().to_string()])?;
    ensure!(
        fs::read(&back)? == content,
        "what gantry has copied differs"
    );

    let programs = [Path::new("kubectl").to_owned(), gantry()?];
    for (program, local_port) in programs.iter().zip((local_port..).step_by(1000)) {
        let mut forward = fleet.command(program);
        forward
            .arg("--kubeconfig")
            .arg(fleet.kubeconfig(server))
            .args(["port-forward", &pod.name, &format!("{local_port}:8080")])
            .stdout(Stdio::null());
        let _forward = Running(forward.spawn()?);
        let url = format!("http://127.0.0.1:{local_port}/");
        let said = eventually("an answer through the forwarded port", || fleet.curl(&url))
            .with_context(|| program.display().to_string())?;
        ensure!(said == format!("web tools from {}\n", pod.name), "{said}");
    }
    Ok(())
}

#[test]
fn streams_reach_every_node_through_every_server() -> Result<()> {
    let (fleet, pods) = with_peers(3)?;
    for (server, first) in fleet.names().into_iter().zip((18_000..).step_by(10)) {
        for (pod, local_port) in pods.iter().zip(first..) {
            streams(&fleet, &server, pod, local_port)
                .with_context(|| format!("{} on {} through {server}", pod.name, pod.node))
                .with_context(|| fleet.logs())?;
        }
    }
    Ok(())
}
