//! The inputs that were kept: found by the fuzzer, taken from recorded requests, or thought of by an attacker.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gantry_fuzz_targets::{TARGETS, Target};

/// How long one input may take, in a debug build on a busy machine. Inputs are small.
const SOON: Duration = Duration::from_secs(20);
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
            let chooses = target.name == "patch" || target.name.ends_with("_body");
            for choice in (0..3_u8).filter(|_| chooses) {
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

/// Random numbers that are the same in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or(0) % limit.max(1)
    }

    /// An input with a few bytes changed, repeated or left out, or with a piece of another one.
    fn mutated(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            let end = (at + self.below(16)).min(input.len());
            match self.below(5) {
                0 if !input.is_empty() => input[at] = self.below(256).to_le_bytes()[0],
                1 if !input.is_empty() => input[at] ^= 1 << self.below(8),
                2 => drop(input.drain(at.min(end)..end)),
                3 => {
                    let piece = input[at.min(end)..end].repeat(1 + self.below(64));
                    drop(input.splice(end..end, piece));
                }
                _ => {
                    let other = &inputs[self.below(inputs.len())];
                    let from = self.below(other.len());
                    let piece = &other[from..(from + self.below(64)).min(other.len())];
                    drop(input.splice(end..end, piece.iter().copied()));
                }
            }
        }
        input
    }
}

/// What `make fuzz` does for a minute each with a compass, done for a moment without one.
#[test]
fn changed_inputs_are_read_in_time() {
    let count = std::env::var("MUTATIONS").ok();
    let count: usize = count.and_then(|count| count.parse().ok()).unwrap_or(200);
    let seed = std::env::var("SEED").ok();
    let seed: u64 = seed.and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for target in TARGETS {
        let directory = root().join("corpus").join(target.name);
        let inputs: Vec<Vec<u8>> = names(&directory)
            .into_iter()
            .map(|name| std::fs::read(directory.join(name)).expect("an input"))
            .collect();
        let mut random = Random(seed);
        for _ in 0..count {
            let input = random.mutated(&inputs);
            let outcome = std::panic::catch_unwind(|| soon(target, &input, "a changed input"));
            if let Err(panic) = outcome {
                let text = String::from_utf8_lossy(&input);
                eprintln!("{} with {input:?} ({text})", target.name);
                std::panic::resume_unwind(panic);
            }
        }
    }
}
