//! The pure part of what is done to pods: whether the job is over, and if not, which pods it needs and which it has too many.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::backoff::{Failures, ended_at};
use super::facts::{Facts, awaits_failure, count, has_failed, holds, is_indexed, is_suspended};
use super::indexes::{Indexes, index_of};
use super::policy::{Judgement, enough, judge};
use super::template::{all_failures_before, pod_of, pod_with_index};
use crate::pod_control::{BURST, burst};
use crate::pods::{is_terminating, phase};
use crate::replica_set::victims;

/// How the job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) succeeds: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Verdict {
    fn new(succeeds: bool, reason: &str, message: impl Into<String>) -> Self {
        Self {
            succeeds,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    fn fails(reason: &str, message: impl Into<String>) -> Self {
        Self::new(false, reason, message)
    }

    /// The condition that says so while pods are still ending.
    pub(crate) fn interim(&self) -> &'static str {
        match self.succeeds {
            true => "SuccessCriteriaMet",
            false => "FailureTarget",
        }
    }

    /// The condition that says so when all have.
    pub(crate) fn terminal(&self) -> &'static str {
        match self.succeeds {
            true => "Complete",
            false => "Failed",
        }
    }
}

/// What is done to pods.
#[derive(Debug, Default)]
pub(crate) enum Change {
    #[default]
    Nothing,
    /// The job is over: all its pods go, and are counted.
    End(Vec<Arc<Pod>>),
    /// These are too many: they go, and are not counted.
    Shrink(Vec<Arc<Pod>>),
    Create(Vec<Pod>),
    /// Pods are created only after this time.
    Wait(Duration),
}

/// What the status says already of how the job ends.
fn announced(facts: &Facts<'_>) -> Option<Verdict> {
    let status = facts.job.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    ["SuccessCriteriaMet", "FailureTarget"]
        .iter()
        .find_map(|interim| {
            let mut conditions = conditions.into_iter().flatten();
            let known =
                conditions.find(|known| known.type_ == *interim && known.status == "True")?;
            Some(Verdict::new(
                *interim == "SuccessCriteriaMet",
                known.reason.as_deref().unwrap_or_default(),
                known.message.clone().unwrap_or_default(),
            ))
        })
}

/// The failure, if any, of which the job's policy says that it is the whole job's.
fn failed_by_policy(facts: &Facts<'_>) -> Option<Verdict> {
    let policy = Some(facts.policy()?);
    let mut failed = facts.pods.iter().filter(|pod| has_failed(facts.job, pod));
    failed.find_map(|pod| match judge(policy, pod) {
        Judgement::FailsJob(why) => Some(Verdict::fails("PodFailurePolicy", why)),
        _ => None,
    })
}

/// Whether containers that are started again, in the pod that they are in, were so often enough.
fn restarted_too_often(facts: &Facts<'_>) -> bool {
    let Some(spec) = facts.spec() else {
        return false;
    };
    let template = spec.template.spec.as_ref();
    let policy = template.and_then(|template| template.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let running = facts
        .pods
        .iter()
        .filter(|pod| matches!(phase(pod), "Running" | "Pending"));
    let containers = running
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| {
            let first = status.init_container_statuses.iter().flatten();
            first.chain(status.container_statuses.iter().flatten())
        });
    let restarts = containers.map(|container| container.restart_count);
    let restarts = restarts.fold(0, i32::saturating_add);
    match spec.backoff_limit.unwrap_or(6) {
        0 => restarts > 0,
        limit => restarts >= limit,
    }
}

/// How long the job may still be active, if that is limited; nothing once that is over.
pub(crate) fn time_left(facts: &Facts<'_>, now: Timestamp) -> Option<Duration> {
    let limit = facts.spec()?.active_deadline_seconds?;
    let start = facts.job.status.as_ref()?.start_time.as_ref()?;
    // One that was resumed just now has not begun anew yet.
    if is_suspended(facts.job) || waits(facts) {
        return None;
    }
    let limit = Duration::from_secs(u64::try_from(limit).unwrap_or(0));
    let passed = Duration::try_from(now.duration_since(start.0)).unwrap_or_default();
    Some(limit.saturating_sub(passed))
}

fn failed_by_indexes(facts: &Facts<'_>) -> Option<Verdict> {
    let failed = facts.failed_indexes.as_ref()?.total();
    let spec = facts.spec()?;
    if spec.max_failed_indexes.is_some_and(|most| failed > most) {
        let message = "Job has exceeded the specified maximal number of failed indexes";
        return Some(Verdict::fails("MaxFailedIndexesExceeded", message));
    }
    let ended = failed.saturating_add(facts.succeeded_indexes.total());
    let all_ended = ended >= spec.completions.unwrap_or(0);
    (failed > 0 && all_ended).then(|| Verdict::fails("FailedIndexes", "Job has failed indexes"))
}

/// Whether the job is over, though pods of it may run.
pub(crate) fn verdict(facts: &Facts<'_>, now: Timestamp) -> Option<Verdict> {
    if let Some(known) = announced(facts) {
        return Some(known);
    }
    let spec = facts.spec()?;
    if let Some(failure) = failed_by_policy(facts) {
        return Some(failure);
    }
    if facts.failed > spec.backoff_limit.unwrap_or(6) || restarted_too_often(facts) {
        let message = "Job has reached the specified backoff limit";
        return Some(Verdict::fails("BackoffLimitExceeded", message));
    }
    if time_left(facts, now).is_some_and(|left| left.is_zero()) {
        let message = "Job was active longer than specified deadline";
        return Some(Verdict::fails("DeadlineExceeded", message));
    }
    if !is_indexed(facts.job) {
        return None;
    }
    failed_by_indexes(facts).or_else(|| {
        let completions = spec.completions.unwrap_or(0);
        let rule = enough(
            spec.success_policy.as_ref(),
            completions,
            &facts.succeeded_indexes,
        )?;
        let message = format!("Matched rules at index {rule}");
        Some(Verdict::new(true, "SuccessPolicy", message))
    })
}

