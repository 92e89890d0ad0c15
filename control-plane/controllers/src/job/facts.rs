//! What a job's pods have come to, counted and not yet counted.
//!
//! A pod that has the finalizer is not counted: neither in the numbers of the status, nor among the indexes that it names.
//! Its uid may be noted in the status already, which then says that it will be once the finalizer is off. So each pod is
//! counted once, whatever is lost between two steps.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, PodFailurePolicy};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::TRACKING;
use super::backoff::ended_at;
use super::indexes::{Indexes, index_of};
use super::policy::{Judgement, judge};
use super::template::{all_failures_before, failures_before};
use crate::pods::{is_active, is_ready, is_terminating, phase};

pub(crate) fn spec_of(job: &Job) -> Option<&JobSpec> {
    job.spec.as_ref()
}

pub(crate) fn is_indexed(job: &Job) -> bool {
    spec_of(job).is_some_and(|spec| spec.completion_mode.as_deref() == Some("Indexed"))
}

pub(crate) fn is_suspended(job: &Job) -> bool {
    spec_of(job).is_some_and(|spec| spec.suspend == Some(true))
}

/// Whether a condition of the status holds.
pub(crate) fn holds(status: Option<&JobStatus>, condition: &str) -> bool {
    let mut conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    conditions.any(|known| known.type_ == condition && known.status == "True")
}

pub(crate) fn is_finished(job: &Job) -> bool {
    let status = job.status.as_ref();
    holds(status, "Complete") || holds(status, "Failed")
}

/// Whether the pod is still to be counted.
pub(crate) fn is_tracked(pod: &Pod) -> bool {
    let mut finalizers = pod.metadata.finalizers.iter().flatten();
    finalizers.any(|known| known == TRACKING)
}

pub(crate) fn uid_of(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether only pods that have failed are replaced, and not those that are on their way out.
pub(crate) fn awaits_failure(job: &Job) -> bool {
    let policy = spec_of(job).and_then(|spec| spec.pod_replacement_policy.as_deref());
    policy == Some("Failed")
}

/// Whether the pod counts as failed.
pub(crate) fn has_failed(job: &Job, pod: &Pod) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        // One that nobody runs any more may never say how it ended.
        _ => pod.metadata.deletion_timestamp.is_some() && !awaits_failure(job),
    }
}

pub(crate) fn has_succeeded(pod: &Pod) -> bool {
    phase(pod) == "Succeeded"
}

/// The uids that the status notes, of pods that are not yet counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    pub(crate) succeeded: Vec<String>,
    pub(crate) failed: Vec<String>,
}

impl Noted {
    pub(crate) fn of(status: Option<&JobStatus>) -> Self {
        let noted = status.and_then(|status| status.uncounted_terminated_pods.clone());
        let noted = noted.unwrap_or_default();
        Self {
            succeeded: noted.succeeded.unwrap_or_default(),
            failed: noted.failed.unwrap_or_default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.succeeded.len() + self.failed.len()
    }
}

/// The facts, of a job and all its pods.
pub(crate) struct Facts<'a> {
    pub(crate) job: &'a Job,
    pub(crate) pods: &'a [Arc<Pod>],
    pub(crate) active: Vec<Arc<Pod>>,
    pub(crate) terminating: i32,
    pub(crate) noted: Noted,
    /// How many have succeeded and failed, counted or not.
    pub(crate) succeeded: i32,
    pub(crate) failed: i32,
    /// The indexes that have succeeded by the status, and with the pods that are not yet counted.
    pub(crate) counted_indexes: Indexes,
    pub(crate) succeeded_indexes: Indexes,
    /// Those that have failed, of a job that limits the failures of each index.
    pub(crate) failed_indexes: Option<Indexes>,
    /// For each index that needs another pod, the failed one whose place it takes: it stays, and with it the count of its
    /// index's failures, until the other is there.
    pub(crate) to_replace: BTreeMap<i32, Arc<Pod>>,
}

