//! What a worker knows of its containers, and the journal that lets a later agent process continue.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use gantry_cri::runtime::ContainerExit;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::resize::Allotted;
use super::restart::Restarts;
use crate::limits::is_sidecar;

/// Nanoseconds since the epoch.
pub(crate) fn now_nanos() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// A container's part in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to completion before the next.
    Init,
    /// An init container that keeps running.
    Sidecar,
    /// One of `spec.containers`.
    Main,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) attempt: u32,
    pub(crate) exit: ContainerExit,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`.
    pub(crate) reason: String,
}

/// Kubernetes' reason for the end of a container that was killed for all of its pod's to begin anew.
const RESTARTING: &str = "RestartingAllContainers";

impl Ended {
    /// That of an attempt which is over since all of the pod's containers begin anew. `started_at` as in [`ContainerExit`].
    pub(crate) fn restarting(attempt: u32, started_at: i64) -> Self {
        let exit = ContainerExit {
            code: 137,
            signal: None,
            oom_killed: false,
            started_at,
            finished_at: now_nanos(),
            message: "The container is removed because RestartAllContainers in place".to_owned(),
        };
        Self {
            attempt,
            exit,
            reason: RESTARTING.to_owned(),
        }
    }

    pub(crate) fn new(attempt: u32, exit: ContainerExit) -> Self {
        let reason = match (exit.oom_killed, exit.code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        Self {
            attempt,
            exit,
            reason: reason.to_owned(),
        }
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.exit.code == 0
    }
}

/// Where a container is.
///
/// ```text
/// Waiting -> Starting -> Running -> Ended -> Waiting (back-off) -> Starting ...
///    ^          |  `------------------^  (cannot execute)
///    `----------'  (no image, no configuration)
/// ```
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stage {
    /// Not running, for this reason.
    Waiting { reason: String, message: String },
    /// Its image is being fetched, or it is being created.
    Starting { reason: String, message: String },
    /// Executing. `started`: its startup probe and postStart hook are through. `ready`: so says its readiness probe.
    Running {
        since: i64,
        started: bool,
        ready: bool,
    },
    /// Ended; whether it is started again is the plan's decision.
    Ended(Ended),
}

impl Stage {
    /// Waiting with no reason of its own: the status fills in `PodInitializing` or `ContainerCreating`.
    pub(crate) fn idle() -> Self {
        Self::Waiting {
            reason: String::new(),
            message: String::new(),
        }
    }
}

/// One container of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) restarts: Restarts,
    /// Its definition has changed while it ran: it is started again whatever its end is.
    pub(crate) changed: bool,
    pub(crate) stage: Stage,
    /// The attempt that runs or ran last; `None` before the first.
    pub(crate) attempt: Option<u32>,
    pub(crate) last: Option<Ended>,
    /// The image's reference and id, once known.
    pub(crate) image: String,
    pub(crate) image_id: String,
    /// What the attempt was started with, or has been given since; `None` where an earlier version has not noted it.
    pub(crate) resources: Option<ResourceRequirements>,
}

impl Record {
    /// Whether it is started again after it ended so.
    pub(crate) fn again(&self, ended: &Ended) -> bool {
        self.changed || ended.reason == RESTARTING || self.restarts.again(ended.exit.code)
    }

    /// Whether its end is one after which all containers of the pod begin anew.
    pub(crate) fn restarts_all(&self) -> bool {
        match &self.stage {
            Stage::Ended(ended) => ended.reason != RESTARTING && self.restarts.all(ended.exit.code),
            _ => false,
        }
    }

    pub(crate) fn next_attempt(&self) -> u32 {
        self.attempt.map_or(0, |attempt| attempt + 1)
    }
}

/// The containers of a specification, init containers first.
pub(crate) fn containers(spec: &PodSpec) -> impl Iterator<Item = (Role, &Container)> {
    let inits = spec
        .init_containers
        .iter()
        .flatten()
        .map(|init| match is_sidecar(init) {
            true => (Role::Sidecar, init),
            false => (Role::Init, init),
        });
    inits.chain(spec.containers.iter().map(|main| (Role::Main, main)))
}

/// What outlives the agent for one container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The last attempt that was begun. Written before the runtime is asked, so that an attempt is never begun twice.
    pub(crate) attempt: Option<u32>,
    pub(crate) ended: Option<Ended>,
    pub(crate) last: Option<Ended>,
    pub(crate) image: String,
    pub(crate) image_id: String,
    /// The image's user-facing stop signal, for a container found again.
    pub(crate) stop_signal: Option<String>,
    /// What the attempt may use.
    pub(crate) resources: Option<ResourceRequirements>,
}

/// The final word on a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodEnd {
    pub(crate) failed: bool,
    pub(crate) reason: Option<String>,
    pub(crate) message: Option<String>,
}

/// How the message of a pod begins that its node would not take.
const REJECTED: &str = "Pod was rejected: ";

