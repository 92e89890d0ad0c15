//! The last steps into a pid namespace in which others may be: filters, a fork, the program.
//!
//! What comes back over the report's pipe may be written by the container itself, in the moment between the fork and the
//! program: so a pid counts only when it is a child of the process that reads it.

use std::ffi::CString;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::helper::Outcome;
use crate::seccomp;
use crate::sys::{self, Fork};

/// Where a container's specification names no other.
const CONTAINER_UMASK: u32 = 0o022;
/// For the moment between the fork and the program. It takes milliseconds, but the process may be in a pid namespace by
/// then, where the container's root can stop it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// For a program that is alone in its pid namespace, which nobody but a slow disk can hold up. Less than what the agent
/// waits for an answer.
pub(crate) const PATIENCE_WITH_DISKS: Duration = Duration::from_secs(100);
/// Bytes. No process has more than two things to say.
const LONGEST_REPORT: usize = 64;
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

/// All that was said.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Reported {
    /// Nobody can say any more.
    pub(crate) complete: bool,
    /// A child of this process.
    pub(crate) started: Option<i32>,
    /// The number of the error with which the program was not executed.
    pub(crate) failed: Option<i32>,
    /// The number of an error before that.
    pub(crate) refused: Option<i32>,
}

impl Reported {
    /// Reads until nobody can say any more, or for as long as `patience`.
    pub(crate) fn read(mut pipe: PipeReader, patience: Duration) -> io::Result<Self> {
        let begun = Instant::now();
        let mut said = Vec::with_capacity(LONGEST_REPORT);
        let mut reported = Self::default();
        while said.len() < LONGEST_REPORT
            && readable(&pipe, patience.saturating_sub(begun.elapsed()))?
        {
            let mut buffer = [0; LONGEST_REPORT];
            let room = LONGEST_REPORT - said.len();
            let count = pipe.read(&mut buffer[..room])?;
            if count == 0 {
                reported.complete = true;
                break;
            }
            said.extend_from_slice(&buffer[..count]);
        }
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

    /// What is to be done about a start of which the end was not reported: the container, or something it waits for, holds
    /// up the process between the fork and the program. Nobody will want it any more.
    pub(crate) fn give_up(&self, others: &[i32]) -> Outcome {
        for pid in self.started.iter().chain(others) {
            // One that has ended meanwhile is what was wanted.
            sys::kill(*pid, libc::SIGKILL).unwrap_or_default();
        }
        let words = "the command did not begin in time: is it stopped from inside the container?";
        Outcome::Failed(words.to_owned())
    }
}

/// Whether the pipe has something to read, or has ended, before the time is over.
fn readable(pipe: &PipeReader, patience: Duration) -> io::Result<bool> {
    let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut polled = [PollFd::new(pipe, PollFlags::IN)];
    let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&patience)))?;
    Ok(ready > 0)
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
        Reported::read(reader, PATIENCE)
    }

    fn sleeper() -> (std::process::Child, i32) {
        let child = std::process::Command::new("sleep").arg("1000").spawn();
        let child = child.unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        (child, pid)
    }

    #[test]
    fn a_pid_counts_when_it_is_a_child() {
        let (mut child, pid) = sleeper();
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
        let nothing = read(&[]).unwrap();
        assert!(nothing.complete);
        assert_eq!((nothing.started, nothing.failed), (None, None));
    }

    #[test]
    fn who_never_ends_its_report_is_not_waited_for_and_is_killed() {
        let (mut child, pid) = sleeper();
        let (reader, writer) = io::pipe().unwrap();
        Report::Started(pid).send(&writer).unwrap();
        let reported = Reported::read(reader, Duration::ZERO).unwrap();
        // It still could say more.
        drop(writer);
        assert_eq!((reported.complete, reported.started), (false, Some(pid)));
        assert!(matches!(reported.give_up(&[]), Outcome::Failed(_)));
        let ended = std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap());
        assert_eq!(ended, Some(libc::SIGKILL));
    }

    #[test]
    fn who_says_too_much_is_not_heard_out() {
        let (reader, writer) = io::pipe().unwrap();
        let failure = io::Error::from_raw_os_error(libc::ENOENT);
        for _ in 0..LONGEST_REPORT {
            Report::Failed(&failure).send(&writer).unwrap();
        }
        let reported = Reported::read(reader, PATIENCE).unwrap();
        assert!(!reported.complete && reported.failed == Some(libc::ENOENT));
    }
}
