//! A process in a container at the local terminal, and how it ends.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::container;
use super::logs::pod_of;
use crate::client::{Cluster, Input, PIECE, Process, Said, Wanted};

/// Pieces of standard input on their way.
const QUEUE: usize = 4;

/// Which process, and what of the local terminal it gets.
#[derive(Debug, clap::Args)]
pub(crate) struct Place {
    /// POD or TYPE/NAME
    pod: String,
    /// Which container; the first when not given
    #[arg(long, short)]
    container: Option<String>,
    /// Pass standard input
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Be a terminal for it
    #[arg(long, short = 't')]
    tty: bool,
}

impl Place {
    /// The pod's name.
    pub(super) async fn pod(&self, cluster: &Cluster) -> Result<String> {
        pod_of(cluster, &self.pod).await
    }

    /// What is asked of the pod of this name.
    pub(super) async fn wanted(&self, cluster: &Cluster, pod: &str) -> Wanted {
        let place = (cluster.namespace.as_str(), pod);
        Wanted {
            container: container::meant(cluster, place, self.container.as_deref()).await,
            stdin: self.stdin,
            stderr: !self.tty,
            tty: self.tty,
        }
    }

    /// Joins the local terminal and the process until that ends. Its exit code is this program's.
    pub(super) async fn join(&self, process: Process) -> Result<ExitCode> {
        let raw = self.tty.then(RawTerminal::enter).transpose()?;
        let ended = self.converse(process).await;
        drop(raw);
        let code = exit_code(ended?)?;
        if code != 0 {
            eprintln!("command terminated with exit code {code}");
        }
        Ok(ExitCode::from(code))
    }

    /// Copies between the local terminal and the process until that ends.
    async fn converse(&self, mut process: Process) -> Result<Status> {
        if self.stdin {
            tokio::spawn(pass_stdin(process.input()));
        }
        if self.tty {
            tokio::spawn(pass_sizes(process.input()));
        }
        let (mut stdout, mut stderr) = (standard(io::stdout())?, standard(io::stderr())?);
        loop {
            let (to, bytes) = match process.next().await? {
                Said::Output(bytes) => (&mut stdout, bytes),
                Said::Error(bytes) => (&mut stderr, bytes),
                Said::Ended(status) => return Ok(*status),
            };
            to.write_all(&bytes).await?;
            to.flush().await?;
        }
    }
}

/// The local terminal in raw mode; restored when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let saved =
            tcgetattr(rustix::stdio::stdin()).context("-t needs a terminal on standard input")?;
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)
            .context("switching the terminal to raw mode")?;
        Ok(Self(saved))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0) {
            eprintln!("could not restore the terminal: {error}; run 'reset'");
        }
    }
}

/// What a process ended with, from the last word on its connection.
pub(super) fn exit_code(status: Status) -> Result<u8> {
    if status.status.as_deref() == Some("Success") {
        return Ok(0);
    }
    let mut causes = status
        .details
        .iter()
        .flat_map(|details| details.causes.iter().flatten());
    let code = causes
        .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .and_then(|cause| cause.message.as_deref()?.parse::<u8>().ok());
    let message = status.message;
    code.with_context(|| message.unwrap_or_else(|| "the command could not be run".to_owned()))
}

/// Passes standard input on, and its end.
async fn pass_stdin(input: Input) {
    let mut pieces = read_stdin();
    // What is left to say when the connection is lost is said by whoever reads from it.
    while let Some(piece) = pieces.recv().await {
        if input.send(&piece).await.is_err() {
            return;
        }
    }
    input.end().await.ok();
}

/// Standard input, read by a thread of its own: it may wait for a terminal when all else is over, and nobody waits for it.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (pieces, queue) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            if pieces.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    queue
}

/// Passes the size of the local terminal on, and what becomes of it.
async fn pass_sizes(input: Input) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdin())
            && input.resize(size.ws_col, size.ws_row).await.is_err()
        {
            return;
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

/// A standard stream for asynchronous use, on a descriptor of its own.
fn standard(stream: impl AsFd) -> Result<tokio::fs::File> {
    let descriptor = stream
        .as_fd()
        .try_clone_to_owned()
        .context("sharing a standard stream")?;
    Ok(tokio::fs::File::from_std(std::fs::File::from(descriptor)))
}
