//! Short-lived helpers of the shim, the only processes that call libcontainer: create a container, run a command in
//! one, hold a shared pid namespace. What they achieved is left in a file, since their stdio is the container's.
//!
//! Invariant: a program is never executed without the filter the agent prepared for it. A filter that is missing or
//! unreadable fails the start; only a file that says so leaves a container unconfined.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use rustix::thread::UnshareFlags;

use crate::seccomp::{self, Program};
use crate::shim::CONSOLE;
use crate::sys;

const RESULT: &str = "result";
/// Where a container's specification names no other.
const CONTAINER_UMASK: u32 = 0o022;
const STATE: &str = "state";
/// libcontainer wants an id; the directory around its state is already unique.
const ID: &str = "c";

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
    filters: Vec<Program>,
    report: Arc<PipeWriter>,
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
        let path = env
            .iter()
            .find_map(|entry| entry.strip_prefix("PATH="))
            .unwrap_or_default();
        let Some(command) = args.first() else {
            return io::Error::from_raw_os_error(libc::ENOENT);
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
        };
        // libcontainer adds what is missing (HOME) to the process's own environment.
        let environment: Vec<String> = with_home(env);
        let (Ok(args), Ok(environment), Ok(candidates)) =
            (strings(&args), strings(&environment), strings(&candidates))
        else {
            return io::Error::from_raw_os_error(libc::EINVAL);
        };
        sys::default_sigpipe();
        for filter in &self.filters {
            if let Err(error) = seccomp::install(filter) {
                return error;
            }
        }
        let mut cause = io::Error::from_raw_os_error(libc::ENOENT);
        for candidate in &candidates {
            let error = sys::execve(candidate, &args, &environment);
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

fn with_home(mut env: Vec<String>) -> Vec<String> {
    if !env.iter().any(|entry| entry.starts_with("HOME="))
        && let Some(home) = std::env::var_os("HOME")
    {
        env.push(format!("HOME={}", home.to_string_lossy()));
    }
    env
}

impl Executor for Confined {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let error = self.attempt(spec);
        let code = error.raw_os_error().unwrap_or(libc::EPERM);
        if let Err(error) = (&*self.report).write_all(&code.to_ne_bytes()) {
            return Err(ExecutorError::Other(error.to_string()));
        }
        Err(ExecutorError::Execution(Box::new(error)))
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // Everything else is taken from the specification, in its order and with its repetitions.
        if let Some(home) = envs.get("HOME") {
            #[expect(
                unsafe_code,
                clippy::disallowed_methods,
                reason = "the forked init has one thread"
            )]
            // SAFETY: this process was forked from a single-threaded helper and starts no threads.
            unsafe {
                std::env::set_var("HOME", home);
            }
        }
        Ok(())
    }
}

/// Creates and starts the container in `dir`.
pub(crate) fn create(dir: &Path) -> io::Result<()> {
    let outcome = run(dir, dir, |builder, console| {
        let mut container = builder
            .as_init(dir)
            .with_systemd(false)
            .with_detach(console)
            .build()?;
        let pid = container.pid().map_or(0, |pid| pid.as_raw());
        container.start()?;
        Ok(pid)
    });
    outcome.write(dir)
}

/// Runs the command in `dir` in the container whose directory is given.
pub(crate) fn exec(container_dir: &Path, dir: &Path) -> io::Result<()> {
    let outcome = run(container_dir, dir, |builder, console| {
        let pid = builder
            .as_tenant()
            .with_process(Some(dir.join("process.json")))
            .with_detach(console)
            .build()?;
        Ok(pid.as_raw())
    });
    outcome.write(dir)
}

type Built = Result<i32, libcontainer::error::LibcontainerError>;

fn run(
    container_dir: &Path,
    dir: &Path,
    build: impl FnOnce(ContainerBuilder, bool) -> Built,
) -> Outcome {
    match try_run(container_dir, dir, build) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn try_run(
    container_dir: &Path,
    dir: &Path,
    build: impl FnOnce(ContainerBuilder, bool) -> Built,
) -> io::Result<Outcome> {
    // What the container creates has the modes that programs expect, and so have mount points in its file system; the
    // agent keeps its own files to itself.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(CONTAINER_UMASK));
    let filters = seccomp::load(container_dir)?;
    let (mut failures, report) = io::pipe()?;
    let executor = Confined {
        filters,
        report: Arc::new(report),
    };
    let console = dir.join(CONSOLE);
    let has_console = console.exists();
    // The root path is made canonical by libcontainer, so it must exist.
    let state = container_dir.join(STATE);
    fs::create_dir_all(&state)?;
    let builder = ContainerBuilder::new(ID.to_owned(), SyscallType::default())
        .with_executor(executor)
        .with_console_socket(has_console.then_some(console))
        .with_root_path(state)
        .map_err(io::Error::other)?;
    // The builder, and with it our copy of the pipe's write end, is gone when this returns.
    let built = build(builder, has_console);
    let pid = match built {
        Ok(pid) => pid,
        Err(error) => {
            // The cause may have come through the pipe too, more precisely: an exec's failure is one of build.
            let mut code = [0u8; 4];
            return Ok(match read_now(&mut failures, &mut code)? {
                true => Outcome::CannotExecute(io_cause(i32::from_ne_bytes(code))),
                false => Outcome::Failed(chain(&error)),
            });
        }
    };
    let mut code = [0u8; 4];
    let mut filled = 0;
    while filled < code.len() {
        match failures.read(&mut code[filled..])? {
            0 => return Ok(Outcome::Running(pid)),
            count => filled += count,
        }
    }
    Ok(Outcome::CannotExecute(io_cause(i32::from_ne_bytes(code))))
}

/// Reads a whole code if it is there already.
fn read_now(pipe: &mut io::PipeReader, code: &mut [u8; 4]) -> io::Result<bool> {
    rustix::io::ioctl_fionbio(pipe.as_fd(), true)?;
    match pipe.read_exact(code) {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The words users know from a shell.
fn io_cause(code: i32) -> String {
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

/// Creates a pid namespace and leaves a process in it as its pid 1; writes that one's pid to `file`.
pub(crate) fn start_pause(file: &Path) -> io::Result<()> {
    sys::unshare(UnshareFlags::NEWPID)?;
    let pause = Command::new(PathBuf::from("/proc/self/exe"))
        .arg(crate::PAUSE)
        .spawn()?;
    fs::write(file, pause.id().to_string())
}

/// Is pid 1 of a pod's shared pid namespace: reaps, until it is killed.
pub(crate) fn pause() -> io::Result<()> {
    let signals = sys::child_signals()?;
    rustix::io::ioctl_fionbio(signals.as_fd(), false)?;
    loop {
        loop {
            match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) | Err(rustix::io::Errno::CHILD) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut drained = [0u8; 128];
        match rustix::io::read(&signals, &mut drained) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
