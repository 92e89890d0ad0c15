//! Writable root file systems: overlay mounts of an image's layers.
//!
//! `rootfs/<key>/{upper,work,merged,image}`; `image` names the image, so that its layers are not collected.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

/// overlayfs takes its options in one page; longer ones need a kernel with `lowerdir+`.
const OPTIONS_LIMIT: usize = 4000;

/// Where root file systems live.
#[derive(Clone, Debug)]
pub(crate) struct Rootfs {
    pub(crate) directory: PathBuf,
}

impl Rootfs {
    fn place(&self, key: &str) -> io::Result<PathBuf> {
        let plain = !key.is_empty()
            && key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !key.starts_with('.');
        match plain {
            true => Ok(self.directory.join(key)),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{key:?} is not a key: letters, digits, '-', '_' and '.'"),
            )),
        }
    }

    /// Mounts layers (lowest first), or returns the mount that is there.
    pub(crate) fn mount(&self, key: &str, image: &str, layers: &[PathBuf]) -> io::Result<PathBuf> {
        let place = self.place(key)?;
        let merged = place.join("merged");
        if is_mount_point(&merged)? {
            return Ok(merged);
        }
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir_all(place.join(name))?;
        }
        // This is the mode of the container's root directory.
        std::fs::set_permissions(place.join("upper"), Permissions::from_mode(0o755))?;
        std::fs::write(place.join("image"), image)?;
        overlay(layers, &place.join("upper"), &place.join("work"), &merged)?;
        Ok(merged)
    }

    /// Unmounts and deletes; true when there was something.
    pub(crate) fn unmount(&self, key: &str) -> io::Result<bool> {
        let place = self.place(key)?;
        if !place.exists() {
            return Ok(false);
        }
        let merged = place.join("merged");
        if is_mount_point(&merged)? {
            unmount(&merged, UnmountFlags::DETACH)?;
        }
        std::fs::remove_dir_all(&place)?;
        Ok(true)
    }

    /// Where writes go, by key.
    pub(crate) fn writable_layers(&self) -> Vec<(String, PathBuf)> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        entries
            .flatten()
            .filter_map(|entry| {
                let key = entry.file_name().into_string().ok()?;
                Some((key, entry.path().join("upper")))
            })
            .collect()
    }

    /// Ids of the images in use.
    pub(crate) fn images_in_use(&self) -> io::Result<Vec<String>> {
        let mut images = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            match std::fs::read_to_string(entry?.path().join("image")) {
                Ok(image) => images.push(image),
                // Being made or removed this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(images)
    }
}

/// Mounts a root file system of two layers below a directory, writes to it, and removes all of it.
pub fn try_overlay(directory: &Path) -> io::Result<()> {
    let rootfs = Rootfs {
        directory: directory.to_owned(),
    };
    let layers = ["layer-1", "layer-2"].map(|layer| directory.join(layer));
    for layer in &layers {
        std::fs::create_dir_all(layer)?;
    }
    let key = "trial";
    let tried = rootfs
        .mount(key, "trial", &layers)
        .and_then(|merged| std::fs::write(merged.join("file"), "content"));
    let removed = rootfs.unmount(key);
    for layer in &layers {
        std::fs::remove_dir(layer)?;
    }
    tried.and(removed.map(|_| ()))
}

/// Whether something is mounted on a directory: its device differs from its parent's.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = path.parent().unwrap_or(Path::new("/"));
    match path.symlink_metadata() {
        Ok(metadata) => Ok(metadata.dev() != parent.symlink_metadata()?.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn overlay(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    // overlayfs wants the topmost first.
    let lower: Vec<String> = layers
        .iter()
        .rev()
        .map(|layer| layer.display().to_string())
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    if options.len() < OPTIONS_LIMIT {
        let options = std::ffi::CString::new(options)?;
        mount(
            "overlay",
            target,
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )?;
        return Ok(());
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in &lower {
        fsconfig_set_string(&context, "lowerdir+", layer.as_str()).map_err(|error| {
            io::Error::other(format!(
                "the image has {} layers, which this kernel's overlayfs cannot mount ({error}); Linux 6.8 can",
                lower.len()
            ))
        })?;
    }
    fsconfig_set_string(&context, "upperdir", upper)?;
    fsconfig_set_string(&context, "workdir", work)?;
    fsconfig_create(&context)?;
    let mounted = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    move_mount(
        &mounted,
        "",
        rustix::fs::CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        try_overlay(directory.path()).unwrap();
        let left = std::fs::read_dir(directory.path()).unwrap();
        assert_eq!(left.count(), 0);
        let error = try_overlay(Path::new("/proc")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}
