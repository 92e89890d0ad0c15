//! A long-lived `nft` for small transactions.
//!
//! Starting a program for each costs 2-3 ms, and one that deleted something waits for the kernel's deferred cleaning
//! (8-20 ms) before it ends. `nft -i` reads a command line from a pipe, applies it as one transaction, and goes on:
//! 0.2 ms. After each transaction it is asked for something harmless, whose answer says that the transaction is over;
//! whatever it printed before that is a complaint.

use std::io::{self, PipeReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A command that touches nothing, and how its only line of output begins.
const MARKER: &str = "describe inet_service";
const MARKED: &str = "datatype inet_service";
/// Longer scripts are better off with a process of their own.
pub(crate) const LONGEST_SCRIPT: usize = 32 * 1024;
/// The program remembers every line it was given: after so many it is replaced.
const MOST_TRANSACTIONS: u32 = 2000;
/// Nothing takes nearly that long.
const DEADLINE: Duration = Duration::from_secs(5);

/// A running `nft -i`.
pub(crate) struct Session {
    child: Child,
    answers: PipeReader,
    transactions: u32,
}

/// Why a transaction was not applied.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// nft's words; nothing was changed.
    Refused(String),
    /// The session is of no use any more; whether the transaction was applied is unknown.
    Broken(io::Error),
}

impl Session {
    pub(crate) fn start(program: &Path) -> io::Result<Self> {
        let (answers, output) = io::pipe()?;
        let child = Command::new(program)
            .arg("-i")
            // Where the program would otherwise leave a history of what it was told.
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            // One pipe for both keeps complaints before the marker.
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Self {
            child,
            answers,
            transactions: 0,
        })
    }

    /// Whether it has done its share.
    pub(crate) fn is_worn(&self) -> bool {
        self.transactions >= MOST_TRANSACTIONS
    }

    /// Applies a script, whose lines become one transaction.
    pub(crate) fn apply(&mut self, script: &str) -> Result<(), Refusal> {
        self.transactions += 1;
        let line = script.trim_end().replace('\n', "; ");
        let words = self
            .exchange(&format!("{line}\n{MARKER}\n"))
            .map_err(Refusal::Broken)?;
        if words.is_empty() {
            Ok(())
        } else {
            Err(Refusal::Refused(words))
        }
    }

    fn exchange(&mut self, lines: &str) -> io::Result<String> {
        let stdin = self.child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(lines.as_bytes())?;
        stdin.flush()?;
        let end = Instant::now() + DEADLINE;
        let mut output = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let wait = Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let wait = Timespec::try_from(left).unwrap_or(wait);
            let mut readable = [PollFd::new(&self.answers, PollFlags::IN)];
            if poll(&mut readable, Some(&wait))? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "nft does not answer",
                ));
            }
            let length = self.answers.read(&mut buffer)?;
            if length == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "nft ended"));
            }
            output.extend_from_slice(&buffer[..length]);
            if let Some(words) = before_marker(&output) {
                return Ok(words);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Killed rather than asked to end: what was answered is in the kernel.
        if let Err(error) = self
            .child
            .kill()
            .and_then(|()| self.child.wait().map(|_| ()))
        {
            tracing::warn!(%error, "ending an nft session");
        }
    }
}

/// What was printed before the marker's line, once that is there as a whole.
fn before_marker(output: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(output).ok()?;
    let start = match text.find(MARKED) {
        Some(0) => 0,
        _ => text.find(&format!("\n{MARKED}"))? + 1,
    };
    text[start..]
        .contains('\n')
        .then(|| text[..start].trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that prints and does for each line what the script says, in `$line`.
    fn pretend(dir: &tempfile::TempDir, each_line: &str) -> Session {
        let program = dir.path().join("nft");
        fs::write(
            &program,
            format!("#!/bin/sh\nwhile read -r line; do\n{each_line}\ndone\n"),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Session::start(&program).unwrap()
    }

    #[test]
    fn complaints_come_before_the_marker() {
        assert_eq!(before_marker(b""), None);
        assert_eq!(
            before_marker(b"datatype inet_service (internet"),
            None,
            "half a line"
        );
        assert_eq!(
            before_marker(b"datatype inet_service (x)\n"),
            Some(String::new())
        );
        assert_eq!(
            before_marker(b"Error: no\ndatatype inet_service (x)\n"),
            Some("Error: no".to_owned())
        );
    }

    #[test]
    fn a_script_is_one_line_and_a_complaint_is_a_refusal() {
        let dir = tempfile::tempdir().unwrap();
        let echo = "case $line in describe*) echo 'datatype inet_service (x)';; *bad*) echo \"Error: $line\" >&2;; esac";
        let mut session = pretend(&dir, echo);
        session.apply("add a\nadd b\n").unwrap();
        match session.apply("add a\nadd bad\n") {
            Err(Refusal::Refused(words)) => assert_eq!(words, "Error: add a; add bad"),
            other => panic!("{other:?}"),
        }
        session.apply("add c\n").unwrap();
    }

    #[test]
    fn a_session_that_ended_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let mut session = pretend(&dir, "exit 1");
        assert!(matches!(session.apply("add a\n"), Err(Refusal::Broken(_))));
    }
}
