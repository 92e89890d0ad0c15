//! ConfigMap: text and bytes by key.

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, StaticInfo};
use crate::names;

/// What all keys and values together may weigh, in bytes.
pub(super) const MAX_DATA_BYTES: usize = 1_048_576;

/// See [`ConfigMap`].
pub struct ConfigMapKind;

impl Kind for ConfigMapKind {
    type Object = ConfigMap;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    fn validate(object: &ConfigMap, errors: &mut ErrorList) {
        let (text, binary) = (object.data.as_ref(), object.binary_data.as_ref());
        let mut size = 0;
        for (key, value) in text.into_iter().flatten() {
            let path = Path::new("data").key(key);
            errors.invalid_each(&path, key, names::config_map_key(key));
            if binary.is_some_and(|binary| binary.contains_key(key)) {
                errors.invalid(&path, key, "duplicate of key present in binaryData");
            }
            size += value.len();
        }
        for (key, value) in binary.into_iter().flatten() {
            let path = Path::new("binaryData").key(key);
            errors.invalid_each(&path, key, names::config_map_key(key));
            size += value.0.len();
        }
        if size > MAX_DATA_BYTES {
            errors.too_long(&Path::default(), MAX_DATA_BYTES);
        }
    }

    fn validate_update(new: &ConfigMap, old: &ConfigMap, errors: &mut ErrorList) {
        if old.immutable == Some(true) {
            let frozen = "field is immutable when `immutable` is set";
            if new.immutable != Some(true) {
                errors.forbidden(&Path::new("immutable"), frozen);
            }
            if new.data != old.data {
                errors.forbidden(&Path::new("data"), frozen);
            }
            if new.binary_data != old.binary_data {
                errors.forbidden(&Path::new("binaryData"), frozen);
            }
        }
        Self::validate(new, errors);
    }

    fn printer() -> Printer<ConfigMap> {
        let data = table::field_doc::<ConfigMap>("data");
        Printer::<ConfigMap>::named()
            .column(table::column("Data", "string", data, 0), |object| {
                let text = object.data.as_ref().map_or(0, |data| data.len());
                let binary = object.binary_data.as_ref().map_or(0, |data| data.len());
                json!(text + binary)
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parse(value: Value) -> ConfigMap {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_key_may_be_text_or_bytes_but_not_both() {
        let object = parse(serde_json::json!({
            "metadata": {"name": "a"}, "data": {"a": "b"}, "binaryData": {"a": "AAEC"}
        }));
        let mut errors = ErrorList::default();
        ConfigMapKind::validate(&object, &mut errors);
        let found: Vec<_> = errors
            .0
            .iter()
            .map(|e| (e.path.to_string(), e.message.as_str()))
            .collect();
        let message = "Invalid value: \"a\": duplicate of key present in binaryData";
        assert_eq!(found, [("data[a]".to_owned(), message)]);
    }

    #[test]
    fn an_immutable_map_keeps_its_data() {
        let old = parse(
            serde_json::json!({"metadata": {"name": "a"}, "immutable": true, "data": {"a": "1"}}),
        );
        let new = parse(serde_json::json!({"metadata": {"name": "a"}, "data": {"a": "2"}}));
        let mut errors = ErrorList::default();
        ConfigMapKind::validate_update(&new, &old, &mut errors);
        let paths: Vec<_> = errors.0.iter().map(|e| e.path.to_string()).collect();
        assert_eq!(paths, ["immutable", "data"]);
    }
}
