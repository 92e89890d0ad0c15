//! From running to ended: stopping containers in their order, and taking note of ends, wanted or not.

use std::time::Duration;

use gantry_cri::runtime::{ContainerExit, ContainerId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::recover::lost;
use super::surroundings::Surroundings;
use super::{Effect, Worker};
use crate::pod::record::{Ended, Notes, Record, Role, Stage};
use crate::pod::stop::{Stop, signal_number};
use crate::traits::Severity;

impl Worker {
    /// Begins to stop a running container; nothing happens when that is under way.
    pub(super) fn stop_container(&mut self, index: usize, grace: Duration, why: &str) {
        let turn = CancellationToken::new();
        turn.cancel();
        self.stop_in_turn(index, grace, why, turn);
    }

    /// As [`Self::stop_container`], but the signal is sent when `turn` is cancelled.
    fn stop_in_turn(&mut self, index: usize, grace: Duration, why: &str, turn: CancellationToken) {
        let running = matches!(self.records[index].stage, Stage::Running { .. });
        if !running || self.controls[index].stopping.is_some() {
            return;
        }
        let Some(target) = self.target(index) else {
            return;
        };
        let name = self.records[index].name.clone();
        let message = if why.is_empty() {
            format!("Stopping container {name}")
        } else {
            why.to_owned()
        };
        self.event(Some(&name), Severity::Normal, "Killing", &message);
        let lifecycle = target.container.lifecycle.clone();
        let own_signal = lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone());
        let control = &mut self.controls[index];
        let stop = Stop {
            node: self.node.clone(),
            pod: self.pod.clone(),
            grace,
            hook: true,
            drain: self
                .stopping
                .as_ref()
                .is_some_and(|stopping| stopping.deleted)
                && self.pod.spec.as_ref().and_then(|spec| spec.host_network) != Some(true),
            signal: signal_number(own_signal.as_deref().or(control.stop_signal.as_deref())),
            turn,
            ended: control.ended.clone(),
            target,
        };
        control.stopping = Some(self.effects.spawn(async move {
            stop.run().await;
            Effect::Stopped { index }
        }));
    }

    /// Stops what still runs; whether nothing does. The hooks of all begin at once, as does the time that all of them have;
    /// sidecars get their signals after the others have ended, the last one first.
    pub(super) fn all_stopped(&mut self, grace: Duration) -> bool {
        let runs = |record: &Record| {
            matches!(record.stage, Stage::Running { .. } | Stage::Starting { .. })
        };
        let others = |record: &Record| record.role != Role::Sidecar;
        for (record, control) in self.records.iter().zip(&self.controls) {
            if others(record) {
                control.turn.cancel();
            }
        }
        let others_run = self.records.iter().any(|one| others(one) && runs(one));
        let last = self.records.iter().rposition(runs);
        if let Some(last) = last.filter(|_| !others_run) {
            self.controls[last].turn.cancel();
        }
        for index in 0..self.records.len() {
            let turn = self.controls[index].turn.clone();
            self.stop_in_turn(index, grace, "", turn);
        }
        last.is_none()
    }

    pub(super) fn exited(&mut self, id: &ContainerId, exit: ContainerExit) {
        let Some(index) = self
            .records
            .iter()
            .position(|record| record.name == id.name)
        else {
            return;
        };
        match self.records[index].stage {
            Stage::Running { .. } if self.records[index].attempt == Some(id.attempt) => {
                self.ended(index, Ended::new(id.attempt, exit));
            }
            Stage::Starting { .. } => self.controls[index].early = Some((id.attempt, exit)),
            _ => {}
        }
    }

    pub(super) fn ended(&mut self, index: usize, mut ended: Ended) {
        let container = self.container(index).unwrap_or_default();
        let falls_back =
            container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if falls_back && !ended.succeeded() && ended.exit.message.is_empty() {
            let directory = self.node.log_dir(&self.pod).join(&container.name);
            ended.exit.message = crate::logs::last_words(&directory, ended.attempt);
        }
        tracing::info!(
            pod = self.uid,
            container = container.name,
            attempt = ended.attempt,
            code = ended.exit.code,
            reason = ended.reason,
            "container ended"
        );
        self.note(|notes| {
            let entry = notes.containers.entry(container.name.clone()).or_default();
            entry.ended = Some(ended.clone());
        });
        self.controls[index].end_tasks();
        self.records[index].stage = Stage::Ended(ended);
    }

    /// Lets all containers begin anew, when the end of one asks for it; whether some still have to be stopped for that. The
    /// sandbox and the volumes stay, and nobody is given time: nothing of the pod goes away for long.
    pub(super) fn begin_anew(&mut self) -> bool {
        if !self.records.iter().any(Record::restarts_all) {
            return false;
        }
        for index in 0..self.records.len() {
            self.stop_container(index, Duration::ZERO, "");
        }
        let runs = |record: &Record| {
            matches!(record.stage, Stage::Running { .. } | Stage::Starting { .. })
        };
        if self.records.iter().any(runs) {
            return true;
        }
        for (record, control) in self.records.iter_mut().zip(&mut self.controls) {
            // Only who asks again and again is kept waiting.
            if !record.restarts_all() {
                control.restarts.reset();
            }
            if let Stage::Ended(ended) = &record.stage {
                let anew = Ended::restarting(ended.attempt, ended.exit.started_at);
                record.stage = Stage::Ended(anew);
            }
        }
        self.initialised = false;
        // Whoever comes after this agent goes on with it, instead of taking what was asked for as asked again.
        self.note(|notes| {
            notes.initialised = false;
            for record in &self.records {
                if let Stage::Ended(ended) = &record.stage {
                    let entry = notes.containers.entry(record.name.clone()).or_default();
                    entry.ended = Some(ended.clone());
                }
            }
        });
        false
    }

    /// Takes note of what ended while no agent ran.
    pub(super) fn take_missed_ends(&mut self, notes: &Notes) {
        for index in 0..self.records.len() {
            let record = &self.records[index];
            let Stage::Ended(ended) = &record.stage else {
                continue;
            };
            let noted = notes.containers.get(&record.name);
            if noted.and_then(|entry| entry.ended.as_ref()) != Some(ended) {
                let ended = ended.clone();
                self.ended(index, ended);
            }
        }
    }

    pub(super) fn sandbox_lost(&mut self) {
        for index in 0..self.records.len() {
            if let (Stage::Running { .. }, Some(attempt)) =
                (&self.records[index].stage, self.records[index].attempt)
            {
                self.ended(index, lost(attempt));
            }
        }
        if matches!(self.surroundings, Surroundings::Ready(_)) {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.event(None, Severity::Normal, "SandboxChanged", message);
            if self.stopping.is_none() && self.end.is_none() {
                self.initialise_again();
            }
            self.surroundings = Surroundings::Missing {
                retry_at: Instant::now(),
            };
        }
    }
}
