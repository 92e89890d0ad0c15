//! Several servers of one control plane, to be killed, paused and brought back: on loopback ports, or each on a machine
//! of its own that more can happen to ([`faults`]).

mod faults;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};

use rustix::process::Signal;
use serde_json::Value;

use crate::host::{HOST_ADDRESS, Host, Network};
use crate::{eventually, gantry, import_demo_images, run};
use faults::{Clock, Disk};

pub use faults::Machine;

/// The node's data directory, beside those of the servers.
const AGENT: &str = "agent";
const NODE_NUMBER: u8 = 200;
/// Where an agent serves the API on its node.
const LOCAL_API: &str = "https://127.0.0.1:6444";

struct Server {
    address: SocketAddr,
    process: Option<Child>,
    /// Its own machine, and what is special about it.
    host: Option<Host>,
    disk: Option<Disk>,
    clock: Option<Clock>,
}

/// Where servers and clients run.
enum Place {
    /// On this machine itself.
    Here,
    /// All on one machine with the node.
    Together(Host),
    /// Each server on a machine of its own.
    Apart(Arc<Network>),
}

/// The machine of pods.
struct Node {
    process: Option<Child>,
    /// How it knows the cluster.
    arguments: Vec<String>,
    host: Option<Host>,
    address: String,
}

/// The servers of one control plane, by name, and perhaps a node.
pub struct Servers {
    servers: BTreeMap<String, Server>,
    node: Option<Node>,
    place: Place,
    /// What every server is started with.
    arguments: Vec<String>,
    /// Last, since disks are mounted in it.
    directory: tempfile::TempDir,
}

/// A port that nobody listens on now.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
    Ok(listener.local_addr()?)
}

impl Servers {
    /// Starts the first server and joins the others to it; returns when all of them vote.
    pub fn start(count: usize) -> Result<Self> {
        Self::start_with(count, &[])
    }

    /// As [`Servers::start`], each with further arguments.
    pub fn start_with(count: usize, arguments: &[&str]) -> Result<Self> {
        Self::start_on(Place::Here, &vec![Machine::default(); count], arguments)
    }

    /// As [`Servers::start`], each on a machine of its own, for a test that runs where clients are. Needs root.
    pub fn apart<T: Send>(
        machines: &[Machine],
        test: impl AsyncFnOnce(&mut Servers) -> Result<T> + Send,
    ) -> Result<T> {
        let network = Arc::new(Network::new()?);
        let mut servers = Self::start_on(Place::Apart(network.clone()), machines, &[])?;
        network.block_on(|| async move { test(&mut servers).await })
    }

    /// As [`Servers::start`], in a network namespace with a node, `node-1`, which has the demo images. Needs root.
    pub fn start_with_node(count: usize) -> Result<Self> {
        let mut servers = Self::start_together(count, &[])?;
        servers.add_node()?;
        Ok(servers)
    }

    /// As [`Servers::start_with`], in a network namespace that a node can be added to. Needs root.
    pub fn start_together(count: usize, arguments: &[&str]) -> Result<Self> {
        let machines = vec![Machine::default(); count];
        Self::start_on(Place::Together(Host::new()?), &machines, arguments)
    }

    /// Starts the node `node-1` with the demo images, on a machine of its own where servers have theirs.
    pub fn add_node(&mut self) -> Result<()> {
        let kubeconfig = self.node_kubeconfig().display().to_string();
        self.add_node_by(&["--node-kubeconfig", &kubeconfig])
    }

    /// As [`Servers::add_node`]; the node joins with a token. Later starts are without it.
    pub fn add_node_by_token(&mut self, token: &str) -> Result<()> {
        let address = self.address("s1")?.to_string();
        self.add_node_by(&["--join", &address, "--token", token])?;
        if let Some(node) = &mut self.node {
            node.arguments.clear();
        }
        Ok(())
    }

    fn add_node_by(&mut self, arguments: &[&str]) -> Result<()> {
        let (host, address) = match &self.place {
            Place::Apart(network) => {
                let address = Network::address(NODE_NUMBER).to_string();
                (Some(network.host(NODE_NUMBER)?), address)
            }
            _ => (None, HOST_ADDRESS.to_owned()),
        };
        self.node = Some(Node {
            process: None,
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            host,
            address,
        });
        self.start_agent()?;
        eventually("the node to be Ready", || {
            let nodes = self.gantry("s1", &["get", "nodes"])?;
            ensure!(nodes.contains(" Ready"), "{nodes}");
            Ok(())
        })?;
        import_demo_images(|program| self.node_command(program), &self.data_dir(AGENT))
    }

