//! How another resolver fares: one that is silent is passed over, and asked now and then whether it is back.

use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::metrics::METRICS;

/// Silences in a row after which a resolver is passed over: a packet may be lost once.
const TOLERATED: u32 = 2;
/// How long it is passed over at first, doubled each time, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A resolver and what is known of it.
///
/// ```text
///            TOLERATED silences                 the pause is over
///  answers ---------------------> passed over -------------------> probed (by one question)
///     ^                                ^                               |         |
///     |                                +------- silent: longer pause --+         |
///     +-------------------------------------------------------- answered --------+
/// ```
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) address: SocketAddr,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// In a row.
    silences: u32,
    pause: Option<Pause>,
    /// It asks us in turn: never asked again.
    looping: bool,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    length: Duration,
    until: Instant,
}

impl Resolver {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let resolver = Self {
            address,
            state: Mutex::default(),
        };
        resolver.tell(true);
        resolver
    }

    /// Whether it is worth waiting for.
    pub(crate) fn is_up(&self) -> bool {
        let state = self.state.lock();
        state.pause.is_none() && !state.looping
    }

    /// Whether it must not be asked at all.
    pub(crate) fn is_looping(&self) -> bool {
        self.state.lock().looping
    }

    /// Whether it is time to ask one that is passed over again. Who is told so does ask; the others are told no.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        match &mut state.pause {
            Some(pause) if now >= pause.until => {
                pause.length = (pause.length * 2).min(LONGEST_PAUSE);
                pause.until = now + pause.length;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn answered(&self) {
        let mut state = self.state.lock();
        let was_down = state.pause.take().is_some();
        state.silences = 0;
        drop(state);
        if was_down {
            tracing::info!(resolver = %self.address, "a resolver answers again");
            self.tell(true);
        }
    }

    pub(crate) fn silent(&self, now: Instant) {
        let labels = ["forward", &self.address.to_string()];
        METRICS.upstream_failures.with_label_values(&labels).inc();
        let mut state = self.state.lock();
        state.silences = state.silences.saturating_add(1);
        if state.silences < TOLERATED || state.pause.is_some() {
            return;
        }
        state.pause = Some(Pause {
            length: FIRST_PAUSE,
            until: now + FIRST_PAUSE,
        });
        drop(state);
        tracing::warn!(resolver = %self.address, "a resolver does not answer; passing it over");
        self.tell(false);
    }

    pub(crate) fn loops(&self) {
        self.state.lock().looping = true;
        self.tell(false);
    }

    fn tell(&self, up: bool) {
        let address = self.address.to_string();
        let gauge = METRICS.upstream_up.with_label_values(&[&address]);
        gauge.set(i64::from(up));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_silent_is_passed_over_and_probed_ever_more_rarely() {
        let resolver = Resolver::new("192.0.2.53:53".parse().unwrap());
        let start = Instant::now();
        resolver.silent(start);
        assert!(resolver.is_up(), "a packet was lost");
        resolver.answered();
        resolver.silent(start);
        assert!(resolver.is_up());
        resolver.silent(start);
        assert!(!resolver.is_up() && !resolver.is_due(start));
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let before = now;
            while !resolver.is_due(now) {
                now += Duration::from_millis(500);
            }
            assert!(!resolver.is_due(now), "one asks, the others do not");
            resolver.silent(now);
            pauses.push((now - before).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        resolver.answered();
        assert!(resolver.is_up() && !resolver.is_due(now));
    }

    #[test]
    fn one_that_loops_stays_out() {
        let resolver = Resolver::new("192.0.2.54:53".parse().unwrap());
        resolver.loops();
        resolver.answered();
        assert!(!resolver.is_up() && resolver.is_looping());
    }
}
