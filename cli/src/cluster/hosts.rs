//! `gantry up --nodes N`: several hosts on this machine, a process of this program on each, and the one that keeps them
//! running.
//!
//! A host is a network namespace ([`LocalHosts`]), and a directory below `hosts/` of the cluster's data directory. On the
//! first hosts a server runs beside the agent. The process behind `gantry up` makes the hosts, starts the others, starts
//! them again should they end, and relays the API on loopback to whichever server lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gantry_network::{LocalHost, LocalHosts};
use ipnet::Ipv4Net;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::log::last_words;
use super::machine::{require_root, terminated};
use super::up::arguments::Up;
use super::{agent, daemon, join_token, place};
use crate::client::{Cluster, Credentials};
use crate::verbs::token::{self, Admits};

const RECORD: &str = "hosts.json";
/// Subnets that hosts are given by themselves: the first that nothing is routed to.
const SUBNETS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 89, 0, 0), 16);
/// The first host's API, before other servers are asked.
const SERVING_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Between the end of a host's process and its next start.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(15);
/// How long a host's process may take to end after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// For as long as hosts may take to join.
const TOKEN_SECONDS: i64 = 3600;

/// What is remembered of a cluster's hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    subnet: Ipv4Net,
    nodes: u8,
    servers: u8,
}

