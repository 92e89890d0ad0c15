//! A process per data directory: who holds it, and how to start one in the background.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

use super::place;

/// How often a process that is to end is looked at.
const POLL: Duration = Duration::from_millis(20);

/// The lock on a data directory; held for as long as the process lives, released by the kernel when it dies.
pub(crate) struct Lock {
    _file: File,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("gantry.pid")
}

impl Lock {
    /// Takes the data directory for this process, or says who has it.
    pub(crate) fn acquire(data_dir: &Path) -> Result<Self> {
        place::prepare(data_dir)?;
        if let Some(forbidden) = place::forbidden(data_dir) {
            tracing::warn!(
                data_dir = %data_dir.display(),
                "the data directory is on a file system that is mounted {forbidden}: that holds in emptyDir volumes of pods too, though not in their root file systems"
            );
        }
        let path = path(data_dir);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| {
                format!(
                    "the data directory {} is not writable; name another with --data-dir",
                    data_dir.display()
                )
            })?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            file.read_to_string(&mut pid).ok();
            bail!(
                "gantry already runs from {} (pid {}); stop it with 'gantry down' or use another --data-dir",
                data_dir.display(),
                pid.trim()
            );
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// The process that holds a data directory.
pub(crate) fn holder(data_dir: &Path) -> Option<Pid> {
    let mut file = File::open(path(data_dir)).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut pid = String::new();
    file.read_to_string(&mut pid).ok()?;
    Pid::from_raw(pid.trim().parse().ok()?)
}

/// Ends the process that holds a data directory, if any: asks it to, and kills it should it not end within a time limit.
pub(crate) async fn stop(data_dir: &Path, within: Duration) -> Result<()> {
    let Some(pid) = holder(data_dir) else {
        return Ok(());
    };
    for signal in [Signal::TERM, Signal::KILL] {
        match kill_process(pid, signal) {
            // It has ended this moment.
            Err(rustix::io::Errno::SRCH) => {}
            other => other
                .with_context(|| format!("asking gantry (pid {}) to stop", pid.as_raw_nonzero()))?,
        }
        let released = async {
            let mut ticks = tokio::time::interval(POLL);
            while holder(data_dir).is_some() {
                ticks.tick().await;
            }
        };
        if tokio::time::timeout(within, released).await.is_ok() {
            return Ok(());
        }
    }
    bail!("gantry (pid {}) cannot be ended", pid.as_raw_nonzero())
}

/// Opens the log of a process, which may say what only its owner should read.
pub(crate) fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("opening the log {}", path.display()))
}

/// Starts this binary in a session of its own, with its output in a log file.
pub(crate) fn spawn(arguments: &[String], stdin: Stdio, log: &Path) -> Result<Child> {
    let output = open_log(log)?;
    let mut command = Command::new(std::env::current_exe().context("finding this program's file")?);
    command
        .args(arguments)
        .stdin(stdin)
        .stdout(output.try_clone().context("sharing the log")?)
        .stderr(output)
        .process_group(0);
    command.spawn().context("starting gantry in the background")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_holder() {
        let base = tempfile::tempdir().expect("a directory");
        let directory = base.path().join("data");
        let lock = Lock::acquire(&directory).expect("free");
        let error = Lock::acquire(&directory).err().expect("taken").to_string();
        assert!(
            error.contains("already runs") && error.contains(&std::process::id().to_string()),
            "{error}"
        );
        assert_eq!(
            holder(&directory)
                .map(Pid::as_raw_nonzero)
                .map(|pid| pid.get() as u32),
            Some(std::process::id())
        );
        drop(lock);
        assert_eq!(holder(&directory), None);
    }
}
