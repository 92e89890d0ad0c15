//! The kernel's counters of TCP (RFC 4022's names), as a network namespace's `snmp` tells them.

/// What the kernel has counted in a network namespace, IPv4 and IPv6 together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Connections that somebody in it has begun (`ActiveOpens`), whether or not they came about.
    pub(super) begun: u64,
    /// Those that somebody in it was given (`PassiveOpens`).
    pub(super) accepted: u64,
    /// Both sorts together that are open now (`CurrEstab`): established, or closed by the other side alone.
    pub(super) established: u64,
}

/// Two lines begin with `Tcp:`, one with names and one with their numbers.
pub(super) fn parse(text: &[u8]) -> Option<Counters> {
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let of = |wanted: &str| {
        let pairs = names.split_whitespace().zip(numbers.split_whitespace());
        let mut found = pairs.filter(|(name, _)| *name == wanted);
        found.next()?.1.parse().ok()
    };
    Some(Counters {
        begun: of("ActiveOpens")?,
        accepted: of("PassiveOpens")?,
        established: of("CurrEstab")?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IP: &str = "Ip: Forwarding DefaultTTL\nIp: 1 64\n";
    const NAMES: &str =
        "Tcp: RtoAlgorithm MaxConn ActiveOpens PassiveOpens AttemptFails CurrEstab\n";

    #[test]
    fn counters_are_found_by_their_names() {
        let text = format!("{IP}{NAMES}Tcp: 1 -1 29 2 0 5\nUdp: InDatagrams\nUdp: 7\n");
        let expected = Counters {
            begun: 29,
            accepted: 2,
            established: 5,
        };
        assert_eq!(parse(text.as_bytes()), Some(expected));
        let own = std::fs::read("/proc/thread-self/net/snmp").expect("the kernel counts");
        assert!(parse(&own).is_some());
    }

    #[test]
    fn what_is_torn_or_odd_is_nothing() {
        for text in [
            String::new(),
            IP.to_owned(),
            NAMES.to_owned(),
            format!("{NAMES}Tcp: 1 -1 29 2 0\n"),
            format!("{NAMES}Tcp: 1 -1 29 2 0 -5\n"),
            format!("{NAMES}Tcp: 1 -1 29 x 0 5\n"),
            format!("{NAMES}Tcp: 1 -1 29 2 0 99999999999999999999\n"),
            "Tcp: ActiveOpens PassiveOpens\nTcp: 1 2\n".to_owned(),
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_read_that_is_not_there(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(parse(&text), None);
        }
    }
}
