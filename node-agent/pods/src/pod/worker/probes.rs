//! A running container's probes: when each begins, and what its findings change.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use tokio::time::Instant;

use super::Worker;
use crate::limits;
use crate::pod::probe::{self, Finding, Purpose, Report};
use crate::pod::record::{Stage, now_nanos};
use crate::traits::Severity;

impl Worker {
    /// The startup probe, or the others when there is none.
    pub(super) fn begin_probes(&mut self, index: usize) {
        let Some(container) = self.container(index) else {
            return;
        };
        match container.startup_probe {
            Some(startup) => self.spawn_probe(index, Purpose::Startup, startup),
            None => self.started(index),
        }
    }

    /// Probes of containers that were running before this process.
    pub(super) fn resume_probes(&mut self) {
        for index in 0..self.records.len() {
            match self.records[index].stage {
                Stage::Running { started: true, .. } if self.controls[index].probes.is_empty() => {
                    self.spawn_steady(index)
                }
                Stage::Running { started: false, .. } if self.controls[index].probes.is_empty() => {
                    self.begin_probes(index)
                }
                _ => {}
            }
        }
    }

    pub(super) fn started(&mut self, index: usize) {
        let has_readiness = self
            .container(index)
            .is_some_and(|container| container.readiness_probe.is_some());
        if let Stage::Running { started, ready, .. } = &mut self.records[index].stage {
            (*started, *ready) = (true, !has_readiness);
            self.spawn_steady(index);
        }
    }

    pub(super) fn spawn_steady(&mut self, index: usize) {
        let Some(container) = self.container(index) else {
            return;
        };
        if let Some(probe) = container.liveness_probe {
            self.spawn_probe(index, Purpose::Liveness, probe);
        }
        if let Some(probe) = container.readiness_probe {
            self.spawn_probe(index, Purpose::Readiness, probe);
        }
    }

    pub(super) fn spawn_probe(&mut self, index: usize, purpose: Purpose, probe: Probe) {
        let (Some(target), Stage::Running { since, .. }) =
            (self.target(index), &self.records[index].stage)
        else {
            return;
        };
        let ran = Duration::from_nanos(u64::try_from(now_nanos() - since).unwrap_or(0));
        let began = Instant::now().checked_sub(ran).unwrap_or_else(Instant::now);
        let task = tokio::spawn(probe::run(
            probe,
            target,
            index,
            purpose,
            began,
            self.probes.0.clone(),
        ));
        self.controls[index].probes.push(task.abort_handle());
    }

    pub(super) fn probed(&mut self, report: Report) {
        let Report {
            index,
            attempt,
            purpose,
            finding,
        } = report;
        let record = &mut self.records[index];
        let name = record.name.clone();
        let (true, Stage::Running { ready, .. }) =
            (record.attempt == Some(attempt), &mut record.stage)
        else {
            return;
        };
        // A pod that ends has nothing begin again: only who still sends to it is told of it.
        if self.stopping.is_some() && purpose != Purpose::Readiness {
            return;
        }
        match (purpose, finding) {
            (_, Finding::Failed(message)) => {
                let text = format!("{} probe failed: {message}", purpose.words());
                self.event(Some(&name), Severity::Warning, "Unhealthy", &text);
            }
            (_, Finding::Errored(message)) => {
                let what = purpose.words();
                let text = format!("{what} probe errored and resulted in unknown state: {message}");
                self.event(Some(&name), Severity::Warning, "Unhealthy", &text);
            }
            (_, Finding::Warned(message)) => {
                let text = format!("{} probe warning: {message}", purpose.words());
                self.event(Some(&name), Severity::Warning, "ProbeWarning", &text);
            }
            (Purpose::Readiness, Finding::Now(state)) => *ready = state,
            (Purpose::Startup, Finding::Now(true)) => self.started(index),
            (Purpose::Liveness, Finding::Now(true)) => {}
            (Purpose::Startup | Purpose::Liveness, Finding::Now(false)) => {
                let own = self.container(index).and_then(|container| match purpose {
                    Purpose::Startup => container.startup_probe,
                    _ => container.liveness_probe,
                });
                let own = own.and_then(|probe| probe.termination_grace_period_seconds);
                let grace = own.map_or_else(|| self.grace(), limits::grace);
                let what = purpose.words().to_lowercase();
                // Whatever signal it ends by, it is no success.
                let then = match self.records[index].restarts.again(128 + 9) {
                    true => ", will be restarted",
                    false => "",
                };
                let why = format!("Container {name} failed {what} probe{then}");
                self.stop_container(index, grace, &why);
            }
        }
    }
}
