//! What is below a layer: what it leaves out is as the layers under it have it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, fchmod, fchown, futimens, linkat,
};
use rustix::io::Errno;

use crate::root::{self, OPAQUE_XATTR, Root, above, copy_attributes, invalid, kind_of};
use crate::unpack::Unpacked;

/// Parts of paths that are followed to complete one layer: some seconds' worth.
const LOOKED_UP: u64 = 1 << 26;

/// The directories of layers, topmost first, in overlayfs' form. Nobody changes them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parents(Vec<PathBuf>);

impl Parents {
    /// `layers` are the lowest first.
    pub(crate) fn new(layers: &[PathBuf]) -> Self {
        Self(layers.iter().rev().cloned().collect())
    }

    /// The layers that are seen at all, lowest first: what is below one that hides everything is not.
    pub(crate) fn visible(&self) -> io::Result<Vec<PathBuf>> {
        let mut visible = Vec::new();
        for layer in &self.0 {
            visible.push(layer.clone());
            if is_opaque(layer)? {
                break;
            }
        }
        visible.reverse();
        Ok(visible)
    }

    /// The root directory of the whole file system.
    pub(crate) fn root(&self) -> io::Result<Option<Metadata>> {
        let topmost = self.0.first();
        topmost.map(|layer| layer.symlink_metadata()).transpose()
    }

    /// Gives an unpacked layer what it has left to the layers below it.
    pub(crate) fn complete(&self, unpacked: &Unpacked, layer: &Path) -> io::Result<()> {
        let named = |path: &Path| {
            let path = path.display().to_string();
            move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
        };
        let root = Root::open(layer)?;
        let mut walk = Walk::new(&self.0)?;
        for (path, target) in &unpacked.links {
            link(&mut walk, target, path, &root).map_err(named(path))?;
        }
        // The deepest first: what is done to a directory changes the times of the one above.
        for path in unpacked.implied.iter().rev() {
            if let Some((place, like)) = walk.find(path).map_err(named(path))?
                && like.is_dir()
            {
                let directory = root.directory(path).map_err(io::Error::from);
                directory
                    .and_then(|directory| imitate(&directory, &place, &like))
                    .map_err(named(path))?;
            }
        }
        Ok(())
    }
}

/// Makes a name in a layer for a file that a lower one has. Nobody writes to either, so both may have it.
fn link(walk: &mut Walk<'_>, target: &Path, path: &Path, root: &Root) -> io::Result<()> {
    let (parent, name) = root.parent(path)?;
    // A later entry of the layer has taken the name.
    if kind_of(&parent, name)?.is_some() {
        return Ok(());
    }
    // The layer may have said when the directory was changed.
    let before = File::from(parent.try_clone()?).metadata()?;
    make_link(walk, target, &parent, name, root)?;
    Ok(futimens(&parent, &times(&before))?)
}

fn make_link(
    walk: &mut Walk<'_>,
    target: &Path,
    parent: &OwnedFd,
    name: &OsStr,
    root: &Root,
) -> io::Result<()> {
    // Another link has made it.
    if let Ok((own, file)) = root.parent(target)
        && kind_of(&own, file)?.is_some_and(|kind| kind != FileType::Directory)
        && !root::is_whiteout(&own, file)?
    {
        return Ok(linkat(&own, file, parent, name, AtFlags::empty())?);
    }
    match walk.find(target)?.filter(|(_, found)| !found.is_dir()) {
        Some((file, _)) => Ok(linkat(CWD, &file, parent, name, AtFlags::empty())?),
        None => Err(invalid(&format!(
            "it is a hard link to {}, which is in no layer",
            target.display()
        ))),
    }
}

/// A walk through the whole file system: what it has found of the directories above a path serves for the next one. A path
/// that shares all but its last directory with the one before costs a look in each layer.
struct Walk<'a> {
    /// The layers of which the root is seen, topmost first.
    root: Vec<&'a Path>,
    /// The directory where it is: the name of each part, and the layers of which that directory is seen, topmost first.
    here: Vec<(OsString, Vec<&'a Path>)>,
    cost: Cost,
}

/// Parts of paths that the kernel may still be asked to follow.
struct Cost(u64);

impl Cost {
    fn spend(&mut self, path: &Path) -> io::Result<()> {
        // Two looks, at paths that begin with the layer's own.
        let parts = 2 * (path.components().count() as u64 + 8);
        self.0 = self.0.checked_sub(parts).ok_or_else(|| {
            invalid("it leaves too many directories and hard links to the layers below it")
        })?;
        Ok(())
    }
}

