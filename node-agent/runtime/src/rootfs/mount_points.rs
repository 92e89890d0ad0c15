//! Where a container's mounts come to lie, and the places that are made for them before libcontainer looks: links of the
//! image, and of volumes, are followed as if the root file system were `/`, and what they lead to need not be there.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use gantry_cri::runtime::{BindMount, ContainerSpec};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{OWN, covering, give, is_own, make_directories, open};

/// What may be mounted below /proc, as in other runtimes: files that say how much of the machine is a container's.
const IN_PROC: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];
/// A process file system, as the kernel tells them apart.
const PROC: i64 = 0x9fa0;
/// Links that the kernel follows in one path.
const MOST_LINKS: usize = 40;
/// Names that are looked up for one path: more than a path can have, and fewer than an image's links can make of one.
const MOST_NAMES: usize = 4096;

/// The mounts, with where they come to lie as targets.
pub(super) fn placed(spec: &ContainerSpec) -> io::Result<Vec<BindMount>> {
    let mut placed: Vec<BindMount> = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        let target = mount_point(&spec.rootfs, &placed, &mount.target);
        let target = target.map_err(|error| explain(&mount.target, &error))?;
        placed.push(BindMount {
            target,
            ..mount.clone()
        });
    }
    Ok(placed)
}

/// Refuses an image in which a directory that will be mounted on is a link, and so leads elsewhere.
fn refuse_linked(spec: &ContainerSpec, name: &str) -> io::Result<()> {
    match std::fs::symlink_metadata(spec.rootfs.join(name)) {
        Ok(found) if !found.is_dir() => Err(io::Error::other(format!(
            "the image's /{name} must be a directory"
        ))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Refuses what would have libcontainer act on the host: it makes and deletes files in the container's /dev by the host's
/// path to it, so neither that directory nor the root above it may be anything but what this crate puts there. Other
/// runtimes, too, let nothing but a process file system be /proc.
///
/// Answers the specification with its mounts, and the file of its termination message, where they come to lie: libcontainer
/// makes no place behind a link that leads to nothing.
pub(crate) fn check_mount_points(spec: &ContainerSpec) -> io::Result<ContainerSpec> {
    for name in OWN {
        refuse_linked(spec, name)?;
    }
    let mounts = placed(spec)?;
    for (mount, placed) in spec.mounts.iter().zip(&mounts) {
        check_mount_point(&placed.target, Some(&mount.source))
            .map_err(|error| explain(&mount.target, &error))?;
    }
    let written = &spec.termination_message_path;
    let mut termination_message_path = written.clone();
    if has_termination_message(spec) {
        let target = mount_point(&spec.rootfs, &mounts, written);
        let target = target.map_err(|error| explain(written, &error))?;
        // A file, for which there is no place where a directory is.
        if target.starts_with("/proc") {
            check_mount_point(&target, None).map_err(|error| explain(written, &error))?;
        }
        termination_message_path = target;
    }
    Ok(ContainerSpec {
        mounts,
        termination_message_path,
        ..spec.clone()
    })
}

/// Whether there is a file of it in the container.
fn has_termination_message(spec: &ContainerSpec) -> bool {
    let path = &spec.termination_message_path;
    path.is_absolute() && path.parent().is_some()
}

/// Makes what mounts come to lie on, where it is missing, as an image would have it: a directory or an empty file. `placed`
/// is what [`check_mount_points`] has made of the specification; `root` as in [`super::ensure_directory`].
pub(crate) fn make_mount_points(
    spec: &ContainerSpec,
    placed: &ContainerSpec,
    root: u32,
) -> io::Result<()> {
    let mounts = placed.mounts.iter().zip(&spec.mounts).enumerate();
    for (at, (mount, written)) in mounts {
        let written = &written.target;
        let source = std::fs::metadata(&mount.source).map_err(|error| {
            let (written, source) = (written.display(), mount.source.display());
            let words = format!("looking at {source}, to be mounted at {written}: {error}");
            io::Error::new(error.kind(), words)
        })?;
        make_mount_point(
            placed,
            &placed.mounts[..at],
            &mount.target,
            source.is_dir(),
            root,
        )
        .map_err(|error| explain(written, &error))?;
    }
    if has_termination_message(placed) {
        let path = &placed.termination_message_path;
        make_mount_point(placed, &placed.mounts, path, false, root)
            .map_err(|error| explain(&spec.termination_message_path, &error))?;
    }
    Ok(())
}

fn make_mount_point(
    spec: &ContainerSpec,
    before: &[BindMount],
    target: &Path,
    directory: bool,
    root: u32,
) -> io::Result<()> {
    let (top, path, root) = match covering(before, target) {
        Some(mount) => {
            let rest = target.strip_prefix(&mount.target).unwrap_or(target);
            if rest.as_os_str().is_empty() {
                return check_kind(mount.source.is_dir(), directory);
            }
            let found = open(&mount.source, rest, OFlags::PATH);
            if mount.read_only && matches!(found, Err(Errno::NOENT)) {
                return Err(Errno::ROFS.into());
            }
            (mount.source.as_path(), rest, 0)
        }
        // It is made in file systems that are not there yet.
        None if is_own(target) => return Ok(()),
        None => (spec.rootfs.as_path(), target, root),
    };
    if directory {
        return make_directories(top, path, root);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return check_kind(true, directory);
    };
    make_directories(top, parent, root)?;
    let parent = open(top, parent, OFlags::PATH | OFlags::DIRECTORY)?;
    let (mode, flags) = (
        Mode::from_raw_mode(0o644),
        OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
    );
    match rustix::fs::openat(&parent, name, flags, mode) {
        Ok(made) => give(&made, root, mode),
        Err(Errno::EXIST) => {
            let found = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
            check_kind(is_directory, directory)
        }
        Err(error) => Err(error.into()),
    }
}

/// A directory is mounted on a directory, and nothing else is.
fn check_kind(found: bool, wanted: bool) -> io::Result<()> {
    match (found, wanted) {
        (true, false) => Err(Errno::ISDIR.into()),
        (false, true) => Err(Errno::NOTDIR.into()),
        _ => Ok(()),
    }
}

fn explain(target: &Path, error: &io::Error) -> io::Error {
    io::Error::other(format!(
        "nothing can be mounted at {}: {error}; choose another path",
        target.display()
    ))
}

/// Judges where a mount comes to lie.
fn check_mount_point(target: &Path, source: Option<&Path>) -> io::Result<()> {
    let process_files = |source: &Path| Ok::<_, Errno>(rustix::fs::statfs(source)?.f_type == PROC);
    let refused = match target.strip_prefix("/proc") {
        _ if target == Path::new("/") => Some("it is the root directory"),
        _ if target == Path::new("/dev") => Some("it is the directory of the container's devices"),
        Ok(below) if below.as_os_str().is_empty() => match source {
            Some(source) if process_files(source)? => None,
            _ => Some("only a process file system can be"),
        },
        Ok(below) if !IN_PROC.iter().any(|file| below == Path::new(file)) => {
            Some("it is in the process file system")
        }
        _ => None,
    };
    refused.map_or(Ok(()), |why| Err(io::Error::other(why)))
}

/// Where a mount at `target` comes to lie: what the links of the image, and of volumes that are mounted before it, make of
/// it. The targets of `before` have been through this.
pub(super) fn mount_point(root: &Path, before: &[BindMount], target: &Path) -> io::Result<PathBuf> {
    let mut at = PathBuf::from("/");
    let mut ahead = PathBuf::from("/").join(target);
    let (mut links, mut names) = (0, 0);
    loop {
        let mut parts = ahead.components();
        let Some(part) = parts.next() else {
            return Ok(at);
        };
        names += 1;
        if names > MOST_NAMES {
            return Err(Errno::NAMETOOLONG.into());
        }
        let rest = parts.as_path().to_owned();
        ahead = match part {
            Component::Prefix(_) | Component::RootDir => {
                at = PathBuf::from("/");
                rest
            }
            Component::CurDir => rest,
            Component::ParentDir => {
                at.pop();
                rest
            }
            Component::Normal(name) => match read_link(root, before, &at, name)? {
                None => {
                    at.push(name);
                    rest
                }
                Some(_) if links == MOST_LINKS => return Err(Errno::LOOP.into()),
                Some(link) => {
                    links += 1;
                    link.join(rest)
                }
            },
        };
    }
}

/// The link of this name in a directory of the container, if it is one. No link is on the way to the directory.
fn read_link(
    root: &Path,
    before: &[BindMount],
    directory: &Path,
    name: &OsStr,
) -> io::Result<Option<PathBuf>> {
    let path = directory.join(name);
    let (root, directory) = match covering(before, &path) {
        Some(mount) if mount.target == path => return Ok(None),
        Some(mount) => (
            mount.source.as_path(),
            directory.strip_prefix(&mount.target).unwrap_or(directory),
        ),
        // New ones are mounted there, in which nothing leads out.
        None if is_own(&path) => return Ok(None),
        None => (root, directory),
    };
    let read = open(root, directory, OFlags::PATH | OFlags::DIRECTORY)
        .and_then(|directory| rustix::fs::readlinkat(directory, name, Vec::new()));
    match read {
        Ok(link) => Ok(Some(PathBuf::from(OsString::from_vec(link.into_bytes())))),
        // No link, or nothing: it is made then.
        Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
