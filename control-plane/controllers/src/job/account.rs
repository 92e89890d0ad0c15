//! The pure part of the status: which ends are noted, then counted, and when the job is over.
//!
//! A pass writes twice. First the ends of pods are noted by uid, with what is about to become of the job; then the pods'
//! finalizers are taken off; and only of pods that are seen without it are the notes turned into counts. A pass that breaks
//! off in between is made good by the next.

use std::collections::HashSet;
use std::sync::Arc;

use gantry_informer::clock::seconds;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::facts::{
    Facts, Noted, count, has_failed, has_succeeded, holds, is_indexed, is_suspended, is_tracked,
    uid_of,
};
use super::plan::{Verdict, reached, verdict, waits};
use crate::pods::phase;
use crate::replica_set::nonzero;

/// No more pods than this are noted at once, so that the status stays small.
const MOST_NOTED: usize = 500;

/// The first half of a pass.
pub(crate) struct Noting {
    /// To be written before any finalizer is taken off.
    pub(crate) status: JobStatus,
    /// The pods whose finalizer is not needed any more once that is written.
    pub(crate) settled: Vec<Arc<Pod>>,
    /// How the job ends. None while pods run that are to be deleted first.
    pub(crate) verdict: Option<Verdict>,
    /// More pods have ended than are noted at once.
    pub(crate) is_partial: bool,
    /// Whether the job was suspended, or resumed, just now.
    pub(crate) suspends: Option<bool>,
}

pub(crate) fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> JobCondition {
    JobCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(seconds(now)),
        last_transition_time: Some(seconds(now)),
    }
}

