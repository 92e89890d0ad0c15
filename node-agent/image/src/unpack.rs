//! Unpacks a layer's tar stream into a directory, in overlayfs' own form.
//!
//! Every path is resolved by the kernel with `RESOLVE_IN_ROOT`, so that neither `..` nor a symlink planted by an
//! earlier entry leads outside the directory. A whiteout becomes a 0/0 character device, an opaque marker the
//! `trusted.overlay.opaque` attribute.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fsetxattr, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, openat2,
    symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// Unpacks a tar stream into `root`, which must exist; returns the bytes of all files.
pub(crate) fn unpack(stream: impl Read, root: &Path) -> io::Result<u64> {
    let root = Root {
        fd: openat(
            rustix::fs::CWD,
            root,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?,
        path: root.to_owned(),
    };
    let mut bytes = 0;
    // Times of directories are set last: unpacking into them changes them.
    let mut directories: Vec<(PathBuf, Timestamps)> = Vec::new();
    let mut archive = Archive::new(stream);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = clean(&entry.path()?)?;
        if path.as_os_str().is_empty() {
            apply_root_metadata(&root, &entry)?;
            continue;
        }
        bytes += root
            .add(&mut entry, &path, &mut directories)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
    }
    // The archive's end is two zero blocks; what follows belongs to the stream's digest.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    for (path, times) in directories.iter().rev() {
        if let Ok((parent, name)) = root.parent(path, false) {
            match utimensat(&parent, name, times, AtFlags::SYMLINK_NOFOLLOW) {
                // A later entry of the layer may have replaced the directory.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(bytes)
}

/// A relative path without `.`; refuses `..`.
fn clean(path: &Path) -> io::Result<PathBuf> {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => cleaned.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the path {} leads out of the layer", path.display()),
                ));
            }
        }
    }
    Ok(cleaned)
}

fn apply_root_metadata(root: &Root, entry: &Entry<'_, impl Read>) -> io::Result<()> {
    let header = entry.header();
    rustix::fs::fchmod(&root.fd, Mode::from_raw_mode(header.mode()? & 0o7777))?;
    Ok(())
}

