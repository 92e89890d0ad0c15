//! A pod that asks for more or less than it has been given: when it gets it, and how its containers come to it.

use std::sync::Arc;
use std::time::Duration;

use gantry_cri::runtime::PodUid;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use tokio::time::Instant;

use super::{Effect, Worker};
use crate::limits;
use crate::pod::record::Stage;
use crate::pod::resize::{
    Action, Allocation, Allotted, Change, Progress, Update, action, lowers_memory, summary,
};
use crate::traits::Severity;

/// Until what had to wait, or failed, is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What a worker keeps about the pod's resources.
pub(super) struct Resizing {
    allotted: Allotted,
    /// None of a pod that is over.
    allocation: Option<Allocation>,
    /// The pod as the API has it, while it asks for something else than it has been given.
    asking: Option<Arc<Pod>>,
    /// Not asked for again before.
    ask_at: Option<Instant>,
    /// What the pod has been given is not all in its groups yet.
    outdated: bool,
    applying: bool,
    /// Not applied again before.
    apply_at: Option<Instant>,
    pub(super) told: Progress,
}

impl Resizing {
    /// Of a pod that has been given this; `outdated` when it was not all in its groups before.
    pub(super) fn new(
        allotted: Allotted,
        allocation: Allocation,
        outdated: bool,
        asking: Option<Arc<Pod>>,
    ) -> Self {
        Self {
            allotted,
            allocation: Some(allocation),
            asking,
            ask_at: None,
            outdated,
            applying: false,
            apply_at: None,
            told: Progress {
                is_under_way: outdated,
                ..Progress::default()
            },
        }
    }

    /// The pod of the API with what it has been given so far.
    pub(super) fn take(&mut self, pod: &Arc<Pod>) -> Arc<Pod> {
        let given = self.allotted.given_to(pod);
        let asks = !Arc::ptr_eq(&given, pod);
        self.asking = asks.then(|| Arc::clone(pod));
        self.ask_at = None;
        if !asks {
            self.told.pending = None;
        }
        given
    }

    /// The pod is over: what it had is there for others.
    pub(super) fn release(&mut self) {
        self.allocation = None;
    }

    /// Its groups are being changed: nothing may start in them meanwhile.
    pub(super) fn is_applying(&self) -> bool {
        self.applying
    }

    /// When something is due that nobody else wakes the worker for.
    pub(super) fn wakes(&self) -> impl Iterator<Item = Instant> {
        let now = Instant::now();
        let all = [self.ask_at, self.apply_at];
        all.into_iter().flatten().filter(move |at| *at > now)
    }
}

/// What a container of this index, started as this attempt, has been given in place.
pub(super) type Given = (usize, u32, ResourceRequirements);

