//! Which devices a container may make, read and write on cgroup v2, where no list of the kernel says so but a program of
//! ours that it runs at every open and every mknod.
//!
//! The rules are those of the OCI configuration, `linux.resources.devices` (see `devices.rs`). As on v1 a later rule wins
//! over an earlier one, and what no rule is about is refused. A rule that cannot be read, or a program that the kernel
//! does not take, fails the start: a container never runs without its program.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

use serde_json::Value;

use crate::bpf::{self, Instruction};

/// What is done with a device, as the kernel's bits.
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ANY_ACCESS: u32 = MAKE | READ | WRITE;

/// The kernel has 12 bits of major and 20 of minor number.
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;
/// More rules than any configuration of ours has; the kernel bounds programs.
const MAX_RULES: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block,
    Character,
}

impl Kind {
    /// The kernel's number of it.
    fn number(self) -> u32 {
        match self {
            Self::Block => 1,
            Self::Character => 2,
        }
    }
}

/// One rule; `None` is about all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    /// Bits of what it allows or denies.
    access: u32,
}

impl Rule {
    fn parse(written: &Value) -> Result<Self, String> {
        let wrong = |field: &str, must: &str| {
            format!("linux.resources.devices: {field} of {written} must be {must}")
        };
        let allow = written
            .get("allow")
            .and_then(Value::as_bool)
            .ok_or_else(|| wrong("allow", "true or false"))?;
        let kind = match written.get("type").map(Value::as_str) {
            None | Some(Some("a")) => None,
            Some(Some("b")) => Some(Kind::Block),
            Some(Some("c" | "u")) => Some(Kind::Character),
            _ => return Err(wrong("type", "a, b, c or u")),
        };
        let number = |field: &str, most: u32| match written.get(field) {
            None => Ok(None),
            Some(value) if value.as_i64() == Some(-1) => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .filter(|number| *number <= most)
                .map(Some)
                .ok_or_else(|| wrong(field, &format!("-1 or 0 to {most}"))),
        };
        let (major, minor) = (number("major", MAX_MAJOR)?, number("minor", MAX_MINOR)?);
        let mut access = 0;
        for letter in written
            .get("access")
            .and_then(Value::as_str)
            .unwrap_or("rwm")
            .chars()
        {
            access |= match letter {
                'm' => MAKE,
                'r' => READ,
                'w' => WRITE,
                _ => return Err(wrong("access", "letters of rwm")),
            };
        }
        Ok(Self {
            allow,
            kind,
            major,
            minor,
            access,
        })
    }

    /// About every device and every access.
    fn is_about_all(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ANY_ACCESS)
    }
}

/// The rules of an OCI configuration.
fn rules(config: &Value) -> Result<Vec<Rule>, String> {
    let own = match config.pointer("/linux/resources/devices") {
        None => &[][..],
        Some(written) => written
            .as_array()
            .ok_or("linux.resources.devices must be a list")?,
    };
    if own.len() > MAX_RULES {
        return Err(format!(
            "linux.resources.devices has {} rules: at most {MAX_RULES} can be enforced",
            own.len()
        ));
    }
    own.iter().map(Rule::parse).collect()
}

/// Where the kernel puts what is asked, in the context that the program is given: access and kind in one word, then the
/// numbers.
const ASKED: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;

/// The program: the last rule that is about an access decides.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    use bpf::{R0, R1, R2, R3, R4, R5};
    let mut program = vec![
        Instruction::load(R2, R1, ASKED),
        Instruction::copy(R3, R2),
        Instruction::and(R2, 0xffff),
        Instruction::shift_right(R3, 16),
        Instruction::load(R4, R1, MAJOR),
        Instruction::load(R5, R1, MINOR),
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        // Places of the jumps that lead past this rule, when it is not about what is asked.
        let mut past = Vec::new();
        let mut unless_equal = |block: &mut Vec<Instruction>, register, value| {
            past.push(block.len());
            block.push(Instruction::jump_unless_equal(register, value));
        };
        if let Some(kind) = rule.kind {
            unless_equal(&mut block, R2, kind.number());
        }
        if let Some(major) = rule.major {
            unless_equal(&mut block, R4, major);
        }
        if let Some(minor) = rule.minor {
            unless_equal(&mut block, R5, minor);
        }
        if rule.access != ANY_ACCESS {
            block.push(Instruction::copy(R1, R3));
            if rule.allow {
                // It allows what asks for nothing beyond it.
                block.push(Instruction::and(R1, ANY_ACCESS & !rule.access));
                unless_equal(&mut block, R1, 0);
            } else {
                // It denies what asks for any of it.
                block.push(Instruction::and(R1, rule.access));
                past.push(block.len());
                block.push(Instruction::jump_if_equal(R1, 0));
            }
        }
        block.push(Instruction::set(R0, u32::from(rule.allow)));
        block.push(Instruction::exit());
        for place in past {
            let distance = block.len() - place - 1;
            block[place].jump_by(distance);
        }
        program.extend(block);
        if rule.is_about_all() {
            // Nothing after it is ever reached, which the kernel would refuse.
            return program;
        }
    }
    program.push(Instruction::set(R0, 0));
    program.push(Instruction::exit());
    program
}