/// The directory a layer is unpacked into.
struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens the directory of a path, inside the root, and returns it with the last component.
    fn parent<'a>(&self, path: &'a Path, create: bool) -> io::Result<(OwnedFd, &'a OsStr)> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an entry without a name"))?;
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        match self.directory(parent) {
            Ok(fd) => Ok((fd, name)),
            Err(Errno::NOENT) if create => {
                self.create_directories(parent)?;
                Ok((self.directory(parent)?, name))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn directory(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        openat2(
            &self.fd,
            path,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// Layers may leave the directories above an entry out.
    fn create_directories(&self, path: &Path) -> io::Result<()> {
        let mut reached = PathBuf::new();
        for component in path.components() {
            let parent = self.directory(&reached)?;
            let mode = Mode::from_raw_mode(0o755);
            let made = mkdirat(&parent, component.as_os_str(), mode);
            reached.push(component);
            match made {
                // Whatever this process's umask takes away.
                Ok(()) => rustix::fs::fchmod(self.directory(&reached)?, mode)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Adds one entry; returns the bytes of its content.
    fn add(
        &self,
        entry: &mut Entry<'_, impl Read>,
        path: &Path,
        directories: &mut Vec<(PathBuf, Timestamps)>,
    ) -> io::Result<u64> {
        let (parent, name) = self.parent(path, true)?;
        if name.as_bytes() == OPAQUE {
            fsetxattr(&parent, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
            return Ok(0);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = OsStr::from_bytes(hidden);
            self.remove(
                &parent,
                hidden,
                path.parent().unwrap_or_else(|| Path::new("")),
            )?;
            mknodat(
                &parent,
                hidden,
                FileType::CharacterDevice,
                Mode::empty(),
                makedev(0, 0),
            )?;
            return Ok(0);
        }
        let kind = entry.header().entry_type();
        let mut bytes = 0;
        if !(kind == EntryType::Directory && is_directory(&parent, name)?) {
            self.remove(
                &parent,
                name,
                path.parent().unwrap_or_else(|| Path::new("")),
            )?;
            bytes = self.create(entry, kind, &parent, name)?;
        }
        if kind != EntryType::Link {
            let times = metadata(entry, kind, &parent, name)?;
            if kind == EntryType::Directory {
                directories.push((path.to_owned(), times));
            }
            self.xattrs(entry, path)?;
        }
        Ok(bytes)
    }

    fn create(
        &self,
        entry: &mut Entry<'_, impl Read>,
        kind: EntryType,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> io::Result<u64> {
        let device = || -> io::Result<u64> {
            let header = entry.header();
            Ok(makedev(
                header.device_major()?.unwrap_or(0),
                header.device_minor()?.unwrap_or(0),
            ))
        };
        let mode = Mode::from_raw_mode(0o600);
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mut file = File::from(openat(parent, name, flags, mode)?);
                return io::copy(entry, &mut file);
            }
            EntryType::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o700))?,
            EntryType::Symlink => symlinkat(link_name(entry)?, parent, name)?,
            EntryType::Link => {
                let target = clean(&link_name(entry)?)?;
                let (target_parent, target_name) = self.parent(&target, false)?;
                linkat(&target_parent, target_name, parent, name, AtFlags::empty())?;
            }
            EntryType::Fifo => mknodat(parent, name, FileType::Fifo, mode, 0)?,
            EntryType::Char => mknodat(parent, name, FileType::CharacterDevice, mode, device()?)?,
            EntryType::Block => mknodat(parent, name, FileType::BlockDevice, mode, device()?)?,
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("entries of type {other:?} are not supported in layers"),
                ));
            }
        }
        Ok(0)
    }

    /// Removes whatever an earlier entry of the same layer left under a name.
    fn remove(&self, parent: &OwnedFd, name: &OsStr, directory: &Path) -> io::Result<()> {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => {
                // `directory` resolved inside the root a moment ago, and nothing else writes here.
                let inside = openat2(
                    &self.fd,
                    directory.join(name),
                    OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                    ResolveFlags::IN_ROOT,
                )?;
                empty(&inside)?;
                unlinkat(parent, name, AtFlags::REMOVEDIR)?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn xattrs(&self, entry: &mut Entry<'_, impl Read>, path: &Path) -> io::Result<()> {
        let Some(extensions) = entry.pax_extensions()? else {
            return Ok(());
        };
        for extension in extensions {
            let extension = extension?;
            let Some(name) = extension
                .key()
                .ok()
                .and_then(|key| key.strip_prefix(XATTR_PREFIX))
            else {
                continue;
            };
            let (parent, file) = self.parent(path, false)?;
            // There is no lsetxattrat: the parent is named through its descriptor.
            let target = Path::new("/proc/self/fd")
                .join(std::os::fd::AsRawFd::as_raw_fd(&parent).to_string())
                .join(file);
            lsetxattr(target, name, extension.value_bytes(), XattrFlags::empty()).map_err(
                |error| {
                    io::Error::other(format!(
                        "setting {name} in {}: {error}",
                        self.path.display()
                    ))
                },
            )?;
        }
        Ok(())
    }
}

fn link_name(entry: &Entry<'_, impl Read>) -> io::Result<PathBuf> {
    entry
        .link_name()?
        .map(|name| name.into_owned())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a link without a target"))
}

fn is_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Owner, mode and times; returns the times, for directories.
fn metadata(
    entry: &Entry<'_, impl Read>,
    kind: EntryType,
    parent: &OwnedFd,
    name: &OsStr,
) -> io::Result<Timestamps> {
    let header = entry.header();
    let id = |id: u64| {
        u32::try_from(id)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "an owner out of range"))
    };
    let owner = Uid::from_raw(id(header.uid()?)?);
    let group = Gid::from_raw(id(header.gid()?)?);
    chownat(
        parent,
        name,
        Some(owner),
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if kind != EntryType::Symlink {
        chmodat(
            parent,
            name,
            Mode::from_raw_mode(header.mode()? & 0o7777),
            AtFlags::empty(),
        )?;
    }
    let time = Timespec {
        tv_sec: i64::try_from(header.mtime()?).unwrap_or(0),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(times)
}

/// Removes everything in a directory.
fn empty(directory: &OwnedFd) -> io::Result<()> {
    let names: Vec<(OsString, FileType)> = rustix::fs::Dir::read_from(directory)?
        .map(|entry| {
            entry.map(|entry| {
                (
                    OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(),
                    entry.file_type(),
                )
            })
        })
        .collect::<Result<_, _>>()?;
    for (name, kind) in names {
        if name == "." || name == ".." {
            continue;
        }
        if kind == FileType::Directory {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            empty(&openat(directory.as_fd(), &name, flags, Mode::empty())?)?;
            unlinkat(directory, &name, AtFlags::REMOVEDIR)?;
        } else {
            unlinkat(directory, &name, AtFlags::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use tar::{Builder, Header};

    use super::*;

    /// A tar of (path, type, content or link target).
    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_uid(1000);
            header.set_gid(1000);
            header.set_mtime(1_000_000);
            // Written raw, since the builder refuses the paths that an attacker would use.
            let name = path.as_bytes();
            header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.set_link_name_literal(content).expect("a link name");
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, io::empty()).expect("append");
            } else {
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).expect("append");
            }
        }
        builder.into_inner().expect("finish")
    }

    fn unpacked(entries: &[(&str, EntryType, &str)]) -> (tempfile::TempDir, io::Result<u64>) {
        let directory = tempfile::tempdir().expect("a directory");
        let result = unpack(archive(entries).as_slice(), directory.path());
        (directory, result)
    }

    #[test]
    fn files_links_and_missing_parents() {
        let (directory, result) = unpacked(&[
            ("a/b/file", EntryType::Regular, "content"),
            ("a/hard", EntryType::Link, "a/b/file"),
            ("a/soft", EntryType::Symlink, "b/file"),
        ]);
        assert_eq!(result.expect("unpacks"), 7);
        let path = directory.path().join("a/hard");
        assert_eq!(
            std::fs::read_to_string(&path).expect("hard link"),
            "content"
        );
        let stat = path.metadata().expect("stat");
        assert_eq!(
            (stat.uid(), stat.mode() & 0o777, stat.mtime()),
            (1000, 0o644, 1_000_000)
        );
        assert_eq!(
            std::fs::read_to_string(directory.path().join("a/soft")).expect("symlink"),
            "content"
        );
    }

    #[test]
    fn whiteouts_take_overlayfs_form() {
        let (directory, result) = unpacked(&[
            ("d/.wh.gone", EntryType::Regular, ""),
            ("d/.wh..wh..opq", EntryType::Regular, ""),
        ]);
        result.expect("unpacks");
        let stat = directory
            .path()
            .join("d/gone")
            .symlink_metadata()
            .expect("whiteout");
        assert!(stat.file_type().is_char_device());
        assert_eq!(stat.rdev(), 0);
        let mut value = [0; 4];
        let length = rustix::fs::getxattr(
            directory.path().join("d"),
            "trusted.overlay.opaque",
            &mut value,
        )
        .expect("the attribute; this test needs root");
        assert_eq!(&value[..length], b"y");
    }

    #[test]
    fn nothing_is_written_outside_the_layer() {
        let outside = tempfile::tempdir().expect("a directory");
        let target = outside.path().to_str().expect("text");
        for entries in [
            [
                ("../evil", EntryType::Regular, "x"),
                ("ok", EntryType::Regular, "x"),
            ],
            [
                ("link", EntryType::Symlink, target),
                ("link/evil", EntryType::Regular, "x"),
            ],
            [
                ("link", EntryType::Symlink, "../../../../../../../tmp"),
                ("link/../evil", EntryType::Regular, "x"),
            ],
            [
                ("evil", EntryType::Link, "/etc/../../etc/passwd"),
                ("ok", EntryType::Regular, "x"),
            ],
        ] {
            let (directory, _) = unpacked(&entries);
            assert!(!outside.path().join("evil").exists());
            assert!(
                !directory
                    .path()
                    .parent()
                    .expect("tmp")
                    .join("evil")
                    .exists()
            );
            assert!(!directory.path().join("evil").exists());
        }
    }

    #[test]
    fn a_later_entry_replaces_an_earlier_one() {
        let (directory, result) = unpacked(&[
            ("x/y", EntryType::Regular, "old"),
            ("x", EntryType::Regular, "new"),
        ]);
        result.expect("unpacks");
        assert_eq!(
            std::fs::read_to_string(directory.path().join("x")).expect("file"),
            "new"
        );
    }

    #[test]
    fn a_truncated_archive_is_an_error() {
        let whole = archive(&[("file", EntryType::Regular, &"x".repeat(5000))]);
        let directory = tempfile::tempdir().expect("a directory");
        assert!(unpack(&whole[..2000], directory.path()).is_err());
    }
}
