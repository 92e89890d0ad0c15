//! Network namespaces that outlive processes: each is held by a bind mount of its nsfs file.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::NetworkError;
use crate::netlink::Netlink;

/// `f_type` of the file system that namespaces live in (`NSFS_MAGIC` of linux/magic.h).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// A pod's namespace from the outside: a file that names it, and a netlink socket that lives in it.
pub(crate) struct Namespace {
    pub(crate) file: File,
    pub(crate) netlink: Netlink,
}

/// Whether `path` holds a namespace (and is not merely the file it was mounted on, as after a reboot).
pub(crate) fn is_mounted(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

/// Makes a new namespace, or takes the one that `make` gives, and mounts it at `path`. Nothing stays behind on failure.
pub(crate) fn create(
    path: &Path,
    make: impl FnOnce() -> io::Result<Option<OwnedFd>> + Send,
) -> Result<Namespace, NetworkError> {
    let io = |doing: &str, source: io::Error| NetworkError::Io {
        doing: format!("{doing} {}", path.display()),
        source,
    };
    File::create(path).map_err(|e| io("creating", e))?;
    let made = on_own_thread(|| {
        let making = |e| io("making the network namespace", e);
        match make().map_err(making)? {
            None => unshare(CloneFlags::CLONE_NEWNET).map_err(|e| making(e.into()))?,
            Some(made) => {
                setns(made, CloneFlags::CLONE_NEWNET).map_err(|e| making(e.into()))?;
            }
        }
        mount_bind("/proc/thread-self/ns/net", path)
            .map_err(|e| io("mounting the network namespace", e.into()))?;
        allow_unprivileged_ports();
        settings_of_ipv6();
        let file = File::open(path).map_err(|e| io("opening", e))?;
        Ok(Namespace {
            file,
            netlink: Netlink::open()?,
        })
    });
    if made.is_err()
        && let Err(error) = remove(path)
    {
        tracing::warn!(netns = %path.display(), %error, "a half-made network namespace stays behind");
    }
    made
}

/// Opens the namespace mounted at `path`.
pub(crate) fn open(path: &Path) -> Result<Namespace, NetworkError> {
    let file = open_file(path)?;
    let netlink = inside(path, Netlink::open)?;
    Ok(Namespace { file, netlink })
}

fn open_file(path: &Path) -> Result<File, NetworkError> {
    File::open(path).map_err(|source| NetworkError::Io {
        doing: format!("opening the network namespace {}", path.display()),
        source,
    })
}

/// Does `work` in the namespace mounted at `path`; sockets it makes stay there for good.
pub(crate) fn inside<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    on_own_thread(|| {
        enter(path)?;
        work()
    })
}

/// Does `work` in the namespace mounted at each of `paths`, one after the other on one thread.
pub(crate) fn inside_each<T: Send>(
    paths: &[&Path],
    mut work: impl FnMut() -> Result<T, NetworkError> + Send,
) -> Result<Vec<Result<T, NetworkError>>, NetworkError> {
    on_own_thread(|| {
        let each = paths.iter().map(|path| {
            enter(path)?;
            work()
        });
        Ok(each.collect())
    })
}

/// Takes the calling thread into the namespace mounted at `path`.
fn enter(path: &Path) -> Result<(), NetworkError> {
    setns(open_file(path)?, CloneFlags::CLONE_NEWNET).map_err(|error| NetworkError::Io {
        doing: format!("entering the network namespace {}", path.display()),
        source: error.into(),
    })
}

/// Unmounts and removes `path`; the kernel frees the namespace when its last process has gone. Absent is fine.
pub(crate) fn remove(path: &Path) -> Result<(), NetworkError> {
    let io = |doing: &str, source: io::Error| NetworkError::Io {
        doing: format!("{doing} {}", path.display()),
        source,
    };
    while is_mounted(path) {
        unmount(path, UnmountFlags::DETACH)
            .map_err(|e| io("unmounting the network namespace", e.into()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io("removing", error)),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread that ends with it: a thread that has changed its namespace must not serve anything else.
pub(crate) fn on_own_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|_| {
            Err(NetworkError::Unsupported(
                "the thread that works in a network namespace panicked".to_owned(),
            ))
        })
    })
}

/// Lets processes without capabilities bind low ports and ping, as container engines do for pods by default. It is a
/// convenience of the namespace: where the kernel refuses, pods work without it.
fn allow_unprivileged_ports() {
    for (setting, value) in [
        ("ip_unprivileged_port_start", "0"),
        // A namespace that belongs to other users than the host's knows no more groups than these.
        ("ping_group_range", "0 65535"),
        ("ping_group_range", "0 2147483647"),
    ] {
        if let Err(error) = fs::write(format!("/proc/sys/net/ipv4/{setting}"), value) {
            tracing::debug!(setting, %error, "not set in the pod's network namespace");
        }
    }
}

/// What links that are made here do by themselves. Where IPv6 is switched off there is nothing to set.
///
/// - They take no advice to reach a neighbour past the gateway. For IPv6 the kernel gives it whenever a packet leaves where
///   it came in, and has no switch for that; a pod that followed it would go past its neighbours' services and policies.
/// - Their link-local address follows from the hardware address, whatever the host's are made from: the guard admits no
///   other.
fn settings_of_ipv6() {
    for (setting, value) in [("accept_redirects", "0"), ("addr_gen_mode", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/default/{setting}");
        if let Err(error) = fs::write(path, value) {
            tracing::debug!(setting, %error, "not set in the pod's network namespace");
        }
    }
}
