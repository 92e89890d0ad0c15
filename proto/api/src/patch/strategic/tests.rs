use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

use super::*;

fn patched(mut object: Value, patch: Value) -> Value {
    merge(&mut object, &patch, Some(TypeSchema::of::<Deployment>())).expect("merges");
    object
}

fn with_containers(containers: Value) -> Value {
    json!({"spec": {"template": {"spec": {"containers": containers}}}})
}

#[test]
fn items_are_joined_by_their_key() {
    let object = with_containers(json!([
        {"name": "a", "image": "a:1", "env": [{"name": "A", "value": "1"}]}, {"name": "b", "image": "b:1"}]));
    let patch = with_containers(
        json!([{"name": "a", "env": [{"name": "A", "value": "9"}, {"name": "C", "value": "3"}]}]),
    );
    assert_eq!(
        patched(object.clone(), patch),
        with_containers(json!([
            {"name": "a", "image": "a:1", "env": [{"name": "A", "value": "9"}, {"name": "C", "value": "3"}]},
            {"name": "b", "image": "b:1"}]))
    );
    let delete = with_containers(json!([{"name": "a", "$patch": "delete"}]));
    assert_eq!(
        patched(object.clone(), delete),
        with_containers(json!([{"name": "b", "image": "b:1"}]))
    );
    let replace = with_containers(json!([{"name": "c", "image": "c:1"}, {"$patch": "replace"}]));
    assert_eq!(
        patched(object, replace),
        with_containers(json!([{"name": "c", "image": "c:1"}]))
    );
}

#[test]
fn an_item_is_not_joined_again_and_again_with_its_long_lists() {
    let variables: Vec<Value> = (0..20_000)
        .map(|at| json!({"name": format!("V{at}"), "value": "x"}))
        .collect();
    let mut object = with_containers(json!([{"name": "a", "env": variables}]));
    let change = json!({"name": "a", "env": [{"name": "V1", "value": "y"}]});
    let mut patch = |times: usize| {
        let patch = with_containers(json!(vec![change.clone(); times]));
        let schema = Some(TypeSchema::of::<Deployment>());
        merge(&mut object, &patch, schema).map_err(|error| error.code())
    };
    assert_eq!(patch(2), Ok(()));
    assert_eq!(patch(1000), Err(400));
}

#[test]
fn long_lists_are_merged_in_linear_time() {
    let containers = |start: usize| -> Vec<Value> {
        (start..start + 50_000)
            .map(|at| json!({"name": format!("c{at}"), "image": "i"}))
            .collect()
    };
    let names = |count: usize| -> Vec<String> { (0..count).map(|at| format!("f{at}")).collect() };
    let object = json!({"metadata": {"finalizers": names(50_000)}, "spec": {"template": {"spec": {"containers": containers(0)}}}});
    let patch = json!({
        "metadata": {
            "finalizers": names(60_000),
            "$setElementOrder/finalizers": names(60_000),
            "$deleteFromPrimitiveList/finalizers": names(40_000),
        },
        "spec": {"template": {"spec": {
            "$retainKeys": names(50_000).into_iter().chain(["containers".to_owned()]).collect::<Vec<_>>(),
            "$setElementOrder/containers": containers(25_000),
            "containers": containers(25_000),
        }}},
    });
    let started = crate::stopwatch::Stopwatch::start();
    let merged = patched(object, patch);
    assert!(
        started.elapsed() < std::time::Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    let count = |at: &str| merged.pointer(at).and_then(Value::as_array).map(Vec::len);
    assert_eq!(count("/spec/template/spec/containers"), Some(75_000));
    assert_eq!(count("/metadata/finalizers"), Some(20_000));
}

#[test]
fn atomic_lists_are_replaced() {
    let object = with_containers(json!([{"name": "a", "args": ["x", "y"]}]));
    let patch = with_containers(json!([{"name": "a", "args": ["only"]}]));
    assert_eq!(
        patched(object, patch),
        with_containers(json!([{"name": "a", "args": ["only"]}]))
    );
}

#[test]
fn retained_keys_and_replaced_maps() {
    let object =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        patched(object, patch),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
    let object = json!({"spec": {"selector": {"matchLabels": {"app": "x", "tier": "y"}}}});
    let patch = json!({"spec": {"selector": {"matchLabels": {"app": "z", "$patch": "replace"}}}});
    assert_eq!(
        patched(object, patch),
        json!({"spec": {"selector": {"matchLabels": {"app": "z"}}}})
    );
}

#[test]
fn primitive_lists_grow_shrink_and_are_ordered() {
    let object = json!({"metadata": {"finalizers": ["a", "b"]}});
    let add = json!({"metadata": {"finalizers": ["c"]}});
    let object = patched(object, add);
    assert_eq!(object["metadata"]["finalizers"], json!(["c", "a", "b"]));
    let remove = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}});
    let object = patched(object, remove);
    let order =
        json!({"metadata": {"$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"]}});
    assert_eq!(
        patched(object, order)["metadata"]["finalizers"],
        json!(["c", "b"])
    );
}

