use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use tar::{Builder, Header};

use super::*;
use crate::allowance::Errand;

/// With as much as a layer may have.
fn unpack(stream: impl Read, root: &Path) -> io::Result<Unpacked> {
    let (errand, _ends) = Errand::begin();
    super::unpack(stream, root, &Meter::new(&errand, u64::MAX))
}

/// A tar of (path, type, content or link target).
fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1_000_000);
        // Written raw, since the builder refuses the paths that an attacker would use.
        let name = path.as_bytes();
        header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name_literal(content).expect("a link name");
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, io::empty()).expect("append");
        } else {
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).expect("append");
        }
    }
    builder.into_inner().expect("finish")
}

fn unpacked(entries: &[(&str, EntryType, &str)]) -> (tempfile::TempDir, io::Result<Unpacked>) {
    let directory = tempfile::tempdir().expect("a directory");
    let result = unpack(archive(entries).as_slice(), directory.path());
    (directory, result)
}

#[test]
fn files_links_and_missing_parents() {
    let (directory, result) = unpacked(&[
        ("a/b/file", EntryType::Regular, "content"),
        ("a/hard", EntryType::Link, "a/b/file"),
        ("a/soft", EntryType::Symlink, "b/file"),
    ]);
    let unpacked = result.expect("unpacks");
    assert_eq!(unpacked.size, 7);
    let implied = ["", "a", "a/b"].map(PathBuf::from);
    assert_eq!(unpacked.implied, implied.into());
    let path = directory.path().join("a/hard");
    assert_eq!(
        std::fs::read_to_string(&path).expect("hard link"),
        "content"
    );
    let stat = path.metadata().expect("stat");
    assert_eq!(
        (stat.uid(), stat.mode() & 0o777, stat.mtime()),
        (1000, 0o644, 1_000_000)
    );
    assert_eq!(
        std::fs::read_to_string(directory.path().join("a/soft")).expect("symlink"),
        "content"
    );
}

#[test]
fn whiteouts_take_overlayfs_form() {
    let (directory, result) = unpacked(&[
        ("d/.wh.gone", EntryType::Regular, ""),
        ("d/.wh..wh..opq", EntryType::Regular, ""),
    ]);
    result.expect("unpacks");
    let stat = directory
        .path()
        .join("d/gone")
        .symlink_metadata()
        .expect("whiteout");
    assert!(stat.file_type().is_char_device());
    assert_eq!(stat.rdev(), 0);
    let mut value = [0; 4];
    let length = rustix::fs::getxattr(
        directory.path().join("d"),
        "trusted.overlay.opaque",
        &mut value,
    )
    .expect("the attribute; this test needs root");
    assert_eq!(&value[..length], b"y");
}

#[test]
fn nothing_is_written_outside_the_layer() {
    let outside = tempfile::tempdir().expect("a directory");
    let target = outside.path().to_str().expect("text");
    for entries in [
        [
            ("../evil", EntryType::Regular, "x"),
            ("ok", EntryType::Regular, "x"),
        ],
        [
            ("link", EntryType::Symlink, target),
            ("link/evil", EntryType::Regular, "x"),
        ],
        [
            ("link", EntryType::Symlink, "../../../../../../../tmp"),
            ("link/../evil", EntryType::Regular, "x"),
        ],
        [
            ("evil", EntryType::Link, "/etc/../../etc/passwd"),
            ("ok", EntryType::Regular, "x"),
        ],
    ] {
        let (directory, _) = unpacked(&entries);
        assert!(!outside.path().join("evil").exists());
        assert!(
            !directory
                .path()
                .parent()
                .expect("tmp")
                .join("evil")
                .exists()
        );
        assert!(!directory.path().join("evil").exists());
    }
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let (directory, result) = unpacked(&[
        ("x/y", EntryType::Regular, "old"),
        ("x", EntryType::Regular, "new"),
    ]);
    result.expect("unpacks");
    assert_eq!(
        std::fs::read_to_string(directory.path().join("x")).expect("file"),
        "new"
    );
}

#[test]
fn a_truncated_archive_is_an_error() {
    let whole = archive(&[("file", EntryType::Regular, &"x".repeat(5000))]);
    let directory = tempfile::tempdir().expect("a directory");
    assert!(unpack(&whole[..2000], directory.path()).is_err());
}

