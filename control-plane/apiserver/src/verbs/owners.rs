//! Owners that an object names twice: the same is kept once.

use std::collections::HashSet;

use gantry_api::json::Members;
use serde_json::Value;

/// Where a client sent them.
pub(super) const SENT: &str = "";
/// Where they are looked at once, after admission: of a patch.
pub(super) const ADMITTED: &str = " after mutating admission happens";

/// Drops the owners of an object that are there already, and returns the warning about them, if there are any.
pub(super) fn once(object: &mut Value, when: &str) -> Option<String> {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let owners = owners.map(Vec::as_slice).unwrap_or_default();
    let mut known = HashSet::with_capacity(owners.len());
    let (kept, twice): (Vec<&Value>, Vec<&Value>) =
        owners.iter().partition(|owner| known.insert(*owner));
    if twice.is_empty() {
        return None;
    }
    let kept: Vec<Value> = kept.into_iter().cloned().collect();
    let uids = twice.iter();
    let uids: Vec<&str> = uids
        .map(|owner| owner["uid"].as_str().unwrap_or_default())
        .collect();
    let warning = format!(
        ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
        uids.join(", ")
    );
    *object.member(&["metadata", "ownerReferences"]) = Value::Array(kept);
    Some(warning)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_owner_is_named_once() {
        let owner = |uid: &str, controls: bool| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": uid, "controller": controls
            })
        };
        let mut object = json!({"metadata": {"ownerReferences": [
            owner("a", true), owner("b", true), owner("a", true), owner("a", false), owner("b", true)
        ]}});
        let warning = once(&mut object, ADMITTED).expect("a warning");
        assert!(warning.starts_with(
            ".metadata.ownerReferences contains duplicate entries after mutating admission happens; API"
        ));
        assert!(
            warning.ends_with("duplicate UID(s) observed: a, b"),
            "{warning}"
        );
        let left = json!([owner("a", true), owner("b", true), owner("a", false)]);
        assert_eq!(object["metadata"]["ownerReferences"], left);
        assert_eq!(once(&mut object, SENT), None);
        assert_eq!(once(&mut json!({}), SENT), None);
    }
}