impl<'a> Walk<'a> {
    /// `layers` are the topmost first.
    fn new(layers: &'a [PathBuf]) -> io::Result<Self> {
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        let mut cost = Cost(LOOKED_UP);
        Ok(Self {
            root: seen(&layers, Path::new(""), &mut cost)?,
            here: Vec::new(),
            cost,
        })
    }

    /// Where a path of the whole file system is, following no symbolic link.
    fn find(&mut self, path: &Path) -> io::Result<Option<(PathBuf, Metadata)>> {
        self.go_to(above(path))?;
        for layer in Self::last(&self.root, &self.here) {
            self.cost.spend(path)?;
            let place = layer.join(path);
            match place.symlink_metadata() {
                Ok(found) if is_whiteout(&found) => return Ok(None),
                Ok(found) => return Ok(Some((place, found))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn go_to(&mut self, directory: &Path) -> io::Result<()> {
        let common = self.here.iter().zip(directory.components());
        let common = common.take_while(|((name, _), part)| name.as_os_str() == part.as_os_str());
        let common = common.count();
        self.here.truncate(common);
        let mut reached: PathBuf = directory.components().take(common).collect();
        for part in directory.components().skip(common) {
            reached.push(part);
            let above = Self::last(&self.root, &self.here);
            let seen = seen(above, &reached, &mut self.cost)?;
            self.here.push((part.as_os_str().to_owned(), seen));
        }
        Ok(())
    }

    fn last<'b>(root: &'b [&'a Path], here: &'b [(OsString, Vec<&'a Path>)]) -> &'b [&'a Path] {
        here.last().map_or(root, |(_, layers)| layers.as_slice())
    }
}

/// Of the layers in which a directory is looked for, those whose is seen; topmost first, both.
fn seen<'a>(layers: &[&'a Path], path: &Path, cost: &mut Cost) -> io::Result<Vec<&'a Path>> {
    let mut seen = Vec::new();
    for layer in layers {
        cost.spend(path)?;
        let place = layer.join(path);
        match place.symlink_metadata() {
            Ok(found) if found.is_dir() => {
                seen.push(*layer);
                if is_opaque(&place)? {
                    break;
                }
            }
            // Whatever else it is, it hides what is below.
            Ok(_) => break,
            // But for the layer itself, which has to be there.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path != Path::new("") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}

fn is_whiteout(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == 0
}

fn is_opaque(directory: &Path) -> io::Result<bool> {
    let mut value = [0_u8; 8];
    match rustix::fs::lgetxattr(directory, OPAQUE_XATTR, &mut value) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Gives a directory the owner, mode, attributes and times of another, which is at `place`.
fn imitate(directory: &OwnedFd, place: &Path, like: &Metadata) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(like.uid()), Gid::from_raw(like.gid()));
    fchown(directory, Some(user), Some(group))?;
    fchmod(directory, Mode::from_raw_mode(like.mode() & 0o7777))?;
    let own = format!("/proc/self/fd/{}/.", directory.as_raw_fd());
    // Those are the layer's own business: what overlayfs notes, above all.
    copy_attributes(place, Path::new(&own), |name| name.starts_with(b"trusted."))?;
    Ok(futimens(directory, &times(like))?)
}

fn times(of: &Metadata) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(of.atime(), of.atime_nsec()),
        last_modification: time(of.mtime(), of.mtime_nsec()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{XattrFlags, makedev, mknodat};

    use super::*;

    struct Layers {
        directory: tempfile::TempDir,
        paths: Vec<PathBuf>,
    }

    impl Layers {
        fn new(count: usize) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let paths: Vec<PathBuf> = (0..count)
                .map(|number| directory.path().join(number.to_string()))
                .collect();
            for path in &paths {
                std::fs::create_dir(path).expect("a layer");
            }
            Self { directory, paths }
        }

        fn directory(&self, layer: usize, path: &str, mode: u32) {
            let path = self.paths[layer].join(path);
            std::fs::create_dir_all(&path).expect("a directory");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        }

        fn file(&self, layer: usize, path: &str, content: &str) {
            std::fs::write(self.paths[layer].join(path), content).expect("a file");
        }

        fn whiteout(&self, layer: usize, path: &str) {
            let path = self.paths[layer].join(path);
            let kind = FileType::CharacterDevice;
            mknodat(rustix::fs::CWD, path, kind, Mode::empty(), makedev(0, 0)).expect("a device");
        }

        fn opaque(&self, layer: usize, path: &str) {
            let path = self.paths[layer].join(path);
            rustix::fs::lsetxattr(path, OPAQUE_XATTR, b"y", XattrFlags::empty())
                .expect("an attribute");
        }

        /// Completes the topmost layer.
        fn complete(&self, unpacked: &Unpacked) -> io::Result<PathBuf> {
            let (top, below) = self.paths.split_last().expect("a layer");
            Parents::new(below).complete(unpacked, top)?;
            assert!(self.directory.path().exists());
            Ok(top.clone())
        }
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().expect("there").mode() & 0o7777
    }

    fn implied(paths: &[&str]) -> Unpacked {
        Unpacked {
            implied: paths.iter().map(PathBuf::from).collect(),
            ..Unpacked::default()
        }
    }

    #[test]
    fn a_directory_that_a_layer_says_nothing_of_is_as_below() {
        let layers = Layers::new(4);
        layers.directory(0, "", 0o700);
        layers.directory(0, "tmp", 0o1777);
        layers.directory(0, "tmp/inner", 0o711);
        layers.directory(1, "tmp", 0o1770);
        layers.directory(2, "", 0o711);
        layers.directory(3, "tmp/inner", 0o755);
        layers.directory(3, "new", 0o755);
        let unpacked = implied(&["", "tmp", "tmp/inner", "new"]);
        let top = layers.complete(&unpacked).expect("completed");
        assert_eq!(mode(&top), 0o711, "the root");
        assert_eq!(mode(&top.join("tmp")), 0o1770, "of the topmost that has it");
        assert_eq!(mode(&top.join("tmp/inner")), 0o711);
        assert_eq!(mode(&top.join("new")), 0o755, "no layer below has it");
    }

    #[test]
    fn a_directory_keeps_its_attributes_and_times() {
        let layers = Layers::new(2);
        layers.directory(0, "d", 0o755);
        layers.file(0, "file", "");
        layers.opaque(0, "d");
        let low = layers.paths[0].join("d");
        rustix::fs::lsetxattr(&low, "user.kept", b"a\0b", XattrFlags::empty())
            .expect("an attribute");
        layers.directory(1, "d", 0o755);
        layers.directory(1, "own", 0o755);
        let opened = File::open(layers.paths[1].join("own")).expect("a directory");
        let like = layers.paths[0].metadata().expect("there");
        futimens(&opened, &times(&like)).expect("times");
        let unpacked = Unpacked {
            links: vec![("own/name".into(), "file".into())],
            ..implied(&["d"])
        };
        let top = layers.complete(&unpacked).expect("completed");
        let mut value = [0; 8];
        let length = rustix::fs::lgetxattr(top.join("d"), "user.kept", &mut value);
        assert_eq!(
            length.map(|length| value[..length].to_vec()),
            Ok(b"a\0b".to_vec())
        );
        assert!(!is_opaque(&top.join("d")).expect("reads"));
        let own = top.join("own").metadata().expect("there");
        assert_eq!(
            (own.mtime(), own.mtime_nsec()),
            (like.mtime(), like.mtime_nsec())
        );
        assert!(top.join("own/name").exists());
    }

    #[test]
    fn what_a_layer_between_has_removed_is_not_imitated() {
        for removed in ["whiteout", "opaque", "file"] {
            let layers = Layers::new(3);
            layers.directory(0, "a/tmp", 0o1777);
            match removed {
                "whiteout" => {
                    layers.directory(1, "a", 0o755);
                    layers.whiteout(1, "a/tmp");
                }
                "opaque" => {
                    layers.directory(1, "a", 0o755);
                    layers.opaque(1, "a");
                }
                _ => layers.file(1, "a", "no directory"),
            }
            layers.directory(2, "a/tmp", 0o755);
            let top = layers.complete(&implied(&["a/tmp"])).expect("completed");
            assert_eq!(mode(&top.join("a/tmp")), 0o755, "{removed}");
        }
    }

    #[test]
    fn a_walk_finds_the_same_from_wherever_it_is() {
        let layers = Layers::new(3);
        layers.directory(0, "a/b/c", 0o755);
        layers.file(0, "a/b/c/low", "");
        layers.directory(0, "hidden/x", 0o755);
        layers.directory(1, "a/b", 0o755);
        layers.file(1, "a/b/middle", "");
        layers.directory(1, "hidden", 0o755);
        layers.opaque(1, "hidden");
        layers.directory(2, "a", 0o755);
        layers.file(2, "a/top", "");
        let parents = Parents::new(&layers.paths);
        let mut walk = Walk::new(&parents.0).expect("a root");
        let expected = [
            ("a/b/c/low", Some(0)),
            ("a/top", Some(2)),
            ("a/b/middle", Some(1)),
            ("a/b/c", Some(0)),
            ("hidden/x", None),
            ("hidden", Some(1)),
            ("a/top/below", None),
            ("gone/for/good", None),
            ("a", Some(2)),
            ("", Some(2)),
        ];
        for (path, layer) in expected.iter().chain(expected.iter().rev()) {
            let found = walk.find(Path::new(path)).expect("looks");
            let wanted = layer.map(|layer: usize| layers.paths[layer].join(path));
            assert_eq!(found.map(|(place, _)| place), wanted, "{path}");
        }
    }

    #[test]
    fn deep_trees_cost_a_look_for_each_directory_and_no_more_than_a_bound() {
        let layers = Layers::new(2);
        let mut path = PathBuf::new();
        let mut all = Vec::new();
        for _ in 0..200 {
            path.push("d");
            all.push(path.clone());
        }
        for layer in 0..2 {
            layers.directory(layer, path.to_str().expect("text"), 0o755);
        }
        let unpacked = Unpacked {
            implied: all.iter().cloned().collect(),
            ..Unpacked::default()
        };
        layers.complete(&unpacked).expect("completed");
        let parents = Parents::new(&layers.paths[..1]);
        let mut walk = Walk::new(&parents.0).expect("a root");
        let before = walk.cost.0;
        for path in all.iter().rev() {
            walk.find(path).expect("looks").expect("is there");
        }
        // Followed from the root each time, it would be half the square of that for each.
        let most = 200 * 2 * 2 * (200 + 8);
        assert!(before - walk.cost.0 <= most, "{}", before - walk.cost.0);
        walk.cost = Cost(1_000);
        walk.find(&path).expect_err("it costs too much");
    }

    #[test]
    fn a_hard_link_into_a_lower_layer_is_its_file() {
        let layers = Layers::new(3);
        layers.directory(0, "bin", 0o755);
        layers.file(0, "bin/a", "old");
        layers.file(0, "bin/only", "only");
        layers.directory(1, "bin", 0o755);
        layers.file(1, "bin/a", "content");
        layers.directory(2, "usr", 0o755);
        layers.file(2, "usr/taken", "own");
        let unpacked = Unpacked {
            links: [
                ("usr/b", "bin/a"),
                ("usr/c", "usr/b"),
                ("usr/only", "bin/only"),
                ("usr/taken", "bin/a"),
            ]
            .map(|(name, target)| (name.into(), target.into()))
            .into(),
            ..Unpacked::default()
        };
        let top = layers.complete(&unpacked).expect("completed");
        let read = |path: &str| std::fs::read_to_string(top.join(path)).expect("a file");
        assert_eq!(
            (read("usr/b"), read("usr/c")),
            ("content".into(), "content".into())
        );
        assert_eq!(
            (read("usr/only"), read("usr/taken")),
            ("only".into(), "own".into())
        );
        let inode = |path: PathBuf| path.metadata().expect("there").ino();
        assert_eq!(
            inode(top.join("usr/c")),
            inode(layers.paths[1].join("bin/a"))
        );
    }

    #[test]
    fn a_hard_link_to_nothing_is_refused() {
        let layers = Layers::new(2);
        layers.directory(0, "etc", 0o755);
        symlink("/etc", layers.paths[0].join("link")).expect("a link");
        for target in ["gone", "etc", "link/passwd"] {
            let unpacked = Unpacked {
                links: vec![("name".into(), target.into())],
                ..Unpacked::default()
            };
            let error = layers.complete(&unpacked).expect_err(target).to_string();
            assert!(error.contains("it is a hard link to"), "{error}");
        }
    }

    #[test]
    fn nothing_of_the_host_is_reached_through_links() {
        let outside = tempfile::tempdir().expect("a directory");
        std::fs::write(outside.path().join("secret"), "secret").expect("a file");
        std::fs::create_dir(outside.path().join("inner")).expect("a directory");
        let before = mode(&outside.path().join("inner"));
        for (path, target) in [("out/name", "file"), ("name", "out/secret")] {
            let layers = Layers::new(2);
            layers.file(0, "file", "content");
            layers.directory(0, "out/inner", 0o1777);
            symlink(outside.path(), layers.paths[1].join("out")).expect("a link");
            let unpacked = Unpacked {
                links: vec![(path.into(), target.into())],
                ..implied(&["out/inner"])
            };
            layers.complete(&unpacked).expect_err("it leads nowhere");
            assert!(!outside.path().join("name").exists());
            assert!(!layers.paths[1].join("name").exists());
            let layers = Layers::new(2);
            layers.directory(0, "out/inner", 0o1777);
            symlink(outside.path(), layers.paths[1].join("out")).expect("a link");
            layers
                .complete(&implied(&["out/inner"]))
                .expect_err("it leads nowhere");
        }
        assert_eq!(mode(&outside.path().join("inner")), before);
    }
}
