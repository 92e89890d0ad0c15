//! An archive that comes by standard input, kept where agents of this machine can read it: in a file of the cluster's own
//! disk that has no name any more, so that it goes with this process however that ends.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The file.
pub(super) struct Spool(File);

impl Spool {
    /// Reads all of standard input. Blocks.
    pub(super) fn read_stdin(directory: &Path) -> Result<Self> {
        let stdin = io::stdin();
        ensure!(
            !stdin.is_terminal(),
            "standard input is a terminal: pipe an archive into this command"
        );
        ensure!(
            directory.exists(),
            "there is no cluster in {}: name its directory with --data-dir",
            directory.display()
        );
        Self::read(stdin.lock(), directory)
    }

    fn read(mut from: impl Read, directory: &Path) -> Result<Self> {
        let path = directory.join(format!(".import-{}", std::process::id()));
        let keeping = || format!("keeping standard input in {}", directory.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(keeping)?;
        std::fs::remove_file(&path).with_context(keeping)?;
        let length = io::copy(&mut from, &mut file).with_context(keeping)?;
        ensure!(length > 0, "standard input is empty");
        Ok(Self(file))
    }

    /// By which other processes open it, for as long as it is there.
    pub(super) fn path(&self) -> PathBuf {
        let (process, descriptor) = (std::process::id(), self.0.as_raw_fd());
        PathBuf::from(format!("/proc/{process}/fd/{descriptor}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_there_without_a_name() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let spool = Spool::read(&b"an archive"[..], directory.path())?;
        assert_eq!(std::fs::read_dir(directory.path())?.count(), 0);
        assert_eq!(std::fs::read(spool.path())?, b"an archive");
        assert_eq!(
            std::fs::read(spool.path())?,
            b"an archive",
            "from its beginning"
        );
        let empty = Spool::read(io::empty(), directory.path());
        assert!(empty.is_err_and(|error| error.to_string().contains("empty")));
        Ok(())
    }
}
