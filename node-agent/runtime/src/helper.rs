//! The helper that creates a container: the only process that calls libcontainer, which forks, changes directory and
//! leaks on failure. What a helper achieved is left in a file, since its stdio is the container's.
//!
//! Invariants: a program is never executed without the filter the agent prepared for it; a filter that is missing or
//! unreadable fails the start, and only a file that says so leaves a container unconfined. Nothing of a helper is ever
//! in a pid namespace in which there may be other processes with more than the container's own privileges: libcontainer
//! makes the container outside of a shared one, and its process joins when it has given up all else.

use std::collections::HashMap;
use std::fs;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::launch::{self, Program, install};
use crate::shim::CONSOLE;
use crate::users::View;
use crate::{devices, privileges, seccomp, sys, users};

/// In a container's directory: what its configuration has no place for, as JSON.
pub(crate) const ORDERS: &str = "orders.json";
const RESULT: &str = "result";
const STATE: &str = "state";
/// libcontainer wants an id; the directory around its state is already unique.
const ID: &str = "c";

/// What is in [`ORDERS`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// Bits in the kernel's order.
    pub(crate) capabilities: u64,
    /// Its place in the queue of the kernel's OOM killer.
    pub(crate) oom_score_adj: i32,
    /// The node's id of the user that the container begins as.
    pub(crate) user: u32,
    /// In a pod with users of its own.
    pub(crate) view: Option<View>,
}

/// What a helper achieved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The command is executing.
    Running(i32),
    /// The command itself is at fault.
    CannotExecute(String),
    /// Anything else.
    Failed(String),
}

impl Outcome {
    /// Leaves it to whoever asked; when they have given up, and the directory is gone, nobody is to run what nobody knows.
    pub(crate) fn leave(&self, dir: &Path) -> io::Result<()> {
        let written = self.write(dir);
        if let (Err(_), Self::Running(pid)) = (&written, self) {
            sys::kill(*pid, libc::SIGKILL)?;
        }
        written
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        let (tag, text) = match self {
            Self::Running(pid) => ('R', pid.to_string()),
            Self::CannotExecute(cause) => ('X', cause.clone()),
            Self::Failed(cause) => ('F', cause.clone()),
        };
        fs::write(dir.join(RESULT), format!("{tag}{text}"))
    }

    /// Reads what a helper that has ended left behind.
    pub(crate) fn read(dir: &Path) -> Self {
        let Ok(content) = fs::read_to_string(dir.join(RESULT)) else {
            return Self::Failed("the helper process ended without a result".to_owned());
        };
        match content.split_at_checked(1) {
            Some(("R", pid)) => match pid.parse() {
                Ok(pid) => Self::Running(pid),
                Err(_) => Self::Failed(format!("the helper process left {content:?}")),
            },
            Some(("X", cause)) => Self::CannotExecute(cause.to_owned()),
            Some(("F", cause)) => Self::Failed(cause.to_owned()),
            _ => Self::Failed(format!("the helper process left {content:?}")),
        }
    }
}

/// Executes the program under its filters, and reports through a pipe when it cannot: the pipe closes by itself when
/// the program executes.
#[derive(Clone)]
struct Confined {
    filters: Vec<seccomp::Program>,
    report: Arc<PipeWriter>,
    late: Option<Late>,
}

/// What a container in a shared pid namespace does itself, which others can see all that happens in.
#[derive(Clone)]
struct Late {
    pid_namespace: Arc<OwnedFd>,
    capabilities: CapabilitySet,
}

impl Confined {
    fn attempt(&self, spec: &Spec) -> io::Error {
        let process = spec.process().as_ref();
        let args = process
            .and_then(|process| process.args().clone())
            .unwrap_or_default();
        let env = process
            .and_then(|process| process.env().clone())
            .unwrap_or_default();
        let program = match Program::new(&args, &env) {
            Ok(program) => program,
            Err(error) => return error,
        };
        sys::ignore_signal(libc::SIGPIPE, false);
        match &self.late {
            None => match install(&self.filters) {
                Ok(()) => program.execute(),
                Err(error) => error,
            },
            Some(late) => {
                let terminal = process.and_then(|process| process.terminal()) == Some(true);
                self.join_and_execute(late, &program, terminal)
            }
        }
    }

    /// libcontainer has left the capabilities that joining needs.
    fn join_and_execute(&self, late: &Late, program: &Program, terminal: bool) -> io::Error {
        let prepared = || -> io::Result<()> {
            rustix::thread::move_into_link_name_space(late.pid_namespace.as_fd(), None)?;
            if terminal {
                // It comes to belong to the process that remains. Giving it up hangs up on whoever does.
                sys::ignore_signal(libc::SIGHUP, true);
                sys::give_up_terminal()?;
            }
            privileges::bound_capabilities(late.capabilities)?;
            privileges::hold_capabilities(late.capabilities)
        };
        match prepared() {
            Ok(()) => launch::launch(program, &self.filters, terminal, &self.report),
            Err(error) => error,
        }
    }
}

