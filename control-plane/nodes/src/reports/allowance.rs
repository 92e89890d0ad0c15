//! How much a node may say and have written: so much at once, and then so much in a time, on all its links together.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Events of one node.
const EVENTS: Rate = Rate {
    burst: 512,
    refill: 50,
    per: Duration::from_secs(1),
};
/// Lines in the log about what a node may not say.
pub(super) const LINES: Rate = Rate {
    burst: 10,
    refill: 10,
    per: Duration::from_secs(60),
};
/// Writes of a Node's status, each of which all servers and nodes are told of; of what is said between them the latest counts.
pub(super) const STATUSES: Rate = Rate {
    burst: 4,
    refill: 1,
    per: Duration::from_secs(1),
};
/// Registrations, each of which writes the Node twice. Who asks for more of them waits.
pub(super) const REGISTRATIONS: Rate = Rate {
    burst: 16,
    refill: 1,
    per: Duration::from_secs(1),
};
/// Figures of what a node and its pods use: two at once on a new link, and then one a second.
const USAGES: Rate = Rate {
    burst: 4,
    refill: 2,
    per: Duration::from_secs(1),
};
/// Services that are wanted: each of them once a second, while connections are held to it.
const WAKES: Rate = Rate {
    burst: 512,
    refill: 256,
    per: Duration::from_secs(1),
};
/// Answers of a node's pods: two a second, and those of before on a new link.
const SCRAPES: Rate = Rate {
    burst: 4,
    refill: 3,
    per: Duration::from_secs(1),
};
/// Writes about pods of one node: all that a node of many pods has to say after an hour without a server.
const POD_WRITES: Rate = Rate {
    burst: 512,
    refill: 100,
    per: Duration::from_secs(1),
};
/// Bytes that these make wait for everybody who watches pods. A reader's queue holds 8 MiB: one node alone never fills half of
/// it at once. A write of a usual pod is 10 KiB.
const POD_BYTES: Rate = Rate {
    burst: 4 << 20,
    refill: 1 << 20,
    per: Duration::from_secs(1),
};

/// So many at once, and then so many in a time.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: u32,
    pub(crate) refill: u32,
    pub(crate) per: Duration,
}

/// A token bucket: what is left of a rate.
pub(crate) struct Allowance {
    pub(super) rate: Rate,
    /// Less than nothing after something that took more than there was.
    pub(super) left: i64,
    pub(super) since: Instant,
}

impl Allowance {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            left: i64::from(rate.burst),
            since: Instant::now(),
        }
    }

    /// How many have been regained since this was asked last.
    fn regained(&self, now: Instant) -> i64 {
        let Rate { refill, per, .. } = self.rate;
        let periods = now.saturating_duration_since(self.since).as_secs_f64() / per.as_secs_f64();
        (periods * f64::from(refill)) as i64
    }

    /// Whether anything is left.
    fn has_left(&mut self, now: Instant) -> bool {
        let regained = self.regained(now);
        if regained > 0 {
            let left = self.left.saturating_add(regained);
            self.left = left.min(i64::from(self.rate.burst));
            self.since = now;
        }
        self.left > 0
    }

    /// What is taken beyond what is left is owed: nothing is too large ever to be taken.
    fn spend(&mut self, cost: usize) {
        let cost = i64::try_from(cost).unwrap_or(i64::MAX);
        self.left = self.left.saturating_sub(cost);
    }

    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let allowed = self.has_left(now);
        if allowed {
            self.spend(1);
        }
        allowed
    }

    /// Whether nothing would be lost by a new one in its place.
    pub(crate) fn is_whole(&self, now: Instant) -> bool {
        self.left.saturating_add(self.regained(now)) >= i64::from(self.rate.burst)
    }
}

/// What is left of the writes about a node's pods.
pub(super) struct PodWrites {
    pub(super) count: Allowance,
    pub(super) bytes: Allowance,
}

impl PodWrites {
    pub(super) fn new() -> Self {
        Self {
            count: Allowance::new(POD_WRITES),
            bytes: Allowance::new(POD_BYTES),
        }
    }

    /// Whether there may be a write of so many bytes now; it is counted if so.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        // Both are asked, so that both regain.
        let (count, weight) = (self.count.has_left(now), self.bytes.has_left(now));
        let allowed = count && weight;
        if allowed {
            self.count.spend(1);
            self.bytes.spend(bytes);
        }
        allowed
    }

    fn is_whole(&self, now: Instant) -> bool {
        self.count.is_whole(now) && self.bytes.is_whole(now)
    }
}

/// What a node may say, on all its links together.
pub(super) struct Allowances {
    pub(super) events: Mutex<Allowance>,
    pub(super) lines: Mutex<Allowance>,
    pub(super) statuses: Mutex<Allowance>,
    pub(super) registrations: Mutex<Allowance>,
    pub(super) usages: Mutex<Allowance>,
    pub(super) wakes: Mutex<Allowance>,
    pub(super) scrapes: Mutex<Allowance>,
    pub(super) pods: Mutex<PodWrites>,
}

impl Allowances {
    pub(super) fn new() -> Self {
        let whole = |rate| Mutex::new(Allowance::new(rate));
        Self {
            events: whole(EVENTS),
            lines: whole(LINES),
            statuses: whole(STATUSES),
            registrations: whole(REGISTRATIONS),
            usages: whole(USAGES),
            wakes: whole(WAKES),
            scrapes: whole(SCRAPES),
            pods: Mutex::new(PodWrites::new()),
        }
    }

    pub(super) fn are_whole(&self, now: Instant) -> bool {
        let all = [
            &self.events,
            &self.lines,
            &self.statuses,
            &self.registrations,
            &self.usages,
            &self.wakes,
            &self.scrapes,
        ];
        let rest = self.pods.lock().is_whole(now);
        rest && all.into_iter().all(|one| one.lock().is_whole(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_may_say_comes_back_with_time() {
        let mut allowance = Allowance::new(LINES);
        let start = allowance.since;
        let after = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..LINES.burst {
            assert!(allowance.take(start));
        }
        assert!(!allowance.take(start) && !allowance.is_whole(after(59)));
        assert!(allowance.is_whole(after(60)));
        assert!(allowance.take(after(7)) && !allowance.take(after(7)));
    }

    #[test]
    fn writes_are_few_or_small() {
        let mut writes = PodWrites::new();
        let start = writes.count.since.max(writes.bytes.since);
        let after = |seconds| start + Duration::from_secs(seconds);
        let many = (0..10_000).filter(|_| writes.take(1, start)).count();
        assert_eq!(many, POD_WRITES.burst as usize);
        assert!(writes.take(1, after(1)), "they come back");

        let mut writes = PodWrites::new();
        let start = writes.count.since.max(writes.bytes.since);
        let after = |seconds| start + Duration::from_secs(seconds);
        let large = (0..10_000).filter(|_| writes.take(1 << 20, start)).count();
        assert_eq!(large, POD_BYTES.burst as usize >> 20);
        // One may be larger than all that there is; what it took is waited for.
        assert!(writes.take(6 << 20, after(1)) && !writes.is_whole(after(2)));
        assert!(!writes.take(1, after(5)) && !writes.take(1, after(6)));
        assert!(writes.take(1, after(7)));
    }
}
