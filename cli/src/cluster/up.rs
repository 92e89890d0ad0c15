//! `gantry up`: a cluster on this machine, server and agent in one process, ready when it returns.

pub(super) mod arguments;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use gantry_agent::NodeIdentity;
use gantry_server::Server;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio_util::sync::CancellationToken;

use super::hosts::{Record, nodes};
use super::log::{last_trouble, last_words};
use super::machine::{default_address, default_node_name, require_root, terminated};
use super::place::{DATA_DIR, agent_config};
use super::{agent, daemon, hosts, place, server};
use crate::client::Credentials;
use crate::output;

pub(crate) use arguments::Up;

/// How long the node may take to become Ready, and each further one that is started beside it.
const READY_WITHIN: Duration = Duration::from_secs(60);
const READY_WITHIN_MORE: Duration = Duration::from_secs(5);
/// How long a process that is not wanted any more may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// What a server's store reserves on its disk, and some for what it writes; less on small disks.
const ROOM: u64 = 512 << 20;
/// How long the agent may take to make it, and how often it is looked for.
const MAKING_ROOM: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a process that was killed may take to be gone.
const LET_GO_WITHIN: Duration = Duration::from_secs(5);
/// How often a starting cluster is asked whether it is ready.
const POLL: Duration = Duration::from_millis(20);

