//! Which addresses may be asked. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// What a question of one namespace may be sent to: anything but what is special to the machine that asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Addresses of the control plane itself.
    pub servers: BTreeSet<IpAddr>,
    /// What an administrator has allowed the namespace nevertheless.
    pub allowed: Vec<IpNet>,
}

impl Guard {
    /// Why an address may not be asked.
    pub(crate) fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        if self.allows(address) {
            return None;
        }
        let meant = meant(address);
        if self.servers.contains(&meant) {
            return Some("an address of the control plane");
        }
        special(meant)
    }

    /// Whether an administrator has allowed it.
    pub(crate) fn allows(&self, address: IpAddr) -> bool {
        let allowed = |of: IpAddr| self.allowed.iter().any(|range| range.contains(&of));
        allowed(meant(address)) || allowed(address)
    }
}

/// The IPv4 address that one of IPv6 stands for, if it does.
fn meant(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    match v6.segments() {
        // Mapped, and compatible, which ::1 and :: are not.
        [0, 0, 0, 0, 0, 0xffff, _, _] => v4(v6),
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => v4(v6),
        // Translated by a network (NAT64, well-known and local; SIIT).
        [0x64, 0xff9b, 0, 0, 0, 0, _, _]
        | [0x64, 0xff9b, 1, _, _, _, _, _]
        | [0, 0, 0, 0, 0xffff, 0, _, _] => v4(v6),
        // Wrapped into IPv4 (6to4).
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address,
    }
}

/// Its last four bytes.
fn v4(v6: Ipv6Addr) -> IpAddr {
    let [.., a, b, c, d] = v6.octets();
    Ipv4Addr::new(a, b, c, d).into()
}

/// Where clouds tell a machine its credentials, where that is no link-local address: Amazon's by IPv6, Azure's, Alibaba's.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
];

/// What is another thing on each machine, or no machine at all.
fn special(address: IpAddr) -> Option<&'static str> {
    if METADATA.contains(&address) {
        return Some("a cloud's address of what it tells machines");
    }
    if address.is_loopback() {
        return Some("a loopback address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        // 0.0.0.0/8 is this machine.
        IpAddr::V4(v4) if matches!(v4.octets(), [0, ..]) => Some("an unspecified address"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("a broadcast address"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("an unspecified address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allowed: &[&str]) -> Guard {
        Guard {
            servers: [IpAddr::from([192, 0, 2, 1])].into(),
            allowed: allowed
                .iter()
                .map(|range| range.parse().expect("a range"))
                .collect(),
        }
    }

    #[test]
    fn what_only_the_machine_itself_reaches_is_refused() {
        let guard = guard(&[]);
        for (address, why) in [
            ("127.0.0.1", "loopback"),
            ("127.9.9.9", "loopback"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::127.0.0.1", "loopback"),
            ("64:ff9b::7f00:1", "loopback"),
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("::", "unspecified"),
            ("169.254.169.254", "link-local"),
            ("::ffff:169.254.169.254", "link-local"),
            ("64:ff9b::a9fe:a9fe", "link-local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("224.0.0.1", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("64:ff9b:1::7f00:1", "loopback"),
            ("::ffff:0:127.0.0.1", "loopback"),
            ("2002:7f00:1::1", "loopback"),
            ("fd00:ec2::254", "cloud"),
            ("168.63.129.16", "cloud"),
            ("::ffff:100.100.100.200", "cloud"),
            ("192.0.2.1", "control plane"),
            ("::ffff:192.0.2.1", "control plane"),
        ] {
            let refusal = guard.refusal(address.parse().expect("an address"));
            assert!(
                refusal.is_some_and(|said| said.contains(why)),
                "{address}: {refusal:?}"
            );
        }
        for address in ["192.0.2.2", "10.0.0.1", "2001:db8::1", "fd00::1", "1.1.1.1"] {
            let address = address.parse().expect("an address");
            assert_eq!(guard.refusal(address), None, "{address}");
        }
    }

    #[test]
    fn an_administrator_allows_more() {
        let guard = guard(&["127.0.0.0/8", "192.0.2.1/32", "fe80::/10"]);
        for address in ["127.0.0.1", "::ffff:127.0.0.1", "192.0.2.1", "fe80::1"] {
            let address = address.parse().expect("an address");
            assert_eq!(guard.refusal(address), None, "{address}");
        }
        let other = "169.254.1.1".parse().expect("an address");
        assert!(guard.refusal(other).is_some());
    }
}
