//! From waiting to running: launches, back-offs after failures, postStart hooks.

use std::sync::Arc;
use std::time::Duration;

use gantry_cri::runtime::{ContainerId, ContainerState, PodUid};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::surroundings::Surroundings;
use super::{Effect, Worker};
use crate::pod::backoff::{FORGET, words};
use crate::pod::hooks::{Action, Success};
use crate::pod::launch::{Launch, Launched, NotLaunched, rootfs_key};
use crate::pod::node::full_name;
use crate::pod::record::{Ended, Record, Role, Stage, now_nanos};
use crate::traits::Severity;

/// How long `ErrImagePull` is shown before `ImagePullBackOff`.
const SHOW_ERROR: Duration = Duration::from_secs(2);
/// A wrong reference is tried again this often, and at once when the object appears.
const CONFIG_RETRY: Duration = Duration::from_secs(10);

impl Worker {
    /// Starts a container, or decides how long it has to wait.
    pub(super) fn start(&mut self, index: usize) {
        if let Stage::Ended(ended) = &self.records[index].stage {
            let ended = ended.clone();
            self.back_off(index, &ended);
        }
        let waits = self.controls[index]
            .retry_at
            .is_some_and(|at| at > Instant::now());
        let (Surroundings::Ready(sandbox), false) = (&self.surroundings, waits) else {
            return;
        };
        let Some(container) = self.container(index) else {
            return;
        };
        let launch = Launch {
            node: self.node.clone(),
            pod: self.pod.clone(),
            uid: self.uid.clone(),
            container: Arc::new(container),
            attempt: self.records[index].next_attempt(),
            sandbox: sandbox.clone(),
            journal: self.journal.clone(),
            cancel: self.cancel.clone(),
        };
        let (reason, message) = match &self.records[index].stage {
            Stage::Waiting { reason, message } => (reason.clone(), message.clone()),
            _ => Default::default(),
        };
        let attempt = launch.attempt;
        let record = &mut self.records[index];
        record.stage = Stage::Starting { reason, message };
        record.changed = false;
        let control = &mut self.controls[index];
        (control.retry_at, control.back_off_at) = (None, None);
        control.turn = CancellationToken::new();
        control.ended = CancellationToken::new();
        self.effects.spawn(async move {
            Effect::Launched {
                index,
                attempt,
                result: Box::new(launch.run().await),
            }
        });
    }

    /// From ended to waiting; releases what the attempt held.
    pub(super) fn back_off(&mut self, index: usize, ended: &Ended) {
        let ran = u64::try_from(ended.exit.finished_at - ended.exit.started_at).unwrap_or(0);
        let control = &mut self.controls[index];
        if ended.exit.started_at > 0 && Duration::from_nanos(ran) >= FORGET {
            control.restarts.reset();
        }
        let delay = control.restarts.restart_delay();
        let (mut reason, mut message) = (String::new(), String::new());
        if !delay.is_zero() {
            let since_exit = u64::try_from(now_nanos() - ended.exit.finished_at).unwrap_or(0);
            control.retry_at =
                Some(Instant::now() + delay.saturating_sub(Duration::from_nanos(since_exit)));
            let (name, pod) = (&self.records[index].name, full_name(&self.pod));
            reason = "CrashLoopBackOff".to_owned();
            message = format!(
                "back-off {} restarting failed container={name} pod={pod}",
                words(delay)
            );
            let text = format!("Back-off restarting failed container {name} in pod {pod}");
            self.event(Some(name), Severity::Warning, "BackOff", &text);
        }
        let record = &mut self.records[index];
        record.last = Some(ended.clone());
        record.stage = Stage::Waiting { reason, message };
        self.release(index, ended.attempt);
    }

    /// Gives back what an attempt held that is over, and the log of the one before it.
    fn release(&mut self, index: usize, attempt: u32) {
        let record = &self.records[index];
        let id = ContainerId {
            pod: PodUid(self.uid.clone()),
            name: record.name.clone(),
            attempt,
        };
        let (node, key) = (
            self.node.clone(),
            rootfs_key(&self.uid, &record.name, attempt),
        );
        let old_logs = attempt
            .checked_sub(1)
            .map(|old| (node.log_dir(&self.pod).join(&record.name), old));
        self.effects.spawn(async move {
            let released = async {
                node.runtime
                    .remove_container(&id)
                    .await
                    .map_err(|error| error.to_string())?;
                if let Some((directory, attempt)) = old_logs {
                    crate::logs::remove(&directory, attempt).await;
                }
                node.images
                    .unmount_rootfs(&key)
                    .await
                    .map_err(|error| error.to_string())
            };
            Effect::Released(released.await)
        });
    }

