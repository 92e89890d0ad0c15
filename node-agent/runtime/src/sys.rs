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

/// Closes every descriptor above stderr. Only for a process that has opened none of its own yet.
pub(crate) fn close_inherited() -> io::Result<()> {
    #[expect(unsafe_code, reason = "close_range has no safe wrapper")]
    // SAFETY: called first in `dispatch`, before this process owns any descriptor above 2.
    check(unsafe { libc::close_range(3, u32::MAX, 0) })
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

/// Restores what the language's start-up changed and an executed program would inherit.
pub(crate) fn default_sigpipe() {
    #[expect(unsafe_code, reason = "signal dispositions are process-wide")]
    // SAFETY: SIG_DFL installs no handler.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
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
