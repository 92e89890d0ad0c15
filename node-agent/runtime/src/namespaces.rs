//! The namespaces that a pod's containers share, made by a short-lived process and held by descriptors: no process of
//! ours stays in them, but for the one that a shared pid namespace needs as its pid 1.
//!
//! Invariant: before the shim says that it is ready, that process has given up everything: user, capabilities, files,
//! descriptors and system calls.

use std::fs;
use std::io::{self, BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use gantry_cri::runtime::{SysctlName, SysctlNamespace};
use gantry_rpc::shim::SandboxConfig;
use rustix::mount::MountFlags;
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags};

use crate::sys::Fork;
use crate::{privileges, seccomp, shim, sys, sysctl, users};

/// In a sandbox's directory: the process file system of a shared pid namespace.
pub(crate) const PROC: &str = "proc";
/// In a sandbox's directory: empty, for processes to put a root directory of their own on.
pub(crate) const EMPTY: &str = "empty";
/// The user of the process that holds a shared pid namespace, the same as of Kubernetes' pause image.
const HOLDER: u32 = 65535;

/// A process of ours that makes namespaces, and stays in them until it is told to end.
pub(crate) struct Maker {
    process: Child,
    /// The line that it has printed when they were there; empty when it could not make them.
    pub(crate) said: String,
}

impl Maker {
    pub(crate) fn start(command: &mut Command) -> io::Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::with_capacity(32, output).read_line(&mut said)?;
        }
        Ok(Self { process, said })
    }

    /// A file of the process's in /proc.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.process.id()))
    }

    pub(crate) fn end(mut self) -> io::Result<ExitStatus> {
        // When it has nothing more to read.
        drop(self.process.stdin.take());
        self.process.wait()
    }
}

/// What a pod's containers share.
pub(crate) struct Namespaces {
    joined: Vec<OwnedFd>,
    pid: Option<(i32, OwnedFd)>,
}

impl Namespaces {
    /// Makes them, for the sandbox in `dir`.
    pub(crate) fn make(executable: &Path, dir: &Path) -> io::Result<Self> {
        let maker = Maker::start(Command::new(executable).arg(crate::NAMESPACES).arg(dir))?;
        let holder = maker.said.trim().parse::<i32>();
        let taken = holder.map_err(io::Error::other).and_then(|holder| {
            let open = |file: PathBuf| fs::File::open(file).map(OwnedFd::from);
            let joined = ["ns/uts", "ns/ipc", "ns/net"].map(|file| open(maker.file(file)));
            let pid = match holder {
                0 => None,
                holder => Some((holder, open(format!("/proc/{holder}/ns/pid").into())?)),
            };
            let joined = joined.into_iter().collect::<io::Result<_>>()?;
            Ok(Self { joined, pid })
        });
        if maker.end()?.success() {
            taken
        } else {
            // It has said why.
            Err(io::Error::other("could not make the pod's namespaces"))
        }
    }

    /// The pid 1 of a shared pid namespace, in the host's numbers.
    pub(crate) fn holder(&self) -> Option<i32> {
        self.pid.as_ref().map(|(holder, _)| *holder)
    }

    /// Adds to a helper's command the numbers of the descriptors that [`join`] takes; it inherits these if it is started
    /// while the answer lives.
    pub(crate) fn hand_to(&self, command: &mut Command) -> io::Result<Vec<OwnedFd>> {
        let pid = self.pid.iter().map(|(_, namespace)| namespace);
        let copies = self.joined.iter().chain(pid).map(OwnedFd::try_clone);
        let copies: Vec<OwnedFd> = copies.collect::<io::Result<_>>()?;
        for copy in &copies {
            command.arg(sys::let_inherit(copy)?.to_string());
        }
        Ok(copies)
    }
}

/// Joins what [`Namespaces::hand_to`] passed on but a shared pid namespace, which is given back: whoever joins that has
/// to give up its privileges first.
pub(crate) fn join(namespaces: Vec<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    let mut namespaces = namespaces.into_iter();
    for namespace in namespaces.by_ref().take(3) {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
    }
    Ok(namespaces.next())
}

