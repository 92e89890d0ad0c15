//! Many packets in one system call.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, RawFd};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg};
use rustix::net::addr::SocketAddrArg;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

/// Packets in one call.
const MOST: usize = 32;
/// Octets of a request: a longer one is cut, and then refused as one that cannot be read.
const LONGEST: usize = 4096;

/// Room for packets, and those that came last.
#[derive(Debug)]
pub(crate) struct Batch {
    buffers: Vec<Vec<u8>>,
    received: Vec<(usize, Option<SocketAddr>)>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            buffers: vec![vec![0; LONGEST]; MOST],
            received: Vec::with_capacity(MOST),
        }
    }
}

impl Batch {
    /// Takes what has come, in place of what came before. Never waits.
    pub(crate) fn receive(&mut self, socket: RawFd) -> io::Result<()> {
        self.received.clear();
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(MOST, None);
        let buffers = self.buffers.iter_mut();
        let mut slices: Vec<_> = buffers.map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let packets = recvmmsg(
            socket,
            &mut headers,
            slices.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        let packets = packets.map(|packet| (packet.bytes, packet.address.and_then(|a| peer(&a))));
        self.received.extend(packets);
        Ok(())
    }

    /// What came last, and from whom.
    pub(crate) fn packets(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let packets = self.received.iter().zip(&self.buffers);
        packets.filter_map(|((length, peer), buffer)| Some((buffer.get(..*length)?, (*peer)?)))
    }
}

/// Sends the first of some packets, and answers how many. Never waits.
pub(crate) fn send(socket: impl AsFd, packets: &[(Vec<u8>, SocketAddr)]) -> io::Result<usize> {
    let packets = &packets[..packets.len().min(MOST)];
    let peers: Vec<_> = packets.iter().map(|(_, peer)| peer.as_any()).collect();
    let slices: Vec<_> = packets
        .iter()
        .map(|(bytes, _)| [IoSlice::new(bytes)])
        .collect();
    let mut controls: Vec<_> = packets
        .iter()
        .map(|_| SendAncillaryBuffer::default())
        .collect();
    let mut headers: Vec<_> = peers
        .iter()
        .zip(&slices)
        .zip(&mut controls)
        .map(|((peer, slice), control)| MMsgHdr::new_with_addr(peer, slice, control))
        .collect();
    Ok(sendmmsg(socket, &mut headers, SendFlags::DONTWAIT)?)
}

fn peer(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6();
        v6.map(|v6| SocketAddrV6::from(*v6).into())
    })
}
