//! Credentials that are refused: counted by who showed them, slowed down, and told in the log.
//!
//! An address that has shown too many wrong tokens is answered 429 without a look at the next. Certificates and requests
//! without credentials of the same address are not held up by that, and since nobody guesses a signature, certificates and tokens
//! of service accounts that are refused do not hold up others: a removed node, or a pod whose token has ended, asks again and
//! again.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use gantry_api::status::StatusError;
use parking_lot::Mutex;

use crate::metrics::METRICS;

/// Wrong tokens of one address in a row.
const BURST: u32 = 20;
/// After which another may be tried.
const REGAIN: Duration = Duration::from_secs(3);
/// Addresses that are remembered: twice this many at most.
const REMEMBERED: usize = 2048;
/// Lines about one address are this far apart.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Lines about all of them together, in that time.
const LINES: u32 = 20;

/// What one address has done.
#[derive(Clone, Debug)]
struct Source {
    /// How many it may still show; regained with time.
    left: u32,
    since: Instant,
    /// Refused and not told in the log yet.
    untold: u64,
    told: Option<Instant>,
}

impl Source {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            untold: 0,
            told: None,
        }
    }

    fn regain(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        let regained = u32::try_from(elapsed.as_secs() / REGAIN.as_secs()).unwrap_or(u32::MAX);
        if regained > 0 {
            self.left = self.left.saturating_add(regained).min(BURST);
            self.since += REGAIN * regained.min(1 << 20);
        }
    }
}

#[derive(Default)]
struct Sources {
    /// Those of late. When there are many, they become the old ones, and the old ones are forgotten.
    young: HashMap<IpAddr, Source>,
    old: HashMap<IpAddr, Source>,
    /// Lines in the current period.
    lines: u32,
    period: Option<Instant>,
}

impl Sources {
    fn of(&mut self, address: IpAddr, now: Instant) -> &mut Source {
        let address = network(address);
        if !self.young.contains_key(&address) {
            if self.young.len() >= REMEMBERED {
                self.old = std::mem::take(&mut self.young);
            }
            let known = self.old.remove(&address);
            self.young
                .insert(address, known.unwrap_or_else(|| Source::new(now)));
        }
        let source = self.young.entry(address);
        let source = source.or_insert_with(|| Source::new(now));
        source.regain(now);
        source
    }

    fn may_tell(&mut self, now: Instant) -> bool {
        let begins = self
            .period
            .is_none_or(|period| now.saturating_duration_since(period) >= TOLD_EVERY);
        if begins {
            self.period = Some(now);
            self.lines = 0;
        }
        self.lines += 1;
        self.lines <= LINES
    }
}

/// Who has an IPv6 address has all of its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

/// Shared by all connections.
#[derive(Default)]
pub(crate) struct Refusals {
    sources: Mutex<Sources>,
}

impl Refusals {
    /// Refuses an address that has shown too many wrong tokens to show another now.
    pub(crate) fn check(&self, address: IpAddr, now: Instant) -> Result<(), StatusError> {
        if self.sources.lock().of(address, now).left > 0 {
            return Ok(());
        }
        METRICS.authenticated("limited");
        Err(StatusError::too_many_requests(
            "too many credentials from this address were refused; try again later".to_owned(),
            u32::try_from(REGAIN.as_secs()).unwrap_or(1),
        ))
    }

    /// Notes that an address has shown a token that is not accepted. `what` it was, without what is secret of it.
    pub(crate) fn token(&self, address: IpAddr, what: &str, now: Instant) {
        let mut sources = self.sources.lock();
        let source = sources.of(address, now);
        source.left = source.left.saturating_sub(1);
        drop(sources);
        self.note(address, what, now);
    }

    /// Notes that an address has shown what the cluster has signed and does not accept any more.
    pub(crate) fn signed(&self, address: IpAddr, what: &str, now: Instant) {
        self.note(address, what, now);
    }

    fn note(&self, address: IpAddr, what: &str, now: Instant) {
        METRICS.authenticated("failure");
        let mut sources = self.sources.lock();
        let source = sources.of(address, now);
        source.untold += 1;
        let due = source
            .told
            .is_none_or(|told| now.saturating_duration_since(told) >= TOLD_EVERY);
        if !due || !sources.may_tell(now) {
            return;
        }
        let source = sources.of(address, now);
        let refused = std::mem::take(&mut source.untold);
        source.told = Some(now);
        drop(sources);
        tracing::warn!(%address, refused, credential = what, "credentials were refused");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(std::net::Ipv4Addr::from(number))
    }

    #[test]
    fn one_address_is_slowed_down_and_others_are_not() {
        let refusals = Refusals::default();
        let now = Instant::now();
        for _ in 0..BURST {
            refusals.check(address(1), now).expect("not yet");
            refusals.token(address(1), "a token", now);
        }
        let refused = refusals.check(address(1), now).expect_err("too many");
        assert_eq!(refused.code(), 429);
        refusals.check(address(2), now).expect("another address");
        let later = now + REGAIN;
        refusals.check(address(1), later).expect("one more");
        refusals.token(address(1), "a token", later);
        refusals.check(address(1), later).expect_err("no second");
        let tomorrow = now + Duration::from_secs(24 * 60 * 60);
        for _ in 0..BURST {
            refusals.check(address(1), tomorrow).expect("all again");
            refusals.token(address(1), "a token", tomorrow);
        }
        refusals
            .check(address(1), tomorrow)
            .expect_err("no more than that");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_a_flood_of_others_does_not_wipe_it_out_at_once() {
        let refusals = Refusals::default();
        let now = Instant::now();
        for _ in 0..BURST {
            refusals.token(address(0), "a token", now);
        }
        let half = u32::try_from(REMEMBERED).expect("small");
        for number in 1..=half {
            refusals.token(address(number), "a token", now);
        }
        refusals.check(address(0), now).expect_err("remembered");
        for number in 0..half * 10 {
            refusals.token(address(number), "a token", now);
        }
        let sources = refusals.sources.lock();
        assert!(sources.young.len() <= REMEMBERED && sources.old.len() <= REMEMBERED);
        assert!(sources.lines > LINES, "lines were held back");
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let one = network("fd00:1:2:3::1".parse().expect("an address"));
        assert_eq!(
            one,
            network("fd00:1:2:3:ffff::9".parse().expect("an address"))
        );
        assert_ne!(one, network("fd00:1:2:4::1".parse().expect("an address")));
        let mapped = network("::ffff:192.0.2.1".parse().expect("an address"));
        assert_eq!(mapped, address(0xc000_0201));
    }
}
