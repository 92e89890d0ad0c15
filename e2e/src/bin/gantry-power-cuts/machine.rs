//! The emulated machine: started, listened to, and killed.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running machine. It is killed when it is dropped, as it is by a power cut: with no warning.
pub(crate) struct Machine {
    emulator: Child,
    lines: Receiver<String>,
    /// The last lines, for when it does not do what it should.
    heard: VecDeque<String>,
}

/// What the machine is made of.
pub(crate) struct Parts<'a> {
    /// A directory of `e2e/vm/base.sh`.
    pub(crate) base: &'a Path,
    /// A file system with what the machine runs.
    pub(crate) payload: &'a Path,
    /// The socket of its disk.
    pub(crate) disk: &'a Path,
    /// Where its kernel's messages go.
    pub(crate) console: &'a Path,
    /// Where its API is on this machine.
    pub(crate) api_port: u16,
}

const HEARD: usize = 60;

impl Machine {
    pub(crate) fn start(parts: &Parts<'_>) -> Result<Self> {
        let drive = |file: &str, more: &str| format!("file={file},format=raw,if=virtio{more}");
        // It ends with this process, however that ends.
        let mut emulator = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-accel", "tcg", "-smp", "1", "-m", "1536"])
            .args(["-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(parts.base.join("kernel"))
            .arg("-initrd")
            .arg(parts.base.join("initrd"))
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 run=/usr/local/sbin/bare-init",
            ])
            .arg("-drive")
            .arg(drive(
                &parts.base.join("disk.img").display().to_string(),
                ",snapshot=on",
            ))
            .arg("-drive")
            .arg(drive(&parts.payload.display().to_string(), ",readonly=on"))
            .arg("-drive")
            .arg(drive(
                &format!("nbd+unix:///?socket={}", parts.disk.display()),
                ",cache=writeback",
            ))
            .arg("-nic")
            .arg(format!(
                "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{}-10.0.2.15:6443",
                parts.api_port
            ))
            .arg("-serial")
            .arg(format!("file:{}", parts.console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting qemu-system-x86_64")?;
        let output = emulator.stdout.take().context("the machine's report")?;
        let (sender, lines) = mpsc::channel();
        // Ends with the emulator, whose output it reads.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let Ok(line) = line else { return };
                if sender.send(line.trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            emulator,
            lines,
            heard: VecDeque::new(),
        })
    }

    /// The next line of its report; none when it says nothing for so long.
    pub(crate) fn line(&mut self, within: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(within) {
            Ok(line) => {
                // Its secrets are not for a log.
                if line.starts_with("kubeconfig ") {
                    return Ok(Some(line));
                }
                if self.heard.len() == HEARD {
                    self.heard.pop_front();
                }
                self.heard.push_back(line.clone());
                Ok(Some(line))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the machine ended by itself:\n{}", self.said())
            }
        }
    }

    /// What it said last.
    pub(crate) fn said(&self) -> String {
        self.heard
            .iter()
            .map(|line| format!("  {line}\n"))
            .collect()
    }

    /// Hands every line to `hear` until that answers with something, or the time is over.
    pub(crate) fn listen<T>(
        &mut self,
        within: Duration,
        mut hear: impl FnMut(&str) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if let Some(line) = self.line(left)?
                && let Some(found) = hear(&line)?
            {
                return Ok(Some(found));
            }
        }
    }

    /// Takes its power, with no warning.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.emulator.kill()?;
        self.emulator.wait().map(drop)
    }

    /// Takes its power, if it still has any; the lines that were on their way.
    pub(crate) fn cut(mut self) -> io::Result<Vec<String>> {
        self.kill()?;
        Ok(self.lines.iter().collect())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Gone already, or killed now.
        if self.emulator.kill().is_ok() {
            self.emulator.wait().ok();
        }
    }
}
