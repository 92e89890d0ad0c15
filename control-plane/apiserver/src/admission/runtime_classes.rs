//! RuntimeClass: what a pod's class adds to it, its overhead and where it may run.

use std::collections::HashSet;

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use k8s_openapi::api::node::v1::{RuntimeClass as Class, Scheduling};

use super::plugin::{Attributes, Plugin, shown_name, stored};

pub(super) struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.creates("", "Pod")
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let Some(pod) = draft.typed_mut::<Pod>() else {
            return Ok(());
        };
        let pod_name = shown_name(&pod.metadata).to_owned();
        let refused = |why: &str| StatusError::forbidden(attributes.info(), &pod_name, why);
        let Some(spec) = &mut pod.spec else {
            return Ok(());
        };
        let class = match spec.runtime_class_name.as_deref().unwrap_or_default() {
            "" => None,
            name => {
                let found = stored::<Class>(
                    attributes.context,
                    "node.k8s.io",
                    "runtimeclasses",
                    "",
                    name,
                );
                let missing = || refused(&format!("pod rejected: RuntimeClass {name:?} not found"));
                Some(found.ok_or_else(missing)?)
            }
        };
        apply(class.as_ref(), spec).map_err(|why| refused(&why))
    }
}

/// Adds to the pod what its class says; the error says what contradicts it.
fn apply(class: Option<&Class>, spec: &mut PodSpec) -> Result<(), String> {
    let overhead = class.and_then(|class| class.overhead.as_ref());
    let has_own = spec.overhead.as_ref().is_some_and(|own| !own.is_empty());
    match overhead {
        Some(overhead) => {
            let fixed = overhead.pod_fixed.clone().unwrap_or_default();
            if has_own && spec.overhead.as_ref() != Some(&fixed) {
                let why =
                    "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                return Err(why.to_owned());
            }
            spec.overhead = Some(fixed);
        }
        None if has_own => {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(why.to_owned());
        }
        None => {}
    }
    match class.and_then(|class| class.scheduling.as_ref()) {
        Some(scheduling) => place(scheduling, spec),
        None => Ok(()),
    }
}

fn place(scheduling: &Scheduling, spec: &mut PodSpec) -> Result<(), String> {
    for (key, wanted) in scheduling.node_selector.iter().flatten() {
        let labels = spec.node_selector.get_or_insert_default();
        let own = labels.entry(key.clone()).or_insert_with(|| wanted.clone());
        if own != wanted {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {own}"
            ));
        }
    }
    if let Some(added) = &scheduling.tolerations {
        let own = spec.tolerations.take().unwrap_or_default();
        spec.tolerations = Some(joined(own, added));
    }
    Ok(())
}

/// A pod's own tolerations, and those of its class that it has not: in a time that does not grow with their product.
fn joined(mut own: Vec<Toleration>, added: &[Toleration]) -> Vec<Toleration> {
    // Of what a toleration is made: its type has no hash.
    fn parts(toleration: &Toleration) -> impl Eq + std::hash::Hash + use<> {
        let Toleration {
            effect,
            key,
            operator,
            toleration_seconds,
            value,
        } = toleration.clone();
        (key, operator, value, effect, toleration_seconds)
    }
    let mut known: HashSet<_> = own.iter().map(parts).collect();
    let new = added.iter().filter(|one| known.insert(parts(one)));
    own.extend(new.cloned());
    own
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn toleration(key: &str) -> Toleration {
        Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        }
    }

    fn class(class: serde_json::Value) -> Class {
        serde_json::from_value(class).expect("a class")
    }

    fn spec(spec: serde_json::Value) -> PodSpec {
        let mut whole = json!({"containers": []});
        if let (Some(whole), serde_json::Value::Object(spec)) = (whole.as_object_mut(), spec) {
            whole.extend(spec);
        }
        serde_json::from_value(whole).expect("a spec")
    }

    #[test]
    fn as_many_tolerations_as_a_document_holds_are_joined_once() {
        // Compared one by one, these would be thousands of millions of comparisons.
        let some = |range: std::ops::Range<u32>| -> Vec<Toleration> {
            range.map(|at| toleration(&format!("k{at}"))).collect()
        };
        let joined = joined(some(50_000..150_000), &some(0..100_000));
        assert_eq!(joined.len(), 150_000);
        assert_eq!(joined[0], toleration("k50000"), "its own come first");
        assert_eq!(joined[100_000], toleration("k0"));
    }

    #[test]
    fn a_class_adds_its_overhead_and_where_it_runs() {
        let sandbox = json!({"key": "sandbox", "operator": "Exists"});
        let class = class(json!({
            "metadata": {"name": "c"},
            "handler": "h",
            "overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"sandbox": "yes"}, "tolerations": [sandbox]}
        }));
        let mut pod = spec(json!({"nodeSelector": {"zone": "z1"}, "tolerations": [sandbox]}));
        assert_eq!(apply(Some(&class), &mut pod), Ok(()));
        assert_eq!(
            pod,
            spec(json!({
                "overhead": {"cpu": "10m"},
                "nodeSelector": {"zone": "z1", "sandbox": "yes"},
                "tolerations": [sandbox]
            }))
        );
        let refused = |class: Option<&Class>, own| apply(class, &mut spec(own)).is_err();
        assert!(refused(Some(&class), json!({"overhead": {"cpu": "1"}})));
        assert!(refused(
            Some(&class),
            json!({"nodeSelector": {"sandbox": "no"}})
        ));
        assert!(refused(None, json!({"overhead": {"cpu": "1"}})));
        assert!(!refused(None, json!({})));
    }
}