impl PodEnd {
    /// The end of a pod that has no beginning.
    pub(crate) fn rejected(reason: &str, message: &str) -> Self {
        Self {
            failed: true,
            reason: Some(reason.to_owned()),
            message: Some(format!("{REJECTED}{message}")),
        }
    }

    /// Whether the pod never was this node's, so that nothing of it was lost.
    pub(crate) fn is_rejection(&self) -> bool {
        let message = self.message.as_deref();
        message.is_some_and(|message| message.starts_with(REJECTED))
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Notes {
    pub(crate) containers: BTreeMap<String, Entry>,
    pub(crate) end: Option<PodEnd>,
    /// Nanoseconds since the epoch at which this node took the pod.
    pub(crate) started_at: Option<i64>,
    /// All init containers are through.
    pub(crate) initialised: bool,
    /// What the pod has been given, when that was noted.
    pub(crate) allotted: Option<Allotted>,
    /// Not all that runs has it yet.
    #[serde(default)]
    pub(crate) resizing: bool,
}

/// A pod's checkpoint on disk: after a crash or a power cut they are the old or the new. The pod's end is there for good before
/// anyone is told of it.
pub(crate) struct Journal {
    path: PathBuf,
    notes: Mutex<Notes>,
}

impl Journal {
    /// Reads a pod's journal; a missing one is empty. So is a damaged one, which is set aside: no container whose attempt
    /// it could have named outlives what damages a disk.
    pub(crate) fn open(pod_dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(pod_dir)?;
        let path = pod_dir.join("journal.json");
        let notes = match std::fs::read(&path) {
            Ok(json) => match serde_json::from_slice(&json) {
                Ok(notes) => notes,
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a pod's journal is damaged; beginning a new one");
                    std::fs::rename(&path, path.with_extension("damaged"))?;
                    Notes::default()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Notes::default(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            notes: Mutex::new(notes),
        })
    }

    pub(crate) fn notes(&self) -> Notes {
        self.notes.lock().clone()
    }

    /// Changes the notes, on disk first.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Notes)) -> io::Result<()> {
        let mut notes = self.notes.lock();
        let mut next = notes.clone();
        change(&mut next);
        let json = serde_json::to_vec(&next)?;
        if next.end == notes.end {
            // An older one costs a restart's count, not a promise: containers end with the machine.
            gantry_durable::replace_whole(&self.path, &json, 0o600)?;
        } else {
            gantry_durable::replace(&self.path, &json, 0o600)?;
        }
        *notes = next;
        Ok(())
    }

    /// Changes one container's entry.
    pub(crate) fn container(&self, name: &str, change: impl FnOnce(&mut Entry)) -> io::Result<()> {
        self.change(|notes| change(notes.containers.entry(name.to_owned()).or_default()))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::restart::RestartPolicy;
    use super::*;

    /// Ended with this code, after ten seconds.
    pub(in crate::pod) fn ended(code: i32) -> Stage {
        let second = 1_000_000_000;
        let exit = ContainerExit {
            code,
            signal: None,
            oom_killed: false,
            started_at: 10 * second,
            finished_at: 20 * second,
            message: String::new(),
        };
        Stage::Ended(Ended::new(0, exit))
    }

    pub(in crate::pod) fn idle() -> Stage {
        Stage::idle()
    }

    pub(in crate::pod) fn starting() -> Stage {
        Stage::Starting {
            reason: String::new(),
            message: String::new(),
        }
    }

    /// Running and ready, and `started` unless its startup probe has not succeeded yet.
    pub(in crate::pod) fn running(started: bool) -> Stage {
        Stage::Running {
            since: 5_000_000_000,
            started,
            ready: started,
        }
    }

    /// A container that is always started again.
    pub(in crate::pod) fn record(name: &str, role: Role, stage: Stage) -> Record {
        let attempt = (!matches!(stage, Stage::Waiting { .. })).then_some(0);
        Record {
            name: name.to_owned(),
            role,
            restarts: Restarts::by(RestartPolicy::Always),
            changed: false,
            stage,
            attempt,
            last: None,
            image: String::new(),
            image_id: String::new(),
            resources: None,
        }
    }

    #[test]
    fn a_damaged_journal_does_not_hold_the_pod_up() {
        let directory = tempfile::tempdir().unwrap();
        let begin = |notes: &mut Notes| notes.started_at = Some(1);
        Journal::open(directory.path())
            .unwrap()
            .change(begin)
            .unwrap();
        let reopened = Journal::open(directory.path()).unwrap();
        assert_eq!(reopened.notes().started_at, Some(1));
        std::fs::write(directory.path().join("journal.json"), "").unwrap();
        let damaged = Journal::open(directory.path()).unwrap();
        assert_eq!(damaged.notes().started_at, None);
        assert!(directory.path().join("journal.damaged").exists());
        damaged.change(begin).unwrap();
        assert!(directory.path().join("journal.json").exists());
    }
}
