//! The worker's containers: starting, back-off, probes, hooks, stopping, and taking over what runs already.

use std::sync::Arc;
use std::time::Duration;

use gantry_runtime::{ContainerExit, ContainerId, ContainerState, PodUid, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Probe};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::{Backoff, FORGET, words};
use super::hooks::{Action, Target};
use super::launch::{Launch, Launched, NotLaunched, Sandbox, rootfs_key};
use super::node::full_name;
use super::probe::{self, Finding, Purpose, Report};
use super::record::{Ended, Notes, Record, Role, Stage, containers};
use super::setup;
use super::status::container_id;
use super::stop::{Stop, signal_number};
use super::worker::{Effect, Surroundings, Worker, now_nanos};
use crate::limits;
use crate::reports::Severity;

/// How long `ErrImagePull` is shown before `ImagePullBackOff`.
const SHOW_ERROR: Duration = Duration::from_secs(2);
/// A wrong reference is tried again this often, and at once when the object appears.
const CONFIG_RETRY: Duration = Duration::from_secs(10);

/// What the worker keeps beside a record.
pub(super) struct Control {
    restarts: Backoff,
    pulls: Backoff,
    /// Not started before.
    pub(super) retry_at: Option<Instant>,
    /// When a failed pull's words change to those of its back-off.
    pub(super) back_off_at: Option<Instant>,
    /// The task that stops it.
    pub(super) stopping: Option<AbortHandle>,
    probes: Vec<AbortHandle>,
    /// Cancelled when the attempt ends.
    ended: CancellationToken,
    stop_signal: Option<String>,
    /// It ended before its start was known.
    early: Option<(u32, ContainerExit)>,
}

impl Control {
    fn new(failures: u32, stop_signal: Option<String>) -> Self {
        Self {
            restarts: Backoff::resumed(failures),
            pulls: Backoff::default(),
            retry_at: None,
            back_off_at: None,
            stopping: None,
            probes: Vec::new(),
            ended: CancellationToken::new(),
            stop_signal,
            early: None,
        }
    }

    fn end_tasks(&mut self) {
        for probe in self.probes.drain(..) {
            probe.abort();
        }
        self.ended.cancel();
    }
}

/// An attempt of which nobody knows how it ended.
fn lost(attempt: u32) -> Ended {
    let exit = ContainerExit {
        code: 137,
        signal: None,
        oom_killed: false,
        started_at: 0,
        finished_at: now_nanos(),
        message: "The container could not be located when the pod was terminated".to_owned(),
    };
    Ended {
        attempt,
        exit,
        reason: "ContainerStatusUnknown".to_owned(),
    }
}

/// Records from the journal and from what runs. An attempt that was begun and is nowhere to be found has ended: it is
/// never begun again.
pub(super) fn recover(
    pod: &Pod,
    notes: &Notes,
    found: Option<&SandboxStatus>,
    previous: &PodStatus,
) -> (Vec<Record>, Vec<Control>) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let reported = |name: &str| {
        let all = previous
            .container_statuses
            .iter()
            .flatten()
            .chain(previous.init_container_statuses.iter().flatten());
        all.into_iter().find(|status| status.name == name).cloned()
    };
    let recover_one = |(role, container): (Role, &Container)| {
        let entry = notes
            .containers
            .get(&container.name)
            .cloned()
            .unwrap_or_default();
        let running = found.and_then(|sandbox| {
            let of_name = sandbox
                .containers
                .iter()
                .filter(|status| status.id.name == container.name);
            of_name.max_by_key(|status| status.id.attempt)
        });
        let attempt = entry.attempt.max(running.map(|status| status.id.attempt));
        let current = running.filter(|status| Some(status.id.attempt) == attempt);
        let stage = match (attempt, current.map(|status| &status.state), &entry.ended) {
            (None, ..) => Stage::idle(),
            (Some(attempt), Some(ContainerState::Running { started_at, .. }), _) => {
                let id = container_id(&uid, &container.name, attempt);
                let known = reported(&container.name)
                    .filter(|status| status.container_id.as_ref() == Some(&id));
                let is = |value: Option<bool>| value == Some(true);
                Stage::Running {
                    since: *started_at,
                    started: container.startup_probe.is_none()
                        || is(known.as_ref().and_then(|status| status.started)),
                    ready: container.readiness_probe.is_none()
                        || is(known.as_ref().map(|status| status.ready)),
                }
            }
            (Some(attempt), Some(ContainerState::Exited(exit)), _) => {
                Stage::Ended(Ended::new(attempt, exit.clone()))
            }
            (Some(attempt), _, Some(ended)) if ended.attempt == attempt => {
                Stage::Ended(ended.clone())
            }
            (Some(attempt), ..) => Stage::Ended(lost(attempt)),
        };
        let record = Record {
            name: container.name.clone(),
            role,
            stage,
            attempt,
            last: entry
                .last
                .or(entry.ended.filter(|ended| Some(ended.attempt) != attempt)),
            image: entry.image,
            image_id: entry.image_id,
        };
        (
            record,
            Control::new(attempt.unwrap_or(0), entry.stop_signal),
        )
    };
    containers(&spec).map(recover_one).unzip()
}

