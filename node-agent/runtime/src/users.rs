//! Pods with users of their own: the namespace that makes them, and what a container's helper sees while it makes one.
//!
//! Root in such a pod is nobody on the node, so it could reach neither the container's files, which are below directories of
//! root's alone, nor anything else. What it needs is brought to where it is: the helper stands on a root directory of its
//! own that has the container's file system, its mounts with the files as the pod's, and what libcontainer looks at.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use gantry_idmap::{IdBlock, Users};
use rustix::fs::{CWD, Gid, Uid};
use rustix::mount::{MoveMountFlags, mount_bind, mount_bind_recursive, move_mount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::namespaces::Maker;
use crate::{namespaces, privileges, shim, sys};

/// Where a helper's own root directory has things; what is in `config.json` then.
pub(crate) const ROOTFS: &str = "/rootfs";
pub(crate) const MOUNTS: &str = "/mounts";
pub(crate) const USERS: &str = "/users";
pub(crate) const PID: &str = "/pid";
/// The network namespace of this process.
const OWN_NETWORK: &str = "/proc/self/ns/net";

/// What the helper of a container brings along, by host paths.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) ids: IdBlock,
    pub(crate) rootfs: PathBuf,
    /// By their places in [`MOUNTS`].
    pub(crate) mounts: Vec<Brought>,
}

/// What is mounted in the container.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Brought {
    pub(crate) source: PathBuf,
    /// Whether files have the ids that the pod sees, to which the node's are added.
    pub(crate) mapped: bool,
}

/// Makes a network namespace in a user namespace with these ids.
pub(crate) fn make_network(executable: &Path, ids: IdBlock) -> io::Result<OwnedFd> {
    let mut command = Command::new(executable);
    command
        .arg0("gantry")
        .arg(crate::USERS)
        .env_clear()
        .current_dir("/");
    let maker = Maker::start(&mut command)?;
    let made = if maker.said == shim::READY {
        fs::write(maker.file("uid_map"), ids.map())
            .and_then(|()| fs::write(maker.file("gid_map"), ids.map()))
            .and_then(|()| fs::File::open(maker.file("ns/net")))
            .map(OwnedFd::from)
    } else {
        Err(io::Error::other(
            "this kernel gives no user namespaces (is /proc/sys/user/max_user_namespaces 0?)",
        ))
    };
    maker.end()?;
    made
}

/// Is the process that makes them, and stays until its input ends.
pub(crate) fn run() -> io::Result<()> {
    // In one step: the network belongs to the users.
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
    io::stdout().write_all(shim::READY.as_bytes())?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// Becomes root of the users that own a network namespace.
pub(crate) fn become_root_of(network: impl AsFd) -> io::Result<()> {
    let users = gantry_idmap::owner(network)?;
    let kind = Some(LinkNameSpaceType::User);
    rustix::thread::move_into_link_name_space(users.as_fd(), kind)?;
    become_root()
}

/// What follows a change of the user namespace: this process's user has no number in the new one.
pub(crate) fn become_root() -> io::Result<()> {
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    privileges::hide()
}

/// Moves this process, which has joined the pod's network, to a root directory that has what making the container in `dir`
/// takes and nothing else of the host's.
pub(crate) fn enter(dir: &Path, view: &View, pid: Option<&OwnedFd>) -> io::Result<()> {
    let users = Users::of_network(Path::new(OWN_NETWORK), view.ids)?;
    // c/<name>-<attempt> of a sandbox.
    let sandbox = dir.ancestors().nth(2).unwrap_or(dir);
    privileges::enter_root_of_its_own(
        &sandbox.join(namespaces::EMPTY),
        view.mounts.len(),
        |root| {
            for whole in ["/proc", "/sys", "/dev"] {
                let target = below(root, Path::new(whole));
                fs::create_dir(&target)?;
                mount_bind_recursive(whole, &target)?;
            }
            let own = below(root, dir);
            fs::create_dir_all(&own)?;
            mount_bind(dir, &own)?;
            let rootfs = below(root, Path::new(ROOTFS));
            fs::create_dir(&rootfs)?;
            mount_bind_recursive(&view.rootfs, &rootfs)?;
            let mounts = below(root, Path::new(MOUNTS));
            fs::create_dir(&mounts)?;
            for (number, brought) in view.mounts.iter().enumerate() {
                let target = mounts.join(number.to_string());
                place(&users, brought, &target).map_err(|error| {
                    let source = brought.source.display();
                    io::Error::new(error.kind(), format!("mounting {source}: {error}"))
                })?;
            }
            let namespace = format!("/proc/self/fd/{}", users.namespace().as_raw_fd());
            bind_file(Path::new(&namespace), &below(root, Path::new(USERS)))?;
            if let Some(pid) = pid {
                let namespace = format!("/proc/self/fd/{}", pid.as_raw_fd());
                bind_file(Path::new(&namespace), &below(root, Path::new(PID)))?;
            }
            Ok(())
        },
    )
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn bind_file(source: &Path, target: &Path) -> io::Result<()> {
    fs::write(target, b"")?;
    Ok(mount_bind(source, target)?)
}

fn place(users: &Users, brought: &Brought, target: &Path) -> io::Result<()> {
    let source = &brought.source;
    if source.is_dir() {
        fs::create_dir(target)?;
    } else {
        fs::write(target, b"")?;
    }
    if !brought.mapped {
        return Ok(mount_bind(source, target)?);
    }
    let mapped = users.mapped_path(source)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&mapped, "", CWD, target, flags)?)
}
