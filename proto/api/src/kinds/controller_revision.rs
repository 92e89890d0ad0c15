//! ControllerRevision: what a workload was at a time, so that it can be again. Its data is the workload's own and never changes.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::json;

use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, StaticInfo};
use crate::{meta, names};

/// See [`ControllerRevision`].
pub struct ControllerRevisionKind;

/// The controller of an object, as tables show it: `statefulset.apps/web`.
fn controller(owners: Option<&[OwnerReference]>) -> Option<String> {
    let mut owners = owners.unwrap_or_default().iter();
    let owner = owners.find(|owner| owner.controller == Some(true))?;
    let kind = owner.kind.to_lowercase();
    let shown = match owner.api_version.split_once('/') {
        Some((group, _)) => format!("{kind}.{}/{}", group.to_lowercase(), owner.name),
        None => format!("{kind}/{}", owner.name),
    };
    Some(shown)
}

fn validate_number(object: &ControllerRevision, errors: &mut ErrorList) {
    if object.revision < 0 {
        let path = Path::new("revision");
        errors.invalid(&path, object.revision, names::NOT_NEGATIVE);
    }
}

impl Kind for ControllerRevisionKind {
    type Object = ControllerRevision;

    const INFO: StaticInfo = StaticInfo {
        group: "apps",
        version: "v1",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    fn validate(object: &ControllerRevision, errors: &mut ErrorList) {
        validate_number(object, errors);
        let why = match &object.data {
            None => "data is mandatory",
            Some(data) if data.0.is_null() => "data is mandatory",
            Some(data) if !data.0.is_object() => "data must be a valid JSON object",
            Some(_) => return,
        };
        errors.required(&Path::new("data"), why);
    }

    fn validate_update(new: &ControllerRevision, old: &ControllerRevision, errors: &mut ErrorList) {
        validate_number(new, errors);
        if new.data != old.data {
            errors.invalid(&Path::new("data"), &new.data, meta::IMMUTABLE);
        }
    }

    fn printer() -> Printer<ControllerRevision> {
        let owner = table::column("Controller", "string", "Controller of the object", 0);
        let revision = table::field_doc::<ControllerRevision>("revision");
        Printer::<ControllerRevision>::named()
            .column(owner, |object| {
                let owners = object.metadata.owner_references.as_deref();
                json!(controller(owners).unwrap_or_else(|| "<none>".to_owned()))
            })
            .column(table::column("Revision", "string", revision, 0), |object| {
                json!(object.revision)
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn revision(revision: i64, data: Value) -> ControllerRevision {
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true
        });
        let metadata = json!({"name": "r", "ownerReferences": [owner]});
        let object = json!({"metadata": metadata, "revision": revision, "data": data});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn its_data_is_there_and_stays() {
        let (old, new) = (revision(1, json!({"a": 1})), revision(2, json!({"a": 2})));
        let refused = |object: &ControllerRevision| {
            let mut errors = ErrorList::default();
            ControllerRevisionKind::validate(object, &mut errors);
            errors.told()
        };
        assert_eq!(
            refused(&revision(-1, Value::Null)),
            [
                "revision: Invalid value: -1: must be greater than or equal to 0",
                "data: Required value: data is mandatory"
            ]
        );
        assert_eq!(
            refused(&revision(1, json!([1]))),
            ["data: Required value: data must be a valid JSON object"]
        );
        assert_eq!(refused(&old), [""; 0]);
        let mut errors = ErrorList::default();
        ControllerRevisionKind::validate_update(&new, &old, &mut errors);
        let paths: Vec<String> = errors
            .0
            .iter()
            .map(|error| error.path.to_string())
            .collect();
        assert_eq!(paths, ["data"]);
        let row = ControllerRevisionKind::printer().row(&old, 0);
        assert_eq!(row[1..3], [json!("statefulset.apps/web"), json!(1)]);
    }
}
