//! End-to-end tests: real processes, real containers, real clients.
//!
//! A [`Cluster`] lives in a network namespace and a data directory of its own, so that several run side by side and
//! beside whatever else the machine does; everything it made goes with the value, also when a test fails. May import
//! anything; nothing imports it.

mod example;
mod fleet;
mod host;
mod images;
mod load;
pub mod policy_cases;
pub mod siege;
mod watching;
mod workload;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use example::{WEB, WEB_NODE_PORT};
pub use fleet::{Fleet, Machine, Pod};
pub use host::HOST_ADDRESS;
use host::Host;
pub use images::{Images, TOOLS, pack_program};
pub use load::{Interval, Load, LoadOptions, Message, Total};
pub use watching::follow;
pub use workload::{Workload, until};

/// How long anything in a test may take before it has failed.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// A cluster of one node.
pub struct Cluster {
    host: Host,
    directory: tempfile::TempDir,
    /// The data directory's name in there.
    data: &'static str,
    process: Option<Child>,
}

/// The name of a data directory that nobody wants another of.
const DATA: &str = "data";

/// The `gantry` binary of this build.
pub fn gantry() -> Result<PathBuf> {
    binary("gantry")
}

/// A program of this build.
fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the program's own file")?;
    // A test is target/PROFILE/deps/TEST, a benchmark target/PROFILE/BENCHMARK.
    let directories = own.ancestors().skip(1).take(2);
    let mut binaries = directories.map(|directory| directory.join(name));
    let binary = binaries.find(|binary| binary.is_file());
    binary.with_context(|| {
        format!(
            "{name} is missing near {}: run 'cargo build --workspace --bins' first, as 'make test' does",
            own.display()
        )
    })
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
        Self::start_with(&[])
    }

    /// As [`Cluster::start`], with further arguments of `gantry up`.
    pub fn start_with(arguments: &[&str]) -> Result<Self> {
        let mut cluster = Self::not_yet()?;
        cluster.up_with(arguments)?;
        Ok(cluster)
    }

    /// As [`Cluster::start`], with a data directory of this name.
    pub fn start_in(name: &'static str) -> Result<Self> {
        let mut cluster = Self::not_yet()?;
        cluster.data = name;
        let kubeconfig = cluster.data_dir().join("admin.kubeconfig");
        std::os::unix::fs::symlink(kubeconfig, cluster.kubeconfig())?;
        cluster.up()?;
        Ok(cluster)
    }

    /// A machine on which a cluster is yet to be started. Needs root.
    pub fn not_yet() -> Result<Self> {
        Ok(Self {
            host: Host::new()?,
            directory: tempfile::tempdir().context("making a data directory")?,
            data: DATA,
            process: None,
        })
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
        self.directory.path().join(self.data)
    }

    /// KUBECONFIG is a list, which a colon in a name divides: what has such a name has another.
    fn kubeconfig(&self) -> PathBuf {
        match self.data {
            DATA => self.data_dir().join("admin.kubeconfig"),
            _ => self.directory.path().join("kubeconfig"),
        }
    }

    /// Starts `gantry up` and waits until the node is Ready.
    pub fn up(&mut self) -> Result<()> {
        self.up_with(&[])
    }

    fn up_with(&mut self, arguments: &[&str]) -> Result<()> {
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
            .args(arguments)
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

    /// The server's process, which is the agent's too.
    pub fn pid(&self) -> Result<u32> {
        let process = self.process.as_ref();
        Ok(process.context("the cluster is not running")?.id())
    }

    /// The memory that the process has, in bytes.
    pub fn resident(&self) -> Result<usize> {
        let path = format!("/proc/{}/status", self.pid()?);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kilobytes: usize = kilobytes.context("VmRSS")?.trim().parse()?;
        Ok(kilobytes << 10)
    }

    /// A client of the API for a future that runs on the cluster's host, with as many threads as it likes.
    pub fn block_on<T: Send, F: Future<Output = Result<T>>>(
        &self,
        make: impl FnOnce(kube::Client) -> F + Send,
    ) -> Result<T> {
        self.host.block_on(|| async {
            let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig())?;
            let options = kube::config::KubeConfigOptions::default();
            let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            config.read_timeout = Some(Duration::from_secs(10));
            make(kube::Client::try_from(config)?).await
        })
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

    /// Imports every image.
    pub fn import_demo_images(&self) -> Result<()> {
        Images::pack()?.import(|program| self.host.command(program), &self.data_dir())
    }
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
