//! What the processes of a cluster have spent, and what the server says of acknowledgements.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use gantry_e2e::Fleet;

/// The histogram of times from a change to its acknowledgement by every node.
pub(crate) const PROGRAMMED: &str = "gantry_services_programmed_duration_seconds";
/// Linux counts CPU time in these on every architecture.
const TICKS_PER_SECOND: u32 = 100;

/// CPU time.
pub(crate) struct Usage {
    pub(crate) server: Duration,
    /// With the `nft` that each of them talks to.
    pub(crate) agents: Duration,
}

/// The numbers after the name in a process's `stat`: the first is its parent.
fn stat(pid: &str) -> Option<(String, Vec<u64>)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
    let numbers = rest.split_whitespace().skip(1);
    // Some fields may be negative; none of those that are asked for is.
    let numbers = numbers.map(|number| number.parse().unwrap_or_default());
    Some((name.to_owned(), numbers.collect()))
}

/// The time of a process and of its children that have ended.
fn spent(numbers: &[u64]) -> Duration {
    let ticks: u64 = numbers.iter().skip(10).take(4).sum();
    Duration::from_secs(ticks) / TICKS_PER_SECOND
}

fn spent_by(pid: u32) -> Result<Duration> {
    let (_, numbers) = stat(&pid.to_string()).with_context(|| format!("process {pid} is gone"))?;
    Ok(spent(&numbers))
}

/// The time of the `nft` that a process talks to.
fn spent_by_nft(parent: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        // Processes come and go.
        let Some((program, numbers)) = stat(&name.to_string_lossy()) else {
            continue;
        };
        if program == "nft" && numbers.first() == Some(&u64::from(parent)) {
            total += spent(&numbers);
        }
    }
    Ok(total)
}

impl Usage {
    pub(crate) fn read(fleet: &Fleet) -> Result<Self> {
        let mut agents = Duration::ZERO;
        for node in fleet.node_names() {
            let pid = fleet.agent_pid(&node)?;
            agents += spent_by(pid)? + spent_by_nft(pid)?;
        }
        Ok(Self {
            server: spent_by(fleet.server_pid("s1")?)?,
            agents,
        })
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            server: self.server.saturating_sub(before.server),
            agents: self.agents.saturating_sub(before.agents),
        }
    }
}

/// The histogram [`PROGRAMMED`]: how many took no longer than each bound, by its place.
pub(crate) struct Programmed {
    buckets: BTreeMap<usize, (String, u64)>,
}

impl Programmed {
    /// As the server has it now, if it has it.
    pub(crate) fn read(fleet: &Fleet) -> Result<Option<Self>> {
        let metrics = fleet.kubectl("s1", &["get", "--raw", "/metrics"])?;
        Ok(Self::parse(&metrics))
    }

    fn parse(metrics: &str) -> Option<Self> {
        let start = format!("{PROGRAMMED}_bucket{{le=\"");
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(&start));
        let buckets = lines.filter_map(|line| {
            let (bound, count) = line.split_once("\"} ")?;
            Some((bound.to_owned(), count.trim().parse().ok()?))
        });
        let buckets: BTreeMap<usize, (String, u64)> = buckets.enumerate().collect();
        (!buckets.is_empty()).then_some(Self { buckets })
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        let buckets = self.buckets.iter().map(|(place, (bound, count))| {
            let earlier = before.buckets.get(place).map_or(0, |(_, count)| *count);
            (*place, (bound.clone(), count.saturating_sub(earlier)))
        });
        Self {
            buckets: buckets.collect(),
        }
    }

    pub(crate) fn count(&self) -> u64 {
        let last = self.buckets.last_key_value();
        last.map_or(0, |(_, (_, count))| *count)
    }

    /// The smallest bound, in seconds, that so many per cent do not exceed.
    pub(crate) fn percentile(&self, percent: u64) -> &str {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut bounds = self.buckets.values();
        let found = bounds.find(|(_, count)| *count >= wanted);
        found.map_or("none", |(bound, _)| bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
# TYPE gantry_services_programmed_duration_seconds histogram
gantry_services_programmed_duration_seconds_bucket{le=\"0.01\"} 40
gantry_services_programmed_duration_seconds_bucket{le=\"0.05\"} 98
gantry_services_programmed_duration_seconds_bucket{le=\"+Inf\"} 100
gantry_services_programmed_duration_seconds_sum 2
gantry_services_programmed_duration_seconds_count 100
";

    #[test]
    fn percentiles_are_bounds_of_buckets() {
        let read = Programmed::parse(METRICS).expect("it is there");
        assert_eq!(read.count(), 100);
        assert_eq!(
            [10, 50, 98, 99].map(|percent| read.percentile(percent)),
            ["0.01", "0.05", "0.05", "+Inf"]
        );
        let earlier = METRICS
            .replace(" 40", " 30")
            .replace(" 98", " 88")
            .replace(" 100", " 90");
        let earlier = Programmed::parse(&earlier).expect("it is there");
        let since = read.since(&earlier);
        assert_eq!((since.count(), since.percentile(99)), (10, "0.01"));
        assert!(Programmed::parse("gantry_other_bucket{le=\"1\"} 3\n").is_none());
    }

    #[test]
    fn own_cpu_time_is_counted() {
        let pid = std::process::id();
        let before = spent_by(pid).expect("this process lives");
        let began = std::time::Instant::now();
        while spent_by(pid).expect("this process lives") == before {
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "no time was counted"
            );
        }
        let (_, numbers) = stat(&pid.to_string()).expect("this process lives");
        assert_ne!(numbers.first(), Some(&0), "the parent");
    }
}
