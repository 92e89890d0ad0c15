//! The inputs that were kept: found by the fuzzer, taken from recorded requests, or thought of by an attacker.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_fuzz_targets::{TARGETS, Target};

/// How long one input may take, in a debug build on a busy machine. Inputs are small.
const SOON: Duration = Duration::from_secs(5);
const DEPTH: usize = 100_000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

fn soon(target: &Target, input: &[u8], what: &str) {
    let started = Instant::now();
    (target.run)(input);
    let took = started.elapsed();
    assert!(took < SOON, "{} took {took:?} for {what}", target.name);
}

#[test]
fn every_kept_input_is_read_in_time() {
    for target in TARGETS {
        let directory = root().join("corpus").join(target.name);
        let inputs = names(&directory);
        assert!(!inputs.is_empty(), "{} has no inputs", target.name);
        for name in inputs {
            let input = std::fs::read(directory.join(&name)).expect("an input");
            soon(target, &input, &name);
        }
    }
}

#[test]
fn every_target_has_a_program_and_every_program_a_target() {
    let mut targets: Vec<String> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    targets.sort();
    let programs: Vec<String> = names(&root().join("fuzz_targets"))
        .into_iter()
        .map(|name| name.trim_end_matches(".rs").to_owned())
        .collect();
    assert_eq!(programs, targets);
}

/// The openings that nest, in every notation there is, each with its closing.
const NESTED: &[(&str, &str)] = &[
    ("[", "]"),
    ("{\"a\":", "}"),
    ("{\"metadata\":", "}"),
    ("{\"spec\":", "}"),
    ("{\"managedFields\":[", "]}"),
    ("[{\"op\":\"add\",\"path\":\"/a\",\"value\":", "}]"),
    ("{\"manifests\":[", "]}"),
    ("{\"config\":", "}"),
    ("{a: ", "}"),
    ("- ", ""),
    ("? ", ""),
    ("- - a: ", ""),
    ("&a [", "]"),
    ("!!seq [", "]"),
    ("a in (", ")"),
    ("(", ")"),
    ("!", ""),
    ("/", ""),
    ("../", ""),
    ("a.", ""),
    ("%", ""),
    ("\\", ""),
    ("\x0b", "\x0c"),
    ("\x03", "\x04"),
    ("1", ""),
    ("-", ""),
    ("1e", ""),
    ("\u{0}", ""),
];

#[test]
fn every_decoder_takes_depth() {
    for target in TARGETS {
        for (open, close) in NESTED {
            let text = format!("{}1{}", open.repeat(DEPTH), close.repeat(DEPTH));
            soon(target, text.as_bytes(), open);
            // Where the first byte chooses.
            for choice in 0..3_u8 {
                let chosen = [&[choice], text.as_bytes()].concat();
                soon(target, &chosen, open);
            }
        }
        for packed in [nested_messages(), compressed_names(), long_path()] {
            soon(target, &packed, "a packed input");
        }
    }
}

/// Messages in field 1 of each other, and the same with the lengths of Kubernetes' envelope.
fn nested_messages() -> Vec<u8> {
    let mut heads: Vec<Vec<u8>> = Vec::new();
    let mut length = 0_usize;
    for _ in 0..DEPTH {
        let mut head = vec![0x0a];
        let mut rest = length;
        while rest >= 0x80 {
            head.push(rest.to_le_bytes()[0] | 0x80);
            rest >>= 7;
        }
        head.push(rest.to_le_bytes()[0]);
        length += head.len();
        heads.push(head);
    }
    heads.into_iter().rev().flatten().collect()
}

/// A DNS query whose names are pointers to pointers.
fn compressed_names() -> Vec<u8> {
    let mut packet = vec![0, 1, 1, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
    packet.extend([0xc0, 0x0c, 0, 1, 0, 1]);
    for _ in 0..DEPTH {
        let at = packet.len() - 6;
        let [high, low] = u16::try_from(at & 0x3fff).unwrap_or(0).to_be_bytes();
        packet.extend([0xc0 | high, low, 0, 1, 0, 1]);
    }
    packet
}

/// A tar header that says its name is as long as can be.
fn long_path() -> Vec<u8> {
    let mut header = vec![0_u8; 512];
    header[..13].copy_from_slice(b"././@LongLink");
    header[124..135].copy_from_slice(b"00003641100");
    header[156] = b'L';
    header[257..263].copy_from_slice(b"ustar ");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend("a/".repeat(DEPTH).as_bytes());
    header
}
