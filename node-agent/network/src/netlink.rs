//! Blocking rtnetlink: requests are sent in batches and their acknowledgements collected.
//!
//! A socket belongs for ever to the network namespace it was opened in, whichever thread uses it later. That is how
//! a pod's inside is configured without any further change of namespace.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use crate::NetworkError;

/// The acknowledgements of so many changes fit into a socket's buffer, whatever else is in it.
const LARGEST_BATCH: usize = 64;

/// The kernel's refusal of one request.
#[derive(Debug)]
pub(crate) struct Refusal {
    doing: String,
    cause: io::Error,
}

impl Refusal {
    fn new(doing: &str, cause: io::Error) -> Self {
        Self {
            doing: doing.to_owned(),
            cause,
        }
    }

    /// Whether the kernel said `errno` (a constant of libc).
    pub(crate) fn is(&self, errno: i32) -> bool {
        self.cause.raw_os_error() == Some(errno)
    }
}

impl From<Refusal> for NetworkError {
    fn from(refusal: Refusal) -> Self {
        if refusal.is(libc::EPERM) {
            return Self::Unsupported(format!(
                "{}: the kernel says {}; Gantry's agent needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)",
                refusal.doing, refusal.cause
            ));
        }
        if refusal.is(libc::EOPNOTSUPP) {
            return Self::Unsupported(format!(
                "{}: the kernel says {}; it needs the modules bridge, veth and vxlan (modprobe -a bridge veth vxlan)",
                refusal.doing, refusal.cause
            ));
        }
        Self::Netlink {
            doing: refusal.doing,
            cause: refusal.cause.to_string(),
        }
    }
}

/// One change and what it is for, in words.
pub(crate) struct Change {
    doing: String,
    flags: u16,
    message: RouteNetlinkMessage,
    fine: &'static [i32],
}

impl Change {
    /// `flags` are those beside REQUEST and ACK: create, exclusive, replace.
    pub(crate) fn new(doing: impl Into<String>, flags: u16, message: RouteNetlinkMessage) -> Self {
        Self {
            doing: doing.into(),
            flags,
            message,
            fine: &[],
        }
    }

    /// Errors (constants of libc) that mean there was nothing to do.
    pub(crate) fn fine(self, fine: &'static [i32]) -> Self {
        Self { fine, ..self }
    }
}

/// A connection to the kernel's rtnetlink in one namespace.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let io = |source| NetworkError::Io {
            doing: "opening a netlink socket".to_owned(),
            source,
        };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(io)?;
        socket.bind_auto().map_err(io)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Makes one change.
    pub(crate) fn change(&mut self, change: Change) -> Result<(), Refusal> {
        self.batch(vec![change])
    }

    /// Makes all the changes, in order, in as few round trips as there is room for. The kernel does not undo: on a
    /// refusal the others were still tried. Answers the first refusal.
    pub(crate) fn batch(&mut self, changes: Vec<Change>) -> Result<(), Refusal> {
        let mut first = Ok(());
        let mut changes = changes.into_iter();
        loop {
            let some: Vec<Change> = changes.by_ref().take(LARGEST_BATCH).collect();
            if some.is_empty() {
                return first;
            }
            first = first.and(self.round_trip(some));
        }
    }

    fn round_trip(&mut self, changes: Vec<Change>) -> Result<(), Refusal> {
        let mut bytes = Vec::new();
        let first = self.sequence.wrapping_add(1);
        let mut doings = Vec::with_capacity(changes.len());
        for change in changes {
            self.append(
                &mut bytes,
                change.message,
                NLM_F_REQUEST | NLM_F_ACK | change.flags,
            );
            doings.push((change.doing, change.fine));
        }
        let Some((last, _)) = doings.last() else {
            return Ok(());
        };
        self.socket
            .send(&bytes, 0)
            .map_err(|cause| Refusal::new(last, cause))?;
        let mut waiting = doings.len();
        let mut refusal: Option<Refusal> = None;
        while waiting > 0 {
            for (header, payload) in self.receive().map_err(|cause| Refusal::new(last, cause))? {
                let index = header.sequence_number.wrapping_sub(first) as usize;
                let Some((doing, fine)) = doings.get(index) else {
                    continue;
                };
                if let NetlinkPayload::Error(answer) = payload {
                    waiting -= 1;
                    let error = answer.to_io();
                    let harmless = error
                        .raw_os_error()
                        .is_some_and(|code| fine.contains(&code));
                    if answer.code.is_some() && !harmless && refusal.is_none() {
                        refusal = Some(Refusal::new(doing, error));
                    }
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// All objects that a dump request answers.
    pub(crate) fn dump(
        &mut self,
        doing: &str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        self.query(doing, request, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// The one object that a request names; its absence is a refusal (ENODEV for a link).
    pub(crate) fn get(
        &mut self,
        doing: &str,
        request: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, Refusal> {
        let mut answers = self.query(doing, request, NLM_F_REQUEST | NLM_F_ACK)?;
        answers
            .pop()
            .ok_or_else(|| Refusal::new(doing, io::Error::from_raw_os_error(libc::ENOENT)))
    }

    fn query(
        &mut self,
        doing: &str,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, request, flags);
        let refused = |cause| Refusal::new(doing, cause);
        self.socket.send(&bytes, 0).map_err(refused)?;
        let mut found = Vec::new();
        loop {
            for (header, payload) in self.receive().map_err(refused)? {
                if header.sequence_number != self.sequence {
                    continue;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(answer) if answer.code.is_none() => return Ok(found),
                    NetlinkPayload::Error(answer) => return Err(refused(answer.to_io())),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len(), 0);
        message.serialize(&mut bytes[start..]);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }

    fn receive(&self) -> io::Result<Vec<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)>> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, format!("{error}"));
        let mut messages = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(&rest)
                .map_err(malformed)?
                .length() as usize;
            messages.push(
                NetlinkMessage::deserialize(rest)
                    .map_err(malformed)?
                    .into_parts(),
            );
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

/// An address' family in netlink's terms.
pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