/// What is under a name: `whiteout`, `opaque`, `directory`, `link` or a file's content.
fn seen(directory: &Path, path: &str) -> Option<String> {
    let path = directory.join(path);
    let found = path.symlink_metadata().ok()?;
    let mut value = [0; 4];
    let opaque = rustix::fs::lgetxattr(&path, crate::root::OPAQUE_XATTR, &mut value);
    Some(match found.file_type() {
        kind if kind.is_char_device() && found.rdev() == 0 => "whiteout".to_owned(),
        kind if kind.is_dir() && opaque == Ok(1) => "opaque".to_owned(),
        kind if kind.is_dir() => "directory".to_owned(),
        kind if kind.is_symlink() => "link".to_owned(),
        _ => std::fs::read_to_string(path).expect("a file"),
    })
}

#[test]
fn a_whiteout_hides_lower_layers_only_whichever_comes_first() {
    use EntryType::{Directory, Regular};
    let orders: [&[(&str, EntryType, &str)]; 2] = [
        &[
            (".wh.file", Regular, ""),
            ("file", Regular, "new"),
            (".wh.dir", Regular, ""),
            ("dir", Directory, ""),
            (".wh.implied", Regular, ""),
            ("implied/x", Regular, "x"),
            (".wh.gone", Regular, ""),
        ],
        &[
            ("file", Regular, "new"),
            (".wh.file", Regular, ""),
            ("dir", Directory, ""),
            (".wh.dir", Regular, ""),
            ("implied/x", Regular, "x"),
            (".wh.implied", Regular, ""),
            (".wh.gone", Regular, ""),
            (".wh.gone", Regular, ""),
        ],
    ];
    for entries in orders {
        let (directory, result) = unpacked(entries);
        let found = result.expect("unpacks");
        let seen = |path| seen(directory.path(), path).unwrap_or_default();
        assert_eq!(seen("file"), "new");
        assert_eq!(seen("dir"), "opaque");
        assert_eq!(seen("implied"), "opaque");
        assert_eq!(seen("implied/x"), "x");
        assert_eq!(seen("gone"), "whiteout");
        assert_eq!(
            found.implied,
            [PathBuf::new()].into(),
            "what hides is as it says itself"
        );
    }
}

#[test]
fn whiteouts_where_there_is_nothing_to_hide() {
    let (directory, result) = unpacked(&[
        ("file", EntryType::Regular, "content"),
        ("file/.wh.below", EntryType::Regular, ""),
        ("file/.wh..wh..opq", EntryType::Regular, ""),
        (".wh..wh.orph", EntryType::Directory, ""),
        (".wh..wh.aufs", EntryType::Regular, "x"),
        ("a/.wh..wh.other/file", EntryType::Regular, "x"),
    ]);
    result.expect("unpacks");
    assert_eq!(seen(directory.path(), "file").as_deref(), Some("content"));
    assert_eq!(
        std::fs::read_dir(directory.path()).expect("reads").count(),
        1
    );
    for wrong in [".wh.", ".wh..", ".wh...", "d/.wh.."] {
        let (directory, result) = unpacked(&[
            ("d/kept", EntryType::Regular, "x"),
            (wrong, EntryType::Regular, ""),
        ]);
        result.expect_err(wrong);
        assert_eq!(
            seen(directory.path(), "d/kept").as_deref(),
            Some("x"),
            "{wrong}"
        );
    }
}

#[test]
fn a_layer_may_hide_all_of_the_root() {
    let (directory, result) = unpacked(&[
        (".wh..wh..opq", EntryType::Regular, ""),
        ("own", EntryType::Regular, "x"),
    ]);
    result.expect("unpacks");
    assert_eq!(seen(directory.path(), "").as_deref(), Some("opaque"));
    assert_eq!(seen(directory.path(), "own").as_deref(), Some("x"));
}

#[test]
fn a_directory_in_a_files_place_hides_what_the_file_did() {
    let (directory, result) = unpacked(&[
        ("x", EntryType::Regular, "file"),
        ("x", EntryType::Directory, ""),
        ("x/y", EntryType::Regular, "y"),
    ]);
    result.expect("unpacks");
    assert_eq!(seen(directory.path(), "x").as_deref(), Some("opaque"));
}

