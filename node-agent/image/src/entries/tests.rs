use super::*;

/// An entry's header in the oldest form, and its content filled up.
fn old(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    framed(name, kind, content, |_| {})
}

/// The same with other fields: they are written before the sum is.
fn framed(name: &str, kind: u8, content: &[u8], fields: impl FnOnce(&mut Block)) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    put(&mut block, 124, &format!("{:011o}\0", content.len()));
    block[156] = kind;
    fields(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, &format!("{sum:06o}\0 "));
    let mut entry = block.to_vec();
    entry.extend_from_slice(content);
    entry.resize(entry.len().next_multiple_of(BLOCK), 0);
    entry
}

fn put(block: &mut Block, at: usize, text: &str) {
    block[at..at + text.len()].copy_from_slice(text.as_bytes());
}

fn ustar(block: &mut Block) {
    put(block, 257, "ustar\x0000");
}

fn gnu(block: &mut Block) {
    put(block, 257, "ustar  \0");
}

fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        content.extend_from_slice(format!("{length} {key}=").as_bytes());
        content.extend_from_slice(value);
        content.push(b'\n');
    }
    framed("pax", b'x', &content, ustar)
}

/// The entries of an archive, each with its content.
fn all(archive: &[u8]) -> io::Result<Vec<(Entry, Vec<u8>)>> {
    let mut entries = Entries::new(archive);
    let mut found = Vec::new();
    while let Some(entry) = entries.advance()? {
        let mut content = Vec::new();
        entries.read_to_end(&mut content)?;
        found.push((entry, content));
    }
    Ok(found)
}

/// The only entry of an archive.
fn one(parts: &[Vec<u8>]) -> Entry {
    let mut found = all(&parts.concat()).expect("reads");
    assert_eq!(found.len(), 1);
    found.remove(0).0
}

fn names(archive: &[u8]) -> Vec<String> {
    let found = all(archive).expect("reads").into_iter();
    found
        .map(|(entry, content)| {
            let content = String::from_utf8(content).expect("text");
            format!("{}:{content}", entry.path.display())
        })
        .collect()
}

#[test]
fn values_of_records_may_have_any_bytes() {
    let capability = b"\x01\0\0\x02\x0a\0\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0";
    let smuggled = b"x\n13 path=evil\n";
    let entry = one(&[
        records(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.x", smuggled),
            ("SCHILY.xattr.user.empty", b""),
            ("path", b"a\nb"),
        ]),
        framed("short", b'0', b"", ustar),
    ]);
    assert_eq!(entry.path, PathBuf::from("a\nb"));
    let found: Vec<Record<'_>> = entry.records.iter().collect();
    assert_eq!(found.len(), 4);
    assert_eq!(found[0].1, capability);
    assert_eq!(found[1].1, smuggled);
    assert_eq!(found[2].1, b"");
}

#[test]
fn records_say_more_than_headers_and_the_last_of_them_counts() {
    let entry = one(&[
        records(&[
            ("path", b"first"),
            ("path", b"second"),
            ("linkpath", b"target"),
            ("uid", b"3000000"),
            ("gid", b"7"),
            ("gid", b""),
            ("mtime", b"1700000000.123456789123"),
            ("atime", b"5.5"),
            ("size", b"3"),
        ]),
        framed("short", b'0', b"abc", |block| {
            ustar(block);
            put(block, 124, "00000000000\0");
            put(block, 136, "00000000001\0");
        }),
    ]);
    assert_eq!(entry.path, PathBuf::from("second"));
    assert_eq!(entry.target, PathBuf::from("target"));
    assert_eq!((entry.user, entry.group), (3_000_000, 7));
    let modified = (entry.modified.tv_sec, entry.modified.tv_nsec);
    assert_eq!(modified, (1_700_000_000, 123_456_789));
    assert_eq!(entry.accessed, entry.modified);
    let times = |mtime: &[u8], atime: &[u8]| {
        let records = records(&[("mtime", mtime), ("atime", atime)]);
        let entry = one(&[records, framed("file", b'0', b"", ustar)]);
        let of = |time: Timespec| (time.tv_sec, time.tv_nsec);
        (of(entry.modified), of(entry.accessed))
    };
    assert_eq!(times(b"-1.5", b"2.25"), ((0, 0), (2, 250_000_000)));
    assert_eq!(times(b"99999999999", b""), ((0, 0), (0, 0)));
    assert_eq!(times(b"7", b""), ((7, 0), (7, 0)));
}

#[test]
fn malformed_records_are_refused() {
    for content in [
        "9 path=a\nx",
        "3 a\n",
        "x path=a\n",
        "99 path=a\n",
        "5 =a\n",
        "12 path=a\0b\n",
        "8 a\0b=c\n",
        "12 size=two\n",
        "13 mtime=1.x\n",
        "\0\0\0",
    ] {
        let records = framed("pax", b'x', content.as_bytes(), ustar);
        let archive = [records, framed("file", b'0', b"", ustar)].concat();
        assert!(all(&archive).is_err(), "{content:?}");
    }
}

#[test]
fn long_names_of_gnu_tar_end_with_their_first_zero() {
    let long = "n".repeat(300);
    let entry = one(&[
        framed("././@LongLink", b'L', b"replaced\0", gnu),
        framed(
            "././@LongLink",
            b'L',
            format!("{long}\0\0\0").as_bytes(),
            gnu,
        ),
        framed("././@LongLink", b'K', b"target\0", gnu),
        framed("nnn", b'2', b"", gnu),
    ]);
    assert_eq!(entry.path, PathBuf::from(long));
    assert_eq!(entry.target, PathBuf::from("target"));
}

