//! System call filters: compiled by the agent into a file beside the container's configuration, installed by the
//! helper right before the program executes, for init and exec alike.
//!
//! Installing one implies `no_new_privs`: at that moment the capabilities are the container's already.

mod calls;
mod default;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use gantry_cri::runtime::Seccomp;
use parking_lot::Mutex;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use serde::Deserialize;

/// One filter; several are installed one after the other, and the strictest answer counts.
pub(crate) type Program = BpfProgram;

/// Name of the compiled filters in a container's directory.
pub(crate) const FILE: &str = "seccomp";
const UNCONFINED: &[u8] = b"unconfined";
const MAGIC: &[u8] = b"filters\n";
const INSTRUCTION: usize = 8;
/// Where a filter finds the number of the call it judges.
const CALL_NUMBER: u32 = 0;
/// The first number of the x32 architecture.
const X32: u32 = 0x4000_0000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The content of [`FILE`] for a container with these effective capabilities (without `CAP_`).
pub(crate) fn prepare(
    profile: &Seccomp,
    capabilities: &BTreeSet<&str>,
) -> Result<Arc<Vec<u8>>, String> {
    match profile {
        Seccomp::Unconfined => Ok(Arc::new(UNCONFINED.to_vec())),
        Seccomp::RuntimeDefault => default_profile(capabilities),
        Seccomp::Localhost(path) => {
            let doing = |cause: &dyn std::fmt::Display| {
                format!("seccomp profile {}: {cause}", path.display())
            };
            let text = fs::read(path).map_err(|error| doing(&error))?;
            let profile: Profile = serde_json::from_slice(&text).map_err(|error| doing(&error))?;
            let programs = profile.compile().map_err(|error| doing(&error))?;
            Ok(Arc::new(encode(&programs)))
        }
    }
}

/// All that the process which holds a pod's shared pid namespace ever does.
pub(crate) fn holder() -> Result<Program, String> {
    let allowed = [
        "close_range",
        "exit",
        "exit_group",
        "poll",
        "ppoll",
        "restart_syscall",
        "rt_sigreturn",
        "write",
    ];
    let numbers = allowed.into_iter().filter_map(calls::number);
    let rules: Rules = numbers.map(|number| (number, Vec::new())).collect();
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    compile(rules, refused, SeccompAction::Allow)
}

/// Reads what [`prepare`] wrote. Anything unexpected is an error: never start without the filter that was meant.
pub(crate) fn load(dir: &Path) -> io::Result<Vec<Program>> {
    let content = fs::read(dir.join(FILE)).map_err(|error| {
        io::Error::new(error.kind(), format!("reading the seccomp filter: {error}"))
    })?;
    if content == UNCONFINED {
        return Ok(Vec::new());
    }
    decode(&content)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the seccomp filter is damaged"))
}

/// Puts the calling thread under the filter.
pub(crate) fn install(program: &Program) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(io::Error::other)
}

fn encode(programs: &[Program]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for program in programs {
        bytes.extend_from_slice(&u32::try_from(program.len()).unwrap_or(0).to_ne_bytes());
        for instruction in program {
            bytes.extend_from_slice(&instruction.code.to_ne_bytes());
            bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
            bytes.extend_from_slice(&instruction.k.to_ne_bytes());
        }
    }
    bytes
}

fn decode(content: &[u8]) -> Option<Vec<Program>> {
    let mut rest = content.strip_prefix(MAGIC)?;
    let mut programs = Vec::new();
    while !rest.is_empty() {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (body, tail) =
            tail.split_at_checked(u32::from_ne_bytes(*length) as usize * INSTRUCTION)?;
        let program: Program = body
            .chunks_exact(INSTRUCTION)
            .map(|bytes| sock_filter {
                code: u16::from_ne_bytes([bytes[0], bytes[1]]),
                jt: bytes[2],
                jf: bytes[3],
                k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            })
            .collect();
        if program.is_empty() {
            return None;
        }
        programs.push(program);
        rest = tail;
    }
    if programs.is_empty() {
        None
    } else {
        Some(programs)
    }
}

fn architecture() -> Result<TargetArch, String> {
    TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<Program, String> {
    let filter = SeccompFilter::new(rules, otherwise, matching, architecture()?)
        .map_err(|error| error.to_string())?;
    let judged = Program::try_from(filter).map_err(|error| error.to_string())?;
    let mut program = refuse_x32().to_vec();
    program.extend(judged);
    Ok(program)
}

/// x86-64 kernels may know every call by a second number, of the x32 architecture, which calls itself by the same name to
/// a filter. No profile speaks of those: one that refuses calls by their numbers would let them through. They are
/// answered as by a kernel that does not have them. Elsewhere there are no such numbers.
fn refuse_x32() -> [sock_filter; 3] {
    let statement = |code: u32, k, jf| sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, CALL_NUMBER, 0),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32, 1),
        statement(libc::BPF_RET | libc::BPF_K, missing, 0),
    ]
}

/// Compares all 64 bits, for calls that take as many and for profiles, which are written for that.
fn condition(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, op, value)
        .map_err(|error| error.to_string())
}

/// Compares the lower half, for arguments of which the kernel takes no more: a caller may put anything in the upper one.
fn condition_of_int(index: u8, op: SeccompCmpOp, value: u32) -> Result<SeccompCondition, String> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value.into())
        .map_err(|error| error.to_string())
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, String> {
    SeccompRule::new(conditions).map_err(|error| error.to_string())
}

