//! A cron job, its jobs and time, with passes that break off.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{due, excess, forget, job_name, job_of, observed, remember};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn cron(schedule: &str, spec: &Value) -> CronJob {
    let mut cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "c", "namespace": "ns", "uid": "cron", "creationTimestamp": "2026-01-01T00:00:30Z"},
        "spec": {"schedule": schedule, "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}}},
    });
    for (field, value) in spec.as_object().expect("fields of a spec") {
        cron["spec"][field] = value.clone();
    }
    serde_json::from_value(cron).expect("a cron job")
}

fn job(name: &str, end: Option<&str>, start: &str) -> Arc<Job> {
    let conditions = end.map(|end| json!([{"type": end, "status": "True"}]));
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "uid": name}, "spec": {"template": {}},
        "status": {"conditions": conditions, "startTime": start,
            "completionTime": end.filter(|end| *end == "Complete").map(|_| start)},
    });
    Arc::new(serde_json::from_value(job).expect("a job"))
}

/// As it was made for a time.
fn scheduled(name: &str, end: Option<&str>) -> Arc<Job> {
    let mut job = (*job(name, end, "2026-01-01T00:00:00Z")).clone();
    let annotation = "batch.kubernetes.io/cronjob-scheduled-timestamp".to_owned();
    job.metadata.annotations = Some([(annotation, String::new())].into());
    Arc::new(job)
}

fn status(last: Option<&str>, active: &[&str]) -> CronJobStatus {
    let active: Vec<_> = active
        .iter()
        .map(|name| json!({"name": name, "uid": name}))
        .collect();
    let active = Some(active).filter(|active| !active.is_empty());
    serde_json::from_value(json!({"lastScheduleTime": last, "active": active})).expect("a status")
}

#[test]
fn a_job_is_named_after_its_time_and_tells_it() {
    let cron = cron("0 9 * * *", &json!({"timeZone": "Asia/Tokyo"}));
    let job = job_of(&cron, at("2026-01-02T00:00:00Z"));
    let metadata = serde_json::to_value(&job.metadata).expect("as JSON");
    assert_eq!(
        metadata,
        json!({
            "name": "c-29455200", "namespace": "ns", "labels": {"a": "b"},
            "annotations": {"batch.kubernetes.io/cronjob-scheduled-timestamp": "2026-01-02T09:00:00+09:00"},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "cron",
                "controller": true, "blockOwnerDeletion": true}],
        })
    );
}

#[test]
fn what_is_due_is_the_latest_that_was_not_begun() {
    let now = at("2026-01-01T10:00:05Z");
    let hourly = "0 * * * *";
    for (why, spec, status, expected, reasons) in [
        ("the first", json!({}), status(None, &[]), true, vec![]),
        (
            "begun",
            json!({}),
            status(Some("2026-01-01T10:00:00Z"), &[]),
            false,
            vec![],
        ),
        (
            "known by name",
            json!({}),
            status(None, &["c-29454360"]),
            false,
            vec![],
        ),
        (
            "suspended",
            json!({"suspend": true}),
            status(None, &[]),
            false,
            vec![],
        ),
        (
            "allowed",
            json!({"concurrencyPolicy": "Allow"}),
            status(None, &["x"]),
            true,
            vec![],
        ),
        (
            "forbidden",
            json!({"concurrencyPolicy": "Forbid"}),
            status(None, &["x"]),
            false,
            vec!["JobAlreadyActive"],
        ),
        (
            "replaced",
            json!({"concurrencyPolicy": "Replace"}),
            status(None, &["x"]),
            true,
            vec![],
        ),
        (
            "in time",
            json!({"startingDeadlineSeconds": 5}),
            status(None, &[]),
            true,
            vec![],
        ),
        (
            "late",
            json!({"startingDeadlineSeconds": 4}),
            status(None, &[]),
            false,
            vec![],
        ),
        (
            "many",
            json!({}),
            status(Some("2025-01-01T00:00:00Z"), &[]),
            true,
            vec!["TooManyMissedTimes"],
        ),
        (
            "no zone",
            json!({"timeZone": "Mars/Base"}),
            status(None, &[]),
            false,
            vec!["UnknownTimeZone"],
        ),
    ] {
        let cron = cron(hourly, &spec);
        let due = due(&cron, &status, now);
        let time = expected.then(|| at("2026-01-01T10:00:00Z"));
        assert_eq!(due.time, time, "{why}");
        let told: Vec<_> = due.told.iter().map(|told| told.reason).collect();
        assert_eq!(told, reasons, "{why}");
        assert_eq!(due.replaced.len(), usize::from(why == "replaced"), "{why}");
        let wake = due.wake.map(|wake| wake.as_secs());
        assert_eq!(
            wake,
            Some(59 * 60 + 55).filter(|_| !["suspended", "no zone"].contains(&why)),
            "{why}"
        );
    }
}

