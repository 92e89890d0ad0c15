//! The nodes of a fleet: joined, and killed with or without everything they run.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use gantry_agent::AgentConfig;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Fleet, Place};
use crate::host::{HOST_ADDRESS, Host, Network};
use crate::images::Images;
use crate::{eventually, gantry, run};

/// Where machines of nodes are numbered from; those of servers come before.
const FIRST: u8 = 100;
/// Where an agent serves the API on its node.
const LOCAL_API: &str = "https://127.0.0.1:6444";
const CGROUPS: &str = "/sys/fs/cgroup";

/// One node: an agent, and the pods it runs.
pub(super) struct Node {
    process: Option<Child>,
    /// How it comes to know the cluster.
    arguments: Vec<String>,
    /// The number of its own machine.
    number: u8,
    host: Option<Host>,
    address: String,
}

impl Node {
    pub(super) fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }
}

impl Fleet {
    /// Starts the node `node-1` with every image, on a machine of its own where servers have theirs.
    pub fn add_node(&mut self) -> Result<()> {
        let kubeconfig = self.node_kubeconfig().display().to_string();
        let name = self.place_node(&["--node-kubeconfig", &kubeconfig])?;
        self.start_nodes(&[name])
    }

    /// As [`Fleet::add_node`]; the node joins with a token. Later starts are without it.
    pub fn add_node_by_token(&mut self, token: &str) -> Result<()> {
        let address = self.address("s1")?.to_string();
        let name = self.place_node(&["--join", &address, "--token", token])?;
        self.start_nodes(std::slice::from_ref(&name))?;
        self.node_mut(&name)?.arguments.clear();
        Ok(())
    }

    /// Joins further nodes, each on a machine of its own, with a token for all of them.
    pub(super) fn add_nodes(&mut self, count: usize) -> Result<()> {
        let token = self.gantry("s1", &["token", "create", "--for", "nodes"])?;
        let address = self.address("s1")?.to_string();
        let join = ["--join", address.as_str(), "--token", token.trim()];
        let names: Vec<String> = (0..count)
            .map(|_| self.place_node(&join))
            .collect::<Result<_>>()?;
        self.start_nodes(&names)?;
        for name in &names {
            self.node_mut(name)?.arguments.clear();
        }
        Ok(())
    }

    /// Decides where a node is to run; returns its name.
    fn place_node(&mut self, arguments: &[&str]) -> Result<String> {
        let ordinal = u8::try_from(self.nodes.len() + 1).context("fewer nodes")?;
        let number = FIRST + ordinal;
        let (host, address) = match &self.place {
            Place::Apart(network) => {
                let address = network.address(number)?.to_string();
                (Some(network.host(number)?), address)
            }
            _ if ordinal == 1 => (None, HOST_ADDRESS.to_owned()),
            _ => bail!("a further node needs a machine of its own: use Fleet::of_machines"),
        };
        let name = format!("node-{ordinal}");
        let node = Node {
            process: None,
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            number,
            host,
            address,
        };
        self.nodes.insert(name.clone(), node);
        Ok(name)
    }

