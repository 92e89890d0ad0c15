//! What a pod takes of the disk: a walk over trees that the pod itself arranges, as it likes, while we look.
//!
//! No link is followed, nothing that is mounted is entered, no path built: directories are opened one from another, and
//! the way back is checked. However deep or wide a tree is, a walk holds few descriptors and little memory, and ends in
//! time; one that is not through then goes on later where it stopped, and what it has counted until then is a lower bound.
//!
//! A directory is opened as soon as its name is read: a name that is remembered may be another's when its turn comes, and
//! who renames all the time would hide what is below. Where one is gone even so, its directory is read again.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use tokio::time::Instant;

/// Bytes of entries that are read at a time; one with the longest name takes 280. They are few, so that little time is
/// between the reading of a name and the look at what it names.
const ENTRIES: usize = 512;
/// How often a directory is read of which other directories were gone before they could be opened.
const READINGS: u8 = 4;
/// Levels that are held open, so that what is moved out of the way there does not end a walk.
const HELD_OPEN: usize = 16;
/// Deeper ones are not entered, which makes a walk one that has missed something. Paths end at some 2000.
const DEEPEST: usize = 64 << 10;
/// Files that are remembered, so that they count once: so many of several names, and so many directories. Later ones
/// count with each name, or wherever they are met.
pub(super) const REMEMBERED: usize = 200_000;
/// Bytes of memory that one takes which is remembered.
pub(super) const MEMORY: usize = 20;
/// What a descriptor that is held counts as, in bytes of memory: where a thousand are held for all pods, it is enough.
pub(super) const DESCRIPTOR: usize = 128 << 10;
/// Entries between looks at the clock.
pub(super) const LOOK: usize = 256;
/// `st_blocks` counts these, whatever the file system's own are.
pub(super) const BLOCK: u64 = 512;

/// What something takes of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// A directory on the way down, as it must be found again on the way up.
struct Level {
    device: u64,
    inode: u64,
    /// Where it is read on; `None` once it has been read.
    unread: Option<u64>,
    /// How often it has been read. After the first time only directories count that are new.
    readings: u8,
    /// Whether this reading of it has missed a directory.
    missed: bool,
    /// While the walk is below it.
    held: Option<OwnedFd>,
}

impl Level {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            unread: Some(0),
            readings: 0,
            missed: false,
            held: None,
        }
    }
}

/// What was counted, each file once.
#[derive(Default)]
struct Tally {
    usage: Usage,
    /// Files of several names, by device and inode: subvolumes of one file system have devices of their own.
    linked: HashSet<(u64, u64)>,
    /// Directories, which may be moved while the walk goes on, or be met again.
    entered: HashSet<(u64, u64)>,
}

impl Tally {
    /// Whether it is a directory that was not counted yet.
    fn enters(&mut self, stat: &Stat) -> bool {
        let is_new = is_new(&mut self.entered, stat);
        if is_new {
            self.add(stat);
        }
        is_new
    }

    fn count(&mut self, stat: &Stat) {
        if stat.st_nlink <= 1 || is_new(&mut self.linked, stat) {
            self.add(stat);
        }
    }

    fn add(&mut self, stat: &Stat) {
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.usage += Usage {
            bytes: blocks.saturating_mul(BLOCK),
            inodes: 1,
        };
    }
}

/// Whether a file is none of those that are remembered, which it is from now on.
fn is_new(seen: &mut HashSet<(u64, u64)>, stat: &Stat) -> bool {
    let file = (stat.st_dev, stat.st_ino);
    if seen.contains(&file) {
        return false;
    }
    if seen.len() < REMEMBERED {
        seen.insert(file);
    }
    true
}

/// A walk over the tree at a path, within the mount that its top is on.
pub(super) struct Walk {
    tally: Tally,
    /// From the top to where the walk is; empty when it is through.
    levels: Vec<Level>,
    /// The last of them.
    current: OwnedFd,
    lost: bool,
}

/// What a name in a directory stands for.
enum Entry {
    Directory(OwnedFd, Stat),
    File(Stat),
    /// A directory, which has another name by now or none.
    Gone,
    /// Nothing that counts here: a file that was removed, or something mounted.
    Nothing,
}