    /// The sandbox is gone, and what init containers did in it: they run again, before what is to go on.
    pub(super) fn initialise_again(&mut self) {
        let is_through =
            |record: &Record| record.role == Role::Init && matches!(record.stage, Stage::Ended(_));
        let goes_on = |record: &Record| match &record.stage {
            Stage::Ended(ended) => record.role == Role::Main && record.again(ended),
            _ => record.role == Role::Main,
        };
        if !self.records.iter().any(is_through) || !self.records.iter().any(goes_on) {
            return;
        }
        self.initialised = false;
        self.note(|notes| notes.initialised = false);
        for index in 0..self.records.len() {
            let record = &mut self.records[index];
            if let (Role::Init, Stage::Ended(ended)) = (record.role, &record.stage) {
                let attempt = ended.attempt;
                record.last = Some(ended.clone());
                record.stage = Stage::idle();
                self.release(index, attempt);
            }
        }
    }

    pub(super) fn launched(
        &mut self,
        index: usize,
        attempt: u32,
        result: Result<Launched, NotLaunched>,
    ) {
        match result {
            Ok(launched) => self.running(index, attempt, launched),
            Err(NotLaunched::Cancelled) => self.records[index].stage = Stage::idle(),
            Err(NotLaunched::Failed(ended)) => {
                self.records[index].attempt = Some(attempt);
                self.ended(index, ended);
            }
            Err(NotLaunched::Config { reason, message }) => {
                self.records[index].stage = Stage::Waiting {
                    reason: reason.to_owned(),
                    message,
                };
                self.controls[index].retry_at = Some(Instant::now() + CONFIG_RETRY);
            }
            Err(NotLaunched::Image(failure)) => {
                let control = &mut self.controls[index];
                let delay = control.pulls.pull_delay();
                // What cannot succeed is looked at again only when the specification changes.
                let delay = if failure.retry {
                    delay
                } else {
                    Duration::from_secs(24 * 3600)
                };
                control.retry_at = Some(Instant::now() + delay);
                control.back_off_at =
                    (failure.reason == "ErrImagePull").then(|| Instant::now() + SHOW_ERROR);
                self.records[index].stage = Stage::Waiting {
                    reason: failure.reason.to_owned(),
                    message: failure.message,
                };
            }
        }
    }

    /// A failed pull becomes a back-off.
    pub(super) fn back_off_words(&mut self) {
        for index in 0..self.records.len() {
            let due = self.controls[index]
                .back_off_at
                .is_some_and(|at| at <= Instant::now());
            let (true, Stage::Waiting { message, .. }) = (due, &self.records[index].stage) else {
                continue;
            };
            let image = self
                .container(index)
                .and_then(|container| container.image)
                .unwrap_or_default();
            let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {message}");
            self.controls[index].back_off_at = None;
            let name = self.records[index].name.clone();
            let words = format!("Back-off pulling image \"{image}\"");
            self.event(Some(&name), Severity::Normal, "BackOff", &words);
            self.event(
                Some(&name),
                Severity::Warning,
                "Failed",
                "Error: ImagePullBackOff",
            );
            self.records[index].stage = Stage::Waiting {
                reason: "ImagePullBackOff".to_owned(),
                message,
            };
        }
    }

    pub(super) fn running(&mut self, index: usize, attempt: u32, launched: Launched) {
        let record = &mut self.records[index];
        (record.attempt, record.image, record.image_id) =
            (Some(attempt), launched.image, launched.image_id);
        record.resources = Some(launched.resources);
        let control = &mut self.controls[index];
        control.pulls.reset();
        control.stop_signal = launched.stop_signal;
        let early = control
            .early
            .take()
            .filter(|(early, _)| *early == attempt)
            .map(|(_, exit)| exit);
        let since = match launched.status.state {
            ContainerState::Running { started_at, .. } => started_at,
            ContainerState::Exited(exit) => return self.ended(index, Ended::new(attempt, exit)),
            ContainerState::Created => now_nanos(),
        };
        self.records[index].stage = Stage::Running {
            since,
            started: false,
            ready: false,
        };
        if let Some(exit) = early {
            return self.ended(index, Ended::new(attempt, exit));
        }
        let container = self.container(index).unwrap_or_default();
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.post_start.as_ref());
        match (hook.and_then(Action::of_hook), self.target(index)) {
            (Some(action), Some(target)) => {
                self.effects.spawn(async move {
                    let result = action.run(&target, None).await;
                    Effect::Hooked {
                        index,
                        attempt,
                        result: result.map_err(|failure| failure.message),
                    }
                });
            }
            _ => self.begin_probes(index),
        }
    }

    pub(super) fn hooked(&mut self, index: usize, attempt: u32, result: Result<Success, String>) {
        if self.records[index].attempt != Some(attempt)
            || !matches!(self.records[index].stage, Stage::Running { .. })
        {
            return;
        }
        match result {
            Ok(_) => self.begin_probes(index),
            Err(message) => {
                let name = self.records[index].name.clone();
                let text = format!("PostStartHook failed: {message}");
                self.event(Some(&name), Severity::Warning, "FailedPostStartHook", &text);
                self.stop_container(index, self.grace(), "FailedPostStartHook");
            }
        }
    }
}