#[test]
fn old_archives_have_directories_too() {
    let found = all(&[old("d/", 0, b""), old("f", 0, b"x"), old("0/", b'0', b"")].concat());
    let kinds = found.expect("reads").into_iter();
    let kinds: Vec<EntryType> = kinds.map(|(entry, _)| entry.kind).collect();
    let expected = [EntryType::Directory, EntryType::Regular, EntryType::Regular];
    assert_eq!(kinds, expected);
}

#[test]
fn names_are_in_two_parts_where_the_form_says_so() {
    let prefix = |form: fn(&mut Block)| {
        let name = framed("name", b'0', b"", |block| {
            put(block, 345, "above");
            form(block);
        });
        one(&[name]).path
    };
    assert_eq!(prefix(ustar), PathBuf::from("above/name"));
    assert_eq!(
        prefix(|block| put(block, 257, "ustar\0\0\0")),
        PathBuf::from("above/name")
    );
    assert_eq!(prefix(gnu), PathBuf::from("name"));
    assert_eq!(prefix(|_| {}), PathBuf::from("name"));
    let star = |block: &mut Block| {
        ustar(block);
        put(block, 476, "00000000001\0");
        put(block, 508, "tar\0");
    };
    assert_eq!(prefix(star), PathBuf::from("above/name"));
}

#[test]
fn what_is_no_file_has_no_content_whatever_size_it_says() {
    for kind in b"123456" {
        let sized = framed("link", *kind, b"", |block| put(block, 124, "00000000005\0"));
        let archive = [sized, old("file", b'0', b"x")].concat();
        assert_eq!(names(&archive), ["link:", "file:x"], "{kind}");
    }
}

#[test]
fn numbers_are_octal_or_binary_or_blank() {
    let cases: [(&[u8], Option<i64>); 10] = [
        (b"0000644\0", Some(0o644)),
        (b" 644 \0\0\0", Some(0o644)),
        (b"00000644", Some(0o644)),
        (b"\0\0\0\0\0\0\0\0", Some(0)),
        (b"        ", Some(0)),
        (b"0000689\0", None),
        (b"\x80\0\0\0\0\0\x01\0", Some(256)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        (
            b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
            Some(i64::MAX),
        ),
        (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
    ];
    for (field, expected) in cases {
        assert_eq!(number(field).ok(), expected, "{field:?}");
    }
}

#[test]
fn an_archive_ends_with_two_empty_blocks_or_its_stream() {
    let (first, second) = (old("a", b'0', b"x"), old("b", b'0', b"y"));
    let both = [first.clone(), second.clone()].concat();
    assert_eq!(names(&both), ["a:x", "b:y"]);
    let cut = both.len() - 511;
    assert_eq!(names(&both[..cut]), ["a:x", "b:y"], "the last block");
    assert!(all(&both[..cut - 1]).is_err(), "its content");
    assert!(all(&both[..1200]).is_err(), "within a header");
    for end in [1, 2] {
        let ended = [both.clone(), vec![0; end * BLOCK]].concat();
        assert_eq!(names(&ended), ["a:x", "b:y"]);
    }
    let two = [first.clone(), vec![0; 2 * BLOCK], second.clone()].concat();
    assert_eq!(names(&two), ["a:x"]);
    assert!(all(&[first, vec![0; BLOCK], second].concat()).is_err());
    assert!(all(&[]).expect("reads").is_empty());
}

#[test]
fn sums_may_be_of_signed_bytes_and_have_to_be_right() {
    let mut entry = old("\u{e4}", b'0', b"");
    let signed: i32 = entry[..BLOCK].iter().map(|byte| i32::from(*byte)).sum();
    let own: i32 = entry[148..156].iter().map(|byte| i32::from(*byte)).sum();
    let sum = signed - own + 8 * 32 - 2 * 256;
    entry[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(names(&entry), ["\u{e4}:"]);
    entry[0] ^= 1;
    assert!(all(&entry).is_err());
}

#[test]
fn global_headers_are_about_nothing() {
    let global = framed("pax_global_header", b'g', b"15 path=global\n", ustar);
    let records = records(&[("path", b"own")]);
    let archive = [
        global.clone(),
        records,
        global,
        framed("x", b'0', b"1", ustar),
    ]
    .concat();
    assert_eq!(names(&archive), ["own:1"]);
}

#[test]
fn the_map_of_a_sparse_file_goes_on_in_further_blocks() {
    let mut archive = framed("file", b'S', b"", |block| {
        gnu(block);
        put(block, 124, "00000000003\0");
        for (at, piece) in [("1", "1"), ("3", "1")].iter().enumerate() {
            put(block, 386 + at * 24, &format!("{:0>11}\0", piece.0));
            put(block, 398 + at * 24, &format!("{:0>11}\0", piece.1));
        }
        block[482] = 1;
        put(block, 483, "00000000012\0");
    });
    let mut more = [0; BLOCK];
    put(&mut more, 0, "00000000005\0");
    put(&mut more, 12, "00000000001\0");
    archive.extend_from_slice(&more);
    archive.extend_from_slice(b"abc");
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    archive.extend_from_slice(&old("next", b'0', b"y"));
    let found = all(&archive).expect("reads");
    assert_eq!(found[0].1, b"abc");
    let expected = Sparse::of_pieces(10, vec![(1, 1), (3, 1), (5, 1)]);
    assert_eq!(found[0].0.sparse, Some(expected));
    assert_eq!(found[1].0.path, PathBuf::from("next"));
    let wrong = framed("file", b'S', b"", ustar);
    assert!(all(&wrong).is_err(), "no form of its own");
}
