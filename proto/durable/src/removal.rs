//! Removes trees that somebody else arranged, as deep, as wide and as oddly as they liked.
//!
//! `std::fs::remove_dir_all` calls itself for each level and keeps a descriptor open on each: tens of thousands of
//! directories within each other take the stack of its thread, which ends the process, or all descriptors of it. Here a
//! pass over a tree is a loop: it holds three descriptors, a buffer of names, and 24 bytes for each level that it has come
//! down, up to a bound. Directories are opened one from another, and the way back is checked; no link is followed, and
//! nothing that is mounted is entered. A subvolume of btrfs, which anybody may make, goes as a directory does, also one
//! that was made read-only.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, SeekFrom};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, opcode};
use rustix::path::Arg;

use crate::directory_of;

/// Passes over a tree. One is enough, except where a tree is deeper than [`LEVELS`], and on file systems whose places in a
/// directory move when entries go: there each pass takes half of what is left. Whoever writes while we remove is not
/// waited for.
const PASSES: u32 = 64;
/// Levels whose way back is remembered, 24 bytes each. What is above them goes in the next pass.
const LEVELS: usize = 1 << 20;
/// Bytes of entries that are read at a time; one with the longest name takes 280.
const ENTRIES: usize = 8 << 10;
/// `BTRFS_SUPER_MAGIC` of the kernel's magic.h.
const BTRFS: u32 = 0x9123_683e;
/// `BTRFS_IOC_SUBVOL_SETFLAGS` of the kernel's btrfs.h.
const SET_SUBVOLUME_FLAGS: Opcode = opcode::write::<u64>(0x94, 26);
/// How directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes a file, or a directory with everything in it; a link goes, and what it leads to stays. Nothing there is fine.
/// Something mounted in the tree is an error, and stays as it is.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(directory_of(path), flags, Mode::empty()) {
        Ok(directory) => remove_at(directory, name),
        // Below a file there is nothing either.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// As [`remove_tree`], for a name in an opened directory.
pub fn remove_at(directory: impl AsFd, name: &OsStr) -> io::Result<()> {
    remove(directory.as_fd(), name, LEVELS)
}

fn remove(directory: BorrowedFd<'_>, name: &OsStr, levels: usize) -> io::Result<()> {
    for _ in 0..PASSES {
        if goes(directory, name)? {
            return Ok(());
        }
        empty(enter(directory, name)?, levels)?;
    }
    match goes(directory, name)? {
        true => Ok(()),
        false => Err(Errno::NOTEMPTY.into()),
    }
}

/// Removes an entry, unless it is a directory with something in it: then false.
fn goes(directory: BorrowedFd<'_>, name: impl Arg + Copy) -> io::Result<bool> {
    let mut removed = rustix::fs::unlinkat(directory, name, AtFlags::empty());
    if removed == Err(Errno::ISDIR) {
        removed = rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR);
    }
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// As [`goes`], also where the directory is a subvolume that was made read-only: that is undone, once for each entry.
fn goes_from(directory: BorrowedFd<'_>, name: impl Arg + Copy) -> io::Result<bool> {
    match goes(directory, name) {
        Err(error)
            if error.kind() == ErrorKind::ReadOnlyFilesystem && becomes_writable(directory) =>
        {
            goes(directory, name)
        }
        gone => gone,
    }
}

/// Whether a directory is the top of a btrfs subvolume, which is not read-only any more. What is below the top of one that
/// is cannot fail first: we come from above.
fn becomes_writable(directory: BorrowedFd<'_>) -> bool {
    let found = rustix::fs::fstatfs(directory);
    if !found.is_ok_and(|found| found.f_type as u32 == BTRFS) {
        return false;
    }
    #[expect(unsafe_code, reason = "this control of btrfs has no safe wrapper")]
    // SAFETY: the kernel's header says of this number that it reads a u64, and the file system is one that knows it.
    let cleared = unsafe {
        let none = Setter::<SET_SUBVOLUME_FLAGS, u64>::new(0);
        rustix::ioctl::ioctl(directory, none)
    };
    cleared.is_ok()
}

