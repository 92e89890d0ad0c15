//! This node's clock beside the server's: from the answers to heartbeats, and said as a condition of the Node.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::pressure::Condition;

/// The condition's type.
pub(crate) const CLOCK_SYNCHRONIZED: &str = "ClockSynchronized";
/// How far two clocks may differ, in milliseconds. Machines with a time service differ by less than a tenth of a second,
/// so that this much says that one of them has none. Nothing of Gantry's fails by it yet: silence and leases are measured
/// by each machine's own count of seconds, and certificates are valid a day before they are issued. But the times of
/// Events, conditions and log lines can no longer be put in order.
const SKEW: i64 = 5_000;
/// Heartbeats whose answers are waited for; older ones will not come.
const WAITING: usize = 8;

/// How far a server's clock is ahead of this node's, in milliseconds, and how far off that may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset {
    ahead: i64,
    give_or_take: i64,
}

impl Offset {
    /// Half of the round trip is assumed to be the way back; it may have been all of it, or nothing.
    fn measured(server: i64, own: i64, round_trip: Duration) -> Self {
        let half = i64::try_from(round_trip.as_millis() / 2).unwrap_or(i64::MAX);
        Self {
            ahead: server.saturating_sub(own.saturating_sub(half)),
            give_or_take: half,
        }
    }

    /// Whether the clocks differ too much; `None` when the answer took too long to tell.
    fn is_skewed(self) -> Option<bool> {
        let apart = self.ahead.saturating_abs();
        if apart.saturating_sub(self.give_or_take) > SKEW {
            Some(true)
        } else {
            (apart.saturating_add(self.give_or_take) <= SKEW).then_some(false)
        }
    }
}

/// Compares this node's clock with that of the server it is linked to.
pub(crate) struct Clock {
    /// Milliseconds since the epoch.
    now: Box<dyn Fn() -> i64 + Send + Sync>,
    tell: Box<dyn Fn(Condition) + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Heartbeats without an answer.
    sent: VecDeque<(u64, Instant)>,
    /// The skew that was told, beside which server's clock; the first is zero when the clocks agree.
    told: Option<(i64, SocketAddr)>,
}

impl Clock {
    /// The machine's clock. `tell` takes the condition whenever it changes.
    pub(crate) fn system(tell: impl Fn(Condition) + Send + Sync + 'static) -> Self {
        Self::new(|| jiff::Timestamp::now().as_millisecond(), tell)
    }

    fn new(
        now: impl Fn() -> i64 + Send + Sync + 'static,
        tell: impl Fn(Condition) + Send + Sync + 'static,
    ) -> Self {
        Self {
            now: Box::new(now),
            tell: Box::new(tell),
            state: Mutex::default(),
        }
    }

    /// Heartbeats are counted anew.
    pub(crate) fn link_opened(&self) {
        self.state.lock().sent.clear();
    }

    pub(crate) fn sent(&self, sequence: u64) {
        let sent = &mut self.state.lock().sent;
        if sent.len() == WAITING {
            sent.pop_front();
        }
        sent.push_back((sequence, Instant::now()));
    }

    /// A server has answered a heartbeat with its time.
    pub(crate) fn answered(&self, sequence: u64, server_time: i64, server: SocketAddr) {
        let own = (self.now)();
        let mut state = self.state.lock();
        let Some(index) = state.sent.iter().position(|(known, _)| *known == sequence) else {
            return;
        };
        let Some((_, sent)) = state.sent.drain(..=index).next_back() else {
            return;
        };
        let offset = Offset::measured(server_time, own, sent.elapsed());
        let Some(skewed) = offset.is_skewed() else {
            return;
        };
        let ahead = if skewed { offset.ahead } else { 0 };
        // A skew that has hardly changed is not told again.
        let is_known = state.told.is_some_and(|(told, by)| match skewed {
            true => {
                by == server && told != 0 && told.saturating_sub(ahead).saturating_abs() <= SKEW
            }
            false => told == 0,
        });
        if is_known {
            return;
        }
        state.told = Some((ahead, server));
        drop(state);
        (self.tell)(condition(ahead, server));
    }
}

fn condition(ahead: i64, server: SocketAddr) -> Condition {
    if ahead == 0 {
        return Condition {
            kind: CLOCK_SYNCHRONIZED,
            holds: true,
            reason: "ClockAgrees",
            message: "this node's clock agrees with the leading server's".into(),
        };
    }
    let direction = if ahead > 0 { "behind" } else { "ahead of" };
    let apart = span(ahead.unsigned_abs() / 1000);
    Condition {
        kind: CLOCK_SYNCHRONIZED,
        holds: false,
        reason: "ClockSkew",
        message: format!(
            "this node's clock is {apart} {direction} that of the server at {server}: have a time service, such as chrony \
             or systemd-timesyncd, keep the clocks of both"
        )
        .into(),
    }
}

