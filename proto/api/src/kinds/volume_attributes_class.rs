//! VolumeAttributesClass: what volumes of a driver are made like, and can be changed to.

use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use serde_json::json;

use super::storage_class::{check_parameters, check_provisioner};
use super::table::{self, Printer, field_doc};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, StaticInfo};

/// See [`VolumeAttributesClass`].
pub struct VolumeAttributesClassKind;

/// The finalizer of classes that claims or volumes name.
pub const PROTECTION: &str = "kubernetes.io/vac-protection";

impl Kind for VolumeAttributesClassKind {
    type Object = VolumeAttributesClass;

    const INFO: StaticInfo = StaticInfo {
        group: "storage.k8s.io",
        version: "v1",
        kind: "VolumeAttributesClass",
        plural: "volumeattributesclasses",
        singular: "volumeattributesclass",
        short_names: &["vac"],
        categories: &[],
        namespaced: false,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    fn validate(object: &VolumeAttributesClass, errors: &mut ErrorList) {
        check_provisioner(&object.driver_name, &Path::new("driverName"), errors);
        let parameters = object.parameters.as_ref();
        check_parameters(parameters, true, &Path::new("parameters"), errors);
    }

    fn validate_update(
        new: &VolumeAttributesClass,
        old: &VolumeAttributesClass,
        errors: &mut ErrorList,
    ) {
        if new.driver_name != old.driver_name {
            let detail = "updates to driverName are forbidden.";
            errors.forbidden(&Path::new("driverName"), detail);
        }
        if new.parameters != old.parameters {
            let detail = "updates to parameters are forbidden.";
            errors.forbidden(&Path::new("parameters"), detail);
        }
        Self::validate(new, errors);
    }

    fn printer() -> Printer<VolumeAttributesClass> {
        let driver = field_doc::<VolumeAttributesClass>("driverName");
        Printer::<VolumeAttributesClass>::named()
            .column(table::column("DriverName", "string", driver, 0), |object| {
                json!(object.driver_name)
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_class_says_something_and_never_something_else() {
        let class = |driver: &str, parameters: Value| -> VolumeAttributesClass {
            let class =
                json!({"metadata": {"name": "c"}, "driverName": driver, "parameters": parameters});
            serde_json::from_value(class).expect("a class")
        };
        let old = class("a.example", json!({"a": "b"}));
        let mut errors = ErrorList::default();
        VolumeAttributesClassKind::validate_update(&old, &old, &mut errors);
        assert!(errors.is_empty());
        let new = class("b.example", json!({}));
        VolumeAttributesClassKind::validate_update(&new, &old, &mut errors);
        assert_eq!(
            errors.told(),
            [
                "driverName: Forbidden: updates to driverName are forbidden.",
                "parameters: Forbidden: updates to parameters are forbidden.",
                "parameters: Required value: must contain at least one key/value pair",
            ]
        );
    }
}
