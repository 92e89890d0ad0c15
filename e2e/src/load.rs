//! Load on a service while something happens to it: the demo's generator, in a pod or outside, and what it reports.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::json;

use crate::{Fleet, TOOLS, eventually};

/// How load is made.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// `http://HOST[:PORT]/`
    pub url: String,
    /// Whether requests share connections; a connection per request otherwise.
    pub keep_alive: bool,
    /// Requests per second.
    pub rate: u32,
    /// Percent by which the rate of each second is higher or lower.
    pub noise: u32,
    /// Shared connections while answers are in time.
    pub connections: u32,
}

impl LoadOptions {
    /// A new connection per request.
    pub fn new(url: impl Into<String>, rate: u32) -> Self {
        Self {
            url: url.into(),
            keep_alive: false,
            rate,
            noise: 0,
            connections: 20,
        }
    }

    /// Connections that are kept.
    pub fn keep_alive(url: impl Into<String>, rate: u32) -> Self {
        Self {
            keep_alive: true,
            ..Self::new(url, rate)
        }
    }

    fn arguments(&self) -> Vec<String> {
        let mode = if self.keep_alive { "keep-alive" } else { "new" };
        let [rate, noise, connections] =
            [self.rate, self.noise, self.connections].map(|number| number.to_string());
        let arguments = [
            "load",
            &self.url,
            "--mode",
            mode,
            "--rate",
            &rate,
            "--noise",
            &noise,
            "--connections",
            &connections,
        ];
        arguments.map(str::to_owned).to_vec()
    }
}

/// What has become of the requests since the last report.
#[derive(Clone, Debug, Deserialize)]
pub struct Interval {
    /// Its end in milliseconds after the load's begin.
    pub to_ms: u64,
    /// Requests answered.
    pub ok: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// A failure in full.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    /// When the request was due, in milliseconds after the load's begin.
    pub at_ms: u64,
    /// What has happened.
    pub message: String,
}

/// What has become of all requests.
#[derive(Clone, Debug, Deserialize)]
pub struct Total {
    /// When the load has begun, in milliseconds of Unix time.
    pub began_unix_ms: i64,
    /// How long it has lasted.
    pub ms: u64,
    /// Requests that were due: each was answered or has failed.
    pub sent: u64,
    /// Requests answered in full with 200.
    pub ok: u64,
    /// All others.
    pub failed: u64,
    /// Those by kind.
    pub failures: BTreeMap<String, u64>,
    /// Those by the second after the begin in which they were due.
    pub failed_by_second: BTreeMap<String, u64>,
    /// The first of them.
    pub messages: Vec<Message>,
    /// Kept-alive connections that an answer asked to end.
    pub told_to_close: u64,
    /// Latencies in microseconds, from when a request was due.
    pub p50_us: u64,
    /// As `p50_us`.
    pub p99_us: u64,
    /// As `p50_us`.
    pub max_us: u64,
    /// The first lines of answers, and how often each came.
    pub answers: BTreeMap<String, u64>,
}

impl Total {
    /// The answers that begin so.
    pub fn answered(&self, start: &str) -> u64 {
        let answers = self.answers.iter();
        let such = answers.filter(|(answer, _)| answer.starts_with(start));
        such.map(|(_, count)| count).sum()
    }

    /// When the last second began in which requests were sent that failed.
    pub fn last_failure(&self) -> Result<Option<Timestamp>> {
        self.failing_seconds()
            .map(|seconds| seconds.last().copied())
    }

    /// When the first such second began.
    pub fn first_failure(&self) -> Result<Option<Timestamp>> {
        self.failing_seconds()
            .map(|seconds| seconds.first().copied())
    }

    fn failing_seconds(&self) -> Result<Vec<Timestamp>> {
        let mut seconds = Vec::new();
        for second in self.failed_by_second.keys() {
            let second: i64 = second.parse().context("a second is a number")?;
            seconds.push(Timestamp::from_millisecond(
                self.began_unix_ms + 1000 * second,
            )?);
        }
        seconds.sort();
        Ok(seconds)
    }

    /// One line for people.
    pub fn summary(&self, what: &str) -> String {
        format!(
            "{what}: {} requests in {:.1} s, {} failed {:?}; p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            self.sent,
            self.ms as f64 / 1e3,
            self.failed,
            self.failures,
            self.p50_us as f64 / 1e3,
            self.p99_us as f64 / 1e3,
            self.max_us as f64 / 1e3,
        )
    }

    /// Nothing has failed, and nearly as much was sent as was asked for.
    pub fn is_clean(&self, options: &LoadOptions) -> Result<()> {
        ensure!(
            self.failed == 0 && self.ok == self.sent,
            "{} of {} requests failed: {:?}\n{:#?}",
            self.failed,
            self.sent,
            self.failures,
            self.messages
        );
        let asked = u64::from(options.rate) * self.ms / 1000;
        ensure!(
            self.sent * 100 >= asked * 95,
            "only {} of {asked} requests were sent",
            self.sent
        );
        Ok(())
    }
}

/// Where a generator runs.
enum Place {
    /// A pod of this name.
    Pod(String),
    /// A process where clients are, and the file that it writes to.
    Client(Child, tempfile::TempDir),
}

