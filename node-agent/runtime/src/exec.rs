//! The helper that runs a command in a container. It does not use libcontainer, which would let the container see a
//! process that still has everything.
//!
//! ```text
//! helper (host) --fork--> joins cgroups and namespaces, becomes the container's user, gives up the rest, and only then
//!    |                    --fork--> the command, the first of them that is in the container's pid namespace
//!    `--- reads the report, leaves the result
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::process::{WaitOptions, waitpid};
use rustix::thread::{CapabilitySet, ThreadNameSpaceType};
use serde::{Deserialize, Serialize};

use crate::helper::{Outcome, cause};
use crate::launch::{self, Program, Report, Reported};
use crate::shim::CONSOLE;
use crate::sys::{self, Fork};
use crate::{privileges, rootfs, seccomp, users};

/// In an exec's directory: the command, as JSON.
pub(crate) const COMMAND: &str = "command.json";
const TERMINAL: &str = "/dev/pts/ptmx";
const DEVPTS: i64 = 0x1cd1;

/// A command and what it runs as.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: PathBuf,
    pub(crate) terminal: bool,
    pub(crate) uid: u32,
    /// The same user for the node.
    pub(crate) user: u32,
    /// The container is in a user namespace of its own.
    pub(crate) own_users: bool,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Bits in the kernel's order.
    pub(crate) capabilities: u64,
    pub(crate) no_new_privs: bool,
    pub(crate) oom_score_adj: i32,
    /// Files that let a process into the container's cgroups.
    pub(crate) cgroups: Vec<PathBuf>,
    /// Of the container, with its filters.
    pub(crate) container: PathBuf,
}

/// Runs the command in `dir` in the container whose init process is given.
pub(crate) fn exec(dir: &Path, init: Vec<OwnedFd>) -> io::Result<()> {
    try_exec(dir, init)
        .unwrap_or_else(|error| Outcome::Failed(error.to_string()))
        .leave(dir)
}

fn try_exec(dir: &Path, init: Vec<OwnedFd>) -> io::Result<Outcome> {
    let init = init.into_iter().next().ok_or(io::ErrorKind::InvalidInput)?;
    let command: Command = serde_json::from_slice(&fs::read(dir.join(COMMAND))?)?;
    launch::set_container_umask();
    let filters = seccomp::load(&command.container)?;
    let program = match Program::new(&command.args, &command.env) {
        Ok(program) => program,
        Err(error) => return Ok(cannot_execute(&error)),
    };
    let console = if command.terminal {
        let directory = rootfs::open_directory(dir)?;
        Some(UnixStream::connect(crate::client::short_path(
            &directory, CONSOLE,
        ))?)
    } else {
        None
    };
    let (reader, report) = io::pipe()?;
    match sys::fork(false)? {
        Fork::Child => {
            let sent = match prepare(&command, &init, console) {
                Ok(()) => {
                    let error = launch::launch(&program, &filters, command.terminal, &report);
                    Report::Failed(&error).send(&report)
                }
                Err(error) => Report::Refused(&error).send(&report),
            };
            sys::exit_now(i32::from(sent.is_err()).max(1))
        }
        Fork::Parent(child) => {
            drop((report, console));
            let reported = Reported::read(reader, launch::PATIENCE)?;
            if !reported.complete {
                // Whoever is left is the shim's to collect.
                return Ok(reported.give_up(&[child]));
            }
            waitpid(rustix::process::Pid::from_raw(child), WaitOptions::empty())?;
            Ok(match reported {
                Reported { failed: Some(code), .. } => Outcome::CannotExecute(cause(code)),
                Reported { refused: Some(code), .. } => {
                    Outcome::Failed(format!("joining the container: {}", io::Error::from_raw_os_error(code)))
                }
                Reported { started: Some(pid), .. } => Outcome::Running(pid),
                _ => Outcome::Failed("the command could not be started: does the container's seccomp profile allow clone, execve and write?".to_owned()),
            })
        }
    }
}

fn cannot_execute(error: &io::Error) -> Outcome {
    Outcome::CannotExecute(cause(error.raw_os_error().unwrap_or(libc::EPERM)))
}

/// From our process to the container's, but for the pid namespace, in which only a child will be.
fn prepare(command: &Command, init: &OwnedFd, console: Option<UnixStream>) -> io::Result<()> {
    privileges::set_oom_score_adj(command.oom_score_adj)?;
    for door in &command.cgroups {
        fs::write(door, "0")?;
    }
    sys::new_session_keyring();
    sys::give_stdio(command.user)?;
    let mut namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK;
    if command.own_users {
        namespaces |= ThreadNameSpaceType::USER;
    }
    rustix::thread::move_into_thread_name_spaces(init.as_fd(), namespaces)?;
    if command.own_users {
        users::become_root()?;
    }
    enter_directory(&command.cwd)?;
    if let Some(console) = console {
        open_terminal(&console, command.uid)?;
    }
    let capabilities = CapabilitySet::from_bits_retain(command.capabilities);
    privileges::bound_capabilities(capabilities)?;
    privileges::become_user(command.uid, command.gid, &command.groups)?;
    privileges::hold_capabilities(capabilities)?;
    if command.no_new_privs {
        rustix::thread::set_no_new_privs(true)?;
    }
    sys::ignore_signal(libc::SIGPIPE, false);
    Ok(())
}

/// Enters a directory of the container, which may have made it a link to something that only we may follow: through the
/// process file system of a pod that shares the host's pid namespace, to the host's files.
fn enter_directory(path: &Path) -> io::Result<()> {
    rustix::process::chdir(path)?;
    let entered = rustix::process::getcwd(Vec::new())?;
    // The kernel says "(unreachable)" of one outside of the root directory.
    if entered.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EACCES))
    }
}

/// Opens a terminal of the container, makes it stdin, stdout and stderr, and sends its other side to the agent. The
/// container may have put anything in the place of the file that it is opened by.
fn open_terminal(console: &UnixStream, uid: u32) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let ours = rustix::fs::openat2(CWD, TERMINAL, flags, Mode::empty(), plain)?;
    if rustix::fs::fstatfs(&ours)?.f_type != DEVPTS {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    rustix::io::ioctl_fionbio(&ours, false)?;
    let theirs = sys::open_terminal_peer(&ours)?;
    rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    sys::send(console, TERMINAL.as_bytes(), &[ours.as_fd()])?;
    rustix::stdio::dup2_stdin(&theirs)?;
    rustix::stdio::dup2_stdout(&theirs)?;
    rustix::stdio::dup2_stderr(&theirs)?;
    Ok(())
}
