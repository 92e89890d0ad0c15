//! The first packet of a connection, as the kernel has logged it: read, sent once more, refused. Pure.
//!
//! What is logged was made by whoever wants to connect, and is believed only as far as it goes: a packet that is cut off,
//! fragmented, or has options or headers between IP and TCP is none that is held. Its client's own retransmissions are
//! all that happens to it.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader};

/// Of packets that are made here, in hops.
const HOPS: u8 = 64;

/// The first packet of a connection of TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Syn {
    ip: Ip,
    tcp: TcpHeader,
    origin: Origin,
}

/// Who has sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A process in the node's own network namespace.
    Node,
    /// Somebody behind a link: a pod, or a stranger.
    Link,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ip {
    V4(Ipv4Header),
    V6(Ipv6Header),
}

/// What tells one connection from another: the client's end and the other one.
pub(super) type Ends = (SocketAddr, SocketAddr);

impl Syn {
    /// Reads a packet that begins with IP's header, and may be cut off behind TCP's.
    pub(super) fn parse(packet: &[u8], origin: Origin) -> Option<Self> {
        let (ip, rest) = match packet.first()? >> 4 {
            4 => {
                let (header, rest) = Ipv4Header::from_slice(packet).ok()?;
                let plain = header.protocol == IpNumber::TCP
                    && header.options.is_empty()
                    && !header.is_fragmenting_payload();
                plain.then_some((Ip::V4(header), rest))?
            }
            6 => {
                let (header, rest) = Ipv6Header::from_slice(packet).ok()?;
                let plain = header.next_header == IpNumber::TCP;
                plain.then_some((Ip::V6(header), rest))?
            }
            _ => return None,
        };
        let (tcp, _) = TcpHeader::from_slice(rest).ok()?;
        let first = tcp.syn && !tcp.ack && !tcp.rst && !tcp.fin;
        first.then_some(Self { ip, tcp, origin })
    }

    pub(super) fn ends(&self) -> Ends {
        let (from, to) = match &self.ip {
            Ip::V4(ip) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
            Ip::V6(ip) => (IpAddr::from(ip.source), IpAddr::from(ip.destination)),
        };
        let from = SocketAddr::new(from, self.tcp.source_port);
        (from, SocketAddr::new(to, self.tcp.destination_port))
    }

    pub(super) fn client(&self) -> IpAddr {
        self.ends().0.ip()
    }

    pub(super) fn origin(&self) -> Origin {
        self.origin
    }

    /// The packet, as its client has sent it but for data, which the client sends again when its connection is there.
    pub(super) fn again(&self) -> Vec<u8> {
        packet(self.ip.clone(), self.tcp.clone())
    }

    /// The answer that its client gets of a port where nobody listens (RFC 9293, section 3.10.7.1).
    pub(super) fn refusal(&self) -> Vec<u8> {
        let ip = match &self.ip {
            Ip::V4(ip) => Ip::V4(Ipv4Header {
                dont_fragment: true,
                time_to_live: HOPS,
                protocol: IpNumber::TCP,
                source: ip.destination,
                destination: ip.source,
                ..Ipv4Header::default()
            }),
            Ip::V6(ip) => Ip::V6(Ipv6Header {
                hop_limit: HOPS,
                next_header: IpNumber::TCP,
                source: ip.destination,
                destination: ip.source,
                ..Ipv6Header::default()
            }),
        };
        let (from, to) = (self.tcp.destination_port, self.tcp.source_port);
        let mut tcp = TcpHeader::new(from, to, 0, 0);
        (tcp.rst, tcp.ack) = (true, true);
        tcp.acknowledgment_number = self.tcp.sequence_number.wrapping_add(1);
        packet(ip, tcp)
    }
}