impl Record {
    /// The hosts of a cluster, when it has any.
    pub(crate) fn load(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join(RECORD);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!(
                    "reading {}: it is not what 'gantry up' wrote",
                    path.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn save(&self, data_dir: &Path) -> Result<()> {
        let path = data_dir.join(RECORD);
        let text = serde_json::to_string_pretty(self).context("writing JSON")?;
        gantry_tls::write(&path, &text, 0o600)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// As if there had never been any.
    fn forget(data_dir: &Path) -> Result<()> {
        let (path, link) = (data_dir.join(RECORD), data_dir.join("admin.kubeconfig"));
        if link.is_symlink() {
            std::fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
        }
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// What is to be there, from what is there already and what was asked for.
    pub(super) fn plan(
        existing: Option<&Self>,
        nodes: Option<u8>,
        servers: Option<u8>,
        subnet: impl FnOnce() -> Result<Ipv4Net>,
    ) -> Result<Self> {
        let nodes = nodes.or(existing.map(|record| record.nodes)).unwrap_or(1);
        let servers = servers
            .or(existing.map(|record| record.servers))
            .unwrap_or(1);
        ensure!(
            nodes >= 1,
            "--nodes {nodes}: a cluster has one node at least"
        );
        ensure!(
            [1, 3, 5].contains(&servers),
            "--servers {servers}: use 1, 3 or 5, since writes need a majority"
        );
        ensure!(
            servers <= nodes,
            "--servers {servers} with --nodes {nodes}: every server runs on a node, so that there are at least as many nodes"
        );
        if let Some(record) = existing {
            ensure!(
                nodes >= record.nodes && servers == record.servers,
                "this cluster has {} nodes and {} servers: 'gantry up' can add nodes; for anything else start over with 'gantry down --purge'",
                record.nodes,
                record.servers
            );
        }
        let subnet = match existing {
            Some(record) => record.subnet,
            None => subnet()?,
        };
        Ok(Self {
            subnet,
            nodes,
            servers,
        })
    }

    /// For people.
    pub(super) fn describe(&self, data_dir: &Path) -> Result<String> {
        let servers = match self.servers {
            1 => "a server".to_owned(),
            servers => format!("{servers} servers"),
        };
        let hosts = self.hosts(data_dir)?;
        let mut lines = String::new();
        for number in 1..=self.nodes {
            lines.push_str(&format!("  {}  {}\n", name(number), hosts.address(number)?));
        }
        Ok(format!(
            "{} nodes with {servers} run Kubernetes API v1.36, each on a host of its own\n\n{lines}",
            self.nodes
        ))
    }

    /// Numbers that differ from those of a cluster that runs are for its next start.
    pub(super) fn refuse_others(&self, nodes: Option<u8>, servers: Option<u8>) -> Result<()> {
        let differ = nodes.is_some_and(|nodes| nodes != self.nodes)
            || servers.is_some_and(|servers| servers != self.servers);
        ensure!(
            !differ,
            "this cluster runs with {} nodes and {} servers: stop it with 'gantry down' first, then 'gantry up' with a higher \
             --nodes adds nodes",
            self.nodes,
            self.servers
        );
        Ok(())
    }

    /// The names of the nodes, which are those of the hosts.
    pub(crate) fn names(&self) -> Vec<String> {
        (1..=self.nodes).map(name).collect()
    }

    /// Where each host keeps its state.
    pub(crate) fn directories(&self, data_dir: &Path) -> Vec<PathBuf> {
        (1..=self.nodes)
            .map(|number| directory(data_dir, number))
            .collect()
    }

    /// Whether none of the hosts is there.
    pub(super) fn is_down(&self, data_dir: &Path) -> Result<bool> {
        Ok(!self.hosts(data_dir)?.any_there())
    }

    fn hosts(&self, data_dir: &Path) -> Result<LocalHosts> {
        let prefix = super::agent_config(data_dir).network_prefix;
        Ok(LocalHosts::new(
            &prefix,
            self.subnet,
            &data_dir.join("hosts/netns"),
        )?)
    }
}

/// The data directories of a cluster's nodes on this machine, with their names where there are several.
pub(crate) fn nodes(data_dir: &Path) -> Result<Vec<(Option<String>, PathBuf)>> {
    Ok(match Record::load(data_dir)? {
        Some(record) => {
            let names = record.names().into_iter().map(Some);
            names.zip(record.directories(data_dir)).collect()
        }
        None => vec![(None, data_dir.to_owned())],
    })
}

fn name(number: u8) -> String {
    format!("node-{number}")
}

fn directory(data_dir: &Path, number: u8) -> PathBuf {
    data_dir.join("hosts").join(name(number))
}

/// Where the first host keeps its state.
pub(super) fn first_directory(data_dir: &Path) -> PathBuf {
    directory(data_dir, 1)
}

/// Enters a host: everything that this process does from now on happens there. While it has one thread.
pub(crate) fn enter(netns: &Path) -> Result<()> {
    use std::os::fd::AsFd;
    let namespace = std::fs::File::open(netns)
        .with_context(|| format!("opening the network namespace {}", netns.display()))?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
        .with_context(|| format!("entering the network namespace {}", netns.display()))
}

/// A subnet for the hosts that collides with nothing.
fn find_subnet(up: &Up) -> Result<Ipv4Net> {
    let taken = up.options.ranges();
    if let Some(subnet) = up.host_cidr {
        for range in taken {
            ensure!(
                !range.contains(&subnet.network()) && !subnet.contains(&range.network()),
                "--host-cidr {subnet} overlaps {range}, which is of pods or services: choose another, or others with \
                 --pod-cidr and --service-cidr"
            );
        }
        return Ok(subnet);
    }
    let free = SUBNETS.subnets(24)?.filter(|candidate| {
        !taken
            .iter()
            .any(|range| range.contains(&candidate.network()))
    });
    LocalHosts::free_subnet(free)?.with_context(|| {
        format!("every /24 of {SUBNETS} is routed somewhere already: name a subnet for the hosts with --host-cidr")
    })
}

/// Refuses what cannot be, before anything is made.
pub(super) fn check(up: &Up) -> Result<()> {
    let existing = Record::load(up.data_dir())?;
    let record = Record::plan(existing.as_ref(), up.nodes, up.servers, || find_subnet(up))?;
    record.hosts(up.data_dir())?.address(record.nodes)?;
    Ok(())
}

/// Makes the hosts and keeps their processes running until told to stop.
pub(super) async fn run(up: &Up) -> Result<()> {
    require_root("up")?;
    let data_dir = up.data_dir();
    let lock = daemon::Lock::acquire(data_dir)?;
    ensure!(
        !data_dir.join("member.json").exists(),
        "{} holds a cluster without hosts of its own: use another --data-dir, or start over with 'gantry down --purge'",
        data_dir.display()
    );
    let existing = Record::load(data_dir)?;
    let record = Record::plan(existing.as_ref(), up.nodes, up.servers, || find_subnet(up))?;
    let fresh = record.is_down(data_dir)?;
    record.save(data_dir)?;
    let mut begun = false;
    let ended = supervise(up, &record, fresh, &mut begun).await;
    if ended.is_err() && fresh && !begun {
        let removed = teardown(data_dir, &record).await;
        match removed {
            // Not even the first server has come to be: nothing binds the next attempt to these numbers.
            Ok(()) if existing.is_none() && !founded(data_dir) => Record::forget(data_dir)?,
            Ok(()) => {}
            Err(error) => tracing::error!("removing what was made: {error:#}"),
        }
    }
    drop(lock);
    ended
}

/// Makes the hosts, starts their processes, and keeps them running. `begun` is set once all of them have come as far as to
/// run by themselves; `fresh`: nothing of them was there.
async fn supervise(up: &Up, record: &Record, fresh: bool, begun: &mut bool) -> Result<()> {
    let data_dir = up.data_dir();
    // Left by a process that was killed; containers stay.
    stop(data_dir, record).await?;
    let hosts = record.hosts(data_dir)?;
    let made = {
        let (hosts, nodes) = (hosts.clone(), record.nodes);
        tokio::task::spawn_blocking(move || -> Result<Vec<LocalHost>> {
            hosts.set_up()?;
            (1..=nodes).map(|number| Ok(hosts.add(number)?)).collect()
        })
    };
    let made = made.await?.context("making hosts")?;
    link_kubeconfig(up)?;
    let stop = CancellationToken::new();
    let port = up.listen.port();
    let servers = made
        .iter()
        .take(record.servers.into())
        .map(|host| SocketAddr::new(host.address.into(), port))
        .collect();
    let supervisor = Supervisor {
        up,
        record,
        hosts: &made,
        fresh,
    };
    let relay = tokio::spawn(gantry_agent::relay_api(up.local_api, servers, stop.clone()));
    let mut running = Running::default();
    let ended = tokio::select! {
        result = terminated() => result,
        result = relay => result.context("relaying the API").flatten(),
        result = supervisor.run(&mut running, begun) => result,
    };
    stop.cancel();
    running.stop().await;
    ended
}

/// The administrator's kubeconfig is that of the first server, which keeps it current.
fn link_kubeconfig(up: &Up) -> Result<()> {
    let path = up.admin_kubeconfig();
    let target = directory(Path::new(""), 1).join("admin.kubeconfig");
    if std::fs::read_link(&path).is_ok_and(|known| known == target) {
        return Ok(());
    }
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("replacing {}", path.display()));
    }
    std::os::unix::fs::symlink(&target, &path)
        .with_context(|| format!("linking {} to {}", path.display(), target.display()))
}

struct Supervisor<'a> {
    up: &'a Up,
    record: &'a Record,
    hosts: &'a [LocalHost],
    /// None of the hosts was there before.
    fresh: bool,
}

/// The hosts' processes, by number.
#[derive(Default)]
struct Running {
    processes: BTreeMap<u8, Child>,
    /// How long the log of each was before its process was started.
    logs: BTreeMap<u8, u64>,
    /// Hosts that had no place in the cluster yet.
    new: BTreeSet<u8>,
}

impl Running {
    /// Asks all to end, and sees to it that they do.
    async fn stop(&mut self) {
        let mut ending = JoinSet::new();
        for (number, mut child) in std::mem::take(&mut self.processes) {
            ending.spawn(async move {
                if let Some(pid) = pid(&child) {
                    kill_process(pid, Signal::TERM).ok();
                }
                if tokio::time::timeout(STOP_WITHIN, child.wait())
                    .await
                    .is_err()
                {
                    tracing::warn!(host = name(number), "it does not end: it is killed");
                    child.kill().await.ok();
                }
            });
        }
        while ending.join_next().await.is_some() {}
    }
}

fn pid(child: &Child) -> Option<Pid> {
    Pid::from_raw(child.id()?.cast_signed())
}

impl Supervisor<'_> {
    fn directory(&self, number: u8) -> PathBuf {
        directory(self.up.data_dir(), number)
    }

