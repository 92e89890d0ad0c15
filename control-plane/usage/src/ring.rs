//! The last minute of one counter.

use std::collections::VecDeque;
use std::time::Duration;

/// No rate is over less time: it would say more of the moment than of the load.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// What is remembered.
const REMEMBERED: u64 = 60_000_000_000;
/// Points that are kept, one a second.
const POINTS: usize = 61;
/// What counts faster has counted something else: nanoseconds of more CPUs than anything has, or more connections than fit
/// through a network.
const MOST_PER_SECOND: u128 = 65_536 * NANOS;
const NANOS: u128 = 1_000_000_000;

/// What was read at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    /// Nanoseconds.
    pub(crate) at: u64,
    /// The counter: nanoseconds of CPU time, or whatever else is counted.
    pub(crate) count: u64,
}

/// How fast a counter has grown, and over which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    grown: u64,
    pub(crate) window: Duration,
}

impl Rate {
    /// By so many a second, as far as that is whole: billionths of a core, of a counter of CPU time.
    pub(crate) fn per_second(&self) -> u64 {
        self.times(1)
    }

    /// As [`Self::per_second`], in thousandths.
    pub(crate) fn millis_per_second(&self) -> u64 {
        self.times(1000)
    }

    fn times(&self, factor: u128) -> u64 {
        let grown = u128::from(self.grown).saturating_mul(factor * NANOS);
        let speed = grown.checked_div(self.window.as_nanos());
        u64::try_from(speed.unwrap_or_default()).unwrap_or(u64::MAX)
    }
}

/// Points in the order of their times; their counters never fall.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    points: VecDeque<Point>,
}

impl Ring {
    /// Takes the next point. One that is no later than the last is known already; one of a smaller counter begins anew.
    pub(crate) fn push(&mut self, point: Point) {
        if let Some(last) = self.points.back() {
            if point.at <= last.at {
                return;
            }
            if point.count < last.count {
                self.points.clear();
            }
        }
        let oldest = point.at.saturating_sub(REMEMBERED);
        while self.points.len() >= POINTS
            || self.points.front().is_some_and(|first| first.at < oldest)
        {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// The rate up to the last point: over the shortest time there is that is as long as `window`, over all that is
    /// remembered where that is less, and never over less than [`SHORTEST`].
    pub(crate) fn rate(&self, window: Duration) -> Option<Rate> {
        let last = self.points.back()?;
        let passed = |point: &Point| last.at.saturating_sub(point.at);
        let wanted = nanos(window.max(SHORTEST));
        let mut earlier = self.points.iter().rev().skip(1);
        let first = earlier.find(|point| passed(point) >= wanted);
        let first = first.or_else(|| {
            let oldest = self.points.front();
            oldest.filter(|oldest| passed(oldest) >= nanos(SHORTEST))
        })?;
        let rate = Rate {
            grown: last.count.saturating_sub(first.count),
            window: Duration::from_nanos(passed(first)),
        };
        Some(rate).filter(|rate| u128::from(rate.per_second()) <= MOST_PER_SECOND)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn ring(points: &[(u64, u64)]) -> Ring {
        let mut ring = Ring::default();
        for (millis, count) in points {
            ring.push(Point {
                at: millis * 1_000_000,
                count: *count,
            });
        }
        ring
    }

    fn rate(ring: &Ring, millis: u64) -> Option<(u64, u64)> {
        let rate = ring.rate(Duration::from_millis(millis))?;
        let window = u64::try_from(rate.window.as_millis()).expect("a minute");
        Some((rate.per_second(), window))
    }

    #[test]
    fn a_rate_is_over_the_window_or_what_there_is() {
        assert_eq!(rate(&ring(&[]), 1000), None);
        assert_eq!(rate(&ring(&[(0, 5)]), 1000), None);
        assert_eq!(rate(&ring(&[(0, 0), (999, 5)]), 0), None);
        let half = ring(&[(0, 0), (1000, SECOND / 2)]);
        assert_eq!(rate(&half, 1000), Some((SECOND / 2, 1000)));
        assert_eq!(rate(&half, 5000), Some((SECOND / 2, 1000)));
        let rising = ring(&[(0, 0), (1000, 0), (2000, SECOND), (3000, 3 * SECOND)]);
        assert_eq!(rate(&rising, 0), Some((2 * SECOND, 1000)));
        assert_eq!(rate(&rising, 1001), Some((3 * SECOND / 2, 2000)));
        assert_eq!(rate(&rising, 60_000), Some((SECOND, 3000)));
    }

    #[test]
    fn what_is_rare_is_told_in_thousandths() {
        let rate = ring(&[(0, 5), (3000, 6)]).rate(Duration::from_secs(3));
        let rate = rate.expect("a rate");
        assert_eq!((rate.per_second(), rate.millis_per_second()), (0, 333));
    }

    #[test]
    fn a_counter_that_falls_begins_anew() {
        let mut ring = ring(&[(0, 10 * SECOND), (1000, 11 * SECOND), (2000, 5)]);
        assert_eq!((ring.len(), rate(&ring, 1000)), (1, None));
        ring.push(Point {
            at: 3 * SECOND,
            count: 5 + SECOND,
        });
        assert_eq!(rate(&ring, 1000), Some((SECOND, 1000)));
    }

    #[test]
    fn what_was_said_before_counts_once_and_nonsense_not_at_all() {
        let known = ring(&[(0, 0), (1000, 7), (1000, 9), (500, 9), (2000, 7)]);
        assert_eq!((known.len(), rate(&known, 2000)), (3, Some((3, 2000))));
        assert_eq!(rate(&ring(&[(0, 0), (1000, u64::MAX)]), 1000), None);
    }

    proptest! {
        #[test]
        fn a_ring_is_bounded_and_its_rates_are_over_a_second(
            steps in proptest::collection::vec((0_u64..3_000_000_000, 0_u64..5_000_000_000, any::<bool>()), 0..300),
            window in 0_u64..90_000,
        ) {
            let (mut ring, mut at, mut count) = (Ring::default(), 0_u64, 0_u64);
            for (passed, grown, falls) in steps {
                at += passed;
                count = if falls { grown } else { count + grown };
                ring.push(Point { at, count });
                prop_assert!(ring.len() <= POINTS);
                if let Some(rate) = ring.rate(Duration::from_millis(window)) {
                    prop_assert!(rate.window >= SHORTEST);
                    prop_assert!(rate.window <= Duration::from_nanos(REMEMBERED));
                }
            }
        }
    }
}
