//! The little of BPF that device rules need: instructions, and the system calls that load programs and attach them to
//! groups of cgroup v2.
//!
//! Numbers are those of the kernel's `linux/bpf.h`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register(u8);

/// What the program answers.
pub(crate) const R0: Register = Register(0);
/// At the start, where the context is.
pub(crate) const R1: Register = Register(1);
pub(crate) const R2: Register = Register(2);
pub(crate) const R3: Register = Register(3);
pub(crate) const R4: Register = Register(4);
pub(crate) const R5: Register = Register(5);

const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// One instruction, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u8,
    /// The register that is changed or compared, and in the upper half the one that is read.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn new(code: u8, target: Register, source: Register, offset: i16, immediate: u32) -> Self {
        // Values of ours are below 2^31: the kernel extends an immediate's sign.
        debug_assert!(i32::try_from(immediate).is_ok());
        Self {
            code,
            registers: target.0 | (source.0 << 4),
            offset,
            immediate: immediate.cast_signed(),
        }
    }

    /// Loads the word at an offset of where `source` points.
    pub(crate) fn load(target: Register, source: Register, offset: i16) -> Self {
        Self::new(LOAD_WORD, target, source, offset, 0)
    }

    pub(crate) fn copy(target: Register, source: Register) -> Self {
        Self::new(COPY, target, source, 0, 0)
    }

    pub(crate) fn set(target: Register, value: u32) -> Self {
        Self::new(SET, target, R0, 0, value)
    }

    pub(crate) fn and(target: Register, mask: u32) -> Self {
        Self::new(AND, target, R0, 0, mask)
    }

    pub(crate) fn shift_right(target: Register, bits: u32) -> Self {
        Self::new(SHIFT_RIGHT, target, R0, 0, bits)
    }

    /// Where to is set by [`Self::jump_by`].
    pub(crate) fn jump_if_equal(register: Register, value: u32) -> Self {
        Self::new(JUMP_IF_EQUAL, register, R0, 0, value)
    }

    /// Where to is set by [`Self::jump_by`].
    pub(crate) fn jump_unless_equal(register: Register, value: u32) -> Self {
        Self::new(JUMP_UNLESS_EQUAL, register, R0, 0, value)
    }

    /// Answers with what [`R0`] holds.
    pub(crate) fn exit() -> Self {
        Self::new(EXIT, R0, R0, 0, 0)
    }

    /// Makes a jump lead past this many instructions.
    pub(crate) fn jump_by(&mut self, distance: usize) {
        self.offset = i16::try_from(distance).unwrap_or(i16::MAX);
    }
}

/// What a program answers for a context, computed as the kernel would.
#[cfg(test)]
pub(crate) fn interpret(program: &[Instruction], context: &[u32]) -> u64 {
    let mut registers = [None; 11];
    let mut next = 0;
    // Jumps lead forward only, so this ends.
    loop {
        let instruction = program[next];
        next += 1;
        let target = usize::from(instruction.registers & 0xf);
        let source = usize::from(instruction.registers >> 4);
        let value = u64::try_from(instruction.immediate).expect("positive");
        let held: Option<u64> = registers[target];
        let known = || held.expect("a register is read before it is set");
        let skip = usize::try_from(instruction.offset).expect("forward");
        match instruction.code {
            LOAD_WORD => registers[target] = Some(u64::from(context[skip / 4])),
            COPY => registers[target] = Some(registers[source].expect("set")),
            SET => registers[target] = Some(value),
            AND => registers[target] = Some(known() & value),
            SHIFT_RIGHT => registers[target] = Some(known() >> value),
            JUMP_IF_EQUAL if known() == value => next += skip,
            JUMP_UNLESS_EQUAL if known() != value => next += skip,
            JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL => {}
            EXIT => return registers[0].expect("an answer"),
            other => panic!("an instruction that is not ours: {other:#x}"),
        }
    }
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;

const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Groups below may attach programs of their own beside this one, as nested runtimes do; all must agree.
const ALLOW_MULTI: u32 = 1 << 1;
/// As many as the kernel attaches to one group.
const MAX_ATTACHED: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attached_flags: u32,
    ids: u64,
    count: u32,
    reserved: u32,
    /// Later fields of the structure, which some kernels write to.
    more: [u64; 4],
}

#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// One of the structures above.
///
/// # Safety
///
/// Addresses in it must be valid for what the command reads and writes there.
#[expect(unsafe_code, reason = "bpf has no safe wrapper among our dependencies")]
unsafe fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes of a structure that is borrowed for the call; what its
    // addresses lead to is promised by the caller.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(answer).map_err(io::Error::other)
}

fn descriptor(file: &impl AsRawFd) -> u32 {
    file.as_raw_fd().cast_unsigned()
}

/// Has the kernel check and keep a program; it lives as long as it is open or attached.
pub(crate) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let mut attributes = Load {
        kind: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        name: *b"gantry_devices\0\0",
        ..Load::default()
    };
    #[expect(unsafe_code, reason = "bpf has no safe wrapper among our dependencies")]
    // SAFETY: the instructions and the license are borrowed for longer than the call, with the count given; the
    // descriptor that is returned is new and nobody else's.
    unsafe {
        let fd = call(PROG_LOAD, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Attaches a program to a group, beside those that are attached.
pub(crate) fn attach(group: &File, program: &OwnedFd) -> io::Result<()> {
    change(PROG_ATTACH, group, program, ALLOW_MULTI)
}

fn change(command: libc::c_int, group: &File, program: &OwnedFd, flags: u32) -> io::Result<()> {
    let mut attributes = Attach {
        target: descriptor(group),
        program: descriptor(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags,
        replaced: 0,
    };
    #[expect(unsafe_code, reason = "bpf has no safe wrapper among our dependencies")]
    // SAFETY: the structure holds numbers only.
    unsafe {
        call(command, &mut attributes).map(drop)
    }
}

/// The ids of the device programs that are attached to a group itself.
pub(crate) fn device_programs(group: &File) -> io::Result<BTreeSet<u32>> {
    let mut ids = [0u32; MAX_ATTACHED];
    let mut attributes = Query {
        target: descriptor(group),
        attach_type: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(MAX_ATTACHED).map_err(io::Error::other)?,
        ..Query::default()
    };
    #[expect(unsafe_code, reason = "bpf has no safe wrapper among our dependencies")]
    // SAFETY: `ids` has room for `count` numbers and is borrowed mutably for longer than the call.
    unsafe {
        call(PROG_QUERY, &mut attributes)?;
    }
    let count = usize::try_from(attributes.count).map_err(io::Error::other)?;
    Ok(ids.iter().copied().take(count).collect())
}

/// Detaches a program that is attached to a group; one that is gone is fine.
pub(crate) fn detach(group: &File, id: u32) -> io::Result<()> {
    let mut attributes = ById {
        id,
        ..ById::default()
    };
    #[expect(unsafe_code, reason = "bpf has no safe wrapper among our dependencies")]
    // SAFETY: the structure holds numbers only; the descriptor that is returned is new and nobody else's.
    let program = unsafe {
        match call(PROG_GET_FD_BY_ID, &mut attributes) {
            Ok(fd) => OwnedFd::from_raw_fd(fd),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    };
    match change(PROG_DETACH, group, &program, 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done,
    }
}
