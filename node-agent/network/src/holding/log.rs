//! Hears from the kernel of the packets that the rules of services have logged (nfnetlink_log).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nflog::{ConfigCmd, ConfigMode, ConfigNla, PacketNla, ULogMessage};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rustix::net::sockopt;
use tokio::net::UdpSocket;

use super::syn::{Origin, Syn};
use crate::NetworkError;
use crate::netfilter::Netfilter;

/// How much of a packet is logged: IPv4's and TCP's headers with all options that fit.
pub(crate) const LOGGED_BYTES: u32 = 128;
/// The first group that is asked for. Others are known to use small numbers.
const FIRST_GROUP: u16 = 0x6761;
/// Several agents of one network namespace have a group each.
const MOST_GROUPS: u16 = 16;
/// Room for thousands of packets that have not been read.
const RECEIVE_BUFFER: usize = 4 << 20;
/// One message, which the kernel makes no longer than a page or two.
const MESSAGE: usize = 16 << 10;
/// Messages that are read before others have their turn.
const AT_ONCE: usize = 256;

/// Listens to a group, as the only one.
#[derive(Debug)]
pub(super) struct Log {
    /// Of netlink. There is no type for it; to receive, all that is done with this one, is the same.
    socket: UdpSocket,
    group: u16,
}

impl Log {
    /// Listens in the network namespace of the calling thread, to the first group that nobody else listens to.
    pub(super) fn open() -> Result<Self, NetworkError> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for group in (FIRST_GROUP..).take(usize::from(MOST_GROUPS)) {
            match Self::listen(group) {
                Ok(log) => return Ok(log),
                Err(error) => {
                    // What the kernel says of a group that another process listens to.
                    let is_taken = error.kind() == io::ErrorKind::PermissionDenied;
                    last = error;
                    if !is_taken {
                        break;
                    }
                }
            }
        }
        Err(NetworkError::Io {
            doing: "listening to packets that rules log (does the kernel have nfnetlink_log?)"
                .to_owned(),
            source: last,
        })
    }

    fn listen(group: u16) -> io::Result<Self> {
        let mut netfilter = Netfilter::open()?;
        let settings = vec![
            ConfigNla::Cmd(ConfigCmd::Bind),
            ConfigNla::Mode(ConfigMode::new_packet(LOGGED_BYTES)),
            // Each packet is told at once.
            ConfigNla::QThresh(1),
        ];
        let family = NetfilterProtoFamily::Unspec;
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        netfilter.ask_of(family, group, ULogMessage::Config(settings), flags)?;
        let socket = std::net::UdpSocket::from(netfilter.into_socket()?);
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            group,
        })
    }

    /// Which group rules must log to.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// The next packets that can be understood; some, or none.
    pub(super) async fn next(&self) -> io::Result<Vec<Syn>> {
        self.socket.readable().await?;
        let mut message = vec![0; MESSAGE];
        let mut syns = Vec::new();
        for _ in 0..AT_ONCE {
            match self.socket.try_recv(&mut message) {
                Ok(length) => syns.extend(packets(message.get(..length).unwrap_or_default())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Some could not be kept: their clients send them again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(syns)
    }
}

/// The packets of a message from the kernel, or of several in a row.
fn packets(mut messages: &[u8]) -> Vec<Syn> {
    let mut syns = Vec::new();
    while let Ok(buffer) = NetlinkBuffer::new_checked(messages) {
        let length = buffer.length() as usize;
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(messages);
        if let Ok(NetlinkPayload::InnerMessage(message)) = message.map(|message| message.payload)
            && let NetfilterMessageInner::ULog(ULogMessage::Packet(attributes)) = message.inner
        {
            syns.extend(packet(&attributes));
        }
        messages = messages
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    syns
}

fn packet(attributes: &[PacketNla]) -> Option<Syn> {
    let mut origin = Origin::Node;
    let mut payload = None;
    for attribute in attributes {
        match attribute {
            // What the node itself sends comes in by no link.
            PacketNla::IfIndexInDev(_) => origin = Origin::Link,
            PacketNla::Payload(bytes) => payload = Some(bytes),
            _ => {}
        }
    }
    Syn::parse(payload?, origin)
}