/// Whether what was to be done is done, and no pod is left that does more.
pub(crate) fn reached(facts: &Facts<'_>) -> Option<Verdict> {
    let enough = match facts.completions() {
        Some(completions) => facts.succeeded >= completions,
        None => facts.succeeded > 0,
    };
    let message = "Reached expected number of succeeded pods";
    (enough && facts.active.is_empty()).then(|| Verdict::new(true, "CompletionsReached", message))
}

/// Compares the pods that are there with those that are wanted.
pub(crate) fn change(
    facts: &Facts<'_>,
    verdict: Option<&Verdict>,
    failures: Failures,
    now: Timestamp,
) -> Change {
    if verdict.is_some() {
        return match facts.active.is_empty() {
            true => Change::Nothing,
            false => Change::End(facts.active.clone()),
        };
    }
    if facts.job.metadata.deletion_timestamp.is_some() {
        return Change::Nothing;
    }
    if is_suspended(facts.job) {
        return shrink(facts.active.clone());
    }
    let active = facts.active.len();
    let wanted = wanted(facts);
    let surplus = surplus(facts, active.saturating_sub(wanted), now);
    if !surplus.is_empty() {
        return shrink(surplus);
    }
    let leaving = match awaits_failure(facts.job) {
        true => usize::try_from(facts.terminating).unwrap_or(0),
        false => 0,
    };
    let missing = wanted.saturating_sub(active).saturating_sub(leaving);
    if missing == 0 {
        return Change::Nothing;
    }
    let template = facts.spec().map(|spec| &spec.template);
    let most = template.map_or(BURST, burst);
    create(facts, missing.min(most), failures, now)
}

fn shrink(mut pods: Vec<Arc<Pod>>) -> Change {
    pods.truncate(BURST);
    match pods.is_empty() {
        true => Change::Nothing,
        false => Change::Shrink(pods),
    }
}

/// How many pods are to run.
fn wanted(facts: &Facts<'_>) -> usize {
    let spec = facts.spec();
    let parallelism = spec.and_then(|spec| spec.parallelism).unwrap_or(1);
    let wanted = match facts.completions() {
        Some(completions) => completions.saturating_sub(facts.succeeded).min(parallelism),
        // Those that run when the first has succeeded may end their work.
        None if facts.succeeded > 0 => count(facts.active.len()),
        None => parallelism,
    };
    usize::try_from(wanted).unwrap_or(0)
}

/// The pods to delete: at least so many, and all whose index is not of the job, or another pod's as well.
fn surplus(facts: &Facts<'_>, least: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let (mut gone, mut left) = (Vec::new(), Vec::new());
    if is_indexed(facts.job) {
        let mut by_index: BTreeMap<i32, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in &facts.active {
            match facts.index(pod) {
                Some(index) => by_index.entry(index).or_default().push(pod.clone()),
                None => gone.push(pod.clone()),
            }
        }
        for pods in by_index.into_values() {
            let mut ranked = victims(&pods, &[], pods.len(), now);
            left.extend(ranked.pop());
            gone.extend(ranked);
        }
    } else {
        left.clone_from(&facts.active);
    }
    let more = least.saturating_sub(gone.len());
    gone.extend(victims(&left, &[], more, now));
    gone
}

fn create(facts: &Facts<'_>, missing: usize, failures: Failures, now: Timestamp) -> Change {
    let job = facts.job;
    if !facts.is_limited_per_index()
        && let Some(left) = failures.left(now)
    {
        return Change::Wait(left);
    }
    if !is_indexed(job) {
        return Change::Create(vec![pod_of(job); missing]);
    }
    let mut soonest: Option<Duration> = None;
    let mut pods = Vec::new();
    for index in pending(facts, missing) {
        let failed = facts.to_replace.get(&index);
        let left = failed.and_then(|failed| {
            let count = all_failures_before(failed).saturating_add(1);
            let failures = Failures {
                count: count.unsigned_abs(),
                last: Some(ended_at(failed)),
            };
            failures.left(now)
        });
        match left {
            Some(left) => soonest = Some(soonest.map_or(left, |known| known.min(left))),
            None => pods.push(pod_with_index(job, index, failed.map(|failed| &**failed))),
        }
    }
    match soonest {
        Some(left) if pods.is_empty() => Change::Wait(left),
        _ if pods.is_empty() => Change::Nothing,
        _ => Change::Create(pods),
    }
}

/// The first so many indexes that have no pod and need one.
fn pending(facts: &Facts<'_>, missing: usize) -> Vec<i32> {
    let running = facts.active.iter().filter_map(|pod| index_of(pod));
    let mut taken = facts.succeeded_indexes.with(running);
    if awaits_failure(facts.job) {
        let leaving = facts.pods.iter().filter(|pod| is_terminating(pod));
        taken = taken.with(leaving.filter_map(|pod| index_of(pod)));
    }
    let none = Indexes::default();
    taken = taken.union(facts.failed_indexes.as_ref().unwrap_or(&none));
    taken.missing(missing, facts.completions().unwrap_or(0))
}

/// Whether the status says that the job waits.
pub(crate) fn waits(facts: &Facts<'_>) -> bool {
    holds(facts.job.status.as_ref(), "Suspended")
}
