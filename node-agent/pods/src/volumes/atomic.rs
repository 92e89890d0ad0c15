//! Replaces a directory's files all at once.
//!
//! ```text
//! volume/..2026_11_23_10_00_00.000000001/key     the files
//! volume/..data -> ..2026_11_23_...              switched by one rename
//! volume/key -> ..data/key
//! ```
//!
//! Containers have these directories mounted read-only, but a privileged one can change that. So nothing here goes by a
//! path that a container could bend: names are looked up in opened directories, links are not followed, what is read is
//! a regular file of the expected length, and what is unexpected is removed without looking at it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use gantry_durable::remove_at;
use rustix::fs::{Dir, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";
/// How directories are opened.
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// What a directory of ours is like: every user of a container can look into it.
const READABLE: Mode = Mode::from_raw_mode(0o755);

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    /// Whose it is, where not root's.
    pub(super) owner: Option<u32>,
}

/// Relative paths to files.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// Makes the visible contents of `directory` equal to `files`; a reader sees the old ones or the new, never a mix. What an
/// earlier call that failed or was killed has left half done is finished. The caller sees to it that no other call for this
/// directory is under way: each removes the directories that it has not made.
pub(super) fn write(directory: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    let top = rustix::fs::open(directory, DIRECTORY, Mode::empty())?;
    readable(&top)?;
    let shown = match current(&top) {
        Some(name) if same(&top, &name, files) => name,
        current => replace(&top, current.as_deref(), files, group)?,
    };
    let names: BTreeSet<_> = files.keys().filter_map(|path| path.iter().next()).collect();
    for name in &names {
        link(&top, name)?;
    }
    sweep(&top, |name| {
        name != DATA && name != shown && !names.contains(name)
    })
}

/// What a file of those that are shown holds, if it is one and has no more than so many bytes.
pub(super) fn read(directory: &Path, path: &Path, most: u64) -> Option<Vec<u8>> {
    let top = rustix::fs::open(directory, DIRECTORY, Mode::empty()).ok()?;
    let shown = rustix::fs::openat(&top, current(&top)?, DIRECTORY, Mode::empty()).ok()?;
    // Opening a pipe must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::File::from(open_inside(&shown, path, flags).ok()?);
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > most {
        return None;
    }
    let mut content = Vec::new();
    // It may grow while it is read.
    file.take(most).read_to_end(&mut content).ok()?;
    Some(content)
}

/// Shows a new directory with these files instead of the current one; answers its name.
fn replace(
    top: &OwnedFd,
    current: Option<&OsStr>,
    files: &Files,
    group: Option<u32>,
) -> io::Result<OsString> {
    // What a write that failed has left takes the room of this one.
    sweep(top, |name| {
        name.as_bytes().starts_with(b"..") && name != DATA && Some(name) != current
    })?;
    let stamp = jiff::Timestamp::now()
        .strftime("..%Y_%m_%d_%H_%M_%S.%9f")
        .to_string();
    fill(&make_directory(top, OsStr::new(&stamp))?, files, group)?;
    switch(top, &stamp)?;
    Ok(stamp.into())
}

/// The directory that is shown now, if its name can be one of ours: another may be that of a file, or of a link to it.
fn current(top: &OwnedFd) -> Option<OsString> {
    let name = rustix::fs::readlinkat(top, DATA, Vec::new()).ok()?;
    let name = OsString::from_vec(name.into_bytes());
    let mut parts = Path::new(&name).components();
    let one = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    );
    let ours = name.as_bytes().starts_with(b"..") && name != DATA && name != NEXT;
    (one && ours).then_some(name)
}

/// Removes what is unwanted.
fn sweep(top: &OwnedFd, unwanted: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    for entry in Dir::read_from(top)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." && unwanted(name) {
            remove_at(top, name)?;
        }
    }
    Ok(())
}

/// Makes a directory, or opens the one that is there.
fn make_directory(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let made = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    readable(&made)?;
    Ok(made)
}

/// Lets everybody look into a directory of ours, whatever the umask says or said to somebody who was stopped in between.
/// What is so already is left alone: whoever watches it would be told of a change.
fn readable(directory: &OwnedFd) -> io::Result<()> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(directory)?.st_mode & 0o7777);
    if mode != READABLE {
        rustix::fs::fchmod(directory, READABLE)?;
    }
    Ok(())
}

fn fill(fresh: &OwnedFd, files: &Files, group: Option<u32>) -> io::Result<()> {
    for (path, file) in files {
        let mut parent = fresh.try_clone()?;
        for part in path.parent().into_iter().flat_map(Path::iter) {
            parent = make_directory(&parent, part)?;
        }
        let name = path.file_name().unwrap_or_default();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut target = fs::File::from(rustix::fs::openat(&parent, name, flags, mode)?);
        target.write_all(&file.content)?;
        if file.owner.is_some() || group.is_some() {
            let owner = file.owner.map(Uid::from_raw);
            rustix::fs::fchown(&target, owner, group.map(Gid::from_raw))?;
        }
        target.set_permissions(fs::Permissions::from_mode(file.mode))?;
    }
    Ok(())
}