impl Entry {
    /// `kind` is what the directory said, which may be that it does not know.
    fn at(directory: impl AsFd, name: &CStr, kind: FileType) -> Self {
        let directory = directory.as_fd();
        let is_unknown = kind == FileType::Unknown;
        if is_unknown || kind == FileType::Directory {
            match open(directory, name) {
                Ok((below, stat)) => return Self::Directory(below, stat),
                Err(Errno::NOTDIR | Errno::LOOP) if is_unknown => {}
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Self::Gone,
                Err(_) => return Self::Nothing,
            }
        }
        match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_directory(&stat) => Self::Gone,
            Ok(stat) => Self::File(stat),
            Err(_) => Self::Nothing,
        }
    }
}

/// Opens a directory in another, which must be one, and of the same mount: `XDEV` is that it is of another. A subvolume
/// of btrfs is none, and anybody may make one.
fn open(directory: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<(OwnedFd, Stat)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let opened = rustix::fs::openat2(directory, name, flags, Mode::empty(), within)?;
    let stat = rustix::fs::fstat(&opened)?;
    Ok((opened, stat))
}

impl Walk {
    /// Nothing when nothing is there, or something is mounted there.
    pub(super) fn begin(top: &Path) -> io::Result<Option<Self>> {
        let (Some(above), Some(name)) = (top.parent(), top.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = rustix::fs::openat(CWD, above, flags, Mode::empty());
        let (current, stat) = match above.and_then(|above| open(above, name)) {
            Err(Errno::NOENT | Errno::XDEV) => return Ok(None),
            opened => opened?,
        };
        let mut tally = Tally::default();
        tally.enters(&stat);
        Ok(Some(Self {
            tally,
            levels: vec![Level::of(&stat)],
            current,
            lost: false,
        }))
    }

    /// Goes on until it is through, or out of time. Whether it is through.
    pub(super) fn go_on(&mut self, deadline: Instant) -> bool {
        while !self.levels.is_empty() {
            if Instant::now() >= deadline {
                return false;
            }
            self.step(deadline);
        }
        true
    }

    fn step(&mut self, deadline: Instant) {
        let unread = self.levels.last_mut().and_then(|level| level.unread.take());
        match unread {
            Some(from) => self.read(from, deadline),
            None => self.ascend(),
        }
    }

    /// What it has counted so far.
    pub(super) fn usage(&self) -> Usage {
        self.tally.usage
    }

    /// Whether it has missed something, since the tree was changed below it or is out of bounds.
    pub(super) fn has_lost(&self) -> bool {
        self.lost
    }

    /// What it takes itself, in bytes of memory, its descriptors included.
    pub(super) fn memory(&self) -> usize {
        let remembered = self.tally.linked.capacity() + self.tally.entered.capacity();
        let highest = self.levels.iter().take(HELD_OPEN);
        let held = highest.filter(|level| level.held.is_some()).count();
        remembered * MEMORY + self.levels.capacity() * size_of::<Level>() + (held + 1) * DESCRIPTOR
    }

    fn descend(&mut self, below: OwnedFd, stat: &Stat) {
        if self.levels.len() >= DEEPEST {
            self.lost = true;
            return;
        }
        let above = std::mem::replace(&mut self.current, below);
        if self.levels.len() <= HELD_OPEN
            && let Some(level) = self.levels.last_mut()
        {
            level.held = Some(above);
        }
        self.levels.push(Level::of(stat));
    }

    /// To the level above; where somebody has moved that away meanwhile, to the next that is held open.
    fn ascend(&mut self) {
        self.levels.pop();
        let Some(above) = self.levels.last_mut() else {
            return;
        };
        if let Some(held) = above.held.take() {
            self.current = held;
            return;
        }
        match open(&self.current, "..") {
            Ok((found, stat)) if (stat.st_dev, stat.st_ino) == (above.device, above.inode) => {
                self.current = found;
            }
            _ => {
                self.lost = true;
                while let Some(level) = self.levels.last_mut() {
                    if let Some(held) = level.held.take() {
                        self.current = held;
                        return;
                    }
                    self.levels.pop();
                }
            }
        }
    }

    /// Counts what is in the current directory, from a place in it on: up to a directory, which the walk goes down into,
    /// and as far as time goes.
    fn read(&mut self, from: u64, deadline: Instant) {
        let Some(level) = self.levels.last_mut() else {
            return;
        };
        // What cannot be read any more was removed.
        if rustix::fs::seek(&self.current, SeekFrom::Start(from)).is_err() {
            return;
        }
        let mut buffer = [MaybeUninit::uninit(); ENTRIES];
        let mut entries = RawDir::new(&self.current, &mut buffer);
        let mut looked = 0_usize;
        while let Some(Ok(entry)) = entries.next() {
            let (name, kind) = (entry.file_name(), entry.file_type());
            let may_be_directory = matches!(kind, FileType::Directory | FileType::Unknown);
            let is_own = [b"." as &[u8], b".."].contains(&name.to_bytes());
            if !is_own && (may_be_directory || level.readings == 0) {
                match Entry::at(&self.current, name, kind) {
                    Entry::Directory(below, stat) if self.tally.enters(&stat) => {
                        level.unread = Some(entry.next_entry_cookie());
                        self.descend(below, &stat);
                        return;
                    }
                    Entry::File(stat) if level.readings == 0 => self.tally.count(&stat),
                    Entry::Gone => level.missed = true,
                    Entry::Directory(..) | Entry::File(_) | Entry::Nothing => {}
                }
            }
            looked += 1;
            if looked.is_multiple_of(LOOK) && Instant::now() >= deadline {
                level.unread = Some(entry.next_entry_cookie());
                return;
            }
        }
        if std::mem::take(&mut level.missed) {
            level.readings += 1;
            // Those that were not remembered would count again.
            let are_known = self.tally.entered.len() < REMEMBERED;
            if level.readings < READINGS && are_known {
                level.unread = Some(0);
            } else {
                self.lost = true;
            }
        }
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// What the tree at a path takes, as far as that is found out in time.
    fn measure(top: &Path, deadline: Instant) -> io::Result<Usage> {
        let Some(mut walk) = Walk::begin(top)? else {
            return Ok(Usage::default());
        };
        walk.go_on(deadline);
        Ok(walk.usage())
    }

    #[test]
    fn files_count_once_and_what_is_elsewhere_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir_all(top.join("a/b")).unwrap();
        let empty = measure(&top, soon()).unwrap();
        assert_eq!(empty.inodes, 3);
        fs::write(top.join("a/b/data"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(top.join("a/b/data"), top.join("again")).unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("data"), vec![1; 1 << 20]).unwrap();
        symlink(&outside, top.join("link")).unwrap();
        symlink("/", top.join("root")).unwrap();
        symlink("..", top.join("a/up")).unwrap();
        let sparse = fs::File::create(top.join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        let found = measure(&top, soon()).unwrap();
        let grown = found.bytes - empty.bytes;
        assert!((1 << 20..(1 << 20) + 65_536).contains(&grown), "{grown}");
        assert_eq!(found.inodes, 3 + 1 + 3 + 1);
        assert_eq!(
            measure(&directory.path().join("none"), soon()).unwrap(),
            Usage::default()
        );
        assert!(
            measure(&top.join("link"), soon()).is_err(),
            "a link is no top"
        );
    }

    #[test]
    fn a_tree_may_be_deeper_than_paths_and_descriptors_go() {
        let directory = tempfile::tempdir().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut current = rustix::fs::open(directory.path(), flags, Mode::empty()).unwrap();
        let depth = 3_000;
        for _ in 0..depth {
            rustix::fs::mkdirat(&current, "d", Mode::from_raw_mode(0o700)).unwrap();
            current = rustix::fs::openat(&current, "d", flags, Mode::empty()).unwrap();
        }
        let found = measure(directory.path(), soon()).unwrap();
        assert_eq!(found.inodes, depth + 1);
        let late = measure(directory.path(), Instant::now()).unwrap();
        assert!(late.inodes < depth, "it ends in time");
    }

    #[test]
    fn a_walk_that_runs_out_of_time_goes_on_where_it_stopped() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..5 {
            let below = directory.path().join(format!("d{number}"));
            fs::create_dir(&below).unwrap();
            for file in 0..2 * LOOK {
                fs::write(below.join(file.to_string()), "").unwrap();
            }
        }
        let whole = measure(directory.path(), soon()).unwrap();
        assert_eq!(whole.inodes, 1 + 5 + 5 * 2 * LOOK as u64);
        let mut walk = Walk::begin(directory.path()).unwrap().unwrap();
        let mut rounds = 0;
        // Each of a single step, as long as there is no more time.
        while !walk.levels.is_empty() {
            let before = walk.usage().inodes;
            walk.step(Instant::now());
            assert!(walk.usage().inodes - before <= LOOK as u64);
            rounds += 1;
        }
        assert!(rounds > 10, "{rounds}");
        assert_eq!((walk.usage(), walk.has_lost()), (whole, false));
        assert!(walk.go_on(Instant::now()), "it is through");
    }

    #[test]
    fn a_directory_is_read_again_when_one_in_it_was_missed() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::create_dir_all(directory.path().join(name).join("below")).unwrap();
            fs::write(directory.path().join(format!("file {name}")), "").unwrap();
        }
        let whole = measure(directory.path(), soon()).unwrap();
        let mut walk = Walk::begin(directory.path()).unwrap().unwrap();
        walk.levels[0].missed = true;
        while walk.levels[0].readings == 0 {
            walk.step(soon());
        }
        assert_eq!(walk.usage(), whole);
        fs::create_dir(directory.path().join("renamed")).unwrap();
        assert!(walk.go_on(soon()) && !walk.has_lost());
        let again = measure(directory.path(), soon()).unwrap();
        assert_eq!(walk.usage().inodes, whole.inodes + 1, "nothing twice");
        assert_eq!(again.inodes, whole.inodes + 1);

        let mut walk = Walk::begin(directory.path()).unwrap().unwrap();
        walk.levels[0].readings = READINGS - 1;
        walk.levels[0].missed = true;
        assert!(walk.go_on(soon()) && walk.has_lost(), "it says so");
    }

