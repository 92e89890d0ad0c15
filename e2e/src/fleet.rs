//! A cluster as large as a test wants it: the servers of one control plane and the nodes they place pods on, to be
//! killed, paused and brought back. All on loopback ports or on one machine, or each on a machine of its own that more
//! can happen to ([`faults`]).

mod faults;
mod nodes;
mod pods;
mod servers;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::gantry;
use crate::host::{Host, Network};
use crate::run;
use nodes::Node;
use servers::Server;

pub use faults::Machine;
pub use pods::Pod;

/// Where servers, nodes and clients run.
enum Place {
    /// On this machine itself.
    Here,
    /// All on one machine with the node.
    Together(Host),
    /// Each server and node on a machine of its own.
    Apart(Arc<Network>),
}

/// Servers and nodes, by name. Clients are apart from all of them.
pub struct Fleet {
    /// `s1` and so on.
    servers: BTreeMap<String, Server>,
    /// `node-1` and so on.
    nodes: BTreeMap<String, Node>,
    place: Place,
    /// What every server is started with.
    arguments: Vec<String>,
    /// What every agent is started with.
    agent_arguments: Vec<String>,
    /// Last, since disks are mounted in it.
    directory: tempfile::TempDir,
}

/// A port that nobody listens on now.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
    Ok(listener.local_addr()?)
}

impl Fleet {
    /// Starts the first server and joins the others to it; returns when all of them vote.
    pub fn start(count: usize) -> Result<Self> {
        Self::start_with(count, &[])
    }

    /// As [`Fleet::start`], each with further arguments.
    pub fn start_with(count: usize, arguments: &[&str]) -> Result<Self> {
        Self::start_on(Place::Here, &vec![Machine::default(); count], arguments)
    }

    /// As [`Fleet::start`], each on a machine of its own, for a test that runs where clients are. Needs root.
    pub fn apart<T: Send>(
        machines: &[Machine],
        test: impl AsyncFnOnce(&mut Fleet) -> Result<T> + Send,
    ) -> Result<T> {
        let network = Arc::new(Network::new()?);
        let mut servers = Self::start_on(Place::Apart(network.clone()), machines, &[])?;
        network.block_on(|| async move { test(&mut servers).await })
    }

    /// Starts servers and nodes, each on a machine of its own, the nodes joined by token; returns when every node is
    /// Ready and has the images of [`crate::Images`]. Needs root.
    pub fn of_machines(servers: usize, nodes: usize) -> Result<Self> {
        Self::of_machines_with(servers, nodes, &[])
    }

    /// As [`Fleet::of_machines`], each server with further arguments.
    pub fn of_machines_with(servers: usize, nodes: usize, arguments: &[&str]) -> Result<Self> {
        let network = Arc::new(Network::new()?);
        let machines = vec![Machine::default(); servers];
        let mut fleet = Self::start_on(Place::Apart(network), &machines, arguments)?;
        fleet.add_nodes(nodes)?;
        Ok(fleet)
    }

    /// As [`Fleet::of_machines`], with servers on machines of one's choice, and further arguments for the agents.
    pub fn of_chosen_machines(
        servers: &[Machine],
        nodes: usize,
        agent_arguments: &[&str],
    ) -> Result<Self> {
        let network = Arc::new(Network::new()?);
        let mut fleet = Self::start_on(Place::Apart(network), servers, &[])?;
        fleet.agent_arguments = agent_arguments.iter().map(|&word| word.into()).collect();
        fleet.add_nodes(nodes)?;
        Ok(fleet)
    }

    /// Runs a future where clients are, which must be a machine of its own.
    pub fn block_on<T: Send, F: Future<Output = Result<T>>>(
        &self,
        make: impl FnOnce() -> F + Send,
    ) -> Result<T> {
        match &self.place {
            Place::Apart(network) => network.block_on(make),
            _ => bail!("clients have no machine of their own: use Fleet::of_machines"),
        }
    }

    /// As [`Fleet::start`], in a network namespace with a node, `node-1`, which has the demo images. Needs root.
    pub fn start_with_node(count: usize) -> Result<Self> {
        let mut servers = Self::start_together(count, &[])?;
        servers.add_node()?;
        Ok(servers)
    }

    /// As [`Fleet::start_with`], in a network namespace that a node can be added to. Needs root.
    pub fn start_together(count: usize, arguments: &[&str]) -> Result<Self> {
        let machines = vec![Machine::default(); count];
        Self::start_on(Place::Together(Host::new()?), &machines, arguments)
    }

    /// A client's command.
    pub fn command(&self, program: &Path) -> Command {
        match &self.place {
            Place::Here => Command::new(program),
            Place::Together(host) => host.command(program),
            Place::Apart(network) => network.command(program),
        }
    }

    /// Runs the client against one server.
    pub fn gantry(&self, name: &str, arguments: &[&str]) -> Result<String> {
        run(self
            .command(&gantry()?)
            .arg("--kubeconfig")
            .arg(self.kubeconfig(name))
            .args(arguments))
    }

    /// Runs a command that needs no cluster.
    pub fn offline(&self, arguments: &[&str]) -> Result<String> {
        run(self.command(&gantry()?).args(arguments))
    }

    /// Runs kubectl against one server.
    pub fn kubectl(&self, name: &str, arguments: &[&str]) -> Result<String> {
        run(self
            .command(Path::new("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig(name))
            .args(arguments))
    }

    /// Starts kubectl against one server; what it prints can be read as it comes.
    pub fn spawn_kubectl(&self, name: &str, arguments: &[&str]) -> Result<Child> {
        self.command(Path::new("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig(name))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting kubectl")
    }

    /// GETs a URL as a client.
    pub fn curl(&self, url: &str) -> Result<String> {
        let mut curl = self.command(Path::new("curl"));
        run(curl.args(["--fail", "--silent", "--show-error", "--max-time", "5", url]))
    }

    /// A client of one server.
    pub async fn client(&self, name: &str) -> Result<kube::Client> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(name))?;
        let options = KubeConfigOptions::default();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        config.read_timeout = Some(Duration::from_secs(5));
        config.connect_timeout = Some(Duration::from_secs(1));
        Ok(kube::Client::try_from(config)?)
    }

    /// Where a server or node keeps everything.
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The administrator's kubeconfig of a server.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.data_dir(name).join("admin.kubeconfig")
    }

    /// The file with the authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.data_dir("s1").join("pki/ca.crt")
    }

    /// The ends of all logs, for messages.
    pub fn logs(&self) -> String {
        let log = |name: &String| format!("{name}:\n{}\n", self.log(name));
        self.servers
            .keys()
            .chain(self.nodes.keys())
            .map(log)
            .collect()
    }

    /// The end of a server's or node's log, for messages.
    pub fn log(&self, name: &str) -> String {
        let path = self.directory.path().join(format!("{name}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Opens a server's or node's log to be written to.
    fn open_log(&self, name: &str) -> Result<std::fs::File> {
        let path = self.directory.path().join(format!("{name}.log"));
        let mut options = std::fs::OpenOptions::new();
        let log = options.create(true).append(true).open(&path);
        log.with_context(|| format!("opening {}", path.display()))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for name in self.node_names() {
            if let Err(error) = self.remove_from_machine(&name) {
                eprintln!("cleaning up {name}: {error:#}");
            }
        }
        for (name, server) in &mut self.servers {
            if !server.end() {
                eprintln!("server {name} could not be ended");
            }
        }
    }
}
