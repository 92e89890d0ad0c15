//! The examples of the documentation: what is written there is accepted as it is, and its annotations mean something.

use std::path::Path;

use gantry_api::yaml;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DynamicObject, GroupVersionKind, PostParams};
use kube::core::ApiResource;
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};

use super::common::{Cluster, DEADLINE};

/// The YAML of a page's examples. One that is indented is a part of the one before it: of its spec, or of its annotations.
fn examples(page: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let text = std::fs::read_to_string(path.join(page)).expect("the page");
    let blocks = text.split("```yaml\n").skip(1);
    let mut examples: Vec<Value> = Vec::new();
    for block in blocks.map(|rest| rest.split("```").next().unwrap_or_default()) {
        let documents = yaml::documents(block.as_bytes()).expect(page);
        let values = documents.iter().map(|document| document.to_value());
        let values = values.map(|value| value.expect(page));
        match block.len() - block.trim_start_matches(' ').len() {
            0 => examples.extend(values),
            indent => {
                let place = if indent == 2 {
                    "/spec"
                } else {
                    "/metadata/annotations"
                };
                let parts: Vec<Value> = values.map(|part| with(&examples, place, part)).collect();
                examples.extend(parts);
            }
        }
    }
    examples
}

/// The last example with other fields in one of its objects.
fn with(examples: &[Value], place: &str, part: Value) -> Value {
    let mut example = examples.last().expect("a part of something").clone();
    let own = example.pointer_mut(place);
    let (Some(Value::Object(own)), Value::Object(part)) = (own, part) else {
        panic!("{place} is no object");
    };
    own.extend(part);
    example
}

/// What an example leaves out since it is beside the point.
fn completed(mut example: Value) -> Value {
    let name = example["metadata"]["name"].as_str().expect("a name");
    let labels = json!({"app": name});
    let container = json!({"name": name, "image": "web:1"});
    let spec = json!({
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    });
    let left_out = example["kind"] == "Deployment" && example["spec"]["template"].is_null();
    if left_out && let (Value::Object(object), Value::Object(spec)) = (&mut example, spec) {
        let own = object.entry("spec").or_insert_with(|| json!({}));
        if let Value::Object(own) = own {
            for (field, value) in spec {
                own.entry(field).or_insert(value);
            }
        }
    }
    example
}

/// Whether everything of one value is in another.
fn is_within(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part.iter().all(|(name, value)| {
            let there = whole.get(name);
            there.is_some_and(|there| is_within(value, there))
        }),
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len()
                && part
                    .iter()
                    .zip(whole)
                    .all(|(one, other)| is_within(one, other))
        }
        _ => part == whole,
    }
}

/// A condition that says that something of the object is malformed.
fn complaint(object: &DynamicObject) -> Option<String> {
    let conditions = object.data["status"]["conditions"].as_array()?;
    let mut complaints = conditions.iter().filter(|condition| {
        (condition["type"] == "InvalidAnnotations" && condition["status"] == "True")
            || (condition["type"] == "SyncPeriodValid" && condition["status"] == "False")
    });
    complaints.next().map(Value::to_string)
}

/// Whether controllers have looked at an object; at those of kinds that have no status there is nothing to see.
fn is_looked_at(object: Option<&DynamicObject>) -> bool {
    let Some(object) = object else {
        return false;
    };
    let kind = object.types.as_ref().map(|types| types.kind.as_str());
    let status = &object.data["status"];
    match kind {
        Some("Deployment") => status["observedGeneration"].as_i64() == object.metadata.generation,
        Some("HorizontalPodAutoscaler") => !status["conditions"].is_null(),
        _ => true,
    }
}

async fn are_accepted(page: &str) {
    let cluster = Cluster::start().await;
    let examples = examples(page);
    assert!(!examples.is_empty(), "{page} has no examples");
    for (number, example) in examples.into_iter().enumerate() {
        let example = completed(example);
        let text = |field: &str| example[field].as_str().expect(field).to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let what = format!("example {number} of {page}, {kind}");
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        // Each in a namespace of its own: several are of the same name.
        let namespace = format!("example-{number}");
        let api: Api<DynamicObject> = match kind.as_str() {
            "Namespace" => Api::all_with(cluster.client.clone(), &resource),
            _ => {
                cluster.namespace(&namespace).await;
                Api::namespaced_with(cluster.client.clone(), &namespace, &resource)
            }
        };
        let mut object = example.clone();
        if let Some(Value::Object(metadata)) = object.pointer_mut("/metadata") {
            metadata.remove("namespace");
        }
        let object: DynamicObject = serde_json::from_value(object).expect("an object");
        let made = api.create(&PostParams::default(), &object).await;
        let made = made.unwrap_or_else(|error| panic!("{what}: {error}"));
        let there = serde_json::to_value(&made).expect("JSON");
        for field in ["spec", "data", "metadata"] {
            let mut written = example[field].clone();
            if let Some(metadata) = written.as_object_mut() {
                metadata.remove("namespace");
            }
            assert!(
                written.is_null() || is_within(&written, &there[field]),
                "{what}: {field} is {:#}",
                there[field]
            );
        }
        let name = made.metadata.name.clone().expect("a name");
        let looked_at = await_condition(api.clone(), &name, is_looked_at);
        let looked_at = tokio::time::timeout(DEADLINE, looked_at).await;
        let object = looked_at.unwrap_or_else(|_| panic!("{what}: nobody looks at it"));
        let object = object.expect("a watch").expect("an object");
        assert_eq!(complaint(&object), None, "{what}");
    }
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces
        .get("default")
        .await
        .expect("a cluster that still answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_of_autoscaling_are_accepted() {
    are_accepted("autoscaling.md").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_of_rollouts_are_accepted() {
    are_accepted("rollouts.md").await;
}
