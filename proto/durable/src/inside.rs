//! Paths in trees that strangers write to.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Times that a path is looked up while others are renamed.
const ATTEMPTS: usize = 128;

/// Opens a path as if `root` were `/`: no link, and no `..`, leads out of it. The empty path is `root` itself.
///
/// The kernel says `EAGAIN` where a path has a `..` and anybody on the machine has renamed or mounted anything since it
/// began to look: that is tried again, up to a point.
pub fn open_inside(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 1;
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries < ATTEMPTS => tries += 1,
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn paths_are_found_while_others_are_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        std::fs::write(at("moved"), "").unwrap();
        symlink("../../file", at("a/b/link")).unwrap();
        symlink("../../../../etc/passwd", at("a/b/out")).unwrap();
        let root = std::fs::File::open(directory.path()).unwrap();
        let over = AtomicBool::new(false);
        let missing = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut from, mut to) = (at("moved"), at("moved-on"));
                while !over.load(Ordering::Relaxed) {
                    std::fs::rename(&from, &to).unwrap();
                    std::mem::swap(&mut from, &mut to);
                }
            });
            let open = |path: &str| open_inside(&root, Path::new(path), OFlags::PATH);
            let found = (0..2_000).filter_map(|_| open("/a/b/link").err()).count();
            let out = open("a/b/out").map(drop);
            over.store(true, Ordering::Relaxed);
            (found, out)
        });
        assert_eq!(missing, (0, Err(Errno::NOENT)));
    }
}
