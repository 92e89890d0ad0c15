//! A layer's directory. Every path in it is resolved by the kernel with `RESOLVE_IN_ROOT`: no link that a layer has, and no
//! `..`, leads out of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags, fsetxattr, openat, statat};
use rustix::io::Errno;

/// The attribute of a directory that hides what lower layers have in it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

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
        gantry_durable::open_inside(&self.fd, path, OFlags::DIRECTORY)
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
