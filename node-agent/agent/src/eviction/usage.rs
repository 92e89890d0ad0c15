//! What a pod takes of the disk: a walk over trees that the pod itself arranges, as it likes, while we look.
//!
//! No link is followed, no other file system entered, no path built: directories are opened one from another, and the way
//! back is checked. However deep or wide a tree is, a walk holds few descriptors and little memory, and ends in time; one
//! that is not through then goes on later where it stopped, and what it has counted until then is a lower bound.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use tokio::time::Instant;

/// Bytes of memory for the names of directories that wait for a visit. Directories are read further when those are done.
const WAITING: usize = 8 << 20;
/// What a name that waits takes beside its letters, in bytes.
const NAME: usize = 48;
/// Levels that are held open, so that what is moved out of the way there does not end a walk.
const HELD_OPEN: usize = 16;
/// Deeper ones are not entered, which makes a walk one that has missed something. Paths end at some 2000.
const DEEPEST: usize = 64 << 10;
/// Files of several names that are remembered, so that they count once; later ones count with each name.
pub(super) const LINKED: usize = 200_000;
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
    /// Those of its directories that are still to be visited.
    waiting: Vec<CString>,
    /// Where it is read on; `None` once it has been read.
    unread: Option<i64>,
    /// While the walk is below it.
    held: Option<OwnedFd>,
}

impl Level {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            waiting: Vec::new(),
            unread: Some(0),
            held: None,
        }
    }
}

/// A walk over the tree at a path, on the file system that its top is on.
pub(super) struct Walk {
    device: u64,
    usage: Usage,
    linked: HashSet<u64>,
    /// Bytes of memory that names take which wait.
    waiting: usize,
    /// From the top to where the walk is; empty when it is through.
    levels: Vec<Level>,
    /// The last of them.
    current: OwnedFd,
    lost: bool,
}

fn open(directory: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<(OwnedFd, Stat)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&opened)?;
    Ok((opened, stat))
}

fn memory(name: &CStr) -> usize {
    name.to_bytes().len() + NAME
}

