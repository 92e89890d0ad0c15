//! Descriptors of the shim: reading what is there, and outputs that must not stall anyone else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An attached client that is this far behind is dropped rather than allowed to stall the container.
const MAX_BEHIND: usize = 1 << 20;

/// Makes a descriptor fit for the poll loop.
pub(crate) fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// What one read gave.
pub(crate) enum Read {
    /// Some bytes.
    Bytes(usize),
    /// Nothing now.
    Later,
    /// Nothing any more. A terminal whose other side is closed says EIO.
    End,
}

/// Reads once.
pub(crate) fn read(fd: impl AsFd, buffer: &mut [u8]) -> Read {
    match rustix::io::read(fd, buffer) {
        Ok(0) => Read::End,
        Ok(count) => Read::Bytes(count),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Read::Later,
        Err(_) => Read::End,
    }
}

/// A non-blocking output with the bytes that did not fit yet.
pub(crate) struct Output {
    fd: OwnedFd,
    waiting: Vec<u8>,
    broken: bool,
}

impl Output {
    /// Takes over `fd`.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: nonblocking(fd)?,
            waiting: Vec::new(),
            broken: false,
        })
    }

    /// Queues bytes and writes what fits.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.waiting.len() + bytes.len() > MAX_BEHIND {
            self.broken = true;
        } else if !self.broken {
            self.waiting.extend_from_slice(bytes);
            self.flush();
        }
    }

    /// Writes what fits.
    pub(crate) fn flush(&mut self) {
        let mut done = 0;
        while done < self.waiting.len() {
            match rustix::io::write(&self.fd, &self.waiting[done..]) {
                Ok(count) => done += count,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.broken = true;
                    break;
                }
            }
        }
        self.waiting.drain(..done);
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
        }
    }

    /// Bytes are waiting for room.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty() && !self.broken
    }

    /// The other side is gone or hopelessly slow.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