/// A duration for people.
fn short(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

impl Up {
    /// Whether the cluster's hosts are made on this machine.
    fn makes_hosts(&self) -> Result<bool> {
        Ok(self.nodes.is_some() || Record::load(&self.place.data_dir)?.is_some())
    }

    fn name(&self) -> String {
        self.node_name.clone().unwrap_or_else(default_node_name)
    }

    /// Starts the cluster in the background, waits until its node is Ready, and says what to do next.
    pub(crate) fn detach(&self) -> Result<ExitCode> {
        require_root("up")?;
        let started = Instant::now();
        let data_dir = &self.place.data_dir;
        place::prepare(data_dir)?;
        if let Some(pid) = settled_holder(data_dir) {
            if let Some(record) = Record::load(data_dir)? {
                record.refuse_others(self.nodes, self.servers)?;
            }
            output::print(&format!(
                "gantry already runs from {} (pid {})\n{}",
                data_dir.display(),
                pid.as_raw_nonzero(),
                self.next_steps()
            ))?;
            return Ok(ExitCode::SUCCESS);
        }
        // What cannot be is refused before anything is started.
        if self.makes_hosts()? {
            hosts::check(self)?;
        }
        let fresh = is_down(data_dir)?;
        let logs = Logs::of(data_dir);
        let log = data_dir.join("gantry.log");
        let mut arguments: Vec<String> = std::env::args().skip(1).collect();
        arguments.push("--foreground".to_owned());
        let stdin = match self.join.token.is_on_stdin() {
            true => Stdio::inherit(),
            false => Stdio::null(),
        };
        let mut child = daemon::spawn(&arguments, stdin, &log)?;
        let bar = output::spinner("starting the cluster".to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let ready = runtime.block_on(async {
            tokio::select! {
                ready = self.wait_ready(&mut child, &logs) => ready,
                interrupted = terminated() => interrupted.and_then(|()| Err(anyhow!("interrupted"))),
            }
        });
        bar.finish_and_clear();
        if let Err(error) = ready {
            return Err(match runtime.block_on(withdraw(data_dir, child, fresh)) {
                Ok(()) if fresh => anyhow!(
                    "{error:#}\nWhat was started is stopped again; its state is kept in {} ('gantry down --purge' deletes it)",
                    data_dir.display()
                ),
                Ok(()) => error,
                Err(left) => anyhow!("{error:#}\nStopping what was started: {left:#}"),
            });
        }
        output::print(&format!(
            "Cluster ready in {}: {}\n{}",
            short(started.elapsed()),
            match Record::load(data_dir)? {
                Some(record) => record.describe(data_dir)?,
                None => format!(
                    "node {} runs Kubernetes API v1.36 on {}",
                    self.name(),
                    self.listen
                ),
            },
            self.next_steps()
        ))?;
        Ok(ExitCode::SUCCESS)
    }

    fn next_steps(&self) -> String {
        let kubeconfig = place::quoted(&self.admin_kubeconfig());
        let flag = match self.place.data_dir == Path::new(DATA_DIR) {
            true => String::new(),
            false => format!(" --kubeconfig {kubeconfig}"),
        };
        let kubectl = match kubeconfig.contains(':') {
            false => format!("export KUBECONFIG={kubeconfig}"),
            // The variable is a list, which colons divide.
            true => format!("kubectl --kubeconfig {kubeconfig}"),
        };
        format!(
            "\n  gantry{flag} apply -f FILE         run something (deploy/examples/web.yaml is a start)\n  \
             gantry{flag} get pods              see it run\n  \
             gantry down{}                stop everything\n\n\
             kubectl works too: {kubectl}\n",
            match flag.is_empty() {
                true => String::new(),
                false => format!(" --data-dir {}", place::quoted(&self.place.data_dir)),
            },
        )
    }

    /// Waits until the node is Ready, or the process behind it has ended.
    async fn wait_ready(&self, child: &mut Child, logs: &Logs) -> Result<()> {
        let data_dir = &self.place.data_dir;
        let log = data_dir.join("gantry.log");
        let recorded = Record::load(data_dir)?.map_or(1, |record| record.names().len());
        let nodes = recorded.max(self.nodes.unwrap_or(1).into());
        let more = u32::try_from(nodes).unwrap_or(1).saturating_sub(1);
        let within = READY_WITHIN + READY_WITHIN_MORE * more;
        let deadline = Instant::now() + within;
        let mut ticks = tokio::time::interval(POLL);
        let mut client = None;
        let first = match self.makes_hosts()? {
            true => hosts::first_directory(data_dir),
            false => data_dir.clone(),
        };
        let mut waiting = vec![Waiting {
            name: "the first server".to_owned(),
            directory: first,
            says: None,
        }];
        while Instant::now() < deadline {
            ticks.tick().await;
            if let Some(status) = child.try_wait().context("waiting for the cluster")? {
                bail!(
                    "{}",
                    last_words(&log, logs.length(&log)).unwrap_or_else(|| format!(
                        "gantry ended with {status}; see {}",
                        log.display()
                    ))
                );
            }
            if client.is_none() && self.admin_kubeconfig().exists() {
                let credentials = Credentials {
                    kubeconfig: Some(self.admin_kubeconfig()),
                    context: None,
                    namespace: None,
                };
                // The file of an earlier run may name another port until the server has written its own.
                client = match credentials.load().await {
                    Ok(config) if config.cluster_url.port_u16() == Some(self.local_api.port()) => {
                        Some(kube::Client::try_from(config)?)
                    }
                    _ => None,
                };
            }
            if let Some(client) = &client {
                let looked = tokio::time::timeout_at(deadline.into(), self.not_ready(client));
                let Ok(found) = looked.await else { break };
                waiting = found?;
                if waiting.is_empty() {
                    return Ok(());
                }
            }
        }
        let waiting = waiting.into_iter().map(
            |Waiting {
                 name,
                 directory,
                 says,
             }| {
                let log = directory.join("gantry.log");
                match last_trouble(&log, logs.length(&log)).or(says) {
                    Some(trouble) => format!("{name}: {trouble} (see {})", log.display()),
                    None => format!("{name} (see {})", log.display()),
                }
            },
        );
        let waiting: Vec<String> = waiting.collect();
        bail!(
            "not Ready after {} s: {}",
            within.as_secs(),
            waiting.join("; ")
        )
    }

    /// The nodes that are not Ready. Ready may be what an earlier run has left: the agent listens for images once it has
    /// taken its pods over.
    async fn not_ready(&self, client: &kube::Client) -> Result<Vec<Waiting>> {
        let mut waiting = Vec::new();
        for (name, directory) in nodes(&self.place.data_dir)? {
            let name = name.unwrap_or_else(|| self.name());
            let socket = agent_config(&directory).image_socket();
            let says = match UnixStream::connect(&socket) {
                Ok(_) => match is_ready(client, &name).await {
                    Ok(()) => continue,
                    Err(says) => says,
                },
                Err(_) => None,
            };
            waiting.push(Waiting {
                name,
                directory,
                says,
            });
        }
        Ok(waiting)
    }

    /// Runs the cluster until told to stop.
    pub(crate) async fn run(&self) -> Result<()> {
        match self.makes_hosts()? {
            true => hosts::run(self).await,
            false => self.run_here().await,
        }
    }

    /// Runs server and agent until told to stop.
    async fn run_here(&self) -> Result<()> {
        require_root("up")?;
        let lock = daemon::Lock::acquire(&self.place.data_dir)?;
        let stop = CancellationToken::new();
        let address = match self.address {
            Some(address) => address,
            None => default_address(),
        };
        let server = server::start(
            &self.place.data_dir,
            self.listen,
            address,
            &self.options,
            self.name(),
            self.join.config(&self.place.data_dir).await?,
        )
        .await?;
        server.keep_admin_kubeconfig(&self.admin_kubeconfig(), self.local_api)?;
        let name = self.name();
        let agent = agent::Settings {
            node_name: name.clone(),
            servers: vec![SocketAddr::new(
                Ipv4Addr::LOCALHOST.into(),
                self.listen.port(),
            )],
            identity: node_identity(&server, &name).await?,
            data_dir: self.place.data_dir.join("agent"),
            address,
            address_v6: self.address_v6,
            local_api: self.local_api,
            metrics: self.metrics,
            overlay: self.overlay,
            marks: self.marks.clone(),
            memory: self.memory,
        };
        let agent = tokio::spawn(agent::run(agent, stop.clone()));
        let serving = tokio::spawn(server.run(stop.clone()));
        tokio::pin!(agent, serving);
        let mut ended = tokio::select! {
            result = terminated() => result,
            result = &mut agent => result.context("the agent")?.context("the agent stopped"),
            result = &mut serving => result.context("the server")?.context("the server stopped"),
        };
        if serving.is_finished() && !agent.is_finished() && is_full(&self.place.data_dir) {
            tracing::error!(
                error = ?ended.as_ref().err(),
                "the server has stopped for want of room: the node goes on until it has made some"
            );
            tokio::select! {
                () = room_made(&self.place.data_dir) => {}
                result = terminated() => result?,
                _ = &mut agent => {}
            }
        }
        stop.cancel();
        // Both end by themselves; the store's last writes are durable either way.
        if !serving.is_finished() {
            ended = ended.and(serving.await.context("the server")?);
        }
        drop(lock);
        ended
    }
}

/// A node that is not Ready.
struct Waiting {
    name: String,
    /// Where it keeps its state, and its log.
    directory: PathBuf,
    /// Why, in its own words.
    says: Option<String>,
}

/// How long the logs of a cluster's processes were before it was started.
struct Logs(BTreeMap<PathBuf, u64>);

impl Logs {
    fn of(data_dir: &Path) -> Self {
        let hosts = std::fs::read_dir(data_dir.join("hosts"));
        let hosts = hosts.into_iter().flatten().flatten();
        let directories = hosts.map(|host| host.path()).chain([data_dir.to_owned()]);
        let lengths = directories.filter_map(|directory| {
            let log = directory.join("gantry.log");
            let length = log.metadata().ok()?.len();
            Some((log, length))
        });
        Self(lengths.collect())
    }

    fn length(&self, log: &Path) -> u64 {
        self.0.get(log).copied().unwrap_or(0)
    }
}

/// Whether the kernel has nothing of a cluster: what there is later was made by whoever asks.
fn is_down(data_dir: &Path) -> Result<bool> {
    match Record::load(data_dir)? {
        Some(record) => record.is_down(data_dir),
        None => Ok(!agent_config(data_dir).run_dir.exists()),
    }
}

/// Ends the process in the background and those that it has started; with `fresh`, what they have made in the kernel goes
/// too. Containers of an earlier run stay.
async fn withdraw(data_dir: &Path, mut child: Child, fresh: bool) -> Result<()> {
    let own = child.id().to_string();
    if daemon::holder(data_dir).is_some_and(|pid| pid.as_raw_nonzero().to_string() == own) {
        daemon::stop(data_dir, STOP_WITHIN).await?;
    }
    // It may not have got as far as to take the directory, or may have ended by itself.
    if child.try_wait()?.is_none() {
        child.kill().context("ending gantry")?;
    }
    child.wait().context("waiting for the end of gantry")?;
    let Ok(_lock) = daemon::Lock::acquire(data_dir) else {
        // It was refused, because somebody else's runs there.
        return Ok(());
    };
    match Record::load(data_dir)? {
        Some(record) if fresh => hosts::teardown(data_dir, &record).await,
        Some(record) => hosts::stop(data_dir, &record).await,
        None if fresh => agent::teardown(&data_dir.join("agent")).await,
        None => Ok(()),
    }
}

/// Who holds the data directory, once a process that was just killed has let go of it.
fn settled_holder(data_dir: &Path) -> Option<rustix::process::Pid> {
    let deadline = Instant::now() + LET_GO_WITHIN;
    loop {
        let pid = daemon::holder(data_dir)?;
        // A process on its way out cannot be signalled for much longer, and has no command line any more.
        let command_line =
            std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        if !command_line.is_empty() || Instant::now() > deadline {
            return Some(pid);
        }
        std::thread::park_timeout(POLL);
    }
}

/// Whether a disk has less room than a server begins with. One that has stopped for want of it stops again until somebody
/// makes some, which on a node is the agent: it evicts.
fn is_full(directory: &Path) -> bool {
    rustix::fs::statvfs(directory).is_ok_and(|disk| {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let whole = disk.f_blocks.saturating_mul(disk.f_frsize);
        free < ROOM.min(whole / 20)
    })
}

/// Waits until a disk is not full any more, as long as an agent may need for that.
async fn room_made(directory: &Path) {
    let look = async {
        while is_full(directory) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    // Whoever waits longer is helped by nobody on this machine.
    tokio::time::timeout(MAKING_ROOM, look)
        .await
        .unwrap_or_default();
}

/// The certificate of the node in the same process.
async fn node_identity(server: &Server, name: &str) -> Result<NodeIdentity> {
    let credential = server.node_credential(name).await?;
    Ok(NodeIdentity {
        trusted: server.trusted(),
        certificate: credential.certificate,
        key: credential.key,
        kubeconfig: None,
    })
}

/// Whether a node is Ready; what it says, where it is not.
async fn is_ready(client: &kube::Client, name: &str) -> Result<(), Option<String>> {
    let node = Api::<Node>::all(client.clone()).get(name).await;
    let status = node.ok().and_then(|node| node.status);
    let conditions = status.and_then(|status| status.conditions);
    let mut conditions = conditions.into_iter().flatten();
    match conditions.find(|condition| condition.type_ == "Ready") {
        Some(condition) if condition.status == "True" => Ok(()),
        Some(condition) => Err(condition.message),
        None => Err(None),
    }
}