#[test]
fn the_status_follows_the_jobs() {
    let mut cron = cron("@hourly", &json!({}));
    cron.status = Some(status(None, &["runs", "ended", "gone"]));
    let start = "2026-01-01T10:00:00Z";
    let jobs = [
        job("runs", None, start),
        job("ended", Some("Complete"), start),
        job("strange", None, start),
        job("old", Some("Failed"), start),
    ];
    let (status, told) = observed(&cron, &jobs);
    let active: Vec<_> = status
        .active
        .iter()
        .flatten()
        .filter_map(|known| known.name.as_deref())
        .collect();
    assert_eq!(active, ["runs"]);
    assert_eq!(
        status.last_successful_time.map(|time| time.0),
        Some(at(start))
    );
    let told: Vec<_> = told.into_iter().map(|told| told.message).collect();
    assert_eq!(
        told,
        [
            "Saw completed job: ended, condition: Complete",
            "Saw a job that the controller did not create or forgot: strange",
            "Active job went missing: gone",
        ]
    );
}

/// As many jobs as somebody may put under a cron job: what is known of them costs no look at all of them for each.
#[test]
fn many_jobs_of_others_are_told_of_in_a_moment() {
    const MANY: usize = 100_000;
    let mut cron = cron("@hourly", &json!({}));
    let start = "2026-01-01T10:00:00Z";
    let named = |at: usize| format!("job-{at}");
    let over = job("over", Some("Failed"), start);
    let (made, strange) = (scheduled("made", None), job("strange", None, start));
    let jobs: Vec<_> = (0..MANY)
        .map(|at| {
            let alike = match at % 4 {
                0 => &made,
                1 => &over,
                _ => &strange,
            };
            let mut job = (**alike).clone();
            job.metadata.name = Some(named(at));
            job.metadata.uid = Some(named(at));
            Arc::new(job)
        })
        .collect();
    let known: Vec<String> = (0..MANY + MANY / 4)
        .filter(|at| at % 4 != 3)
        .map(named)
        .collect();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    cron.status = Some(status(None, &known));
    let began = Instant::now();
    let (status, told) = observed(&cron, &jobs);
    // Each with each takes minutes.
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(status.active.unwrap_or_default().len(), MANY / 2);
    let count = |reason: &str| told.iter().filter(|told| told.reason == reason).count();
    assert_eq!(count("SawCompletedJob"), MANY / 4);
    assert_eq!(count("UnexpectedJob"), MANY / 4);
    assert_eq!(count("MissingJob"), MANY / 4 / 4 * 3);
}

#[test]
fn the_oldest_that_are_over_go() {
    let cron = cron(
        "@hourly",
        &json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}),
    );
    let jobs = [
        job("late", Some("Complete"), "2026-01-03T00:00:00Z"),
        job("early", Some("Complete"), "2026-01-01T00:00:00Z"),
        job("failed", Some("Failed"), "2026-01-05T00:00:00Z"),
        job("runs", None, "2026-01-01T00:00:00Z"),
    ];
    let old = excess(&cron, &jobs);
    let names: Vec<_> = old
        .iter()
        .filter_map(|job| job.metadata.name.as_deref())
        .collect();
    assert_eq!(names, ["early", "failed"]);
}

proptest! {
    /// Whatever is lost, each time has one job at most, and the latest has one once a pass comes through.
    #[test]
    fn no_time_has_two_jobs(
        policy in prop::sample::select(vec!["Allow", "Forbid", "Replace"]),
        steps in prop::collection::vec((0i64..400, 0usize..3, any::<bool>()), 1..60),
    ) {
        let mut cron = cron("*/2 * * * *", &json!({"concurrencyPolicy": policy}));
        let mut now = at("2026-01-01T00:01:00Z");
        let mut jobs: Vec<Arc<Job>> = Vec::new();
        let mut made: Vec<String> = Vec::new();
        for (seconds, writes, ends) in steps {
            now = now.checked_add(SignedDuration::from_secs(seconds)).expect("in range");
            if ends {
                for known in &mut jobs {
                    *known = scheduled(known.metadata.name.as_deref().expect("a name"), Some("Failed"));
                }
            }
            let (mut status, _) = observed(&cron, &jobs);
            let due = due(&cron, &status, now);
            prop_assert!(due.wake.is_some_and(|wake| wake <= Duration::from_secs(121)));
            let replaced = due.replaced.iter().map(|known| known.uid.as_ref());
            let replaced: HashSet<_> = replaced.collect();
            jobs.retain(|job| !replaced.contains(&job.metadata.uid.as_ref()));
            forget(&mut status, &replaced);
            // The job, the status, or neither come about.
            if let Some(time) = due.time.filter(|_| writes > 0) {
                prop_assert!(time <= now);
                let name = job_name(&cron, time);
                let there = jobs.iter().find(|job| job.metadata.name.as_ref() == Some(&name)).cloned();
                let there = there.unwrap_or_else(|| {
                    let new = scheduled(&name, None);
                    made.push(name.clone());
                    jobs.push(new.clone());
                    new
                });
                remember(&mut status, &there, time);
            }
            if writes > 1 {
                cron.status = Some(status);
            }
            if policy != "Allow" {
                let running = jobs.iter().filter(|job| !crate::job::is_finished(job)).count();
                prop_assert!(running <= 1);
            }
        }
        let count = made.len();
        made.sort();
        made.dedup();
        prop_assert_eq!(made.len(), count);
    }
}
