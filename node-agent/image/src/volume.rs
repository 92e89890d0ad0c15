//! Volumes that an image asks for (`VOLUME`): directories of a container's own beside its root file system, which begin as
//! copies of what the image has there. Like other volumes they hold the ids that the container sees.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use gantry_idmap::{IDS, IdBlock};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
    fstat, ftruncate, futimens, linkat, mkdirat, mknodat, openat, readlinkat, seek, statat,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::room;
use crate::root::{copy_attributes, invalid};

/// What is remembered of a copy under way: of some 300,000 directories and files with several names.
const KEPT_BYTES: usize = 64 << 20;
/// Of each, beside the letters of its path.
const KEPT_OVERHEAD: usize = 200;
/// What a file takes of a disk at least.
const FILE_BYTES: u64 = 512;
/// What overlayfs notes for itself; it shows none of it, as a rule.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Names a user in its value, which would be another one in a pod with users of its own.
const CAPABILITY: &[u8] = b"security.capability";

/// Makes the directory `place`, unless it is there, with a copy of the directory at `path` of a mounted root file system;
/// an empty one of root's when the image has nothing there. `ids` are those that the pod has for itself.
pub(crate) fn make(
    rootfs: &Path,
    path: &Path,
    place: &Path,
    ids: Option<IdBlock>,
) -> io::Result<()> {
    if place.exists() {
        return Ok(());
    }
    // Under its name it is whole.
    let mut fresh = place.as_os_str().to_owned();
    fresh.push("~");
    let fresh = PathBuf::from(fresh);
    gantry_durable::remove_tree(&fresh)?;
    std::fs::create_dir_all(&fresh)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(0o755))?;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, directory, Mode::empty())?;
    match gantry_durable::open_inside(&root, path, directory) {
        Ok(from) => {
            let copy = Copying {
                from,
                to: rustix::fs::open(&fresh, directory, Mode::empty())?,
                disk: &fresh,
                ids,
                links: BTreeMap::new(),
                kept: 0,
                unseen: 0,
            };
            copy.run()?;
        }
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    std::fs::rename(&fresh, place)
}

/// What is to be done with a directory, by its path.
enum Step {
    /// To copy what is in it.
    Enter(PathBuf),
    /// To give it its times, which what is copied into it has changed.
    Leave(PathBuf, Stat),
}

/// A copy under way. A loop and no recursion: an image's directories may be deep.
struct Copying<'a> {
    from: OwnedFd,
    to: OwnedFd,
    disk: &'a Path,
    ids: Option<IdBlock>,
    /// Where files with several names were first met.
    links: BTreeMap<(u64, u64), PathBuf>,
    /// Bytes of memory that hold paths.
    kept: usize,
    /// Bytes since the last look at how full the disk is.
    unseen: u64,
}