/// Has the kernel enforce a configuration's rules on a group of cgroup v2 and on all below it. Rules that were enforced
/// on it before hold until the new ones do.
pub(crate) fn confine(group: &Path, config: &Value) -> io::Result<()> {
    let rules =
        rules(config).map_err(|cause| io::Error::new(io::ErrorKind::InvalidInput, cause))?;
    let explain = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!(
                "limiting the devices of {}: {error}; the kernel needs CONFIG_CGROUP_BPF, and the node agent \
                 CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN",
                group.display()
            ),
        )
    };
    let directory = File::open(group)?;
    let earlier: BTreeSet<u32> = bpf::device_programs(&directory).map_err(explain)?;
    let program = bpf::load_device_program(&program(&rules)).map_err(explain)?;
    bpf::attach(&directory, &program).map_err(explain)?;
    // All that are attached must agree, so that in between both hold.
    for id in earlier {
        bpf::detach(&directory, id).map_err(explain)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use serde_json::json;

    use super::*;

    /// Runs a program as the kernel would.
    fn allows(program: &[Instruction], kind: Kind, major: u32, minor: u32, access: u32) -> bool {
        let context = [(access << 16) | kind.number(), major, minor];
        bpf::interpret(program, &context) == 1
    }

    /// A configuration with the rules of every container, and further ones.
    fn configuration(further: Value) -> Value {
        let mut devices = crate::devices::rules(false);
        devices.extend(further.as_array().cloned().unwrap_or_default());
        json!({"linux": {"resources": {"devices": devices}}})
    }

    fn compiled(further: Value) -> Vec<Instruction> {
        program(&rules(&configuration(further)).unwrap())
    }

    #[test]
    fn a_container_has_its_own_devices_and_no_others() {
        use Kind::{Block, Character};
        let program = compiled(json!([]));
        for (kind, major, minor, access, expected) in [
            (Character, 1, 3, READ | WRITE, true),
            (Character, 1, 9, READ, true),
            (Character, 5, 2, READ | WRITE, true),
            (Character, 136, 77, READ | WRITE, true),
            (Character, 5, 0, ANY_ACCESS, true),
            (Character, 1, 1, READ, false),   // mem
            (Character, 1, 2, READ, false),   // kmem
            (Character, 1, 11, WRITE, false), // kmsg
            (Character, 10, 200, READ | WRITE, false),
            (Character, 10, 229, READ | WRITE, false), // fuse
            (Block, 1, 3, READ, false),
            (Block, 254, 0, READ, false),
            (Block, 254, 0, WRITE, false),
            (Block, 254, 0, MAKE, true),
            (Block, 254, 0, MAKE | READ, false),
            (Character, MAX_MAJOR, MAX_MINOR, WRITE, false),
        ] {
            assert_eq!(
                allows(&program, kind, major, minor, access),
                expected,
                "{kind:?} {major}:{minor} {access}"
            );
        }
    }

    #[test]
    fn without_rules_everything_is_refused() {
        let program = program(&rules(&json!({})).unwrap());
        assert!(!allows(&program, Kind::Block, 8, 0, READ));
        assert!(!allows(&program, Kind::Character, 1, 3, READ));
    }

    #[test]
    fn a_later_rule_wins_and_a_denial_needs_only_a_part() {
        let program = compiled(json!([
            {"allow": true, "type": "b", "major": 8, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        ]));
        assert!(allows(&program, Kind::Block, 8, 0, READ | WRITE));
        assert!(allows(&program, Kind::Block, 8, 1, READ));
        assert!(!allows(&program, Kind::Block, 8, 1, READ | WRITE));
        assert!(allows(&program, Kind::Character, 10, 229, READ | WRITE));
        assert!(!allows(&program, Kind::Character, 10, 230, READ));
        let open = compiled(json!([{"allow": true, "access": "rwm"}]));
        assert!(allows(&open, Kind::Block, 8, 0, ANY_ACCESS));
    }

    /// The same decision, made on the rules as they are written.
    fn decided(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: u32) -> bool {
        let about = |rule: &&Rule| {
            let same = rule.kind.is_none_or(|own| own == kind)
                && rule.major.is_none_or(|own| own == major)
                && rule.minor.is_none_or(|own| own == minor);
            same && if rule.allow {
                access & !rule.access == 0
            } else {
                access & rule.access != 0
            }
        };
        rules
            .iter()
            .rev()
            .find(about)
            .is_some_and(|rule| rule.allow)
    }

    #[test]
    fn the_program_decides_as_its_rules_do() {
        // A fixed sequence of pseudorandom numbers is enough to meet every combination.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..400 {
            let drawn: Vec<Rule> = (0..next(7))
                .map(|_| Rule {
                    allow: next(2) == 0,
                    kind: [None, Some(Kind::Block), Some(Kind::Character)][next(3) as usize],
                    major: (next(2) == 0).then(|| next(3) as u32),
                    minor: (next(2) == 0).then(|| next(3) as u32),
                    access: next(8) as u32,
                })
                .collect();
            let program = program(&drawn);
            for kind in [Kind::Block, Kind::Character] {
                for (major, minor) in [(0, 0), (0, 2), (1, 1), (2, 0), (3, 3)] {
                    for access in 1..=ANY_ACCESS {
                        assert_eq!(
                            allows(&program, kind, major, minor, access),
                            decided(&drawn, kind, major, minor, access),
                            "{drawn:?}: {kind:?} {major}:{minor} {access}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_rule_that_cannot_be_read_is_refused_by_its_field() {
        for (rule, field) in [
            (json!({"access": "rwm"}), "allow"),
            (json!({"allow": "yes"}), "allow"),
            (json!({"allow": true, "type": "x"}), "type"),
            (json!({"allow": true, "type": 1}), "type"),
            (json!({"allow": true, "major": 4096}), "major"),
            (json!({"allow": true, "minor": -2}), "minor"),
            (json!({"allow": true, "minor": "1"}), "minor"),
            (json!({"allow": true, "access": "rx"}), "access"),
        ] {
            let config = json!({"linux": {"resources": {"devices": [rule]}}});
            let refused = rules(&config).unwrap_err();
            assert!(
                refused.starts_with(&format!("linux.resources.devices: {field} of")),
                "{refused}"
            );
        }
        assert!(rules(&json!({"linux": {"resources": {"devices": {}}}})).is_err());
        let many = vec![json!({"allow": true}); MAX_RULES + 1];
        assert!(rules(&json!({"linux": {"resources": {"devices": many}}})).is_err());
    }

    /// A group of the real hierarchy of v2, wherever it is mounted.
    struct Group(std::path::PathBuf);

    impl Group {
        fn new(name: &str) -> Self {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let mount = mounts
                .lines()
                .find(|line| line.contains(" - cgroup2 "))
                .and_then(|line| line.split(' ').nth(4))
                .expect("this test needs a mounted cgroup2 hierarchy");
            let own = format!("gantry-devices-{name}-{}", std::process::id());
            let group = Self(Path::new(mount).join(own));
            fs::create_dir(&group.0).unwrap();
            group
        }

        /// Whether a shell script succeeds in the group.
        fn succeeds(&self, script: &str) -> bool {
            Command::new("sh")
                .arg("-c")
                .arg(format!(
                    "echo $$ > \"$0/cgroup.procs\" || exit 99; {script}"
                ))
                .arg(&self.0)
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap()
                .success()
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            if let Err(error) = fs::remove_dir(&self.0) {
                eprintln!("{}: {error}", self.0.display());
            }
        }
    }

    #[test]
    fn the_kernel_enforces_the_program_and_its_successor() {
        let group = Group::new("kernel");
        let directory = tempfile::tempdir().unwrap();
        let node = |name: &str| directory.path().join(name).display().to_string();
        let (memory, disk) = (node("mem"), node("disk"));
        let make = format!("mknod {memory} c 1 1 && mknod {disk} b 7 0");
        let read = format!("head -c 1 {memory} >/dev/null");
        confine(&group.0, &configuration(json!([]))).unwrap();
        assert!(group.succeeds("head -c 1 /dev/urandom > /dev/null"));
        assert!(group.succeeds(&make), "making nodes is allowed");
        assert!(!group.succeeds(&read), "memory was read");
        assert!(!group.succeeds(&format!(": < {disk}")), "a disk was opened");
        assert!(!group.succeeds(": < /dev/kmsg"), "the log was opened");
        let log = json!([{"allow": true, "type": "c", "major": 1, "minor": 11}]);
        confine(&group.0, &configuration(log)).unwrap();
        assert!(group.succeeds(": < /dev/kmsg"), "the later rules hold");
        assert!(!group.succeeds(&format!(": < {disk}")), "a disk was opened");
        let attached = bpf::device_programs(&File::open(&group.0).unwrap()).unwrap();
        assert_eq!(attached.len(), 1, "the earlier program is gone");
        let child = group.0.join("below");
        fs::create_dir(&child).unwrap();
        let below = Group(child);
        assert!(!below.succeeds(&format!(": < {disk}")), "a way around it");
    }
}