/// Shows the directory of this name from now on.
fn switch(top: &OwnedFd, name: &str) -> io::Result<()> {
    remove_at(top, OsStr::new(NEXT))?;
    rustix::fs::symlinkat(name, top, NEXT)?;
    match rustix::fs::renameat(top, NEXT, top, DATA) {
        // Not ours: a link is what belongs there.
        Err(Errno::ISDIR) => {
            remove_at(top, OsStr::new(DATA))?;
            rustix::fs::renameat(top, NEXT, top, DATA)?;
        }
        renamed => renamed?,
    }
    Ok(())
}

/// Sees to it that a visible name is a link to what is shown.
fn link(top: &OwnedFd, name: &OsStr) -> io::Result<()> {
    let target = Path::new(DATA).join(name);
    let known = rustix::fs::readlinkat(top, name, Vec::new());
    if known.is_ok_and(|known| known.as_bytes() == target.as_os_str().as_bytes()) {
        return Ok(());
    }
    remove_at(top, name)?;
    rustix::fs::symlinkat(&target, top, name)?;
    Ok(())
}

/// Makes a directory that every user of a container can look into, whatever this process's umask says. What is above it
/// lets nobody of the host in.
pub(super) fn readable_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        readable_directory(parent)?;
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Opens what is below a directory without leaving it, through directories alone.
fn open_inside(directory: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let opened = rustix::fs::openat2(directory, path, flags, Mode::empty(), within)?;
    Ok(opened)
}

/// Whether the directory of this name holds exactly these files. What it may not hold ends the comparison: it takes no
/// more time and memory than the files do.
fn same(top: &OwnedFd, name: &OsStr, files: &Files) -> bool {
    let Ok(directory) = rustix::fs::openat(top, name, DIRECTORY, Mode::empty()) else {
        return false;
    };
    let directories: BTreeSet<&Path> = files
        .keys()
        .flat_map(|path| path.ancestors().skip(1))
        .chain([Path::new("")])
        .collect();
    directories
        .iter()
        .all(|path| holds_only(&directory, path, files, &directories).unwrap_or(false))
        && files
            .iter()
            .all(|(path, file)| holds(&directory, path, file).unwrap_or(false))
}

