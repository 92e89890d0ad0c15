//! Three servers: joined by token, killed and removed, under checked writes and watches.

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, Machine, Workload, eventually, until};

const WRITERS: usize = 32;

/// Leaders to kill: `GANTRY_E2E_ROUNDS`, or a few.
fn rounds() -> usize {
    let asked = std::env::var("GANTRY_E2E_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(5)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_leaders_die() -> Result<()> {
    let mut servers = Fleet::start(3)?;
    let workload = Workload::start(&servers, WRITERS).await?;
    let mut gaps = Vec::new();
    for _ in 0..rounds() {
        let leader = until("a leader", async || servers.leader("s1")).await?;
        let other = servers
            .names()
            .into_iter()
            .find(|name| *name != leader)
            .context("another")?;
        servers.kill(&leader)?;
        let gap = workload.next_write().await;
        gaps.push(gap.with_context(|| servers.logs())?);
        servers.restart(&leader)?;
        until("everybody to have caught up", async || {
            let members = servers.members(&other)?;
            let well = members.iter().all(|member| member["active"] == true);
            ensure!(well, "{members:?}");
            Ok(())
        })
        .await
        .with_context(|| servers.logs())?;
    }
    let acknowledged = workload.finish().await?;
    gaps.sort();
    let at = |share: usize| gaps[(gaps.len() - 1) * share / 100];
    println!(
        "{} leaders killed, {acknowledged} writes acknowledged, none lost; from kill to the next acknowledged write: p50 {:?}, p99 {:?}",
        gaps.len(),
        at(50),
        at(99)
    );
    Ok(())
}

#[test]
fn a_node_outlives_the_leader_it_was_linked_to() -> Result<()> {
    let mut servers = Fleet::start_with_node(3)?;
    let manifest = format!("{}/../deploy/examples/web.yaml", env!("CARGO_MANIFEST_DIR"));
    servers.gantry("s2", &["apply", "-f", &manifest])?;
    servers.kubectl("s3", &["rollout", "status", "deploy/web", "--timeout=90s"])?;
    let started = |servers: &Fleet, asked: &str| {
        let path = r#"jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[0].state.running.startedAt} {end}"#;
        servers.kubectl(asked, &["get", "pods", "-l", "app=web", "-o", path])
    };
    let leader = servers.leader("s1")?;
    let others: Vec<String> = servers
        .names()
        .into_iter()
        .filter(|name| *name != leader)
        .collect();
    // Through a server that the node is not linked to.
    let logs = servers.kubectl(&others[0], &["logs", "deploy/web"])?;
    ensure!(logs.contains("listens"), "{logs}");
    let before = started(&servers, &others[0])?;
    servers.kill(&leader)?;
    eventually("a change of what runs", || {
        servers.gantry(&others[0], &["scale", "deploy/web", "--replicas", "4"])
    })?;
    servers.kubectl(
        &others[1],
        &["rollout", "status", "deploy/web", "--timeout=90s"],
    )?;
    let after = started(&servers, &others[1])?;
    for pod in before.split_whitespace() {
        ensure!(after.contains(pod), "{pod} was disturbed: {after}");
    }
    let nodes = servers.gantry(&others[0], &["get", "nodes"])?;
    ensure!(nodes.contains(" Ready"), "{nodes}");
    let logs = servers.kubectl(&others[1], &["logs", "deploy/web"])?;
    ensure!(logs.contains("listens"), "{logs}");
    Ok(())
}

/// What a pod of the demo gets from the API by the name of its Service, in its own network.
fn asked_by_a_pod(servers: &Fleet) -> Result<String> {
    let uid = servers.local_kubectl(
        "node-1",
        &[
            "get",
            "pods",
            "--selector=app=web",
            "--output=jsonpath={.items[0].metadata.uid}",
        ],
    )?;
    let url = "https://kubernetes.default.svc/healthz";
    let mut curl = servers.in_pod("node-1", &uid, "curl")?;
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "3"])
        .arg("--cacert")
        .arg(servers.authority())
        .args(["--resolve", "kubernetes.default.svc:443:10.96.0.1", url]);
    let output = curl.output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn clients_on_a_node_outlive_the_server_they_were_given() -> Result<()> {
    Fleet::apart(&vec![Machine::default(); 3], async |servers| {
        servers.add_node()?;
        let manifest = format!("{}/../deploy/examples/web.yaml", env!("CARGO_MANIFEST_DIR"));
        servers.local_kubectl("node-1", &["apply", "-f", &manifest])?;
        servers.local_kubectl(
            "node-1",
            &["rollout", "status", "deploy/web", "--timeout=90s"],
        )?;
        until("a pod to reach the API", async || asked_by_a_pod(servers)).await?;
        // The one that the node and its kubeconfig were given.
        let given = "s1";
        servers.kill(given)?;
        let created = until("a write through the node's own endpoint", async || {
            servers.local_kubectl(
                "node-1",
                &["create", "configmap", "afterwards", "--output=name"],
            )
        })
        .await
        .with_context(|| servers.logs())?;
        ensure!(created.contains("afterwards"), "{created}");
        until("the dead server to be no endpoint any more", async || {
            let dead = servers.address(given)?.ip().to_string();
            for kind in ["endpointslices", "endpoints"] {
                let listed = servers
                    .local_kubectl("node-1", &["get", kind, "kubernetes", "--output=yaml"])?;
                ensure!(!listed.contains(&dead), "{listed}");
            }
            Ok(())
        })
        .await?;
        // Not by luck: every connection goes to a server that lives.
        until("every request of a pod to be answered", async || {
            for _ in 0..10 {
                asked_by_a_pod(servers)?;
            }
            Ok(())
        })
        .await?;
        // The agent remembers the others.
        servers.kill_agent("node-1")?;
        servers.start_agent("node-1")?;
        until("the local endpoint after a restart", async || {
            servers.local_kubectl("node-1", &["get", "configmap", "afterwards"])
        })
        .await?;
        servers.local_kubectl("node-1", &["scale", "deploy/web", "--replicas=4"])?;
        servers.local_kubectl(
            "node-1",
            &["rollout", "status", "deploy/web", "--timeout=90s"],
        )?;
        servers.restart(given)?;
        until("the server to be an endpoint again", async || {
            let address = servers.address(given)?.ip().to_string();
            let listed = servers.local_kubectl(
                "node-1",
                &["get", "endpointslices", "kubernetes", "--output=yaml"],
            )?;
            ensure!(listed.contains(&address), "{listed}");
            Ok(())
        })
        .await
    })
}