    fn log(&self, number: u8) -> PathBuf {
        self.directory(number).join("gantry.log")
    }

    fn has_server(&self, number: u8) -> bool {
        number <= self.record.servers
    }

    /// Whether a host has a place in the cluster already.
    fn is_member(&self, number: u8) -> bool {
        let identity = match self.has_server(number) {
            true => "member.json",
            false => "node.kubeconfig",
        };
        number == 1 || self.directory(number).join(identity).exists()
    }

    async fn run(&self, running: &mut Running, begun: &mut bool) -> Result<()> {
        if !founded(self.up.data_dir()) {
            running.new.insert(1);
        }
        let known = (1..=self.record.nodes).filter(|number| self.is_member(*number));
        for number in known {
            self.start(running, number, None)?;
        }
        let new: Vec<u8> = (1..=self.record.nodes)
            .filter(|number| !self.is_member(*number))
            .collect();
        running.new.extend(&new);
        if !new.is_empty() {
            self.join(running, &new).await?;
        }
        // Whoever waits for the nodes sees what becomes of them.
        *begun = true;
        self.keep(running).await
    }

    /// Starts hosts that are to join: nodes at once, servers one after the other, as each catches up.
    async fn join(&self, running: &mut Running, new: &[u8]) -> Result<()> {
        let cluster = self.serving(running).await?;
        let (servers, nodes): (Vec<u8>, Vec<u8>) =
            new.iter().partition(|number| self.has_server(**number));
        let description = Some("hosts of 'gantry up'");
        if !nodes.is_empty() {
            let token = token::create(&cluster, Admits::Nodes, TOKEN_SECONDS, description).await?;
            for number in &nodes {
                self.start(running, *number, Some(&token))?;
            }
        }
        if !servers.is_empty() {
            let token =
                token::create(&cluster, Admits::Servers, TOKEN_SECONDS, description).await?;
            for number in servers {
                self.start(running, number, Some(&token))?;
                let kubeconfig = self.directory(number).join("admin.kubeconfig");
                self.until(running, &format!("{} to join", name(number)), async || {
                    kubeconfig.exists().then_some(())
                })
                .await?;
            }
        }
        // What keeps one from joining is said by its process, which ends.
        self.until(running, "all nodes to join", async || {
            nodes
                .iter()
                .all(|number| self.is_member(*number))
                .then_some(())
        })
        .await
    }

