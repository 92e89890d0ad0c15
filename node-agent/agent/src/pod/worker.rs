//! The worker of one pod: a state machine that owns everything the pod has on this node.
//!
//! ```text
//! SettingUp --> Active --(all over, deadline)--> Stopping --> Over --(deleted)--> Removing --> gone
//!     |            |                                ^
//!     `------------+------------(deleted)-----------'
//! ```
//!
//! The worker itself never waits for anything slow: effects run as tasks whose results come back as messages, and
//! every turn ends with the status, reported when it has changed. Containers are in `containers.rs`.

use std::sync::Arc;
use std::time::Duration;

use gantry_runtime::{ContainerExit, ContainerId, SandboxStatus};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::containers::Control;
use super::launch::{Launched, NotLaunched, Sandbox, rootfs_key};
use super::node::Node;
use super::plan::{RestartPolicy, Step, plan};
use super::probe::Report;
use super::record::{Journal, PodEnd, Record, Stage};
use super::setup::{self, NotSetUp};
use super::status::{View, status};
use crate::limits;
use crate::reports::Severity;

/// Between attempts at what should not fail.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// What a worker is told.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// The pod's latest state.
    Pod(Arc<Pod>),
    /// The pod no longer exists: stop it without ceremony.
    Gone,
    /// ConfigMaps, Secrets or accounts it may refer to have changed.
    References,
    /// A container ended.
    Exited(ContainerId, ContainerExit),
    /// The shim is gone, and all containers with it.
    SandboxLost,
}

/// What a task came back with.
pub(super) enum Effect {
    SetUp(Result<Sandbox, NotSetUp>),
    Launched {
        index: usize,
        attempt: u32,
        result: Result<Launched, NotLaunched>,
    },
    Hooked {
        index: usize,
        attempt: u32,
        result: Result<(), String>,
    },
    Stopped {
        index: usize,
    },
    TornDown(Result<(), String>),
    Removed(Result<(), String>),
    Released(Result<(), String>),
}

/// The pod's surroundings.
pub(super) enum Surroundings {
    /// Not there; tried from this moment on.
    Missing { retry_at: Instant },
    /// Being made.
    Making,
    /// There.
    Ready(Sandbox),
    /// Being removed.
    Unmaking,
    /// Removed for good.
    Unmade,
    /// Volumes, logs and journal are being removed too.
    Removing,
}

/// Why and by when everything is to stop.
#[derive(Clone, Debug)]
pub(super) struct Stopping {
    pub(super) grace: Duration,
    pub(super) deleted: bool,
    /// The phase it ends in, when that is not what its containers' exit codes say.
    pub(super) end: Option<PodEnd>,
}

/// One pod's worker.
pub(crate) struct Worker {
    pub(super) node: Arc<Node>,
    pub(super) pod: Arc<Pod>,
    pub(super) uid: String,
    pub(super) journal: Arc<Journal>,
    pub(super) records: Vec<Record>,
    pub(super) controls: Vec<Control>,
    pub(super) surroundings: Surroundings,
    pub(super) setup_failures: u32,
    pub(super) stopping: Option<Stopping>,
    pub(super) end: Option<PodEnd>,
    pub(super) initialised: bool,
    pub(super) started_at: i64,
    pub(super) pod_ip: Option<String>,
    previous: PodStatus,
    said_terminated: bool,
    /// Cancelled when launches should be given up.
    pub(super) cancel: CancellationToken,
    pub(super) effects: JoinSet<Effect>,
    pub(super) probes: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    inputs: mpsc::UnboundedReceiver<Input>,
    finished: bool,
}

pub(super) fn now_nanos() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