#[test]
fn hard_links_to_what_is_not_in_the_layer_are_left_to_those_below() {
    let (directory, result) = unpacked(&[
        ("own", EntryType::Regular, "own"),
        ("a/lower", EntryType::Link, "bin/lower"),
        ("itself", EntryType::Link, "itself"),
        (".wh.hidden", EntryType::Regular, ""),
        ("b", EntryType::Link, "hidden"),
        ("later", EntryType::Link, "a/lower"),
        ("below-a-file", EntryType::Link, "own/x"),
        ("gone/x", EntryType::Link, "bin/x"),
        ("gone", EntryType::Regular, "a file"),
    ]);
    let found = result.expect("unpacks");
    let links = [
        ("a/lower", "bin/lower"),
        ("b", "hidden"),
        ("later", "a/lower"),
        ("below-a-file", "own/x"),
    ];
    let links = links.map(|(name, target)| (PathBuf::from(name), PathBuf::from(target)));
    assert_eq!(found.links, links);
    assert_eq!(seen(directory.path(), "later"), None);
}

#[test]
fn files_that_aufs_kept_for_hard_links_have_their_names() {
    let (directory, result) = unpacked(&[
        (".wh..wh.plnk", EntryType::Directory, ""),
        (".wh..wh.plnk/12.34", EntryType::Regular, "content"),
        ("a/one", EntryType::Link, ".wh..wh.plnk/12.34"),
        ("two", EntryType::Link, ".wh..wh.plnk/12.34"),
    ]);
    result.expect("unpacks");
    let found = directory.path().join("two").metadata().expect("there");
    assert_eq!(
        (found.nlink(), found.uid(), found.mode() & 0o777),
        (2, 1000, 0o644)
    );
    assert_eq!(seen(directory.path(), "a/one").as_deref(), Some("content"));
    assert_eq!(seen(directory.path(), ".wh..wh.plnk"), None);
    let (_, result) = unpacked(&[("one", EntryType::Link, ".wh..wh.plnk/1")]);
    result.expect_err("nothing to link to");
}

/// An archive of one file with PAX records, behind a global header.
fn extended(records: &[(&str, &str)], content: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut global = Header::new_ustar();
    global.set_entry_type(EntryType::XGlobalHeader);
    let comment = b"19 comment=abcdefg\n";
    global.set_size(comment.len() as u64);
    global.set_cksum();
    builder.append(&global, comment.as_slice()).expect("append");
    let records = records.iter().map(|(key, value)| (*key, value.as_bytes()));
    builder.append_pax_extensions(records).expect("append");
    let mut header = Header::new_ustar();
    header.set_path("GNUSparseFile.1/made-up").expect("a path");
    header.set_mode(0o600);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content).expect("append");
    builder.into_inner().expect("finish")
}

/// The records of a sparse file, and its content.
type Form<'a> = (&'a [(&'a str, &'a str)], &'a [u8]);

#[test]
fn files_with_holes_are_whole_in_every_form() {
    let mut newest = b"2\n2\n3\n9\n1\n".to_vec();
    newest.resize(512, 0);
    newest.extend_from_slice(b"abcd");
    let forms: [Form<'_>; 3] = [
        (
            &[
                ("GNU.sparse.size", "12"),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.offset", "2"),
                ("GNU.sparse.numbytes", "3"),
                ("GNU.sparse.offset", "9"),
                ("GNU.sparse.numbytes", "1"),
                ("path", "file"),
            ],
            b"abcd",
        ),
        (
            &[
                ("GNU.sparse.size", "12"),
                ("GNU.sparse.name", "file"),
                ("GNU.sparse.map", "2,3,9,1"),
            ],
            b"abcd",
        ),
        (
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", "12"),
                ("GNU.sparse.name", "file"),
            ],
            &newest,
        ),
    ];
    for (records, content) in forms {
        let directory = tempfile::tempdir().expect("a directory");
        let archive = extended(records, content);
        let found = unpack(archive.as_slice(), directory.path()).expect("unpacks");
        let written = std::fs::read(directory.path().join("file")).expect("a file");
        assert_eq!(written, b"\0\0abc\0\0\0\0d\0\0", "{records:?}");
        assert_eq!(found.size, 4);
        assert_eq!(
            std::fs::read_dir(directory.path()).expect("reads").count(),
            1
        );
    }
    for (records, content) in [
        (
            &[("GNU.sparse.size", "4"), ("GNU.sparse.map", "2,3")][..],
            b"abc".as_slice(),
        ),
        (
            &[("GNU.sparse.size", "9"), ("GNU.sparse.map", "2,3,9")],
            b"abc",
        ),
        (&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "x")], b"abc"),
        (
            &[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,5")],
            b"abc",
        ),
        (
            &[
                ("GNU.sparse.size", "9"),
                ("GNU.sparse.map", "18446744073709551615,1"),
            ],
            b"abc",
        ),
        (
            &[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")],
            b"9999999999999999\n",
        ),
        (
            &[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")],
            b"1\n1",
        ),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        unpack(extended(records, content).as_slice(), directory.path())
            .expect_err(&format!("{records:?}"));
    }
}

#[test]
fn attributes_that_cannot_be_had_are_left_out_and_overlayfs_is_told_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let archive = extended(
        &[
            ("path", "file"),
            ("SCHILY.xattr.user.kept", "value"),
            ("SCHILY.xattr.nonsense.x", "value"),
            ("SCHILY.xattr.trusted.overlay.opaque", "y"),
            ("SCHILY.xattr.trusted.overlay.redirect", "/etc"),
            ("SCHILY.xattr.trusted.other", "value"),
        ],
        b"content",
    );
    unpack(archive.as_slice(), directory.path()).expect("unpacks");
    let mut names = [0; 256];
    let file = directory.path().join("file");
    let length = rustix::fs::llistxattr(file, &mut names).expect("lists");
    assert_eq!(&names[..length], b"user.kept\0");
}

