//! The servers of a fleet: joined, killed, restarted, and asked about each other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::faults::{Clock, Disk};
use super::{Fleet, Machine, Place, free_address};
use crate::host::Host;
use crate::{eventually, gantry};

/// One server.
pub(super) struct Server {
    address: SocketAddr,
    pub(super) process: Option<Child>,
    /// Its own machine, and what is special about it.
    pub(super) host: Option<Host>,
    pub(super) disk: Option<Disk>,
    pub(super) clock: Option<Clock>,
}

impl Server {
    /// Ends it as a crash would, paused or not; says whether that could be done.
    pub(super) fn end(&mut self) -> bool {
        let process = self.process.take();
        process.is_none_or(|mut process| process.kill().and_then(|()| process.wait()).is_ok())
    }
}

impl Fleet {
    pub(super) fn start_on(place: Place, machines: &[Machine], arguments: &[&str]) -> Result<Self> {
        let mut servers = Self {
            directory: tempfile::tempdir().context("making a data directory")?,
            servers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            place,
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            agent_arguments: Vec::new(),
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
                let address = SocketAddr::new(network.address(number)?.into(), 6443);
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

    /// As [`Fleet::restart`], with further arguments.
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
        let log = self.open_log(name)?;
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

    /// The process of a server.
    pub fn server_pid(&self, name: &str) -> Result<u32> {
        let process = self.server(name)?.process.as_ref();
        Ok(process
            .with_context(|| format!("{name} does not run"))?
            .id())
    }

    pub(super) fn server(&self, name: &str) -> Result<&Server> {
        let server = self.servers.get(name);
        server.with_context(|| format!("no server {name}"))
    }

    pub(super) fn server_mut(&mut self, name: &str) -> Result<&mut Server> {
        let server = self.servers.get_mut(name);
        server.with_context(|| format!("no server {name}"))
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
}
