//! Nodes: nothing is scheduled to one before it has said that it is ready.

use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// Taints a new node; the node controller takes the taint off when the node is ready.
pub(super) fn admit(node: &mut Value) {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let mut taints = node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let tainted = taints
        .iter()
        .any(|taint| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule");
    if !tainted {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
    node["spec"]["taints"] = Value::Array(taints);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_tainted_once_beside_its_own_taints() {
        let mut node = json!({"metadata": {}});
        admit(&mut node);
        let expected = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
        assert_eq!(node["spec"]["taints"], expected);
        admit(&mut node);
        assert_eq!(node["spec"]["taints"], expected);
        let mut own = json!({"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}});
        admit(&mut own);
        assert_eq!(own["spec"]["taints"].as_array().map(Vec::len), Some(2));
    }
}
