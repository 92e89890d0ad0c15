//! Continuous checked writes and watches: what is acknowledged must be readable at once through every server, must be
//! there in the end, and must be seen once and in order by whoever watches.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ListParams, ObjectMeta, PostParams, WatchEvent, WatchParams};
use tokio::task::JoinHandle;

use crate::{DEADLINE, Fleet};

/// Every writer reads each of its so manieth writes through another server.
const READ_EVERY: usize = 4;

/// A write that was acknowledged.
struct Acknowledged {
    began: Instant,
    at: Instant,
    name: String,
}

/// What the writers have done.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<Vec<Acknowledged>>,
    done: AtomicBool,
}

impl Ledger {
    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    fn names(&self) -> BTreeSet<String> {
        let ledger = self.acknowledged.lock().expect("no writer panics");
        ledger.iter().map(|write| write.name.clone()).collect()
    }
}

/// Writers and watchers at work, through all of some servers.
pub struct Workload {
    clients: Arc<Vec<Client>>,
    ledger: Arc<Ledger>,
    writers: Vec<JoinHandle<Result<()>>>,
    watchers: Vec<(Seen, JoinHandle<Result<()>>)>,
}

/// The names that a watcher was told of.
type Seen = Arc<Mutex<BTreeSet<String>>>;

/// An object that says no more than that it is there.
fn object(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// Repeats a check until it holds, or until the deadline has passed; the last error tells why.
pub async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
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

impl Workload {
    /// Starts writers, and a watcher that begins at each of the servers.
    pub async fn start(servers: &Fleet, writers: usize) -> Result<Self> {
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
        let watchers = (0..clients.len()).map(|first| {
            let seen = Seen::default();
            let following = follow(first, clients.clone(), from.clone(), seen.clone());
            (seen, tokio::spawn(following))
        });
        let writers =
            (0..writers).map(|number| tokio::spawn(write(number, clients.clone(), ledger.clone())));
        let workload = Self {
            watchers: watchers.collect(),
            writers: writers.collect(),
            clients,
            ledger,
        };
        workload.next_write().await?;
        Ok(workload)
    }

    /// Waits for the acknowledgement of a write that begins from now on; says how long it took.
    pub async fn next_write(&self) -> Result<Duration> {
        let now = Instant::now();
        let at = until("the next acknowledged write", async || {
            let ledger = self.ledger.acknowledged.lock().expect("no writer panics");
            let newest_first = ledger.iter().rev().take_while(|write| write.at > now);
            let first = newest_first.filter(|write| write.began > now).last();
            first.map(|write| write.at).context("none yet")
        })
        .await?;
        Ok(at - now)
    }

    /// Waits for a number of writes that begin from now on.
    pub async fn writes(&self, number: usize) -> Result<()> {
        let before = self.acknowledged();
        until("further acknowledged writes", async || {
            let now = self.acknowledged();
            ensure!(now >= before + number, "{now} after {before}");
            Ok(())
        })
        .await
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let ledger = self.ledger.acknowledged.lock();
        ledger.expect("no writer panics").len()
    }

    /// Ends the writers; then everything acknowledged must be at every server, and every watcher must have seen
    /// exactly what is there. Returns how many writes were acknowledged.
    pub async fn finish(self) -> Result<usize> {
        self.ledger.done.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await??;
        }
        let acknowledged = self.ledger.names();
        for client in self.clients.iter() {
            let there = until("a list", async || names_at(client).await).await?;
            let missing: Vec<&String> = acknowledged.difference(&there).collect();
            ensure!(missing.is_empty(), "acknowledged and lost: {missing:?}");
        }
        let all = until("a list", async || names_at(&self.clients[0]).await).await?;
        for (seen, mut watcher) in self.watchers {
            let caught_up = until("a watcher to have seen everything", async || {
                let seen = seen.lock().expect("no watcher panics");
                let gap: Vec<&String> = all.difference(&seen).collect();
                ensure!(gap.is_empty(), "the watch missed {gap:?}");
                Ok(())
            });
            tokio::select! {
                caught_up = caught_up => caught_up?,
                ended = &mut watcher => ended??,
            }
            watcher.abort();
            let seen = seen.lock().expect("no watcher panics").clone();
            // An attempt without an answer may have been carried out since.
            let all = until("a list", async || names_at(&self.clients[0]).await).await?;
            let phantoms: Vec<&String> = seen.difference(&all).collect();
            ensure!(phantoms.is_empty(), "seen and not there: {phantoms:?}");
        }
        Ok(acknowledged.len())
    }
}

/// Creates objects one after another, each until some server has acknowledged it.
async fn write(number: usize, clients: Arc<Vec<Client>>, ledger: Arc<Ledger>) -> Result<()> {
    let mut server = number;
    for object_number in 0.. {
        let name = format!("w{number}-{object_number}");
        let began = loop {
            if ledger.is_done() {
                return Ok(());
            }
            let api: Api<ConfigMap> =
                Api::default_namespaced(clients[server % clients.len()].clone());
            let began = Instant::now();
            match api.create(&PostParams::default(), &object(&name)).await {
                Ok(_) => break began,
                // An attempt whose answer was lost.
                Err(kube::Error::Api(status)) if status.code == 409 => break began,
                Err(_) => server += 1,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        if object_number % READ_EVERY == 0 {
            let other = clients[(server + 1) % clients.len()].clone();
            let found = Api::<ConfigMap>::default_namespaced(other)
                .get_opt(&name)
                .await;
            // A server that says nothing says nothing wrong.
            ensure!(
                !matches!(found, Ok(None)),
                "{name} was acknowledged, and another server does not know it"
            );
        }
        let mut acknowledged = ledger.acknowledged.lock().expect("no writer panics");
        acknowledged.push(Acknowledged {
            began,
            at: Instant::now(),
            name,
        });
    }
    Ok(())
}

/// Follows every creation through whichever server answers; fails on a repetition or a step back.
async fn follow(first: usize, clients: Arc<Vec<Client>>, from: String, seen: Seen) -> Result<()> {
    let mut version = from;
    let mut newest = 0_u64;
    for server in first.. {
        let api: Api<ConfigMap> = Api::default_namespaced(clients[server % clients.len()].clone());
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
            if !is_ours(&name) {
                continue;
            }
            let new = seen.lock().expect("nobody panics").insert(name.clone());
            ensure!(new, "{name} was delivered twice");
        }
    }
    Ok(())
}

async fn names_at(client: &Client) -> Result<BTreeSet<String>> {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let list = api.list(&ListParams::default()).await?;
    let names = list.into_iter().filter_map(|object| object.metadata.name);
    Ok(names.filter(|name| is_ours(name)).collect())
}

/// Others have objects here too, such as the authority's certificate.
fn is_ours(name: &str) -> bool {
    name.starts_with('w')
}
