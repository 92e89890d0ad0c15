//! What a pod takes of the disk: a walk over trees that the pod itself arranges, as it likes, while we look.
//!
//! No link is followed, no other file system entered, no path built: directories are opened one from another, and the way
//! back is checked. However deep or wide a tree is, a walk holds one descriptor, little memory, and ends in time; what it
//! has counted until then is a lower bound. Files that were unlinked and are still open are found through their processes.

use std::collections::{BTreeMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use tokio::time::Instant;

/// Bytes of names of directories that wait for a visit.
const WAITING: usize = 32 << 20;
/// Files of several names that are remembered, so that they count once; later ones count with each name.
const LINKED: usize = 200_000;
/// Entries between looks at the clock.
const LOOK: u64 = 256;
/// `st_blocks` counts these, whatever the file system's own are.
const BLOCK: u64 = 512;
/// `OVERLAYFS_SUPER_MAGIC` of the kernel's magic.h.
const OVERLAY: u32 = 0x794c_7630;

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
}

struct Walk {
    device: u64,
    usage: Usage,
    linked: HashSet<u64>,
    waiting: usize,
    deadline: Instant,
}

/// What the tree at a path takes, of the file system that its top is on. Nothing for what is not there.
pub(crate) fn measure(top: &Path, deadline: Instant) -> io::Result<Usage> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(CWD, top, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(rustix::io::Errno::NOENT) => return Ok(Usage::default()),
        Err(error) => return Err(error.into()),
    };
    let stat = rustix::fs::fstat(&directory)?;
    let mut walk = Walk {
        device: stat.st_dev,
        usage: Usage::default(),
        linked: HashSet::new(),
        waiting: 0,
        deadline,
    };
    walk.count(&stat);
    walk.run(directory, &stat)?;
    Ok(walk.usage)
}

impl Walk {
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

    fn run(&mut self, top: OwnedFd, stat: &Stat) -> io::Result<()> {
        let mut current = top;
        let mut levels = vec![self.read(&current, stat)?];
        while let Some(level) = levels.last_mut() {
            if Instant::now() >= self.deadline {
                return Ok(());
            }
            if let Some(name) = level.waiting.pop() {
                self.waiting -= name.as_bytes().len();
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                // Gone, or something else by now: then it is not to be counted.
                let Ok(below) = rustix::fs::openat(&current, &name, flags, Mode::empty()) else {
                    continue;
                };
                let stat = rustix::fs::fstat(&below)?;
                if stat.st_dev == self.device {
                    levels.push(self.read(&below, &stat)?);
                    current = below;
                }
                continue;
            }
            levels.pop();
            let Some(above) = levels.last() else { break };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            current = rustix::fs::openat(&current, "..", flags, Mode::empty())?;
            let stat = rustix::fs::fstat(&current)?;
            if (stat.st_dev, stat.st_ino) != (above.device, above.inode) {
                // Somebody moved it meanwhile; the next walk finds it where it is then.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Counts what is in a directory.
    fn read(&mut self, directory: &OwnedFd, stat: &Stat) -> io::Result<Level> {
        let mut level = Level {
            device: stat.st_dev,
            inode: stat.st_ino,
            waiting: Vec::new(),
        };
        let mut looked = 0_u64;
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if [b"." as &[u8], b".."].contains(&name.to_bytes()) {
                continue;
            }
            looked += 1;
            if looked.is_multiple_of(LOOK) && Instant::now() >= self.deadline {
                break;
            }
            let Ok(stat) = rustix::fs::statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
            else {
                continue;
            };
            if stat.st_dev != self.device {
                continue;
            }
            self.count(&stat);
            if is_directory(&stat) && self.waiting < WAITING {
                self.waiting += name.to_bytes().len();
                level.waiting.push(name.to_owned());
            }
        }
        Ok(level)
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What processes hold of a disk without a name: files that were unlinked and are still open. `wanted` says whose a
/// process is, by its cgroups as /proc writes them; `device` is that of the disk.
pub(crate) fn unlinked(
    device: u64,
    wanted: impl Fn(&str) -> Option<String>,
    deadline: Instant,
) -> BTreeMap<String, Usage> {
    let mut held: BTreeMap<String, Usage> = BTreeMap::new();
    let mut seen = HashSet::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        if Instant::now() >= deadline {
            break;
        }
        let process = process.path();
        // It may have ended.
        let Ok(cgroups) = std::fs::read_to_string(process.join("cgroup")) else {
            continue;
        };
        let Some(owner) = wanted(&cgroups) else {
            continue;
        };
        // A mapping holds a file as well as a descriptor does.
        let files = ["fd", "map_files"].map(|kind| std::fs::read_dir(process.join(kind)));
        for file in files.into_iter().flatten().flatten().flatten() {
            let path = file.path();
            let Ok(metadata) = path.metadata() else {
                continue;
            };
            if !metadata.is_file() || metadata.nlink() > 0 {
                continue;
            }
            // Through a container's root file system, files show numbers of its own.
            let here = metadata.dev() == device || is_overlay(&path);
            if here && seen.insert((metadata.dev(), metadata.ino())) {
                *held.entry(owner.clone()).or_default() += Usage {
                    bytes: metadata.blocks().saturating_mul(BLOCK),
                    inodes: 1,
                };
            }
        }
    }
    held
}

fn is_overlay(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u32 == OVERLAY)
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
    fn what_is_unlinked_and_open_is_found_at_its_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone");
        fs::write(&path, vec![1; 1 << 20]).unwrap();
        let _open = fs::File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let device = directory.path().metadata().unwrap().dev();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let owner = |cgroups: &str| (cgroups == own).then(|| "own".to_owned());
        let held = unlinked(device, owner, soon());
        assert!(held["own"].bytes >= 1 << 20, "{held:?}");
        assert!(unlinked(device, |_| None, soon()).is_empty());
    }
}