/// Opens a directory in another, which must be one, and of the same mount.
fn enter(directory: BorrowedFd<'_>, name: impl Arg) -> io::Result<OwnedFd> {
    let within = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let entered = rustix::fs::openat2(directory, name, DIRECTORY, Mode::empty(), within)?;
    Ok(entered)
}

/// A directory on the way down, as it must be found again on the way up.
struct Level {
    device: u64,
    inode: u64,
    /// Where in it the directory is that was gone into.
    at: u64,
}

/// A pass over what is in a directory.
fn empty(top: OwnedFd, levels: usize) -> io::Result<()> {
    let mut above: VecDeque<Level> = VecDeque::new();
    let mut current = top;
    let mut buffer = Vec::with_capacity(ENTRIES);
    let mut left = None;
    loop {
        if let Some((at, below)) = clear(current.as_fd(), left.take(), &mut buffer)? {
            let stat = rustix::fs::fstat(&current)?;
            if above.len() >= levels {
                above.pop_front();
            }
            above.push_back(Level {
                device: stat.st_dev,
                inode: stat.st_ino,
                at,
            });
            current = below;
            continue;
        }
        let Some(level) = above.pop_back() else {
            return Ok(());
        };
        current = rustix::fs::openat(&current, "..", DIRECTORY, Mode::empty())?;
        let stat = rustix::fs::fstat(&current)?;
        if (stat.st_dev, stat.st_ino) != (level.device, level.inode) {
            return Err(io::Error::other(
                "a directory was moved while the tree that it is in was being removed",
            ));
        }
        left = Some(level.at);
    }
}

