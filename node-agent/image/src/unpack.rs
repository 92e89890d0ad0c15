//! Unpacks a layer's tar stream into a directory, in overlayfs' own form.
//!
//! Every path is resolved by the kernel with `RESOLVE_IN_ROOT`, so that neither `..` nor a symlink planted by an
//! earlier entry leads outside the directory. A whiteout becomes a 0/0 character device, an opaque marker the
//! `trusted.overlay.opaque` attribute. Both hide what is in lower layers and never what is in the same one, whichever comes
//! first (OCI image specification, "Whiteouts").
//!
//! A layer is unpacked without those below it. What it leaves to them is told in [`Unpacked`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use crate::allowance::{Counted, Meter};
use crate::entries::{Entries, Entry};
use crate::root::{
    Root, above, file_name, invalid, is_directory, is_whiteout, kind_of, make_opaque,
};

const WHITEOUT: &[u8] = b".wh.";
/// What begins so is the business of the file system that made the layer, but for [`OPAQUE`].
const META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Where aufs keeps files that have several names, for the hard links that follow.
const META_LINKS: &str = ".wh..wh.plnk";
/// Files there that a layer may have.
const META_LINKS_MOST: usize = 256;
/// What is remembered of a layer while it is unpacked: of some 400,000 directories.
const KEPT_BYTES: usize = 64 << 20;
/// Of each path, beside its letters.
const KEPT_OVERHEAD: usize = 96;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// What overlayfs and other administrators' programs believe of a file is not the layer's to say, as with containerd.
const LEFT_OUT_XATTRS: [&[u8]; 2] = [b"trusted.", b"user.overlay."];

/// What has come of a layer, and what it leaves to those below it. Paths are relative to the layer's root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// The bytes of all files.
    pub(crate) size: u64,
    /// Directories that it has something in and says nothing of: they are as a lower layer has them. The root, which is the
    /// empty path, is one of them unless the layer says what it is like.
    pub(crate) implied: BTreeSet<PathBuf>,
    /// Hard links to files of lower layers: the name, and the file's. In the layer's order.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
}

