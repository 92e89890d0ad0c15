//! The shim: one small single-threaded process per pod that holds its namespaces and stdio, reaps its processes,
//! writes its logs and answers the agent over a socket. It is in none of those namespaces itself: only descriptors of it
//! are, which helpers inherit.
//!
//! It outlives the agent, so it depends on nothing of it: everything it needs arrives in a file at its start and in
//! requests. It never calls libcontainer (which forks, changes directory and leaks on failure): each create and exec
//! is a helper process, this binary again. It uses neither tokio nor tracing, for memory's sake; what goes wrong is
//! written to stderr, which the agent points at `shim.log`.
//!
//! Invariant: a container once known is reported until the agent says `forget`, so no exit is ever lost to an agent
//! that was away.

mod connection;
mod container;
mod io;
mod log;

use std::collections::HashMap;
use std::fs;
use std::io as stdio;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use gantry_rpc::shim::SandboxConfig;
use prost::Message;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{WaitOptions, WaitStatus};

use crate::namespaces::Namespaces;
use crate::{privileges, sys};
use connection::Connection;
use container::Container;

pub(crate) use container::{CONSOLE, receive_console};

/// Name of the socket in the sandbox's directory.
pub(crate) const SOCKET: &str = "shim.sock";
/// Name of the encoded `SandboxConfig` in the sandbox's directory.
pub(crate) const CONFIG: &str = "shim.config";
/// Before the kernel's OOM killer ends a shim it has ended all containers; after it come agents and servers.
const SCORE: i32 = -998;
/// Goes up when helpers read a container's or a command's directory in another way: an older one must not be given those.
pub(crate) const VERSION: u32 = 2;
/// What the shim prints once it answers on its socket.
pub(crate) const READY: &str = "ready\n";

/// Runs the shim of the sandbox in `dir` until it is told to shut down.
pub(crate) fn run(dir: &Path) -> stdio::Result<()> {
    rustix::process::setsid()?;
    privileges::die_late(SCORE)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let config =
        SandboxConfig::decode(&*fs::read(dir.join(CONFIG))?).map_err(stdio::Error::other)?;
    for file in &config.cgroup_procs {
        fs::write(file, "0")
            .map_err(|error| explain(&format!("entering the cgroup at {file}"), error))?;
    }
    let executable = PathBuf::from("/proc/self/exe");
    let mut shim = Shim {
        namespaces: Namespaces::make(&executable, dir)?,
        executable,
        signals: sys::child_signals()?,
        listener: bind(dir, SOCKET)?,
        containers: Vec::new(),
        connections: Vec::new(),
        helpers: HashMap::new(),
        unclaimed: Vec::new(),
        next_serial: 0,
        stopping: false,
        config,
    };
    shim.listener.set_nonblocking(true)?;
    use std::io::Write;
    stdio::stdout().write_all(READY.as_bytes())?;
    // Whoever started us may wait for the end of our output.
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    shim.serve()
}

/// Binds a socket in a directory whose path may be longer than a socket's address.
fn bind(dir: &Path, name: &str) -> stdio::Result<UnixListener> {
    let directory = crate::rootfs::open_directory(dir)?;
    UnixListener::bind(crate::client::short_path(&directory, name))
}

fn explain(doing: &str, error: stdio::Error) -> stdio::Error {
    stdio::Error::new(error.kind(), format!("{doing}: {error}"))
}

/// What a helper was started for.
enum Purpose {
    Create { name: String, attempt: u32 },
    Exec { connection: u64, dir: PathBuf },
}

struct Helper {
    process: std::process::Child,
    purpose: Purpose,
}

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Connection(usize),
    Container(u64, container::Part),
}

struct Shim {
    executable: PathBuf,
    config: SandboxConfig,
    signals: OwnedFd,
    listener: UnixListener,
    namespaces: Namespaces,
    containers: Vec<Container>,
    connections: Vec<Connection>,
    helpers: HashMap<i32, Helper>,
    /// Ends of processes no one has asked for yet: a short command can be gone before its helper has named it.
    unclaimed: Vec<(i32, WaitStatus)>,
    next_serial: u64,
    stopping: bool,
}

impl Shim {
    fn serve(&mut self) -> stdio::Result<()> {
        while !self.finished() {
            for (source, ready) in self.wait()? {
                match source {
                    Source::Signals => self.reap()?,
                    Source::Listener => self.accept(),
                    Source::Connection(index) => self.connection_ready(index, ready),
                    Source::Container(serial, part) => {
                        if let Some(container) = self
                            .containers
                            .iter_mut()
                            .find(|known| known.serial == serial)
                        {
                            container.ready(part);
                        }
                    }
                }
            }
            self.settle();
        }
        Ok(())
    }

    /// Told to stop, and everything of the pod has ended and been said.
    fn finished(&self) -> bool {
        self.stopping
            && self.helpers.is_empty()
            && self
                .containers
                .iter()
                .all(|container| container.running_pid().is_none())
            && self
                .connections
                .iter()
                .all(|connection| !connection.has_output())
    }

    /// Polls everything once. Connections are only removed in `settle`, so their indices stay right until then.
    fn wait(&self) -> stdio::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        for (index, connection) in self.connections.iter().enumerate() {
            sources.push(Source::Connection(index));
            fds.push(PollFd::new(connection, connection.interest()));
        }
        for container in &self.containers {
            container.poll_set(|part, fd, flags| {
                sources.push(Source::Container(container.serial, part));
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            });
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = sources.into_iter().zip(fds.iter().map(PollFd::revents));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            self.next_serial += 1;
            match Connection::new(self.next_serial, stream) {
                Ok(connection) => self.connections.push(connection),
                Err(error) => eprintln!("accepting a connection: {error}"),
            }
        }
    }

    /// Drops what has ended, after all of one round's events were handled.
    fn settle(&mut self) {
        let mut index = 0;
        while index < self.connections.len() {
            if self.connections[index].closed() {
                let connection = self.connections.swap_remove(index);
                self.hung_up(connection);
            } else {
                index += 1;
            }
        }
    }

    /// Collects every process that has ended; a helper's own end carries the result it left in a file.
    fn reap(&mut self) -> stdio::Result<()> {
        let mut drained = [0u8; 128 * 8];
        while matches!(rustix::io::read(&self.signals, &mut drained), Ok(count) if count > 0) {}
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_pid();
                    match self.helpers.remove(&pid) {
                        Some(helper) => self.helper_ended(helper),
                        None => self.unclaimed.push((pid, status)),
                    }
                }
                Ok(None) | Err(rustix::io::Errno::CHILD) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for (pid, status) in std::mem::take(&mut self.unclaimed) {
            if !self.process_ended(pid, status) && !self.helpers.is_empty() {
                self.unclaimed.push((pid, status));
            }
        }
        Ok(())
    }
}

/// An exit code as a shell reports it, and the signal if that was the cause.
fn exit_code(status: WaitStatus) -> (i32, Option<i32>) {
    match status.terminating_signal() {
        Some(signal) => (128 + signal, Some(signal)),
        None => (status.exit_status().unwrap_or(255), None),
    }
}