pub(crate) fn count(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

impl<'a> Facts<'a> {
    pub(crate) fn of(job: &'a Job, pods: &'a [Arc<Pod>]) -> Self {
        let status = job.status.as_ref();
        let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
        let terminating = pods.iter().filter(|pod| is_terminating(pod)).count();
        let mut facts = Self {
            job,
            pods,
            active,
            terminating: count(terminating),
            noted: Noted::of(status),
            succeeded: status.and_then(|status| status.succeeded).unwrap_or(0),
            failed: status.and_then(|status| status.failed).unwrap_or(0),
            counted_indexes: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            to_replace: BTreeMap::new(),
        };
        facts.count_pods();
        if is_indexed(job) {
            facts.count_indexes();
        }
        facts
    }

    pub(crate) fn spec(&self) -> Option<&'a JobSpec> {
        spec_of(self.job)
    }

    pub(crate) fn policy(&self) -> Option<&'a PodFailurePolicy> {
        self.spec()?.pod_failure_policy.as_ref()
    }

    /// How many pods are to succeed, if the job says so.
    pub(crate) fn completions(&self) -> Option<i32> {
        self.spec()?.completions
    }

    pub(crate) fn ready(&self) -> i32 {
        count(self.active.iter().filter(|pod| is_ready(pod)).count())
    }

    /// Whether the job limits the failures of each index.
    pub(crate) fn is_limited_per_index(&self) -> bool {
        let spec = self.spec();
        is_indexed(self.job) && spec.is_some_and(|spec| spec.backoff_limit_per_index.is_some())
    }

    /// The index of a pod, if the job has it.
    pub(crate) fn index(&self, pod: &Pod) -> Option<i32> {
        let completions = self.completions().unwrap_or(0);
        index_of(pod).filter(|index| *index < completions)
    }

    /// Whether a pod's end is one of the job's: of an index that it has, if it has any.
    pub(crate) fn belongs(&self, pod: &Pod) -> bool {
        !is_indexed(self.job) || self.index(pod).is_some()
    }

    pub(crate) fn is_ignored(&self, pod: &Pod) -> bool {
        judge(self.policy(), pod) == Judgement::Ignored
    }

    /// The pods that have ended so since the status was written.
    fn newly(&self, ended: impl Fn(&Pod) -> bool) -> Vec<&'a Arc<Pod>> {
        let noted = self.noted.succeeded.iter().chain(&self.noted.failed);
        let noted: HashSet<&str> = noted.map(String::as_str).collect();
        let pods = self.pods.iter();
        pods.filter(|pod| is_tracked(pod) && !noted.contains(uid_of(pod)))
            .filter(|pod| self.belongs(pod) && ended(pod))
            .collect()
    }

    fn newly_succeeded(&self) -> Vec<&'a Arc<Pod>> {
        self.newly(has_succeeded)
    }

    fn newly_failed(&self) -> Vec<&'a Arc<Pod>> {
        self.newly(|pod| has_failed(self.job, pod))
    }

    /// When pods have ended, those that succeeded and those that failed, since the status was written; or at all.
    pub(crate) fn ends(&self, all: bool) -> [Vec<Timestamp>; 2] {
        let times = |pods: Vec<&Arc<Pod>>| pods.into_iter().map(|pod| ended_at(pod)).collect();
        if !all {
            return [times(self.newly_succeeded()), times(self.newly_failed())];
        }
        let those = |ended: &dyn Fn(&Pod) -> bool| {
            times(self.pods.iter().filter(|pod| ended(pod)).collect())
        };
        [
            those(&has_succeeded),
            those(&|pod| has_failed(self.job, pod)),
        ]
    }

    fn count_pods(&mut self) {
        let succeeded = self.newly_succeeded().len() + self.noted.succeeded.len();
        let mut failed = self.newly_failed();
        failed.retain(|pod| !self.is_ignored(pod));
        let failed = failed.len() + self.noted.failed.len();
        self.succeeded = self.succeeded.saturating_add(count(succeeded));
        self.failed = self.failed.saturating_add(count(failed));
    }

    fn count_indexes(&mut self) {
        let completions = self.completions().unwrap_or(0);
        let status = self.job.status.as_ref();
        let read = |text: Option<&str>| Indexes::parse(text.unwrap_or_default(), completions);
        self.counted_indexes = read(status.and_then(|status| status.completed_indexes.as_deref()));
        let limited = self.is_limited_per_index();
        let failed = status.filter(|_| limited);
        let failed = read(failed.and_then(|status| status.failed_indexes.as_deref()));
        // An index has one end, the first that is counted, whatever other pods of it come to.
        let succeeded = self.newly_succeeded().into_iter();
        let succeeded = succeeded.filter_map(|pod| self.index(pod));
        let succeeded = succeeded.filter(|index| !failed.has(*index));
        self.succeeded_indexes = self.counted_indexes.with(succeeded);
        self.succeeded = self.succeeded_indexes.total();
        if !limited {
            return;
        }
        let uncounted = self.pods.iter().filter(|pod| is_tracked(pod));
        let more = uncounted.filter(|pod| self.has_index_failed(pod));
        let more = more.filter_map(|pod| self.index(pod));
        let failed = failed.with(more.filter(|index| !self.succeeded_indexes.has(*index)));
        self.to_replace = self.find_to_replace(&failed);
        self.failed_indexes = Some(failed);
    }

    /// Whether the pod's failure is the last that its index may have.
    fn has_index_failed(&self, pod: &Pod) -> bool {
        let limit = self.spec().and_then(|spec| spec.backoff_limit_per_index);
        has_failed(self.job, pod)
            && match judge(self.policy(), pod) {
                Judgement::FailsIndex => true,
                Judgement::Ignored => false,
                Judgement::Counts | Judgement::FailsJob(_) => {
                    failures_before(pod) >= limit.unwrap_or(i32::MAX)
                }
            }
    }

    fn find_to_replace(&self, failed: &Indexes) -> BTreeMap<i32, Arc<Pod>> {
        let running: BTreeSet<i32> = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        let mut found: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
        let age = |pod: &Pod| (all_failures_before(pod), ended_at(pod));
        let pods = self
            .pods
            .iter()
            .filter(|pod| is_tracked(pod) && has_failed(self.job, pod));
        for pod in pods {
            let Some(index) = self.index(pod) else {
                continue;
            };
            if self.succeeded_indexes.has(index) || failed.has(index) || running.contains(&index) {
                continue;
            }
            let known = found.entry(index).or_insert_with(|| pod.clone());
            if age(known) < age(pod) {
                *known = pod.clone();
            }
        }
        found
    }
}
