//! What a process gives up before a container can see it, in the one order that works.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::sys;

/// To the kernel, the user or group that a process has already: it would stay root.
pub(crate) const UNCHANGED: u32 = u32::MAX;
const SCORE: &str = "/proc/self/oom_score_adj";

/// Keeps others from reading this process's memory and descriptors, until it executes something.
pub(crate) fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(
        DumpableBehavior::NotDumpable,
    )?)
}

/// Lets nothing that this process executes ever have a capability but these. Comes before what takes the process's own.
pub(crate) fn bound_capabilities(kept: CapabilitySet) -> io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel knows no more of them.
            Err(Errno::INVAL) => break,
            removed => removed?,
        }
    }
    match rustix::thread::clear_ambient_capability_set() {
        // Before Linux 4.3 there are none.
        Err(Errno::INVAL) => Ok(()),
        cleared => Ok(cleared?),
    }
}

/// Gives up all capabilities but these, as far as the process has them.
pub(crate) fn hold_capabilities(kept: CapabilitySet) -> io::Result<()> {
    let held = rustix::thread::capabilities(None)?.permitted & kept;
    let sets = CapabilitySets {
        effective: held,
        permitted: held,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)?;
    // More capabilities than before would have made the process visible; fewer do not, but nobody need know that.
    hide()
}

/// Becomes this user. Capabilities go with root.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    if [uid, gid].contains(&UNCHANGED) || groups.contains(&UNCHANGED) {
        return Err(Errno::INVAL.into());
    }
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // Changing the user may have made the process visible again.
    hide()
}

/// Does something as another user, with no capability that would be in effect.
pub(crate) fn as_user<T>(user: u32, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (root, other) = (Uid::ROOT, Uid::from_raw(user));
    rustix::thread::set_thread_res_uid(root, other, root)?;
    let done = work();
    rustix::thread::set_thread_res_uid(root, root, root)?;
    hide()?;
    done
}

/// Leaves the host's files: from here on the root directory is what `fill` makes of an empty one, read-only. `at` is a
/// directory to put it on, which nobody else sees changed; there is room for `entries` and a few more.
pub(crate) fn enter_root_of_its_own(
    at: &std::path::Path,
    entries: usize,
    fill: impl FnOnce(&std::path::Path) -> io::Result<()>,
) -> io::Result<()> {
    sys::unshare(UnshareFlags::NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let root = small_file_system(entries)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&root, "", CWD, at, flags)?;
    // Whoever this process becomes has to find its way there.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    fill(at)?;
    gantry_idmap::set_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY)?;
    // By its descriptor: this process may be unable to find the way to it.
    rustix::process::fchdir(&root)?;
    // The old root comes to lie on the new one, and is taken off.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// A tmpfs that is mounted nowhere yet.
fn small_file_system(entries: usize) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let inodes = (entries + 64).to_string();
    for (name, value) in [("size", "64k"), ("nr_inodes", &*inodes), ("mode", "555")] {
        rustix::mount::fsconfig_set_string(&context, name, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(rustix::mount::fsmount(&context, flags, attributes)?)
}

/// Moves this process back in the queue of the kernel's OOM killer, as far as it may; says whether it could.
pub(crate) fn die_late(score: i32) -> io::Result<bool> {
    match std::fs::write(SCORE, score.to_string()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// Changes this process's and its children's place in the queue of the kernel's OOM killer. Where that needs a
/// privilege that is missing, 0 stands for anything lower: an agent's own place is never handed on.
pub(crate) fn set_oom_score_adj(adjustment: i32) -> io::Result<()> {
    if !die_late(adjustment)? {
        std::fs::write(SCORE, "0")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_becomes_whoever_they_are() {
        for (uid, gid, groups) in [
            (UNCHANGED, 7, [7]),
            (7, UNCHANGED, [7]),
            (7, 7, [UNCHANGED]),
        ] {
            let refused = become_user(uid, gid, &groups).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        }
    }
}
