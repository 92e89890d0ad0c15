//! The last steps into a pid namespace in which others may be: filters, a fork, the program.
//!
//! What comes back over the report's pipe may be written by the container itself, in the moment between the fork and the
//! program: so a pid counts only when it is a child of the process that reads it.

use std::ffi::CString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use crate::seccomp;
use crate::sys::{self, Fork};

/// Where a container's specification names no other.
const CONTAINER_UMASK: u32 = 0o022;
const STARTED: u8 = b'S';
const FAILED: u8 = b'F';
const REFUSED: u8 = b'R';

/// What a container creates has the modes that programs expect, and so have mount points in its file system; the agent
/// keeps its own files to itself.
pub(crate) fn set_container_umask() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(CONTAINER_UMASK));
}

/// A command with its environment, and the files it may be.
pub(crate) struct Program {
    args: Vec<CString>,
    env: Vec<CString>,
    candidates: Vec<CString>,
}

impl Program {
    /// Looks for a command without a slash in the environment's PATH.
    pub(crate) fn new(args: &[String], env: &[String]) -> io::Result<Self> {
        let path = env
            .iter()
            .find_map(|entry| entry.strip_prefix("PATH="))
            .unwrap_or_default();
        let Some(command) = args.first() else {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        };
        let candidates: Vec<String> = if command.contains('/') {
            vec![command.clone()]
        } else {
            path.split(':')
                .filter(|dir| !dir.is_empty())
                .map(|dir| format!("{dir}/{command}"))
                .collect()
        };
        let strings = |list: &[String]| {
            list.iter()
                .map(|item| CString::new(item.as_str()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
        };
        Ok(Self {
            args: strings(args)?,
            env: strings(env)?,
            candidates: strings(&candidates)?,
        })
    }

    /// Replaces this process; returns only to say why it could not.
    pub(crate) fn execute(&self) -> io::Error {
        let mut cause = io::Error::from_raw_os_error(libc::ENOENT);
        for candidate in &self.candidates {
            let error = sys::execve(candidate, &self.args, &self.env);
            if error.raw_os_error() != Some(libc::ENOENT)
                || cause.raw_os_error() != Some(libc::EACCES)
            {
                cause = error;
            }
            if !matches!(
                cause.raw_os_error(),
                Some(libc::ENOENT | libc::EACCES | libc::ENOTDIR)
            ) {
                break;
            }
        }
        cause
    }
}

/// Puts this process under all of a container's filters.
pub(crate) fn install(filters: &[seccomp::Program]) -> io::Result<()> {
    filters.iter().try_for_each(seccomp::install)
}

/// Goes where [`rustix::thread::move_into_link_name_space`] has led: executes the program in a child of this process's
/// parent, and ends this process. It has the container's user, capabilities and root directory by now. Returns only to
/// say why nothing was executed.
pub(crate) fn launch(
    program: &Program,
    filters: &[seccomp::Program],
    terminal: bool,
    report: &PipeWriter,
) -> io::Error {
    let ready = sys::close_all_but(&[report.as_fd().as_raw_fd()])
        // Before the fork: from the first moment on, the others may attach to the child.
        .and_then(|()| install(filters))
        .and_then(|()| sys::fork(true));
    match ready {
        Ok(Fork::Parent(pid)) => {
            let sent = Report::Started(pid).send(report);
            sys::exit_now(i32::from(sent.is_err()))
        }
        Ok(Fork::Child) => {
            sys::ignore_signal(libc::SIGHUP, false);
            // A profile that forbids either costs job control, not the command.
            if rustix::process::setsid().is_ok() && terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).unwrap_or_default();
            }
            let error = program.execute();
            let sent = Report::Failed(&error).send(report);
            sys::exit_now(i32::from(sent.is_err()).max(127))
        }
        Err(error) => error,
    }
}

/// What is said over the pipe.
pub(crate) enum Report<'a> {
    /// There is a process, which is about to execute the program.
    Started(i32),
    /// The program is not executed.
    Failed(&'a io::Error),
    /// The container could not be joined.
    Refused(&'a io::Error),
}

impl Report<'_> {
    pub(crate) fn send(&self, mut pipe: &PipeWriter) -> io::Result<()> {
        let code = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EPERM);
        let (kind, number) = match self {
            Self::Started(pid) => (STARTED, *pid),
            Self::Failed(error) => (FAILED, code(error)),
            Self::Refused(error) => (REFUSED, code(error)),
        };
        let mut message = [kind; 5];
        message[1..].copy_from_slice(&number.to_ne_bytes());
        pipe.write_all(&message)
    }
}

/// All that was said, once nobody can say any more.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Reported {
    /// A child of this process.
    pub(crate) started: Option<i32>,
    /// The number of the error with which the program was not executed.
    pub(crate) failed: Option<i32>,
    /// The number of an error before that.
    pub(crate) refused: Option<i32>,
}

impl Reported {
    /// Reads until nobody can say any more; or, when not told to `wait`, what has been said by now.
    pub(crate) fn read(pipe: PipeReader, wait: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, !wait)?;
        let mut said = Vec::new();
        // No process has two things to say.
        match pipe.take(64).read_to_end(&mut said) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => drop(read?),
        }
        let mut reported = Self::default();
        for message in said.chunks(5) {
            let Some((&kind, Ok(number))) = message
                .split_first()
                .map(|(kind, rest)| (kind, rest.try_into()))
            else {
                break;
            };
            let number = i32::from_ne_bytes(number);
            match kind {
                STARTED if is_child(number) => reported.started = Some(number),
                FAILED => reported.failed = Some(number),
                REFUSED => reported.refused = Some(number),
                _ => {
                    return Err(io::Error::other(
                        "the container has tampered with its start",
                    ));
                }
            }
        }
        Ok(reported)
    }
}

/// Whether this process is the parent of another.
fn is_child(pid: i32) -> bool {
    let own = rustix::process::getpid().as_raw_pid().to_string();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.is_some_and(|parent| parent.trim() == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(messages: &[Report<'_>]) -> io::Result<Reported> {
        let (reader, writer) = io::pipe().unwrap();
        for message in messages {
            message.send(&writer).unwrap();
        }
        drop(writer);
        Reported::read(reader, true)
    }

    #[test]
    fn a_pid_counts_when_it_is_a_child() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = read(&[Report::Started(pid)]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(started.started, Some(pid));
        for forged in [1, 0, -1, i32::MAX, rustix::process::getpid().as_raw_pid()] {
            assert!(read(&[Report::Started(forged)]).is_err(), "{forged}");
        }
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(
            read(&[Report::Failed(&missing)]).unwrap().failed,
            Some(libc::ENOENT)
        );
        assert_eq!(read(&[]).unwrap(), Reported::default());
    }
}
