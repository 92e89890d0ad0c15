use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;

use super::super::strategic;
use super::*;
use crate::json::Members;

fn deployment_schema() -> Option<&'static TypeSchema> {
    Some(TypeSchema::of::<Deployment>())
}

fn service_schema() -> Option<&'static TypeSchema> {
    Some(TypeSchema::of::<Service>())
}

/// The live object behind a patch.
fn patched(live: &Value, difference: &Difference, schema: Option<&TypeSchema>) -> Value {
    let mut object = live.clone();
    match difference.patch_type {
        PatchType::Strategic => {
            strategic::merge(&mut object, &difference.patch, schema).expect("merges");
        }
        _ => json_patch::merge(&mut object, &difference.patch),
    }
    object
}

/// What an apply makes of a live object; another finds nothing to do.
fn applied(last: &Value, wanted: &Value, live: &Value, schema: Option<&TypeSchema>) -> Value {
    let difference = three_way(last, wanted, live, schema);
    let after = patched(live, &difference, schema);
    let again = three_way(wanted, wanted, &after, schema);
    assert!(again.is_empty(), "{difference:?} left {again:?}");
    after
}

fn pod(spec: Value) -> Value {
    json!({"spec": {"template": {"spec": spec}}})
}

fn container(fields: Value) -> Value {
    let mut container = json!({"name": "web", "image": "a"});
    json_patch::merge(&mut container, &fields);
    pod(json!({"containers": [container]}))
}

fn service(ports: Value) -> Value {
    json!({"spec": {"ports": ports}})
}