fn default_profile(capabilities: &BTreeSet<&str>) -> Result<Arc<Vec<u8>>, String> {
    type Compiled = HashMap<Vec<&'static str>, Arc<Vec<u8>>>;
    static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);
    let extra: Vec<&'static str> = default::WITH_CAPABILITY
        .iter()
        .filter(|(capability, _)| capabilities.contains(capability))
        .map(|(_, names)| *names)
        .collect();
    let mut compiled = COMPILED.lock();
    let compiled = compiled.get_or_insert_default();
    if let Some(known) = compiled.get(&extra) {
        return Ok(Arc::clone(known));
    }
    let programs = compile_default(&extra, capabilities.contains("SYS_ADMIN"))?;
    let content = Arc::new(encode(&programs));
    compiled.insert(extra, Arc::clone(&content));
    Ok(content)
}

fn compile_default(extra: &[&str], administrator: bool) -> Result<Vec<Program>, String> {
    let mut rules = Rules::new();
    // Of personality, only asking and the ordinary ones. It takes an unsigned int.
    let mut personalities = Vec::new();
    for allowed in [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        personalities.push(rule(vec![condition_of_int(0, SeccompCmpOp::Eq, allowed)?])?);
    }
    rules.insert(libc::SYS_personality, personalities);
    // Virtual machine sockets are not confined by network namespaces. A family is an int.
    let vsock = libc::AF_VSOCK.unsigned_abs();
    rules.insert(
        libc::SYS_socket,
        vec![rule(vec![condition_of_int(0, SeccompCmpOp::Ne, vsock)?])?],
    );
    // Threads and processes, but no new namespaces. The flags are an unsigned long, and only these bits are looked at.
    let namespaces = u64::from(
        (libc::CLONE_NEWNS
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWCGROUP)
            .cast_unsigned(),
    );
    rules.insert(
        libc::SYS_clone,
        vec![rule(vec![condition(
            0,
            SeccompCmpOp::MaskedEq(namespaces),
            0,
        )?])?],
    );
    for name in extra
        .iter()
        .copied()
        .chain([default::ALLOWED])
        .flat_map(str::split_ascii_whitespace)
    {
        if let Some(number) = calls::number(name) {
            rules.insert(number, Vec::new());
        }
    }
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let mut programs = vec![compile(rules, refused, SeccompAction::Allow)?];
    if !administrator {
        // The flags of clone3 are in memory, out of a filter's sight: pretend it does not exist, so that C libraries
        // fall back to clone.
        let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
        let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        programs.push(compile(clone3, SeccompAction::Allow, missing)?);
    }
    Ok(programs)
}

/// A profile in the OCI format.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

impl Argument {
    fn condition(&self) -> Result<SeccompCondition, String> {
        let (op, value) = match self.op.as_str() {
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, self.value),
            "SCMP_CMP_LT" => (SeccompCmpOp::Lt, self.value),
            "SCMP_CMP_LE" => (SeccompCmpOp::Le, self.value),
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, self.value),
            "SCMP_CMP_GE" => (SeccompCmpOp::Ge, self.value),
            "SCMP_CMP_GT" => (SeccompCmpOp::Gt, self.value),
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(self.value), self.value_two),
            other => return Err(format!("unknown comparison {other}")),
        };
        condition(self.index, op, value)
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(libc::EPERM.unsigned_abs())),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno.unwrap_or(libc::EPERM.unsigned_abs())),
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        other => return Err(format!("action {other} is not supported")),
    })
}

impl Profile {
    /// A filter of ours knows two actions. So the first lets through whatever the profile mentions, and every other
    /// action has a filter of its own after it.
    fn compile(&self) -> Result<Vec<Program>, String> {
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut mentioned = Rules::new();
        let mut others: Vec<(SeccompAction, Rules)> = Vec::new();
        for entry in &self.syscalls {
            let action = action(&entry.action, entry.errno_ret)?;
            if action == default {
                continue;
            }
            for number in entry.names.iter().filter_map(|name| calls::number(name)) {
                let conditions = entry
                    .args
                    .iter()
                    .map(Argument::condition)
                    .collect::<Result<Vec<_>, _>>()?;
                add(&mut mentioned, number, &conditions)?;
                if action != SeccompAction::Allow {
                    match others.iter_mut().find(|(known, _)| *known == action) {
                        Some((_, rules)) => add(rules, number, &conditions)?,
                        None => {
                            let mut rules = Rules::new();
                            add(&mut rules, number, &conditions)?;
                            others.push((action.clone(), rules));
                        }
                    }
                }
            }
        }
        let mut programs = Vec::new();
        if default != SeccompAction::Allow {
            programs.push(compile(mentioned, default, SeccompAction::Allow)?);
        }
        for (action, rules) in others {
            programs.push(compile(rules, SeccompAction::Allow, action)?);
        }
        if programs.is_empty() {
            return Err("it restricts nothing; use Unconfined to say so".to_owned());
        }
        Ok(programs)
    }
}

/// Adds one alternative; a call without conditions stays matched whatever else is said of it.
fn add(rules: &mut Rules, number: i64, conditions: &[SeccompCondition]) -> Result<(), String> {
    if conditions.is_empty() {
        rules.insert(number, Vec::new());
    } else if rules.get(&number).is_none_or(|known| !known.is_empty()) {
        rules
            .entry(number)
            .or_default()
            .push(rule(conditions.to_vec())?);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
