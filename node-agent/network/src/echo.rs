//! Signs of life of other nodes, on the way that the packets of pods take: the real [`PeerEcho`].
//!
//! An ICMP echo goes from this node's gateway address to the gateway address of the other node's pods. Both are of pod
//! CIDRs, so that request and answer are led by the same routes as packets of pods: as they are, or in VXLAN. An answer
//! therefore says that both ways are open, which no look at routes, devices or the nodes' own addresses can.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, socket_with};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::names::gateway_of;
use crate::{NetworkError, NodeNetwork, PeerEcho};

/// Of ICMP, RFC 792.
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// Speaks from the gateway address of this node's pods.
#[derive(Debug)]
pub struct GatewayEcho {
    own: Ipv4Addr,
    /// Tells the answer to one question from that to another.
    sequence: AtomicU16,
}

impl GatewayEcho {
    /// For the node with these pods. Touches nothing.
    pub fn new(node: &NodeNetwork) -> Self {
        Self {
            own: gateway_of(node.pod_cidr),
            sequence: AtomicU16::new(0),
        }
    }

    /// A socket that hears only what `peer` sends to our gateway address; none when no route leads there.
    fn socket(&self, peer: Ipv4Addr) -> Result<Option<UdpSocket>, NetworkError> {
        let failed = |source: io::Error| NetworkError::Io {
            doing: format!("opening a socket for ICMP at {}", self.own),
            source,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(ipproto::ICMP);
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, flags, protocol)
            .map_err(|error| failed(error.into()))?;
        bind(&socket, &SocketAddrV4::new(self.own, 0)).map_err(|error| failed(error.into()))?;
        if connect(&socket, &SocketAddrV4::new(peer, 0)).is_err() {
            return Ok(None);
        }
        // There is no type for raw sockets; to send and to receive, all that is done with this one, are the same.
        let socket = std::net::UdpSocket::from(socket);
        UdpSocket::from_std(socket).map(Some).map_err(failed)
    }
}

#[async_trait]
impl PeerEcho for GatewayEcho {
    async fn answers(&self, pod_cidr: Ipv4Net, within: Duration) -> Result<bool, NetworkError> {
        let peer = gateway_of(pod_cidr);
        let Some(socket) = self.socket(peer)? else {
            return Ok(false);
        };
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let identifier = std::process::id().to_be_bytes();
        let question = Echo {
            identifier: [identifier[2], identifier[3]],
            sequence,
        };
        // What the kernel refuses to send, for want of a route or by a rule, is not answered either.
        if socket.send(&question.request()).await.is_err() {
            return Ok(false);
        }
        Ok(timeout(within, heard(&socket, question)).await.is_ok())
    }
}

/// Returns when the answer to a question has come. A router's word that something did not arrive is an error of the
/// socket, and what is only late may come after it: the time limit decides.
async fn heard(socket: &UdpSocket, question: Echo) {
    let mut buffer = [0; 256];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) if question.is_answered_by(&buffer[..length]) => return,
            _ => tokio::task::yield_now().await,
        }
    }
}

/// What tells one question from others.
#[derive(Clone, Copy, Debug)]
struct Echo {
    identifier: [u8; 2],
    sequence: u16,
}

impl Echo {
    fn request(self) -> [u8; HEADER] {
        let ([a, b], [c, d]) = (self.identifier, self.sequence.to_be_bytes());
        let mut packet = [ECHO_REQUEST, 0, 0, 0, a, b, c, d];
        let [high, low] = checksum(&packet).to_be_bytes();
        (packet[2], packet[3]) = (high, low);
        packet
    }

    /// Whether a packet, IPv4's header included, is the answer.
    fn is_answered_by(self, packet: &[u8]) -> bool {
        let header = packet
            .first()
            .map_or(0, |first| usize::from(first & 15) * 4);
        let Some([ECHO_REPLY, 0, _, _, a, b, c, d, ..]) = packet.get(header..) else {
            return false;
        };
        [*a, *b] == self.identifier && [*c, *d] == self.sequence.to_be_bytes()
    }
}

/// The internet checksum of RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_adds_up_and_only_its_own_answer_counts() {
        let question = Echo {
            identifier: [0x12, 0x34],
            sequence: 7,
        };
        let request = question.request();
        assert_eq!(request[..2], [8, 0]);
        assert_eq!(checksum(&request), 0, "the sum over all is zero");

        let packet = |kind: u8, identifier: u8, sequence: u8| {
            let mut packet = vec![0x46; 24];
            packet.extend([kind, 0, 0, 0, 0x12, identifier, 0, sequence, 1, 2, 3]);
            packet
        };
        assert!(question.is_answered_by(&packet(0, 0x34, 7)));
        for other in [
            packet(8, 0x34, 7),
            packet(0, 0x35, 7),
            packet(0, 0x34, 6),
            packet(0, 0x34, 7)[..30].to_vec(),
            Vec::new(),
        ] {
            assert!(!question.is_answered_by(&other), "{other:?}");
        }
    }
}