fn refusal(mut object: Value, patch: &Value) -> (u16, String) {
    let schema = Some(TypeSchema::of::<Deployment>());
    let error = merge(&mut object, patch, schema).expect_err("refused");
    (error.code(), error.message().to_owned())
}

fn with_env(env: Value) -> Value {
    with_containers(json!([{"name": "a", "env": env}]))
}

#[test]
fn a_key_that_a_list_has_twice_is_deleted_and_set_anew() {
    let object = with_env(
        json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}, {"name": "A", "value": "3"}]),
    );
    // What kubectl apply sends when the second is taken out.
    let patch = with_containers(json!([{
        "name": "a",
        "$setElementOrder/env": [{"name": "A"}, {"name": "B"}],
        "env": [{"name": "A", "value": "4"}, {"$patch": "delete", "name": "A"}],
    }]));
    assert_eq!(
        patched(object, patch),
        with_env(json!([{"name": "A", "value": "4"}, {"name": "B", "value": "2"}]))
    );
}

#[test]
fn directives_are_told_as_kubernetes_tells_them() {
    let object = || with_env(json!([{"name": "A", "value": "1"}]));
    for (env, code, why) in [
        (
            json!([{"$patch": "merge", "name": "A"}]),
            500,
            "merging lists cannot yet be specified in the patch",
        ),
        (
            json!([{"$patch": "delete"}]),
            500,
            "map: map[$patch:delete] does not contain declared merge key: name",
        ),
        (
            json!(["A"]),
            500,
            "list element types are not identical: [[map[name:A value:1]] [A]]",
        ),
    ] {
        assert_eq!(refusal(object(), &with_env(env)), (code, why.to_owned()));
    }
    let labels = |patch: Value| json!({"metadata": {"labels": patch}});
    let merge = labels(json!({"$patch": "merge", "a": "b"}));
    assert_eq!(
        refusal(labels(json!({"a": "c"})), &merge).1,
        "unknown patch type: merge in map: map[$patch:merge a:b]"
    );
    // A map that is not there is not replaced.
    let replace = labels(json!({"$patch": "replace", "a": "b"}));
    assert_eq!(
        patched(json!({"metadata": {}}), replace),
        json!({"metadata": {}})
    );
    for (field, what) in [
        ("$setElementOrder", "setElementOrder list"),
        ("$deleteFromPrimitiveList", "primitive list"),
    ] {
        assert_eq!(
            refusal(
                json!({"metadata": {}}),
                &json!({"metadata": {field: ["a"]}})
            ),
            (400, format!("invalid patch format of {what}"))
        );
    }
}

#[test]
fn selectors_of_budgets_are_replaced() {
    use k8s_openapi::api::policy::v1::PodDisruptionBudget;
    let mut object = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
    let patch = json!({"spec": {"selector": {"matchExpressions": []}}});
    let schema = Some(TypeSchema::of::<PodDisruptionBudget>());
    merge(&mut object, &patch, schema).expect("merges");
    assert_eq!(object, patch);
}

#[test]
fn sets_lose_what_they_have_twice() {
    let object = json!({"metadata": {"finalizers": ["a", "b", "a"]}});
    let add = json!({"metadata": {"finalizers": ["b", "c", "c"]}});
    let merged = patched(object, add);
    assert_eq!(merged["metadata"]["finalizers"], json!(["a", "b", "c"]));
    let none = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": null}});
    assert_eq!(patched(merged, none), json!({"metadata": {}}));
}

#[test]
fn an_order_that_the_patch_itself_breaks_is_refused() {
    let mut object = with_containers(json!([{"name": "b"}]));
    let patch = json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "new", "image": "n:1"}]}}}});
    let error =
        merge(&mut object, &patch, Some(TypeSchema::of::<Deployment>())).expect_err("refused");
    assert_eq!(
        error.message(),
        "The order in patch list:\n[map[image:n:1 name:new]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n"
    );
}
