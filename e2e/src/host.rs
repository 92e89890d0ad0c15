//! Machines: network namespaces, alone, or on one switch as `gantry up --nodes` makes them. Each goes with its value.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use gantry_network::LocalHosts;
use ipnet::Ipv4Net;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::run;

/// The address of a host that is alone, inside its network namespace.
pub const HOST_ADDRESS: &str = "10.199.0.1";
/// The machines on a switch; clients are at the switch itself.
const SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 200, 0, 0), 24);

static NAMES: AtomicU32 = AtomicU32::new(0);

struct Namespace {
    path: PathBuf,
    /// What `ip netns` calls it, when it is to go with this value.
    name: Option<String>,
}

impl Namespace {
    fn new() -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "these end-to-end tests need root: run them with sudo"
        );
        let number = NAMES.fetch_add(1, Ordering::Relaxed);
        let name = format!("gte2e-{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self {
            path: Path::new("/run/netns").join(&name),
            name: Some(name),
        };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        // nsenter replaces itself, so that the child is the program.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path.display()))
            .arg(program);
        command
    }

    /// Runs a function on a thread that is there.
    fn run_inside<T: Send>(&self, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            enter(&self.path)?;
            function()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs a future on threads that are there.
    fn block_on<T: Send, F: Future<Output = Result<T>>>(
        &self,
        make: impl FnOnce() -> F + Send,
    ) -> Result<T> {
        let path = self.path.clone();
        self.run_inside(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .on_thread_start(move || enter(&path).expect("a thread of root enters a namespace"))
                .build()?;
            runtime.block_on(make())
        })
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run(self.command("ip").args(arguments)).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = run(Command::new("ip").args(["netns", "del", name]))
        {
            eprintln!("cleaning up: {error:#}");
        }
    }
}

/// Moves the calling thread into a network namespace, for good.
fn enter(path: &Path) -> Result<()> {
    let namespace = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("entering {}", path.display()))
}

/// A machine with a default route.
pub(crate) struct Host {
    namespace: Namespace,
}

impl Host {
    /// A machine alone. Needs root.
    pub(crate) fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        let address = format!("{HOST_ADDRESS}/24");
        namespace.ip(&["link", "add", "uplink", "type", "bridge"])?;
        namespace.ip(&["addr", "add", &address, "dev", "uplink"])?;
        namespace.ip(&["link", "set", "uplink", "up"])?;
        namespace.ip(&["route", "add", "default", "dev", "uplink"])?;
        Ok(Self { namespace })
    }

    /// A command that runs there.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.namespace.command(program)
    }

    /// Runs a function on a thread that is there.
    pub(crate) fn run_inside<T: Send>(
        &self,
        function: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        self.namespace.run_inside(function)
    }

    /// Runs a future on threads that are there.
    pub(crate) fn block_on<T: Send, F: Future<Output = Result<T>>>(
        &self,
        make: impl FnOnce() -> F + Send,
    ) -> Result<T> {
        self.namespace.block_on(make)
    }

    /// As [`Host::run_inside`], without waiting for the function's end.
    pub(crate) fn spawn_inside(&self, function: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let path = self.namespace.path.clone();
        std::thread::spawn(move || {
            enter(&path).expect("a thread of root enters a namespace");
            function();
        })
    }

    /// Loses every packet that arrives from an address, for the machine or for a pod on it, until [`Host::hear`].
    pub(crate) fn lose(&self, from: Ipv4Addr) -> Result<()> {
        self.drop_arriving(&format!("ip saddr {from}"))
    }

    /// As [`Host::lose`], only datagrams to one port of the machine.
    pub(crate) fn lose_udp(&self, from: Ipv4Addr, port: u16) -> Result<()> {
        self.drop_arriving(&format!("ip saddr {from} udp dport {port}"))
    }

    fn drop_arriving(&self, packets: &str) -> Result<()> {
        let rules = format!(
            "add table ip faults; \
             add chain ip faults arriving {{ type filter hook prerouting priority -300; }}; \
             add rule ip faults arriving {packets} drop"
        );
        run(self.command("nft").arg(rules)).map(drop)
    }

    /// Ends what [`Host::lose`] began, for every address.
    pub(crate) fn hear(&self) -> Result<()> {
        let rules = "add table ip faults; delete table ip faults";
        run(self.command("nft").arg(rules)).map(drop)
    }
}

/// A switch with machines on it, and a place for clients.
pub(crate) struct Network {
    switch: Namespace,
    hosts: LocalHosts,
    /// Where the machines' namespaces are mounted.
    _directory: tempfile::TempDir,
}

impl Network {
    /// Needs root.
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for machines")?;
        let network = Self {
            switch: Namespace::new()?,
            hosts: LocalHosts::new("lan", SUBNET, &directory.path().join("netns"))?,
            _directory: directory,
        };
        network.switch.run_inside(|| Ok(network.hosts.set_up()?))?;
        Ok(network)
    }

    /// The address of a machine.
    pub(crate) fn address(&self, number: u8) -> Result<Ipv4Addr> {
        Ok(self.hosts.address(number)?)
    }

    /// Connects a further machine.
    pub(crate) fn host(&self, number: u8) -> Result<Host> {
        let made = self
            .switch
            .run_inside(|| Ok(self.hosts.add(number)?))
            .with_context(|| format!("making machine {number}"))?;
        let namespace = Namespace {
            path: made.netns,
            name: None,
        };
        Ok(Host { namespace })
    }

    /// Takes the cable of a machine out.
    pub(crate) fn unplug(&self, number: u8) -> Result<()> {
        self.switch
            .ip(&["link", "set", &self.hosts.link(number), "down"])
    }

    /// Puts it in again.
    pub(crate) fn plug(&self, number: u8) -> Result<()> {
        self.switch
            .ip(&["link", "set", &self.hosts.link(number), "up"])
    }

    /// A command that runs where clients are.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.switch.command(program)
    }

    /// Runs a future on threads that are where clients are.
    pub(crate) fn block_on<T: Send, F: Future<Output = Result<T>>>(
        &self,
        make: impl FnOnce() -> F + Send,
    ) -> Result<T> {
        self.switch.block_on(make)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let removed = self.switch.run_inside(|| Ok(self.hosts.teardown()?));
        if let Err(error) = removed {
            eprintln!("cleaning up machines: {error:#}");
        }
    }
}
