//! The agent's end of a shim's socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_rpc::shim::{Reply, Request, reply, request};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;

use crate::rootfs::open_directory;
use crate::{shim, sys};

/// A connection that carries one request and the replies to it.
pub(crate) struct Link {
    stream: UnixStream,
    input: Vec<u8>,
}

/// A socket's address may have 108 bytes; a pod's directories are longer. This path is short wherever they are, as
/// long as the directory stays open.
pub(crate) fn short_path(dir: &impl AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd()))
}

impl Link {
    /// Connects to the shim of the sandbox in `dir` and asks.
    pub(crate) async fn open(
        dir: &Path,
        body: request::Body,
        fds: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let directory = open_directory(dir)?;
        let stream = UnixStream::connect(short_path(&directory, shim::SOCKET)).await?;
        let mut link = Self {
            stream,
            input: Vec::new(),
        };
        link.send(body, &fds).await?;
        Ok(link)
    }

    /// Sends a request, with descriptors.
    pub(crate) async fn send(&mut self, body: request::Body, fds: &[OwnedFd]) -> io::Result<()> {
        let bytes = sys::frame(&Request { body: Some(body) });
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut sent = 0;
        while sent < bytes.len() {
            let fds: &[BorrowedFd<'_>] = if sent == 0 { &borrowed } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || {
                    sys::send(&self.stream, &bytes[sent..], fds)
                })
                .await?;
        }
        Ok(())
    }

    /// The next reply; an error of kind `UnexpectedEof` when the shim is gone. Safe to cancel.
    pub(crate) async fn next(&mut self) -> io::Result<reply::Body> {
        loop {
            if let Some(Reply { body: Some(body) }) = sys::take_frame(&mut self.input)? {
                return Ok(body);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the pod's shim closed the connection",
                ));
            }
        }
    }
}

/// Asks for one reply.
pub(crate) async fn call(dir: &Path, body: request::Body) -> io::Result<reply::Body> {
    Link::open(dir, body, Vec::new()).await?.next().await
}
