//! `gantry up`: a cluster on this machine, server and agent in one process, ready when it returns.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gantry_agent::NodeIdentity;
use gantry_server::Server;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::memory::Memory;
use super::{
    Place, Record, agent, daemon, default_node_name, hosts, nodes, place, require_root, server,
};
use crate::client::Credentials;
use crate::output;

/// How long the node may take to become Ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// What a server's store reserves on its disk, and some for what it writes; less on small disks.
const ROOM: u64 = 512 << 20;
/// How long the agent may take to make it, and how often it is looked for.
const MAKING_ROOM: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a process that was killed may take to be gone.
const LET_GO_WITHIN: Duration = Duration::from_secs(5);
/// How often a starting cluster is asked whether it is ready.
const POLL: Duration = Duration::from_millis(20);

/// Start a cluster on this machine and wait until it is ready
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(super) place: Place,
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Address and port the API listens on
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub(super) listen: SocketAddr,
    /// The node's name; this machine's host name when not given
    #[arg(long)]
    pub(super) node_name: Option<String>,
    /// The address other machines reach this one at; that of the default route when not given
    #[arg(long)]
    pub(super) address: Option<Ipv4Addr>,
    /// Its IPv6 address, in a dual-stack cluster
    #[arg(long, value_name = "ADDRESS")]
    address_v6: Option<Ipv6Addr>,
    /// Where clients on this machine reach the API, through whichever server lives; on loopback
    #[arg(long, value_name = "ADDRESS:PORT", default_value = agent::LOCAL_API)]
    pub(super) local_api: SocketAddr,
    /// Where Prometheus reads the node's metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = agent::METRICS)]
    pub(super) metrics: SocketAddr,
    /// Which nodes pods' packets are wrapped into VXLAN for
    #[arg(long, value_enum, default_value = "auto")]
    pub(super) overlay: agent::Overlay,
    /// Make this many hosts on this machine, each a node of the cluster
    #[arg(long, value_name = "NUMBER")]
    pub(super) nodes: Option<u8>,
    /// On how many of the hosts a server runs: 1, 3 or 5
    #[arg(long, value_name = "NUMBER", requires = "nodes")]
    pub(super) servers: Option<u8>,
    /// Addresses of the hosts, a /24; one that is free when not given
    #[arg(long, value_name = "CIDR", requires = "nodes")]
    pub(super) host_cidr: Option<ipnet::Ipv4Net>,
    /// The network namespace to run in, as '--nodes' makes them
    #[arg(long, hide = true, value_name = "FILE")]
    pub(crate) netns: Option<PathBuf>,
    #[command(flatten)]
    pub(super) marks: agent::Marks,
    #[command(flatten)]
    pub(super) memory: Memory,
    #[command(flatten)]
    pub(crate) join: server::Join,
    #[command(flatten)]
    pub(super) options: server::Options,
}

/// A duration for people.
fn short(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

impl Up {
    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        self.place.data_dir.join("admin.kubeconfig")
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.place.data_dir
    }

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
        let log = data_dir.join("gantry.log");
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
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
        let ready = runtime.block_on(self.wait_ready(&mut child, &log, log_start));
        bar.finish_and_clear();
        ready?;
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
        let kubeconfig = self.admin_kubeconfig();
        let flag = match self.place.data_dir == Path::new(super::DATA_DIR) {
            true => String::new(),
            false => format!(" --kubeconfig {}", kubeconfig.display()),
        };
        format!(
            "\n  gantry{flag} apply -f FILE         run something (deploy/examples/web.yaml is a start)\n  \
             gantry{flag} get pods              see it run\n  \
             gantry down{}                stop everything\n\n\
             kubectl works too: export KUBECONFIG={}\n",
            match flag.is_empty() {
                true => String::new(),
                false => format!(" --data-dir {}", self.place.data_dir.display()),
            },
            kubeconfig.display()
        )
    }

    /// Waits until the node is Ready, or the process behind it has ended.
    async fn wait_ready(&self, child: &mut Child, log: &Path, log_start: u64) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut ticks = tokio::time::interval(POLL);
        let mut client = None;
        let mut waiting = vec!["the first server".to_owned()];
        while Instant::now() < deadline {
            ticks.tick().await;
            if let Some(status) = child.try_wait().context("waiting for the cluster")? {
                bail!(
                    "{}",
                    last_words(log, log_start).unwrap_or_else(|| format!(
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
                waiting = self.not_ready(client).await?;
                if waiting.is_empty() {
                    return Ok(());
                }
            }
        }
        bail!(
            "not Ready after {} s: {}; see {}",
            READY_WITHIN.as_secs(),
            waiting.join(", "),
            log.display()
        )
    }

    /// The nodes that are not Ready. Ready may be what an earlier run has left: the agent listens for images once it has
    /// taken its pods over.
    async fn not_ready(&self, client: &kube::Client) -> Result<Vec<String>> {
        let mut waiting = Vec::new();
        for (name, directory) in nodes(&self.place.data_dir)? {
            let name = name.unwrap_or_else(|| self.name());
            let socket = super::agent_config(&directory).image_socket();
            if UnixStream::connect(&socket).is_err() || !is_ready(client, &name).await {
                waiting.push(name);
            }
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
        std::thread::yield_now();
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

/// Waits for SIGTERM or SIGINT.
pub(super) async fn terminated() -> Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
    }
    Ok(())
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

/// The lines the process left in its log, from the last error on.
pub(super) fn last_words(log: &Path, start: u64) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(text.get(usize::try_from(start).ok()?..)?).into_owned();
    let error = text
        .rfind("error: ")
        .map(|at| text[at + "error: ".len()..].trim().to_owned())?;
    (!error.is_empty()).then_some(error)
}

async fn is_ready(client: &kube::Client, name: &str) -> bool {
    let Ok(node) = Api::<Node>::all(client.clone()).get(name).await else {
        return false;
    };
    node.status
        .and_then(|status| status.conditions)
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The address this machine uses towards the default route; loopback when it has none. Sends nothing.
pub(super) fn default_address() -> Ipv4Addr {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // TEST-NET-1: connecting a datagram socket only looks up the route.
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    match probe() {
        Ok(IpAddr::V4(address)) => address,
        _ => Ipv4Addr::LOCALHOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_this_run_is_told() {
        let log = std::env::temp_dir().join(format!("gantry-log-{}", std::process::id()));
        std::fs::write(
            &log,
            "error: an old one\nINFO started\nerror: port 6443 is in use\n",
        )
        .expect("writes");
        assert_eq!(last_words(&log, 18).as_deref(), Some("port 6443 is in use"));
        std::fs::write(&log, "error: an old one\nINFO started\n").expect("writes");
        assert_eq!(last_words(&log, 18), None);
        std::fs::remove_file(log).expect("removes");
    }
}
