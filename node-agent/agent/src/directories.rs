//! The directories of a node: nobody but root gets into them, and what may hold secrets is in memory.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::config::AgentConfig;

/// File systems whose contents are in memory alone: `TMPFS_MAGIC` and `RAMFS_MAGIC` of the kernel's magic.h.
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];

/// Makes everything that an agent needs before it begins.
pub(crate) fn prepare(config: &AgentConfig) -> Result<()> {
    for directory in [&config.data_dir, &config.pods_dir(), &config.logs_dir()] {
        private(directory)?;
    }
    // The directory of all agents too: what is mounted in it below has names that can be foreseen.
    if let Some(parent) = config.run_dir.parent() {
        private(parent)?;
    }
    private(&config.run_dir)?;
    keep_in_memory(&config.run_dir)
}

/// Makes a directory that its owner alone can enter, or one of what is there. A link or somebody else's directory is
/// refused: its owner could put other things in its place.
pub(crate) fn private(directory: &Path) -> Result<()> {
    let doing = || {
        format!(
            "preparing {}: is it writable, and is this root?",
            directory.display()
        )
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(doing)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty()).with_context(doing)?;
    let opened = std::fs::File::from(opened);
    let metadata = opened.metadata().with_context(doing)?;
    let own = rustix::process::geteuid().as_raw();
    ensure!(
        metadata.uid() == own,
        "{} belongs to user {}, who could replace everything in it: remove it, or 'chown -R {own}' it",
        directory.display(),
        metadata.uid()
    );
    if metadata.permissions().mode() & 0o077 != 0 {
        opened
            .set_permissions(std::fs::Permissions::from_mode(0o700))
            .with_context(doing)?;
    }
    Ok(())
}

/// Sees to it that a run directory is in memory, since containers' environments and checkpointed Secrets are in it:
/// where /run is on a disk, it gets a file system of its own.
fn keep_in_memory(run_dir: &Path) -> Result<()> {
    if is_in_memory(run_dir)? {
        return Ok(());
    }
    if std::fs::read_dir(run_dir)?.next().is_some() {
        // Pods of an agent of before may live by the sockets in it.
        tracing::warn!(
            run_dir = %run_dir.display(),
            "the run directory is on a disk, and Secrets with it: 'gantry down' and up again moves it into memory"
        );
        return Ok(());
    }
    rustix::mount::mount(
        "gantry",
        run_dir,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=0700"),
    )
    .with_context(|| format!("mounting a tmpfs at {}", run_dir.display()))
}

fn is_in_memory(directory: &Path) -> Result<bool> {
    let found = rustix::fs::statfs(directory)
        .with_context(|| format!("looking at the file system of {}", directory.display()))?;
    // The field's width differs between machines; the numbers have 32 bits.
    let kind = found.f_type as u32;
    Ok(IN_MEMORY.contains(&kind))
}

/// Removes a run directory and the file system that [`prepare`] may have given it.
pub(crate) fn remove_run_dir(run_dir: &Path) -> Result<()> {
    match rustix::mount::unmount(run_dir, UnmountFlags::DETACH) {
        // Not a mount point, or not there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("unmounting {}", run_dir.display()));
        }
    }
    gantry_durable::remove_tree(run_dir).with_context(|| format!("removing {}", run_dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_to_others_is_closed_and_links_are_refused() {
        let base = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        let open = base.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        private(&open).unwrap();
        assert_eq!(mode(&open), 0o700);
        private(&base.path().join("new/deep")).unwrap();
        assert_eq!(mode(&base.path().join("new")), 0o700);
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        let refused = format!("{:#}", private(&link).unwrap_err());
        assert!(refused.contains("link"), "{refused}");
    }

    /// Needs root: a tmpfs is mounted.
    #[test]
    fn a_run_directory_is_in_memory() {
        let base = tempfile::tempdir().unwrap();
        let run_dir = base.path().join("run");
        private(&run_dir).unwrap();
        keep_in_memory(&run_dir).expect("this test needs root");
        assert!(is_in_memory(&run_dir).unwrap());
        keep_in_memory(&run_dir).unwrap();
        std::fs::write(run_dir.join("file"), "").unwrap();
        remove_run_dir(&run_dir).unwrap();
        assert!(!run_dir.exists());
        remove_run_dir(&run_dir).unwrap();
        // What is no directory kept the agent from beginning, and does not keep anybody from ending.
        std::fs::write(&run_dir, "").unwrap();
        remove_run_dir(&run_dir).unwrap();
        assert!(!run_dir.exists());
    }
}