/// Whether all that a directory has in it belongs there.
fn holds_only(
    directory: &OwnedFd,
    path: &Path,
    files: &Files,
    directories: &BTreeSet<&Path>,
) -> io::Result<bool> {
    let opened = open_inside(directory, &Path::new(".").join(path), DIRECTORY)?;
    for entry in Dir::read_from(&opened)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let path = path.join(name);
        let known = files.contains_key(&path) || directories.contains(path.as_path());
        if name != "." && name != ".." && !known {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a file is there as it should be.
fn holds(directory: &OwnedFd, path: &Path, file: &File) -> io::Result<bool> {
    // Opening a pipe must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = fs::File::from(open_inside(directory, path, flags)?);
    let metadata = opened.metadata()?;
    let length = file.content.len() as u64;
    if !metadata.is_file()
        || metadata.len() != length
        || metadata.permissions().mode() & 0o7777 != file.mode
        || file.owner.is_some_and(|owner| metadata.uid() != owner)
    {
        return Ok(false);
    }
    // It may grow while it is read.
    let mut content = Vec::with_capacity(file.content.len());
    opened.take(length + 1).read_to_end(&mut content)?;
    Ok(content == file.content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        let file = |content: &str| File {
            content: content.as_bytes().to_vec(),
            mode: 0o644,
            owner: None,
        };
        entries
            .iter()
            .map(|(path, content)| (PathBuf::from(path), file(content)))
            .collect()
    }

    #[test]
    fn contents_are_switched_and_leftovers_removed() {
        let directory = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(directory.path().join(path)).ok();
        write(
            directory.path(),
            &files(&[("a", "1"), ("sub/b", "2")]),
            None,
        )
        .unwrap();
        assert_eq!(
            (read("a").as_deref(), read("sub/b").as_deref()),
            (Some("1"), Some("2"))
        );
        let first = fs::read_link(directory.path().join(DATA)).unwrap();
        write(
            directory.path(),
            &files(&[("a", "1"), ("sub/b", "2")]),
            None,
        )
        .unwrap();
        assert_eq!(
            fs::read_link(directory.path().join(DATA)).unwrap(),
            first,
            "nothing changed, nothing moves"
        );
        write(directory.path(), &files(&[("a", "3"), ("c", "4")]), None).unwrap();
        assert_eq!(
            (read("a").as_deref(), read("c").as_deref(), read("sub/b")),
            (Some("3"), Some("4"), None)
        );
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            4,
            "..data, its directory, a, c"
        );
    }

    #[test]
    fn what_is_planted_is_neither_followed_nor_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (top, outside) = (directory.path().join("top"), directory.path().join("out"));
        fs::create_dir(&top).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("a"), "theirs").unwrap();
        let own = files(&[("a", "1"), ("sub/b", "2")]);
        let theirs = || fs::read_to_string(outside.join("a")).unwrap();
        let plant = |plant: &dyn Fn(&Path)| {
            write(&top, &own, None).unwrap();
            plant(&top.join(fs::read_link(top.join(DATA)).unwrap()));
            write(&top, &own, None).unwrap();
            let read = |path: &str| fs::read_to_string(top.join(path)).unwrap();
            assert_eq!((read("a").as_str(), read("sub/b").as_str()), ("1", "2"));
            assert_eq!(theirs(), "theirs");
            assert_eq!(fs::read_dir(&top).unwrap().count(), 4);
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        };
        let replace = |path: &Path| match fs::symlink_metadata(path).unwrap().is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        };
        plant(&|shown| {
            replace(&shown.join("a"));
            symlink(outside.join("a"), shown.join("a")).unwrap();
        });
        plant(&|shown| {
            replace(&shown.join("sub"));
            symlink(&outside, shown.join("sub")).unwrap();
        });
        plant(&|shown| {
            replace(&shown.join("a"));
            let mode = Mode::from_raw_mode(0o644);
            rustix::fs::mkfifoat(rustix::fs::CWD, shown.join("a"), mode).unwrap();
        });
        plant(&|shown| {
            let sparse = fs::File::create(shown.join("a")).unwrap();
            sparse.set_len(1 << 42).unwrap();
        });
        plant(&|shown| {
            // To be counted, each would have to be entered by as many ways as there are pairs of links.
            for name in ["x", "y"] {
                symlink(".", shown.join(name)).unwrap();
            }
        });
        plant(&|_| {
            replace(&top.join(DATA));
            symlink(&outside, top.join(DATA)).unwrap();
        });
        plant(&|_| {
            replace(&top.join(DATA));
            fs::create_dir_all(top.join(DATA).join("deep")).unwrap();
            symlink(&outside, top.join(NEXT)).unwrap();
        });
        // What is shown has the name of something visible, or is no directory of ours.
        for name in ["sub", DATA, NEXT] {
            plant(&|shown| {
                replace(&top.join(DATA));
                if name != DATA {
                    remove_at(fs::File::open(&top).unwrap(), OsStr::new(name)).unwrap();
                    fs::rename(shown, top.join(name)).unwrap();
                }
                symlink(name, top.join(DATA)).unwrap();
            });
        }
        plant(&|shown| {
            replace(&top.join("a"));
            symlink(outside.join("a"), top.join("a")).unwrap();
            fs::write(shown.join("a"), "other").unwrap();
        });
    }

    #[test]
    fn what_was_left_half_done_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        let own = files(&[("a", "1"), ("sub/b", "2")]);
        write(top, &own, None).unwrap();
        let shown = fs::read_link(top.join(DATA)).unwrap();
        // As after a stop between the switch and the links: one is missing, and what was shown before is still there.
        fs::remove_file(top.join("sub")).unwrap();
        symlink("..data/old", top.join("old")).unwrap();
        fs::create_dir(top.join("..2020_01_01_00_00_00.000000001")).unwrap();
        symlink("..2020_01_01_00_00_00.000000001", top.join(NEXT)).unwrap();
        fs::set_permissions(top, fs::Permissions::from_mode(0o700)).unwrap();
        write(top, &own, None).unwrap();
        assert_eq!(fs::read_to_string(top.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::read_dir(top).unwrap().count(), 4);
        let mode = fs::metadata(top).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "others look into it");
        assert_eq!(
            fs::read_link(top.join(DATA)).unwrap(),
            shown,
            "the files were there"
        );
    }

    #[test]
    fn what_a_failed_write_left_makes_room_first() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("..2020_01_01_00_00_00.000000001")).unwrap();
        let clash = files(&[("a", "1"), ("a/b", "2")]);
        write(directory.path(), &files(&[("a", "1")]), None).unwrap();
        for _ in 0..3 {
            assert!(write(directory.path(), &clash, None).is_err());
            assert_eq!(fs::read_to_string(directory.path().join("a")).unwrap(), "1");
        }
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            4,
            "..data, its directory, a, and one that was begun"
        );
    }
}