    /// Starts the node's agent, again after [`Servers::kill_agent`].
    pub fn start_agent(&mut self) -> Result<()> {
        let node = self.node.as_ref().context("no node was added")?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.path().join("agent.log"))
            .context("opening the log")?;
        let process = self
            .node_command(&gantry()?)
            .args(["agent", "--node-name", "node-1", "--address", &node.address])
            .args(&node.arguments)
            .arg("--data-dir")
            .arg(self.data_dir(AGENT))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the agent")?;
        if let Some(node) = &mut self.node {
            node.process = Some(process);
        }
        Ok(())
    }

    /// Ends the node's agent as a crash would; its pods stay.
    pub fn kill_agent(&mut self) -> Result<()> {
        if let Some(mut agent) = self.node.as_mut().and_then(|node| node.process.take()) {
            agent.kill()?;
            agent.wait()?;
        }
        Ok(())
    }

    /// A command on the node.
    pub fn node_command(&self, program: &Path) -> Command {
        match self.node.as_ref().and_then(|node| node.host.as_ref()) {
            Some(host) => host.command(program),
            None => self.command(program),
        }
    }

    /// A command in the network of a pod.
    pub fn in_pod(&self, uid: &str, program: &str) -> Result<Command> {
        let network = self.data_dir(AGENT).join("agent/network/netns").join(uid);
        ensure!(network.exists(), "{} is missing", network.display());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", network.display()))
            .arg(program);
        Ok(command)
    }

    /// The file with the authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.data_dir("s1").join("pki/ca.crt")
    }

    /// Runs kubectl on the node, against the API that the agent serves there.
    pub fn local_kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self
            .node_command(Path::new("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig("s1"))
            .args(["--server", LOCAL_API])
            .args(arguments))
    }

    fn start_on(place: Place, machines: &[Machine], arguments: &[&str]) -> Result<Self> {
        let mut servers = Self {
            directory: tempfile::tempdir().context("making a data directory")?,
            servers: BTreeMap::new(),
            node: None,
            place,
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
        };
        for (number, machine) in (1..).zip(machines) {
            servers.place_server(number, machine)?;
        }
        let count = machines.len();
        let for_node = format!("node-1={}", servers.node_kubeconfig().display());
        servers.launch("s1", &["--node-kubeconfig", &for_node])?;
        servers.wait_serving("s1")?;
        for number in 2..=count {
            servers.join(&format!("s{number}"))?;
        }
        eventually("every server to vote", || {
            let members = servers.members("s1")?;
            let votes = |member: &Value| member["role"] == "voter";
            ensure!(
                members.len() == count && members.iter().all(votes),
                "{members:?}"
            );
            Ok(())
        })?;
        Ok(servers)
    }

    /// Decides where a server is to run.
    fn place_server(&mut self, number: u8, machine: &Machine) -> Result<()> {
        let name = format!("s{number}");
        let (address, host) = match &self.place {
            Place::Apart(network) => {
                let address = SocketAddr::new(Network::address(number).into(), 6443);
                (address, Some(network.host(number)?))
            }
            _ => (free_address()?, None),
        };
        let disk = machine
            .disk
            .map(|size| Disk::new(&self.data_dir(&name), size));
        let clock = machine
            .settable_clock
            .then(|| Clock::new(self.directory.path().join(format!("{name}.clock"))));
        let server = Server {
            address,
            process: None,
            host,
            disk: disk.transpose()?,
            clock: clock.transpose()?,
        };
        self.servers.insert(name, server);
        Ok(())
    }

    /// Starts a placed server that joins through the first one.
    fn join(&mut self, name: &str) -> Result<()> {
        self.join_through(name, "s1", "s1")
    }

    /// Adds a server, with a token that one server makes, through another; returns its name.
    pub fn add(&mut self, maker: &str, joined: &str) -> Result<String> {
        let number = u8::try_from(self.servers.len() + 1).context("fewer servers")?;
        self.place_server(number, &Machine::default())?;
        let name = format!("s{number}");
        self.join_through(&name, maker, joined)?;
        Ok(name)
    }

    /// Adds a server that joins nobody: it is what its data directory makes of it. Returns its name, `s` and a number.
    pub fn add_alone(&mut self) -> Result<String> {
        self.add_with(&[])
    }

    /// Adds a server with these arguments; returns its name.
    pub fn add_with(&mut self, arguments: &[&str]) -> Result<String> {
        let number = u8::try_from(self.servers.len() + 1).context("fewer servers")?;
        self.place_server(number, &Machine::default())?;
        let name = format!("s{number}");
        self.restart_with(&name, arguments)?;
        Ok(name)
    }

    fn join_through(&mut self, name: &str, maker: &str, joined: &str) -> Result<()> {
        let token = self.gantry(maker, &["token", "create", "--for", "servers"])?;
        let address = self.address(joined)?.to_string();
        self.launch(name, &["--join", &address, "--token", token.trim()])?;
        self.wait_serving(name)
    }

    /// A client's command.
    fn command(&self, program: &Path) -> Command {
        match &self.place {
            Place::Here => Command::new(program),
            Place::Together(host) => host.command(program),
            Place::Apart(network) => network.command(program),
        }
    }

    /// The file with the node's certificate, before it joined or after.
    pub fn node_kubeconfig(&self) -> PathBuf {
        self.directory.path().join("node.kubeconfig")
    }

    /// Starts a server again that was killed.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        self.restart_with(name, &[])
    }

    /// Starts servers again of which none can serve alone.
    pub fn start_again(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            self.launch(name, &[])?;
        }
        names.iter().try_for_each(|name| self.wait_serving(name))
    }

    /// As [`Servers::restart`], with further arguments.
    pub fn restart_with(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        self.launch(name, arguments)?;
        self.wait_serving(name)
    }

    /// Whether a server has ended by itself; it can be restarted then.
    pub fn has_ended(&mut self, name: &str) -> Result<bool> {
        let process = &mut self.server_mut(name)?.process;
        let Some(running) = process else {
            return Ok(true);
        };
        let ended = running.try_wait()?.is_some();
        if ended {
            *process = None;
        }
        Ok(ended)
    }

    fn launch(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("{name}.log")))
            .context("opening the log")?;
        let server = self.server(name)?;
        let mut command = match &server.host {
            Some(host) => host.command(gantry()?),
            None => self.command(&gantry()?),
        };
        if let Some(clock) = &server.clock {
            clock.set_on(&mut command);
        }
        let process = command
            .args(["server", "--name", name, "--address"])
            .arg(server.address.ip().to_string())
            .arg("--listen")
            .arg(server.address.to_string())
            .arg("--data-dir")
            .arg(self.data_dir(name))
            .args(&self.arguments)
            .args(arguments)
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .context("starting a server")?;
        self.server_mut(name)?.process = Some(process);
        Ok(())
    }

    fn wait_serving(&mut self, name: &str) -> Result<()> {
        eventually("the server to serve", || {
            let process = self.server_mut(name)?.process.as_mut();
            if let Some(status) = process.and_then(|process| process.try_wait().transpose()) {
                bail!("the server ended with {}:\n{}", status?, self.log(name));
            }
            // kubectl asks this server and no other.
            self.kubectl(name, &["get", "namespace", "default"])
                .map(drop)
        })
        .with_context(|| self.log(name))
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

    /// Starts a server that must refuse to; returns what it says.
    pub fn refuses(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(&gantry()?)
            .args(["server", "--address", "127.0.0.1", "--listen"])
            .arg(free_address()?.to_string())
            .arg("--data-dir")
            .arg(self.directory.path().join("refused"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        ensure!(!output.status.success(), "it was let in");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts an agent that must refuse to run; returns what it says.
    pub fn agent_refuses(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(&gantry()?)
            .args(["agent", "--address", "127.0.0.1", "--data-dir"])
            .arg(self.directory.path().join("refused-agent"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        ensure!(!output.status.success(), "it runs");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The members, as a server lists them.
    pub fn members(&self, asked: &str) -> Result<Vec<Value>> {
        let path = "/gantry/v1/members";
        let text = self.kubectl(asked, &["get", "--raw", path, "--request-timeout=5s"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The name of the server that leads, as a server sees it.
    pub fn leader(&self, asked: &str) -> Result<String> {
        let members = self.members(asked)?;
        let leader = members.iter().find(|member| member["leader"] == true);
        let name = leader.and_then(|leader| leader["name"].as_str());
        Ok(name.context("nobody leads")?.to_owned())
    }

    /// The names of all servers.
    pub fn names(&self) -> Vec<String> {
        self.servers.keys().cloned().collect()
    }

    /// Where a server listens.
    pub fn address(&self, name: &str) -> Result<SocketAddr> {
        Ok(self.server(name)?.address)
    }

    fn server(&self, name: &str) -> Result<&Server> {
        let server = self.servers.get(name);
        server.with_context(|| format!("no server {name}"))
    }

    fn server_mut(&mut self, name: &str) -> Result<&mut Server> {
        let server = self.servers.get_mut(name);
        server.with_context(|| format!("no server {name}"))
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

    /// Ends a server as a crash would.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        if let Some(mut process) = self.server_mut(name)?.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Asks a server to end, and waits until it has.
    pub fn terminate(&mut self, name: &str) -> Result<()> {
        self.signal(name, Signal::TERM)?;
        if let Some(mut process) = self.server_mut(name)?.process.take() {
            process.wait()?;
        }
        Ok(())
    }

    /// Where a server keeps everything.
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The administrator's kubeconfig of a server.
    pub fn kubeconfig(&self, name: &str) -> PathBuf {
        self.data_dir(name).join("admin.kubeconfig")
    }

    /// The ends of all logs, for messages.
    pub fn logs(&self) -> String {
        let log = |name: &String| format!("{name}:\n{}\n", self.log(name));
        self.servers.keys().map(log).collect()
    }

    /// The end of a server's log, for messages.
    pub fn log(&self, name: &str) -> String {
        let path = self.directory.path().join(format!("{name}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if self.node.is_some() {
            let data_dir = self.data_dir(AGENT);
            let leave = || -> Result<()> {
                self.kill_agent()?;
                run(self
                    .node_command(&gantry()?)
                    .args(["down", "--purge", "--data-dir"])
                    .arg(data_dir))?;
                Ok(())
            };
            if let Err(error) = leave() {
                eprintln!("cleaning up: {error:#}");
            }
        }
        for (name, server) in &mut self.servers {
            if let Some(mut process) = server.process.take() {
                // A paused process is killed all the same.
                if process.kill().and_then(|()| process.wait()).is_err() {
                    eprintln!("server {name} could not be ended");
                }
            }
        }
    }
}