#[test]
fn leadership_is_handed_over_and_servers_leave() -> Result<()> {
    let mut servers = Fleet::start(3)?;
    let first = servers.leader("s1")?;
    let others: Vec<String> = servers
        .names()
        .into_iter()
        .filter(|name| *name != first)
        .collect();
    servers.gantry(&others[0], &["member", "transfer-leadership", &others[1]])?;
    eventually("the new leader", || {
        let leader = servers.leader(&first)?;
        ensure!(leader == others[1], "{leader} leads");
        Ok(())
    })?;
    servers.terminate(&others[1])?;
    let leader = eventually("a leader after an orderly end", || {
        let leader = servers.leader(&first)?;
        ensure!(leader != others[1], "it has ended");
        Ok(leader)
    })?;
    servers.gantry(&first, &["member", "remove", &others[1]])?;
    let rest = servers
        .names()
        .into_iter()
        .find(|name| *name != leader && *name != others[1]);
    let rest = rest.context("three servers")?;
    servers.gantry(&leader, &["member", "remove", &rest])?;
    servers.kill(&rest)?;
    let refused = servers.gantry(&leader, &["member", "remove", &leader]);
    let said = format!("{:#}", refused.err().context("the last voter left")?);
    ensure!(said.contains("last voter"), "{said}");
    let listed = servers.gantry(&leader, &["member", "list"])?;
    ensure!(listed.lines().count() == 2, "{listed}");
    Ok(())
}

