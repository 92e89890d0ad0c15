//! CSINode: the storage drivers of a node.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver};
use serde::Serialize;
use serde_json::json;

use super::pod_spec;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, StaticInfo};
use crate::{meta, names};

/// See [`CSINode`].
pub struct CsiNodeKind;

const MAX_NODE_ID: usize = 256;

fn validate_driver(driver: &CSINodeDriver, path: &Path, errors: &mut ErrorList) {
    pod_spec::check_driver_name(&driver.name, &path.child("name"), errors);
    let id = path.child("nodeID");
    match driver.node_id.len() {
        0 => errors.required(&id, ""),
        1..=MAX_NODE_ID => {}
        _ => {
            let detail = format!("must be {MAX_NODE_ID} characters or less");
            errors.invalid(&id, &driver.node_id, &detail);
        }
    }
    let count = driver.allocatable.as_ref().and_then(|room| room.count);
    if let Some(count) = count.filter(|count| *count < 0) {
        let path = path.child("allocatable").child("count");
        errors.invalid(&path, count, names::NOT_NEGATIVE);
    }
}

/// Checks by which labels a driver tells where a node is. The driver is named, not the key, as Kubernetes does.
fn validate_topology(driver: &CSINodeDriver, path: &Path, errors: &mut ErrorList) {
    let mut taken = BTreeSet::new();
    for key in driver.topology_keys.iter().flatten() {
        if key.is_empty() {
            errors.required(path, "");
        }
        if !taken.insert(key) {
            errors.duplicate(path, key);
        }
        let keys = driver.topology_keys.as_ref();
        errors.invalid_each(path, keys, names::qualified_name(key));
    }
}

/// A driver as Kubernetes prints it inside of messages: its internal type's own field names.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Printed<'a> {
    name: &'a str,
    #[serde(rename = "NodeID")]
    node_id: &'a str,
    topology_keys: Option<&'a Vec<String>>,
    allocatable: Option<PrintedRoom>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PrintedRoom {
    count: Option<i32>,
}

impl<'a> From<&'a CSINodeDriver> for Printed<'a> {
    fn from(driver: &'a CSINodeDriver) -> Self {
        let room = driver.allocatable.as_ref();
        Self {
            name: &driver.name,
            node_id: &driver.node_id,
            topology_keys: driver.topology_keys.as_ref(),
            allocatable: room.map(|room| PrintedRoom { count: room.count }),
        }
    }
}

impl Kind for CsiNodeKind {
    type Object = CSINode;

    const INFO: StaticInfo = StaticInfo {
        group: "storage.k8s.io",
        version: "v1",
        kind: "CSINode",
        plural: "csinodes",
        singular: "csinode",
        short_names: &[],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const UNCONDITIONAL_UPDATE: bool = false;

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Whole;

    fn validate(object: &CSINode, errors: &mut ErrorList) {
        let path = Path::new("spec").child("drivers");
        let mut taken = BTreeSet::new();
        for (index, driver) in object.spec.drivers.iter().enumerate() {
            let path = path.index(index);
            validate_driver(driver, &path, errors);
            if !taken.insert(&driver.name) {
                errors.duplicate(&path.child("name"), &driver.name);
            }
            validate_topology(driver, &path, errors);
        }
    }

    fn validate_update(new: &CSINode, old: &CSINode, errors: &mut ErrorList) {
        Self::validate(new, errors);
        // A driver may come, go, and count its room anew; what it calls the node stays.
        let drivers = old.spec.drivers.iter();
        let before_of: HashMap<_, _> = drivers.map(|driver| (&driver.name, driver)).collect();
        for driver in &new.spec.drivers {
            let before = before_of.get(&driver.name);
            let changed = before.is_some_and(|before| {
                before.node_id != driver.node_id || before.topology_keys != driver.topology_keys
            });
            if changed {
                let path = Path::new("CSINodeDriver");
                errors.invalid(&path, Printed::from(driver), meta::IMMUTABLE);
            }
        }
    }

    fn printer() -> Printer<CSINode> {
        let drivers = "Drivers indicates the number of CSI drivers registered on the node";
        Printer::<CSINode>::named()
            .column(table::column("Drivers", "integer", drivers, 0), |object| {
                json!(object.spec.drivers.len())
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(drivers: Value) -> CSINode {
        serde_json::from_value(json!({"spec": {"drivers": drivers}})).unwrap()
    }

    #[test]
    fn drivers_are_named_once_and_keep_their_node() {
        let bad = parse(json!([
            {"name": "a.b", "nodeID": "n", "topologyKeys": ["z", "z"], "allocatable": {"count": -1}},
            {"name": "a.b", "nodeID": ""},
            {"name": "", "nodeID": "n"}
        ]));
        let mut errors = ErrorList::default();
        CsiNodeKind::validate(&bad, &mut errors);
        let paths: Vec<String> = errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect();
        let expected = [
            "spec.drivers[0].allocatable.count",
            "spec.drivers[0]",
            "spec.drivers[1].nodeID",
            "spec.drivers[1].name",
            "spec.drivers[2].name",
            "spec.drivers[2].name",
        ];
        assert_eq!(paths, expected);
        let driver = |id: &str, count: i32| {
            parse(json!([{"name": "a", "nodeID": id, "allocatable": {"count": count}}]))
        };
        let update = |new: &CSINode| {
            let mut errors = ErrorList::default();
            CsiNodeKind::validate_update(new, &driver("n", 1), &mut errors);
            errors.0.len()
        };
        assert_eq!(update(&driver("n", 2)), 0);
        assert_eq!(update(&driver("m", 1)), 1);
    }
}
