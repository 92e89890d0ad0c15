//! Looks into a container's file system before it exists, so that a command that cannot run is refused with the words
//! a user can act on. Every path is resolved by the kernel as if the rootfs were `/`: no link leads out of it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use gantry_cri::runtime::{BindMount, ContainerSpec, RuntimeError};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

mod mount_points;

pub(crate) use mount_points::{check_mount_points, make_mount_points};
use mount_points::{mount_point, placed};

/// Where programs are looked for when a container does not say.
pub(crate) const DEFAULT_PATH: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Directories that a command is looked for in. Each may lead through links of the image.
const MOST_SEARCHED: usize = 1024;

/// Directories of the root directory that every container has file systems of its own on.
const OWN: [&str; 3] = ["dev", "proc", "sys"];

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
    let searched = path.split(':').filter(|dir| !dir.is_empty());
    for dir in searched.take(MOST_SEARCHED) {
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
    match covering(&mounts, &cwd) {
        Some(mount) if mount.read_only || !mount.source.is_dir() => Ok(()),
        Some(mount) => {
            let rest = cwd.strip_prefix(&mount.target).unwrap_or(&cwd);
            make_directories(&mount.source, rest, 0)
        }
        None if is_own(&cwd) => Ok(()),
        None => make_directories(&spec.rootfs, &cwd, root),
    }
}

/// Makes the directories of a path below `top` that are missing, with the owner `root`.
fn make_directories(top: &Path, path: &Path, root: u32) -> io::Result<()> {
    let mut done = PathBuf::from("/");
    for part in path.strip_prefix("/").unwrap_or(path).components() {
        let parent = open(top, &done, OFlags::PATH | OFlags::DIRECTORY)?;
        done.push(part);
        match open(top, &done, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let name: &Path = part.as_ref();
                let mode = Mode::from_raw_mode(0o755);
                match rustix::fs::mkdirat(&parent, name, mode) {
                    // Another container of the pod has it in the same volume.
                    Err(Errno::EXIST) => {
                        open(top, &done, OFlags::PATH | OFlags::DIRECTORY)?;
                    }
                    made => {
                        made?;
                        let made = open(top, &done, OFlags::RDONLY | OFlags::DIRECTORY)?;
                        give(&made, root, mode)?;
                    }
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives what was made its owner, and its mode whatever this process's umask takes away.
fn give(made: &OwnedFd, root: u32, mode: Mode) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(root), Gid::from_raw(root));
    rustix::fs::fchown(made, Some(user), Some(group))?;
    Ok(rustix::fs::fchmod(made, mode)?)
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