/// Puts the condition in the place of another of its type, if there is one.
fn set_condition(status: &mut JobStatus, condition: JobCondition) {
    let conditions = status.conditions.get_or_insert_default();
    match conditions
        .iter_mut()
        .find(|known| known.type_ == condition.type_)
    {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}

fn written(noted: Noted) -> Option<UncountedTerminatedPods> {
    let given = |uids: Vec<String>| Some(uids).filter(|uids| !uids.is_empty());
    Some(UncountedTerminatedPods {
        succeeded: given(noted.succeeded),
        failed: given(noted.failed),
    })
}

/// Turns notes into counts, of pods that have no finalizer any more.
fn count_noted(status: &mut JobStatus, pods: &[Arc<Pod>]) {
    let tracked = pods.iter().filter(|pod| is_tracked(pod));
    let tracked: HashSet<&str> = tracked.map(|pod| uid_of(pod)).collect();
    let mut noted = Noted::of(Some(status));
    let settle = |uids: &mut Vec<String>, counter: &mut Option<i32>| {
        let before = uids.len();
        uids.retain(|uid| tracked.contains(uid.as_str()));
        let settled = count(before - uids.len());
        *counter = nonzero(counter.unwrap_or(0).saturating_add(settled));
    };
    settle(&mut noted.succeeded, &mut status.succeeded);
    settle(&mut noted.failed, &mut status.failed);
    status.uncounted_terminated_pods = written(noted);
}

fn count_pods(status: &mut JobStatus, facts: &Facts<'_>) {
    status.active = nonzero(count(facts.active.len()));
    status.ready = Some(facts.ready());
    status.terminating = Some(facts.terminating);
}

/// The first half: what is to be written before finalizers go.
pub(crate) fn note(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Noting {
    let facts = Facts::of(job, pods);
    let mut status = job.status.clone().unwrap_or_default();
    if status.start_time.is_none() && !is_suspended(job) {
        status.start_time = Some(seconds(now));
    }
    let over = verdict(&facts, now);
    let mut suspends = None;
    // Pods that run although the job is over are deleted first. Until that has come about, those that have ended stay as they
    // are: they may be why the job is over.
    let is_early = over.is_some() && !facts.active.is_empty();
    let verdict = match over {
        Some(verdict) => Some(verdict).filter(|_| !is_early),
        None => reached(&facts).or_else(|| {
            if job.metadata.deletion_timestamp.is_none() {
                suspends = suspend(&mut status, &facts, now);
            }
            None
        }),
    };
    count_pods(&mut status, &facts);
    count_noted(&mut status, pods);
    let (settled, is_partial) = match is_early {
        true => (Vec::new(), true),
        false => note_ends(&mut status, &facts, verdict.as_ref()),
    };
    if verdict.is_some() && status.start_time.is_none() {
        // Suspended before it was said that it had begun; no job is over that has not.
        status.start_time = Some(seconds(now));
    }
    if let Some(verdict) = &verdict
        && !holds(Some(&status), verdict.interim())
    {
        let Verdict {
            reason, message, ..
        } = verdict;
        set_condition(
            &mut status,
            condition(verdict.interim(), "True", reason, message, now),
        );
    }
    Noting {
        status,
        settled,
        verdict,
        is_partial,
        suspends,
    }
}

/// Says whether the job waits. One that is resumed begins anew to be active.
fn suspend(status: &mut JobStatus, facts: &Facts<'_>, now: Timestamp) -> Option<bool> {
    let suspends = is_suspended(facts.job);
    if suspends == waits(facts) {
        return None;
    }
    let told = match suspends {
        true => condition("Suspended", "True", "JobSuspended", "Job suspended", now),
        false => condition("Suspended", "False", "JobResumed", "Job resumed", now),
    };
    set_condition(status, told);
    if !suspends {
        status.start_time = Some(seconds(now));
    }
    Some(suspends)
}

/// Whether the pod has no more to tell.
fn is_settled(facts: &Facts<'_>, verdict: Option<&Verdict>, pod: &Pod) -> bool {
    if facts.job.metadata.deletion_timestamp.is_some() || verdict.is_some() || has_succeeded(pod) {
        return true;
    }
    let replaced = facts
        .index(pod)
        .and_then(|index| facts.to_replace.get(&index));
    has_failed(facts.job, pod) && replaced.is_none_or(|replaced| uid_of(replaced) != uid_of(pod))
}

/// Whether the pod is to be noted as failed. Of a job that fails all are that have not succeeded; of one that succeeds, those
/// are not that go because of that.
fn counts_as_failed(facts: &Facts<'_>, verdict: Option<&Verdict>, pod: &Pod) -> bool {
    match verdict {
        Some(verdict) if verdict.succeeds => phase(pod) == "Failed",
        Some(_) => true,
        None => has_failed(facts.job, pod),
    }
}

fn note_ends(
    status: &mut JobStatus,
    facts: &Facts<'_>,
    verdict: Option<&Verdict>,
) -> (Vec<Arc<Pod>>, bool) {
    let indexed = is_indexed(facts.job);
    let mut noted = Noted::of(Some(status));
    let mut known: HashSet<String> = noted.failed.iter().cloned().collect();
    known.extend(noted.succeeded.iter().cloned());
    let is_known = |pod: &Pod| known.contains(uid_of(pod));
    let mut pods: Vec<_> = facts.pods.iter().filter(|pod| is_tracked(pod)).collect();
    // What was noted is settled before more is.
    pods.sort_by_key(|pod| (!is_known(pod), facts.index(pod)));
    let mut completed = Vec::new();
    let mut settled = Vec::new();
    let mut is_partial = false;
    for pod in pods {
        if !is_settled(facts, verdict, pod) {
            continue;
        }
        let many = settled.len().max(completed.len() + noted.len());
        if many >= MOST_NOTED && !is_known(pod) {
            is_partial = true;
            break;
        }
        settled.push(pod.clone());
        if is_known(pod) || !facts.belongs(pod) {
            continue;
        }
        let uid = uid_of(pod).to_owned();
        if has_succeeded(pod) {
            match facts.index(pod).filter(|_| indexed) {
                Some(index) if facts.succeeded_indexes.has(index) => completed.push(index),
                Some(_) => {}
                None => noted.succeeded.push(uid),
            }
        } else if counts_as_failed(facts, verdict, pod) && !facts.is_ignored(pod) {
            noted.failed.push(uid);
        }
    }
    if indexed {
        let completed = facts.counted_indexes.with(completed);
        status.succeeded = nonzero(completed.total());
        status.completed_indexes = Some(completed.to_string()).filter(|text| !text.is_empty());
        status.failed_indexes = facts.failed_indexes.as_ref().map(ToString::to_string);
    }
    status.uncounted_terminated_pods = written(noted);
    (settled, is_partial)
}

/// The second half: the status when finalizers are off, and whether the job is over with it. `job` is as it was written.
pub(crate) fn conclude(
    job: &Job,
    pods: &[Arc<Pod>],
    noting: &Noting,
    now: Timestamp,
) -> (JobStatus, bool) {
    let facts = Facts::of(job, pods);
    let mut status = job.status.clone().unwrap_or_default();
    count_pods(&mut status, &facts);
    count_noted(&mut status, pods);
    let Some(verdict) = &noting.verdict else {
        return (status, false);
    };
    let waits = Noted::of(Some(&status)).len() > 0
        || facts.terminating > 0
        || !facts.active.is_empty()
        || noting.is_partial;
    if waits {
        return (status, false);
    }
    let Verdict {
        reason, message, ..
    } = verdict;
    set_condition(
        &mut status,
        condition(verdict.terminal(), "True", reason, message, now),
    );
    if verdict.succeeds {
        status.completion_time = Some(seconds(now));
    }
    (status, true)
}
