//! CSIStorageCapacity: how much room for volumes of a class there is, and from which nodes it can be used.

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use serde_json::json;

use super::pod_spec;
use super::table::{self, Printer, field_doc};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, StaticInfo};
use crate::quantity::Quantity;
use crate::{meta, names, selector};

/// See [`CSIStorageCapacity`].
pub struct CsiStorageCapacityKind;

/// How much there is; an amount that is none was refused when the object was decoded.
fn capacity(object: &CSIStorageCapacity) -> Option<Quantity> {
    object.capacity.as_ref()?.0.parse().ok()
}

impl Kind for CsiStorageCapacityKind {
    type Object = CSIStorageCapacity;

    const INFO: StaticInfo = StaticInfo {
        group: "storage.k8s.io",
        version: "v1",
        kind: "CSIStorageCapacity",
        plural: "csistoragecapacities",
        singular: "csistoragecapacity",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const UNCONDITIONAL_UPDATE: bool = false;

    fn validate(object: &CSIStorageCapacity, errors: &mut ErrorList) {
        if let Some(topology) = &object.node_topology {
            selector::validate(topology, &Path::new("nodeTopology"), errors);
        }
        let class = object.storage_class_name.as_str();
        let details = names::dns1123_subdomain(class);
        errors.invalid_each(&Path::new("storageClassName"), class, details);
        if let Some(amount) = capacity(object).filter(|amount| amount.sign() < 0) {
            let path = Path::new("capacity");
            errors.invalid(&path, amount.to_string(), names::NOT_NEGATIVE);
        }
    }

    fn validate_update(new: &CSIStorageCapacity, old: &CSIStorageCapacity, errors: &mut ErrorList) {
        Self::validate(new, errors);
        if new.node_topology != old.node_topology {
            let path = Path::new("nodeTopology");
            errors.invalid(&path, &new.node_topology, meta::IMMUTABLE);
        }
        if new.storage_class_name != old.storage_class_name {
            let path = Path::new("storageClassName");
            errors.invalid(&path, &new.storage_class_name, meta::IMMUTABLE);
        }
    }

    fn warnings(new: &CSIStorageCapacity, _old: Option<&CSIStorageCapacity>) -> Vec<String> {
        let path = Path::new("nodeTopology");
        let topology = new.node_topology.as_ref();
        let expressions = topology.and_then(|topology| topology.match_expressions.as_ref());
        let expressions = expressions.into_iter().flatten().enumerate();
        let labels = topology.and_then(|topology| topology.match_labels.as_ref());
        let named = expressions.map(|(index, expression)| {
            let path = path.child("matchExpressions").index(index).child("key");
            (path, expression.key.as_str())
        });
        let listed = labels.into_iter().flatten().map(|(label, _)| {
            let path = path.child("matchLabels").child(label);
            (path, label.as_str())
        });
        pod_spec::node_label_warnings(named.chain(listed))
    }

    fn printer() -> Printer<CSIStorageCapacity> {
        let column =
            |name, field| table::column(name, "string", field_doc::<CSIStorageCapacity>(field), 0);
        Printer::<CSIStorageCapacity>::named()
            .column(column("StorageClassName", "storageClassName"), |object| {
                json!(object.storage_class_name)
            })
            .column(column("Capacity", "capacity"), |object| {
                let shown = capacity(object).map(|amount| amount.to_string());
                json!(shown.as_deref().unwrap_or("<unset>"))
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn room(class: &str, capacity: &str, topology: Value) -> CSIStorageCapacity {
        let room = json!({
            "metadata": {"name": "r"}, "storageClassName": class, "capacity": capacity,
            "nodeTopology": topology,
        });
        serde_json::from_value(room).expect("a capacity")
    }

    #[test]
    fn what_it_is_about_stays_and_how_much_there_is_changes() {
        let old = room("a", "1Gi", json!({"matchLabels": {"zone": "x"}}));
        let changed = |new: &CSIStorageCapacity| {
            let mut errors = ErrorList::default();
            CsiStorageCapacityKind::validate_update(new, &old, &mut errors);
            errors.told()
        };
        let more = room("a", "2Gi", json!({"matchLabels": {"zone": "x"}}));
        assert_eq!(changed(&more), [""; 0]);
        assert_eq!(
            changed(&room("b", "-1", Value::Null)),
            [
                "capacity: Invalid value: \"-1\": must be greater than or equal to 0",
                "nodeTopology: Invalid value: null: field is immutable",
                "storageClassName: Invalid value: \"b\": field is immutable",
            ]
        );
    }
}
