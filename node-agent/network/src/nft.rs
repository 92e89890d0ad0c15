//! Transactions on nftables: one script, given to `nft` on its standard input, is applied as a whole or not at all.

use std::path::PathBuf;

use crate::NetworkError;
use crate::commands;
use crate::nft_session::Session;

/// How much of nft's complaint is worth repeating: it quotes the whole failing line.
const LONGEST_COMPLAINT: usize = 400;

/// The `nft` program.
#[derive(Clone, Debug)]
pub(crate) struct Nft {
    program: PathBuf,
}

impl Nft {
    /// Finds the program.
    pub(crate) fn find() -> Result<Self, NetworkError> {
        let program = commands::find("nft").ok_or_else(|| {
            NetworkError::Unsupported(
                "the program nft is missing: install the Debian package nftables (apt-get install nftables)".to_owned(),
            )
        })?;
        Ok(Self { program })
    }

    /// What the program says of its version, such as `v1.0.6`.
    pub(crate) fn version(&self) -> Result<String, NetworkError> {
        let words = self.run(&["--version"], "")?;
        let version = words.split_whitespace().nth(1);
        Ok(version.unwrap_or(words.trim()).to_owned())
    }

    /// Starts a program that stays, for many small transactions.
    pub(crate) fn session(&self) -> Result<Session, NetworkError> {
        Session::start(&self.program).map_err(|source| self.cannot_run(source))
    }

    fn cannot_run(&self, source: std::io::Error) -> NetworkError {
        NetworkError::Io {
            doing: format!("running {}", self.program.display()),
            source,
        }
    }

    /// Applies a script in one transaction.
    pub(crate) fn apply(&self, script: &str) -> Result<(), NetworkError> {
        self.run(&["-f", "-"], script).map(|_| ())
    }

    /// Applies a script that sets up a table. Should the kernel not know one of the expressions, says what it lacks.
    pub(crate) fn set_up(&self, script: &str) -> Result<(), NetworkError> {
        self.apply(script).map_err(|error| match error {
            NetworkError::Nft(words) if words.contains("Operation not permitted") => NetworkError::Unsupported(format!(
                "programming nftables was not permitted: Gantry's agent needs root (CAP_NET_ADMIN); nft says: {words}"
            )),
            NetworkError::Nft(words)
                if ["not supported", "No such file or directory"]
                    .iter()
                    .any(|lack| words.contains(lack)) =>
            {
                NetworkError::Unsupported(format!(
                    "the kernel lacks a part of nftables: load nf_tables, nft_chain_nat, nft_masq, nft_fib_ipv4, \
                     nft_numgen, nft_hash, nft_ct, nft_reject_ipv4, nft_reject_inet and nf_tables_bridge, for IPv6 also nft_fib_ipv6 and nft_reject_ipv6 \
                     (modprobe), or use a kernel built with them; nft says: {words}"
                ))
            }
            other => other,
        })
    }

    /// Whether the kernel would take a script; nothing changes. Blocks.
    pub(crate) fn check(&self, script: &str) -> Result<(), NetworkError> {
        self.run(&["-c", "-f", "-"], script).map(|_| ())
    }

    /// What `nft` prints for a listing, `None` when it is refused (usually because the object does not exist).
    pub(crate) fn list(&self, arguments: &[&str]) -> Option<String> {
        self.run(arguments, "").ok()
    }

    fn run(&self, arguments: &[&str], script: &str) -> Result<String, NetworkError> {
        let output = commands::run(&self.program, arguments, script)
            .map_err(|source| self.cannot_run(source))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.trim();
        if words.is_empty() {
            return Err(NetworkError::Nft(output.status.to_string()));
        }
        Err(NetworkError::Nft(shortened(words)))
    }
}

/// The beginning of a complaint.
pub(crate) fn shortened(words: &str) -> String {
    words.chars().take(LONGEST_COMPLAINT).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that refuses everything with the given words.
    fn refusing(dir: &tempfile::TempDir, words: &str) -> Nft {
        let program = dir.path().join("nft");
        fs::write(&program, format!("#!/bin/sh\necho '{words}' >&2\nexit 1\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Nft { program }
    }

    #[test]
    fn what_the_kernel_or_the_user_lacks_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (words, fix) in [
            (
                "Error: Could not process rule: Operation not supported",
                "modprobe",
            ),
            (
                "Error: Could not process rule: No such file or directory",
                "modprobe",
            ),
            ("Operation not permitted (you must be root)", "needs root"),
        ] {
            let error = refusing(&dir, words)
                .set_up("add table ip t\n")
                .unwrap_err();
            assert!(matches!(error, NetworkError::Unsupported(_)), "{error:?}");
            let error = error.to_string();
            assert!(error.contains(fix) && error.contains(words), "{error}");
        }
        let error = refusing(&dir, &"x".repeat(5000))
            .apply("")
            .unwrap_err()
            .to_string();
        assert!(error.len() < 500, "{error}");
    }

    #[test]
    fn a_program_that_is_nowhere_is_not_found() {
        assert_eq!(commands::find("no-such-program-anywhere"), None);
    }
}
