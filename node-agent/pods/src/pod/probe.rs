//! One task per probe of a running container: asks in its period, counts, and tells the worker of changes.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::hooks::{Action, Target};

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
    loop {
        ticks.tick().await;
        let outcome = action.run(&target, Some(timeout)).await;
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
