//! Writable root file systems: overlay mounts of an image's layers.
//!
//! `rootfs/<key>/{upper,work,merged,empty,volumes,image}`; `image` names the image, so that its layers are not collected, and
//! `empty` is what an image without layers is made of. On the disk a layer's files have the ids that the image says, what a container has written those it has on the node, and volumes
//! those that the container sees.

use std::fs::{Metadata, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use gantry_cri::image::digest;
use gantry_idmap::Users;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount,
    mount_bind, mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::UnshareFlags;

use crate::parents::Parents;
use crate::volume;

/// overlayfs takes its options in one page; longer ones need a kernel with `lowerdir+`.
const OPTIONS_LIMIT: usize = 4000;

/// Below a root file system's directory: the volumes that its image asks for.
const VOLUMES: &str = "volumes";

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
    pub(crate) fn mount(
        &self,
        key: &str,
        image: &str,
        layers: &[PathBuf],
        users: Option<&Users>,
    ) -> io::Result<PathBuf> {
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
        let owner = |of: fn(&Metadata) -> u32| {
            let id = root.as_ref().map_or(0, of);
            Some(users.map_or(id, |users| {
                users.ids.on_node(id).unwrap_or(users.ids.first())
            }))
        };
        chown(&upper, owner(MetadataExt::uid), owner(MetadataExt::gid))?;
        std::fs::set_permissions(&upper, Permissions::from_mode(mode))?;
        std::fs::write(place.join("image"), image)?;
        let (mut layers, work) = (layers.visible()?, place.join("work"));
        if layers.is_empty() {
            // overlayfs wants one.
            let empty = place.join("empty");
            std::fs::create_dir_all(&empty)?;
            layers.push(empty);
        }
        match users {
            None => overlay(&layers, &upper, &work, &merged)?,
            Some(users) => mapped_overlay(users, &layers, &place)?,
        }
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

    /// A volume of a mounted root file system, which begins with what the image has at `path`.
    pub(crate) fn volume(
        &self,
        key: &str,
        path: &str,
        users: Option<&Users>,
    ) -> io::Result<PathBuf> {
        let place = self.place(key)?;
        let merged = place.join("merged");
        if !is_mount_point(&merged)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let name = digest(path.as_bytes());
        let name = name.trim_start_matches("sha256:");
        let volume = place.join(VOLUMES).join(name);
        let ids = users.map(|users| users.ids);
        volume::make(&merged, Path::new(path), &volume, ids)?;
        Ok(volume)
    }

    /// Where writes go, by key: to the root file system itself, and to volumes of it.
    pub(crate) fn writable_layers(&self) -> Vec<(String, PathBuf)> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
            .flat_map(|(key, place)| {
                let volumes = Some(place.join(VOLUMES)).filter(|volumes| volumes.exists());
                let places = [place.join("upper")].into_iter().chain(volumes);
                places.map(move |place| (key.clone(), place))
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
        .mount(key, "trial", &layers, None)
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
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Mounts layers at `place/merged` as files of a pod with users of its own. overlayfs wants its layers somewhere in the file
/// system: they are mounted in a namespace that only a thread of ours sees, and that ends with it.
fn mapped_overlay(users: &Users, layers: &[PathBuf], place: &Path) -> io::Result<()> {
    let mounted = std::thread::scope(|scope| {
        let working = scope.spawn(|| mapped_overlay_apart(users, layers, place));
        working
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("mounting the layers panicked")))
    })?;
    move_mount(
        &mounted,
        "",
        CWD,
        place.join("merged"),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// The mount, which is nowhere in the file system yet. The thread that calls this has to end.
fn mapped_overlay_apart(users: &Users, layers: &[PathBuf], place: &Path) -> io::Result<OwnedFd> {
    #[expect(
        unsafe_code,
        reason = "CLONE_FILES would be dangerous with several threads"
    )]
    // SAFETY: neither flag takes descriptors apart; this thread's root and working directory become its own.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS)?;
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    // Short names, relative to here: the options have to fit in a page.
    let merged = place.join("merged");
    mount("layers", &merged, "tmpfs", MountFlags::empty(), c"mode=700")?;
    rustix::process::chdir(&merged)?;
    let mut lower = Vec::with_capacity(layers.len());
    // overlayfs wants the topmost first.
    for (number, layer) in layers.iter().rev().enumerate() {
        let name = number.to_string();
        std::fs::create_dir(&name)?;
        let layer = users.mapped_path(layer)?;
        move_mount(
            &layer,
            "",
            CWD,
            &name,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        lower.push(name);
    }
    for name in ["place", "whole"] {
        std::fs::create_dir(name)?;
    }
    mount_bind(place, "place")?;
    let options = format!(
        "lowerdir={},upperdir=place/upper,workdir=place/work",
        lower.join(":")
    );
    if options.len() >= OPTIONS_LIMIT {
        return Err(io::Error::other(format!(
            "the image has {} layers, too many for a pod with users of its own (hostUsers: false)",
            lower.len()
        )));
    }
    let options = std::ffi::CString::new(options)?;
    mount(
        "overlay",
        "whole",
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, "whole", flags)?)
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
        let merged = rootfs.mount("key", "image", &layers, None).unwrap();
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
    fn an_image_without_layers_is_an_empty_root() {
        let directory = tempfile::tempdir().unwrap();
        let rootfs = Rootfs {
            directory: directory.path().join("rootfs"),
        };
        let merged = rootfs.mount("key", "image", &[], None).unwrap();
        assert_eq!(std::fs::read_dir(&merged).unwrap().count(), 0);
        std::fs::write(merged.join("file"), "content").unwrap();
        assert!(rootfs.unmount("key").unwrap());
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
        let merged = rootfs.mount("key", "image", &[layer], None).unwrap();
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
