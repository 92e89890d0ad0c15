//! What becomes of jobs whose pods end in any order, while writes are lost.

mod world;

use gantry_informer::clock::seconds;
use proptest::prelude::*;
use serde_json::{Value, json};

use self::world::{World, Writes};
use super::facts::{is_finished, is_tracked};
use crate::pods::phase;

fn said(all: &[(&str, &str)]) -> Vec<(String, String, String)> {
    let owned = |(type_, reason): &(&str, &str)| {
        ((*type_).to_owned(), "True".to_owned(), (*reason).to_owned())
    };
    all.iter().map(owned).collect()
}

/// Ends the pods that run, one after the other, as told.
fn end_all(world: &mut World, ends: &[&str]) {
    let pods: Vec<_> = (0..ends.len()).filter_map(|at| world.running(at)).collect();
    for (uid, ended) in pods.iter().zip(ends) {
        world.end(uid, ended, Value::Null);
    }
}

#[test]
fn a_pod_that_succeeds_completes_its_job() {
    let mut world = World::new(json!({}));
    world.converge(None);
    let status = serde_json::to_value(world.status()).expect("as JSON");
    let started = "1970-01-12T13:46:40Z";
    assert_eq!(
        status,
        json!({
            "startTime": started, "active": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {},
        })
    );
    end_all(&mut world, &["Succeeded"]);
    world.converge(None);
    let condition = |type_: &str| {
        json!({"type": type_, "status": "True", "reason": "CompletionsReached",
            "message": "Reached expected number of succeeded pods",
            "lastProbeTime": started, "lastTransitionTime": started})
    };
    let status = serde_json::to_value(world.status()).expect("as JSON");
    assert_eq!(
        status,
        json!({
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
            "startTime": started, "completionTime": started, "succeeded": 1,
            "ready": 0, "terminating": 0, "uncountedTerminatedPods": {},
        })
    );
    assert!(world.pods.iter().all(|pod| !is_tracked(pod)));
}

#[test]
fn failures_beyond_the_limit_fail_the_job_and_wait_longer_each_time() {
    let mut world = World::new(json!({"backoffLimit": 2}));
    for _ in 0..3 {
        world.converge(None);
        world.wait(700);
        world.converge(None);
        assert_eq!(world.active(), 1);
        end_all(&mut world, &["Failed"]);
    }
    world.converge(None);
    assert_eq!(
        world.conditions(),
        said(&[
            ("FailureTarget", "BackoffLimitExceeded"),
            ("Failed", "BackoffLimitExceeded"),
        ])
    );
    assert_eq!(world.status().failed, Some(3));
    world.pauses.dedup();
    assert_eq!(world.pauses, [10, 20]);
}

#[test]
fn a_job_that_is_over_ends_its_pods_first() {
    let mut world = World::new(json!({"parallelism": 3, "completions": 3, "backoffLimit": 0}));
    world.converge(None);
    end_all(&mut world, &["Failed"]);
    assert!(!world.pass(Writes::ALL));
    assert_eq!(
        world.conditions(),
        said(&[("FailureTarget", "BackoffLimitExceeded")])
    );
    let status = world.status();
    assert_eq!((status.active, status.terminating), (None, Some(2)));
    world.converge(None);
    assert_eq!(world.conditions().len(), 2);
    assert_eq!(world.status().failed, Some(3));
    assert_eq!(world.status().completion_time, None);
}

#[test]
fn a_deadline_ends_a_job_but_not_while_it_waits() {
    let mut world = World::new(json!({"activeDeadlineSeconds": 60}));
    world.converge(None);
    world.job.spec.as_mut().expect("a spec").suspend = Some(true);
    world.converge(None);
    let suspended = [(
        "Suspended".to_owned(),
        "True".to_owned(),
        "JobSuspended".to_owned(),
    )];
    assert_eq!(world.conditions(), suspended);
    assert_eq!((world.active(), world.status().failed), (0, None));
    world.wait(100);
    world.converge(None);
    assert_eq!(world.conditions(), suspended);
    world.job.spec.as_mut().expect("a spec").suspend = Some(false);
    world.converge(None);
    let resumed = (
        "Suspended".to_owned(),
        "False".to_owned(),
        "JobResumed".to_owned(),
    );
    assert_eq!(world.conditions(), std::slice::from_ref(&resumed));
    let start = world.status().start_time.expect("it runs");
    assert_eq!(start.0, world.now);
    world.wait(60);
    world.converge(None);
    assert_eq!(
        world.conditions()[1..],
        said(&[
            ("FailureTarget", "DeadlineExceeded"),
            ("Failed", "DeadlineExceeded"),
        ])
    );
}

