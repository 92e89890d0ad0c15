//! The few system calls that need `unsafe`, each behind a safe function, and frames with descriptors over a socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The largest frame either side accepts.
pub(crate) const MAX_FRAME: usize = 1 << 20;

/// An argument of a system call that says nothing.
const NONE: libc::c_long = 0;
/// The operation of keyctl.
const JOIN_SESSION_KEYRING: libc::c_long = 1;

fn check(result: i32) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends a signal; 0 only asks whether the process exists.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    #[expect(unsafe_code, reason = "real-time signals have no type in rustix")]
    // SAFETY: kill takes two integers; a positive pid names one process.
    check(unsafe { libc::kill(pid, signal) })
}

/// Blocks SIGCHLD and returns a non-blocking descriptor that reads it.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    #[expect(
        unsafe_code,
        reason = "signalfd has no safe wrapper among our dependencies"
    )]
    // SAFETY: sigemptyset initialises the set before any other call reads it; signalfd returns a descriptor we own.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        check(libc::pthread_sigmask(
            libc::SIG_BLOCK,
            set.as_ptr(),
            std::ptr::null_mut(),
        ))?;
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(OwnedFd::from_raw_fd(fd))
        }
    }
}

/// Whether the kernel knows that something keeps its clock right, as time services tell it by adjtimex.
pub(crate) fn clock_is_kept() -> io::Result<bool> {
    let mut state = MaybeUninit::<libc::timex>::zeroed();
    #[expect(
        unsafe_code,
        reason = "adjtimex has no safe wrapper among our dependencies"
    )]
    // SAFETY: all fields of timex are integers, for which zero is a value; with modes of zero the kernel changes nothing
    // and writes only into the structure.
    let (answer, state) = unsafe {
        let answer = libc::adjtimex(state.as_mut_ptr());
        (answer, state.assume_init())
    };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(state.status & libc::STA_UNSYNC == 0),
    }
}

/// Takes over the descriptors of these numbers, which whoever started this process left open for it, and closes all
/// others above stderr. Only for a process that has opened none of its own yet.
pub(crate) fn take_inherited(numbers: &[i32]) -> io::Result<Vec<OwnedFd>> {
    close_all_but(numbers)?;
    let mut taken = Vec::with_capacity(numbers.len());
    for &number in numbers {
        #[expect(unsafe_code, reason = "a descriptor is named by its number")]
        // SAFETY: it is above stderr, and nobody else in this process, which has just begun, owns it; F_SETFD below
        // fails when it is not open, and an OwnedFd that is not open is then forgotten before it could close another.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        if let Err(error) = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC) {
            std::mem::forget(fd);
            return Err(error.into());
        }
        taken.push(fd);
    }
    Ok(taken)
}

/// Closes every descriptor above stderr but those of these numbers, whoever owns them. Only for a process that uses no
/// other afterwards.
pub(crate) fn close_all_but(numbers: &[i32]) -> io::Result<()> {
    let mut kept: Vec<u32> = Vec::with_capacity(numbers.len());
    for &number in numbers {
        match u32::try_from(number) {
            Ok(number) if number > 2 => kept.push(number),
            _ => return Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }
    kept.sort_unstable();
    let mut first = 3;
    for number in kept {
        if number > first {
            close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    close_range(first, u32::MAX)
}

/// Closes stdin, stdout and stderr too: for a process that has nothing left to say.
pub(crate) fn close_everything() -> io::Result<()> {
    close_range(0, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "close_range has no safe wrapper")]
    // SAFETY: callers use none of these descriptors afterwards, and drop nothing that owns one.
    check(unsafe { libc::close_range(first, last, 0) })
}

/// Lets a child that is started next have this descriptor, under its number.
pub(crate) fn let_inherit(fd: impl AsFd) -> io::Result<i32> {
    use std::os::fd::AsRawFd;
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
    Ok(fd.as_fd().as_raw_fd())
}

/// Both sides of a fork.
pub(crate) enum Fork {
    /// In the new process.
    Child,
    /// In the one that forked: the new one's pid.
    Parent(i32),
}

/// Forks a process with a single thread. `sibling` makes the new one a child of this one's parent.
pub(crate) fn fork(sibling: bool) -> io::Result<Fork> {
    let flags = if sibling { libc::CLONE_PARENT } else { 0 } | libc::SIGCHLD;
    #[expect(unsafe_code, reason = "a fork is not part of the standard library")]
    // SAFETY: this process has one thread, so that memory, locks and all are whole in the copy; without CLONE_VM and
    // with a null stack the copy goes on as after fork.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            NONE,
            NONE,
            NONE,
            NONE,
        )
    };
    match pid {
        0 => Ok(Fork::Child),
        pid if pid > 0 => Ok(Fork::Parent(i32::try_from(pid).map_err(io::Error::other)?)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends a forked process at once: what its memory holds is the other one's to flush and to drop.
pub(crate) fn exit_now(code: i32) -> ! {
    #[expect(
        unsafe_code,
        reason = "std's exit runs what belongs to the process that forked"
    )]
    // SAFETY: _exit takes an integer and does not return.
    unsafe {
        libc::_exit(code)
    }
}

/// Kernel threads and other processes possess what is in a session's keyring; a container gets one of its own. Kernels
/// without keyrings have nothing to protect.
pub(crate) fn new_session_keyring() {
    #[expect(unsafe_code, reason = "keyctl has no safe wrapper")]
    // SAFETY: joining with a null name makes a new keyring, and reads no memory of ours.
    unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, NONE);
    }
}

