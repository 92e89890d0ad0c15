//! Three servers: joined by token, killed, paused, removed, under checked writes and watches.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use gantry_e2e::{DEADLINE, Servers, eventually};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};

const WRITERS: usize = 32;

/// Leaders to kill: `GANTRY_E2E_ROUNDS`, or a few.
fn rounds() -> usize {
    let asked = std::env::var("GANTRY_E2E_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(5)
}

fn object(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: kube::api::ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        ..Default::default()
    }
}

/// What the writers have done.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<Vec<(Instant, String)>>,
    done: AtomicBool,
}

impl Ledger {
    fn names(&self) -> BTreeSet<String> {
        let ledger = self.acknowledged.lock().expect("no writer panics");
        ledger.iter().map(|(_, name)| name.clone()).collect()
    }

    /// The first acknowledgement of a write that began after an instant is not known; that of any write is.
    fn first_after(&self, instant: Instant) -> Option<Instant> {
        let ledger = self.acknowledged.lock().expect("no writer panics");
        ledger.iter().map(|(at, _)| *at).find(|at| *at > instant)
    }
}

/// Creates objects one after another, each until some server has acknowledged it.
async fn write(number: usize, clients: Arc<Vec<Client>>, ledger: Arc<Ledger>) {
    let mut server = number;
    for object_number in 0.. {
        let name = format!("w{number}-{object_number}");
        loop {
            if ledger.done.load(Ordering::Relaxed) {
                return;
            }
            let api: Api<ConfigMap> =
                Api::default_namespaced(clients[server % clients.len()].clone());
            match api.create(&PostParams::default(), &object(&name)).await {
                Ok(_) => break,
                // An attempt whose answer was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => break,
                Err(_) => server += 1,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut acknowledged = ledger.acknowledged.lock().expect("no writer panics");
        acknowledged.push((Instant::now(), name));
    }
}

/// Follows every creation through whichever server answers; fails on a repetition or a step back.
async fn follow(
    clients: Arc<Vec<Client>>,
    from: String,
    seen: Arc<Mutex<BTreeSet<String>>>,
    ledger: Arc<Ledger>,
) -> Result<()> {
    let mut version = from;
    let mut newest = 0_u64;
    let mut server = 0;
    while !ledger.done.load(Ordering::Relaxed) {
        let api: Api<ConfigMap> = Api::default_namespaced(clients[server % clients.len()].clone());
        server += 1;
        let Ok(stream) = api
            .watch(&WatchParams::default().timeout(5), &version)
            .await
        else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::pin!(stream);
        while let Some(Ok(event)) = stream.next().await {
            let WatchEvent::Added(object) = event else {
                continue;
            };
            version = object.metadata.resource_version.context("a version")?;
            let number: u64 = version.parse()?;
            ensure!(number > newest, "event {number} after {newest}");
            newest = number;
            let name = object.metadata.name.context("a name")?;
            let new = seen.lock().expect("nobody panics").insert(name.clone());
            ensure!(new, "{name} was delivered twice");
        }
    }
    Ok(())
}

async fn names_at(client: &Client) -> Result<BTreeSet<String>> {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let list = api.list(&ListParams::default()).await?;
    Ok(list
        .into_iter()
        .filter_map(|object| object.metadata.name)
        .collect())
}

async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt().await {
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waiting for: {what}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            done => return done,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_leaders_die() -> Result<()> {
    let mut servers = Servers::start(3)?;
    let mut clients = Vec::new();
    for name in servers.names() {
        clients.push(servers.client(&name).await?);
    }
    let clients = Arc::new(clients);
    let ledger = Arc::new(Ledger::default());
    let list = Api::<ConfigMap>::default_namespaced(clients[0].clone())
        .list(&ListParams::default())
        .await?;
    let from = list
        .metadata
        .resource_version
        .context("the list's version")?;
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let watcher = tokio::spawn(follow(clients.clone(), from, seen.clone(), ledger.clone()));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| tokio::spawn(write(number, clients.clone(), ledger.clone())))
        .collect();
    let killed = AtomicUsize::new(0);
    let mut gaps = Vec::new();
    for _ in 0..rounds() {
        let leader = until("a leader", async || servers.leader("s1")).await?;
        let other = servers
            .names()
            .into_iter()
            .find(|name| *name != leader)
            .context("another")?;
        servers.kill(&leader)?;
        let died = Instant::now();
        killed.fetch_add(1, Ordering::Relaxed);
        let next = until("the next acknowledged write", async || {
            ledger.first_after(died).context("none yet")
        })
        .await
        .with_context(|| servers.logs())?;
        gaps.push(next - died);
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
    ledger.done.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await?;
    }
    let acknowledged = ledger.names();
    for client in clients.iter() {
        let there = until("a list", async || names_at(client).await).await?;
        let missing: Vec<&String> = acknowledged.difference(&there).collect();
        ensure!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    }
    watcher.await??;
    let all = names_at(&clients[0]).await?;
    let seen = seen.lock().expect("nobody panics");
    // The watch ends with the writers: what was acknowledged last may still have been on its way.
    let gap: Vec<&String> = all
        .difference(&seen)
        .filter(|name| name.starts_with('w'))
        .collect();
    ensure!(
        gap.len() <= WRITERS,
        "the watch missed {} of {}: {gap:?}",
        gap.len(),
        all.len()
    );
    gaps.sort();
    let at = |share: usize| gaps[(gaps.len() - 1) * share / 100];
    println!(
        "{} leaders killed, {} writes acknowledged, none lost; from kill to the next acknowledged write: p50 {:?}, p99 {:?}",
        killed.into_inner(),
        acknowledged.len(),
        at(50),
        at(99)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_leader_is_replaced_and_follows_when_it_wakes() -> Result<()> {
    let mut servers = Servers::start(3)?;
    let old = servers.leader("s1")?;
    let other = servers
        .names()
        .into_iter()
        .find(|name| *name != old)
        .context("another")?;
    servers.pause(&old)?;
    let client = servers.client(&other).await?;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    until("a write without the old leader", async || {
        match api
            .create(&PostParams::default(), &object("meanwhile"))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            written => Ok(written.map(drop)?),
        }
    })
    .await?;
    servers.resume(&old)?;
    // Its own answers are those of the new leader from its first one on: no read of a state that is past.
    let woken = servers.client(&old).await?;
    let names = until("the woken server to answer", async || {
        names_at(&woken).await
    })
    .await?;
    ensure!(
        names.contains("meanwhile"),
        "the woken server answers from before: {names:?}"
    );
    let leader = until("a leader", async || servers.leader(&other)).await?;
    ensure!(leader != old, "{leader} leads although it was away");
    let api: Api<ConfigMap> = Api::default_namespaced(woken);
    until("a write through the woken server", async || {
        Ok(api
            .create(&PostParams::default(), &object("afterwards"))
            .await
            .map(drop)?)
    })
    .await?;
    let names = names_at(&client).await?;
    ensure!(names.contains("afterwards"), "{names:?}");
    Ok(())
}

#[test]
fn a_node_outlives_the_leader_it_was_linked_to() -> Result<()> {
    let mut servers = Servers::start_with_node(3)?;
    let manifest = format!("{}/../deploy/examples/web.yaml", env!("CARGO_MANIFEST_DIR"));
    servers.gantry("s2", &["apply", "-f", &manifest])?;
    servers.kubectl("s3", &["rollout", "status", "deploy/web", "--timeout=90s"])?;
    let started = |servers: &Servers, asked: &str| {
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

#[test]
fn leadership_is_handed_over_and_servers_leave() -> Result<()> {
    let mut servers = Servers::start(3)?;
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
fn who_may_not_join_is_told_why() -> Result<()> {
    let servers = Servers::start(1)?;
    let others = Servers::start(1)?;
    let address = servers.address("s1")?.to_string();
    let token = |servers: &Servers, admits: &str, ttl: &str| -> Result<String> {
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