#[test]
fn indexes_have_one_pod_each_and_are_told_in_short() {
    let spec = json!({"completionMode": "Indexed", "completions": 6, "parallelism": 4});
    let mut world = World::new(spec);
    world.converge(None);
    let names = |world: &World| -> Vec<_> {
        let names = world.pods.iter().filter(|pod| phase(pod) == "Pending");
        names
            .filter_map(|pod| pod.metadata.generate_name.clone())
            .collect()
    };
    assert_eq!(names(&world), ["j-0-", "j-1-", "j-2-", "j-3-"]);
    for at in [3, 2, 0] {
        let uid = world.running(at).expect("a pod");
        world.end(&uid, "Succeeded", Value::Null);
    }
    world.wait(1);
    end_all(&mut world, &["Failed"]);
    world.converge(None);
    let status = world.status();
    assert_eq!(status.completed_indexes.as_deref(), Some("0,2,3"));
    assert_eq!((status.succeeded, status.failed), (Some(3), Some(1)));
    assert!(names(&world).is_empty(), "they wait");
    world.wait(10);
    world.converge(None);
    assert_eq!(names(&world), ["j-1-", "j-4-", "j-5-"]);
    world.converge(Some("Succeeded"));
    assert_eq!(world.status().completed_indexes.as_deref(), Some("0-5"));
}

#[test]
fn success_is_what_the_policy_says() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2,
        "successPolicy": {"rules": [{"succeededCount": 1}]}});
    let mut world = World::new(spec);
    world.converge(None);
    end_all(&mut world, &["Succeeded"]);
    world.converge(None);
    assert_eq!(
        world.conditions(),
        said(&[
            ("SuccessCriteriaMet", "SuccessPolicy"),
            ("Complete", "SuccessPolicy"),
        ])
    );
    let status = world.status();
    assert_eq!((status.succeeded, status.failed), (Some(1), None));
    assert_eq!(status.completed_indexes.as_deref(), Some("0"));
    let message = status.conditions.and_then(|all| all[0].message.clone());
    assert_eq!(message.as_deref(), Some("Matched rules at index 0"));
}

#[test]
fn each_index_has_failures_of_its_own() {
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3,
        "backoffLimitPerIndex": 1});
    let mut world = World::new(spec.clone());
    world.converge(None);
    end_all(&mut world, &["Succeeded", "Failed", "Succeeded"]);
    world.converge(None);
    assert!(
        world.pods.iter().any(is_tracked),
        "it stays until another takes its place"
    );
    world.wait(10);
    world.converge(None);
    assert_eq!(world.active(), 1);
    end_all(&mut world, &["Failed"]);
    world.converge(None);
    let status = world.status();
    assert_eq!(status.failed_indexes.as_deref(), Some("1"));
    assert_eq!((status.succeeded, status.failed), (Some(2), Some(2)));
    assert_eq!(
        world.conditions(),
        said(&[
            ("FailureTarget", "FailedIndexes"),
            ("Failed", "FailedIndexes"),
        ])
    );
    let mut spec = spec;
    spec["maxFailedIndexes"] = json!(0);
    spec["podFailurePolicy"] = json!({"rules": [
        {"action": "FailIndex", "onPodConditions": [{"type": "Bad", "status": "True"}]},
    ]});
    let mut world = World::new(spec);
    world.converge(None);
    let uid = world.running(2).expect("a pod");
    world.end(
        &uid,
        "Failed",
        json!({"conditions": [{"type": "Bad", "status": "True"}]}),
    );
    world.converge(None);
    assert_eq!(world.status().failed_indexes.as_deref(), Some("2"));
    assert_eq!(world.conditions()[1].2, "MaxFailedIndexesExceeded");
}

#[test]
fn a_policy_fails_the_job_or_overlooks_what_failed() {
    let spec = json!({"backoffLimit": 0, "podFailurePolicy": {"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onPodConditions": [{"type": "Bad", "status": "True"}]},
    ]}});
    let mut world = World::new(spec);
    world.converge(None);
    let uid = world.running(0).expect("a pod");
    let disrupted = json!({"conditions": [{"type": "DisruptionTarget", "status": "True"}]});
    world.end(&uid, "Failed", disrupted);
    world.converge(None);
    assert_eq!((world.status().failed, world.conditions().len()), (None, 0));
    world.wait(10);
    world.converge(None);
    let uid = world.running(0).expect("another pod");
    world.end(
        &uid,
        "Failed",
        json!({"conditions": [{"type": "Bad", "status": "True"}]}),
    );
    world.converge(None);
    assert_eq!(world.conditions()[1].2, "PodFailurePolicy");
    let message = world
        .status()
        .conditions
        .and_then(|all| all[1].message.clone());
    let expected = "Pod ns/pod-2 has condition Bad matching FailJob rule at index 1";
    assert_eq!(message.as_deref(), Some(expected));
    assert_eq!(world.status().failed, Some(1));
}

#[test]
fn a_pod_that_goes_is_replaced_at_once_or_when_it_has_failed() {
    for (policy, at_once) in [("TerminatingOrFailed", true), ("Failed", false)] {
        let mut world = World::new(json!({"podReplacementPolicy": policy}));
        world.converge(None);
        let uid = world.running(0).expect("a pod");
        world.delete(&uid);
        // It still runs when the next may.
        world.pass(Writes::ALL);
        world.wait(700);
        world.pass(Writes::ALL);
        assert_eq!(world.active(), usize::from(at_once), "{policy}");
        world.end(&uid, "Failed", Value::Null);
        world.wait(700);
        world.converge(None);
        assert_eq!(
            (world.active(), world.status().failed),
            (1, Some(1)),
            "{policy}"
        );
    }
}

