use serde_json::{Value, json};

use super::super::PodKind;
use crate::kind::{ResourceKind, WriteScope, finish};
use crate::typed::Typed;

fn pod(spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"a": "b"}, "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": spec
    })
}

fn asking(cpu: &str) -> Value {
    json!({"name": "c", "image": "x:1", "resources": {
        "requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}
    }})
}

fn changed(object: &Value, place: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (above, name) = place.rsplit_once('/').unwrap();
    let above = object.pointer_mut(above).unwrap();
    match above {
        Value::Array(list) => list.insert(name.parse().unwrap(), value),
        other => {
            other
                .as_object_mut()
                .unwrap()
                .insert(name.to_owned(), value);
        }
    }
    object
}

/// What is stored of a new pod.
fn stored(spec: Value) -> Value {
    let draft = Typed::<PodKind>::default().draft(pod(spec)).unwrap();
    let (object, _) = finish(draft).unwrap();
    changed(&object, "/metadata/generation", json!(1))
}

fn resized(new: Value, old: &Value) -> Result<Value, Vec<String>> {
    let kind = Typed::<PodKind>::default();
    let draft = kind.draft_update(new, old, WriteScope::Part("resize"));
    let written = draft.and_then(finish).map(|(object, _)| object);
    written.map_err(|error| {
        let status = error.to_value();
        let causes = status["details"]["causes"].as_array();
        let causes = causes.into_iter().flatten();
        causes
            .map(|cause| {
                let text = |key: &str| cause[key].as_str().unwrap_or_default();
                format!("{}: {}", text("field"), text("message"))
            })
            .collect()
    })
}

#[test]
fn amounts_change_and_everything_else_stays() {
    let old = stored(json!({"containers": [asking("100m")]}));
    let new = changed(
        &old,
        "/spec/containers/0/resources/requests/cpu",
        json!("150m"),
    );
    let new = changed(&new, "/spec/containers/0/image", json!("y:1"));
    let new = changed(&new, "/spec/hostname", json!("other"));
    let new = changed(&new, "/metadata/labels", json!({"a": "c"}));
    let new = changed(&new, "/status/phase", json!("Failed"));
    let written = resized(new, &old).unwrap();
    let expected = changed(
        &old,
        "/spec/containers/0/resources/requests/cpu",
        json!("150m"),
    );
    let expected = changed(&expected, "/metadata/generation", json!(2));
    assert_eq!(written, expected);
    let image = changed(&old, "/spec/containers/0/image", json!("y:1"));
    assert_eq!(resized(image, &old).unwrap(), old);
}

#[test]
fn what_may_not_be_resized_is_refused() {
    let init = json!({"name": "i", "image": "x:1", "resources": {"limits": {"cpu": "1"}}});
    let old = stored(json!({"containers": [asking("100m")], "initContainers": [init]}));
    let of_container = |field: &str| format!("/spec/containers/0/{field}");
    for (place, value, expected) in [
        (
            of_container("resources/requests/cpu"),
            json!("300m"),
            vec![
                "spec.containers[0].resources.requests: Invalid value: \"300m\": must be less than or equal to cpu limit of 200m",
            ],
        ),
        (
            of_container("resources/requests"),
            json!({"memory": "64Mi"}),
            // What is not asked for is as much as the limit; the init container keeps the pod what it is.
            vec![],
        ),
        (
            of_container("resources/limits"),
            json!({"memory": "64Mi"}),
            vec![
                "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed",
            ],
        ),
        (
            of_container("resources/requests/ephemeral-storage"),
            json!("1Gi"),
            vec!["spec: Forbidden: only cpu and memory resources are mutable"],
        ),
        (
            of_container("resizePolicy"),
            json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]),
            vec!["spec: Forbidden: only cpu and memory resources are mutable"],
        ),
        (
            of_container("name"),
            json!("d"),
            vec![
                "spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize",
            ],
        ),
        (
            "/spec/containers/1".to_owned(),
            json!({"name": "d", "image": "x:1", "terminationMessagePath": "/m", "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}),
            vec!["spec.containers: Forbidden: containers may not be added or removed on resize"],
        ),
        (
            "/spec/initContainers/0/resources/limits/cpu".to_owned(),
            json!("2"),
            vec![],
        ),
        (
            "/spec/initContainers/0/resources/limits/ephemeral-storage".to_owned(),
            json!("1Gi"),
            vec![
                "spec.initContainers[0]: Forbidden: only cpu and memory resources for init or sidecar containers are mutable",
            ],
        ),
        (
            "/spec/resources".to_owned(),
            json!({}),
            vec!["spec: Forbidden: only cpu and memory resources are mutable"],
        ),
    ] {
        let found = resized(changed(&old, &place, value), &old);
        assert_eq!(found.err().unwrap_or_default(), expected, "{place}");
    }
}

#[test]
fn the_class_stays_and_static_pods_and_nodes_that_cannot_refuse() {
    let old = stored(json!({"containers": [asking("100m")]}));
    let cpu = "/spec/containers/0/resources/requests/cpu";
    let told = |old: &Value, amount: &str| {
        let found = resized(changed(old, cpu, json!(amount)), old);
        found.err().unwrap_or_default()
    };
    assert_eq!(
        told(&old, "200m"),
        [
            "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"
        ]
    );
    let annotations = json!({"kubernetes.io/config.mirror": "x"});
    let fixed = changed(&old, "/metadata/annotations", annotations);
    assert_eq!(
        told(&fixed, "150m"),
        ["[]: Forbidden: static pods cannot be resized"]
    );
    let running = |more: Value| {
        let mut status = json!({
            "name": "c", "image": "x:1", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        });
        if let (Some(status), Value::Object(more)) = (status.as_object_mut(), more) {
            status.extend(more);
        }
        changed(&old, "/status/containerStatuses", json!([status]))
    };
    assert_eq!(
        told(&running(json!({})), "150m"),
        ["spec: Forbidden: Pod running on node without support for resize"]
    );
    let telling = running(json!({"resources": {}}));
    assert_eq!(told(&telling, "150m"), Vec::<String>::new());
}

#[test]
fn the_pod_as_a_whole_is_resized() {
    let whole = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": "2"}});
    let containers = json!([{"name": "c", "image": "x:1"}]);
    let old = stored(json!({"containers": containers, "resources": whole("1")}));
    let told = |resources: Value| {
        let found = resized(changed(&old, "/spec/resources", resources), &old);
        found.err().unwrap_or_default()
    };
    assert_eq!(told(whole("1500m")), Vec::<String>::new());
    let removed = told(json!({"requests": {"cpu": "1"}}));
    assert!(
        removed.contains(
            &"spec.resources.limits: Forbidden: pod-level resource limits cannot be removed"
                .to_owned()
        ),
        "{removed:?}"
    );
}
