//! What processes of the host listen on, as the kernel lists it in the calling thread's network namespace.
//!
//! Ports of the host that pods or services take are translated before any process sees their packets: who listens there
//! would be cut off. Of TCP, sockets that listen are meant; of UDP, those that take packets from anybody. SCTP is taken as
//! free: hardly a kernel lists it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};

use async_trait::async_trait;
use rtnetlink::packet_route::AddressFamily;

use crate::blocking::blocking;
use crate::netlink::Netlink;
use crate::{HostPort, Listeners, LocalPort, NetworkError, Protocol, links};

const TABLES: &str = "/proc/thread-self/net";
/// The kernel's numbers of states (`enum tcp_state`), which UDP borrows.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

/// The host's own: the real [`Listeners`].
#[derive(Clone, Copy, Debug, Default)]
pub struct HostListeners;

#[async_trait]
impl Listeners for HostListeners {
    async fn held(&self, ports: BTreeSet<LocalPort>) -> Result<BTreeSet<LocalPort>, NetworkError> {
        blocking(move || held(ports)).await
    }
}

/// Those of the ports that a process listens on. Reads nothing for addresses that are not the host's.
fn held(mut ports: BTreeSet<LocalPort>) -> Result<BTreeSet<LocalPort>, NetworkError> {
    let own = own_addresses(&ports)?;
    ports.retain(|port| port.address.is_none_or(|address| is_own(address, &own)));
    let mut listening = BTreeMap::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        if ports.iter().any(|port| port.protocol == protocol) {
            listening.insert(protocol, all(protocol)?);
        }
    }
    ports.retain(|port| {
        let sockets = listening.get(&port.protocol);
        sockets.is_some_and(|sockets| is_held(port, sockets))
    });
    Ok(ports)
}

/// The first of pods' ports that a process listens on.
pub(crate) fn first_held<'a>(
    mut ports: impl Iterator<Item = &'a HostPort> + Clone,
) -> Result<Option<&'a HostPort>, NetworkError> {
    let local = |port: &HostPort| LocalPort {
        protocol: port.protocol,
        address: port.host_ip,
        port: port.host_port,
    };
    let held = held(ports.clone().map(local).collect())?;
    Ok(ports.find(|port| held.contains(&local(port))))
}

/// The host's addresses, of the families that ports are named of.
fn own_addresses(ports: &BTreeSet<LocalPort>) -> Result<BTreeSet<IpAddr>, NetworkError> {
    let mut own = BTreeSet::new();
    let named: BTreeSet<bool> = ports
        .iter()
        .filter_map(|port| Some(port.address?.is_ipv6()))
        .collect();
    for v6 in named {
        let family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        let addresses = links::addresses(&mut Netlink::open()?, family)?;
        own.extend(addresses.into_iter().map(|(_, net)| net.addr()));
    }
    Ok(own)
}

/// All of 127.0.0.0/8 is the host's.
pub(crate) fn is_own(address: IpAddr, own: &BTreeSet<IpAddr>) -> bool {
    address.is_loopback() || own.contains(&address)
}

/// Sockets by port and address, with the inode by which a process that has one is found.
pub(crate) type Sockets = BTreeMap<(u16, IpAddr), u64>;

/// The inodes of the sockets that take what comes to a port, at whichever address.
pub fn listening(protocol: Protocol, port: u16) -> Result<BTreeSet<u64>, NetworkError> {
    let sockets = all(protocol)?;
    let on_port = sockets.iter().filter(|((number, _), _)| *number == port);
    Ok(on_port.map(|(_, inode)| *inode).collect())
}

/// Whether one of a protocol's sockets has the port.
pub(crate) fn is_held(port: &LocalPort, sockets: &Sockets) -> bool {
    let first = (port.port, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut listeners = sockets
        .range(first..)
        .take_while(|((number, _), _)| *number == port.port)
        .map(|((_, address), _)| *address);
    let Some(wanted) = port.address else {
        return listeners.next().is_some();
    };
    // A socket of all IPv6 addresses takes IPv4 as well, unless it was told not to, which is not listed.
    let everywhere = |at: IpAddr| at.is_unspecified() && (at.is_ipv6() || wanted.is_ipv4());
    listeners.any(|at| at == wanted || everywhere(at))
}

fn all(protocol: Protocol) -> Result<Sockets, NetworkError> {
    let mut sockets = Sockets::new();
    for family in ["", "6"] {
        let path = format!("{TABLES}/{}{family}", protocol.word());
        let read = File::open(&path).and_then(|file| read(BufReader::new(file), protocol));
        match read {
            Ok(found) => sockets.extend(found),
            // A kernel without IPv6.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => {
                return Err(NetworkError::Io {
                    doing: format!("reading {path}"),
                    source,
                });
            }
        }
    }
    Ok(sockets)
}