#[test]
fn a_job_that_fails_before_it_was_said_to_have_begun_has_begun() {
    let mut world = World::new(json!({"backoffLimit": 0}));
    // The pass breaks off when there is a pod, and nothing is said of it.
    world.pass(1);
    assert_eq!((world.active(), world.status().start_time), (1, None));
    world.job.spec.as_mut().expect("a spec").suspend = Some(true);
    end_all(&mut world, &["Failed"]);
    world.converge(None);
    assert_eq!(world.conditions()[1].2, "BackoffLimitExceeded");
    assert_eq!(world.status().start_time, Some(seconds(world.now)));
}

#[test]
fn many_ends_are_noted_in_parts() {
    let mut world = World::new(json!({"parallelism": 700, "completions": 700}));
    world.converge(None);
    end_all(&mut world, &["Succeeded"; 700]);
    // The pass breaks off when all that it notes are noted, and none is free.
    world.pass(1);
    let noted = world
        .status()
        .uncounted_terminated_pods
        .and_then(|noted| noted.succeeded);
    assert_eq!(noted.map(|noted| noted.len()), Some(500));
    world.converge(None);
    assert_eq!(world.status().succeeded, Some(700));
    assert!(is_finished(&world.job));
}

#[derive(Clone, Debug)]
enum Step {
    /// Of the writes of the pass so many come about.
    Pass(usize),
    End(usize, &'static str),
    Delete(usize),
    Vanish,
    Wait(i64),
    Suspend(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let ended = prop_oneof![3 => Just("Succeeded"), 2 => Just("Failed")];
    prop_oneof![
        4 => Just(Step::Pass(Writes::ALL)),
        4 => (0..12usize).prop_map(Step::Pass),
        4 => (0..8usize, ended).prop_map(|(at, ended)| Step::End(at, ended)),
        1 => (0..8usize).prop_map(Step::Delete),
        2 => Just(Step::Vanish),
        2 => (0..700i64).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Suspend),
    ]
}

prop_compose! {
    fn spec()(
        completions in prop::option::weighted(0.9, 0..7i32),
        parallelism in 1..5i32,
        limit in 0..6i32,
        indexed in any::<bool>(),
        per_index in prop::option::of(0..3i32),
        awaits in any::<bool>(),
        enough in prop::option::weighted(0.3, 1..3i32),
    ) -> Value {
        let mut spec = json!({"parallelism": parallelism, "backoffLimit": limit});
        if let Some(completions) = completions {
            spec["completions"] = json!(completions);
        }
        if awaits {
            spec["podReplacementPolicy"] = json!("Failed");
        }
        if let (true, Some(completions)) = (indexed, completions) {
            spec["completionMode"] = json!("Indexed");
            if let Some(limit) = per_index {
                spec["backoffLimitPerIndex"] = json!(limit);
            }
            if let Some(count) = enough.filter(|count| *count <= completions) {
                spec["successPolicy"] = json!({"rules": [{"succeededCount": count}]});
            }
        }
        spec
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever order pods end in and whatever writes are lost: there are never too many pods, each is counted once, the
    /// status is always one that the server takes, and in the end the job is over and nothing happens any more.
    #[test]
    fn each_pod_is_counted_once(spec in spec(), steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new(spec);
        for step in steps {
            match step {
                Step::Pass(writes) => drop(world.pass(writes)),
                Step::End(at, ended) => if let Some(uid) = world.running(at) {
                    world.end(&uid, ended, Value::Null);
                },
                Step::Delete(at) => if let Some(uid) = world.running(at) {
                    world.delete(&uid);
                },
                Step::Vanish => world.vanish(),
                Step::Wait(seconds) => world.wait(seconds),
                Step::Suspend(suspends) => if let Some(spec) = &mut world.job.spec {
                    spec.suspend = Some(suspends);
                },
            }
            world.check();
        }
        if let Some(spec) = &mut world.job.spec {
            spec.suspend = Some(false);
        }
        world.converge(Some("Succeeded"));
        prop_assert!(is_finished(&world.job));
        prop_assert!(world.pass(Writes::ALL));
        prop_assert!(world.pods.iter().all(|pod| !is_tracked(pod)));
        let status = world.status();
        let (succeeded, failed) = (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0));
        let settled = |ended: &str| {
            let count = world.settled.values().filter(|phase| *phase == ended).count();
            i32::try_from(count).expect("a few")
        };
        let others = settled("Pending");
        let all = i32::try_from(world.settled.len()).expect("a few");
        let spec = world.job.spec.as_ref().expect("a spec");
        let indexed = spec.completion_mode.as_deref() == Some("Indexed");
        prop_assert!(succeeded <= settled("Succeeded"));
        prop_assert!(failed >= settled("Failed"));
        if !indexed && world.conditions().iter().any(|known| known.0 == "Failed") {
            prop_assert_eq!(succeeded + failed, all);
        } else if !indexed {
            prop_assert!((all - others..=all).contains(&(succeeded + failed)));
        }
    }
}