/// Headers as bytes, with their lengths and checksums: the kernel may have left those that it logged to a network card.
fn packet(ip: Ip, mut tcp: TcpHeader) -> Vec<u8> {
    // Two headers fit, whatever they are.
    let length = tcp.header_len_u16();
    match ip {
        Ip::V4(mut ip) => {
            ip.total_len = Ipv4Header::MIN_LEN_U16 + length;
            ip.header_checksum = ip.calc_header_checksum();
            tcp.checksum = tcp
                .calc_checksum_ipv4_raw(ip.source, ip.destination, &[])
                .unwrap_or_default();
            [ip.to_bytes().as_slice(), &tcp.to_bytes()].concat()
        }
        Ip::V6(mut ip) => {
            ip.payload_length = length;
            tcp.checksum = tcp
                .calc_checksum_ipv6_raw(ip.source, ip.destination, &[])
                .unwrap_or_default();
            [ip.to_bytes().as_slice(), &tcp.to_bytes()].concat()
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use etherparse::{PacketBuilder, TcpOptionElement};
    use proptest::prelude::*;

    use super::*;

    /// What a client with this address and port sends.
    pub(crate) fn syn(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
        let builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            }
            _ => panic!("{from} and {to} are of two families"),
        };
        let options = [
            TcpOptionElement::MaximumSegmentSize(1410),
            TcpOptionElement::SelectiveAcknowledgementPermitted,
            TcpOptionElement::Timestamp(7, 0),
            TcpOptionElement::WindowScale(7),
        ];
        let mut packet = Vec::new();
        builder
            .tcp(from.port(), to.port(), sequence, 64240)
            .syn()
            .options(&options)
            .unwrap()
            .write(&mut packet, &[])
            .unwrap();
        packet
    }

    fn both() -> [Vec<u8>; 2] {
        [
            syn(
                "10.244.1.7:40000".parse().unwrap(),
                "10.96.0.1:80".parse().unwrap(),
                1000,
            ),
            syn(
                "[fd10:244::7]:40000".parse().unwrap(),
                "[fd10:96::1]:80".parse().unwrap(),
                1000,
            ),
        ]
    }

    #[test]
    fn what_is_sent_again_is_what_was_sent_with_its_checksum() {
        for sent in both() {
            let mut logged = sent.clone();
            // As offload leaves it.
            let checksum = logged.len() - 40 + 16;
            logged[checksum..checksum + 2].copy_from_slice(&[0xde, 0xad]);
            let syn = Syn::parse(&logged, Origin::Link).unwrap();
            assert_eq!(syn.again(), sent);
            assert_eq!(syn.client().is_ipv4(), sent[0] >> 4 == 4);
        }
    }

    #[test]
    fn data_behind_the_header_is_not_sent_again() {
        let [sent, _] = both();
        let mut builder = Ipv4Header::from_slice(&sent).unwrap().0;
        builder.set_payload_len(sent.len() - 20 + 1000).unwrap();
        let logged = [builder.to_bytes().as_slice(), &sent[20..], &[7; 60]].concat();
        let syn = Syn::parse(&logged[..sent.len() + 30], Origin::Link).unwrap();
        assert_eq!(syn.again(), sent);
    }

    #[test]
    fn a_refusal_acknowledges_the_packet_and_comes_from_where_it_went() {
        for sent in both() {
            let refusal = Syn::parse(&sent, Origin::Link).unwrap().refusal();
            let headers = etherparse::PacketHeaders::from_ip_slice(&refusal).unwrap();
            let Some(etherparse::TransportHeader::Tcp(tcp)) = headers.transport else {
                panic!("{headers:?}")
            };
            assert!(tcp.rst && tcp.ack && !tcp.syn);
            assert_eq!((tcp.source_port, tcp.destination_port), (80, 40000));
            assert_eq!((tcp.sequence_number, tcp.acknowledgment_number), (0, 1001));
            let (ours, theirs) = match headers.net.unwrap() {
                etherparse::NetHeaders::Ipv4(ip, _) => (
                    tcp.calc_checksum_ipv4(&ip, &[]).unwrap(),
                    IpAddr::from(ip.destination),
                ),
                etherparse::NetHeaders::Ipv6(ip, _) => (
                    tcp.calc_checksum_ipv6(&ip, &[]).unwrap(),
                    IpAddr::from(ip.destination),
                ),
                other => panic!("{other:?}"),
            };
            assert_eq!(tcp.checksum, ours);
            assert_eq!(theirs, Syn::parse(&sent, Origin::Link).unwrap().client());
        }
    }

    #[test]
    fn what_is_odd_is_not_held() {
        let [sent, sent6] = both();
        let parse = |packet: &[u8]| Syn::parse(packet, Origin::Link);
        for length in 0..sent.len() {
            assert_eq!(parse(&sent[..length]), None, "cut off at {length}");
        }
        for length in 0..sent6.len() {
            assert_eq!(parse(&sent6[..length]), None, "cut off at {length}");
        }
        let changed = |at: usize, value: u8| {
            let mut packet = sent.clone();
            packet[at] = value;
            parse(&packet)
        };
        assert!(changed(1, 0x10).is_some(), "a type of service");
        assert_eq!(changed(6, 0x20), None, "more fragments follow");
        assert_eq!(changed(7, 0x01), None, "a later fragment");
        assert_eq!(changed(9, 17), None, "not TCP");
        assert_eq!(changed(0, 0x46), None, "options of IP");
        assert_eq!(changed(0, 0x54), None, "no version that there is");
        assert_eq!(changed(20 + 13, 0x12), None, "SYN and ACK");
        assert_eq!(changed(20 + 13, 0x10), None, "ACK");
        assert_eq!(changed(20 + 12, 0x40), None, "a header too short");
        assert_eq!(changed(20 + 12, 0xf0), None, "a header longer than it is");
        // Hop-by-hop options, a fragment's header.
        for between in [0, 43, 44, 60] {
            let mut packet = sent6.clone();
            packet[6] = between;
            assert_eq!(parse(&packet), None, "next header {between}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_logged_does_harm(
            start in 0usize..2,
            changes in proptest::collection::vec((0usize..80, any::<u8>()), 0..12),
            rest in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut packet = both()[start].clone();
            packet.extend(rest);
            for (at, value) in changes {
                if let Some(byte) = packet.get_mut(at) {
                    *byte = value;
                }
            }
            packet.truncate(128);
            if let Some(syn) = Syn::parse(&packet, Origin::Link) {
                let again = syn.again();
                prop_assert!(again.len() <= 100, "two headers without options of IP");
                let read = Syn::parse(&again, Origin::Link).unwrap();
                prop_assert_eq!(read.ends(), syn.ends());
                prop_assert_eq!(syn.refusal().len(), again.len() - usize::from(syn.tcp.header_len_u16()) + 20);
            }
        }
    }
}
