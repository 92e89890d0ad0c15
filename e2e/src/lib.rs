//! End-to-end tests: real processes, real containers, real clients.
//!
//! A [`Cluster`] lives in a network namespace and a data directory of its own, so that several run side by side and
//! beside whatever else the machine does; everything it made goes with the value, also when a test fails. May import
//! anything; nothing imports it.

mod host;
pub mod policy_cases;
mod servers;
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use host::HOST_ADDRESS;
use host::Host;
pub use servers::{Machine, Servers};
pub use workload::{Workload, until};

/// How long anything in a test may take before it has failed.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// A cluster of one node.
pub struct Cluster {
    host: Host,
    directory: tempfile::TempDir,
    process: Option<Child>,
}

/// The `gantry` binary of this build.
pub fn gantry() -> Result<PathBuf> {
    let test = std::env::current_exe().context("finding the test's own file")?;
    // target/PROFILE/deps/TEST
    let directory = test
        .parent()
        .and_then(Path::parent)
        .context("the test is not in a target directory")?;
    let binary = directory.join("gantry");
    ensure!(
        binary.exists(),
        "{} is missing: run 'cargo build --workspace --bins' first, as 'make test' does",
        binary.display()
    );
    Ok(binary)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    check(command, output)
}

fn check(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{command:?} failed with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Repeats a check until it holds, or until the deadline has passed; the last error tells why.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waiting for: {what}")));
            }
            // Every attempt runs a process, which paces the loop.
            Err(_) => {}
        }
    }
}

impl Cluster {
    /// Starts a cluster and waits until its node is Ready. Needs root.
    pub fn start() -> Result<Self> {
        let mut cluster = Self {
            host: Host::new()?,
            directory: tempfile::tempdir().context("making a data directory")?,
            process: None,
        };
        cluster.up()?;
        Ok(cluster)
    }

    /// A command that runs on the cluster's host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.host.command(program);
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.directory.path());
        command
    }

    /// Where the cluster keeps its state.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("admin.kubeconfig")
    }

    /// Starts `gantry up` and waits until the node is Ready.
    pub fn up(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .context("opening the log")?;
        // nsenter replaces itself, so that the child is gantry.
        let process = self
            .command(gantry()?)
            .args(["up", "--foreground", "--node-name", "node-1", "--data-dir"])
            .arg(self.data_dir())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting gantry")?;
        self.process = Some(process);
        eventually("the node to be Ready", || {
            if let Some(process) = &mut self.process
                && let Some(status) = process.try_wait()?
            {
                bail!("gantry ended with {status}:\n{}", self.log());
            }
            let ready = self.kubectl(&[
                "get",
                "node",
                "node-1",
                "-o",
                "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
            ])?;
            ensure!(ready == "True", "Ready is {ready:?}:\n{}", self.log());
            Ok(())
        })
    }

    /// The end of the log, for messages.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Ends the process as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill().context("killing gantry")?;
            process.wait().context("waiting for gantry's end")?;
        }
        Ok(())
    }

    /// Runs kubectl and returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(self.command("kubectl").args(arguments))
    }

    /// Runs the gantry client and returns what it prints.
    pub fn gantry(&self, arguments: &[&str]) -> Result<String> {
        run(self.command(gantry()?).args(arguments))
    }

    /// Runs a program on the cluster's host and returns what it prints.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments))
    }

    /// Runs a command that must fail; returns its exit code and what it says.
    pub fn fails(&self, program: &Path, arguments: &[&str]) -> Result<(i32, String)> {
        let output = self.command(program).args(arguments).output()?;
        ensure!(
            !output.status.success(),
            "{program:?} {arguments:?} succeeded"
        );
        Ok((
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }

    /// GETs a URL from the cluster's host.
    pub fn curl(&self, url: &str) -> Result<String> {
        run(self.command("curl").args(["-fsS", "--max-time", "5", url]))
    }

    /// Imports the demo images v1 and v2.
    pub fn import_demo_images(&self) -> Result<()> {
        import_demo_images(|program| self.host.command(program), &self.data_dir())
    }
}

/// Imports the demo images v1 and v2 into the node of a data directory, with commands that run there.
pub(crate) fn import_demo_images(
    command: impl Fn(&Path) -> Command,
    data_dir: &Path,
) -> Result<()> {
    let directory = tempfile::tempdir().context("making a directory for tarballs")?;
    for version in ["v1", "v2"] {
        let path = directory.path().join(format!("web-{version}.tar"));
        let file = std::fs::File::create(&path).context("creating a tarball")?;
        gantry_demo::pack(version, file).context("packing the demo image")?;
        run(command(&gantry()?)
            .args(["image", "import", "--data-dir"])
            .args([data_dir, &path]))?;
    }
    Ok(())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the cluster's log ends:\n{}", self.log());
        }
        let mut leave = || -> Result<()> {
            let data_dir = self.data_dir();
            if data_dir.exists() {
                run(self
                    .command(gantry()?)
                    .args(["down", "--purge", "--data-dir"])
                    .arg(&data_dir)
                    .stdin(Stdio::null()))?;
            }
            if let Some(mut process) = self.process.take() {
                process.wait()?;
            }
            Ok(())
        };
        if let Err(error) = leave() {
            eprintln!("cleaning up: {error:#}");
            self.kill().ok();
        }
    }
}
