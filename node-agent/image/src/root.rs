//! A layer's directory. Every path in it is resolved by the kernel with `RESOLVE_IN_ROOT`: no link that a layer has, and no
//! `..`, leads out of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, fsetxattr, openat, openat2,
    statat,
};
use rustix::io::Errno;

/// The attribute of a directory that hides what lower layers have in it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// How often a path is looked up. One look in ten fails at 100,000 renames a second.
const ATTEMPTS: u32 = 128;

/// The directory a layer is unpacked into.
pub(crate) struct Root {
    pub(crate) fd: OwnedFd,
    /// For messages.
    pub(crate) path: PathBuf,
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: openat(rustix::fs::CWD, path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    /// Opens the directory of a path and returns it with the last component, which may be there or not, or be a link.
    pub(crate) fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        Ok((self.directory(above(path))?, file_name(path)?))
    }

    /// Opens a directory; the root itself is the empty path.
    pub(crate) fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        patiently(|| {
            openat2(
                &self.fd,
                path,
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
        })
    }
}

/// Repeats what says `EAGAIN`: the kernel does, where a path has a `..` and anybody on the machine has renamed or mounted
/// anything since it began to look.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut tries = 1;
    loop {
        match attempt() {
            Err(Errno::AGAIN) if tries < ATTEMPTS => tries += 1,
            result => return result,
        }
    }
}

fn stat(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What is under a name, if anything is.
pub(crate) fn kind_of(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<FileType>> {
    Ok(stat(parent, name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)))
}

pub(crate) fn is_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    Ok(kind_of(parent, name)? == Some(FileType::Directory))
}

/// Whether a name is one that is hidden from lower layers.
pub(crate) fn is_whiteout(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    Ok(stat(parent, name)?.is_some_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
    }))
}

/// Hides what lower layers have in a directory.
pub(crate) fn make_opaque(directory: &OwnedFd) -> io::Result<()> {
    Ok(fsetxattr(
        directory,
        OPAQUE_XATTR,
        b"y",
        XattrFlags::empty(),
    )?)
}

pub(crate) fn above(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new(""))
}

pub(crate) fn file_name(path: &Path) -> io::Result<&OsStr> {
    path.file_name()
        .ok_or_else(|| invalid("an entry without a name"))
}

pub(crate) fn invalid(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_a_rename_has_spoiled_is_repeated() {
        let mut tries = 0;
        let mut after = |failures: u32, error: Errno| {
            tries = 0;
            patiently(|| {
                tries += 1;
                match tries > failures {
                    true => Ok(tries),
                    false => Err(error),
                }
            })
        };
        assert_eq!(after(0, Errno::AGAIN), Ok(1));
        assert_eq!(after(100, Errno::AGAIN), Ok(101));
        assert_eq!(after(u32::MAX, Errno::AGAIN), Err(Errno::AGAIN));
        assert_eq!(after(1, Errno::NOENT), Err(Errno::NOENT));
        assert_eq!(tries, 1);
    }
}