/// A generator at work. Outside of pods it ends with the value.
pub struct Load {
    /// What it was asked for.
    pub options: LoadOptions,
    place: Place,
}

const REPORTS: &str = "reports";

impl Load {
    /// Starts a generator in a pod of a node, and returns when it gets answers.
    pub fn in_pod(fleet: &Fleet, name: &str, node: &str, options: LoadOptions) -> Result<Self> {
        fleet.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "load"}},
            "spec": {
                "nodeName": node,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                // It reports from a node that is given up, too.
                "tolerations": [{"operator": "Exists"}],
                "containers": [{
                    "name": "load",
                    "image": TOOLS,
                    "command": ["/web"],
                    "args": options.arguments(),
                }],
            },
        }))?;
        let load = Self {
            options,
            place: Place::Pod(name.to_owned()),
        };
        load.wait_answered(fleet)?;
        Ok(load)
    }

    /// Starts a generator where clients are, and returns when it gets answers.
    pub fn outside(fleet: &Fleet, options: LoadOptions) -> Result<Self> {
        let load = Self::begin(fleet, options)?;
        load.wait_answered(fleet)?;
        Ok(load)
    }

    /// Starts a generator where clients are.
    pub fn begin(fleet: &Fleet, options: LoadOptions) -> Result<Self> {
        let directory = tempfile::tempdir().context("making a directory for reports")?;
        let program = directory.path().join("web");
        fs::write(&program, gantry_demo::WEB).context("writing the generator")?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let reports = fs::File::create(directory.path().join(REPORTS))?;
        let child = fleet
            .command(&program)
            .args(options.arguments())
            .stdin(Stdio::null())
            .stdout(reports)
            .spawn()
            .context("starting the generator")?;
        Ok(Self {
            options,
            place: Place::Client(child, directory),
        })
    }

    /// What it has printed.
    fn reports(&self, fleet: &Fleet) -> Result<String> {
        match &self.place {
            Place::Pod(name) => fleet.kubectl("s1", &["logs", name]),
            Place::Client(_, directory) => {
                fs::read_to_string(directory.path().join(REPORTS)).context("reading the reports")
            }
        }
    }

    /// Its reports so far.
    pub fn intervals(&self, fleet: &Fleet) -> Result<Vec<Interval>> {
        #[derive(Deserialize)]
        struct Line {
            interval: Interval,
        }
        let text = self.reports(fleet)?;
        // The last line may not be whole yet.
        let lines = text.lines().map(serde_json::from_str::<Line>);
        Ok(lines
            .map_while(Result::ok)
            .map(|line| line.interval)
            .collect())
    }

    fn wait_answered(&self, fleet: &Fleet) -> Result<()> {
        eventually("the load's first answers", || {
            let intervals = self.intervals(fleet)?;
            ensure!(
                intervals.iter().any(|interval| interval.ok > 0),
                "{intervals:?}"
            );
            Ok(())
        })
        .with_context(|| fleet.logs())
    }

    /// Waits until the load has gone on for so long from now on.
    pub fn wait(&self, fleet: &Fleet, duration: Duration) -> Result<()> {
        let reached = |intervals: &[Interval]| intervals.last().map_or(0, |last| last.to_ms);
        let begin = reached(&self.intervals(fleet)?);
        let wanted = begin + u64::try_from(duration.as_millis())?;
        eventually("the load to go on", || {
            let now = reached(&self.intervals(fleet)?);
            ensure!(now >= wanted, "{now} of {wanted} ms");
            Ok(())
        })
    }

    /// Waits until none of the last so many reports has a failure.
    pub fn wait_clean(&self, fleet: &Fleet, reports: usize) -> Result<()> {
        eventually("traffic to be clean", || {
            let intervals = self.intervals(fleet)?;
            let tail = &intervals[intervals.len().saturating_sub(reports)..];
            let clean = |interval: &Interval| interval.ok > 0 && interval.failed == 0;
            ensure!(
                tail.len() == reports && tail.iter().all(clean),
                "the last reports: {tail:?}"
            );
            Ok(())
        })
        .with_context(|| fleet.logs())
    }

    /// Ends the load, when every request is answered or has failed.
    pub fn finish(mut self, fleet: &Fleet) -> Result<Total> {
        #[derive(Deserialize)]
        struct Line {
            total: Total,
        }
        match &mut self.place {
            Place::Pod(name) => {
                fleet.exec(name, &["kill", "-TERM", "1"])?;
                eventually("the generator's end", || {
                    let phase = fleet.pod(name)?.phase;
                    ensure!(phase == "Succeeded", "{name} is {phase}");
                    Ok(())
                })?;
            }
            Place::Client(child, _) => {
                kill_process(Pid::from_child(child), Signal::TERM)?;
                let status = child.wait()?;
                ensure!(status.success(), "the generator ended with {status}");
            }
        }
        let reports = self.reports(fleet)?;
        let last = reports.lines().last().context("a report")?;
        let line: Line = serde_json::from_str(last).with_context(|| format!("reading {last:?}"))?;
        let total = line.total;
        ensure!(
            total.ok + total.failed == total.sent,
            "requests are unaccounted for: {total:?}"
        );
        Ok(total)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Place::Client(child, _) = &mut self.place {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }
}
