//! subPath: a file or directory within a volume, never outside it, whatever links a container has planted there.

use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

use super::{VolumeError, io};

/// The host path of `sub_path` in the volume at `base`; missing directories are created.
pub(super) fn resolve(base: &Path, sub_path: &str) -> Result<PathBuf, VolumeError> {
    let outside = || VolumeError::Outside(sub_path.to_owned());
    if !Path::new(sub_path)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(outside());
    }
    let doing = || {
        io(format!(
            "resolving subPath {sub_path:?} in {}",
            base.display()
        ))
    };
    let root = rustix::fs::open(base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| doing()(error.into()))?;
    let of_volume = rustix::fs::statat(&root, "", AtFlags::EMPTY_PATH)
        .map_err(|error| doing()(error.into()))?;
    let mode = Mode::from_raw_mode(of_volume.st_mode & 0o777);
    let open = |path: &Path| {
        rustix::fs::openat2(
            &root,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )
    };
    let mut built = PathBuf::new();
    for part in Path::new(sub_path).components() {
        let parent = if built.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            built.clone()
        };
        built.push(part);
        match open(&built) {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) => {
                let parent = open(&parent).map_err(|error| doing()(error.into()))?;
                rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o700))
                    .map_err(|error| doing()(error.into()))?;
                // As the volume itself: whoever may write there may write here.
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::openat2(&root, &built, flags, Mode::empty(), ResolveFlags::IN_ROOT)
                    .and_then(|made| rustix::fs::fchmod(made, mode))
                    .map_err(|error| doing()(error.into()))?;
            }
            Err(error) => return Err(doing()(error.into())),
        }
    }
    let found = open(&built).map_err(|error| doing()(error.into()))?;
    let path =
        std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(doing())?;
    let base = std::fs::canonicalize(base).map_err(doing())?;
    if path.starts_with(&base) {
        Ok(path)
    } else {
        Err(outside())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_cannot_lead_out() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink("real", base.join("inside")).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("escape")).unwrap();
        assert_eq!(resolve(&base, "inside").unwrap(), base.join("real"));
        assert_eq!(resolve(&base, "new/deep").unwrap(), base.join("new/deep"));
        assert!(base.join("new/deep").is_dir());
        assert!(matches!(
            resolve(&base, "../x"),
            Err(VolumeError::Outside(_))
        ));
        assert!(matches!(
            resolve(&base, "/etc"),
            Err(VolumeError::Outside(_))
        ));
        let escaped = resolve(&base, "escape/passwd");
        assert!(
            escaped.as_ref().is_err() || escaped.as_ref().is_ok_and(|path| path.starts_with(&base)),
            "{escaped:?}"
        );
    }
}