/// The other side of a new terminal, whatever lies at its path.
pub(crate) fn open_terminal_peer(terminal: impl AsFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let fd = terminal.as_fd().as_raw_fd();
    let unlocked: libc::c_int = 0;
    #[expect(
        unsafe_code,
        reason = "neither request has a safe wrapper among our dependencies"
    )]
    // SAFETY: TIOCSPTLCK reads one integer, TIOCGPTPEER takes flags and returns a descriptor that we own.
    unsafe {
        check(libc::ioctl(fd, libc::TIOCSPTLCK, &raw const unlocked))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        match libc::ioctl(fd, libc::TIOCGPTPEER, flags) {
            -1 => Err(io::Error::last_os_error()),
            peer => Ok(OwnedFd::from_raw_fd(peer)),
        }
    }
}

/// Lets a user of the node open the pipes that are this process's stdin, stdout and stderr by name, as /dev/stdout does.
/// What is no pipe of ours stays as it is.
pub(crate) fn give_stdio(user: u32) -> io::Result<()> {
    use rustix::fs::{FileType, Uid};
    let ours = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for fd in ours {
        if FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Fifo {
            rustix::fs::fchown(fd, Some(Uid::from_raw(user)), None)?;
        }
    }
    Ok(())
}

/// Leaves the session's controlling terminal.
pub(crate) fn give_up_terminal() -> io::Result<()> {
    #[expect(unsafe_code, reason = "TIOCNOTTY has no safe wrapper")]
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(0, libc::TIOCNOTTY) })
}

/// Makes a signal's disposition what it is by default, or ignores it.
pub(crate) fn ignore_signal(signal: i32, ignored: bool) {
    let disposition = if ignored {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    #[expect(unsafe_code, reason = "signal dispositions are process-wide")]
    // SAFETY: neither disposition installs a handler.
    unsafe {
        libc::signal(signal, disposition);
    }
}

/// Gives a process new namespaces. Must be called with one thread.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    #[expect(
        unsafe_code,
        reason = "CLONE_FILES would be dangerous with several threads"
    )]
    // SAFETY: callers pass namespace flags only, never FILES, and have one thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Replaces the process; returns only to say why it could not.
pub(crate) fn execve(
    path: &std::ffi::CStr,
    args: &[std::ffi::CString],
    env: &[std::ffi::CString],
) -> io::Error {
    let pointers = |list: &[std::ffi::CString]| {
        list.iter()
            .map(|item| item.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect::<Vec<_>>()
    };
    let (args, env) = (pointers(args), pointers(env));
    #[expect(
        unsafe_code,
        reason = "exec with an exact environment and no shell fallback"
    )]
    // SAFETY: both arrays end in null and point to strings that outlive the call.
    unsafe {
        libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr());
    }
    io::Error::last_os_error()
}

/// A message as it travels: its length, then its bytes.
pub(crate) fn frame(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(length + 4);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes
}

/// Takes the first whole frame out of `buffer`, if it is there.
pub(crate) fn take_frame<M: Message + Default>(buffer: &mut Vec<u8>) -> io::Result<Option<M>> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*head) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("frame of {length} bytes"),
        ));
    }
    if buffer.len() < length + 4 {
        return Ok(None);
    }
    let message = M::decode(&buffer[4..length + 4])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    buffer.drain(..length + 4);
    Ok(Some(message))
}

/// Sends bytes with descriptors attached to the first of them.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors",
        ));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[io::IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receives what is there, appending descriptors to `fds`. 0 bytes is the end.
pub(crate) fn receive(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut bytes = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more descriptors than expected",
        ));
    }
    buffer.extend_from_slice(&bytes[..received.bytes]);
    Ok(received.bytes)
}
