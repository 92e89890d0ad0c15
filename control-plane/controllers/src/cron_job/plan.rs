//! The pure part: what of its jobs a cron job knows, which is due, and which are old.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use gantry_api::kinds::cron_job::schedule::{Times, parse};
use gantry_informer::clock::seconds;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::tz::TimeZone;

use super::times::{latest, local_text, missed, next, time_zone};
use crate::claim::controller_reference;
use crate::job::{holds, is_finished};

/// The annotation that tells for when a job was made.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More starts that were missed are told of.
const MANY_MISSED: i64 = 100;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) is_warning: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

pub(crate) fn normal(reason: &'static str, message: String) -> Told {
    Told {
        is_warning: false,
        reason,
        message,
    }
}

pub(crate) fn warning(reason: &'static str, message: String) -> Told {
    Told {
        is_warning: true,
        reason,
        message,
    }
}

fn name_of(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

fn active(status: &CronJobStatus) -> &[ObjectReference] {
    status.active.as_deref().unwrap_or_default()
}

/// Leaves out of the jobs that run those with these uids.
pub(crate) fn forget(status: &mut CronJobStatus, uids: &HashSet<Option<&String>>) {
    if let Some(active) = &mut status.active {
        active.retain(|known| !uids.contains(&known.uid.as_ref()));
    }
    status.active = status.active.take().filter(|active| !active.is_empty());
}

/// Whether the job was made for a time, and not by a user.
fn is_scheduled(job: &Job) -> bool {
    let annotations = job.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(SCHEDULED))
}

/// Notes that a job was made for a time.
pub(crate) fn remember(status: &mut CronJobStatus, job: &Job, time: Timestamp) {
    let known = active(status)
        .iter()
        .any(|known| known.uid == job.metadata.uid);
    if !known && !is_finished(job) {
        status.active.get_or_insert_default().push(reference(job));
    }
    status.last_schedule_time = Some(seconds(time));
}

/// The status that agrees with the jobs there are, and what there is to tell of them.
pub(crate) fn observed(cron: &CronJob, jobs: &[Arc<Job>]) -> (CronJobStatus, Vec<Told>) {
    let mut status = cron.status.clone().unwrap_or_default();
    let mut told = Vec::new();
    let before = cron.status.as_ref().map(active).unwrap_or_default();
    let known: HashSet<_> = before.iter().map(|known| known.uid.as_ref()).collect();
    // What is to be told of beside what was, and what not any more.
    let (mut found, mut over) = (Vec::new(), HashSet::new());
    for job in jobs {
        let uid = job.metadata.uid.as_ref();
        let name = name_of(job);
        match (known.contains(&uid), is_finished(job)) {
            // Made in a pass that broke off: it runs all the same.
            (false, false) if is_scheduled(job) => found.push(reference(job)),
            (false, false) => {
                let message =
                    format!("Saw a job that the controller did not create or forgot: {name}");
                told.push(warning("UnexpectedJob", message));
            }
            (true, true) => {
                let end = match holds(job.status.as_ref(), "Complete") {
                    true => "Complete",
                    false => "Failed",
                };
                over.insert(uid);
                let message = format!("Saw completed job: {name}, condition: {end}");
                told.push(normal("SawCompletedJob", message));
            }
            _ => {}
        }
        if holds(job.status.as_ref(), "Complete") {
            let ended = job
                .status
                .as_ref()
                .and_then(|status| status.completion_time.clone());
            status.last_successful_time = status.last_successful_time.take().max(ended);
        }
    }
    let there: HashSet<_> = jobs.iter().map(|job| job.metadata.uid.as_ref()).collect();
    for reference in before {
        if there.contains(&reference.uid.as_ref()) {
            continue;
        }
        over.insert(reference.uid.as_ref());
        let name = reference.name.as_deref().unwrap_or_default();
        told.push(normal(
            "MissingJob",
            format!("Active job went missing: {name}"),
        ));
    }
    forget(&mut status, &over);
    if !found.is_empty() {
        status.active.get_or_insert_default().extend(found);
    }
    (status, told)
}

