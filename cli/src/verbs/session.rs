//! A process in a container at the local terminal, and how it ends.

use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use futures::SinkExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{AttachParams, AttachedProcess, TerminalSize};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::logs::pod_of;
use crate::client::Cluster;

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

    pub(super) fn parameters(&self) -> AttachParams {
        AttachParams {
            container: self.container.clone(),
            stdin: self.stdin,
            stdout: true,
            stderr: !self.tty,
            tty: self.tty,
            ..AttachParams::default()
        }
    }

    /// Joins the local terminal and the process until that ends. Its exit code is this program's.
    pub(super) async fn join(&self, mut process: AttachedProcess) -> Result<ExitCode> {
        let raw = self.tty.then(RawTerminal::enter).transpose()?;
        let status = process
            .take_status()
            .context("the server does not report exit codes")?;
        copy(&mut process, self.tty).await?;
        let status = status.await;
        drop(raw);
        let code = exit_code(status)?;
        if code != 0 {
            eprintln!("command terminated with exit code {code}");
        }
        Ok(ExitCode::from(code))
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
pub(super) fn exit_code(status: Option<Status>) -> Result<u8> {
    let Some(status) = status else {
        bail!("the connection to the container was lost");
    };
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

/// Copies between the local terminal and the process until its output ends.
async fn copy(process: &mut AttachedProcess, tty: bool) -> Result<()> {
    if let Some(mut stdin) = process.stdin() {
        let mut input = standard(std::io::stdin())?;
        tokio::spawn(async move {
            // Ends with either side; what is left to say is said by the exit status.
            if tokio::io::copy(&mut input, &mut stdin).await.is_ok() {
                stdin.shutdown().await.ok();
            }
        });
    }
    if tty && let Some(mut sizes) = process.terminal_size() {
        let mut changes = signal(SignalKind::window_change())?;
        tokio::spawn(async move {
            loop {
                if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
                    let size = TerminalSize {
                        width: size.ws_col,
                        height: size.ws_row,
                    };
                    if sizes.send(size).await.is_err() {
                        break;
                    }
                }
                if changes.recv().await.is_none() {
                    break;
                }
            }
        });
    }
    let stderr = process.stderr();
    let errors = async {
        if let Some(mut stderr) = stderr {
            pump(&mut stderr, &mut standard(std::io::stderr())?).await?;
        }
        anyhow::Ok(())
    };
    let stdout = process.stdout();
    let output = async {
        if let Some(mut stdout) = stdout {
            pump(&mut stdout, &mut standard(std::io::stdout())?).await?;
        }
        anyhow::Ok(())
    };
    futures::future::try_join(output, errors).await?;
    Ok(())
}

/// A standard stream for asynchronous use, on a descriptor of its own.
fn standard(stream: impl AsFd) -> Result<tokio::fs::File> {
    let descriptor = stream
        .as_fd()
        .try_clone_to_owned()
        .context("sharing a standard stream")?;
    Ok(tokio::fs::File::from_std(std::fs::File::from(descriptor)))
}

/// Copies and flushes each piece as it arrives.
async fn pump(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}
