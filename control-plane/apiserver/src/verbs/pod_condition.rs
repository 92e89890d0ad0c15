//! Conditions that verbs write into a pod's status.

use gantry_api::json::Members;
use serde_json::{Value, json};

/// Puts a condition in the place of the one of its type, or behind the others; since when it holds stays while its status
/// does. `now` is a time as objects carry it.
pub(super) fn set(pod: &mut Value, mut condition: Value, now: &str) {
    let mut conditions: Vec<Value> = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let known = conditions
        .iter_mut()
        .find(|old| old["type"] == condition["type"]);
    let since = known
        .as_ref()
        .filter(|old| old["status"] == condition["status"]);
    let since = since.and_then(|old| old["lastTransitionTime"].as_str());
    *condition.member(&["lastTransitionTime"]) = json!(since.unwrap_or(now));
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
    *pod.member(&["status", "conditions"]) = Value::Array(conditions);
}
