//! What is made of what pods show.

use serde_json::{Value, json};

use super::*;

const START_OF_TIME: i64 = 1_767_225_600;

/// Seconds after the pods were bound.
fn after(seconds: i64) -> Timestamp {
    Timestamp::from_second(START_OF_TIME + seconds).expect("in range")
}

fn pod(name: &str, status: &Value) -> Arc<Pod> {
    let created = "2026-01-01T00:00:00Z";
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": created},
        "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
        "status": status,
    }))
    .expect("a pod");
    let conditions = pod
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    if conditions.is_empty() {
        conditions.push(PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "True".to_owned(),
            last_transition_time: pod.metadata.creation_timestamp.clone(),
            ..PodCondition::default()
        });
    }
    Arc::new(pod)
}

fn waiting(reason: &str) -> Value {
    json!({"phase": "Pending", "containerStatuses": [container(json!({"waiting": {"reason": reason, "message": "why"}}), 0)]})
}

fn container(state: Value, restarts: i32) -> Value {
    json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state,
        "lastState": {"terminated": {"exitCode": 7, "reason": "Error", "message": "no such\nfile"}}})
}

fn crashed(state: Value, restarts: i32) -> Value {
    json!({"phase": "Running", "containerStatuses": [container(state, restarts)]})
}

fn judged(policy: &Policy, statuses: &[Value], at: i64) -> Verdict {
    let pods: Vec<_> = statuses
        .iter()
        .enumerate()
        .map(|(at, status)| pod(&format!("p{at}"), status))
        .collect();
    judge(policy, &pods, after(at))
}

fn reason(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Open => "",
        Verdict::Until(_) => "until",
        Verdict::Failed(fault) => &fault.reason,
    }
}

#[test]
fn what_cannot_start_fails_when_no_time_mends_it() {
    let policy = Policy::default();
    for (waits, at, expected) in [
        ("ContainerCreating", 600, ""),
        ("PodInitializing", 600, ""),
        ("ErrImagePull", 1, "until"),
        ("ErrImagePull", 5, "ErrImagePull"),
        ("ImagePullBackOff", 4, "until"),
        ("ImagePullBackOff", 60, "ImagePullBackOff"),
        ("CreateContainerConfigError", 2, "until"),
        (
            "CreateContainerConfigError",
            6,
            "CreateContainerConfigError",
        ),
        ("InvalidImageName", 0, "InvalidImageName"),
        ("ErrImageNeverPull", 0, "ErrImageNeverPull"),
        ("CrashLoopBackOff", 0, "CrashLoopBackOff"),
    ] {
        let verdict = judged(&policy, &[waiting(waits)], at);
        assert_eq!(reason(&verdict), expected, "{waits} after {at} s");
        if let Verdict::Until(left) = verdict {
            assert_eq!(left, START - Duration::from_secs(at.unsigned_abs()));
        }
    }
    let unschedulable = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/1 nodes", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    for (at, expected) in [(3, "until"), (10, "Unschedulable")] {
        let verdict = judged(&policy, std::slice::from_ref(&unschedulable), at);
        assert_eq!(reason(&verdict), expected, "after {at} s");
    }
}

#[test]
fn failures_of_all_pods_are_counted_together() {
    let running = || json!({"running": {}});
    let ended = |code: i32| json!({"terminated": {"exitCode": code}});
    let once = crashed(ended(1), 0);
    let twice = crashed(running(), 2);
    let fine = crashed(ended(0), 0);
    let policy = Policy::default();
    assert_eq!(
        judged(&policy, &[once.clone(), once.clone(), fine], 0),
        Verdict::Open
    );
    let three = [once.clone(), twice.clone()];
    let Verdict::Failed(fault) = judged(&policy, &three, 0) else {
        panic!("three are too many");
    };
    assert_eq!(fault.reason, "ContainerFailures");
    assert_eq!(
        fault.message,
        "pod p1, container c: last ended with exit code 7 (Error): no such file (3 failures of its containers)"
    );
    // Who says how many counts each of them, however they follow each other.
    let patient = Policy {
        failures: Some(5),
        ..Policy::default()
    };
    let looping = crashed(json!({"waiting": {"reason": "CrashLoopBackOff"}}), 2);
    assert_eq!(
        judged(&patient, &[looping.clone(), once.clone()], 0),
        Verdict::Open
    );
    assert_eq!(
        reason(&judged(&patient, &[looping, twice], 0)),
        "ContainerFailures"
    );
}

