//! Every way to wait, as objects and as sentences.

use serde_json::{Value, json};

use super::super::super::rollout::testing::{deployment, pod, seen, set};
use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:01:00Z".parse().expect("a time")
}

/// A Deployment with these members beside those that all have here.
fn web(pointer: &str, members: Value) -> Value {
    let mut web = deployment("v2");
    let place = web.pointer_mut(pointer).and_then(Value::as_object_mut);
    place
        .expect("an object")
        .extend(members.as_object().expect("members").clone());
    web
}

fn conditions(conditions: Value) -> Value {
    web("/status", json!({"conditions": conditions}))
}

fn middle() -> Vec<Value> {
    vec![set(1, "v1", (3, 3, 3)), set(2, "v2", (1, 1, 0))]
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({"phase": "Pending", "containerStatuses": [{
        "name": "web", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": reason, "message": message}}}]})
}

fn ready(status: &str, since: &str) -> Value {
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": since}]})
}

fn said(deployment: Value, sets: Vec<Value>, pods: Vec<Value>) -> Said {
    let answers = BTreeMap::from([(
        "web-asked".to_owned(),
        "Readiness probe failed: 503".to_owned(),
    )]);
    explain(&seen(deployment, sets, pods), &answers, now())
}

#[test]
fn the_revision_and_its_pods_are_counted_first() {
    let said = said(deployment("v2"), middle(), Vec::new());
    assert_eq!(
        said.sentences[..2],
        [
            "Deployment web wants 3 pods of revision 2, image v2.",
            "It has 1 of them: 0 ready, 0 available. Older pods: 3 of revision 1 (3 available).",
        ]
    );
    let none = self::said(deployment("v3"), Vec::new(), Vec::new());
    assert!(
        none.sentences[0].contains("of a new revision, image v3"),
        "{none:?}"
    );
    assert_eq!(none.sentences[1], "Its ReplicaSet is not there yet.");
}

#[test]
fn whatever_holds_a_rollout_is_said_with_what_to_do() {
    let pod_in = |status: Value| vec![pod(2, "web-a", status)];
    let unscheduled = json!({"phase": "Pending", "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}]});
    let mut leaving = pod(1, "web-z", json!({}));
    *leaving
        .pointer_mut("/metadata/creationTimestamp")
        .expect("a time") = Value::Null;
    let leaves = json!({"deletionTimestamp": "2026-01-01T00:00:59Z"});
    let metadata = leaving
        .pointer_mut("/metadata")
        .and_then(Value::as_object_mut);
    metadata
        .expect("metadata")
        .extend(leaves.as_object().expect("members").clone());
    for (deployment, pods, sentence, next) in [
        (
            web("/metadata", json!({"generation": 3})),
            Vec::new(),
            "it is generation 3, and the controller has seen 2",
            "gantry doctor",
        ),
        (
            web("/spec", json!({"paused": true})),
            Vec::new(),
            "It is paused",
            "gantry rollout resume deploy/web",
        ),
        (
            conditions(
                json!([{"type": "Progressing", "status": "True", "reason": "CanaryStep", "message": "step 1 of 2: 10%"}]),
            ),
            Vec::new(),
            "It is held by a canary: step 1 of 2: 10%.",
            "gantry rollout promote deploy/web",
        ),
        (
            conditions(
                json!([{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]),
            ),
            Vec::new(),
            "Pods cannot be created: exceeded quota.",
            "gantry describe rs web-s2",
        ),
        (
            deployment("v2"),
            pod_in(unscheduled),
            "Pod web-a of revision 2: no node takes it: Unschedulable: 0/2 nodes are available.",
            "gantry top nodes",
        ),
        (
            deployment("v2"),
            pod_in(waiting("ImagePullBackOff", "no such image")),
            "Pod web-a of revision 2: the image of container web cannot be had: ImagePullBackOff: no such image.",
            "gantry set image deploy/web web=IMAGE",
        ),
        (
            deployment("v2"),
            pod_in(waiting("CreateContainerConfigError", "no ConfigMap")),
            "container web cannot be made: CreateContainerConfigError: no ConfigMap.",
            "gantry describe pod web-a",
        ),
        (
            web("/metadata", json!({"namespace": "team"})),
            pod_in(waiting("CrashLoopBackOff", "")),
            "container web does not go on running: CrashLoopBackOff.",
            "gantry -n team logs web-a -c web --previous",
        ),
        (
            deployment("v2"),
            vec![pod(2, "web-asked", ready("False", "2026-01-01T00:00:30Z"))],
            "it runs and is not ready: Readiness probe failed: 503.",
            "gantry logs web-asked",
        ),
        (
            web("/spec", json!({"minReadySeconds": 30})),
            pod_in(ready("True", "2026-01-01T00:00:40Z")),
            "1 pod is ready, but not yet for minReadySeconds (30): the next is available in 10 s.",
            "",
        ),
        (
            deployment("v2"),
            vec![leaving],
            "1 pod is on its way out.",
            "",
        ),
        (
            web(
                "/spec",
                json!({"strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": "10%"}}}),
            ),
            Vec::new(),
            "maxSurge (1) may exist beyond 3 pods, and no more than maxUnavailable (10%) be missing",
            "",
        ),
        (
            web("/spec", json!({"strategy": {"type": "Recreate"}})),
            Vec::new(),
            "Its strategy is Recreate",
            "",
        ),
        (
            conditions(
                json!([{"type": "Progressing", "status": "True", "lastUpdateTime": "2026-01-01T00:00:50Z"}]),
            ),
            Vec::new(),
            "It counts as failed when there is no progress for another 590 s",
            "",
        ),
        (
            conditions(
                json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]),
            ),
            Vec::new(),
            "It counts as failed: there was no progress for progressDeadlineSeconds (600).",
            "gantry rollout undo deploy/web",
        ),
    ] {
        let said = said(deployment, middle(), pods);
        let text = said.text();
        assert!(text.contains(sentence), "{sentence}: {text}");
        assert!(
            next.is_empty() || said.next.contains(&next.to_owned()),
            "{next}: {text}"
        );
    }
}

#[test]
fn pods_in_the_same_trouble_are_one_sentence() {
    let pods = ["web-a", "web-b", "web-c"];
    let pods = pods.map(|name| pod(2, name, waiting("ErrImagePull", "no")));
    let said = said(deployment("v2"), middle(), pods.into());
    let about: Vec<&String> = said
        .sentences
        .iter()
        .filter(|one| one.contains("ErrImagePull"))
        .collect();
    assert_eq!(about.len(), 1);
    assert!(
        about[0].starts_with("3 pods, such as web-a of revision 2:"),
        "{about:?}"
    );
    assert!(
        said.next
            .contains(&"gantry rollout undo deploy/web".to_owned())
    );
}

#[test]
fn what_is_over_waits_for_nothing() {
    let complete = json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3});
    let sets = || vec![set(1, "v1", (0, 0, 0)), set(2, "v2", (3, 3, 3))];
    let done = said(web("/status", complete.clone()), sets(), Vec::new());
    assert_eq!(done.sentences[2..], ["Nothing is waited for."]);
    assert!(done.next.is_empty());
    let failed = json!([{"type": "RolledBack", "status": "True", "reason": "CrashLoopBackOff",
        "message": "Revision 3 failed and was taken back to revision 2: pod web-x"}]);
    for (available, last) in [
        (3, "Nothing is waited for."),
        (
            2,
            "Nothing holds it up: it goes on as pods become available.",
        ),
    ] {
        let mut back = complete.clone();
        let members = json!({"conditions": failed, "availableReplicas": available});
        let status = back.as_object_mut().expect("a status");
        status.extend(members.as_object().expect("members").clone());
        let said = said(web("/status", back), sets(), Vec::new());
        assert_eq!(
            said.sentences[2..],
            [
                "Revision 3 failed and was taken back to revision 2: pod web-x. (CrashLoopBackOff)",
                "That template is not tried again until another one is wanted.",
                last,
            ]
        );
    }
}

#[test]
fn probes_are_asked_for_of_pods_that_run_and_are_not_ready() {
    let pods = vec![
        pod(2, "one", ready("False", "2026-01-01T00:00:30Z")),
        pod(2, "two", ready("True", "2026-01-01T00:00:30Z")),
        pod(2, "three", waiting("ErrImagePull", "")),
    ];
    assert_eq!(
        asked(&seen(deployment("v2"), middle(), pods), now()),
        ["one"]
    );
}

#[test]
fn while_a_canary_holds_it_nothing_else_does() {
    let step = json!([{"type": "Progressing", "status": "True", "reason": "CanaryStep",
        "message": "step 1 of 2", "lastUpdateTime": "2026-01-01T00:00:50Z"}]);
    let said = said(conditions(step), middle(), Vec::new());
    assert_eq!(
        said.sentences[2..],
        ["It is held by a canary: step 1 of 2."]
    );
}
