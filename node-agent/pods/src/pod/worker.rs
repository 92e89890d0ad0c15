//! The worker of one pod: a state machine that owns everything the pod has on this node.
//!
//! ```text
//! SettingUp --> Active --(all over, deadline)--> Stopping --> Over --(deleted)--> Removing --> gone
//!     |            |                                ^
//!     `------------+------------(deleted)-----------'
//! ```
//!
//! The worker itself never waits for anything slow: effects run as tasks whose results come back as messages, and
//! every turn ends with the status, reported when it has changed. A container goes from `start` over `probes` to `exit`;
//! `surroundings` and `ending` are about the pod as a whole, `changes` about what others change meanwhile, and `recover`
//! about what an earlier agent left.

mod changes;
mod control;
mod ending;
mod exit;
mod probes;
mod recover;
mod resize;
mod start;
mod surroundings;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gantry_cri::runtime::{ContainerExit, ContainerId, PodUid, SandboxStatus};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::admission;
use super::hooks::{Success, Target};
use super::launch::{Launched, NotLaunched, Sandbox};
use super::node::Node;
use super::plan::{Step, plan};
use super::probe::Report;
use super::record::{Journal, Notes, PodEnd, Record, containers, now_nanos};
use super::resize::Allotted;
use super::setup::{self, NotSetUp};
use super::status::{View, status};
use crate::limits;
use crate::traits::Severity;
use changes::Contents;
use control::Control;
use ending::Stopping;
use resize::{Given, Resizing};
use surroundings::{RETRY, Surroundings};

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
    /// The pod has to go.
    Evict(Eviction),
    /// The disk is nearly full: what is left of a pod that is over is to go.
    Reclaim,
}

/// That a pod has to go, since it or its node is out of bounds.
#[derive(Clone, Debug)]
pub struct Eviction {
    /// Why, in a kubelet's words.
    pub message: String,
    /// How long its containers may take.
    pub grace: Duration,
    /// Cancelled when what it took of the disk is free again.
    pub reclaimed: CancellationToken,
}

impl Eviction {
    /// A kubelet's, for a pod that takes more than its limits.
    pub(crate) const LIMIT_GRACE: Duration = Duration::from_secs(1);
}

/// What a task came back with.
enum Effect {
    SetUp(Result<Sandbox, NotSetUp>),
    Refreshed(Result<(), NotSetUp>),
    Launched {
        index: usize,
        attempt: u32,
        result: Box<Result<Launched, NotLaunched>>,
    },
    Hooked {
        index: usize,
        attempt: u32,
        result: Result<Success, String>,
    },
    Stopped {
        index: usize,
    },
    Resized {
        given: Vec<Given>,
        result: Result<bool, String>,
    },
    TornDown(Result<(), String>),
    Removed(Result<(), String>),
    Released(Result<(), String>),
    Reclaimed(Result<(), String>),
}

/// The end of a pod that has no beginning here.
fn rejection(node: &Node, pod: &Pod) -> Option<PodEnd> {
    let spec = pod.spec.as_ref()?;
    let rejection = admission::admit(spec, &node.sysctls).err()?;
    node.reports.event(
        pod,
        None,
        Severity::Warning,
        rejection.reason,
        &rejection.message,
    );
    Some(PodEnd::rejected(rejection.reason, &rejection.message))
}