impl Worker {
    /// Gives the pod what it asks for, if the node has that.
    pub(super) fn allot(&mut self) {
        let due = self.resizing.ask_at.is_none_or(|at| at <= Instant::now());
        let asking = self.resizing.asking.clone().filter(|_| due);
        let (Some(asking), Some(allocation)) = (asking, &self.resizing.allocation) else {
            return;
        };
        let Some(spec) = &asking.spec else {
            return;
        };
        let room = limits::room(&self.node.allocatable);
        match allocation.resize(limits::requested_with_overhead(spec), room) {
            Ok(()) => {
                let allotted = Allotted::of(&asking);
                self.note(|notes| {
                    notes.allotted = Some(allotted.clone());
                    notes.resizing = true;
                });
                let resizing = &mut self.resizing;
                resizing.allotted = allotted;
                resizing.asking = None;
                (resizing.ask_at, resizing.apply_at) = (None, None);
                resizing.outdated = true;
                resizing.told = Progress {
                    is_under_way: true,
                    ..Progress::default()
                };
                self.pod = asking;
                let message = summary("Pod resize started", &self.pod, None);
                self.event(None, Severity::Normal, "ResizeStarted", &message);
            }
            Err(refusal) => {
                let reason = refusal.reason;
                let told = self.resizing.told.pending.as_ref();
                if told.is_none_or(|told| told.reason != reason) {
                    let what = format!("Pod resize {reason}");
                    let message = summary(&what, &asking, Some(&refusal.message));
                    let name = format!("Resize{reason}");
                    self.event(None, Severity::Warning, &name, &message);
                }
                self.resizing.told.pending = Some(refusal);
                self.resizing.ask_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// Sees to it that what runs has what the pod has been given.
    pub(super) fn apply_resources(&mut self) {
        let resizing = &self.resizing;
        let waits = resizing.apply_at.is_some_and(|at| at > Instant::now());
        if resizing.applying || waits || !resizing.told.is_under_way {
            return;
        }
        let Some(spec) = self.pod.spec.clone() else {
            return;
        };
        let (mut changes, mut given, mut restarting): (Vec<Change>, Vec<Given>, bool) =
            (Vec::new(), Vec::new(), false);
        for index in 0..self.records.len() {
            let record = &self.records[index];
            let Stage::Running { .. } = record.stage else {
                continue;
            };
            let (Some(had), Some(target)) = (record.resources.clone(), self.target(index)) else {
                continue;
            };
            let container = &target.container;
            match action(container, &had) {
                Action::Nothing => {}
                Action::Update => {
                    let (memory, policy) = (self.node.memory, self.node.memory_policy);
                    let attempt = target.id.attempt;
                    changes.push(Change {
                        resources: limits::container(&spec, container, memory, policy),
                        lowers_memory: lowers_memory(container, &had),
                        id: target.id.clone(),
                    });
                    let resources = container.resources.clone().unwrap_or_default();
                    given.push((index, attempt, resources));
                }
                Action::Restart => {
                    restarting = true;
                    let name = &container.name;
                    let message = format!("Container {name} resize requires restart");
                    self.records[index].changed = true;
                    self.stop_container(index, self.grace(), &message);
                }
            }
        }
        if changes.is_empty() && !self.resizing.outdated {
            if !restarting {
                self.resized_all();
            }
            return;
        }
        let update = Update {
            pod: PodUid(self.uid.clone()),
            whole: limits::pod(&spec, self.node.pids_limit, self.node.memory_policy),
            containers: changes,
            others_follow: restarting,
        };
        (self.resizing.applying, self.resizing.outdated) = (true, false);
        self.resizing.apply_at = None;
        let runtime = self.node.runtime.clone();
        self.effects.spawn(async move {
            Effect::Resized {
                result: update.apply(&*runtime).await,
                given,
            }
        });
    }

    pub(super) fn resized(&mut self, given: Vec<Given>, result: Result<bool, String>) {
        self.resizing.applying = false;
        let failed = match result {
            Ok(is_whole) => {
                for (index, attempt, resources) in given {
                    let record = &mut self.records[index];
                    if record.attempt != Some(attempt) {
                        continue;
                    }
                    let name = record.name.clone();
                    record.resources = Some(resources.clone());
                    self.note(|notes| {
                        notes.containers.entry(name).or_default().resources = Some(resources);
                    });
                }
                self.resizing.told.error = None;
                !is_whole
            }
            Err(message) => {
                if self.resizing.told.error.as_ref() != Some(&message) {
                    let words = summary("Pod resize error", &self.pod, Some(&message));
                    self.event(None, Severity::Warning, "ResizeError", &words);
                }
                self.resizing.told.error = Some(message);
                true
            }
        };
        if failed {
            self.resizing.outdated = true;
            self.resizing.apply_at = Some(Instant::now() + RETRY);
        }
    }

    /// Everything that runs has what the pod has been given.
    fn resized_all(&mut self) {
        self.resizing.told.is_under_way = false;
        self.resizing.told.error = None;
        self.note(|notes| notes.resizing = false);
        let message = summary("Pod resize completed", &self.pod, None);
        self.event(None, Severity::Normal, "ResizeCompleted", &message);
    }
}