impl Walk {
    /// Nothing when nothing is there.
    pub(super) fn begin(top: &Path) -> io::Result<Option<Self>> {
        let (current, stat) = match open(CWD, top) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            opened => opened?,
        };
        let mut walk = Self {
            device: stat.st_dev,
            usage: Usage::default(),
            linked: HashSet::new(),
            waiting: 0,
            levels: vec![Level::of(&stat)],
            current,
            lost: false,
        };
        walk.count(&stat);
        Ok(Some(walk))
    }

    /// Goes on until it is through, or out of time. Whether it is through.
    pub(super) fn go_on(&mut self, deadline: Instant) -> bool {
        while let Some(level) = self.levels.last_mut() {
            if Instant::now() >= deadline {
                return false;
            }
            if let Some(name) = level.waiting.pop() {
                self.waiting -= memory(&name);
                self.descend(&name);
            } else if let Some(from) = level.unread.take() {
                self.read(from, deadline);
            } else {
                self.ascend();
            }
        }
        true
    }

    /// What it has counted so far.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// Whether it has missed something, since the tree was changed below it or is out of bounds.
    pub(super) fn has_lost(&self) -> bool {
        self.lost
    }

    fn count(&mut self, stat: &Stat) {
        let several = stat.st_nlink > 1 && !is_directory(stat);
        if several && self.linked.len() < LINKED && !self.linked.insert(stat.st_ino) {
            return;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.usage += Usage {
            bytes: blocks.saturating_mul(BLOCK),
            inodes: 1,
        };
    }

    fn descend(&mut self, name: &CStr) {
        if self.levels.len() >= DEEPEST {
            self.lost = true;
            return;
        }
        // Gone, or something else by now: then it is not to be counted.
        let Ok((below, stat)) = open(&self.current, name) else {
            return;
        };
        if stat.st_dev != self.device {
            return;
        }
        let above = std::mem::replace(&mut self.current, below);
        if self.levels.len() <= HELD_OPEN
            && let Some(level) = self.levels.last_mut()
        {
            level.held = Some(above);
        }
        self.levels.push(Level::of(&stat));
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
                    let names: usize = level.waiting.iter().map(|name| memory(name)).sum();
                    self.waiting -= names;
                    self.levels.pop();
                }
            }
        }
    }

    /// Counts what is in the current directory, from a place in it on, as far as memory and time go.
    fn read(&mut self, from: i64, deadline: Instant) {
        // What cannot be read any more was removed.
        let Ok(mut directory) = Dir::read_from(&self.current) else {
            return;
        };
        if from != 0 && directory.seek(from).is_err() {
            return;
        }
        let (mut waiting, mut unread) = (Vec::new(), None);
        let mut looked = 0_usize;
        while let Some(Ok(entry)) = directory.read() {
            let name = entry.file_name();
            self.look_at(name, &mut waiting);
            looked += 1;
            let full = self.waiting >= WAITING && !waiting.is_empty();
            if full || looked.is_multiple_of(LOOK) && Instant::now() >= deadline {
                unread = Some(entry.offset());
                break;
            }
        }
        if let Some(level) = self.levels.last_mut() {
            (level.waiting, level.unread) = (waiting, unread);
        }
    }

    fn look_at(&mut self, name: &CStr, waiting: &mut Vec<CString>) {
        if [b"." as &[u8], b".."].contains(&name.to_bytes()) {
            return;
        }
        let found = rustix::fs::statat(&self.current, name, AtFlags::SYMLINK_NOFOLLOW);
        let Ok(stat) = found else { return };
        if stat.st_dev != self.device {
            return;
        }
        self.count(&stat);
        if is_directory(&stat) {
            self.waiting += memory(name);
            waiting.push(name.to_owned());
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
        while let Some(level) = walk.levels.last_mut() {
            let before = walk.usage.inodes;
            match level.unread.take() {
                Some(from) if level.waiting.is_empty() => walk.read(from, Instant::now()),
                unread => {
                    level.unread = unread;
                    match level.waiting.pop() {
                        Some(name) => {
                            walk.waiting -= memory(&name);
                            walk.descend(&name);
                        }
                        None => walk.ascend(),
                    }
                }
            }
            assert!(walk.usage.inodes - before <= LOOK as u64);
            rounds += 1;
        }
        assert!(rounds > 10, "{rounds}");
        assert_eq!((walk.usage(), walk.has_lost()), (whole, false));
        assert!(walk.go_on(Instant::now()), "it is through");
    }

    #[test]
    fn directories_that_find_no_memory_to_wait_in_are_visited_later() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..100 {
            fs::create_dir_all(directory.path().join(format!("{number}/below"))).unwrap();
        }
        let mut walk = Walk::begin(directory.path()).unwrap().unwrap();
        walk.waiting = WAITING;
        assert!(walk.go_on(soon()));
        assert_eq!(walk.usage().inodes, 201);
        assert_eq!(walk.waiting, WAITING);
    }

    #[test]
    fn what_is_moved_or_removed_under_a_walk_does_not_end_it() {
        let directory = tempfile::tempdir().unwrap();
        let (top, away) = (directory.path().join("top"), directory.path().join("away"));
        let deep = ["d"; HELD_OPEN + 8].join("/");
        fs::create_dir_all(top.join("a").join(&deep)).unwrap();
        fs::create_dir_all(top.join("b/c")).unwrap();
        let mut walk = Walk::begin(&top).unwrap().unwrap();
        let wanted = HELD_OPEN + 9;
        // `a` last, so that it is visited first.
        walk.read(0, soon());
        walk.levels[0].unread = None;
        walk.levels[0].waiting.sort();
        walk.levels[0].waiting.reverse();
        while walk.levels.len() < wanted {
            let name = walk.levels.last_mut().unwrap().waiting.pop().unwrap();
            walk.waiting -= memory(&name);
            walk.descend(&name);
            walk.read(0, soon());
            walk.levels.last_mut().unwrap().unread = None;
        }
        let moved = ["d"; HELD_OPEN + 4].join("/");
        fs::rename(top.join("a").join(moved), &away).unwrap();
        assert!(walk.go_on(soon()));
        assert!(walk.has_lost(), "it says so");
        assert_eq!(walk.usage().inodes, wanted as u64 + 1 + 2);
        assert_eq!(walk.waiting, 0);

        let mut walk = Walk::begin(&away).unwrap().unwrap();
        fs::remove_dir_all(&away).unwrap();
        assert!(walk.go_on(soon()) && !walk.has_lost());
    }
}