    /// Waits until the first server answers.
    async fn serving(&self, running: &mut Running) -> Result<Cluster> {
        let kubeconfig = self.up.admin_kubeconfig();
        self.until(running, "the first server to answer", async || {
            let credentials = Credentials {
                kubeconfig: Some(kubeconfig.clone()),
                context: None,
                namespace: None,
            };
            let cluster = Cluster::connect(&credentials).await.ok()?;
            cluster.answers().await.then_some(cluster)
        })
        .await
    }

    /// Waits for something, unless a host ends meanwhile.
    async fn until<T>(
        &self,
        running: &mut Running,
        what: &str,
        attempt: impl AsyncFn() -> Option<T>,
    ) -> Result<T> {
        let deadline = tokio::time::Instant::now() + SERVING_WITHIN;
        let mut ticks = tokio::time::interval(POLL);
        while tokio::time::Instant::now() < deadline {
            ticks.tick().await;
            for (number, child) in &mut running.processes {
                if let Some(status) = child.try_wait().context("waiting for a host")? {
                    let start = running.logs.get(number).copied().unwrap_or(0);
                    bail!(
                        "{}: {}",
                        name(*number),
                        self.last_words(*number, start, status)
                    );
                }
            }
            if let Some(value) = attempt().await {
                return Ok(value);
            }
        }
        bail!(
            "waiting for {what}: nothing after {} s; see the logs in {}",
            SERVING_WITHIN.as_secs(),
            self.up.data_dir().join("hosts").display()
        )
    }

