//! The program of shims and helpers as containers may meet it: a view of our own file that nobody can change through
//! /proc/PID/exe, not its content, mode, owner or attributes.
//!
//! A mount of its own costs no memory, since pages stay those of the file. Where it cannot be made, a sealed copy in
//! memory takes its place.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, MemfdFlags, Mode, SealFlags};
use rustix::mount::OpenTreeFlags;

/// The program, sealed. What is executed from it finds it again as its /proc/self/exe.
pub(crate) struct Executable(OwnedFd);

impl Executable {
    /// The program in this file.
    pub(crate) fn seal(file: &Path) -> io::Result<Self> {
        match read_only_mount(file) {
            Ok(mount) => Ok(Self(mount)),
            Err(error) => {
                tracing::info!(%error, file = %file.display(), "no mount for the shims' program: using a copy in memory");
                sealed_copy(file).map(Self)
            }
        }
    }

    /// Where a child of this process, started while the value lives, finds it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// A mount that is nowhere in the file system, so that no process can remount it.
fn read_only_mount(file: &Path) -> io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let open = |path: &Path| rustix::mount::open_tree(CWD, path, clone);
    let mount = match open(file) {
        // /proc/self/exe leads to the mount namespace that the program was started in, which this process may have
        // left: the same file is then reached by its name.
        Err(rustix::io::Errno::INVAL) => {
            let named = open(&std::fs::read_link(file)?)?;
            let (wanted, found) = (rustix::fs::stat(file)?, rustix::fs::fstat(&named)?);
            if (wanted.st_dev, wanted.st_ino) != (found.st_dev, found.st_ino) {
                return Err(io::Error::other("the program's file was replaced"));
            }
            named
        }
        opened => opened?,
    };
    let sealed = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    gantry_idmap::set_attributes(mount.as_fd(), sealed)?;
    Ok(mount)
}

fn sealed_copy(file: &Path) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create("gantry", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 every memory file can be executed.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("gantry", flags)?,
        made => made?,
    };
    let mut copy = File::from(copy);
    io::copy(&mut File::open(file)?, &mut copy)?;
    rustix::fs::fchmod(&copy, Mode::from_raw_mode(0o555))?;
    let content = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    match rustix::fs::fcntl_add_seals(&copy, content | SealFlags::EXEC | SealFlags::SEAL) {
        Err(rustix::io::Errno::INVAL) => {
            rustix::fs::fcntl_add_seals(&copy, content | SealFlags::SEAL)?;
        }
        sealed => sealed?,
    }
    // The one that is executed must not be open for writing anywhere.
    let path = format!("/proc/self/fd/{}", copy.as_fd().as_raw_fd());
    Ok(File::open(path)?.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn refused(path: &Path) {
        let opened = std::fs::OpenOptions::new().write(true).open(path);
        let written = opened.and_then(|mut file| std::io::Write::write_all(&mut file, b"changed"));
        assert!(written.is_err(), "its content can be changed");
    }

    #[test]
    fn a_mount_of_its_own_lets_nothing_be_changed() {
        let sealed = Executable(read_only_mount(Path::new("/proc/self/exe")).unwrap());
        let path = sealed.path();
        refused(&path);
        let mode = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777));
        assert_eq!(mode.unwrap_err().raw_os_error(), Some(libc::EROFS));
        let owner = rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(1)), None);
        assert_eq!(owner, Err(rustix::io::Errno::ROFS));
        let listed = Command::new(path).arg("--list").output().unwrap();
        assert!(listed.status.success());
    }

    #[test]
    fn a_copy_in_memory_keeps_its_content_and_can_be_executed() {
        let sealed = Executable(sealed_copy(Path::new("/proc/self/exe")).unwrap());
        refused(&sealed.path());
        let listed = Command::new(sealed.path()).arg("--list").output().unwrap();
        assert!(listed.status.success());
    }
}