/// The finished jobs beyond those that are kept, the oldest first.
pub(crate) fn excess(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let limits = [
        ("Complete", cron.spec.successful_jobs_history_limit),
        ("Failed", cron.spec.failed_jobs_history_limit),
    ];
    let mut old = Vec::new();
    for (end, limit) in limits {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
            continue;
        };
        let mut ended: Vec<_> = jobs
            .iter()
            .filter(|job| {
                holds(job.status.as_ref(), end) && job.metadata.deletion_timestamp.is_none()
            })
            .collect();
        ended.sort_by_key(|job| {
            let status = job.status.as_ref();
            let start = status.and_then(|status| status.start_time.as_ref());
            (start.map(|start| start.0), job.metadata.name.clone())
        });
        let count = ended.len().saturating_sub(limit);
        old.extend(ended.into_iter().take(count).cloned());
    }
    old
}

/// What a cron job is to do now.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// The time for which a job is to be made.
    pub(crate) time: Option<Timestamp>,
    /// Jobs that have to go before.
    pub(crate) replaced: Vec<ObjectReference>,
    /// After what time it is to be looked at again.
    pub(crate) wake: Option<Duration>,
    pub(crate) told: Vec<Told>,
}

/// The schedule, and the zone whose clocks it means.
pub(crate) fn schedule_of(cron: &CronJob) -> Result<(Times, TimeZone), Told> {
    let spec = &cron.spec;
    let schedule = parse(&spec.schedule).map_err(|error| {
        let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
        warning("UnparseableSchedule", message)
    })?;
    let named = spec.time_zone.as_ref().or(schedule.zone.as_ref());
    let zone = match named.map(String::as_str) {
        None | Some("" | "Local") => TimeZone::UTC,
        Some(name) => time_zone(name).ok_or_else(|| {
            let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
            warning("UnknownTimeZone", message)
        })?,
    };
    Ok((schedule.times, zone))
}

/// What is due, by the status.
pub(crate) fn due(cron: &CronJob, status: &CronJobStatus, now: Timestamp) -> Due {
    let spec = &cron.spec;
    if cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
        return Due::default();
    }
    let mut due = Due::default();
    let (times, zone) = match schedule_of(cron) {
        Ok(schedule) => schedule,
        Err(trouble) => {
            due.told.push(trouble);
            return due;
        }
    };
    let created = cron.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let last = status.last_schedule_time.as_ref().map(|time| time.0);
    let earliest = last.or(created).unwrap_or(now);
    let time = latest(&times, &zone, earliest, now);
    let following = next(&times, &zone, time.unwrap_or(earliest).max(earliest));
    due.wake = following.and_then(|next| Duration::try_from(next.duration_since(now)).ok());
    // A little later, so that the time has come by the clock that objects show.
    due.wake = due
        .wake
        .map(|wake| wake.saturating_add(Duration::from_millis(100)));
    let deadline = spec.starting_deadline_seconds.map(|seconds| {
        let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        now.checked_sub(seconds).unwrap_or(Timestamp::MIN)
    });
    let since = deadline.map_or(earliest, |deadline| deadline.max(earliest));
    let missed = missed(&times, &zone, since, now);
    if missed > MANY_MISSED {
        due.told.push(warning("TooManyMissedTimes", format!(
            "too many missed start times: {missed}. Set or decrease .spec.startingDeadlineSeconds or check clock skew"
        )));
    }
    // What should have begun before is not begun any more.
    let Some(time) = time.filter(|time| deadline.is_none_or(|deadline| *time >= deadline)) else {
        return due;
    };
    let name = job_name(cron, time);
    if active(status)
        .iter()
        .any(|known| known.name.as_ref() == Some(&name))
    {
        return due;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active(status).is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            due.told
                .push(normal("JobAlreadyActive", message.to_owned()));
            return due;
        }
        Some("Replace") => due.replaced = active(status).to_vec(),
        _ => {}
    }
    due.time = Some(time);
    due
}

/// The name of the job for a time: the same whoever makes it, so that there is one.
pub(crate) fn job_name(cron: &CronJob, time: Timestamp) -> String {
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{}", time.as_second() / 60)
}

/// The job for a time.
pub(crate) fn job_of(cron: &CronJob, time: Timestamp) -> Job {
    let template = cron.spec.job_template.clone();
    let metadata = template.metadata.unwrap_or_default();
    let zone = schedule_of(cron).map_or(TimeZone::UTC, |(_, zone)| zone);
    let mut annotations = metadata.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), local_text(time, &zone));
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, time)),
            namespace: cron.metadata.namespace.clone(),
            labels: metadata.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}