#[test]
fn who_ends_well_and_starts_again_has_not_failed() {
    let again = |code: i32| {
        let last = json!({"terminated": {"exitCode": code}});
        json!({"phase": "Running", "containerStatuses": [{
            "name": "c", "image": "x:1", "imageID": "", "ready": true, "restartCount": 9,
            "state": {"running": {}}, "lastState": last}]})
    };
    let policy = Policy::default();
    assert_eq!(judged(&policy, &[again(0)], 0), Verdict::Open);
    assert_eq!(
        reason(&judged(&policy, &[again(1)], 0)),
        "ContainerFailures"
    );
}

#[test]
fn what_the_node_or_a_deletion_ended_is_no_evidence() {
    let ended = |reason: &str| {
        json!({"phase": "Failed", "reason": reason, "message": "m",
        "containerStatuses": [container(json!({"terminated": {"exitCode": 137}}), 9)]})
    };
    let policy = Policy::default();
    assert_eq!(
        judged(&policy, &[ended("Evicted"), ended("NodeShutdown")], 0),
        Verdict::Open
    );
    let mut deleted = (*pod("p", &waiting("InvalidImageName"))).clone();
    deleted.metadata.deletion_timestamp = deleted.metadata.creation_timestamp.clone();
    assert_eq!(
        judge(&policy, &[Arc::new(deleted)], after(0)),
        Verdict::Open
    );
    // A pod that no node would run is evidence, and is made anew each time.
    let refused =
        json!({"phase": "Failed", "reason": "SysctlForbidden", "message": "forbidden sysctl"});
    let all = [refused.clone(), refused.clone(), refused];
    assert_eq!(reason(&judged(&policy, &all, 0)), "ContainerFailures");
    assert_eq!(judged(&policy, &all[1..], 0), Verdict::Open);
}

#[test]
fn a_pod_that_is_not_ready_is_named_with_what_it_says() {
    let unready = json!({"phase": "Running",
        "conditions": [{"type": "Ready", "status": "False", "message": "containers with unready status: [c]"}],
        "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"running": {}}}]});
    let fault = laggard("ProgressDeadlineExceeded", &[pod("p", &unready)]).expect("a fault");
    assert_eq!(
        fault.message,
        "pod p, container c: containers with unready status: [c]"
    );
    assert_eq!(fault.asks.as_deref(), Some("uid-p"));
    assert_eq!(laggard("ProgressDeadlineExceeded", &[]), None);
}

#[test]
fn a_containers_last_words_are_cut_and_in_one_line() {
    let long = "\u{1b}[31mx\n".repeat(10_000);
    let status = json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "i", "imageID": "",
        "ready": false, "restartCount": 3, "state": {"terminated": {"exitCode": 1, "message": long}}}]});
    let Verdict::Failed(fault) = judged(&Policy::default(), &[status], 0) else {
        panic!("it has failed");
    };
    assert!(fault.message.chars().count() < 600);
    assert!(!fault.message.contains(char::is_control));
}

#[test]
fn only_pods_in_trouble_are_looked_at() {
    assert!(is_troubled(&pod("p", &waiting("ErrImagePull"))));
    assert!(is_troubled(&pod("p", &crashed(json!({"running": {}}), 1))));
    assert!(!is_troubled(&pod("p", &waiting("ContainerCreating"))));
    assert!(!is_troubled(&pod("p", &json!({"phase": "Running"}))));
}
