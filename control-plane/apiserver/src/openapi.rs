//! What the API is, in OpenAPI v2 and v3: which paths there are, what may be done there, and every type's schema from the
//! same source that decoding uses.
//!
//! | path | is |
//! | --- | --- |
//! | `/openapi/v2` | all that is served; JSON or gnostic's protobuf |
//! | `/openapi/v3` | where the documents of v3 are, with the hash of each |
//! | `/openapi/v3/ROOT` | one group and version, or what tells which there are; JSON or gnostic's protobuf |

mod answer;
mod documents;
mod gnostic;
mod operations;
mod parameters;
mod schemas;
mod v2;
mod v3;

use gantry_api::json::Members;
use serde_json::{Map, Value, json};

use crate::registry::Registry;

pub(crate) use answer::answer;

/// The release whose API is served.
const RELEASE: &str = "v1.36.0";

/// Where a group and version is served.
fn root(group: &str, version: &str) -> String {
    match group {
        "" => ["api/", version].concat(),
        group => ["apis/", group, "/", version].concat(),
    }
}

/// Groups and versions that are served, in their order.
fn group_versions(registry: &Registry) -> Vec<(&str, &str)> {
    let all = registry.all().iter();
    let mut versions: Vec<(&str, &str)> = all
        .map(|resource| (&*resource.info().group, &*resource.info().version))
        .collect();
    versions.sort_unstable();
    versions.dedup();
    versions
}

fn reason(code: u16) -> &'static str {
    match code {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    }
}

/// Says what an operation is about.
fn extend(written: &mut Value, operation: &operations::Operation) {
    if let Some(action) = operation.action {
        *written.member(&["x-kubernetes-action"]) = json!(action);
    }
    if let Some([group, version, kind]) = &operation.kind {
        *written.member(&["x-kubernetes-group-version-kind"]) =
            json!({"group": group, "version": version, "kind": kind});
    }
}

/// What may be done at a path, in the form that a version of OpenAPI has for operations and parameters.
fn item(
    path: &operations::Path,
    operation: fn(&operations::Operation) -> Value,
    parameter: fn(&parameters::Parameter) -> Value,
) -> Value {
    let mut written: Map<String, Value> = path
        .operations
        .iter()
        .map(|made| (made.method.to_owned(), operation(made)))
        .collect();
    if !path.parameters.is_empty() {
        let parameters = path.parameters.iter().map(parameter).collect();
        written.insert("parameters".to_owned(), parameters);
    }
    Value::Object(written)
}

/// Changes a schema, after all that it is made of.
fn each_schema(schema: &mut Value, change: &dyn Fn(&mut Map<String, Value>)) {
    let Value::Object(schema) = schema else {
        return;
    };
    for (key, part) in schema.iter_mut() {
        match (key.as_str(), part) {
            ("properties", Value::Object(properties)) => {
                for property in properties.values_mut() {
                    each_schema(property, change);
                }
            }
            ("items" | "additionalProperties", part) => each_schema(part, change),
            ("allOf" | "anyOf" | "oneOf", Value::Array(parts)) => {
                for part in parts {
                    each_schema(part, change);
                }
            }
            _ => {}
        }
    }
    change(schema);
}
