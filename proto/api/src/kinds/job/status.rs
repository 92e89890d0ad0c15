//! What a job's status may say, and how it may go on. Others than Kubernetes' own controller may run a job, and clients rely on
//! what a job that is over says.
//!
//! Most rules are asked only when what they are about changes: a status that is wrong already holds up no other change.

use std::collections::HashSet;

use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::policies::invalid_whole;
use super::{indexes, is_indexed};
use crate::field::{ErrorList, ErrorType, Path};
use crate::kinds::{internal, workload};
use crate::meta::IMMUTABLE;

/// A status, of the job as it is or as it was, and what it says has become of it.
struct Side<'a> {
    status: &'a JobStatus,
    complete: bool,
    failed: bool,
    /// It will have failed when its pods have ended.
    failing: bool,
    /// It will be complete when its pods have ended.
    succeeding: bool,
}

impl<'a> Side<'a> {
    fn of(status: &'a JobStatus) -> Self {
        Self {
            status,
            complete: has(status, "Complete", "True"),
            failed: has(status, "Failed", "True"),
            failing: has(status, "FailureTarget", "True"),
            succeeding: has(status, "SuccessCriteriaMet", "True"),
        }
    }

    fn is_over(&self) -> bool {
        self.complete || self.failed
    }

    fn active(&self) -> i32 {
        self.status.active.unwrap_or(0)
    }

    fn completed(&self) -> &str {
        self.status.completed_indexes.as_deref().unwrap_or_default()
    }

    /// Times are told in seconds.
    fn started(&self) -> Option<i64> {
        seconds(self.status.start_time.as_ref())
    }

    fn ended(&self) -> Option<i64> {
        seconds(self.status.completion_time.as_ref())
    }

    /// Pods that have ended and are not counted yet: those that succeeded, and those that failed.
    fn uncounted(&self) -> Option<[&[String]; 2]> {
        let pods = self.status.uncounted_terminated_pods.as_ref()?;
        Some([
            pods.succeeded.as_deref().unwrap_or_default(),
            pods.failed.as_deref().unwrap_or_default(),
        ])
    }
}

fn has(status: &JobStatus, condition: &str, value: &str) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|known| known.type_ == condition && known.status == value)
}

fn seconds(time: Option<&Time>) -> Option<i64> {
    time.map(|time| time.0.as_second())
}

/// A change of a job's status.
struct Change<'a> {
    now: Side<'a>,
    before: Side<'a>,
    spec: &'a JobSpec,
    path: Path,
}