    /// Starts agents, and returns when their nodes are Ready and have every image.
    fn start_nodes(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            self.start_agent(name)?;
        }
        for name in names {
            self.wait_ready(name)?;
        }
        let images = Images::pack()?;
        for name in names {
            let data_dir = self.data_dir(name);
            images.import(|program| self.node_command(name, program), &data_dir)?;
        }
        Ok(())
    }

    /// Waits until a node is Ready.
    pub fn wait_ready(&self, name: &str) -> Result<()> {
        eventually("the node to be Ready", || {
            let ready = self.ready(name)?;
            ensure!(ready == "True", "{name} is {ready:?}");
            Ok(())
        })
        .with_context(|| self.logs())
    }

    /// The status of a node's condition Ready, as the first server knows it.
    pub fn ready(&self, name: &str) -> Result<String> {
        self.condition(name, "Ready", "status")
    }

    /// A field of one of a node's conditions, as the first server knows it; empty when there is no such condition.
    pub fn condition(&self, name: &str, kind: &str, field: &str) -> Result<String> {
        let path = format!(r#"jsonpath={{.status.conditions[?(@.type=="{kind}")].{field}}}"#);
        self.kubectl("s1", &["get", "node", name, "-o", &path])
    }

    /// What `gantry doctor` finds on a node's machine: whether it is content, and its report.
    pub fn doctor(&self, name: &str) -> Result<(bool, Value)> {
        let output = self
            .node_command(name, &gantry()?)
            .arg("--kubeconfig")
            .arg(self.kubeconfig("s1"))
            .args(["doctor", "-o", "json", "--data-dir"])
            .arg(self.data_dir(name))
            .output()?;
        let report = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("doctor says {}", String::from_utf8_lossy(&output.stderr)))?;
        Ok((output.status.success(), report))
    }

    /// Starts a node's agent, again after [`Fleet::kill_agent`].
    pub fn start_agent(&mut self, name: &str) -> Result<()> {
        let log = self.open_log(name)?;
        let node = self.node(name)?;
        let process = self
            .node_command(name, &gantry()?)
            .args(["agent", "--node-name", name, "--address", &node.address])
            .args(&self.agent_arguments)
            .args(&node.arguments)
            .arg("--data-dir")
            .arg(self.data_dir(name))
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .context("starting the agent")?;
        self.node_mut(name)?.process = Some(process);
        Ok(())
    }

    /// Ends a node's agent as a crash would; its pods stay.
    pub fn kill_agent(&mut self, name: &str) -> Result<()> {
        if let Some(mut agent) = self.node_mut(name)?.process.take() {
            agent.kill()?;
            agent.wait()?;
        }
        Ok(())
    }

    /// Ends a node as a power cut would: nobody hears of it again, and nothing that ran on it runs any more.
    pub fn kill_node(&mut self, name: &str) -> Result<()> {
        self.unplug(name)?;
        self.kill_agent(name)?;
        eventually("every process of the node to end", || {
            let left = self.processes(name)?;
            for pid in &left {
                // It may have ended by itself since.
                kill_process(*pid, Signal::KILL).ok();
            }
            ensure!(left.is_empty(), "{left:?} run");
            Ok(())
        })
    }

    /// Starts a node again after [`Fleet::kill_node`].
    pub fn restart_node(&mut self, name: &str) -> Result<()> {
        self.plug(name)?;
        self.start_agent(name)
    }

    /// Takes a node off the network, without a word to anybody; it runs on.
    pub fn unplug(&self, name: &str) -> Result<()> {
        self.network()?.unplug(self.node(name)?.number)
    }

    /// Ends what [`Fleet::unplug`] began.
    pub fn plug(&self, name: &str) -> Result<()> {
        self.network()?.plug(self.node(name)?.number)
    }

    /// The processes of a node's pods: containers and shims.
    fn processes(&self, name: &str) -> Result<HashSet<Pid>> {
        let mut found = HashSet::new();
        for group in self.groups(name)? {
            processes_below(&group, &mut found)?;
        }
        Ok(found)
    }

    /// The uids of the pods that a node has something of.
    pub fn pods_held(&self, name: &str) -> Result<BTreeSet<String>> {
        let mut held = BTreeSet::new();
        for group in self.groups(name)? {
            for entry in fs::read_dir(group)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    held.insert(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        Ok(held)
    }

    /// The cgroup of a node's pods, in each hierarchy: there is one, or one per controller.
    fn groups(&self, name: &str) -> Result<Vec<PathBuf>> {
        let config = AgentConfig::in_directory(&self.data_dir(name).join("agent"));
        let root = config.cgroup_root;
        let root = root.strip_prefix("/").unwrap_or(&root);
        let mut groups = vec![Path::new(CGROUPS).join(root)];
        for entry in fs::read_dir(CGROUPS).context("reading the cgroup hierarchies")? {
            groups.push(entry?.path().join(root));
        }
        groups.retain(|group| group.is_dir());
        Ok(groups)
    }

    /// A command on a node.
    pub fn node_command(&self, name: &str, program: &Path) -> Command {
        match self.nodes.get(name).and_then(Node::host) {
            Some(host) => host.command(program),
            None => self.command(program),
        }
    }

    /// A command on the machine of a server or node, which must have one of its own.
    pub fn machine_command(&self, name: &str, program: &Path) -> Result<Command> {
        Ok(self.host(name)?.command(program))
    }

    /// Runs a function on a thread that is on a node's own machine.
    pub fn on_node<T: Send>(
        &self,
        name: &str,
        function: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        self.host(name)?.run_inside(function)
    }

    /// As [`Fleet::on_node`], without waiting for the function's end.
    pub fn spawn_on_node(
        &self,
        name: &str,
        function: impl FnOnce() + Send + 'static,
    ) -> Result<JoinHandle<()>> {
        Ok(self.host(name)?.spawn_inside(function))
    }

    /// A command in the network of a node's pod.
    pub fn in_pod(&self, name: &str, uid: &str, program: &str) -> Result<Command> {
        let network = self.data_dir(name).join("agent/network/netns").join(uid);
        ensure!(network.exists(), "{} is missing", network.display());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", network.display()))
            .arg(program);
        Ok(command)
    }

    /// Runs kubectl on a node, against the API that the agent serves there.
    pub fn local_kubectl(&self, name: &str, arguments: &[&str]) -> Result<String> {
        run(self
            .node_command(name, Path::new("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig("s1"))
            .args(["--server", LOCAL_API])
            .args(arguments))
    }

    /// The file with the certificate of `node-1`, before it joined or after.
    pub fn node_kubeconfig(&self) -> PathBuf {
        self.directory.path().join("node.kubeconfig")
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

    /// The names of all nodes.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// The address of a node's machine.
    pub fn node_address(&self, name: &str) -> Result<&str> {
        Ok(&self.node(name)?.address)
    }

    /// The process of a node's agent.
    pub fn agent_pid(&self, name: &str) -> Result<u32> {
        let process = self.node(name)?.process.as_ref();
        Ok(process
            .with_context(|| format!("no agent runs on {name}"))?
            .id())
    }

    pub(super) fn node(&self, name: &str) -> Result<&Node> {
        let node = self.nodes.get(name);
        node.with_context(|| format!("no node {name}"))
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let node = self.nodes.get_mut(name);
        node.with_context(|| format!("no node {name}"))
    }

    fn network(&self) -> Result<&Network> {
        match &self.place {
            Place::Apart(network) => Ok(network),
            _ => bail!("nodes have no machines of their own: use Fleet::of_machines"),
        }
    }

    /// Removes everything a node has made on its machine, whatever state it is in.
    pub(super) fn remove_from_machine(&mut self, name: &str) -> Result<()> {
        self.kill_agent(name)?;
        let data_dir = self.data_dir(name);
        if !data_dir.exists() {
            return Ok(());
        }
        run(self
            .node_command(name, &gantry()?)
            .args(["down", "--purge", "--data-dir"])
            .arg(data_dir))
        .map(drop)
    }
}

/// Adds the processes of a cgroup and of all below it. Groups come and go meanwhile.
fn processes_below(group: &Path, found: &mut HashSet<Pid>) -> Result<()> {
    let listed = match fs::read_to_string(group.join("cgroup.procs")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        listed => listed.with_context(|| format!("reading {}", group.display()))?,
    };
    let pids = listed.lines().filter_map(|line| line.parse().ok());
    found.extend(pids.filter_map(Pid::from_raw));
    let Ok(entries) = fs::read_dir(group) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes_below(&entry.path(), found)?;
        }
    }
    Ok(())
}