impl Worker {
    fn container(&self, index: usize) -> Option<Container> {
        let (spec, name) = (self.pod.spec.as_ref()?, &self.records.get(index)?.name);
        containers(spec)
            .find(|(_, container)| container.name == *name)
            .map(|(_, container)| container.clone())
    }

    fn target(&self, index: usize) -> Option<Target> {
        let record = &self.records[index];
        Some(Target {
            runtime: self.node.runtime.clone(),
            id: ContainerId {
                pod: PodUid(self.uid.clone()),
                name: record.name.clone(),
                attempt: record.attempt?,
            },
            container: Arc::new(self.container(index)?),
            pod_ip: self.pod_ip.clone().unwrap_or_default(),
        })
    }

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
        self.records[index].stage = Stage::Starting { reason, message };
        let control = &mut self.controls[index];
        (control.retry_at, control.back_off_at) = (None, None);
        control.ended = CancellationToken::new();
        self.effects.spawn(async move {
            Effect::Launched {
                index,
                attempt,
                result: launch.run().await,
            }
        });
    }

    /// From ended to waiting; releases what the attempt held.
    fn back_off(&mut self, index: usize, ended: &Ended) {
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
        let id = ContainerId {
            pod: PodUid(self.uid.clone()),
            name: record.name.clone(),
            attempt: ended.attempt,
        };
        let (node, key) = (
            self.node.clone(),
            rootfs_key(&self.uid, &record.name, ended.attempt),
        );
        let old_logs = ended
            .attempt
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

    fn running(&mut self, index: usize, attempt: u32, launched: Launched) {
        let record = &mut self.records[index];
        (record.attempt, record.image, record.image_id) =
            (Some(attempt), launched.image, launched.image_id);
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
                    Effect::Hooked {
                        index,
                        attempt,
                        result: action.run(&target, None).await,
                    }
                });
            }
            _ => self.begin_probes(index),
        }
    }

    pub(super) fn hooked(&mut self, index: usize, attempt: u32, result: Result<(), String>) {
        if self.records[index].attempt != Some(attempt)
            || !matches!(self.records[index].stage, Stage::Running { .. })
        {
            return;
        }
        match result {
            Ok(()) => self.begin_probes(index),
            Err(message) => {
                let name = self.records[index].name.clone();
                let text = format!("PostStartHook failed: {message}");
                self.event(Some(&name), Severity::Warning, "FailedPostStartHook", &text);
                self.stop_container(index, self.grace(), "FailedPostStartHook");
            }
        }
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(u64::try_from(limits::grace_period(&self.pod)).unwrap_or(0))
    }

    /// The startup probe, or the others when there is none.
    fn begin_probes(&mut self, index: usize) {
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

    fn started(&mut self, index: usize) {
        let has_readiness = self
            .container(index)
            .is_some_and(|container| container.readiness_probe.is_some());
        if let Stage::Running { started, ready, .. } = &mut self.records[index].stage {
            (*started, *ready) = (true, !has_readiness);
            self.spawn_steady(index);
        }
    }

    fn spawn_steady(&mut self, index: usize) {
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

    fn spawn_probe(&mut self, index: usize, purpose: Purpose, probe: Probe) {
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
        match (purpose, finding) {
            (_, Finding::Failed(message)) => {
                let text = format!("{} probe failed: {message}", purpose.words());
                self.event(Some(&name), Severity::Warning, "Unhealthy", &text);
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
                let grace = own
                    .and_then(|own| u64::try_from(own).ok())
                    .map_or(self.grace(), Duration::from_secs);
                let what = purpose.words().to_lowercase();
                self.stop_container(
                    index,
                    grace,
                    &format!("Container {name} failed {what} probe, will be restarted"),
                );
            }
        }
    }

    /// Begins to stop a running container; nothing happens when that is under way.
    pub(super) fn stop_container(&mut self, index: usize, grace: Duration, why: &str) {
        let running = matches!(self.records[index].stage, Stage::Running { .. });
        let (true, None, Some(target)) =
            (running, &self.controls[index].stopping, self.target(index))
        else {
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
            ended: control.ended.clone(),
            target,
        };
        control.stopping = Some(self.effects.spawn(async move {
            stop.run().await;
            Effect::Stopped { index }
        }));
    }

    /// Stops what still runs, sidecars after the others; whether nothing does.
    pub(super) fn all_stopped(&mut self, grace: Duration) -> bool {
        let runs = |record: &Record| {
            matches!(record.stage, Stage::Running { .. } | Stage::Starting { .. })
        };
        let others = self
            .records
            .iter()
            .any(|record| record.role != Role::Sidecar && runs(record));
        let due: Vec<usize> = if others {
            (0..self.records.len())
                .filter(|&index| self.records[index].role != Role::Sidecar)
                .collect()
        } else {
            self.records.iter().rposition(runs).into_iter().collect()
        };
        for index in due {
            self.stop_container(index, grace, "");
        }
        !self.records.iter().any(runs)
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

    fn ended(&mut self, index: usize, mut ended: Ended) {
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
            self.surroundings = Surroundings::Missing {
                retry_at: Instant::now(),
            };
        }
    }

    pub(super) fn references_changed(&mut self) {
        for (record, control) in self.records.iter().zip(&mut self.controls) {
            if matches!(&record.stage, Stage::Waiting { reason, .. } if reason == "CreateContainerConfigError")
            {
                control.retry_at = None;
            }
        }
        match &mut self.surroundings {
            Surroundings::Missing { retry_at } => *retry_at = Instant::now(),
            Surroundings::Ready(Sandbox { pod_ip, .. }) => {
                let (node, pod, uid, pod_ip) = (
                    self.node.clone(),
                    self.pod.clone(),
                    self.uid.clone(),
                    pod_ip.clone(),
                );
                self.effects.spawn(async move {
                    let refreshed = tokio::task::spawn_blocking(move || {
                        if let Err(error) = setup::refresh(&node, &pod, &uid, &pod_ip) {
                            node.reports.event(
                                &pod,
                                None,
                                Severity::Warning,
                                error.reason,
                                &error.message,
                            );
                        }
                    });
                    Effect::Released(refreshed.await.map_err(|error| error.to_string()))
                });
            }
            _ => {}
        }
    }

    /// The pod was updated: labels and annotations may be in volumes, and a container's image may be another.
    pub(super) fn specification_changed(&mut self, before: &Pod) {
        let image_before = |name: &str| {
            let (_, container) =
                containers(before.spec.as_ref()?).find(|(_, container)| container.name == name)?;
            container.image.clone()
        };
        for index in 0..self.records.len() {
            let name = self.records[index].name.clone();
            let now = self.container(index).and_then(|container| container.image);
            if now == image_before(&name) {
                continue;
            }
            match &self.records[index].stage {
                Stage::Running { .. } => {
                    let message = format!("Container {name} definition changed, will be restarted");
                    self.stop_container(index, self.grace(), &message);
                }
                Stage::Waiting { .. } => self.controls[index].retry_at = None,
                _ => {}
            }
        }
        let shown = |pod: &Pod| {
            (
                pod.metadata.labels.clone(),
                pod.metadata.annotations.clone(),
            )
        };
        let ready = matches!(self.surroundings, Surroundings::Ready(_)) && self.stopping.is_none();
        if ready && shown(before) != shown(&self.pod) && self.has_downward_volumes() {
            self.references_changed();
        }
    }

    fn has_downward_volumes(&self) -> bool {
        let volumes = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten());
        volumes
            .into_iter()
            .any(|volume| volume.downward_api.is_some() || volume.projected.is_some())
    }
}