#[test]
fn any_server_writes_reads_and_watches_for_all() -> Result<()> {
    let servers = Fleet::start(3)?;
    let mut names = servers.names();
    for round in 0..names.len() {
        let [writer, reader, watcher] = names.as_slice() else {
            unreachable!("three were started");
        };
        // Ends by itself where nothing comes. What is there is told first: then the watch is open.
        let watching = [
            "get",
            "configmaps",
            "--watch",
            "--output=name",
            "--request-timeout=30s",
        ];
        let (before, after) = (format!("before-{round}"), format!("after-{round}"));
        servers.kubectl(writer, &["create", "configmap", &before])?;
        let mut watch = servers.spawn_kubectl(watcher, &watching)?;
        let mut told = BufReader::new(watch.stdout.take().context("a pipe")?).lines();
        let mut is_told = |name: &str| -> Result<()> {
            while !told
                .next()
                .with_context(|| format!("{watcher} has not told of {name}"))??
                .ends_with(name)
            {}
            Ok(())
        };
        is_told(&before)?;
        servers.kubectl(writer, &["create", "configmap", &after])?;
        servers
            .kubectl(reader, &["get", "configmap", &after])
            .with_context(|| format!("{reader} right after a write through {writer}"))?;
        is_told(&after)?;
        watch.kill()?;
        watch.wait()?;
        names.rotate_left(1);
    }
    Ok(())
}

#[test]
fn who_may_not_join_is_told_why() -> Result<()> {
    let servers = Fleet::start(1)?;
    let others = Fleet::start(1)?;
    let address = servers.address("s1")?.to_string();
    let token = |servers: &Fleet, admits: &str, ttl: &str| -> Result<String> {
        let made = servers.gantry("s1", &["token", "create", "--for", admits, "--ttl", ttl])?;
        Ok(made.trim().to_owned())
    };
    let good = token(&servers, "servers", "1h")?;
    let expects = |name: &str, token: &str, words: &str| -> Result<()> {
        let said = servers.refuses(&["--name", name, "--join", &address, "--token", token])?;
        ensure!(said.contains(words), "{said:?} does not say {words:?}");
        Ok(())
    };
    expects("s2", "abcdef.0123456789abcdef", "the token is not whole")?;
    expects(
        "s2",
        &token(&others, "servers", "1h")?,
        "of another cluster than the token",
    )?;
    let wrong = format!("zzzzzz{}", &good[6..]);
    expects("s2", &wrong, "does not accept the token")?;
    let nodes_only = token(&servers, "nodes", "1h")?;
    expects("s2", &nodes_only, "this token does not admit servers")?;
    expects("s1", &good, "the name \"s1\" is taken")?;
    servers.gantry("s1", &["token", "revoke", &good])?;
    expects("s2", &good, "does not accept the token")?;
    let brief = token(&servers, "servers", "1s")?;
    eventually("the token to expire", || {
        expects("s1", &brief, "does not accept the token")
    })?;
    let members = servers.members("s1")?;
    ensure!(members.len() == 1, "somebody was let in: {members:?}");
    Ok(())
}

#[test]
fn the_command_line_finds_another_server() -> Result<()> {
    let mut servers = Fleet::start(3)?;
    let kubeconfig = servers.kubeconfig("s1");
    eventually("the kubeconfig to name every server", || {
        let text = std::fs::read_to_string(&kubeconfig)?;
        for name in servers.names() {
            let address = servers.address(&name)?.to_string();
            ensure!(
                text.contains(&format!("\"{address}\"")),
                "{name} is missing"
            );
        }
        Ok(())
    })?;
    // One that is gone, and one that takes connections but says nothing.
    servers.kill("s1")?;
    eventually("another server to answer", || {
        servers.gantry("s1", &["get", "namespace", "default"])
    })?;
    servers.restart("s1")?;
    servers.pause("s1")?;
    let listed = eventually("another server to answer", || {
        servers.gantry("s1", &["member", "list"])
    });
    servers.resume("s1")?;
    ensure!(listed?.contains("s3"));
    Ok(())
}