/// Seconds in the two largest units.
fn span(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min {} s", seconds / 60, seconds % 60),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use tokio::time::advance;

    use super::*;

    #[test]
    fn an_offset_counts_only_beyond_what_the_way_may_have_taken() {
        let offset = |server, own, round_trip| {
            Offset::measured(server, own, Duration::from_millis(round_trip))
        };
        assert_eq!(offset(1000, 1050, 100).ahead, 0);
        assert_eq!(offset(1000, 1050, 100).give_or_take, 50);
        for (server, round_trip, skewed) in [
            (100_000, 0, Some(false)),
            (105_000, 0, Some(false)),
            (105_001, 0, Some(true)),
            (94_999, 0, Some(true)),
            (100_000, 8_000, Some(false)),
            (100_000, 12_000, None),
            (200_000, 12_000, Some(true)),
            (i64::MIN, 0, Some(true)),
            (i64::MAX, 0, Some(true)),
        ] {
            let measured = offset(server, 100_000 + round_trip / 2, round_trip as u64);
            assert_eq!(measured.is_skewed(), skewed, "{server} {round_trip}");
        }
    }

    struct Lab {
        own: Arc<AtomicI64>,
        told: Arc<Mutex<Vec<Condition>>>,
        clock: Clock,
        sequence: u64,
    }

    impl Lab {
        fn new() -> Self {
            let (own, told) = (
                Arc::new(AtomicI64::new(0)),
                Arc::new(Mutex::new(Vec::new())),
            );
            let (time, heard) = (own.clone(), told.clone());
            let clock = Clock::new(
                move || time.load(Ordering::SeqCst),
                move |condition| heard.lock().push(condition),
            );
            Self {
                own,
                told,
                clock,
                sequence: 0,
            }
        }

        /// A heartbeat at `own`, whose answer comes after a while; what was told for it.
        async fn beat(&mut self, own: i64, server: i64, after: u64) -> Vec<Condition> {
            self.sequence += 1;
            self.clock.sent(self.sequence);
            advance(Duration::from_millis(after)).await;
            self.own.store(own + after as i64, Ordering::SeqCst);
            self.clock.answered(self.sequence, server, at(1));
            std::mem::take(&mut *self.told.lock())
        }
    }

    fn at(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 6443))
    }

    #[tokio::test(start_paused = true)]
    async fn a_skew_is_told_once_with_its_size_direction_and_server() {
        let mut lab = Lab::new();
        let told = lab.beat(50_000, 50_100, 200).await;
        assert_eq!(told[0].reason, "ClockAgrees");
        assert!(told[0].holds);
        assert!(lab.beat(50_000, 51_000, 10).await.is_empty());

        let told = lab.beat(50_000, 92_000, 10).await;
        assert!(!told[0].holds && told[0].reason == "ClockSkew");
        assert!(
            told[0]
                .message
                .contains("41 s behind that of the server at 192.0.2.1:6443")
                && told[0].message.contains("chrony"),
            "{}",
            told[0].message
        );
        assert!(lab.beat(50_000, 93_000, 10).await.is_empty(), "known");
        let told = lab.beat(50_000 + 3_600_000, 50_000, 10).await;
        assert!(
            told[0].message.contains("60 min 0 s ahead of"),
            "{}",
            told[0].message
        );
        assert!(lab.beat(0, 0, 60_000).await.is_empty(), "too slow to tell");
        assert!(lab.beat(7_000, 7_000, 0).await[0].holds);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_waits_for_say_nothing() {
        let lab = Lab::new();
        lab.clock.answered(1, 1 << 40, at(1));
        lab.clock.sent(1);
        lab.clock.link_opened();
        lab.clock.answered(1, 1 << 40, at(1));
        for sequence in 2..20 {
            lab.clock.sent(sequence);
        }
        lab.clock.answered(2, 1 << 40, at(1));
        assert!(lab.told.lock().is_empty());
        lab.clock.answered(19, 1 << 40, at(1));
        assert_eq!(lab.told.lock().len(), 1);
        lab.clock.answered(18, 0, at(1));
        assert_eq!(lab.told.lock().len(), 1, "it was before that one");
    }
}