/// Removes what is in a directory, up to a directory that has something in it: answers where that is, and the directory.
/// `left` is where the one is that we come from. It is empty now; if it is not, somebody writes to it, and it is left to
/// the next pass, so that this one ends.
fn clear(
    directory: BorrowedFd<'_>,
    left: Option<u64>,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(u64, OwnedFd)>> {
    let mut at = left.unwrap_or(0);
    let mut is_left = left.is_some();
    rustix::fs::seek(directory, SeekFrom::Start(at))?;
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let here = std::mem::replace(&mut at, entry.next_entry_cookie());
        let name = entry.file_name();
        if [b"." as &[u8], b".."].contains(&name.to_bytes()) {
            continue;
        }
        let was_left = std::mem::take(&mut is_left);
        if !goes_from(directory, name)? && !was_left {
            return Ok(Some((here, enter(directory, name)?)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Directories within each other, more than a path could name.
    fn nest(top: &Path, depth: usize) {
        fs::create_dir(top).expect("makes a directory");
        let mut current = rustix::fs::open(top, DIRECTORY, Mode::empty()).expect("opens it");
        for _ in 0..depth {
            rustix::fs::mkdirat(&current, "d", Mode::from_raw_mode(0o700)).expect("goes deeper");
            current = rustix::fs::openat(&current, "d", DIRECTORY, Mode::empty()).expect("opens");
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(&current, "f", flags, Mode::from_raw_mode(0o600)).expect("a file");
    }

    #[test]
    fn depth_takes_neither_stack_nor_descriptors() {
        let around = tempfile::tempdir().expect("a directory");
        let top = around.path().join("top");
        nest(&top, 5_000);
        // remove_dir_all needs more than this for a tenth of the levels.
        let removed = std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn({
                let top = top.clone();
                move || remove_tree(&top)
            })
            .expect("a thread");
        removed.join().expect("it ends").expect("it is removed");
        assert!(!top.exists());
    }

    #[test]
    fn a_tree_goes_that_is_deeper_than_what_is_remembered() {
        let around = tempfile::tempdir().expect("a directory");
        nest(&around.path().join("top"), 100);
        let directory = rustix::fs::open(around.path(), DIRECTORY, Mode::empty()).expect("opens");
        let name = OsStr::new("top");
        remove(directory.as_fd(), name, 7).expect("it is removed");
        assert!(!around.path().join("top").exists());
    }

    #[test]
    fn width_is_read_in_parts_and_links_are_not_followed() {
        let around = tempfile::tempdir().expect("a directory");
        let (top, outside) = (around.path().join("top"), around.path().join("outside"));
        fs::create_dir(&outside).expect("makes a directory");
        fs::write(outside.join("kept"), "x").expect("writes");
        for name in 0..1_000 {
            let directory = top.join(format!("a directory with a name, {name}"));
            fs::create_dir_all(directory.join("empty")).expect("makes directories");
            fs::write(directory.join("file"), "x").expect("writes");
            fs::write(top.join(format!("file {name}")), "x").expect("writes");
            symlink(&outside, directory.join("link")).expect("links");
        }
        symlink("/", top.join("root")).expect("links");
        symlink("nowhere", top.join("dangling")).expect("links");
        remove_tree(&top).expect("it is removed");
        assert!(!top.exists());
        symlink(&outside, &top).expect("links");
        remove_tree(&top).expect("the link is removed");
        assert!(top.symlink_metadata().is_err() && outside.join("kept").exists());
    }

    #[test]
    fn what_is_not_there_is_fine_and_a_file_goes() {
        let around = tempfile::tempdir().expect("a directory");
        let path = around.path().join("it");
        remove_tree(&path).expect("nothing to do");
        remove_tree(&path.join("below")).expect("nothing to do");
        fs::write(&path, "x").expect("writes");
        remove_tree(&path).expect("it is removed");
        assert!(!path.exists());
        let error = remove_tree(Path::new("/")).expect_err("nobody means that");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    /// Needs root: something is mounted.
    #[test]
    fn what_is_read_only_otherwise_stays() {
        let around = tempfile::tempdir().expect("a directory");
        let top = around.path().join("top");
        fs::create_dir(&top).expect("makes a directory");
        fs::write(top.join("kept"), "x").expect("writes");
        rustix::mount::mount_bind(&top, &top).expect("this test needs root");
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        let sealed = rustix::mount::mount_remount(&top, flags, "");
        let refused = remove_tree(&top.join("kept"));
        let directory = rustix::fs::open(&top, DIRECTORY, Mode::empty()).expect("opens");
        let is_writable = becomes_writable(directory.as_fd());
        let gone = goes_from(directory.as_fd(), "kept");
        drop(directory);
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(&top, flags).expect("unmounts");
        sealed.expect("it is made read-only");
        for refused in [refused.map(|()| true), gone] {
            let error = refused.expect_err("it stays");
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
        }
        assert!(!is_writable && top.join("kept").exists());
    }

    #[test]
    fn the_number_is_that_of_the_kernels_header() {
        // _IOW(0x94, 26, __u64)
        assert_eq!(SET_SUBVOLUME_FLAGS, 0x4008_941a);
    }

    /// Needs root: something is mounted.
    #[test]
    fn what_is_mounted_stays() {
        let around = tempfile::tempdir().expect("a directory");
        let (top, outside) = (around.path().join("top"), around.path().join("outside"));
        fs::create_dir_all(top.join("a/mounted")).expect("makes directories");
        fs::create_dir(&outside).expect("makes a directory");
        fs::write(outside.join("kept"), "x").expect("writes");
        let mounted = top.join("a/mounted");
        rustix::mount::mount_bind(&outside, &mounted).expect("this test needs root");
        let refused = remove_tree(&top);
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(&mounted, flags).expect("unmounts");
        assert!(refused.is_err(), "a bind mount is of the same device");
        assert!(outside.join("kept").exists());
        remove_tree(&top).expect("it is removed");
    }
}
