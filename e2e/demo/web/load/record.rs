//! What has become of the requests, and how it is told: a line of JSON for every second and one for all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::options::Options;
use crate::connection::{Failure, Kind};

/// How many different answers are told apart.
const ANSWERS: usize = 1000;
/// Steps that each doubling of a latency is divided into.
const STEPS: usize = 16;

/// Latencies, to within a sixteenth.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    largest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; STEPS * 61],
            total: 0,
            largest: 0,
        }
    }
}

impl Histogram {
    fn bucket(micros: u64) -> usize {
        let bits = 64 - micros.leading_zeros() as usize;
        if bits <= 4 {
            return micros as usize;
        }
        let shift = bits - 5;
        // The four bits below the highest one.
        (shift + 1) * STEPS + (micros >> shift) as usize - STEPS
    }

    /// The largest latency of a bucket.
    fn limit(bucket: usize) -> u64 {
        let (doubling, step) = (bucket / STEPS, (bucket % STEPS) as u64);
        if doubling == 0 {
            return step;
        }
        let first = (step + STEPS as u64) << (doubling - 1);
        first + ((1 << (doubling - 1)) - 1)
    }

    pub(crate) fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[Self::bucket(micros)] += 1;
        self.total += 1;
        self.largest = self.largest.max(micros);
    }

    /// The latency in microseconds that so many per cent do not exceed.
    pub(crate) fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.total * percent).div_ceil(100);
        let mut counted = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            counted += count;
            if counted >= wanted && counted > 0 {
                return Self::limit(bucket).min(self.largest);
            }
        }
        0
    }

    fn to_json(&self) -> String {
        format!(
            "\"p50_us\":{},\"p99_us\":{},\"max_us\":{}",
            self.percentile(50),
            self.percentile(99),
            self.largest
        )
    }
}

/// Counts of some stretch of time.
#[derive(Clone, Debug, Default)]
struct Counts {
    sent: u64,
    ok: u64,
    failed: u64,
    latencies: Histogram,
}

impl Counts {
    fn to_json(&self) -> String {
        format!(
            "\"sent\":{},\"ok\":{},\"failed\":{},{}",
            self.sent,
            self.ok,
            self.failed,
            self.latencies.to_json()
        )
    }
}

/// A failure to be told in full.
#[derive(Clone, Debug)]
struct Message {
    /// When the request was due, after the start.
    due: Duration,
    failure: Failure,
}

/// All that is remembered.
#[derive(Debug)]
pub(crate) struct Record {
    began: Instant,
    began_unix: Duration,
    messages_wanted: usize,
    all: Counts,
    interval: Counts,
    interval_began: Duration,
    failures: BTreeMap<Kind, u64>,
    /// By the second in which the request was due: what happened to a request is blamed on when it began.
    failed_by_second: BTreeMap<u64, u64>,
    messages: Vec<Message>,
    answers: BTreeMap<String, u64>,
    /// Connections made.
    pub(crate) connections: u64,
    /// Connections that an answer asked to end.
    pub(crate) told_to_close: u64,
    /// Kept-alive connections that the server ended between requests without having said so.
    pub(crate) closed_idle: u64,
}

/// The time as others know it, to be laid beside their logs.
#[expect(
    clippy::disallowed_types,
    reason = "the edge: a generator is told nothing of clocks, and std has no other"
)]
fn unix_time() -> Duration {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default()
}