impl Executor for Confined {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let error = self.attempt(spec);
        if let Err(error) = launch::Report::Failed(&error).send(&self.report) {
            return Err(ExecutorError::Other(error.to_string()));
        }
        Err(ExecutorError::Execution(Box::new(error)))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // All is taken from the specification, in its order and with its repetitions.
        Ok(())
    }
}

/// Creates and starts the container in `dir`. The namespaces are those of [`crate::namespaces::join`].
pub(crate) fn create(dir: &Path, namespaces: Vec<OwnedFd>) -> io::Result<()> {
    let outcome = try_create(dir, namespaces);
    outcome
        .unwrap_or_else(|error| Outcome::Failed(error.to_string()))
        .leave(dir)
}

fn try_create(dir: &Path, namespaces: Vec<OwnedFd>) -> io::Result<Outcome> {
    launch::set_container_umask();
    let filters = seccomp::load(dir)?;
    let orders: Orders = serde_json::from_slice(&fs::read(dir.join(ORDERS))?)?;
    privileges::set_oom_score_adj(orders.oom_score_adj)?;
    sys::new_session_keyring();
    sys::give_stdio(orders.user)?;
    let pid_namespace = crate::namespaces::join(namespaces)?;
    let late = match &orders.view {
        Some(view) => {
            users::enter(dir, view, pid_namespace.as_ref())?;
            // libcontainer joins it: what it does is the host's root's in the eyes of the pod's users, who cannot attach.
            None
        }
        None => pid_namespace.map(|pid_namespace| Late {
            pid_namespace: Arc::new(pid_namespace),
            capabilities: CapabilitySet::from_bits_retain(orders.capabilities),
        }),
    };
    let patience = match &late {
        None => launch::PATIENCE_WITH_DISKS,
        Some(_) => launch::PATIENCE,
    };
    let (failures, report) = io::pipe()?;
    let executor = Confined {
        filters,
        report: Arc::new(report),
        late,
    };
    let console = dir.join(CONSOLE);
    let has_console = console.exists();
    // The root path is made canonical by libcontainer, so it must exist.
    let state = dir.join(STATE);
    fs::create_dir_all(&state)?;
    let built = build(dir, executor, has_console.then_some(console), state);
    // Our copy of the pipe's write end went with the builder. A container that could not be started may still have its
    // own, and wait: there is no more to come then.
    let patience = if built.is_ok() {
        patience
    } else {
        Duration::ZERO
    };
    let reported = launch::Reported::read(failures, patience)?;
    Ok(match (built, reported) {
        (Ok(pid), reported) if !reported.complete => reported.give_up(&[pid]),
        // The cause may have come through the pipe too, more precisely.
        (
            _,
            launch::Reported {
                failed: Some(code), ..
            },
        ) => Outcome::CannotExecute(cause(code)),
        (Err(error), _) => Outcome::Failed(chain(&error)),
        (
            Ok(_),
            launch::Reported {
                started: Some(pid), ..
            },
        ) => Outcome::Running(pid),
        (Ok(pid), _) => Outcome::Running(pid),
    })
}

fn build(
    dir: &Path,
    executor: Confined,
    console: Option<PathBuf>,
    state: PathBuf,
) -> Result<i32, LibcontainerError> {
    let detached = console.is_some();
    let mut container = ContainerBuilder::new(ID.to_owned(), SyscallType::default())
        .with_executor(executor)
        .with_console_socket(console)
        .with_root_path(state)?
        .as_init(dir)
        .with_systemd(false)
        .with_detach(detached)
        .build()?;
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    devices::apply(dir).map_err(LibcontainerError::OtherIO)?;
    container.start()?;
    Ok(pid)
}

/// The words users know from a shell.
pub(crate) fn cause(code: i32) -> String {
    match code {
        libc::ENOENT => "no such file or directory".to_owned(),
        libc::EACCES => "permission denied".to_owned(),
        libc::ENOEXEC => "exec format error".to_owned(),
        code => io::Error::from_raw_os_error(code).to_string(),
    }
}

/// libcontainer's errors say little at the top and the cause at the bottom.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_will_hear_of_does_not_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let sleeper = || std::process::Command::new("sleep").arg("1000").spawn();
        let (mut known, mut unknown) = (sleeper().unwrap(), sleeper().unwrap());
        let running =
            |child: &std::process::Child| Outcome::Running(i32::try_from(child.id()).unwrap());
        running(&known).leave(dir.path()).unwrap();
        assert_eq!(Outcome::read(dir.path()), running(&known));
        let gone = dir.path().join("gone");
        running(&unknown).leave(&gone).unwrap_err();
        let ended = std::os::unix::process::ExitStatusExt::signal(&unknown.wait().unwrap());
        assert_eq!(ended, Some(libc::SIGKILL));
        assert!(known.try_wait().unwrap().is_none());
        known.kill().unwrap();
        known.wait().unwrap();
    }
}