#[test]
fn what_is_read_into_memory_is_bounded() {
    for kind in [
        EntryType::XHeader,
        EntryType::GNULongName,
        EntryType::GNULongLink,
    ] {
        let mut header = Header::new_gnu();
        header.set_path("x").expect("a path");
        header.set_entry_type(kind);
        header.set_size(1 << 40);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'a'));
        let directory = tempfile::tempdir().expect("a directory");
        let error = unpack(endless, directory.path()).expect_err("endless");
        assert!(error.to_string().contains("header is too long"), "{error}");
    }
    // What is skipped is no header.
    let long = "x".repeat(3 << 20);
    let (_, result) = unpacked(&[
        ("a", EntryType::Regular, &long),
        (".wh..wh.a", EntryType::Regular, &long),
        ("b", EntryType::Regular, &long),
    ]);
    assert_eq!(result.expect("unpacks").size, 6 << 20);
}

#[test]
fn holes_cost_nothing() {
    for path in ["file", ".wh..wh.left-out"] {
        let mut header = Header::new_gnu();
        header.set_path(path).expect("a path");
        header.set_entry_type(EntryType::GNUSparse);
        header.set_mode(0o600);
        header.set_size(1);
        let octal = |field: &mut [u8], number: u64| {
            field.copy_from_slice(format!("{number:011o}\0").as_bytes());
        };
        let hole = 1 << 30;
        let gnu = header.as_gnu_mut().expect("gnu");
        octal(&mut gnu.sparse[0].offset, hole);
        octal(&mut gnu.sparse[0].numbytes, 1);
        octal(&mut gnu.realsize, hole + 1);
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, b"x".as_slice()).expect("append");
        let archive = builder.into_inner().expect("finish");
        let directory = tempfile::tempdir().expect("a directory");
        let meter = Meter::new(&Errand::with_spare(1 << 20), 0);
        super::unpack(archive.as_slice(), directory.path(), &meter).expect("unpacks");
        let file = directory.path().join("file").metadata().ok();
        let found = file.map(|file| (file.len(), file.blocks() < 1 << 10));
        assert_eq!(found, (path == "file").then_some((hole + 1, true)));
    }
}

#[test]
fn what_is_left_out_and_what_follows_counts() {
    let content = "x".repeat(2 << 20);
    let mut after = archive(&[]);
    after.extend_from_slice(content.as_bytes());
    let over = archive(&[
        ("same", EntryType::Regular, &content),
        ("same", EntryType::Regular, &content),
    ]);
    for archive in [after, over] {
        let directory = tempfile::tempdir().expect("a directory");
        let meter = Meter::new(&Errand::with_spare(1 << 20), 0);
        let error = super::unpack(archive.as_slice(), directory.path(), &meter);
        let error = error.expect_err("too much").to_string();
        assert!(error.contains("it unpacks to more"), "{error}");
    }
}

