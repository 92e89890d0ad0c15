//! What is to be done about a Deployment that idles, or is to.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use tokio::time::Instant;

use super::annotations::{IDLE_REPLICAS, idle_after, remembered};
use super::marks::Obstacle;
use super::quiet::{Pods, Quiet};
use crate::deployment::wanted;

/// Of the time without connections, so many looks.
const LOOKS: u32 = 20;
/// Between two looks.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15);

/// Everything that is decided by.
pub(super) struct Observed<'a> {
    pub(super) deployment: &'a Deployment,
    /// What keeps it from being idled.
    pub(super) obstacle: Option<Obstacle>,
    /// All of its pods that have not ended.
    pub(super) pods: Pods,
    pub(super) now: Instant,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, until something changes or so long.
    Wait(Option<Duration>),
    /// Take its replicas away, and remember how many there were.
    Idle { replicas: i32, after: Duration },
    /// Bring back the replicas that it had.
    Return { replicas: i32, why: String },
    /// Somebody has scaled it up: what is remembered is no longer so.
    Forget,
}

/// The step, and what is to be told of what keeps it from idling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) step: Step,
    pub(super) complaint: Option<Complaint>,
}

/// Something that keeps a Deployment from idling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Complaint {
    fn malformed(message: String) -> Self {
        Self {
            reason: "InvalidAnnotation",
            message,
        }
    }

    fn obstacle(obstacle: &Obstacle) -> Self {
        Self {
            reason: "NotIdling",
            message: format!("It is not idled: {obstacle}"),
        }
    }
}

impl Step {
    fn alone(self) -> Plan {
        Plan {
            step: self,
            complaint: None,
        }
    }

    fn with(self, complaint: Complaint) -> Plan {
        Plan {
            step: self,
            complaint: Some(complaint),
        }
    }
}

/// Whether everything that is wished for is there and available, and nothing else.
fn is_settled(deployment: &Deployment) -> bool {
    let is_paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let Some(status) = &deployment.status else {
        return false;
    };
    let all = [
        status.replicas,
        status.updated_replicas,
        status.ready_replicas,
        status.available_replicas,
    ];
    !is_paused
        && status.observed_generation == deployment.metadata.generation
        && all
            .iter()
            .all(|count| count.unwrap_or(0) == wanted(deployment))
}

/// What is to be done; `quiet` takes in what was seen.
pub(super) fn plan(observed: Observed<'_>, quiet: &mut Option<Quiet>) -> Plan {
    let before = quiet.take();
    let deployment = observed.deployment;
    if deployment.metadata.deletion_timestamp.is_some() {
        return Step::Wait(None).alone();
    }
    match wanted(deployment) {
        0 => without_replicas(&observed),
        _ if deployment
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(IDLE_REPLICAS)) =>
        {
            Step::Forget.alone()
        }
        _ => with_replicas(&observed, before, quiet),
    }
}

/// What keeps it from being idled, unless that goes by itself.
fn lasting<'a>(observed: &'a Observed<'_>) -> Option<&'a Obstacle> {
    let obstacle = observed.obstacle.as_ref();
    obstacle.filter(|obstacle| **obstacle != Obstacle::Unmarked)
}

fn without_replicas(observed: &Observed<'_>) -> Plan {
    let waiting = Step::Wait(None);
    let replicas = match remembered(observed.deployment) {
        Ok(Some(replicas)) => replicas,
        // Scaled to zero by hand, which is meant.
        Ok(None) => return waiting.alone(),
        Err(why) => return waiting.with(Complaint::malformed(why)),
    };
    match (idle_after(observed.deployment), lasting(observed)) {
        (_, Some(obstacle)) => {
            let why = obstacle.to_string();
            Step::Return { replicas, why }.alone()
        }
        (Ok(None), _) => {
            let why = "it is not to idle any more".to_owned();
            Step::Return { replicas, why }.alone()
        }
        (Err(why), _) => waiting.with(Complaint::malformed(why)),
        (Ok(Some(_)), _) => waiting.alone(),
    }
}

fn with_replicas(
    observed: &Observed<'_>,
    before: Option<Quiet>,
    quiet: &mut Option<Quiet>,
) -> Plan {
    let (deployment, now) = (observed.deployment, observed.now);
    let after = match idle_after(deployment) {
        Ok(Some(after)) => after,
        Ok(None) => return Step::Wait(None).alone(),
        Err(why) => return Step::Wait(None).with(Complaint::malformed(why)),
    };
    // What is made together comes one after the other: its Service may follow.
    if !is_settled(deployment) {
        return Step::Wait(None).alone();
    }
    if let Some(obstacle) = lasting(observed) {
        return Step::Wait(None).with(Complaint::obstacle(obstacle));
    }
    let between = (after / LOOKS).clamp(SHORTEST, LONGEST);
    let replicas = wanted(deployment);
    // Where the pods are not all known yet, nothing is.
    if observed.pods.len() < usize::try_from(replicas).unwrap_or(0) {
        return Step::Wait(Some(between)).alone();
    }
    let generation = deployment.metadata.generation;
    *quiet = Quiet::seen(before.as_ref(), generation, &observed.pods, now);
    let Some(seen) = quiet else {
        return Step::Wait(Some(between)).alone();
    };
    let left = after.saturating_sub(now.saturating_duration_since(seen.since()));
    if left.is_zero() && observed.obstacle.is_none() {
        return Step::Idle { replicas, after }.alone();
    }
    let until = match left.is_zero() {
        true => between,
        false => left.min(between),
    };
    Step::Wait(Some(until)).alone()
}
