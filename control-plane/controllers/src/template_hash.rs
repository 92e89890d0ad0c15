//! The hash that names the replica set of a pod template: the same that Kubernetes computes, so that a set made by the
//! one is found by the other.
//!
//! Kubernetes hashes (FNV-1a, 32 bits) a dump of its own data structures, [`dump`]. The digits of the sum are then
//! written with letters that form no words.

mod dump;

use k8s_openapi::api::core::v1::PodTemplateSpec;

const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
pub(crate) const OFFSET: u32 = 0x811c_9dc5;
pub(crate) const PRIME: u32 = 0x0100_0193;

/// The hash of a template; `collisions` sets apart templates whose hashes are the same.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // A type of the API is always JSON.
    let json = serde_json::to_value(template).unwrap_or_default();
    let mut hash = fnv(OFFSET, dump::dump(&json).as_bytes());
    if let Some(collisions) = collisions {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&collisions.to_le_bytes());
        hash = fnv(hash, &bytes);
    }
    safe(&hash.to_string())
}

fn fnv(hash: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(PRIME)
    })
}

/// The digits of a sum, written with letters that form no words.
pub(crate) fn safe(digits: &str) -> String {
    digits
        .bytes()
        .map(|byte| char::from(SAFE[usize::from(byte) % SAFE.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A template as Kubernetes completes it.
    fn template(metadata: Value, container: Value, spec: Value) -> PodTemplateSpec {
        let merge = |defaults: Value, given: Value| {
            let mut merged = defaults;
            for (key, value) in given.as_object().cloned().unwrap_or_default() {
                merged[key] = value;
            }
            merged
        };
        let container = merge(
            json!({
                "name": "c",
                "image": "nginx:1",
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }),
            container,
        );
        let spec = merge(
            json!({
                "containers": [container],
                "restartPolicy": "Always",
                "terminationGracePeriodSeconds": 30,
                "dnsPolicy": "ClusterFirst",
                "securityContext": {},
                "schedulerName": "none",
            }),
            spec,
        );
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a template")
    }

    fn probe() -> Value {
        json!({
            "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
            "timeoutSeconds": 1,
            "periodSeconds": 10,
            "successThreshold": 1,
            "failureThreshold": 3,
        })
    }

    #[test]
    fn as_kubernetes_computes_it() {
        let x = || json!({"labels": {"app": "x"}});
        let cases = [
            ("59f8748c69", template(x(), json!({}), json!({}))),
            (
                "86588d599b",
                template(x(), json!({"image": "nginx:2"}), json!({})),
            ),
            (
                "676c574d99",
                template(
                    json!({"labels": {"app": "x", "tier": "web"}, "annotations": {"a": "b"}}),
                    json!({}),
                    json!({}),
                ),
            ),
            (
                "5ff9ccc74c",
                template(
                    x(),
                    json!({
                        "image": "nginx:1.25",
                        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
                        "readinessProbe": probe(),
                    }),
                    json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                ),
            ),
            (
                "5977486c6d",
                template(
                    json!({"labels": {"app": "web"}}),
                    json!({
                        "name": "nginx",
                        "image": "nginx:1.27",
                        "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "resources": {
                            "requests": {"cpu": "100m", "memory": "64Mi"},
                            "limits": {"memory": "128Mi"},
                        },
                        "readinessProbe": probe(),
                    }),
                    json!({"schedulerName": "default-scheduler"}),
                ),
            ),
        ];
        for (expected, template) in cases {
            assert_eq!(template_hash(&template, None), expected);
        }
    }

    #[test]
    fn a_collision_gives_another_hash() {
        let template = template(json!({"labels": {"app": "x"}}), json!({}), json!({}));
        let first = template_hash(&template, Some(0));
        assert_ne!(first, template_hash(&template, None));
        assert_ne!(first, template_hash(&template, Some(1)));
    }

    #[test]
    fn a_field_of_an_unlisted_type_counts_too() {
        let volume = |path: &str| json!({"volumes": [{"name": "v", "iscsi": {"targetPortal": "p", "iqn": path, "lun": 0}}]});
        let hash = |path: &str| template_hash(&template(json!({}), json!({}), volume(path)), None);
        assert_ne!(hash("a"), hash("b"));
    }
}
