//! A layer's directory. Every path in it is resolved by the kernel with `RESOLVE_IN_ROOT`: no link that a layer has, and no
//! `..`, leads out of it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, XattrFlags, fsetxattr, lgetxattr, lgetxattr_query,
    llistxattr, llistxattr_query, lsetxattr, openat, readlinkat, statat,
};
use rustix::io::Errno;

/// The attribute of a directory that hides what lower layers have in it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Links that are followed in one path, as many as the kernel follows, and parts of paths that this may take.
const LINKS: usize = 40;
const PARTS: usize = 4096;

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

    /// Where a path leads when its links are followed as the kernel follows them, without any itself, whether or not
    /// something is there.
    pub(crate) fn followed(&self, path: &Path) -> io::Result<PathBuf> {
        let mut reached = PathBuf::new();
        let mut ahead = parts_reversed(path);
        let (mut links, mut parts) = (0, 0);
        while let Some(part) = ahead.pop() {
            parts += 1;
            if part == ".." {
                reached.pop();
                continue;
            }
            let Some(target) = self.link(&reached, &part)? else {
                reached.push(part);
                continue;
            };
            links += 1;
            if links > LINKS || parts > PARTS {
                return Err(Errno::LOOP.into());
            }
            if target.is_absolute() {
                reached.clear();
            }
            ahead.extend(parts_reversed(&target));
        }
        Ok(reached)
    }

    /// What a link says that has this name in a directory; `None` when there is none.
    fn link(&self, directory: &Path, name: &OsStr) -> io::Result<Option<PathBuf>> {
        let target = self
            .directory(directory)
            .and_then(|parent| readlinkat(&parent, name, Vec::new()));
        match target {
            Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()).into())),
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The parts of a path that lead somewhere, the first one last.
fn parts_reversed(path: &Path) -> Vec<OsString> {
    let parts = path.components().rev();
    parts
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
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

/// Gives a file the extended attributes that another has, but for those that are left out by their name. Both paths are of the
/// files themselves, be they links. What the file cannot have is left out, as when layers are unpacked.
pub(crate) fn copy_attributes(
    from: &Path,
    to: &Path,
    is_left_out: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    let size = match llistxattr_query(from) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        size => size?,
    };
    let mut names = vec![0_u8; size];
    let length = llistxattr(from, &mut names[..])?;
    names.truncate(length);
    for name in names.split(|byte| *byte == 0) {
        if name.is_empty() || is_left_out(name) {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let mut value = vec![0_u8; lgetxattr_query(from, name)?];
        if !value.is_empty() {
            let length = lgetxattr(from, name, &mut value[..])?;
            value.truncate(length);
        }
        match lsetxattr(to, name, &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