impl Record {
    pub(crate) fn new(messages_wanted: usize) -> Self {
        Self {
            began: Instant::now(),
            began_unix: unix_time(),
            messages_wanted,
            all: Counts::default(),
            interval: Counts::default(),
            interval_began: Duration::ZERO,
            failures: BTreeMap::new(),
            failed_by_second: BTreeMap::new(),
            messages: Vec::new(),
            answers: BTreeMap::new(),
            connections: 0,
            told_to_close: 0,
            closed_idle: 0,
        }
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// A request is on its way.
    pub(crate) fn sent(&mut self) {
        self.all.sent += 1;
        self.interval.sent += 1;
    }

    /// A request was answered, this long after it was due, with this text.
    pub(crate) fn ok(&mut self, latency: Duration, body: &[u8]) {
        for counts in [&mut self.all, &mut self.interval] {
            counts.ok += 1;
            counts.latencies.add(latency);
        }
        let text = String::from_utf8_lossy(body);
        let answer = text.lines().next().unwrap_or_default();
        if let Some(count) = self.answers.get_mut(answer) {
            *count += 1;
        } else if self.answers.len() < ANSWERS {
            self.answers.insert(answer.to_owned(), 1);
        }
    }

    pub(crate) fn failed(&mut self, due: Instant, failure: Failure) {
        self.all.failed += 1;
        self.interval.failed += 1;
        *self.failures.entry(failure.kind).or_default() += 1;
        let due = due.saturating_duration_since(self.began);
        *self.failed_by_second.entry(due.as_secs()).or_default() += 1;
        if self.messages.len() < self.messages_wanted {
            self.messages.push(Message { due, failure });
        }
    }

    /// The line for the time since the last one.
    pub(crate) fn interval(&mut self) -> String {
        let counts = std::mem::take(&mut self.interval);
        let from = self.interval_began;
        self.interval_began = self.began.elapsed();
        format!(
            "{{\"interval\":{{\"from_ms\":{},\"to_ms\":{},{}}}}}",
            from.as_millis(),
            self.interval_began.as_millis(),
            counts.to_json()
        )
    }

    /// The line for everything.
    pub(crate) fn total(&self, options: &Options) -> String {
        let failures = self.failures.iter();
        let failures = failures.map(|(kind, count)| (kind.name().to_owned(), *count));
        let seconds = self.failed_by_second.iter();
        let seconds = seconds.map(|(second, count)| (second.to_string(), *count));
        let messages: Vec<String> = self
            .messages
            .iter()
            .map(|message| {
                format!(
                    "{{\"at_ms\":{},\"message\":{}}}",
                    message.due.as_millis(),
                    quoted(&message.failure.to_string())
                )
            })
            .collect();
        let target = format!(
            "http://{}{}",
            options.target.authority(),
            options.target.path
        );
        format!(
            "{{\"total\":{{\"target\":{},\"mode\":{},\"rate\":{},\"began_unix_ms\":{},\"ms\":{},{},\
             \"failures\":{},\"failed_by_second\":{},\"messages\":[{}],\"connections\":{},\"told_to_close\":{},\
             \"closed_idle\":{},\"answers\":{}}}}}",
            quoted(&target),
            quoted(options.mode.name()),
            options.rate,
            self.began_unix.as_millis(),
            self.began.elapsed().as_millis(),
            self.all.to_json(),
            object(failures),
            object(seconds),
            messages.join(","),
            self.connections,
            self.told_to_close,
            self.closed_idle,
            object(self.answers.clone()),
        )
    }
}

/// A JSON object of numbers.
fn object(members: impl IntoIterator<Item = (String, u64)>) -> String {
    let members: Vec<String> = members
        .into_iter()
        .map(|(name, value)| format!("{}:{value}", quoted(&name)))
        .collect();
    format!("{{{}}}", members.join(","))
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control < ' ' => quoted.push_str(&format!("\\u{:04x}", control as u32)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_what_their_limits_say() {
        let mut last = None;
        for micros in (0..5000)
            .chain((13..64).map(|bits| 1 << bits))
            .chain([u64::MAX])
        {
            let bucket = Histogram::bucket(micros);
            assert!(bucket < Histogram::default().counts.len(), "{micros}");
            assert!(Histogram::limit(bucket) >= micros, "{micros} in {bucket}");
            assert!(
                bucket == 0 || Histogram::limit(bucket - 1) < micros,
                "{micros} in {bucket}"
            );
            assert!(last <= Some(bucket), "{micros}");
            last = Some(bucket);
        }
    }

    #[test]
    fn percentiles_are_right_to_a_sixteenth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(99), 0);
        for micros in 1..=1000 {
            histogram.add(Duration::from_micros(micros));
        }
        assert!((500..=532).contains(&histogram.percentile(50)));
        assert!((990..=1000).contains(&histogram.percentile(99)));
        assert_eq!(histogram.percentile(100), 1000);
    }

    #[test]
    fn reports_are_json_that_adds_up() {
        let options = Options::parse(&["http://web".to_owned()]).expect("a URL is enough");
        let mut record = Record::new(1);
        let due = record.began();
        for body in ["web \"v1\"\nmore\n", "web \"v1\"\nother\n"] {
            record.sent();
            record.ok(Duration::from_millis(1), body.as_bytes());
        }
        for message in ["one\ttwo", "three"] {
            record.sent();
            record.failed(due, Failure::new(Kind::Reset, message));
        }
        let interval: serde_json::Value =
            serde_json::from_str(&record.interval()).expect("an interval");
        let total: serde_json::Value =
            serde_json::from_str(&record.total(&options)).expect("a total");
        for counts in [&interval["interval"], &total["total"]] {
            assert_eq!(
                (&counts["sent"], &counts["ok"], &counts["failed"]),
                (&4.into(), &2.into(), &2.into())
            );
        }
        let total = &total["total"];
        assert_eq!(total["failures"]["reset"], 2);
        assert_eq!(total["failed_by_second"]["0"], 2);
        assert_eq!(total["answers"]["web \"v1\""], 2);
        assert_eq!(total["messages"].as_array().map(Vec::len), Some(1));
        assert_eq!(total["messages"][0]["message"], "reset: one\ttwo");
        let next: serde_json::Value = serde_json::from_str(&record.interval()).expect("another");
        assert_eq!(next["interval"]["sent"], 0);
    }
}
