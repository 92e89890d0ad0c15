//! Exponential back-off of restarts and pulls: 10 s, doubled up to 5 minutes, forgotten after 10 quiet minutes.

use std::time::Duration;

const INITIAL: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);
/// A container that ran this long is considered healed.
pub(crate) const FORGET: Duration = Duration::from_secs(600);

/// How long to wait before the next attempt. The first failure is tried again at once, as a kubelet does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    /// Continues after this many failures of an earlier process.
    pub(crate) fn resumed(failures: u32) -> Self {
        let mut backoff = Self::default();
        // Ten doublings are beyond the longest.
        for _ in 0..failures.min(10) {
            backoff.restart_delay();
        }
        backoff
    }

    /// The delay before a restart: nothing at first, then 10 s, 20 s, ... 5 min.
    pub(crate) fn restart_delay(&mut self) -> Duration {
        let delay = match self.last {
            None => Duration::ZERO,
            Some(Duration::ZERO) => INITIAL,
            Some(last) => (last * 2).min(LONGEST),
        };
        self.last = Some(delay);
        delay
    }

    /// The delay after a failed pull: 10 s from the first.
    pub(crate) fn pull_delay(&mut self) -> Duration {
        let delay = self.last.map_or(INITIAL, |last| (last * 2).min(LONGEST));
        self.last = Some(delay);
        delay
    }

    /// Success: the next failure is a first one.
    pub(crate) fn reset(&mut self) {
        self.last = None;
    }
}

/// Go's way to print these durations: `10s`, `1m20s`, `5m0s`.
pub(crate) fn words(delay: Duration) -> String {
    match (delay.as_secs() / 60, delay.as_secs() % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_double_up_to_five_minutes() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..8).map(|_| backoff.restart_delay().as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.restart_delay(), Duration::ZERO);
        assert_eq!(Backoff::resumed(2).restart_delay().as_secs(), 20);
        assert_eq!(Backoff::resumed(1000).restart_delay().as_secs(), 300);
    }

    #[test]
    fn pulls_wait_from_the_first_failure() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..7).map(|_| backoff.pull_delay().as_secs()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn durations_as_messages_print_them() {
        let print = |seconds| words(Duration::from_secs(seconds));
        assert_eq!([print(10), print(80), print(300)], ["10s", "1m20s", "5m0s"]);
    }
}