/// The sockets of one of the kernel's tables. Those of TCP that listen come first: the rest is not read.
fn read(table: impl BufRead, protocol: Protocol) -> io::Result<Sockets> {
    let mut sockets = Sockets::new();
    for line in table.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        match (protocol, state) {
            (Protocol::Tcp, Some(LISTEN)) | (Protocol::Udp, Some(UNCONNECTED)) => {}
            (Protocol::Tcp, _) => break,
            _ => continue,
        }
        let socket = local.and_then(socket);
        let inode = fields.nth(5).and_then(|inode| inode.parse().ok());
        let (socket, inode) = socket
            .zip(inode)
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("the line {line:?}")))?;
        sockets.insert(socket, inode);
    }
    Ok(sockets)
}

/// An address, its words of 32 bits as the machine has them in memory, and a port: `0100007F:0016`.
fn socket(text: &str) -> Option<(u16, IpAddr)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    if !address.is_ascii() || address.len() % 8 != 0 {
        return None;
    }
    let mut bytes = Vec::new();
    for start in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(&address[start..start + 8], 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => IpAddr::from(bytes),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
    };
    // An IPv6 socket may have an IPv4 address.
    Some((port, address.to_canonical()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: Option<&str>, port: u16) -> LocalPort {
        LocalPort {
            protocol: Protocol::Tcp,
            address: address.map(|address| address.parse().unwrap()),
            port,
        }
    }

    /// As the kernel of a little-endian machine writes it, with words swapped where this one is not.
    fn words(address: &str) -> String {
        let octets = match address.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let words = octets.chunks(4).map(|word| {
            let word = u32::from_ne_bytes(word.try_into().unwrap());
            format!("{word:08X}")
        });
        words.collect()
    }

    fn line(local: &str, port: u16, state: &str) -> String {
        let local = words(local);
        format!(
            "   0: {local}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 4242 1 f 1\n"
        )
    }

    fn table(protocol: Protocol, lines: &[String]) -> Sockets {
        let text = format!("  sl  local_address rem_address   st\n{}", lines.concat());
        read(text.as_bytes(), protocol).unwrap()
    }

    #[test]
    fn sockets_that_listen_hold_their_address_or_all_of_them() {
        let sockets = table(
            Protocol::Tcp,
            &[
                line("0.0.0.0", 22, "0A"),
                line("192.0.2.1", 80, "0A"),
                line("127.0.0.1", 81, "0A"),
                line("::", 443, "0A"),
                line("::ffff:192.0.2.1", 444, "0A"),
                line("192.0.2.1", 8080, "01"),
            ],
        );
        for (address, number, held) in [
            (Some("192.0.2.1"), 22, true),
            (Some("2001:db8::1"), 22, false),
            (Some("192.0.2.1"), 80, true),
            (Some("192.0.2.7"), 80, false),
            (Some("192.0.2.1"), 81, false),
            (None, 81, true),
            (Some("192.0.2.1"), 443, true),
            (Some("2001:db8::1"), 443, true),
            (Some("192.0.2.1"), 444, true),
            (Some("192.0.2.1"), 8080, false),
            (None, 8080, false),
            (None, 23, false),
        ] {
            let port = port(address, number);
            assert_eq!(is_held(&port, &sockets), held, "{port:?}");
        }
    }

    #[test]
    fn of_udp_all_that_are_not_connected_count() {
        let sockets = table(
            Protocol::Udp,
            &[line("192.0.2.1", 5000, "01"), line("0.0.0.0", 53, "07")],
        );
        assert_eq!(sockets, Sockets::from([((53, [0, 0, 0, 0].into()), 4242)]));
    }

    #[test]
    fn a_table_that_is_not_understood_is_an_error() {
        let text = "  sl\n   0: zz:0016 00000000:0000 0A\n";
        let error = read(text.as_bytes(), Protocol::Tcp).unwrap_err();
        assert!(error.to_string().contains("zz:0016"), "{error}");
    }
}
