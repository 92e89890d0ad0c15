use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, chown, symlink};

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

use super::*;

/// A root file system, and a place for a volume of it.
struct Bed {
    directory: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("rootfs")).expect("a directory");
        Self { directory }
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.directory.path().join("rootfs").join(path)
    }

    fn make(&self, path: &str, ids: Option<IdBlock>) -> io::Result<PathBuf> {
        let place = self.directory.path().join("volumes/one");
        let rootfs = self.directory.path().join("rootfs");
        make(&rootfs, Path::new(path), &place, ids).map(|()| place)
    }
}

fn give(path: &Path, owner: u32, mode: u32) {
    chown(path, Some(owner), Some(owner + 1)).expect("this test needs root");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
}

/// Owner, group and mode.
fn of(path: &Path) -> (u32, u32, u32) {
    let found = path.symlink_metadata().expect("it is there");
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

#[test]
fn a_volume_begins_as_the_image_has_it() {
    let bed = Bed::new();
    fs::create_dir_all(bed.inside("var/data/deep/er")).expect("directories");
    fs::write(bed.inside("var/data/deep/file"), "content").expect("a file");
    fs::hard_link(
        bed.inside("var/data/deep/file"),
        bed.inside("var/data/same"),
    )
    .expect("a link");
    symlink("/nowhere", bed.inside("var/data/link")).expect("a link");
    symlink("var", bed.inside("v")).expect("a link");
    let fifo = bed.inside("var/data/fifo");
    mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).expect("a fifo");
    let large = File::create(bed.inside("var/data/large")).expect("a file");
    large.set_len(1 << 40).expect("a hole");
    std::os::unix::fs::FileExt::write_at(&large, b"end", 1 << 39).expect("writes");
    let flags = XattrFlags::empty();
    lsetxattr(bed.inside("var/data/deep"), "user.kept", b"value", flags).expect("an attribute");
    give(&bed.inside("var/data"), 70, 0o3770);
    give(&bed.inside("var/data/deep"), 80, 0o711);
    give(&bed.inside("var/data/deep/file"), 90, 0o4755);
    let before = bed.inside("var/data").metadata().expect("there").mtime();
    let place = bed.make("/v/data", None).expect("it is made");
    let made = |path: &str| place.join(path);
    assert_eq!(of(&place), (70, 71, 0o3770));
    assert_eq!(of(&made("deep")), (80, 81, 0o711));
    assert_eq!(of(&made("deep/file")), (90, 91, 0o4755));
    assert_eq!(fs::read(made("same")).expect("reads"), b"content");
    let same = made("same").metadata().expect("there");
    assert_eq!(
        same.ino(),
        made("deep/file").metadata().expect("there").ino()
    );
    assert_eq!(
        fs::read_link(made("link")).expect("a link"),
        Path::new("/nowhere")
    );
    let fifo = made("fifo").metadata().expect("there").file_type();
    assert!(fifo.is_fifo() && made("deep/er").is_dir());
    let large = made("large").metadata().expect("there");
    assert_eq!(large.len(), 1 << 40);
    assert!(large.blocks() < 1 << 10, "{} blocks", large.blocks());
    let mut value = [0; 8];
    let length = lgetxattr(made("deep"), "user.kept", &mut value).expect("an attribute");
    assert_eq!(&value[..length], b"value");
    assert_eq!(place.metadata().expect("there").mtime(), before);
    // What a container has made of it stays.
    fs::write(made("own"), "").expect("a file");
    bed.make("/v/data", None).expect("it is there");
    assert!(made("own").exists());
}

#[test]
fn where_the_image_has_nothing_it_is_empty() {
    let bed = Bed::new();
    let place = bed.make("/not/there", None).expect("it is made");
    assert_eq!(of(&place), (0, 0, 0o755));
    assert_eq!(fs::read_dir(&place).expect("reads").count(), 0);
    for odd in ["/file", "/file/below", "/round"] {
        let bed = Bed::new();
        fs::write(bed.inside("file"), "").expect("a file");
        symlink("round", bed.inside("round")).expect("a link");
        bed.make(odd, None).expect_err(odd);
        assert!(!bed.directory.path().join("volumes/one").exists());
    }
}

#[test]
fn links_lead_out_of_no_image_and_what_was_half_made_goes() {
    let bed = Bed::new();
    let outside = bed.directory.path().join("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("secret"), "").expect("a file");
    symlink(&outside, bed.inside("data")).expect("a link");
    let half = bed.directory.path().join("volumes/one~");
    fs::create_dir_all(half.join("left")).expect("directories");
    let place = bed.make("/data", None).expect("it is made");
    assert_eq!(fs::read_dir(place).expect("reads").count(), 0);
    assert!(!half.exists());
}

#[test]
fn a_pod_with_users_of_its_own_finds_its_numbers() {
    let ids = IdBlock::of(Ipv4Addr::new(10, 244, 0, 7)).expect("a block");
    let bed = Bed::new();
    fs::create_dir(bed.inside("data")).expect("a directory");
    fs::write(bed.inside("data/of-nobody"), "").expect("a file");
    let on_node = ids.on_node(999).expect("in the block");
    give(&bed.inside("data"), on_node, 0o700);
    let place = bed.make("data", Some(ids)).expect("it is made");
    assert_eq!(of(&place), (999, 1000, 0o700));
    assert_eq!(of(&place.join("of-nobody")).0, 0);
}