    #[test]
    fn who_renames_all_the_time_hides_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir_all(top.join("h0")).unwrap();
        fs::write(top.join("h0/data"), vec![1; 4 << 20]).unwrap();
        for number in 0..2_000 {
            fs::write(top.join(number.to_string()), "").unwrap();
        }
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let renames = {
            let top = top.clone();
            std::thread::spawn(move || {
                let open = std::sync::mpsc::TryRecvError::Empty;
                let mut number = 0_u64;
                while wait.try_recv() == Err(open) {
                    let name = |number: u64| top.join(format!("h{number}"));
                    fs::rename(name(number), name(number + 1)).unwrap();
                    number += 1;
                }
            })
        };
        let deadline = soon();
        let mut is_found = false;
        while !is_found && Instant::now() < deadline {
            is_found = measure(&top, deadline).unwrap().bytes >= 4 << 20;
        }
        drop(done);
        renames.join().unwrap();
        assert!(is_found);
    }

    /// Needs root: something is mounted.
    #[test]
    fn what_is_mounted_is_not_the_pods() {
        let directory = tempfile::tempdir().unwrap();
        let (top, outside) = (
            directory.path().join("top"),
            directory.path().join("outside"),
        );
        fs::create_dir_all(top.join("mounted")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("data"), vec![1; 1 << 20]).unwrap();
        rustix::mount::mount_bind(&outside, top.join("mounted")).expect("this test needs root");
        let found = measure(&top, soon());
        let at_mount = measure(&top.join("mounted"), soon());
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(top.join("mounted"), flags).unwrap();
        assert_eq!(found.unwrap().inodes, 1, "though of the same device");
        assert_eq!(at_mount.unwrap(), Usage::default());
    }

    #[test]
    fn what_is_moved_or_removed_under_a_walk_does_not_end_it() {
        let directory = tempfile::tempdir().unwrap();
        let (top, away) = (directory.path().join("top"), directory.path().join("away"));
        let deep = ["d"; HELD_OPEN + 8].join("/");
        fs::create_dir_all(top.join("a").join(&deep)).unwrap();
        let mut walk = Walk::begin(&top).unwrap().unwrap();
        let wanted = HELD_OPEN + 9;
        while walk.levels.len() < wanted {
            walk.step(soon());
        }
        let moved = ["d"; HELD_OPEN + 4].join("/");
        fs::rename(top.join("a").join(moved), &away).unwrap();
        // Wherever these are in their directory: that one is read once more.
        fs::create_dir_all(top.join("b/c")).unwrap();
        walk.levels[0].missed = true;
        assert!(walk.go_on(soon()));
        assert!(walk.has_lost(), "it says so");
        assert_eq!(walk.usage().inodes, wanted as u64 + 1 + 2);

        let mut walk = Walk::begin(&away).unwrap().unwrap();
        fs::remove_dir_all(&away).unwrap();
        assert!(walk.go_on(soon()) && !walk.has_lost());
    }
}