/// Unpacks a tar stream into `root`, which must exist, for as long as the meter allows.
pub(crate) fn unpack(stream: impl Read, root: &Path, meter: &Meter) -> io::Result<Unpacked> {
    let mut layer = Layer {
        root: Root::open(root)?,
        unpacked: Unpacked {
            implied: BTreeSet::from([PathBuf::new()]),
            ..Unpacked::default()
        },
        meta_links: BTreeMap::new(),
        directories: BTreeMap::new(),
        links: BTreeMap::new(),
        links_seen: 0,
        kept: 0,
    };
    let mut entries = Entries::new(Counted {
        inner: stream,
        meter,
    });
    while let Some(entry) = entries.advance()? {
        meter.entry()?;
        layer.take(&entry, &mut entries)?;
    }
    // What follows the archive's end belongs to the stream's digest.
    io::copy(&mut entries.into_inner(), &mut io::sink())?;
    // Times of directories are set last, the deepest first: unpacking into them changes them.
    for (path, times) in layer.directories.iter().rev() {
        if let Ok((parent, name)) = layer.root.parent(path) {
            match utimensat(&parent, name, times, AtFlags::SYMLINK_NOFOLLOW) {
                // A later entry of the layer may have replaced the directory.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let links = layer.links.into_iter();
    let mut links: Vec<(u64, (PathBuf, PathBuf))> = links
        .map(|(path, (when, target))| (when, (path, target)))
        .collect();
    links.sort();
    layer.unpacked.links = links.into_iter().map(|(_, link)| link).collect();
    Ok(layer.unpacked)
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

/// A layer on its way.
struct Layer {
    root: Root,
    unpacked: Unpacked,
    /// What aufs kept for hard links, by its name there.
    meta_links: BTreeMap<OsString, MetaLink>,
    /// The times of its directories.
    directories: BTreeMap<PathBuf, Timestamps>,
    /// Hard links to files of lower layers: by name, when it came and the file's name.
    links: BTreeMap<PathBuf, (u64, PathBuf)>,
    links_seen: u64,
    /// What is kept in memory of it, in bytes.
    kept: usize,
}

/// A file that only hard links will name.
struct MetaLink {
    file: File,
    owner: Owner,
}

impl Layer {
    /// As [`Root::parent`]; layers may leave the directories above an entry out.
    fn made_parent<'a>(&mut self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (directory, name) = (above(path), file_name(path)?);
        match self.root.directory(directory) {
            Ok(fd) => Ok((fd, name)),
            // A whiteout is no directory: it came before what is in a new directory of its name.
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.create_directories(directory)?;
                Ok((self.root.directory(directory)?, name))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn create_directories(&mut self, path: &Path) -> io::Result<()> {
        let path = self.root.followed(path)?;
        let mut reached = PathBuf::new();
        for component in path.components() {
            let parent = self.root.directory(&reached)?;
            let mode = Mode::from_raw_mode(0o755);
            let name = component.as_os_str();
            let hides_lower = is_whiteout(&parent, name)?;
            if hides_lower {
                unlinkat(&parent, name, AtFlags::empty())?;
            }
            let made = mkdirat(&parent, name, mode);
            reached.push(component);
            match made {
                Ok(()) => {
                    let directory = self.root.directory(&reached)?;
                    // Whatever this process's umask takes away.
                    fchmod(&directory, mode)?;
                    match hides_lower {
                        true => make_opaque(&directory)?,
                        false => {
                            let implied = self.keep(&reached)?;
                            self.unpacked.implied.insert(implied);
                        }
                    }
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Adds one entry, and names it in what is wrong about it.
    fn take(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        let own_name = entry
            .sparse
            .as_ref()
            .and_then(|sparse| sparse.name.as_ref());
        let path = clean(own_name.unwrap_or(&entry.path))?;
        if path.as_os_str().is_empty() {
            // Nothing else is in the root's place.
            if entry.kind == EntryType::Directory {
                let owner = Owner::of(entry)?;
                fchown(&self.root.fd, Some(owner.user), Some(owner.group))?;
                fchmod(&self.root.fd, owner.mode)?;
                self.unpacked.implied.remove(&path);
            }
            return Ok(());
        }
        self.add(entry, content, &path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Counts a path that is kept until the layer is whole.
    fn keep(&mut self, path: &Path) -> io::Result<PathBuf> {
        self.kept += path.as_os_str().len() + KEPT_OVERHEAD;
        match self.kept <= KEPT_BYTES {
            true => Ok(path.to_owned()),
            false => Err(invalid("the layer has too many directories and hard links")),
        }
    }

    fn add(&mut self, entry: &Entry, content: &mut impl Read, path: &Path) -> io::Result<()> {
        let kind = entry.kind;
        if path.starts_with(META_LINKS) {
            return self.keep_meta_link(entry, content, path);
        }
        let name = file_name(path)?.as_bytes();
        if name == OPAQUE {
            return self.hide_all_in(above(path));
        }
        if is_meta(path) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.hide(above(path), OsStr::from_bytes(hidden));
        }
        let (parent, name) = self.made_parent(path)?;
        let target = match kind {
            EntryType::Link => Some(clean(link_name(entry)?)?),
            _ => None,
        };
        if target.as_deref() == Some(path) {
            // To itself: it is there already, here or in a lower layer.
            return Ok(());
        }
        if kind == EntryType::Directory && is_directory(&parent, name)? {
            self.unpacked.implied.remove(path);
        } else {
            // What was there has hidden what lower layers have of this name, and so does what comes instead.
            let is_link = self.links.remove(path).is_some();
            let hides_lower = self.remove(&parent, name, path)? || is_link;
            if let Some(target) = target {
                return self.link(&target, path);
            }
            self.unpacked.size += create(entry, content, &parent, name)?;
            if hides_lower && kind == EntryType::Directory {
                make_opaque(&self.root.directory(path)?)?;
            }
        }
        let owner = Owner::of(entry)?;
        owner.give(kind, &parent, name)?;
        if kind == EntryType::Directory {
            match self.directories.get_mut(path) {
                Some(times) => *times = owner.times,
                None => {
                    let path = self.keep(path)?;
                    self.directories.insert(path, owner.times);
                }
            }
        }
        self.xattrs(entry, path)
    }

    /// Keeps a file that hard links will name, in a place without a name.
    fn keep_meta_link(
        &mut self,
        entry: &Entry,
        content: &mut impl Read,
        path: &Path,
    ) -> io::Result<()> {
        if !matches!(entry.kind, EntryType::Regular | EntryType::Continuous) {
            return Ok(());
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.root.fd, ".", flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        self.unpacked.size += io::copy(content, &mut file)?;
        let owner = Owner::of(entry)?;
        // Each holds a descriptor.
        if self.meta_links.len() >= META_LINKS_MOST {
            return Err(invalid("the layer has too many files for hard links"));
        }
        let name = file_name(path)?.to_owned();
        self.meta_links.insert(name, MetaLink { file, owner });
        Ok(())
    }

    /// Makes another name for a file of this layer, or notes that a lower one must have it.
    fn link(&mut self, target: &Path, path: &Path) -> io::Result<()> {
        let (parent, name) = self.root.parent(path)?;
        if target.starts_with(META_LINKS) {
            let kept = self.meta_links.get(file_name(target)?);
            let kept = kept.ok_or_else(|| invalid("a hard link to a file that is not there"))?;
            // A file without a name is linked through its descriptor.
            let file = format!("/proc/self/fd/{}", kept.file.as_raw_fd());
            linkat(
                rustix::fs::CWD,
                &file,
                &parent,
                name,
                AtFlags::SYMLINK_FOLLOW,
            )?;
            return kept.owner.give(EntryType::Regular, &parent, name);
        }
        let linked = self.root.parent(target).and_then(|(from, file)| {
            // What hides a file of a lower layer is not that file.
            match is_whiteout(&from, file)? {
                true => Err(Errno::NOENT.into()),
                false => Ok(linkat(&from, file, &parent, name, AtFlags::empty())?),
            }
        });
        match linked {
            Err(error) if is_absent(&error) => {
                let (path, target) = (self.keep(path)?, self.keep(target)?);
                self.links_seen += 1;
                self.links.insert(path, (self.links_seen, target));
                Ok(())
            }
            linked => linked,
        }
    }

    /// Hides what lower layers have of a name; what this one has of it stays.
    fn hide(&mut self, directory: &Path, hidden: &OsStr) -> io::Result<()> {
        if hidden.is_empty() || hidden == "." || hidden == ".." {
            return Err(invalid("a whiteout of nothing"));
        }
        let path = directory.join(hidden);
        let (parent, name) = match self.made_parent(&path) {
            // Below a file, or what leads to one, is nothing to be hidden.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
            parent => parent?,
        };
        match kind_of(&parent, name)? {
            // A link that is yet to be made hides what is below, as files do.
            None if self.links.contains_key(&path) => Ok(()),
            Some(FileType::Directory) => {
                self.unpacked.implied.remove(&path);
                make_opaque(&self.root.directory(&path)?)
            }
            Some(_) => Ok(()),
            None => Ok(mknodat(
                &parent,
                name,
                FileType::CharacterDevice,
                Mode::empty(),
                makedev(0, 0),
            )?),
        }
    }

    /// Hides what lower layers have in a directory.
    fn hide_all_in(&mut self, directory: &Path) -> io::Result<()> {
        let marked = directory.join("x");
        match self.made_parent(&marked) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
            parent => make_opaque(&parent?.0),
        }
    }

    /// Removes whatever an earlier entry of the same layer left under a name; whether that hid what lower layers have.
    fn remove(&mut self, parent: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<bool> {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(Errno::ISDIR) => {
                gantry_durable::remove_at(parent, name)?;
                let below = |kept: &&PathBuf| kept.starts_with(path);
                let implied = self.unpacked.implied.range(path.to_owned()..);
                let implied: Vec<PathBuf> = implied.take_while(below).cloned().collect();
                for gone in implied {
                    self.unpacked.implied.remove(&gone);
                }
                forget(&mut self.links, path);
                forget(&mut self.directories, path);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn xattrs(&self, entry: &Entry, path: &Path) -> io::Result<()> {
        for (key, value) in entry.records.iter() {
            let Some(name) = key.strip_prefix(XATTR_PREFIX) else {
                continue;
            };
            if LEFT_OUT_XATTRS
                .iter()
                .any(|prefix| name.starts_with(prefix))
            {
                continue;
            }
            let name = OsStr::from_bytes(name);
            let (parent, file) = self.root.parent(path)?;
            // There is no lsetxattrat: the parent is named through its descriptor.
            let target = Path::new("/proc/self/fd")
                .join(parent.as_raw_fd().to_string())
                .join(file);
            match lsetxattr(target, name, value, XattrFlags::empty()) {
                Ok(()) => {}
                // Not on this file system, or not on a file of this type: the image runs without.
                Err(Errno::NOTSUP | Errno::PERM) => {
                    tracing::debug!(
                        name = %name.display(),
                        path = %path.display(),
                        "an extended attribute was left out"
                    );
                }
                Err(error) => {
                    return Err(io::Error::other(format!(
                        "setting {} in {}: {error}",
                        name.display(),
                        self.root.path.display()
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Forgets what is kept of a path and of those below it.
fn forget<V>(kept: &mut BTreeMap<PathBuf, V>, path: &Path) {
    let gone = kept.range(path.to_owned()..).map(|(kept, _)| kept);
    let gone = gone.take_while(|kept| kept.starts_with(path));
    let gone: Vec<PathBuf> = gone.cloned().collect();
    for path in gone {
        kept.remove(&path);
    }
}

/// Creates what an entry is, but a hard link; returns the bytes of its content.
fn create(
    entry: &Entry,
    content: &mut impl Read,
    parent: &OwnedFd,
    name: &OsStr,
) -> io::Result<u64> {
    let mode = Mode::from_raw_mode(0o600);
    let device = makedev(entry.device.0, entry.device.1);
    match entry.kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let flags =
                OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(parent, name, flags, mode)?);
            return match &entry.sparse {
                Some(sparse) => sparse.write(content, &mut file),
                None => io::copy(content, &mut file),
            };
        }
        EntryType::Directory => mkdirat(parent, name, Mode::from_raw_mode(0o700))?,
        EntryType::Symlink => symlinkat(link_name(entry)?, parent, name)?,
        EntryType::Fifo => mknodat(parent, name, FileType::Fifo, mode, 0)?,
        EntryType::Char => mknodat(parent, name, FileType::CharacterDevice, mode, device)?,
        EntryType::Block => mknodat(parent, name, FileType::BlockDevice, mode, device)?,
        other => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("entries of type {other:?} are not supported in layers"),
            ));
        }
    }
    Ok(0)
}

fn link_name(entry: &Entry) -> io::Result<&Path> {
    match entry.target.as_os_str().is_empty() {
        true => Err(invalid("a link without a target")),
        false => Ok(&entry.target),
    }
}

/// Whether a path leads to nothing in this layer.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Whether any part of a path is the business of the file system that made the layer.
fn is_meta(path: &Path) -> bool {
    path.components()
        .any(|part| part.as_os_str().as_bytes().starts_with(META))
}

/// An entry's owner, mode and times.
struct Owner {
    user: Uid,
    group: Gid,
    mode: Mode,
    times: Timestamps,
}

impl Owner {
    fn of(entry: &Entry) -> io::Result<Self> {
        // The last number is nobody's: it means that an owner stays.
        let id = |id: i64| match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(invalid("an owner out of range")),
        };
        Ok(Self {
            user: Uid::from_raw(id(entry.user)?),
            group: Gid::from_raw(id(entry.group)?),
            mode: Mode::from_raw_mode(u32::try_from(entry.mode & 0o7777).unwrap_or(0)),
            times: Timestamps {
                last_access: entry.accessed,
                last_modification: entry.modified,
            },
        })
    }

    fn give(&self, kind: EntryType, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let (owner, flags) = (Some(self.user), AtFlags::SYMLINK_NOFOLLOW);
        chownat(parent, name, owner, Some(self.group), flags)?;
        if kind != EntryType::Symlink {
            chmodat(parent, name, self.mode, AtFlags::empty())?;
        }
        utimensat(parent, name, &self.times, flags)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
