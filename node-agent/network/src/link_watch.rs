//! Notices that links or addresses of the host have changed, whoever changed them.
//!
//! The kernel tells of every change; it is asked now and then whether it has told anything, so that a burst of changes is
//! one reason to look.

use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use crate::NetworkError;

/// RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR and RTNLGRP_IPV6_IFADDR of linux/rtnetlink.h.
const GROUPS: [u32; 3] = [1, 5, 9];
/// What is told is not read: any part of a message will do.
const PART: usize = 64;
/// A host that changes faster than this is looked at again next time.
const MOST: usize = 4096;

/// Listens to the network namespace of the thread that makes it.
pub struct LinkWatch {
    socket: Socket,
}

impl LinkWatch {
    /// Listens from now on.
    pub fn new() -> Result<Self, NetworkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|source| NetworkError::Io {
            doing: "listening to changes of links".to_owned(),
            source,
        })?;
        Ok(Self { socket })
    }

    /// Whether anything has changed since the last question. Does not block.
    pub fn stirred(&mut self) -> bool {
        let mut part = Vec::with_capacity(PART);
        let mut stirred = false;
        for _ in 0..MOST {
            part.clear();
            match self.socket.recv(&mut part, libc::MSG_TRUNC) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return stirred,
                // There was more to tell than there is room for, or something else is odd: a reason to look.
                Ok(_) | Err(_) => stirred = true,
            }
        }
        stirred
    }
}
