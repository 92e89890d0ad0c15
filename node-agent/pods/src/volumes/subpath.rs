//! subPath: a file or directory within a volume, never outside it, whatever links a container has planted there.
//!
//! Containers of the pod may change the volume at any time, so a path into it says nothing: it could lead elsewhere when it
//! is next looked up. What was found is mounted by its descriptor at a place that no container sees, and that place is
//! handed out.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use gantry_cri::runtime::Propagation;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use super::{VolumeError, io};

/// Mounts `sub_path` of the volume at `base` on `place`, which is made: a directory or a file, as what is found is. Missing
/// directories of the volume are created. As with Kubernetes, what is mounted further down in a volume is not part of it.
pub(super) fn attach(
    base: &Path,
    sub_path: &str,
    place: &Path,
    propagation: Propagation,
) -> Result<(), VolumeError> {
    let found = find(base, sub_path)?;
    mount(&found, place, propagation).map_err(io(format!(
        "mounting subPath {sub_path:?} of {} (root is needed)",
        base.display()
    )))
}

fn mount(found: &OwnedFd, place: &Path, propagation: Propagation) -> std::io::Result<()> {
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let stat = rustix::fs::fstat(found)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => std::fs::create_dir(place)?,
        _ => std::fs::File::create_new(place).map(drop)?,
    }
    let itself = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(found, "", itself)?;
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", CWD, place, onto)?;
    if propagation == Propagation::None {
        // Else what the host mounts there would be in it too.
        rustix::mount::mount_change(place, MountPropagationFlags::PRIVATE)?;
    }
    Ok(())
}

/// Opens `sub_path` in the volume at `base`; missing directories are created.
fn find(base: &Path, sub_path: &str) -> Result<OwnedFd, VolumeError> {
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
    let open = |path: &Path| gantry_durable::open_inside(&root, path, OFlags::PATH);
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
            Err(Errno::NOENT) => {
                let parent = open(&parent).map_err(|error| doing()(error.into()))?;
                make(&parent, part.as_os_str(), &of_volume)
                    .map_err(|error| doing()(error.into()))?;
            }
            Err(error) => return Err(doing()(error.into())),
        }
    }
    open(&built).map_err(|error| doing()(error.into()))
}

/// Makes a directory as the volume itself is: whoever may write there may write here, and what they make is of the same group
/// and as safe from others (set-group-id and sticky bits), as with a kubelet.
fn make(parent: &OwnedFd, name: &OsStr, volume: &Stat) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
        // Another container of the pod is starting.
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fchown(&made, None, Some(Gid::from_raw(volume.st_gid)))?;
    // After the group, whose change may take bits away, and whatever this process's umask does.
    rustix::fs::fchmod(made, Mode::from_raw_mode(volume.st_mode & 0o7777))
}

/// Tests of mounts need root.
#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use super::super::tear_down;
    use super::*;

    /// A volume, and a directory for what is mounted of it.
    struct Bed {
        directory: tempfile::TempDir,
        volume: PathBuf,
    }

    impl Bed {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let volume = directory.path().join("volume");
            fs::create_dir(&volume).unwrap();
            Self { directory, volume }
        }

        fn place(&self, name: &str) -> PathBuf {
            self.directory.path().join("places").join(name)
        }

        fn attach(&self, sub_path: &str, name: &str) -> Result<PathBuf, VolumeError> {
            let place = self.place(name);
            attach(&self.volume, sub_path, &place, Propagation::None)?;
            Ok(place)
        }
    }

    impl Drop for Bed {
        fn drop(&mut self) {
            if let Err(error) = tear_down(&self.directory.path().join("places")) {
                eprintln!("{error}");
            }
        }
    }

    #[test]
    fn links_cannot_lead_out() {
        let bed = Bed::new();
        fs::create_dir(bed.volume.join("real")).unwrap();
        fs::write(bed.volume.join("real/file"), "own").unwrap();
        symlink("real", bed.volume.join("inside")).unwrap();
        symlink("/etc", bed.volume.join("escape")).unwrap();
        let inside = bed.attach("inside", "0").expect("this test needs root");
        assert_eq!(fs::read_to_string(inside.join("file")).unwrap(), "own");
        let file = bed.attach("inside/file", "1").unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "own");
        let deep = bed.attach("new/deep", "2").unwrap();
        fs::write(deep.join("file"), "").unwrap();
        assert!(bed.volume.join("new/deep/file").exists());
        for outside in ["../x", "/etc"] {
            let refused = bed.attach(outside, "3");
            assert!(matches!(refused, Err(VolumeError::Outside(_))));
        }
        // "/" is the volume's top.
        assert!(bed.attach("escape/hostname", "4").is_err());
    }

    #[test]
    fn what_is_made_is_as_the_volume() {
        // An emptyDir, one with fsGroup, a hostPath of a group, and one like /tmp.
        for (mode, group) in [(0o777, 0), (0o2777, 1234), (0o750, 1234), (0o1777, 0)] {
            let bed = Bed::new();
            chown(&bed.volume, None, Some(group)).expect("this test needs root");
            fs::set_permissions(&bed.volume, fs::Permissions::from_mode(mode)).unwrap();
            let place = bed.attach("a/b/c", "0").unwrap();
            let made = ["a", "a/b", "a/b/c"].map(|path| bed.volume.join(path));
            for path in made.iter().chain([&place]) {
                let found = path.metadata().unwrap();
                let is = (found.mode() & 0o7777, found.uid(), found.gid());
                assert_eq!(is, (mode, 0, group), "{}", path.display());
            }
            // What is there is the container's own.
            fs::set_permissions(&made[0], fs::Permissions::from_mode(0o700)).unwrap();
            bed.attach("a/new", "1").unwrap();
            assert_eq!(made[0].metadata().unwrap().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn what_was_found_stays_when_a_link_takes_its_place() {
        let bed = Bed::new();
        let outside = bed.directory.path().join("outside");
        for (directory, content) in [(&outside, "host"), (&bed.volume.join("part"), "own")] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("file"), content).unwrap();
        }
        let swap = |name: &str| {
            fs::rename(bed.volume.join(name), bed.volume.join("moved")).unwrap();
            symlink(&outside, bed.volume.join(name)).unwrap();
        };
        // Between the look-up and the mount.
        let found = find(&bed.volume, "part").unwrap();
        swap("part");
        let place = bed.place("0");
        mount(&found, &place, Propagation::None).expect("this test needs root");
        assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "own");
        // And between the mount and its use.
        fs::rename(bed.volume.join("moved"), bed.volume.join("again")).unwrap();
        let place = bed.attach("again", "1").unwrap();
        swap("again");
        let handed_out = place.canonicalize().unwrap();
        assert_eq!(fs::read_to_string(handed_out.join("file")).unwrap(), "own");
    }

    #[test]
    fn what_is_taken_off_leaves_the_volume() {
        let bed = Bed::new();
        fs::create_dir(bed.volume.join("part")).unwrap();
        fs::write(bed.volume.join("part/file"), "own").unwrap();
        for _ in 0..2 {
            bed.attach("part", "0").expect("this test needs root");
            bed.attach("part/file", "1").unwrap();
            tear_down(&bed.directory.path().join("places")).unwrap();
            assert!(!bed.place("0").exists());
        }
        let kept = fs::read_to_string(bed.volume.join("part/file"));
        assert_eq!(kept.unwrap(), "own");
    }
}