    /// Why the process of a host has ended.
    fn last_words(&self, number: u8, start: u64, status: ExitStatus) -> String {
        let log = self.log(number);
        last_words(&log, start)
            .unwrap_or_else(|| format!("it ended with {status}; see {}", log.display()))
    }

    /// Whether the process of a host has come as far as agents do by themselves.
    fn has_served(&self, number: u8) -> bool {
        super::agent_config(&self.directory(number))
            .image_socket()
            .exists()
    }

    /// Starts the process of a host; with a token, it joins the first host's cluster.
    fn start(&self, running: &mut Running, number: u8, token: Option<&str>) -> Result<()> {
        let host = &self.hosts[usize::from(number) - 1];
        let directory = self.directory(number);
        place::prepare(&directory).with_context(|| name(number))?;
        let log = daemon::open_log(&self.log(number)).with_context(|| name(number))?;
        let length = log.metadata().map_or(0, |metadata| metadata.len());
        running.logs.insert(number, length);
        let port = self.up.listen.port();
        let program = std::env::current_exe().context("finding this program's file")?;
        let mut command = Command::new(program);
        match self.has_server(number) {
            true => command
                .args(["up", "--foreground"])
                .arg("--listen")
                .arg(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port).to_string())
                .args(self.up.options.arguments()),
            false => command.arg("agent"),
        };
        command
            .arg("--netns")
            .arg(&host.netns)
            .arg("--data-dir")
            .arg(&directory)
            .args(["--node-name", &name(number)])
            .args(["--address", &host.address.to_string()])
            .args(["--local-api", &self.up.local_api.to_string()])
            .args(["--metrics", &self.up.metrics.to_string()])
            .args(["--overlay", self.up.overlay.word()])
            .args(self.up.marks.arguments())
            .args(self.up.memory.arguments());
        let stdin = match token {
            Some(token) => {
                let first = SocketAddr::new(self.hosts[0].address.into(), port);
                command
                    .args(["--join", &first.to_string()])
                    .args(join_token::arguments());
                join_token::pipe(token)?
            }
            None => Stdio::null(),
        };
        let child = command
            .stdin(stdin)
            .stdout(log.try_clone().context("sharing the log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", name(number)))?;
        tracing::info!(host = name(number), address = %host.address, pid = child.id(), "host started");
        running.processes.insert(number, child);
        Ok(())
    }

    /// Starts again what ends, for ever. What has never run cannot, and starting it again does not help.
    async fn keep(&self, running: &mut Running) -> Result<()> {
        let mut delays: BTreeMap<u8, Duration> = BTreeMap::new();
        loop {
            let (number, status) = first_ended(&mut running.processes).await?;
            let never_ran = self.fresh && running.new.contains(&number) && !self.has_served(number);
            if never_ran && status.code().is_some() {
                let start = running.logs.get(&number).copied().unwrap_or(0);
                bail!(
                    "{}: {}",
                    name(number),
                    self.last_words(number, start, status)
                );
            }
            let delay = *delays
                .entry(number)
                .and_modify(|delay| *delay = (*delay * 2).min(AGAIN_AT_MOST))
                .or_insert(AGAIN);
            tracing::warn!(host = name(number), %status, ?delay, "the host's process ended: it is started again");
            running.processes.remove(&number);
            tokio::time::sleep(delay).await;
            self.start(running, number, None)?;
        }
    }
}

