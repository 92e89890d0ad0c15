//! The time that tests judge by: what a thread has had of a processor, from which other programs take nothing.

use std::time::Duration;

/// Counts what its thread takes from its start on.
pub(crate) struct Stopwatch(Duration);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(taken())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        taken().saturating_sub(self.0)
    }
}

/// As the kernel counts it, in nanoseconds; it is behind by a few milliseconds.
fn taken() -> Duration {
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat");
    let counts = counts.expect("the kernel counts what threads take (CONFIG_SCHED_INFO)");
    let taken = counts.split(' ').next();
    let taken = taken.and_then(|count| count.parse().ok());
    Duration::from_nanos(taken.expect("a number"))
}
