//! Looks into a container's file system before it exists, so that a command that cannot run is refused with the words
//! a user can act on. Every path is resolved by the kernel as if the rootfs were `/`: no link leads out of it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::RuntimeError;
use crate::traits::ContainerSpec;

/// Where programs are looked for when a container does not say.
pub(crate) const DEFAULT_PATH: &str =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn open(root: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let root = rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    rustix::fs::openat2(
        root,
        relative,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )
}

/// The host directory or file that will be at `path`, as a root and a path within: a mount hides what it covers.
fn locate(spec: &ContainerSpec, path: &Path) -> (PathBuf, PathBuf) {
    let covering = spec
        .mounts
        .iter()
        .rev()
        .filter(|mount| path.starts_with(&mount.target));
    match covering.max_by_key(|mount| mount.target.components().count()) {
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

fn check(spec: &ContainerSpec, path: &Path) -> Result<(), Errno> {
    let (root, path) = locate(spec, path);
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
    if command.contains('/') {
        let path = spec.cwd.join(&command);
        return match check(spec, &path) {
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
        match check(spec, &spec.cwd.join(dir).join(&command)) {
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

/// Makes the working directory, owned by root as an image's would be, unless a mount will provide it.
pub(crate) fn ensure_directory(spec: &ContainerSpec) -> io::Result<()> {
    if spec
        .mounts
        .iter()
        .any(|mount| spec.cwd.starts_with(&mount.target))
    {
        return Ok(());
    }
    let mut done = PathBuf::from("/");
    for part in spec.cwd.components().skip(1) {
        let parent = open(&spec.rootfs, &done, OFlags::PATH | OFlags::DIRECTORY)?;
        done.push(part);
        match open(&spec.rootfs, &done, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) => {}
            Err(Errno::NOENT) => {
                let name: &Path = part.as_ref();
                let mode = Mode::from_raw_mode(0o755);
                rustix::fs::mkdirat(&parent, name, mode)?;
                // Whatever this process's umask takes away.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                rustix::fs::fchmod(open(&spec.rootfs, &done, flags)?, mode)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Refuses an image in which a directory that will be mounted on is a link, and so leads elsewhere.
pub(crate) fn refuse_linked(spec: &ContainerSpec, name: &str) -> io::Result<()> {
    match std::fs::symlink_metadata(spec.rootfs.join(name)) {
        Ok(found) if !found.is_dir() => Err(io::Error::other(format!(
            "the image's /{name} must be a directory"
        ))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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