#[test]
fn defaults_and_what_others_set_is_no_difference() {
    let wanted =
        container(json!({"env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80}]}));
    let live = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"strategy": {"type": "RollingUpdate"}, "template": {"spec": {"containers": [
            {"name": "side", "image": "s"},
            {
                "name": "web", "image": "a", "imagePullPolicy": "Always",
                "env": [{"name": "B"}, {"name": "A", "value": "1"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
            },
        ]}}},
    });
    let difference = three_way(&wanted, &wanted, &live, deployment_schema());
    assert!(difference.is_empty(), "{difference:?}");
}

#[test]
fn patches_are_those_of_kubectl() {
    let last =
        container(json!({"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}));
    let wanted = container(json!({"env": [{"name": "A", "value": "3"}]}));
    let difference = three_way(&last, &wanted, &last, deployment_schema());
    assert_eq!(
        difference.patch,
        pod(json!({
            "$setElementOrder/containers": [{"name": "web"}],
            "containers": [{
                "name": "web",
                "$setElementOrder/env": [{"name": "A"}],
                "env": [{"name": "A", "value": "3"}, {"$patch": "delete", "name": "B"}],
            }],
        }))
    );
    assert_eq!(difference.patch_type, PatchType::Strategic);
    assert!(!difference.needs_revision);
    let live = json!({"metadata": {"finalizers": ["x", "a"]}, "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let last = json!({"metadata": {"finalizers": ["a"]}});
    let wanted =
        json!({"metadata": {"finalizers": ["b"]}, "spec": {"strategy": {"type": "Recreate"}}});
    assert_eq!(
        three_way(&last, &wanted, &live, deployment_schema()).patch,
        json!({
            "metadata": {
                "$setElementOrder/finalizers": ["b"],
                "$deleteFromPrimitiveList/finalizers": ["a"],
                "finalizers": ["b"],
            },
            "spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}},
        })
    );
}

#[test]
fn what_was_applied_and_is_wanted_no_more_goes() {
    let last = container(json!({
        "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
        "ports": [{"containerPort": 80}, {"containerPort": 443, "name": "tls"}],
        "command": ["a"], "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        "volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}],
    }));
    let wanted = container(json!({
        "env": [{"name": "B", "value": "2"}],
        "ports": [{"containerPort": 443}],
        "resources": {"limits": {"cpu": "1"}},
        "volumeMounts": [{"name": "v", "mountPath": "/b"}],
    }));
    assert_eq!(applied(&last, &wanted, &last, deployment_schema()), wanted);
    let volumes = |volumes: Value| pod(json!({ "volumes": volumes }));
    let last = volumes(json!([{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]));
    let wanted = volumes(json!([{"name": "v", "configMap": {"name": "c"}}]));
    // The kind of a volume changes even where the manifest did not say the old one.
    for last in [&last, &Value::Null, &volumes(json!([{"name": "w"}]))] {
        let live = volumes(json!([{"name": "v", "emptyDir": {}}]));
        assert_eq!(applied(last, &wanted, &live, deployment_schema()), wanted);
    }
    // What is not there any more needs no removal.
    let live = json!({"spec": {"replicas": 3, "minReadySeconds": 1}});
    let last = json!({"spec": {"replicas": 3, "paused": true}});
    assert_eq!(
        three_way(&last, &json!({"spec": {}}), &live, deployment_schema()).patch,
        json!({"spec": {"replicas": null}})
    );
}

#[test]
fn an_object_keeps_its_name_and_place() {
    let live =
        json!({"metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {"x": "y"}}});
    let last = json!({"metadata": {"name": "a", "namespace": "n", "labels": {"x": "y"}}});
    let wanted = json!({"metadata": {"name": "a", "uid": null, "labels": {"x": "y"}}});
    assert!(three_way(&last, &wanted, &live, service_schema()).is_empty());
}

#[test]
fn ports_of_one_number_are_told_apart() {
    let both = service(json!([
        {"name": "a", "port": 8301, "protocol": "TCP", "nodePort": 30001, "targetPort": 8301},
        {"name": "b", "port": 8301, "protocol": "UDP", "nodePort": 30002, "targetPort": 8301},
    ]));
    let manifest = service(json!([
        {"name": "a", "port": 8301}, {"name": "b", "port": 8301, "protocol": "UDP"}]));
    // Nothing to do, whoever applied it.
    for last in [&manifest, &Value::Null] {
        assert!(three_way(last, &manifest, &both, service_schema()).is_empty());
    }
    // A second one comes, and the first keeps what the server gave it.
    let tcp = service(json!([{"name": "a", "port": 8301}]));
    let live = service(json!([{"name": "a", "port": 8301, "protocol": "TCP", "nodePort": 30001}]));
    let difference = three_way(&tcp, &manifest, &live, service_schema());
    assert_eq!(
        (difference.patch_type, difference.needs_revision),
        (PatchType::Merge, true)
    );
    assert_eq!(
        applied(&tcp, &manifest, &live, service_schema()),
        service(json!([
            {"name": "a", "port": 8301, "protocol": "TCP", "nodePort": 30001},
            {"name": "b", "port": 8301, "protocol": "UDP"},
        ]))
    );
    // One goes, the other stays as it is.
    assert_eq!(
        applied(&manifest, &tcp, &both, service_schema()),
        service(json!([
            {"name": "a", "port": 8301, "protocol": "TCP", "nodePort": 30001, "targetPort": 8301}]))
    );
    // One that somebody else added stays.
    assert_eq!(applied(&tcp, &tcp, &both, service_schema()), both);
    // A changed protocol is a change of one port where it is the only one.
    let udp = service(json!([{"name": "a", "port": 8301, "protocol": "UDP"}]));
    assert_eq!(
        applied(&tcp, &udp, &live, service_schema()),
        service(json!([{"name": "a", "port": 8301, "protocol": "UDP", "nodePort": 30001}]))
    );
}

#[test]
fn a_name_that_is_there_twice_is_corrected() {
    let env = |env: Value| container(json!({ "env": env, "terminationMessagePath": "/x" }));
    let twice = env(json!([
        {"name": "A", "value": "1"}, {"name": "B", "value": "b"}, {"name": "A", "value": "2"}]));
    let once = env(json!([{"name": "A", "value": "2"}, {"name": "B", "value": "b"}]));
    for last in [&twice, &once, &Value::Null] {
        assert_eq!(applied(last, &once, &twice, deployment_schema()), once);
        // And brought about again, if that is what the manifest says.
        assert_eq!(applied(last, &twice, &once, deployment_schema()), twice);
    }
}

#[test]
fn what_has_no_schema_is_merged_and_its_lists_are_replaced() {
    let last = json!({"spec": {"a": {"b": 1, "c": 2}, "list": [{"name": "a", "x": 1}], "gone": 1}});
    let live = json!({"spec": {"a": {"b": 1, "c": 2, "d": 3}, "list": [{"name": "a", "x": 1, "y": 2}], "gone": 1}, "status": {}});
    let wanted = json!({"spec": {"a": {"b": 2}, "list": [{"name": "b"}]}});
    let difference = three_way(&last, &wanted, &live, None);
    assert_eq!(difference.patch_type, PatchType::Merge);
    assert!(!difference.needs_revision);
    assert_eq!(
        difference.patch,
        json!({"spec": {"a": {"b": 2, "c": null}, "list": [{"name": "b"}], "gone": null}})
    );
    applied(&last, &wanted, &live, None);
}

/// Lists of items out of a few, in any order, now and then one of them twice.
fn some(items: &'static [&'static str]) -> impl Strategy<Value = Vec<Value>> {
    let item = prop::sample::select(items);
    prop::collection::vec(item, 0..4).prop_map(|items| {
        let parsed = |text: &&str| serde_json::from_str(text).expect("JSON");
        items.iter().map(parsed).collect()
    })
}

fn manifests() -> impl Strategy<Value = Value> {
    let env = some(&[
        r#"{"name":"A","value":"1"}"#,
        r#"{"name":"A","value":"2"}"#,
        r#"{"name":"B","value":"1"}"#,
        r#"{"name":"C","valueFrom":{"fieldRef":{"fieldPath":"x"}}}"#,
        r#"{"name":"C","value":"3"}"#,
    ]);
    let ports = some(&[
        r#"{"containerPort":80}"#,
        r#"{"containerPort":80,"protocol":"UDP"}"#,
        r#"{"containerPort":81,"protocol":"TCP","name":"x"}"#,
        r#"{"containerPort":82}"#,
    ]);
    let volumes = some(&[
        r#"{"name":"v","emptyDir":{}}"#,
        r#"{"name":"v","configMap":{"name":"c"}}"#,
        r#"{"name":"w","emptyDir":{"medium":"Memory"}}"#,
    ]);
    let finalizers = some(&[r#""a""#, r#""b""#, r#""c""#]);
    let arguments = some(&[r#""x""#, r#""y""#]);
    let strategy = some(&[
        r#"{"type":"Recreate"}"#,
        r#"{"type":"RollingUpdate","rollingUpdate":{"maxSurge":1}}"#,
    ]);
    let lists = (env, ports, volumes, finalizers, arguments, strategy);
    (lists, any::<bool>()).prop_map(
        |((env, ports, volumes, mut finalizers, args, strategy), side)| {
            finalizers.sort_by_key(Value::to_string);
            finalizers.dedup();
            let mut containers =
                vec![json!({"name": "web", "env": env, "ports": ports, "args": args})];
            if side {
                containers.insert(0, json!({"name": "side", "env": env}));
            }
            let mut object = pod(json!({"containers": containers, "volumes": volumes}));
            let mut others =
                json!({"metadata": {"finalizers": finalizers, "labels": {}}, "spec": {}});
            if let Some(strategy) = strategy.first() {
                *others.member(&["spec", "strategy"]) = strategy.clone();
            }
            json_patch::merge(&mut object, &others);
            object
        },
    )
}

proptest! {
    #[test]
    fn an_apply_brings_about_what_is_wanted(last in manifests(), wanted in manifests(), live in manifests()) {
        for last in [&Value::Null, &last, &wanted] {
            let after = applied(last, &wanted, &live, deployment_schema());
            // Where nobody else has a hand in it, nothing but what is wanted is left.
            let alone = applied(&wanted, &wanted, &after, deployment_schema());
            prop_assert_eq!(&alone, &after);
            let taken = applied(&live, &wanted, &live, deployment_schema());
            prop_assert_eq!(without_protocols(&taken), without_protocols(&wanted));
        }
    }

    #[test]
    fn what_others_have_added_stays(last in manifests(), wanted in manifests()) {
        let mut live = last.clone();
        let others = json!({"metadata": {"labels": {"other": "x"}}, "spec": {"replicas": 7}});
        json_patch::merge(&mut live, &others);
        let containers = live.pointer_mut("/spec/template/spec/containers");
        if let Some(list) = containers.and_then(Value::as_array_mut) {
            list.push(json!({"name": "injected"}));
        }
        let after = applied(&last, &wanted, &live, deployment_schema());
        prop_assert_eq!(&after["metadata"]["labels"]["other"], &json!("x"));
        prop_assert_eq!(&after["spec"]["replicas"], &json!(7));
        let containers = after["spec"]["template"]["spec"]["containers"].as_array();
        let is_injected = |item: &Value| item["name"] == "injected";
        prop_assert!(containers.is_some_and(|list| list.iter().any(is_injected)));
    }
}

/// TCP is what a port is without a word.
fn without_protocols(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, value)| !(*name == "protocol" && *value == "TCP"))
            .map(|(name, value)| (name.clone(), without_protocols(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_protocols).collect(),
        other => other.clone(),
    }
}
