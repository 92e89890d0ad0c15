//! Runtime classes: what a pod's class adds to it, its overhead and where it may run.

use std::collections::HashSet;

use gantry_api::json::Members;
use gantry_api::status::StatusError;
use gantry_store::Key;
use serde_json::{Value, json};

use crate::context::{Context, meta};

pub(super) fn admit(context: &Context<'_>, pod: &mut Value) -> Result<(), StatusError> {
    let name = pod["spec"]["runtimeClassName"].as_str().unwrap_or_default();
    let class = match name {
        "" => Value::Null,
        name => {
            let key = Key {
                table: crate::registry::table("node.k8s.io", "runtimeclasses"),
                namespace: "".into(),
                name: name.into(),
            };
            let entry = context.api.store.get(&key);
            let found = entry.and_then(|entry| serde_json::from_slice(&entry.value).ok());
            match found {
                Some(class) => class,
                None => {
                    let why = format!("pod rejected: RuntimeClass {name:?} not found");
                    return Err(refuse(context, pod, &why));
                }
            }
        }
    };
    apply(&class, pod).map_err(|why| refuse(context, pod, &why))
}

fn refuse(context: &Context<'_>, pod: &Value, why: &str) -> StatusError {
    StatusError::forbidden(context.resource.info(), meta(pod, "name"), why)
}

/// Adds to the pod what its class says; the error says what contradicts it.
fn apply(class: &Value, pod: &mut Value) -> Result<(), String> {
    let overhead = &class["overhead"]["podFixed"];
    let own = &pod["spec"]["overhead"];
    let has_own = own.as_object().is_some_and(|amounts| !amounts.is_empty());
    match overhead.is_object() {
        true if has_own && own != overhead => {
            let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
            return Err(why.to_owned());
        }
        true => *pod.member(&["spec", "overhead"]) = overhead.clone(),
        false if has_own => {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(why.to_owned());
        }
        false => {}
    }
    let scheduling = &class["scheduling"];
    if let Some(labels) = scheduling["nodeSelector"].as_object() {
        for (key, wanted) in labels {
            let own = &pod["spec"]["nodeSelector"][key];
            if !own.is_null() && own != wanted {
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    wanted.as_str().unwrap_or_default(),
                    own.as_str().unwrap_or_default()
                ));
            }
            *pod.member(&["spec", "nodeSelector", key]) = wanted.clone();
        }
    }
    if let Some(added) = scheduling["tolerations"].as_array() {
        let own = pod["spec"]["tolerations"].as_array();
        let mut tolerations = own.cloned().unwrap_or_default();
        let mut known: HashSet<&Value> = own.into_iter().flatten().collect();
        let new = added.iter().filter(|&toleration| known.insert(toleration));
        tolerations.extend(new.cloned());
        *pod.member(&["spec", "tolerations"]) = json!(tolerations);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_tolerations_as_a_document_holds_are_joined_once() {
        // Compared one by one, these would be thousands of millions of comparisons.
        let toleration = |at: u32| json!({"key": format!("k{at}"), "operator": "Exists"});
        let class: Vec<Value> = (0..100_000).map(toleration).collect();
        let own: Vec<Value> = (50_000..150_000).map(toleration).collect();
        let class = json!({"scheduling": {"tolerations": class}});
        let mut pod = json!({"spec": {"tolerations": own}});
        assert_eq!(apply(&class, &mut pod), Ok(()));
        let joined = pod["spec"]["tolerations"].as_array().expect("a list");
        assert_eq!(joined.len(), 150_000);
        assert_eq!(joined[0], toleration(50_000), "its own come first");
        assert_eq!(joined[100_000], toleration(0));
    }

    #[test]
    fn a_class_adds_its_overhead_and_where_it_runs() {
        let toleration = json!({"key": "sandbox", "operator": "Exists"});
        let class = json!({
            "overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"sandbox": "yes"}, "tolerations": [toleration]}
        });
        let mut pod =
            json!({"spec": {"nodeSelector": {"zone": "z1"}, "tolerations": [toleration]}});
        assert_eq!(apply(&class, &mut pod), Ok(()));
        assert_eq!(
            pod["spec"],
            json!({
                "overhead": {"cpu": "10m"},
                "nodeSelector": {"zone": "z1", "sandbox": "yes"},
                "tolerations": [toleration]
            })
        );
        let refused =
            |class: &Value, spec: Value| apply(class, &mut json!({"spec": spec})).is_err();
        assert!(refused(&class, json!({"overhead": {"cpu": "1"}})));
        assert!(refused(&class, json!({"nodeSelector": {"sandbox": "no"}})));
        assert!(refused(&Value::Null, json!({"overhead": {"cpu": "1"}})));
        assert!(!refused(&Value::Null, json!({})));
    }
}
