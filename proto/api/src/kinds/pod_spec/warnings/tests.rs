use serde_json::{Value, json};

use super::*;

fn told(metadata: Value, spec: Value, is_template: bool) -> Vec<String> {
    let metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
    let spec: PodSpec = serde_json::from_value(spec).unwrap();
    let path = match is_template {
        true => Path::new("t"),
        false => Path::default(),
    };
    warnings(&metadata, &spec, is_template, &path)
}

fn of_spec(spec: Value) -> Vec<String> {
    told(json!({}), spec, false)
}

#[test]
fn old_names_are_told_with_new_ones() {
    let old = "beta.kubernetes.io/os";
    let term = json!({"matchExpressions": [{"key": old, "operator": "Exists"}]});
    let found = of_spec(json!({
        "containers": [],
        "nodeSelector": {old: "linux"},
        "affinity": {"nodeAffinity": {
            REQUIRED: {"nodeSelectorTerms": [term]},
            PREFERRED: [{"weight": 1, "preference": term}]
        }},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": old, "whenUnsatisfiable": "DoNotSchedule"}
        ]
    }));
    let since = "deprecated since v1.14; use \"kubernetes.io/os\" instead";
    assert_eq!(
        found,
        [
            format!("spec.nodeSelector[{old}]: {since}"),
            format!(
                "spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].matchExpressions[0].key: {old} is {since}"
            ),
            format!(
                "spec.affinity.nodeAffinity.{PREFERRED}[0].preference.matchExpressions[0].key: {old} is {since}"
            ),
            format!("spec.topologySpreadConstraints[0].topologyKey: {old} is {since}"),
            "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod"
                .to_owned(),
        ]
    );
}

#[test]
fn annotations_that_became_fields_are_told() {
    let annotations = json!({"annotations": {
        "scheduler.alpha.kubernetes.io/critical-pod": "",
        "seccomp.security.alpha.kubernetes.io/pod": "x",
        "container.seccomp.security.alpha.kubernetes.io/a": "x",
        "container.apparmor.security.beta.kubernetes.io/a": "x"
    }});
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let of_pod = told(annotations.clone(), spec.clone(), false);
    assert_eq!(of_pod.len(), 3, "{of_pod:?}");
    assert!(of_pod[0].starts_with("metadata.annotations[scheduler.alpha"));
    let of_template = told(annotations, spec, true);
    assert_eq!(of_template.len(), 4, "{of_template:?}");
    assert!(of_template[3].starts_with("t.metadata.annotations[container.apparmor"));
}

#[test]
fn volumes_that_went_or_clash_are_told() {
    let found = of_spec(json!({"containers": [], "volumes": [
        {"name": "a", "gitRepo": {"repository": "x"}},
        {"name": "b", "rbd": {"image": "x", "monitors": []}},
        {"name": "c", "ephemeral": {"volumeClaimTemplate": {"spec": {
            "resources": {"requests": {"storage": "1.5"}}
        }}}},
        {"name": "d", "projected": {"sources": [
            {"serviceAccountToken": {"path": "t"}},
            {"configMap": {"name": "m", "items": [{"key": "k", "path": "t"}]}},
            {"secret": {"name": "s", "items": [{"key": "k", "path": "u"}]}}
        ]}}
    ]}));
    assert_eq!(
        found,
        [
            "spec.volumes[0].gitRepo: deprecated in v1.11",
            "spec.volumes[1].rbd: deprecated in v1.28, non-functional in v1.31+",
            "spec.volumes[2].ephemeral.volumeClaimTemplate.spec.resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer",
            "spec.volumes[3].projected.sources.configMap[0]: has duplicated path with ServiceAccountToken \"t\"",
        ]
    );
}

#[test]
fn what_is_there_twice_is_told() {
    let variables = json!([
        {"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"},
        {"name": "A", "value": "$(A)"}, {"name": "A", "value": "3"}
    ]);
    let found = of_spec(json!({
        "hostAliases": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.1"}],
        "imagePullSecrets": [{"name": "a"}, {"name": "a"}, {"name": ""}],
        "terminationGracePeriodSeconds": -1,
        "containers": [{"name": "a", "env": variables, "resources": {"limits": {"memory": "100m"}}}]
    }));
    assert_eq!(
        found,
        [
            "spec.hostAliases[1].ip: duplicate ip \"192.0.2.1\"",
            "spec.imagePullSecrets[1].name: duplicate name \"a\"",
            "spec.imagePullSecrets[2].name: invalid empty name \"\"",
            "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
            "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
            "spec.containers[0].env[3]: hides previous definition of \"A\", which may be dropped when using apply",
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
        ]
    );
}

#[test]
fn ports_of_all_containers_are_compared() {
    let port = |host_port: i32, host_ip: &str| json!({"containerPort": 80, "protocol": "TCP", "hostPort": host_port, "hostIP": host_ip});
    let found = of_spec(json!({
        "initContainers": [{"name": "i", "ports": [port(0, "")]}],
        "containers": [
            {"name": "a", "ports": [port(81, "192.0.2.1"), port(81, "192.0.2.2"), port(0, "")]},
            {"name": "b", "ports": [port(81, ""), port(0, "192.0.2.1")]}
        ]
    }));
    let (init, a, b) = (
        "spec.initContainers[0].ports",
        "spec.containers[0].ports",
        "spec.containers[1].ports",
    );
    let with = |place: &str, what: &str, other: &str| {
        format!("{place}: {what} port definition with {other}")
    };
    let mut expected = vec![
        with(&format!("{a}[0]"), "overlapping", &format!("{init}[0]")),
        with(&format!("{a}[1]"), "overlapping", &format!("{init}[0]")),
        with(&format!("{a}[2]"), "duplicate", &format!("{init}[0]")),
        with(&format!("{a}[2]"), "overlapping", &format!("{a}[0]")),
        with(&format!("{a}[2]"), "overlapping", &format!("{a}[1]")),
        with(&format!("{b}[0]"), "overlapping", &format!("{init}[0]")),
        with(
            &format!("{b}[0]"),
            "dangerously ambiguous",
            &format!("{a}[0]"),
        ),
        with(
            &format!("{b}[0]"),
            "dangerously ambiguous",
            &format!("{a}[1]"),
        ),
        with(&format!("{b}[0]"), "overlapping", &format!("{a}[2]")),
        format!(
            "{b}[1]: hostIP set without hostPort: {{Name: HostPort:0 ContainerPort:80 Protocol:TCP HostIP:192.0.2.1}}"
        ),
    ];
    let last = [(init, 0), (a, 0), (a, 1), (a, 2), (b, 0)];
    expected.extend(last.map(|(place, index)| {
        with(
            &format!("{b}[1]"),
            "overlapping",
            &format!("{place}[{index}]"),
        )
    }));
    assert_eq!(found, expected);
}

#[test]
fn many_ports_cost_little() {
    let ports: Vec<Value> = (0..60_000)
        .map(|at| json!({"containerPort": 80, "hostPort": 1, "hostIP": format!("192.0.2.{at}")}))
        .collect();
    assert!(of_spec(json!({"containers": [{"name": "a", "ports": ports}]})).is_empty());
    let same = vec![json!({"containerPort": 80}); 60_000];
    let found = of_spec(json!({"containers": [{"name": "a", "ports": same}]}));
    assert_eq!(found.len(), MAX_WARNINGS);
}