impl Copying<'_> {
    fn run(mut self) -> io::Result<()> {
        let whole = fstat(&self.from)?;
        self.give(&self.from, &self.to, c".", &whole)?;
        let top = PathBuf::new();
        let mut ahead = vec![Step::Leave(top.clone(), whole), Step::Enter(top)];
        while let Some(step) = ahead.pop() {
            match step {
                Step::Enter(path) => self.directory(&path, &mut ahead)?,
                Step::Leave(path, stat) => {
                    self.kept = self.kept.saturating_sub(cost(&path));
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                    let made = gantry_durable::open_inside(&self.to, &path, flags)?;
                    futimens(&made, &times(&stat))?;
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, ahead: &mut Vec<Step>) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let from = gantry_durable::open_inside(&self.from, path, flags)?;
        let to = gantry_durable::open_inside(&self.to, path, flags)?;
        for entry in Dir::read_from(&from)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let own = path.join(OsStr::from_bytes(name.to_bytes()));
            self.entry(&from, &to, name, &own, ahead).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", own.display()))
            })?;
        }
        Ok(())
    }

    /// Copies what has this name in a directory; `path` is where that is.
    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        path: &Path,
        ahead: &mut Vec<Step>,
    ) -> io::Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.take_room(FILE_BYTES)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                self.keep(path)?;
                ahead.push(Step::Leave(path.to_owned(), stat));
                ahead.push(Step::Enter(path.to_owned()));
            }
            FileType::RegularFile => {
                let file = (stat.st_dev, stat.st_ino);
                if let Some(first) = self.links.get(&file) {
                    return Ok(linkat(&self.to, first, to, name, AtFlags::empty())?);
                }
                if stat.st_nlink > 1 {
                    self.keep(path)?;
                    self.links.insert(file, path.to_owned());
                }
                self.file(from, to, name)?;
            }
            FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
            kind => mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        self.give(from, to, name, &stat)
    }

    /// Copies a file's content, and its holes as holes.
    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut source = File::from(openat(from, name, flags, Mode::empty())?);
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut target = File::from(openat(to, name, flags, Mode::RUSR | Mode::WUSR)?);
        let size = source.metadata()?.len();
        let mut at = 0;
        while at < size {
            let data = match seek(&source, rustix::fs::SeekFrom::Data(at)) {
                // Nothing but a hole is left.
                Err(Errno::NXIO) => break,
                found => found?,
            };
            at = seek(&source, rustix::fs::SeekFrom::Hole(data))?;
            source.seek(io::SeekFrom::Start(data))?;
            target.seek(io::SeekFrom::Start(data))?;
            let mut left = at.saturating_sub(data);
            while left > 0 {
                let piece = left.min(room::LOOK);
                self.take_room(piece)?;
                let copied = io::copy(&mut (&source).take(piece), &mut target)?;
                if copied == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                left -= copied;
            }
        }
        Ok(ftruncate(&target, size)?)
    }

    /// Gives a copy what the original has beside its content; a directory its times later.
    fn give(&self, from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let (user, group) = (self.in_pod(stat.st_uid), self.in_pod(stat.st_gid));
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        chownat(to, name, Some(user), Some(group), flags)?;
        if kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            chmodat(to, name, mode, AtFlags::empty())?;
        }
        self.attributes(&named(from, name), &named(to, name))?;
        if kind != FileType::Directory {
            utimensat(to, name, &times(stat), flags)?;
        }
        Ok(())
    }

    /// The pod's number of a user or group of the node's; root's for those that it does not have.
    fn in_pod(&self, id: u32) -> u32 {
        self.ids.map_or(id, |ids| {
            let own = id.checked_sub(ids.first());
            own.filter(|own| *own < IDS).unwrap_or(0)
        })
    }

    fn attributes(&self, from: &Path, to: &Path) -> io::Result<()> {
        copy_attributes(from, to, |name| {
            OVERLAY.iter().any(|prefix| name.starts_with(prefix))
                || (name == CAPABILITY && self.ids.is_some())
        })
    }

    fn keep(&mut self, path: &Path) -> io::Result<()> {
        self.kept += cost(path);
        match self.kept <= KEPT_BYTES {
            true => Ok(()),
            false => Err(invalid(
                "the image has too many directories and hard links there",
            )),
        }
    }

    /// Looks now and then whether the disk has room for so much more.
    fn take_room(&mut self, bytes: u64) -> io::Result<()> {
        self.unseen += bytes;
        if self.unseen < room::LOOK {
            return Ok(());
        }
        self.unseen = 0;
        room::check(self.disk)
    }
}

/// What a path takes in memory.
fn cost(path: &Path) -> usize {
    path.as_os_str().len() + KEPT_OVERHEAD
}

/// A path to what has a name in a directory: there are no calls for attributes that take both.
fn named(directory: &OwnedFd, name: &CStr) -> PathBuf {
    let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    path.join(OsStr::from_bytes(name.to_bytes()))
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests;
