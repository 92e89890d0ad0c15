//! Addresses as fields: what may be an endpoint, a pod CIDR, a service's address.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::field::{ErrorList, Path};

const BAD_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// The text without zeros before the numbers of an IPv4 address, which some programs read as octal ones.
fn without_zeros(text: &str) -> String {
    let (head, tail) = text.split_at(text.rfind(':').map_or(0, |at| at + 1));
    if !tail.contains('.') {
        return text.to_owned();
    }
    let plain = |part: &str| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0".to_owned(),
        rest => rest.to_owned(),
    };
    let parts: Vec<String> = tail.split('.').map(plain).collect();
    format!("{head}{}", parts.join("."))
}

/// The address that a text means, even if its numbers have leading zeros.
fn read(text: &str) -> Option<IpAddr> {
    text.parse().or_else(|_| without_zeros(text).parse()).ok()
}

/// As [`read`], of a network with its address as it is written, not the network's first.
fn read_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    IpNet::new(read(address)?, length.parse().ok()?).ok()
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Whether a text is an address, in whatever form.
pub(super) fn is_address(text: &str) -> bool {
    read(text).is_some()
}

/// What is wrong with an address, so that not all programs may read the same out of it.
fn fault(address: &str) -> Option<&'static str> {
    match (read(address), address.parse::<IpAddr>()) {
        (None, _) => Some(BAD_ADDRESS),
        (_, Err(_)) => Some("must not have leading 0s"),
        (_, Ok(address)) if is_mapped(address) => Some("must not be an IPv4-mapped IPv6 address"),
        _ => None,
    }
}

/// As [`fault`], of a network. One that is written with bits beyond its mask might be one of two.
fn network_fault(network: &str) -> Option<&'static str> {
    let Some(parsed) = read_network(network) else {
        return Some(BAD_CIDR);
    };
    let (address, length) = network.split_once('/').unwrap_or_default();
    let zeros = length.len() > 1 && length.starts_with('0');
    if zeros || address.parse::<IpAddr>().is_err() {
        Some("must not have leading 0s in IP or prefix length")
    } else if is_mapped(parsed.addr()) {
        Some("must not have an IPv4-mapped IPv6 address")
    } else if parsed.addr() != parsed.network() {
        Some("must not have bits set beyond the prefix length")
    } else {
        None
    }
}

/// Refuses what is not an address.
pub(super) fn check(address: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(detail) = fault(address) {
        errors.invalid(path, address, detail);
    }
}

/// What is wrong with an address that is to be written in the one form that Kubernetes writes.
pub(super) fn canonical_fault(address: &str) -> Option<String> {
    match (fault(address), address.parse::<IpAddr>()) {
        (Some(detail), _) => Some(detail.to_owned()),
        (None, Ok(parsed)) if parsed.to_string() != address => {
            Some(format!("must be in canonical form (\"{parsed}\")"))
        }
        _ => None,
    }
}

/// Refuses what is not a network.
pub(super) fn check_cidr(network: &str, path: &Path, errors: &mut ErrorList) {
    if let Some(detail) = network_fault(network) {
        errors.invalid(path, network, detail);
    }
}

/// The warning about an address or a network of IPv6 that is not written as Kubernetes writes it; others are none or refused.
pub(super) fn form_warning(text: &str, path: &Path) -> Option<String> {
    let (what, canonical) = match text.contains('/') {
        true => ("CIDR value", read_network(text.trim())?.to_string()),
        false => ("address", read(text)?.to_string()),
    };
    (text.contains(':') && canonical != text).then(|| {
        format!(
            "{path}: IPv6 {what} {text:?} should be in RFC 5952 canonical format ({canonical:?})"
        )
    })
}

/// Whether two networks are one of IPv4 and one of IPv6.
pub(super) fn are_of_two_families(one: &str, other: &str) -> bool {
    match (read_network(one), read_network(other)) {
        (Some(one), Some(other)) => one.addr().is_ipv4() != other.addr().is_ipv4(),
        _ => false,
    }
}

/// As [`check_cidr`], and what is not written in the one form that Kubernetes writes.
pub(super) fn check_network(network: &str, path: &Path, errors: &mut ErrorList) {
    match (network_fault(network), read_network(network)) {
        (Some(detail), _) => errors.invalid(path, network, detail),
        (None, Some(parsed)) if parsed.to_string() != network => {
            let detail = format!("must be in canonical form (\"{parsed}\")");
            errors.invalid(path, network, &detail);
        }
        _ => {}
    }
}

/// Refuses addresses that name no machine of their own, and so could turn a service's clients against their own
/// host: the unspecified one, loopback and link-local ones, however they are spelled: `::ffff:127.0.0.1` leads to where
/// `127.0.0.1` does.
pub(super) fn check_ordinary(address: &str, path: &Path, errors: &mut ErrorList) {
    let Some(parsed) = read(address).map(|parsed| parsed.to_canonical()) else {
        return errors.invalid(path, address, "must be a valid IP address");
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
    if parsed.is_loopback() {
        let detail = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
        errors.invalid(path, address, detail);
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

    #[test]
    fn an_address_is_read_the_same_by_all() {
        for (address, told) in [
            ("192.0.2.1", None),
            ("2001:db8::1", None),
            ("192.0.2.01", Some("must not have leading 0s")),
            (
                "::ffff:192.0.2.1",
                Some("must not be an IPv4-mapped IPv6 address"),
            ),
            ("192.0.2", Some(BAD_ADDRESS)),
            ("192.0.2.", Some(BAD_ADDRESS)),
            ("192.0.2.256", Some(BAD_ADDRESS)),
            ("fe80::1%eth0", Some(BAD_ADDRESS)),
            ("", Some(BAD_ADDRESS)),
        ] {
            assert_eq!(fault(address), told, "{address}");
        }
        let told = canonical_fault("2001:DB8::1");
        assert_eq!(
            told.as_deref(),
            Some("must be in canonical form (\"2001:db8::1\")")
        );
        assert_eq!(canonical_fault("192.0.2.1"), None);
    }

    #[test]
    fn a_network_is_one() {
        let zeros = "must not have leading 0s in IP or prefix length";
        for (network, told) in [
            ("10.0.0.0/8", None),
            ("2001:db8::/32", None),
            ("10.0.0.0/08", Some(zeros)),
            ("010.0.0.0/8", Some(zeros)),
            (
                "10.0.0.1/8",
                Some("must not have bits set beyond the prefix length"),
            ),
            (
                "::ffff:10.0.0.0/104",
                Some("must not have an IPv4-mapped IPv6 address"),
            ),
            ("10.0.0.0", Some(BAD_CIDR)),
            ("10.0.0.0/33", Some(BAD_CIDR)),
            ("10.0.0.0/+8", Some(BAD_CIDR)),
            ("10.0.0.0/8/8", Some(BAD_CIDR)),
        ] {
            assert_eq!(network_fault(network), told, "{network}");
        }
    }
}