fn explain(doing: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

/// Is the process that makes them: prints the pid of the shared pid namespace's holder, or 0, and stays until its input
/// ends.
pub(crate) fn run(dir: &Path) -> io::Result<()> {
    use prost::Message;
    let config =
        SandboxConfig::decode(&*fs::read(dir.join(shim::CONFIG))?).map_err(io::Error::other)?;
    let settings = settings(&config)?;
    let mut new = UnshareFlags::NEWUTS;
    if !config.host_ipc {
        new |= UnshareFlags::NEWIPC;
    }
    if config.share_pid {
        new |= UnshareFlags::NEWPID;
    }
    let network = match config.netns.as_str() {
        "" => None,
        path => Some(fs::File::open(path).map_err(|error| joining(path, error))?),
    };
    let mut writer = None;
    if config.own_users {
        // Those who own the namespaces may not write all that the pod may ask for.
        writer = SettingsWriter::start(&config, &settings, dir)?;
        // The holder can go nowhere from there, but be there.
        rustix::process::chdir(dir.join(EMPTY))?;
        let network = network.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        users::become_root_of(network)?;
    }
    sys::unshare(new)?;
    rustix::system::sethostname(config.hostname.as_bytes())?;
    if let Some(network) = &network {
        let kind = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(network.as_fd(), kind)
            .map_err(|error| joining(&config.netns, error.into()))?;
    }
    let holder = match (config.share_pid, config.own_users) {
        (false, _) => 0,
        (true, false) => start_holder(crate::PAUSE, dir)?,
        (true, true) => start_holder(crate::PAUSE_OF_OWN_USERS, Path::new("."))?,
    };
    match writer {
        Some(writer) => writer.finish()?,
        None if settings.is_empty() || config.own_users => {}
        None => sysctl::write(&settings, &own_settings(&config), &dir.join(EMPTY), None)?,
    }
    writeln!(io::stdout(), "{holder}")?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn joining(path: &str, error: io::Error) -> io::Error {
    explain(&format!("joining the network namespace {path}"), error)
}

/// The namespaces of which the pod has its own.
fn own_settings(config: &SandboxConfig) -> Vec<SysctlNamespace> {
    let mut own = Vec::new();
    if !config.host_ipc {
        own.push(SysctlNamespace::Ipc);
    }
    if !config.netns.is_empty() {
        own.push(SysctlNamespace::Net);
    }
    own
}

/// A process that stays root of the host's until the pod's namespaces are there, and then writes its settings.
struct SettingsWriter {
    pid: i32,
    go: PipeWriter,
}

impl SettingsWriter {
    /// None when there is nothing to write.
    fn start(
        config: &SandboxConfig,
        settings: &[(SysctlName, String)],
        dir: &Path,
    ) -> io::Result<Option<Self>> {
        if settings.is_empty() {
            return Ok(None);
        }
        let maker = std::process::id();
        let (mut gone, go) = io::pipe()?;
        match sys::fork(false)? {
            Fork::Parent(pid) => Ok(Some(Self { pid, go })),
            Fork::Child => {
                drop(go);
                if gone.read_exact(&mut [0]).is_err() {
                    // The namespaces could not be made, and the maker says why.
                    sys::exit_now(1);
                }
                let write = || {
                    for kind in ["ipc", "net"] {
                        let namespace = fs::File::open(format!("/proc/{maker}/ns/{kind}"))?;
                        rustix::thread::move_into_link_name_space(namespace.as_fd(), None)?;
                    }
                    let own = own_settings(config);
                    sysctl::write(settings, &own, &dir.join(EMPTY), Some(config.first_id))
                };
                let written = write();
                if let Err(error) = &written {
                    eprintln!("{error}");
                }
                sys::exit_now(i32::from(written.is_err()))
            }
        }
    }

    /// Waits until it has written them.
    fn finish(mut self) -> io::Result<()> {
        self.go.write_all(&[0])?;
        let pid = Pid::from_raw(self.pid).ok_or(io::ErrorKind::InvalidInput)?;
        let ended = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
        match ended.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            // It has said why.
            _ => Err(io::Error::other("could not write the pod's sysctls")),
        }
    }
}

fn settings(config: &SandboxConfig) -> io::Result<Vec<(SysctlName, String)>> {
    let parse = |(name, value): (&String, &String)| match SysctlName::parse(name) {
        Some(known) => Ok((known, value.clone())),
        None => Err(io::Error::other(format!(
            "the sysctl {name:?} belongs to no namespace of a pod"
        ))),
    };
    config.sysctls.iter().map(parse).collect()
}

fn start_holder(role: &str, dir: &Path) -> io::Result<i32> {
    let mut holder = Command::new("/proc/self/exe")
        .arg(role)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    if let Some(output) = holder.stdout.take() {
        BufReader::with_capacity(32, output).read_line(&mut said)?;
    }
    if said == shim::READY {
        i32::try_from(holder.id()).map_err(io::Error::other)
    } else {
        Err(io::Error::other("could not make the pod's pid namespace"))
    }
}

/// Is pid 1 of a shared pid namespace, for the sandbox in `dir`: makes the file system that its containers are given.
pub(crate) fn pause(dir: &Path) -> io::Result<()> {
    // Only a process in the namespace can make it, and this is the one that is not a container's.
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount(
        "proc",
        dir.join(PROC),
        "proc",
        flags,
        None::<&std::ffi::CStr>,
    )?;
    hold(&dir.join(EMPTY))
}

/// Holds a pod's shared pid namespace, from an empty directory on: reaps, until it is killed.
pub(crate) fn hold(empty: &Path) -> io::Result<()> {
    let filter = seccomp::holder().map_err(io::Error::other)?;
    privileges::enter_root_of_its_own(empty, 0, |_| Ok(()))?;
    // Ends of processes that nobody waits for are then no news at all.
    sys::ignore_signal(libc::SIGCHLD, true);
    privileges::bound_capabilities(CapabilitySet::empty())?;
    privileges::become_user(HOLDER, HOLDER, &[])?;
    privileges::hold_capabilities(CapabilitySet::empty())?;
    rustix::thread::set_no_new_privs(true)?;
    seccomp::install(&filter)?;
    io::stdout().write_all(shim::READY.as_bytes())?;
    sys::close_everything()?;
    loop {
        // Nothing to wait for, and no time to wait: until a signal.
        match rustix::event::poll(&mut [], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