impl<'a> Change<'a> {
    /// Whether something differs.
    fn of<T: PartialEq>(&self, what: impl Fn(&Side<'a>) -> T) -> bool {
        what(&self.now) != what(&self.before)
    }

    fn is_over(&self) -> bool {
        self.of(Side::is_over)
    }

    fn starts(&self) -> bool {
        self.of(Side::started)
    }

    fn ends(&self) -> bool {
        self.of(Side::ended)
    }

    fn completes(&self) -> bool {
        self.of(|side| side.complete)
    }

    fn fails_indexes(&self) -> bool {
        self.now.status.failed_indexes != self.before.status.failed_indexes
    }

    fn completes_indexes(&self) -> bool {
        self.now.completed() != self.before.completed()
    }

    fn refuse_conditions(&self, detail: &str, errors: &mut ErrorList) {
        invalid_whole(&self.path.child("conditions"), detail, errors);
    }

    /// What contradicts that the job is complete.
    fn check_complete(&self, errors: &mut ErrorList) {
        let now = &self.now;
        if now.complete && now.failed && (self.completes() || self.of(|side| side.failed)) {
            let detail = "cannot set Complete=True and Failed=true conditions";
            self.refuse_conditions(detail, errors);
        }
        if now.complete && now.failing && (self.completes() || self.of(|side| side.failing)) {
            let detail = "cannot set Complete=True and FailureTarget=true conditions";
            self.refuse_conditions(detail, errors);
        }
    }

    fn check_times(&self, errors: &mut ErrorList) {
        let (now, path) = (&self.now, self.path.child("completionTime"));
        let end = now.status.completion_time.as_ref();
        if self.completes() || self.ends() {
            if end.is_some() && !now.complete {
                let detail = "cannot set completionTime when there is no Complete=True condition";
                errors.invalid(&path, end, detail);
            }
            if end.is_none() && now.complete {
                errors.required(&path, "completionTime is required for Complete jobs");
            }
        }
        if (self.starts() || self.ends())
            && let (Some(started), Some(ended)) = (now.started(), now.ended())
            && ended < started
        {
            errors.invalid(&path, end, "must be equal to or after `startTime`");
        }
    }

    /// A job is over only after it was told that it will be.
    fn check_announced(&self, errors: &mut ErrorList) {
        let now = &self.now;
        let fails = self.of(|side| side.failed) || self.fails_indexes();
        if fails && now.failed && !now.failing {
            let detail =
                "cannot set Failed=True condition without the FailureTarget=true condition";
            self.refuse_conditions(detail, errors);
        }
        let completes = self.completes() || self.of(|side| side.succeeding);
        if completes && now.complete && !now.succeeding {
            let detail =
                "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
            self.refuse_conditions(detail, errors);
        }
    }

    /// What is left of a job that is over.
    fn check_over(&self, errors: &mut ErrorList) {
        let now = &self.now;
        if !now.is_over() {
            return;
        }
        if now.active() > 0 && (self.is_over() || self.of(Side::active)) {
            let path = self.path.child("active");
            let detail = "active>0 is invalid for finished job";
            errors.invalid(&path, now.active(), detail);
        }
        // One that waits, and has nothing to do, is over without having begun.
        let idle = self.spec.suspend == Some(true) && self.spec.completions == Some(0);
        if now.started().is_none() && !idle && (self.is_over() || self.starts()) {
            let path = self.path.child("startTime");
            errors.required(&path, "startTime is required for finished job");
        }
        let uncounts = self.now.uncounted() != self.before.uncounted();
        if let Some(pods) = now.uncounted()
            && pods.iter().any(|uids| !uids.is_empty())
            && (self.is_over() || uncounts)
        {
            let path = self.path.child("uncountedTerminatedPods");
            errors.push(ErrorType::Invalid, &path, || {
                let pods = &now.status.uncounted_terminated_pods;
                let printed = internal::print(pods, "*UncountedTerminatedPods");
                format!("Invalid value: {printed}: must be empty for finished job")
            });
        }
    }

    /// Which indexes have come to what end.
    fn check_indexes(&self, errors: &mut ErrorList) {
        let (completes, fails) = (self.completes_indexes(), self.fails_indexes());
        let path = self.path.child("completedIndexes");
        let failed_path = self.path.child("failedIndexes");
        let completed = self.now.completed();
        let failed = self.now.status.failed_indexes.as_deref();
        let each = self.spec.backoff_limit_per_index.is_some();
        let wrong = |list: &str| indexes::count(list, self.spec.completions?).err();
        if completes && let Some(error) = wrong(completed) {
            let detail = format!("error parsing completedIndexes: {error}");
            errors.invalid(&path, completed, &detail);
        }
        if let Some(failed) = failed
            && fails
            && each
            && let Some(error) = wrong(failed)
        {
            let detail = format!("error parsing failedIndexes: {error}");
            errors.invalid(&failed_path, failed, &detail);
        }
        if completes && !completed.is_empty() && !is_indexed(self.spec) {
            let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
            errors.invalid(&path, completed, detail);
        }
        let Some(failed) = failed else {
            return;
        };
        if fails && !each {
            let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
            errors.invalid(&failed_path, failed, detail);
        }
        if (fails || completes)
            && let Some(completions) = self.spec.completions
            && let Some(shared) = indexes::shared(completed, failed, completions)
        {
            let detail = format!("failedIndexes and completedIndexes overlap at index: {shared}");
            errors.invalid(&failed_path, failed, &detail);
        }
    }

    fn check_pods(&self, errors: &mut ErrorList) {
        let now = &self.now;
        let terminating = now.status.terminating;
        let terminates = self.is_over() || terminating != self.before.status.terminating;
        if let Some(terminating) = terminating.filter(|count| *count > 0)
            && now.is_over()
            && terminates
        {
            let path = self.path.child("terminating");
            let detail = "terminating>0 is invalid for finished job";
            errors.invalid(&path, terminating, detail);
        }
        let ready = now.status.ready;
        let counts = ready != self.before.status.ready || self.of(Side::active);
        if let Some(ready) = ready.filter(|ready| counts && *ready > now.active()) {
            let path = self.path.child("ready");
            errors.invalid(&path, ready, "cannot set more ready pods than active");
        }
    }

    fn check_success(&self, errors: &mut ErrorList) {
        let now = &self.now;
        for (is_wrong, detail) in [
            (
                now.succeeding && now.failed,
                "cannot set SuccessCriteriaMet=True and Failed=true conditions",
            ),
            (
                now.succeeding && now.failing,
                "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
            ),
            (
                self.spec.success_policy.is_some() && !now.succeeding && now.complete,
                "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
            ),
        ] {
            if is_wrong {
                self.refuse_conditions(detail, errors);
            }
        }
    }

    /// What a status does not go back on.
    fn check_progress(&self, errors: &mut ErrorList) {
        let (now, before) = (&self.now, &self.before);
        for (condition, was, is) in [
            ("Failed", before.failed, now.failed),
            ("Complete", before.complete, now.complete),
            ("FailureTarget", before.failing, now.failing),
        ] {
            if was && !is {
                let detail = format!("cannot disable the terminal {condition}=True condition");
                self.refuse_conditions(&detail, errors);
            }
        }
        // A job with indexes, of which all run at once, may become smaller.
        let elastic = is_indexed(self.spec) && self.spec.completions == self.spec.parallelism;
        for (field, may_fall, count, earlier) in [
            ("failed", false, now.status.failed, before.status.failed),
            (
                "succeeded",
                elastic,
                now.status.succeeded,
                before.status.succeeded,
            ),
        ] {
            let (count, earlier) = (count.unwrap_or(0), earlier.unwrap_or(0));
            if count < earlier && !may_fall {
                let detail = format!("cannot decrease the {field} counter");
                errors.invalid(&self.path.child(field), count, &detail);
            }
        }
        if let (Some(ended), Some(earlier)) = (now.ended(), before.ended())
            && ended != earlier
        {
            let path = self.path.child("completionTime");
            errors.invalid(&path, &now.status.completion_time, IMMUTABLE);
        }
        let resumes =
            has(before.status, "Suspended", "True") && has(now.status, "Suspended", "False");
        let waits = self.spec.suspend == Some(true);
        if before.started().is_some() && self.starts() && !resumes && !waits {
            let path = self.path.child("startTime");
            errors.required(&path, "startTime cannot be removed for unsuspended job");
        }
        if before.succeeding && !now.succeeding {
            let detail = "cannot disable the SuccessCriteriaMet=True condition";
            self.refuse_conditions(detail, errors);
        }
        if before.complete && !before.succeeding && now.succeeding {
            let detail =
                "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
            self.refuse_conditions(detail, errors);
        }
    }
}

fn check_uncounted(pods: &UncountedTerminatedPods, path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (field, uids) in [("succeeded", &pods.succeeded), ("failed", &pods.failed)] {
        for (index, uid) in uids.iter().flatten().enumerate() {
            let path = path.child(field).index(index);
            if uid.is_empty() {
                errors.invalid(&path, uid, "must not be empty");
            } else if !seen.insert(uid) {
                errors.duplicate(&path, uid);
            }
        }
    }
}

fn check_counts(status: &JobStatus, path: &Path, errors: &mut ErrorList) {
    for (name, count) in [
        ("active", status.active),
        ("succeeded", status.succeeded),
        ("failed", status.failed),
        ("ready", status.ready),
        ("terminating", status.terminating),
    ] {
        workload::validate_not_negative(count, &path.child(name), errors);
    }
    if let Some(pods) = &status.uncounted_terminated_pods {
        check_uncounted(pods, &path.child("uncountedTerminatedPods"), errors);
    }
}

/// Checks an update of the status.
pub(super) fn validate_update(new: &Job, old: &Job, errors: &mut ErrorList) {
    let (no_status, no_spec) = (JobStatus::default(), JobSpec::default());
    let change = Change {
        now: Side::of(new.status.as_ref().unwrap_or(&no_status)),
        before: Side::of(old.status.as_ref().unwrap_or(&no_status)),
        spec: new.spec.as_ref().unwrap_or(&no_spec),
        path: Path::new("status"),
    };
    check_counts(change.now.status, &change.path, errors);
    change.check_complete(errors);
    change.check_times(errors);
    change.check_announced(errors);
    change.check_over(errors);
    change.check_indexes(errors);
    change.check_pods(errors);
    change.check_success(errors);
    change.check_progress(errors);
}
