//! Frames as an attacker writes them, byte by byte, and sockets that send and see them.

pub(crate) mod claims;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind, recv,
    send, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::lab::{DEADLINE, inside};

pub(crate) type Mac = [u8; 6];

/// Where datagrams of a test go.
pub(crate) const PORT: u16 = 9999;
pub(crate) const BROADCAST: Mac = [0xff; 6];
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

/// The hardware address that an address' owner has.
pub(crate) fn mac_of(ip: Ipv4Addr) -> Mac {
    let [a, b, c, d] = ip.octets();
    [0x02, 0x67, a, b, c, d]
}

pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.map(u16::from);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        (a ^ 2) << 8 | b,
        c << 8 | 0xff,
        0xfe00 | d,
        e << 8 | f,
    )
}

pub(crate) fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The same with a tag of VLANs: `tag` is 0x8100 or 0x88a8.
pub(crate) fn tagged(tag: u16, vlan: u16, frame: &[u8]) -> Vec<u8> {
    [
        &frame[..12],
        &tag.to_be_bytes(),
        &vlan.to_be_bytes(),
        &frame[12..],
    ]
    .concat()
}

fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut total: u32 = words.sum();
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

pub(crate) fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    // No checksum, as IPv4 allows.
    [
        &PORT.to_be_bytes()[..],
        &port.to_be_bytes(),
        &length.to_be_bytes(),
        &[0, 0],
        payload,
    ]
    .concat()
}

pub(crate) fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header = [
        &[0x45, 0][..],
        &length.to_be_bytes(),
        &[0, 7],
        &fragment.to_be_bytes(),
        &[64, protocol, 0, 0],
        &from.octets(),
        &to.octets(),
    ]
    .concat();
    let sum = sum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

/// An Ethernet frame with a datagram that says `mark`.
pub(crate) fn datagram4(to: (Mac, Ipv4Addr), from: (Mac, Ipv4Addr), mark: &str) -> Vec<u8> {
    let packet = ipv4(from.1, to.1, 17, 0, &udp(PORT, mark.as_bytes()));
    ethernet(to.0, from.0, IPV4, &packet)
}

/// What an ARP message says: `operation` 1 asks, 2 answers.
pub(crate) fn arp(
    to: Mac,
    from: Mac,
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: Ipv4Addr,
) -> Vec<u8> {
    let message = [
        &[0, 1, 8, 0, 6, 4][..],
        &operation.to_be_bytes(),
        &sender.0,
        &sender.1.octets(),
        &to,
        &target.octets(),
    ]
    .concat();
    ethernet(to, from, ARP, &message)
}

pub(crate) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16;
    [
        &[0x60, 0, 0, 0][..],
        &length.to_be_bytes(),
        &[next, 255],
        &from.octets(),
        &to.octets(),
        payload,
    ]
    .concat()
}

pub(crate) fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0][..], body].concat();
    let length = (message.len() as u32).to_be_bytes();
    let sum = sum(&[
        &from.octets(),
        &to.octets(),
        &length,
        &[0, 0, 0, 58],
        &message,
    ]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The body of a neighbour solicitation or advertisement about `target` with an option.
pub(crate) fn neighbour(target: Ipv6Addr, option: &[u8]) -> Vec<u8> {
    [&[0x60, 0, 0, 0][..], &target.octets(), option].concat()
}

/// Option 1 is the sender's, 2 the target's hardware address.
pub(crate) fn option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

pub(crate) fn frame6(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    ethernet(to, from, IPV6, packet)
}

fn packet_socket(link: &str, protocol: Option<SockProtocol>) -> OwnedFd {
    let kind = SockFlag::SOCK_CLOEXEC;
    let socket = match protocol {
        Some(protocol) => socket(AddressFamily::Packet, SockType::Raw, kind, protocol),
        None => socket(AddressFamily::Packet, SockType::Raw, kind, None),
    }
    .expect("a packet socket");
    bind(socket.as_raw_fd(), &link_address(link)).expect("binding to a link");
    socket
}

fn link_address(link: &str) -> LinkAddr {
    let found = getifaddrs().expect("listing links").find_map(|one| {
        let address = one.address.filter(|_| one.interface_name == link)?;
        let address = *address.as_link_addr()?;
        (address.family() == Some(AddressFamily::Packet)).then_some(address)
    });
    found.expect("the link's address")
}

/// Sends frames by a pod's link, as they are.
pub(crate) fn send_frames(netns: &File, frames: &[Vec<u8>]) {
    inside(netns, || {
        let socket = packet_socket("eth0", None);
        for frame in frames {
            send(socket.as_raw_fd(), frame, MsgFlags::empty()).expect("sending a frame");
        }
    });
}

/// Sees every frame that reaches a link.
pub(crate) struct Watcher {
    packets: OwnedFd,
    datagrams: UdpSocket,
}

impl Watcher {
    /// On a link of the calling thread's namespace, and what comes to the namespace's port by any link.
    pub(crate) fn new(link: &str) -> Self {
        let packets = packet_socket(link, Some(SockProtocol::EthAll));
        let soon = TimeVal::new(0, 100_000);
        setsockopt(&packets, ReceiveTimeout, &soon).expect("a timeout");
        let datagrams = UdpSocket::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), PORT)).expect("a port");
        datagrams
            .set_nonblocking(true)
            .expect("a socket that does not block");
        Self { packets, datagrams }
    }

    /// Marks (`<like this>`) of frames that have come, once that of the last one has.
    pub(crate) fn seen_until(&self, last: &str) -> BTreeSet<String> {
        let (mut seen, end) = (BTreeSet::new(), Instant::now() + DEADLINE);
        let mut buffer = vec![0; 1 << 16];
        while !seen.contains(last) {
            assert!(Instant::now() < end, "{last} has not come: {seen:?}");
            if let Ok(length) = recv(self.packets.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                seen.extend(mark(&buffer[..length]));
            }
        }
        // What a frame has led to was done before the next frame was looked at.
        let end = Instant::now() + Duration::from_millis(50);
        while Instant::now() < end {
            if let Ok(length) = self.datagrams.recv(&mut buffer) {
                seen.extend(mark(&buffer[..length]));
            }
        }
        seen
    }
}

fn mark(bytes: &[u8]) -> Option<String> {
    // Headers may have such octets as well, before the mark.
    let start = bytes.iter().rposition(|byte| *byte == b'<')?;
    let end = bytes[start..].iter().position(|byte| *byte == b'>')?;
    let mark = String::from_utf8(bytes[start..=start + end].to_vec()).ok()?;
    mark.is_ascii().then_some(mark)
}
