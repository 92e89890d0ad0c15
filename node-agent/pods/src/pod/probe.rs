//! One task per probe of a running container: asks in its period, counts, and tells the worker of changes.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::hooks::{Action, Target};

/// After a container's first answer that it is not ready yet it is asked again; then after twice as long, and so on.
const SOON: Duration = Duration::from_millis(50);

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Startup,
    Liveness,
    Readiness,
}

impl Purpose {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What a probe found.
#[derive(Clone, Debug)]
pub(crate) enum Finding {
    /// One failure, for an Event.
    Failed(String),
    /// It could not be tried, for an Event: nothing follows from it.
    Errored(String),
    /// A success of which something is to be told, for an Event.
    Warned(String),
    /// The threshold was reached: from now on this is the state.
    Now(bool),
}

/// A finding and where it belongs.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) index: usize,
    pub(crate) attempt: u32,
    pub(crate) purpose: Purpose,
    pub(crate) finding: Finding,
}

fn seconds(value: Option<i32>, default: i32) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(default).max(0)).unwrap_or(0))
}

fn threshold(value: Option<i32>, default: i32) -> u32 {
    u32::try_from(value.unwrap_or(default)).unwrap_or(1).max(1)
}

/// Counts outcomes until a threshold is reached; pure.
pub(crate) struct Counter {
    success: u32,
    failure: u32,
    run: (bool, u32),
    state: Option<bool>,
}

impl Counter {
    pub(crate) fn new(probe: &Probe) -> Self {
        Self {
            success: threshold(probe.success_threshold, 1),
            failure: threshold(probe.failure_threshold, 3),
            run: (true, 0),
            state: None,
        }
    }

    /// Takes an outcome; answers the new state when it has changed.
    pub(crate) fn count(&mut self, good: bool) -> Option<bool> {
        self.run = if self.run.0 == good {
            (good, self.run.1 + 1)
        } else {
            (good, 1)
        };
        let needed = if good { self.success } else { self.failure };
        if self.run.1 >= needed && self.state != Some(good) {
            self.state = Some(good);
            return self.state;
        }
        None
    }
}

/// How soon a container is asked again whether it is ready, that has not been so yet: its pod is not kept waiting for a whole
/// period because it was asked a moment before it listened. Pauses double until they reach the period, so that one which
/// never is ready costs no more than a handful of questions.
struct Eagerness {
    pause: Option<Duration>,
    period: Duration,
}

impl Eagerness {
    fn of(purpose: Purpose, period: Duration) -> Self {
        let pause = (purpose == Purpose::Readiness).then_some(SOON);
        Self { pause, period }
    }

    /// Waits for the next of the period's ticks, or for an earlier time; whether it is an earlier one.
    async fn wait(&self, ticks: &mut Interval, has_been_asked: bool) -> bool {
        match self.pause.filter(|_| has_been_asked) {
            Some(pause) => tokio::select! {
                biased;
                _ = ticks.tick() => false,
                () = tokio::time::sleep(pause) => true,
            },
            None => {
                ticks.tick().await;
                false
            }
        }
    }

    /// Takes in an answer, to an earlier question or to one of the period's.
    fn answered(&mut self, is_good: bool, is_early: bool) {
        let longer = |pause: Duration| match is_early {
            true => pause * 2,
            false => pause,
        };
        let next = self.pause.filter(|_| !is_good).map(longer);
        self.pause = next.filter(|next| *next < self.period);
    }
}

/// Probes until aborted, or until a startup probe has succeeded, or the container is to be killed for it.
pub(crate) async fn run(
    probe: Probe,
    target: Target,
    index: usize,
    purpose: Purpose,
    began: Instant,
    reports: mpsc::Sender<Report>,
) {
    let Some(action) = Action::of_probe(&probe, &target.container) else {
        return;
    };
    let attempt = target.id.attempt;
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let first = (began + seconds(probe.initial_delay_seconds, 0)).max(Instant::now());
    let mut ticks = tokio::time::interval_at(first, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut counter = Counter::new(&probe);
    let (mut eagerness, mut has_been_asked) = (Eagerness::of(purpose, period), false);
    loop {
        let is_early = eagerness.wait(&mut ticks, has_been_asked).await;
        has_been_asked = true;
        let outcome = action.run(&target, Some(timeout)).await;
        eagerness.answered(outcome.is_ok(), is_early);
        if is_early && outcome.is_err() {
            // Failures count, and are told, once per period.
            continue;
        }
        let (told, change) = match outcome {
            Ok(success) => (success.warning.map(Finding::Warned), counter.count(true)),
            Err(failure) if failure.untried => (Some(Finding::Errored(failure.message)), None),
            Err(failure) => (Some(Finding::Failed(failure.message)), counter.count(false)),
        };
        let findings = told.into_iter().chain(change.map(Finding::Now));
        for finding in findings {
            if reports
                .send(Report {
                    index,
                    attempt,
                    purpose,
                    finding,
                })
                .await
                .is_err()
            {
                return;
            }
        }
        match (purpose, change) {
            (Purpose::Startup, Some(_)) | (Purpose::Liveness, Some(false)) => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_is_never_ready_is_not_asked_early_for_long() {
        let mut eagerness = Eagerness::of(Purpose::Readiness, Duration::from_secs(10));
        eagerness.answered(false, false);
        let mut pauses = Vec::new();
        while let Some(pause) = eagerness.pause {
            pauses.push(pause.as_millis());
            eagerness.answered(false, true);
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 6400]);
        let mut ready = Eagerness::of(Purpose::Readiness, Duration::from_secs(10));
        ready.answered(true, false);
        ready.answered(false, false);
        assert_eq!(ready.pause, None, "it has been ready");
        for purpose in [Purpose::Startup, Purpose::Liveness] {
            assert_eq!(Eagerness::of(purpose, SOON * 10).pause, None);
        }
    }

    #[test]
    fn thresholds() {
        let probe =
            serde_json::from_value(json!({"successThreshold": 2, "failureThreshold": 3})).unwrap();
        let mut counter = Counter::new(&probe);
        let outcomes = [
            true, true, true, false, false, true, false, false, false, false, true, true,
        ];
        let changes: Vec<Option<bool>> = outcomes
            .into_iter()
            .map(|good| counter.count(good))
            .collect();
        let mut expected = vec![None; 12];
        (expected[1], expected[8], expected[11]) = (Some(true), Some(false), Some(true));
        assert_eq!(changes, expected);
    }
}
