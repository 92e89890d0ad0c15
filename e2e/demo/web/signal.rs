//! What std has no calls for: SIGTERM, as a flag and as something to wait for beside a socket, and the length of a socket's queue.
#![expect(
    unsafe_code,
    reason = "std neither handles signals, nor waits for two things, nor has long queues, and the image holds no other code"
)]

use std::io::{self, ErrorKind, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Instant;

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const POLLIN: i16 = 1;

static STOPPING: AtomicBool = AtomicBool::new(false);
/// Written to once and never read from: from then on its reading end wakes whoever waits.
static PIPE: OnceLock<(PipeReader, PipeWriter)> = OnceLock::new();
/// The writing end, where a signal handler finds it.
static DOOR: AtomicI32 = AtomicI32::new(-1);

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn write(fd: i32, bytes: *const u8, count: usize) -> isize;
    fn poll(fds: *mut PollFd, count: u64, timeout: i32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
}

/// Lets so many connections wait to be accepted, where std lets 128: of more at once some wait for a second, or are reset.
pub(crate) fn deepen(listener: &impl AsRawFd, backlog: i32) -> io::Result<()> {
    // SAFETY: listen takes two numbers. A socket that listens already is given another length of its queue.
    match unsafe { listen(listener.as_raw_fd(), backlog) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn stop(_: i32) {
    // Only the first signal writes, so that the pipe never fills and the call cannot fail.
    if !STOPPING.swap(true, Ordering::SeqCst) {
        // SAFETY: write is async-signal-safe, and reads one byte of a constant.
        unsafe {
            write(DOOR.load(Ordering::SeqCst), [0].as_ptr(), 1);
        }
    }
}

/// Installs the handler; without one, an init process ignores SIGTERM.
pub(crate) fn install() -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    DOOR.store(writer.as_raw_fd(), Ordering::SeqCst);
    PIPE.get_or_init(|| (reader, writer));
    for number in [SIGTERM, SIGINT] {
        // SAFETY: the handler touches only atomics and a pipe that is never closed.
        unsafe {
            signal(number, stop);
        }
    }
    Ok(())
}

/// Whether the program was told to stop.
pub(crate) fn is_stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

/// What a wait has ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Reading from the socket says something now, if only that it is closed.
    Readable,
    /// The program is to stop.
    Stopping,
    /// The time is over.
    Late,
}

/// Waits until a socket can be read from; where `heeding` the signal, until the program is to stop too.
pub(crate) fn wait(socket: &impl AsRawFd, until: Option<Instant>, heeding: bool) -> Woken {
    let awaited = |fd: i32| PollFd {
        fd,
        events: POLLIN,
        revents: 0,
    };
    let pipe = PIPE.get().filter(|_| heeding);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, since a wait of nothing for the last part of a millisecond would spin.
        let timeout = left.map_or(-1, |left| {
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        // poll passes over a negative descriptor.
        let mut fds = [
            awaited(socket.as_raw_fd()),
            awaited(pipe.map_or(-1, |(reader, _)| reader.as_raw_fd())),
        ];
        // SAFETY: the pointer is to two valid pollfds, and poll keeps none.
        let found = unsafe { poll(fds.as_mut_ptr(), 2, timeout) };
        if found < 0 {
            if io::Error::last_os_error().kind() == ErrorKind::Interrupted {
                continue;
            }
            // Reading will tell what is wrong.
            return Woken::Readable;
        }
        if fds[0].revents != 0 {
            return Woken::Readable;
        }
        if fds[1].revents != 0 {
            return Woken::Stopping;
        }
        if left.is_some_and(|left| left.is_zero()) || (found == 0 && until.is_some()) {
            return Woken::Late;
        }
    }
}