/// One pod's worker.
pub(crate) struct Worker {
    node: Arc<Node>,
    pod: Arc<Pod>,
    uid: String,
    journal: Arc<Journal>,
    records: Vec<Record>,
    controls: Vec<Control>,
    surroundings: Surroundings,
    setup_failures: u32,
    contents: Contents,
    resizing: Resizing,
    stopping: Option<Stopping>,
    end: Option<PodEnd>,
    initialised: bool,
    started_at: i64,
    /// None before the pod has a network.
    pod_ips: Vec<IpAddr>,
    previous: PodStatus,
    said_terminated: bool,
    /// Cancelled when launches should be given up.
    cancel: CancellationToken,
    effects: JoinSet<Effect>,
    probes: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    inputs: mpsc::UnboundedReceiver<Input>,
    finished: bool,
    /// Who waits for the disk of an evicted pod; its logs go too. None of one that was not evicted.
    evicted: Vec<CancellationToken>,
    /// What a pod that is over took of the disk is being given back: nobody else may remove it meanwhile.
    reclaiming: bool,
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
                journal.change(|notes| {
                    notes.started_at = Some(now);
                    notes.allotted = Some(Allotted::of(&pod));
                })?;
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
        let end = match end {
            None if found.is_none() && notes.containers.is_empty() => rejection(&node, &pod),
            known => known,
        };
        // What was asked for while no agent ran has not been given yet.
        let allotted = notes.allotted.clone();
        let allotted = allotted.unwrap_or_else(|| Allotted::of(&pod));
        let given = allotted.given_to(&pod);
        let asking = Some(pod).filter(|pod| !Arc::ptr_eq(pod, &given));
        let pod = given;
        let requests = pod.spec.as_ref().map(limits::requested_with_overhead);
        let allocation = node.allocations.hold(&uid, requests.unwrap_or_default());
        let resizing = Resizing::new(allotted, allocation, notes.resizing, asking);
        let (records, controls) = recover::recover(&pod, &notes, found, &previous);
        let mut worker = Self {
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
            contents: Contents::default(),
            resizing,
            stopping: None,
            end,
            initialised: notes.initialised,
            started_at,
            pod_ips: Vec::new(),
            previous,
            said_terminated: false,
            cancel: CancellationToken::new(),
            effects: JoinSet::new(),
            probes: mpsc::channel(64),
            inputs,
            finished: false,
            evicted: Vec::new(),
            reclaiming: false,
            pod,
        };
        worker.take_missed_ends(&notes);
        if found.is_none() && worker.end.is_none() {
            worker.initialise_again();
        }
        Ok(worker)
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
                    // The worker would wait for it for ever: it begins anew, see the manager.
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(error) => tracing::error!(pod = self.uid, %error, "a task of the pod's worker failed"),
                    },
                },
                Some(report) = self.probes.1.recv() => self.probed(report),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

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
            pod_ips: self.pod_ips.clone(),
            connections: self.node.connections.clone(),
        })
    }

    fn grace(&self) -> Duration {
        limits::grace_period(&self.pod)
    }

    fn event(&self, container: Option<&str>, severity: Severity, reason: &str, message: &str) {
        self.node
            .reports
            .event(&self.pod, container, severity, reason, message);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(pod) => {
                let pod = self.resizing.take(&pod);
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
            Input::Evict(eviction) => self.evict(eviction),
            Input::Reclaim => {
                if matches!(self.surroundings, Surroundings::Unmade) {
                    self.reclaim(true);
                }
            }
        }
    }

    fn settle(&mut self, effect: Effect) {
        match effect {
            Effect::SetUp(result) => self.set_up(result),
            Effect::Refreshed(result) => self.refreshed(result),
            Effect::Launched {
                index,
                attempt,
                result,
            } => self.launched(index, attempt, *result),
            Effect::Hooked {
                index,
                attempt,
                result,
            } => self.hooked(index, attempt, result),
            Effect::Stopped { index } => self.controls[index].stopping = None,
            Effect::Resized { given, result } => self.resized(given, result),
            Effect::Released(result) => {
                if let Err(error) = result {
                    tracing::warn!(pod = self.uid, error, "releasing an ended container");
                }
            }
            Effect::TornDown(Ok(())) => {
                self.surroundings = Surroundings::Unmade;
                // A pod that is deleted loses everything at once.
                if self
                    .stopping
                    .as_ref()
                    .is_some_and(|stopping| !stopping.deleted)
                {
                    self.reclaim(!self.evicted.is_empty());
                }
            }
            Effect::Reclaimed(result) => {
                self.reclaiming = false;
                if let Err(error) = result {
                    tracing::warn!(pod = self.uid, error, "giving back a pod's disk");
                }
                self.given_back();
            }
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
                self.given_back();
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
            self.allot();
            self.advance();
        }
        if matches!(self.surroundings, Surroundings::Unmade) {
            self.resizing.release();
        }
        self.report();
    }

    fn advance(&mut self) {
        if let Surroundings::Missing { retry_at } = self.surroundings
            && retry_at <= Instant::now()
            && !self.contents.is_refreshing()
        {
            self.contents.read_anew();
            self.surroundings = Surroundings::Making;
            let (node, pod, uid) = (self.node.clone(), self.pod.clone(), self.uid.clone());
            self.effects
                .spawn(async move { Effect::SetUp(setup::set_up(node, pod, uid).await) });
        }
        if !matches!(self.surroundings, Surroundings::Ready(_)) {
            return;
        }
        self.refresh();
        if self.begin_anew() {
            return;
        }
        self.apply_resources();
        if self.resizing.is_applying() {
            return;
        }
        for step in plan(&self.records, self.initialised) {
            match step {
                Step::Start(index) => self.start(index),
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
                    // Sidecars may still run.
                    self.stop(Stopping {
                        grace: self.grace(),
                        deleted: false,
                        end: Some(end),
                    });
                    self.continue_stopping();
                    return;
                }
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Notes)) {
        if let Err(error) = self.journal.change(change) {
            tracing::warn!(pod = self.uid, %error, "writing the pod's journal");
        }
    }

    fn next_wake(&self) -> Instant {
        let starts = matches!(self.surroundings, Surroundings::Ready(_)) && self.stopping.is_none();
        let mut wakes: Vec<Instant> = self
            .controls
            .iter()
            // A start whose time has come may wait for the surroundings, which wake the worker.
            .flat_map(|control| [control.retry_at.filter(|_| starts), control.back_off_at])
            .flatten()
            .collect();
        match self.surroundings {
            // The end of what is under way wakes the worker.
            _ if self.stopping.is_some() || self.contents.is_refreshing() => {}
            Surroundings::Missing { retry_at } => wakes.push(retry_at),
            Surroundings::Ready(_) => {
                wakes.extend(self.contents.retry_at());
                wakes.extend(self.token_due_at());
            }
            _ => {}
        }
        if self.stopping.is_none() && self.end.is_none() {
            wakes.extend(self.resizing.wakes());
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
        let next = status(&View {
            pod: &self.pod,
            uid: &self.uid,
            records: &self.records,
            sandbox_ready: matches!(self.surroundings, Surroundings::Ready(_)),
            initialised: self.initialised,
            end: self.end.as_ref(),
            pod_ips: &self.pod_ips,
            host_ips: &self.node.addresses,
            started_at: self.started_at,
            previous: &self.previous,
            resize: &self.resizing.told,
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