/// Waits for the first process that ends.
async fn first_ended(processes: &mut BTreeMap<u8, Child>) -> Result<(u8, ExitStatus)> {
    let waiting = processes.iter_mut().map(|(number, child)| {
        Box::pin(async move { child.wait().await.map(|status| (*number, status)) })
    });
    let (ended, _, _) = futures::future::select_all(waiting).await;
    ended.context("waiting for a host's process")
}

/// Whether a first server has come to be, whose cluster this is.
fn founded(data_dir: &Path) -> bool {
    first_directory(data_dir).join("member.json").exists()
}

/// Ends the hosts' processes; containers stay.
pub(super) async fn stop(data_dir: &Path, record: &Record) -> Result<()> {
    for directory in record.directories(data_dir) {
        daemon::stop(&directory, STOP_WITHIN).await?;
    }
    Ok(())
}

/// Ends the hosts' processes and everything that they run, and removes the hosts, whatever of all that is there; goes on
/// after an error and answers the first.
pub(super) async fn teardown(data_dir: &Path, record: &Record) -> Result<()> {
    let mut first = Ok(());
    let mut keep = |result: Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    for (name, directory) in record.names().iter().zip(record.directories(data_dir)) {
        let ended = match daemon::stop(&directory, STOP_WITHIN).await {
            Ok(()) => agent::teardown(&directory.join("agent")).await,
            Err(error) => Err(error),
        };
        keep(ended.with_context(|| name.clone()));
    }
    let hosts = record.hosts(data_dir)?;
    let removed = tokio::task::spawn_blocking(move || hosts.teardown());
    keep(removed.await?.context("removing hosts"));
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet() -> Result<Ipv4Net> {
        Ok("10.89.3.0/24".parse()?)
    }

    fn plan(existing: Option<&Record>, nodes: Option<u8>, servers: Option<u8>) -> Result<Record> {
        Record::plan(existing, nodes, servers, subnet)
    }

    #[test]
    fn hosts_are_remembered_and_only_nodes_are_added() {
        let first = plan(None, Some(3), None).expect("a plan");
        assert_eq!((first.nodes, first.servers), (3, 1));
        assert_eq!(plan(Some(&first), None, None).expect("the same"), first);
        let more = plan(Some(&first), Some(5), None).expect("more nodes");
        assert_eq!((more.nodes, more.subnet), (5, first.subnet));
        for (nodes, servers) in [(Some(2), None), (None, Some(3))] {
            let refused = plan(Some(&first), nodes, servers).expect_err("it is another cluster");
            assert!(
                refused.to_string().contains("3 nodes and 1 servers"),
                "{refused}"
            );
        }
    }

    #[test]
    fn impossible_numbers_are_refused_by_the_flags_name() {
        let table = [
            (Some(0), None, "--nodes 0"),
            (Some(3), Some(2), "--servers 2"),
            (Some(2), Some(3), "--servers 3 with --nodes 2"),
        ];
        for (nodes, servers, words) in table {
            let refused = plan(None, nodes, servers).expect_err(words);
            assert!(refused.to_string().contains(words), "{refused}");
        }
    }

    #[test]
    fn a_record_is_read_back() {
        let directory = std::env::temp_dir().join(format!("gantry-hosts-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        assert_eq!(Record::load(&directory).expect("none"), None);
        let record = plan(None, Some(3), Some(3)).expect("a plan");
        record.save(&directory).expect("writes");
        assert_eq!(Record::load(&directory).expect("reads"), Some(record));
        std::fs::write(directory.join(RECORD), "{").expect("writes");
        let refused = Record::load(&directory).expect_err("it is cut in half");
        assert!(refused.to_string().contains("hosts.json"), "{refused}");
        std::fs::remove_dir_all(directory).expect("removes");
    }
}
