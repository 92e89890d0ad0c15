//! What happens to machines: pauses, networks that lose packets, full disks, clocks that jump.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::Fleet;
use crate::host::Host;

/// The file that fills a disk.
const BALLAST: &str = "ballast";

/// What is special about a server's machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The size in bytes of the disk that holds the data directory; it can be filled then.
    pub disk: Option<u64>,
    /// Whether the clock can be set.
    pub settable_clock: bool,
}

impl Fleet {
    /// Stops a server in its tracks; the system keeps its connections open.
    pub fn pause(&mut self, name: &str) -> Result<()> {
        self.signal(name, Signal::STOP)
    }

    /// Lets a paused server go on.
    pub fn resume(&mut self, name: &str) -> Result<()> {
        self.signal(name, Signal::CONT)
    }

    /// Loses every packet from one machine to another.
    pub fn cut(&self, from: &str, to: &str) -> Result<()> {
        let address = self.machine_address(from)?;
        self.host(to)?.lose(address)
    }

    /// Loses every datagram that one machine sends to a port of another, as a firewall between them would.
    pub fn block_udp(&self, from: &str, to: &str, port: u16) -> Result<()> {
        let address = self.machine_address(from)?;
        self.host(to)?.lose_udp(address, port)
    }

    /// Loses every packet between machines of one side and those of the other.
    pub fn part(&self, side: &[String], other: &[String]) -> Result<()> {
        for one in side {
            for another in other {
                self.cut(one, another)?;
                self.cut(another, one)?;
            }
        }
        Ok(())
    }

    /// Loses every packet between a node and the servers; nodes hear each other.
    pub fn part_from_servers(&self, node: &str) -> Result<()> {
        self.part(&[node.to_owned()], &self.names())
    }

    /// Ends what [`Fleet::cut`], [`Fleet::block_udp`] and [`Fleet::part`] began.
    pub fn heal(&self) -> Result<()> {
        for name in self.names().iter().chain(&self.node_names()) {
            self.host(name)?.hear()?;
        }
        Ok(())
    }

    fn machine_address(&self, name: &str) -> Result<Ipv4Addr> {
        if self.nodes.contains_key(name) {
            return Ok(self.node_address(name)?.parse()?);
        }
        match self.address(name)?.ip() {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(_) => bail!("{name} has no IPv4 address"),
        }
    }

    pub(super) fn host(&self, name: &str) -> Result<&Host> {
        let host = match self.nodes.get(name) {
            Some(node) => node.host(),
            None => self.server(name)?.host.as_ref(),
        };
        host.with_context(|| {
            format!("{name} has no machine of its own: use Fleet::of_machines or Fleet::apart")
        })
    }

    /// Takes the room that a server's disk has, but for this many bytes.
    pub fn fill(&self, name: &str, leaving: u64) -> Result<()> {
        let disk = self.server(name)?.disk.as_ref();
        disk.with_context(|| format!("{name} has no disk of its own"))?
            .fill(leaving)
    }

    /// Gives the room back.
    pub fn make_room(&self, name: &str) -> Result<()> {
        let disk = self.server(name)?.disk.as_ref();
        disk.with_context(|| format!("{name} has no disk of its own"))?
            .make_room()
    }

    /// Moves a server's clock this far from the true time.
    pub fn set_clock(&self, name: &str, offset: &str) -> Result<()> {
        let clock = self.server(name)?.clock.as_ref();
        clock
            .with_context(|| format!("{name} has no clock of its own"))?
            .set(offset)
    }

    /// Lets a command that has not started yet go by a clock this far from the true time.
    pub fn shift_clock(&self, command: &mut Command, offset: &str) -> Result<()> {
        let clock = Clock::new(self.directory.path().join("shifted.clock"))?;
        clock.set(offset)?;
        clock.set_on(command);
        Ok(())
    }

    pub(super) fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        let process = self.server_mut(name)?.process.as_ref();
        let pid = process.and_then(|process| Pid::from_raw(process.id().cast_signed()));
        let pid = pid.with_context(|| format!("{name} does not run"))?;
        kill_process(pid, signal).context("signalling a server")
    }
}

/// A file system of its own; it goes with the value.
pub(super) struct Disk {
    mounted: PathBuf,
}

impl Disk {
    pub(super) fn new(directory: &Path, size: u64) -> Result<Self> {
        std::fs::create_dir_all(directory).context("making a directory for a disk")?;
        let options = std::ffi::CString::new(format!("size={size},mode=0700"))?;
        mount(
            "tmpfs",
            directory,
            "tmpfs",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .with_context(|| format!("mounting a disk on {}", directory.display()))?;
        Ok(Self {
            mounted: directory.to_owned(),
        })
    }

    fn fill(&self, leaving: u64) -> Result<()> {
        let mut ballast = std::fs::File::create(self.mounted.join(BALLAST))?;
        let zeros = vec![0; 1 << 20];
        loop {
            let found = rustix::fs::statvfs(&self.mounted)?;
            if found.f_bavail * found.f_frsize < leaving + zeros.len() as u64 {
                return Ok(());
            }
            ballast.write_all(&zeros)?;
        }
    }

    fn make_room(&self) -> Result<()> {
        std::fs::remove_file(self.mounted.join(BALLAST)).context("emptying a disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.mounted, UnmountFlags::DETACH) {
            eprintln!("cleaning up {}: {error}", self.mounted.display());
        }
    }
}

/// A clock that a file moves, for a process that libfaketime was loaded into.
pub(super) struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    pub(super) fn new(file: PathBuf) -> Result<Self> {
        let library = format!(
            "/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1",
            std::env::consts::ARCH
        );
        let clock = Self {
            library: library.into(),
            file,
        };
        ensure!(
            clock.library.exists(),
            "{} is missing: install Debian's package faketime, as 'make test' does",
            clock.library.display()
        );
        clock.set("+0s")?;
        Ok(clock)
    }

    fn set(&self, offset: &str) -> Result<()> {
        std::fs::write(&self.file, offset).context("moving a clock")
    }

    /// Lets a command go by this clock, but measure durations as ever: a clock that jumps is not a clock that runs fast.
    pub(super) fn set_on(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
}
