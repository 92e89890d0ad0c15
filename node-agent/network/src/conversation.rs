//! Blocking requests to a part of the kernel over netlink, one at a time. (What changes links has batches: [`crate::netlink`].)

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};

use netlink_packet_core::{
    NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rtnetlink::sys::Socket;

/// A connection to one part of the kernel, in the network namespace that it was opened in.
pub(crate) struct Conversation {
    socket: Socket,
    sequence: u32,
}

impl Conversation {
    /// `part` is one of netlink's protocols.
    pub(crate) fn open(part: isize) -> io::Result<Self> {
        let mut socket = Socket::new(part)?;
        socket.bind_auto()?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The socket itself, to hear what the kernel says without having been asked.
    pub(crate) fn into_socket(self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// Hands over what a request is answered with, message by message. Who breaks off before the end asks nothing more here:
    /// the kernel would go on with that answer.
    pub(crate) fn ask<M: NetlinkSerializable + NetlinkDeserializable>(
        &mut self,
        request: M,
        flags: u16,
        mut each: impl FnMut(M) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let length = NetlinkBuffer::new_checked(&rest)
                    .map_err(malformed)?
                    .length();
                let message = NetlinkMessage::<M>::deserialize(rest).map_err(malformed)?;
                let (header, payload) = message.into_parts();
                rest = rest
                    .get((length as usize).next_multiple_of(4)..)
                    .unwrap_or_default();
                if header.sequence_number != self.sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => match each(message) {
                        ControlFlow::Continue(()) => {}
                        ControlFlow::Break(()) => return Ok(()),
                    },
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(answer) if answer.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(answer) => return Err(answer.to_io()),
                    _ => {}
                }
            }
        }
    }
}

fn malformed(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