#[test]
fn what_records_say_of_a_file_is_so() {
    let capability = b"\x01\0\0\x02\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut builder = Builder::new(Vec::new());
    let records: [(&str, &[u8]); 4] = [
        ("path", b"two\nlines"),
        ("mtime", b"1700000000.25"),
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.user.binary", b"a\0b\n9 path=x\n"),
    ];
    builder.append_pax_extensions(records).expect("append");
    let mut header = Header::new_ustar();
    header.set_path("short").expect("a path");
    header.set_mode(0o755);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, io::empty()).expect("append");
    let archive = builder.into_inner().expect("finish");
    let directory = tempfile::tempdir().expect("a directory");
    unpack(archive.as_slice(), directory.path()).expect("unpacks");
    let file = directory.path().join("two\nlines");
    let found = file.metadata().expect("there");
    assert_eq!(
        (found.mtime(), found.mtime_nsec()),
        (1_700_000_000, 250_000_000)
    );
    let attribute = |name: &str| {
        let mut value = vec![0; 64];
        let length = rustix::fs::lgetxattr(&file, name, &mut value[..]).expect("an attribute");
        value.truncate(length);
        value
    };
    assert_eq!(attribute("security.capability"), capability);
    assert_eq!(attribute("user.binary"), b"a\0b\n9 path=x\n");
}

#[test]
fn nobodys_number_owns_nothing() {
    let mut header = Header::new_gnu();
    header.set_path("file").expect("a path");
    header.set_mode(0o600);
    header.set_uid(u64::from(u32::MAX));
    header.set_size(0);
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, io::empty()).expect("append");
    let archive = builder.into_inner().expect("finish");
    let directory = tempfile::tempdir().expect("a directory");
    let error = unpack(archive.as_slice(), directory.path()).expect_err("no owner");
    assert!(error.to_string().contains("out of range"), "{error}");
}

#[test]
fn only_a_directory_says_what_the_root_is_like() {
    for (kind, mode) in [(EntryType::Directory, 0o644), (EntryType::Regular, 0o711)] {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o711))
            .expect("a mode");
        let found = unpack(archive(&[("./", kind, "")]).as_slice(), directory.path());
        let is_implied = found.expect("unpacks").implied.contains(Path::new(""));
        let root = directory.path().metadata().expect("there");
        assert_eq!(
            (root.mode() & 0o777, is_implied),
            (mode, kind != EntryType::Directory)
        );
    }
}

#[test]
fn a_link_into_a_lower_layer_hides_as_a_file_does() {
    let (directory, result) = unpacked(&[
        ("link", EntryType::Link, "bin/lower"),
        (".wh.link", EntryType::Regular, ""),
        ("replaced", EntryType::Link, "bin/lower"),
        ("replaced", EntryType::Directory, ""),
    ]);
    let found = result.expect("unpacks");
    assert_eq!(
        found.links,
        [(PathBuf::from("link"), PathBuf::from("bin/lower"))]
    );
    assert_eq!(seen(directory.path(), "link"), None);
    assert_eq!(
        seen(directory.path(), "replaced").as_deref(),
        Some("opaque")
    );
}

#[test]
fn directories_are_made_where_links_lead() {
    let (directory, result) = unpacked(&[
        ("var/run", EntryType::Symlink, "/run"),
        ("var/run/lock/file", EntryType::Regular, "x"),
        ("out", EntryType::Symlink, "../../../outside"),
        ("out/file", EntryType::Regular, "y"),
        ("chain", EntryType::Symlink, "var/run/../more"),
        ("chain/file", EntryType::Regular, "z"),
    ]);
    let found = result.expect("unpacks");
    for (path, content) in [
        ("run/lock/file", "x"),
        ("outside/file", "y"),
        ("more/file", "z"),
    ] {
        assert_eq!(
            seen(directory.path(), path).as_deref(),
            Some(content),
            "{path}"
        );
    }
    assert_eq!(seen(directory.path(), "var/run").as_deref(), Some("link"));
    let implied = ["", "var", "run", "run/lock", "outside", "more"].map(PathBuf::from);
    assert_eq!(found.implied, implied.into());
    let (_, result) = unpacked(&[
        ("loop", EntryType::Symlink, "loop"),
        ("loop/file", EntryType::Regular, ""),
    ]);
    result.expect_err("nowhere");
}

#[test]
fn what_replaces_a_directory_has_its_own_time() {
    let mut builder = Builder::new(Vec::new());
    for (path, kind, time) in [
        ("x/below", EntryType::Directory, 1),
        ("x", EntryType::Directory, 2),
        ("x", EntryType::Regular, 3),
    ] {
        let mut header = Header::new_gnu();
        header.set_path(path).expect("a path");
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_mtime(time);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, io::empty()).expect("append");
    }
    let archive = builder.into_inner().expect("finish");
    let directory = tempfile::tempdir().expect("a directory");
    unpack(archive.as_slice(), directory.path()).expect("unpacks");
    let found = directory.path().join("x").metadata().expect("there");
    assert_eq!((found.is_file(), found.mtime()), (true, 3));
}