impl Worker {
    /// A worker for a pod; `found` is the sandbox that an earlier process left running.
    pub(crate) fn new(
        node: Arc<Node>,
        pod: Arc<Pod>,
        found: Option<&SandboxStatus>,
        inputs: mpsc::UnboundedReceiver<Input>,
    ) -> std::io::Result<Self> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let journal = Arc::new(Journal::open(&node.pod_dir(&uid))?);
        let notes = journal.notes();
        let started_at = match notes.started_at {
            Some(started_at) => started_at,
            None => {
                let now = now_nanos();
                journal.change(|notes| notes.started_at = Some(now))?;
                now
            }
        };
        let previous = pod.status.clone().unwrap_or_default();
        // A verdict that the server knows stands, even when this node has forgotten the pod.
        let known = previous
            .phase
            .as_deref()
            .filter(|phase| matches!(*phase, "Succeeded" | "Failed"));
        let end = notes.end.clone().or_else(|| {
            let failed = known? == "Failed";
            Some(PodEnd {
                failed,
                reason: previous.reason.clone(),
                message: previous.message.clone(),
            })
        });
        let (records, controls) = super::containers::recover(&pod, &notes, found, &previous);
        Ok(Self {
            surroundings: match end {
                Some(_) if found.is_none() => Surroundings::Unmade,
                _ => Surroundings::Missing {
                    retry_at: Instant::now(),
                },
            },
            node,
            uid,
            journal,
            records,
            controls,
            setup_failures: 0,
            stopping: None,
            end,
            initialised: notes.initialised,
            started_at,
            pod_ip: None,
            previous,
            said_terminated: false,
            cancel: CancellationToken::new(),
            effects: JoinSet::new(),
            probes: mpsc::channel(64),
            inputs,
            finished: false,
            pod,
        })
    }

    /// Runs until the pod is gone from this node, or until nobody can tell it anything any more; containers are left
    /// running in the second case.
    pub(crate) async fn run(mut self) {
        loop {
            self.turn();
            if self.finished {
                return;
            }
            let wake = self.next_wake();
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
                Some(effect) = self.effects.join_next() => match effect {
                    Ok(effect) => self.settle(effect),
                    // Replaced by one with a shorter grace period.
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => tracing::error!(pod = self.uid, %error, "a task of the pod's worker failed"),
                },
                Some(report) = self.probes.1.recv() => self.probed(report),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    pub(super) fn event(
        &self,
        container: Option<&str>,
        severity: Severity,
        reason: &str,
        message: &str,
    ) {
        self.node
            .reports
            .event(&self.pod, container, severity, reason, message);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(pod) => {
                let before = std::mem::replace(&mut self.pod, pod);
                self.specification_changed(&before);
            }
            Input::Gone => {
                let grace = Duration::from_secs(1);
                self.stop(Stopping {
                    grace,
                    deleted: true,
                    end: None,
                });
                self.said_terminated = true;
            }
            Input::References => self.references_changed(),
            Input::Exited(id, exit) => self.exited(&id, exit),
            Input::SandboxLost => self.sandbox_lost(),
        }
    }

    fn settle(&mut self, effect: Effect) {
        match effect {
            Effect::SetUp(result) => self.set_up(result),
            Effect::Launched {
                index,
                attempt,
                result,
            } => self.launched(index, attempt, result),
            Effect::Hooked {
                index,
                attempt,
                result,
            } => self.hooked(index, attempt, result),
            Effect::Stopped { index } => self.controls[index].stopping = None,
            Effect::Released(result) => {
                if let Err(error) = result {
                    tracing::warn!(pod = self.uid, error, "releasing an ended container");
                }
            }
            Effect::TornDown(Ok(())) => self.surroundings = Surroundings::Unmade,
            Effect::TornDown(Err(message)) => {
                self.event(
                    None,
                    Severity::Warning,
                    "FailedKillPod",
                    &format!("error killing pod: {message}"),
                );
                self.retry_tear_down();
            }
            Effect::Removed(Ok(())) => {
                if !self.said_terminated {
                    self.node.reports.pod_terminated(&self.pod);
                }
                self.finished = true;
            }
            Effect::Removed(Err(message)) => {
                tracing::warn!(
                    pod = self.uid,
                    message,
                    "removing what is left of a pod; trying again"
                );
                self.effects.spawn(async move {
                    tokio::time::sleep(RETRY).await;
                    Effect::TornDown(Ok(()))
                });
            }
        }
    }

    fn retry_tear_down(&mut self) {
        let (node, uid, keys) = (self.node.clone(), self.uid.clone(), self.rootfs_keys());
        self.effects.spawn(async move {
            tokio::time::sleep(RETRY).await;
            Effect::TornDown(setup::tear_down(node, uid, keys).await)
        });
    }

    /// Everything that is due now, then the status.
    fn turn(&mut self) {
        self.check_deletion();
        self.check_deadline();
        self.back_off_words();
        if self.stopping.is_some() {
            self.continue_stopping();
        } else if self.end.is_some() {
            // What ended before the agent did is tidied up once.
            if !matches!(self.surroundings, Surroundings::Unmade) {
                self.stop(Stopping {
                    grace: Duration::ZERO,
                    deleted: false,
                    end: self.end.clone(),
                });
                self.continue_stopping();
            }
        } else {
            self.advance();
        }
        self.report();
    }

    fn advance(&mut self) {
        if let Surroundings::Missing { retry_at } = self.surroundings
            && retry_at <= Instant::now()
        {
            self.surroundings = Surroundings::Making;
            let (node, pod, uid) = (self.node.clone(), self.pod.clone(), self.uid.clone());
            self.effects
                .spawn(async move { Effect::SetUp(setup::set_up(node, pod, uid).await) });
        }
        if !matches!(self.surroundings, Surroundings::Ready(_)) {
            return;
        }
        let policy = self.restart_policy();
        for step in plan(&self.records, policy, self.initialised) {
            match step {
                Step::Start(index) => self.start(index),
                Step::StopSidecar(index) => {
                    let grace = Duration::from_secs(
                        u64::try_from(limits::grace_period(&self.pod)).unwrap_or(0),
                    );
                    self.stop_container(index, grace, "all other containers of the pod have ended");
                }
                Step::Initialised => {
                    self.initialised = true;
                    self.note(|notes| notes.initialised = true);
                }
                Step::End { failed } => {
                    let end = PodEnd {
                        failed,
                        reason: None,
                        message: None,
                    };
                    self.stop(Stopping {
                        grace: Duration::ZERO,
                        deleted: false,
                        end: Some(end),
                    });
                    self.continue_stopping();
                    return;
                }
            }
        }
    }

    pub(super) fn restart_policy(&self) -> RestartPolicy {
        RestartPolicy::of(
            self.pod
                .spec
                .as_ref()
                .and_then(|spec| spec.restart_policy.as_deref()),
        )
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut super::record::Notes)) {
        if let Err(error) = self.journal.change(change) {
            tracing::warn!(pod = self.uid, %error, "writing the pod's journal");
        }
    }

    fn check_deletion(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let grace =
            Duration::from_secs(u64::try_from(limits::grace_period(&self.pod)).unwrap_or(0));
        let shorter = self
            .stopping
            .as_ref()
            .is_none_or(|stopping| !stopping.deleted || grace < stopping.grace);
        if shorter {
            let end = self
                .stopping
                .as_ref()
                .and_then(|stopping| stopping.end.clone());
            self.stop(Stopping {
                grace,
                deleted: true,
                end,
            });
        }
    }

    fn deadline(&self) -> Option<i64> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        Some(
            self.started_at
                .saturating_add(seconds.saturating_mul(1_000_000_000)),
        )
    }

    fn check_deadline(&mut self) {
        let over = self
            .deadline()
            .is_some_and(|deadline| deadline <= now_nanos());
        if !over || self.stopping.is_some() || self.end.is_some() {
            return;
        }
        let message = "Pod was active on the node longer than the specified deadline";
        self.event(None, Severity::Normal, "DeadlineExceeded", message);
        let end = PodEnd {
            failed: true,
            reason: Some("DeadlineExceeded".to_owned()),
            message: Some(message.to_owned()),
        };
        let grace =
            Duration::from_secs(u64::try_from(limits::grace_period(&self.pod)).unwrap_or(0));
        self.stop(Stopping {
            grace,
            deleted: false,
            end: Some(end),
        });
    }

    fn stop(&mut self, stopping: Stopping) {
        let sooner = self
            .stopping
            .as_ref()
            .is_some_and(|before| stopping.grace < before.grace);
        self.cancel.cancel();
        for control in &mut self.controls {
            control.retry_at = None;
            if let Some(handle) = control.stopping.take_if(|_| sooner) {
                handle.abort();
            }
        }
        self.stopping = Some(stopping);
    }

    /// Main containers first, then sidecars in reverse order; then the surroundings; then, when deleted, the rest.
    fn continue_stopping(&mut self) {
        let Some(stopping) = self.stopping.clone() else {
            return;
        };
        if !self.all_stopped(stopping.grace) {
            return;
        }
        if self.end.is_none() {
            let end = stopping
                .end
                .clone()
                .unwrap_or_else(|| self.end_by_exit_codes());
            self.note(|notes| notes.end = Some(end.clone()));
            self.end = Some(end);
        }
        match self.surroundings {
            Surroundings::Ready(_) | Surroundings::Missing { .. } => {
                self.surroundings = Surroundings::Unmaking;
                let (node, uid, keys) = (self.node.clone(), self.uid.clone(), self.rootfs_keys());
                self.effects.spawn(async move {
                    Effect::TornDown(setup::tear_down(node, uid, keys).await)
                });
            }
            Surroundings::Unmade if stopping.deleted => {
                self.surroundings = Surroundings::Removing;
                // The last status is said while the pod still exists.
                self.report();
                let (node, uid, log_dir) = (
                    self.node.clone(),
                    self.uid.clone(),
                    self.node.log_dir(&self.pod),
                );
                self.effects
                    .spawn(async move { Effect::Removed(setup::remove(node, uid, log_dir).await) });
            }
            // A finished pod waits for its deletion.
            Surroundings::Unmade => self.stopping = None,
            Surroundings::Making | Surroundings::Unmaking | Surroundings::Removing => {}
        }
    }

    fn end_by_exit_codes(&self) -> PodEnd {
        let good = |record: &Record| match (&record.stage, &record.last) {
            (Stage::Ended(ended), _) | (_, Some(ended)) => ended.succeeded(),
            _ => false,
        };
        let mains = self
            .records
            .iter()
            .filter(|record| record.role == super::record::Role::Main);
        PodEnd {
            failed: !mains.into_iter().all(good),
            reason: None,
            message: None,
        }
    }

    fn rootfs_keys(&self) -> Vec<String> {
        let attempts = self
            .records
            .iter()
            .filter_map(|record| Some((record.name.as_str(), record.attempt?)));
        // The attempt before may still be on its way out.
        attempts
            .flat_map(|(name, attempt)| {
                [Some(attempt), attempt.checked_sub(1), Some(attempt + 1)]
                    .into_iter()
                    .flatten()
                    .map(move |attempt| (name, attempt))
            })
            .chain(
                self.records
                    .iter()
                    .filter(|record| record.attempt.is_none())
                    .map(|record| (record.name.as_str(), 0)),
            )
            .map(|(name, attempt)| rootfs_key(&self.uid, name, attempt))
            .collect()
    }

    fn set_up(&mut self, result: Result<Sandbox, NotSetUp>) {
        match result {
            Ok(sandbox) => {
                self.setup_failures = 0;
                self.pod_ip = Some(sandbox.pod_ip.clone());
                self.surroundings = Surroundings::Ready(sandbox);
                self.resume_probes();
            }
            Err(NotSetUp { reason, message }) => {
                self.event(None, Severity::Warning, reason, &message);
                let delay =
                    (RETRY * 2_u32.saturating_pow(self.setup_failures.min(6))).min(RETRY_LONGEST);
                self.setup_failures += 1;
                self.surroundings = Surroundings::Missing {
                    retry_at: Instant::now() + delay,
                };
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let mut wakes: Vec<Instant> = self
            .controls
            .iter()
            .flat_map(|control| [control.retry_at, control.back_off_at])
            .flatten()
            .collect();
        if let Surroundings::Missing { retry_at } = self.surroundings
            && self.stopping.is_none()
        {
            wakes.push(retry_at);
        }
        if let (Some(deadline), None, None) = (self.deadline(), &self.stopping, &self.end) {
            let left = u64::try_from(deadline - now_nanos()).unwrap_or(0);
            wakes.push(Instant::now() + Duration::from_nanos(left));
        }
        // Far enough to cost nothing.
        let idle = Instant::now() + Duration::from_secs(3600);
        wakes.into_iter().min().unwrap_or(idle)
    }

    /// Says the status when it has changed.
    fn report(&mut self) {
        let host_ip = self.node.address.to_string();
        let next = status(&View {
            pod: &self.pod,
            uid: &self.uid,
            records: &self.records,
            sandbox_ready: matches!(self.surroundings, Surroundings::Ready(_)),
            initialised: self.initialised,
            end: self.end.as_ref(),
            pod_ip: self.pod_ip.as_deref(),
            host_ip: &host_ip,
            started_at: self.started_at,
            previous: &self.previous,
            now: jiff::Timestamp::now(),
        });
        if next == self.previous {
            return;
        }
        match serde_json::to_vec(&next) {
            Ok(json) => self.node.reports.pod_status(&self.pod, json),
            Err(error) => {
                tracing::error!(pod = self.uid, %error, "writing the pod's status as JSON")
            }
        }
        self.previous = next;
    }
}
