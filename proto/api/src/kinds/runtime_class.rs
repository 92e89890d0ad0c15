//! RuntimeClass: how a node runs a pod's containers.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::api::node::v1::{RuntimeClass, Scheduling};
use serde_json::json;

use super::pod_spec;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, MetadataRules, StaticInfo};
use crate::{meta, names};

/// See [`RuntimeClass`].
pub struct RuntimeClassKind;

fn validate_scheduling(scheduling: &Scheduling, path: &Path, errors: &mut ErrorList) {
    let labels = path.child("nodeSelector");
    meta::validate_label_map(scheduling.node_selector.as_ref(), &labels, errors);
    let path = path.child("tolerations");
    let tolerations = scheduling.tolerations.as_deref().unwrap_or_default();
    pod_spec::validate_tolerations(tolerations, &path, errors);
    let mut seen = HashSet::new();
    for (index, toleration) in tolerations.iter().enumerate() {
        let text = [
            &toleration.key,
            &toleration.operator,
            &toleration.value,
            &toleration.effect,
        ];
        if !seen.insert((text, toleration.toleration_seconds)) {
            errors.duplicate(&path.index(index), toleration);
        }
    }
}

impl Kind for RuntimeClassKind {
    type Object = RuntimeClass;

    const INFO: StaticInfo = StaticInfo {
        group: "node.k8s.io",
        version: "v1",
        kind: "RuntimeClass",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: true,
    };

    const UNCONDITIONAL_UPDATE: bool = false;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Update;

    const METADATA: MetadataRules = MetadataRules::Generic;

    fn validate(object: &RuntimeClass, errors: &mut ErrorList) {
        let details = names::dns1123_label(&object.handler);
        errors.invalid_each(&Path::new("handler"), &object.handler, details);
        if let Some(overhead) = &object.overhead {
            let amounts = ResourceRequirements {
                limits: overhead.pod_fixed.clone(),
                ..ResourceRequirements::default()
            };
            pod_spec::validate_resources(&amounts, &Path::new("overhead"), errors);
        }
        if let Some(scheduling) = &object.scheduling {
            validate_scheduling(scheduling, &Path::new("scheduling"), errors);
        }
    }

    fn validate_update(new: &RuntimeClass, old: &RuntimeClass, errors: &mut ErrorList) {
        if new.handler != old.handler {
            errors.invalid(&Path::new("handler"), &new.handler, meta::IMMUTABLE);
        }
    }

    fn printer() -> Printer<RuntimeClass> {
        Printer::<RuntimeClass>::named()
            .column(table::column("Handler", "string", "", 0), |object| {
                json!(object.handler)
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_labels_and_tolerations_are_checked() {
        let toleration = json!({"key": "a", "operator": "Exists"});
        let object: RuntimeClass = serde_json::from_value(json!({
            "handler": "Bad Handler",
            "overhead": {"podFixed": {"cpu": "-1"}},
            "scheduling": {
                "nodeSelector": {"a b": "c"},
                "tolerations": [toleration, toleration, {"key": "a", "operator": "Foo"}]
            }
        }))
        .unwrap();
        let mut errors = ErrorList::default();
        RuntimeClassKind::validate(&object, &mut errors);
        let paths: Vec<String> = errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect();
        let expected = [
            "handler",
            "overhead.limits[cpu]",
            "scheduling.nodeSelector",
            "scheduling.tolerations[2].operator",
            "scheduling.tolerations[1]",
        ];
        assert_eq!(paths, expected);
    }
}
