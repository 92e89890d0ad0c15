//! Writable root file systems: overlay mounts of an image's layers.
//!
//! `rootfs/<key>/{upper,work,merged,image}`; `image` names the image, so that its layers are not collected.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use crate::parents::Parents;

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
        let (upper, layers) = (place.join("upper"), Parents::new(layers));
        // The container's root directory is as the image has it.
        let root = layers.root()?;
        let mode = root.as_ref().map_or(0o755, |root| root.mode() & 0o7777);
        chown(
            &upper,
            root.as_ref().map(MetadataExt::uid),
            root.as_ref().map(MetadataExt::gid),
        )?;
        std::fs::set_permissions(&upper, Permissions::from_mode(mode))?;
        std::fs::write(place.join("image"), image)?;
        overlay(&layers.visible()?, &upper, &place.join("work"), &merged)?;
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
        gantry_durable::remove_tree(&place)?;
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

/// Names of directories as mount options take them, for as long as it lives.
#[derive(Default)]
struct Names(Vec<OwnedFd>);

impl Names {
    /// The path itself, unless it has letters that mean something in options: kernels differ in how those are told apart.
    fn of(&mut self, directory: &Path) -> io::Result<String> {
        let path = directory.to_str();
        if let Some(path) = path.filter(|path| !path.contains([',', ':', '\\', '"'])) {
            return Ok(path.to_owned());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::empty())?;
        let name = format!("/proc/self/fd/{}", opened.as_raw_fd());
        self.0.push(opened);
        Ok(name)
    }
}

fn overlay(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let mut names = Names::default();
    // overlayfs wants the topmost first.
    let layers = layers.iter().rev();
    let lower: Vec<String> = layers
        .map(|layer| names.of(layer))
        .collect::<io::Result<_>>()?;
    let (upper, work) = (names.of(upper)?, names.of(work)?);
    let options = format!(
        "lowerdir={},upperdir={upper},workdir={work}",
        lower.join(":"),
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
    fsconfig_set_string(&context, "upperdir", upper.as_str())?;
    fsconfig_set_string(&context, "workdir", work.as_str())?;
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
    fn directories_may_have_any_name() {
        let around = tempfile::tempdir().unwrap();
        for name in ["a:b", "a,b", "a b", "a\\b", "a\"b", "a=b", "\u{e4}"] {
            let directory = around.path().join(name);
            std::fs::create_dir(&directory).unwrap();
            try_overlay(&directory).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn the_root_is_as_the_image_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let rootfs = Rootfs {
            directory: directory.path().join("rootfs"),
        };
        let layers = ["low", "hides", "top"].map(|name| directory.path().join(name));
        for (layer, mode) in layers.iter().zip([0o755, 0o711, 0o700]) {
            std::fs::create_dir(layer).unwrap();
            std::fs::write(layer.join(layer.file_name().unwrap()), "").unwrap();
            std::fs::set_permissions(layer, Permissions::from_mode(mode)).unwrap();
        }
        chown(&layers[2], Some(12), Some(34)).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&layers[1], crate::root::OPAQUE_XATTR, b"y", flags).unwrap();
        let merged = rootfs.mount("key", "image", &layers).unwrap();
        let root = merged.metadata().unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&merged)
            .unwrap()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        names.sort();
        rootfs.unmount("key").unwrap();
        assert_eq!(
            (root.uid(), root.gid(), root.mode() & 0o7777),
            (12, 34, 0o700)
        );
        assert_eq!(names, ["hides", "top"]);
    }

    #[test]
    fn a_trial_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        try_overlay(directory.path()).unwrap();
        let left = std::fs::read_dir(directory.path()).unwrap();
        assert_eq!(left.count(), 0);
        let error = try_overlay(Path::new("/proc")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }

    #[test]
    fn what_a_container_wrote_goes_however_deep_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let rootfs = Rootfs {
            directory: directory.path().join("rootfs"),
        };
        let layer = directory.path().join("layer");
        std::fs::create_dir(&layer).unwrap();
        let merged = rootfs.mount("key", "image", &[layer]).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut current = rustix::fs::open(&merged, flags, Mode::empty()).unwrap();
        for _ in 0..3_000 {
            rustix::fs::mkdirat(&current, "d", Mode::RWXU).unwrap();
            current = rustix::fs::openat(&current, "d", flags, Mode::empty()).unwrap();
        }
        drop(current);
        let unmounted = std::thread::Builder::new()
            .stack_size(256 << 10)
            .spawn(move || rootfs.unmount("key"))
            .unwrap();
        assert!(unmounted.join().unwrap().unwrap());
        assert!(!directory.path().join("rootfs/key").exists());
    }
}
