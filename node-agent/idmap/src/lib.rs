//! `gantry-idmap`: the users that a pod has for itself, and mounts in which files are theirs.
//!
//! A pod with a user namespace of its own has 65,536 ids of the node's, which it sees as 0 to 65,535. On the disk files keep
//! the ids that the pod sees; the mounts that it is given add the difference (idmapped mounts: Linux 5.12, tmpfs 6.3).
//!
//! Must never know pods, images or containers.
//!
//! Invariant: no two pods of a node have an id in common, and none has one of the first 65,536, which are the node's own.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::mount::OpenTreeFlags;

/// Ids of a block.
pub const IDS: u32 = 1 << 16;
/// `NS_GET_USERNS` of linux/nsfs.h.
const NS_GET_USERNS: u32 = 0xb701;

/// The block of the node's user and group ids that a pod has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IdBlock {
    first: u32,
}

impl IdBlock {
    /// The block of the pod with this address. A node's range of addresses has at most 16 bits for the pod, so that
    /// pods have different blocks as long as they have different addresses; `None` for the two of them that have none.
    pub fn of(address: Ipv4Addr) -> Option<Self> {
        let [_, _, third, fourth] = address.octets();
        match u16::from_be_bytes([third, fourth]) {
            // The node's own, and the one with the number that stands for no id.
            0 | u16::MAX => None,
            number => Some(Self {
                first: u32::from(number) * IDS,
            }),
        }
    }

    /// The node's id that the pod sees as 0.
    pub fn first(self) -> u32 {
        self.first
    }

    /// The node's id for one of the pod's, unless the pod has none of that number.
    pub fn on_node(self, id: u32) -> Option<u32> {
        (id < IDS).then(|| self.first + id)
    }

    /// As /proc/PID/uid_map and gid_map take it.
    pub fn map(self) -> String {
        format!("0 {} {IDS}\n", self.first)
    }
}

/// A pod's own users. Clones share the namespace.
#[derive(Clone, Debug)]
pub struct Users {
    /// The node's ids.
    pub ids: IdBlock,
    namespace: Arc<OwnedFd>,
}

impl Users {
    /// Those of the user namespace that owns the one of the network in this file, whose ids are known.
    pub fn of_network(file: &Path, ids: IdBlock) -> io::Result<Self> {
        Ok(Self {
            ids,
            namespace: Arc::new(owner(std::fs::File::open(file)?)?),
        })
    }

    /// The user namespace.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// A copy of what is mounted at `source`, with all below it, that is mounted nowhere yet: files of the mount itself
    /// are the pod's in it.
    pub fn mapped(&self, source: impl AsFd) -> io::Result<OwnedFd> {
        mapped(source, &self.namespace)
    }

    /// Likewise for the file or directory at a path, whose last links are followed.
    pub fn mapped_path(&self, source: &Path) -> io::Result<OwnedFd> {
        let opened = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        self.mapped(opened)
    }
}

/// The user namespace that owns another namespace.
pub fn owner(namespace: impl AsFd) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "NS_GET_USERNS has no safe wrapper")]
    // SAFETY: the request takes no argument, and its answer is a descriptor that nobody else owns, or -1.
    unsafe {
        match libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS.into()) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// What [`Users::mapped`] does, for a user namespace that is known by its descriptor.
pub fn mapped(source: impl AsFd, users: impl AsFd) -> io::Result<OwnedFd> {
    let tree = clone_tree(source)?;
    // Of what is mounted below, file systems of the kernel's own cannot be mapped: as in other runtimes it stays as it is.
    let users = users.as_fd().as_raw_fd().try_into().unwrap_or_default();
    change(tree.as_fd(), libc::MOUNT_ATTR_IDMAP, users).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel, or the file system, cannot show its files as those of a pod with users of its own (hostUsers: false)",
        ),
        _ => error,
    })?;
    Ok(tree)
}

/// A copy of what is mounted at `source`, with all below it, that is mounted nowhere yet.
pub fn clone_tree(source: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(rustix::mount::open_tree(source, c"", flags)?)
}

/// Gives the mount at the root of a tree attributes (`MOUNT_ATTR_...` of linux/mount.h) beside those it has.
pub fn set_attributes(tree: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    change(tree, attributes, 0)
}

fn change(tree: BorrowedFd<'_>, attr_set: u64, userns_fd: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set,
        attr_clr: 0,
        propagation: 0,
        userns_fd,
    };
    #[expect(unsafe_code, reason = "mount_setattr has no safe wrapper")]
    // SAFETY: the structure is integers alone, its size is given, the path is an empty string that ends in null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_one_node_have_nothing_in_common_with_each_other_or_the_node() {
        let mut before = IDS - 1;
        for number in 1..u16::MAX {
            let [high, low] = number.to_be_bytes();
            let block = IdBlock::of(Ipv4Addr::new(10, 244, high, low)).unwrap();
            assert!(block.first() > before, "{number}");
            assert_eq!(block.on_node(IDS), None);
            before = block.on_node(IDS - 1).unwrap();
        }
        assert!(before < u32::MAX);
        for none in [Ipv4Addr::new(10, 1, 0, 0), Ipv4Addr::new(10, 1, 255, 255)] {
            assert_eq!(IdBlock::of(none), None);
        }
    }
}
