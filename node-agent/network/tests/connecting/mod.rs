//! Connections that are made without a thread for each.

use std::net::{SocketAddr, TcpStream};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect as begin, socket_with};

pub(crate) struct Connecting(TcpStream);

pub(crate) fn connect(to: SocketAddr) -> Connecting {
    let (tcp, now) = (SocketType::STREAM, SocketFlags::NONBLOCK);
    let socket = socket_with(AddressFamily::INET, tcp, now, None).unwrap();
    assert_eq!(begin(&socket, &to), Err(Errno::INPROGRESS));
    Connecting(socket.into())
}

impl Connecting {
    /// Whether it is there; an error when it was refused.
    pub(crate) fn is_connected(&self) -> std::io::Result<bool> {
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut events = [PollFd::new(&self.0, PollFlags::OUT)];
        let ready = poll(&mut events, Some(&at_once))?;
        match self.0.take_error()? {
            Some(error) => Err(error),
            None => Ok(ready > 0),
        }
    }
}
