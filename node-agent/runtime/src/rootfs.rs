//! Looks into a container's file system before it exists, so that a command that cannot run is refused with the words
//! a user can act on. Every path is resolved by the kernel as if the rootfs were `/`: no link leads out of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::error::RuntimeError;
use crate::traits::{BindMount, ContainerSpec};

/// Where programs are looked for when a container does not say.
pub(crate) const DEFAULT_PATH: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Directories of the root directory that every container has file systems of its own on.
const OWN: [&str; 3] = ["dev", "proc", "sys"];
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

fn open(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let root = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    gantry_durable::open_inside(root, path, flags)
}

/// The mount that is seen at a path without links: of several over one another the last.
fn covering<'a>(mounts: &'a [BindMount], path: &Path) -> Option<&'a BindMount> {
    mounts
        .iter()
        .rev()
        .find(|mount| path.starts_with(&mount.target))
}

/// Whether a path without links is in a file system that every container has of its own.
fn is_own(path: &Path) -> bool {
    OWN.iter()
        .any(|own| path.starts_with(Path::new("/").join(own)))
}

/// The mounts, with where they come to lie as targets.
fn placed(spec: &ContainerSpec) -> io::Result<Vec<BindMount>> {
    let mut placed: Vec<BindMount> = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        let target = mount_point(&spec.rootfs, &placed, &mount.target)?;
        placed.push(BindMount {
            target,
            ..mount.clone()
        });
    }
    Ok(placed)
}

/// The host directory or file that will be at `path`, as a root and a path within: a mount hides what it covers.
fn locate(spec: &ContainerSpec, mounts: &[BindMount], path: &Path) -> (PathBuf, PathBuf) {
    match covering(mounts, path) {
        Some(mount) => {
            let rest = path.strip_prefix(&mount.target).unwrap_or(path);
            if rest.as_os_str().is_empty() {
                // A file mounted by itself.
                let parent = mount.source.parent().unwrap_or(Path::new("/")).to_owned();
                (
                    parent,
                    mount
                        .source
                        .file_name()
                        .map(PathBuf::from)
                        .unwrap_or_default(),
                )
            } else {
                (mount.source.clone(), rest.to_owned())
            }
        }
        None => (spec.rootfs.clone(), path.to_owned()),
    }
}

fn check(spec: &ContainerSpec, mounts: &[BindMount], path: &Path) -> Result<(), Errno> {
    let code = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let path = mount_point(&spec.rootfs, mounts, path).map_err(code)?;
    if covering(mounts, &path).is_none() && is_own(&path) {
        // It is not there yet.
        return Ok(());
    }
    let (root, path) = locate(spec, mounts, &path);
    let file = open(&root, &path, OFlags::PATH)?;
    let stat = rustix::fs::statat(&file, "", AtFlags::EMPTY_PATH)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Err(Errno::ISDIR),
        FileType::RegularFile if stat.st_mode & 0o111 != 0 => Ok(()),
        _ => Err(Errno::ACCESS),
    }
}

/// Refuses a command that is not there or not executable.
pub(crate) fn check_command(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    let command = spec.args.first().cloned().unwrap_or_default();
    let refuse = |cause: String| {
        Err(RuntimeError::CannotExecute {
            command: command.clone(),
            cause,
        })
    };
    if command.is_empty() {
        return refuse("no command specified".to_owned());
    }
    let Ok(mounts) = placed(spec) else {
        // The mounts are refused next, with better words.
        return Ok(());
    };
    if command.contains('/') {
        let path = spec.cwd.join(&command);
        return match check(spec, &mounts, &path) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                refuse(format!("stat {command}: no such file or directory"))
            }
            Err(Errno::ISDIR) => refuse("is a directory".to_owned()),
            Err(Errno::ACCESS) => refuse("permission denied".to_owned()),
            Err(error) => refuse(io::Error::from(error).to_string()),
        };
    }
    let path = spec
        .env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="));
    let path = path
        .or_else(|| DEFAULT_PATH.strip_prefix("PATH="))
        .unwrap_or_default();
    let mut denied = false;
    for dir in path.split(':').filter(|dir| !dir.is_empty()) {
        match check(spec, &mounts, &spec.cwd.join(dir).join(&command)) {
            Ok(()) => return Ok(()),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    refuse(
        if denied {
            "permission denied"
        } else {
            "executable file not found in $PATH"
        }
        .to_owned(),
    )
}

/// Makes the working directory, owned by root as an image's would be, in a volume too, unless that is read-only. `root` is
/// the node's number of that user and group in the container's own files; in volumes it is always 0.
pub(crate) fn ensure_directory(spec: &ContainerSpec, root: u32) -> io::Result<()> {
    let mounts = placed(spec)?;
    let cwd = mount_point(&spec.rootfs, &mounts, &spec.cwd)?;
    let (top, cwd, root) = match covering(&mounts, &cwd) {
        Some(mount) if mount.read_only || !mount.source.is_dir() => return Ok(()),
        Some(mount) => (
            &mount.source,
            cwd.strip_prefix(&mount.target).unwrap_or(&cwd),
            0,
        ),
        None if is_own(&cwd) => return Ok(()),
        None => (&spec.rootfs, cwd.strip_prefix("/").unwrap_or(&cwd), root),
    };
    let mut done = PathBuf::from("/");
    for part in cwd.components() {
        let parent = open(top, &done, OFlags::PATH | OFlags::DIRECTORY)?;
        done.push(part);
        match open(top, &done, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let name: &Path = part.as_ref();
                let mode = Mode::from_raw_mode(0o755);
                rustix::fs::mkdirat(&parent, name, mode)?;
                // Whatever this process's umask takes away.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let made = open(top, &done, flags)?;
                let (user, group) = (Uid::from_raw(root), Gid::from_raw(root));
                rustix::fs::fchown(&made, Some(user), Some(group))?;
                rustix::fs::fchmod(&made, mode)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
pub(crate) fn check_mount_points(spec: &ContainerSpec) -> io::Result<()> {
    for name in OWN {
        refuse_linked(spec, name)?;
    }
    let placed = placed(spec)?;
    for (mount, placed) in spec.mounts.iter().zip(&placed) {
        check_mount_point(&placed.target, Some(&mount.source))
            .map_err(|error| explain(&mount.target, &error))?;
    }
    let termination = &spec.termination_message_path;
    let target = mount_point(&spec.rootfs, &placed, termination)?;
    // A file, for which there is no place where a directory is.
    if target.starts_with("/proc") {
        check_mount_point(&target, None).map_err(|error| explain(termination, &error))?;
    }
    Ok(())
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
fn mount_point(root: &Path, before: &[BindMount], target: &Path) -> io::Result<PathBuf> {
    let mut at = PathBuf::from("/");
    let mut ahead = PathBuf::from("/").join(target);
    let mut links = 0;
    loop {
        let mut parts = ahead.components();
        let Some(part) = parts.next() else {
            return Ok(at);
        };
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

/// Opens a directory, to name what is in it.
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(
        CWD,
        path,
        flags,
        Mode::empty(),
    )?))
}

#[cfg(test)]
mod tests;
