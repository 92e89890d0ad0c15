//! Addresses as fields: what may be an endpoint, a pod CIDR, a service's address.

use std::net::{AddrParseError, IpAddr};

use crate::field::{ErrorList, Path};
use crate::names;

const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Refuses what is not an address.
pub(super) fn check(address: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(detail) = names::is_ip_address(address) {
        errors.invalid(path, address, &detail);
    }
}

/// Refuses what is not a network.
pub(super) fn check_cidr(network: &str, path: &Path, errors: &mut ErrorList) {
    if network.parse::<ipnet::IpNet>().is_err() {
        errors.invalid(path, network, BAD_CIDR);
    }
}

/// Refuses what is not a network, or is written with bits beyond its mask: which of two networks was meant?
pub(super) fn check_network(network: &str, path: &Path, errors: &mut ErrorList) {
    match network.parse::<ipnet::IpNet>() {
        Err(_) => errors.invalid(path, network, BAD_CIDR),
        Ok(parsed) if parsed.addr() != parsed.network() => {
            let detail = "must not have bits set beyond the prefix length";
            errors.invalid(path, network, detail);
        }
        Ok(parsed) if parsed.to_string() != network => {
            let detail = format!("must be in canonical form (\"{parsed}\")");
            errors.invalid(path, network, &detail);
        }
        Ok(_) => {}
    }
}

/// The address that a text means, however it is spelled: `::ffff:127.0.0.1` leads to where `127.0.0.1` does.
fn meant(text: &str) -> Result<IpAddr, AddrParseError> {
    text.parse().map(|parsed: IpAddr| parsed.to_canonical())
}

/// Refuses addresses that name no machine of their own, and so could turn a service's clients against their own
/// host: the unspecified one, loopback and link-local ones.
pub(super) fn check_ordinary(address: &str, path: &Path, errors: &mut ErrorList) {
    match meant(address) {
        Err(_) => errors.invalid(path, address, "must be a valid IP address"),
        Ok(parsed) if parsed.is_loopback() => {
            let detail = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
            errors.invalid(path, address, detail);
        }
        Ok(_) => check_not_link_local(address, path, errors),
    }
}

/// Refuses the unspecified address and link-local ones; what is no address at all was refused before.
fn check_not_link_local(address: &str, path: &Path, errors: &mut ErrorList) {
    let Ok(parsed) = meant(address) else {
        return;
    };
    let (link_local, multicast) = match parsed {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            v6.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    if parsed.is_unspecified() {
        let detail = format!("may not be unspecified ({address})");
        errors.invalid(path, address, &detail);
    }
    if link_local {
        let detail = "may not be in the link-local range (169.254.0.0/16, fe80::/10)";
        errors.invalid(path, address, detail);
    }
    if multicast {
        let detail = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        errors.invalid(path, address, detail);
    }
}

/// The transport protocols of a port.
pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// Refuses a transport protocol nobody knows.
pub(super) fn check_protocol(protocol: Option<&str>, path: &Path, errors: &mut ErrorList) {
    match protocol.unwrap_or_default() {
        "" => errors.required(path, ""),
        known if PROTOCOLS.contains(&known) => {}
        other => errors.not_supported(path, other, PROTOCOLS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_ordinary_address() {
        let cases = [
            ("192.0.2.1", 0),
            ("2001:db8::1", 0),
            ("0.0.0.0", 1),
            ("127.0.0.9", 1),
            ("::1", 1),
            ("169.254.1.1", 1),
            ("fe80::1", 1),
            ("224.0.0.251", 1),
            ("224.0.1.1", 0),
            ("ff02::fb", 1),
            ("::", 1),
            ("::ffff:192.0.2.1", 0),
            ("::ffff:0.0.0.0", 1),
            ("::ffff:127.0.0.1", 1),
            ("::FFFF:7f00:1", 1),
            ("::ffff:169.254.169.254", 1),
            ("::ffff:224.0.0.251", 1),
            ("nope", 1),
        ];
        for (address, expected) in cases {
            let mut errors = ErrorList::default();
            check_ordinary(address, &Path::new("ip"), &mut errors);
            assert_eq!(errors.0.len(), expected, "{address}: {errors:?}");
        }
    }
}
