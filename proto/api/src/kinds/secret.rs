//! Secret: sensitive bytes by key, with a shape for each well-known type.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

use super::config_map::MAX_DATA_BYTES;
use super::table::{self, Printer};
use crate::field::{ErrorList, Path};
use crate::json::syntax_error;
use crate::kind::{Kind, StaticInfo};
use crate::names;

const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const REDACTED: &str = "<secret contents redacted>";

/// See [`Secret`].
pub struct SecretKind;

impl SecretKind {
    fn get<'a>(object: &'a Secret, key: &str) -> Option<&'a ByteString> {
        object.data.as_ref().and_then(|data| data.get(key))
    }

    fn require(object: &Secret, key: &str, errors: &mut ErrorList) {
        if Self::get(object, key).is_none() {
            errors.required(&Path::new("data").key(key), "");
        }
    }

    fn require_json(object: &Secret, key: &str, errors: &mut ErrorList) {
        let path = Path::new("data").key(key);
        match Self::get(object, key) {
            None => errors.required(&path, ""),
            Some(bytes) => {
                if let Some(why) = syntax_error(&bytes.0) {
                    errors.invalid(&path, REDACTED, &why);
                }
            }
        }
    }
}

impl Kind for SecretKind {
    type Object = Secret;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        short_names: &[],
        categories: &[],
        namespaced: true,
        has_status: false,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const FIELD_LABELS: &'static [&'static str] = &["type"];

    fn default(object: &mut Secret) {
        for (key, value) in object.string_data.take().into_iter().flatten() {
            let data = object.data.get_or_insert_default();
            data.insert(key, ByteString(value.into_bytes()));
        }
        if object.type_.as_deref().unwrap_or_default().is_empty() {
            object.type_ = Some("Opaque".to_owned());
        }
    }

    fn prepare_create(_object: &mut Secret) {}

    fn validate(object: &Secret, errors: &mut ErrorList) {
        let mut size = 0;
        for (key, value) in object.data.iter().flatten() {
            let path = Path::new("data").key(key);
            errors.invalid_each(&path, key, names::config_map_key(key));
            size += value.0.len();
        }
        if size > MAX_DATA_BYTES {
            errors.too_long(&Path::new("data"), MAX_DATA_BYTES);
        }
        match object.type_.as_deref().unwrap_or_default() {
            "kubernetes.io/service-account-token" => {
                let annotations = object.metadata.annotations.as_ref();
                let account = annotations.and_then(|annotations| annotations.get(ACCOUNT_NAME));
                if account.is_none_or(String::is_empty) {
                    let path = Path::new("metadata").child("annotations").key(ACCOUNT_NAME);
                    errors.required(&path, "");
                }
            }
            "kubernetes.io/dockercfg" => Self::require_json(object, ".dockercfg", errors),
            "kubernetes.io/dockerconfigjson" => {
                Self::require_json(object, ".dockerconfigjson", errors);
            }
            "kubernetes.io/basic-auth" => {
                let either = ["username", "password"];
                if either.iter().all(|key| Self::get(object, key).is_none()) {
                    for key in either {
                        Self::require(object, key, errors);
                    }
                }
            }
            "kubernetes.io/ssh-auth" => {
                let key = Self::get(object, "ssh-privatekey");
                if key.is_none_or(|key| key.0.is_empty()) {
                    errors.required(&Path::new("data").key("ssh-privatekey"), "");
                }
            }
            "kubernetes.io/tls" => {
                Self::require(object, "tls.crt", errors);
                Self::require(object, "tls.key", errors);
            }
            _ => {}
        }
    }

    fn prepare_update(new: &mut Secret, old: &Secret) {
        if new.type_.as_deref().unwrap_or_default().is_empty() {
            new.type_.clone_from(&old.type_);
        }
    }

    fn validate_update(new: &Secret, old: &Secret, errors: &mut ErrorList) {
        if new.type_ != old.type_ {
            errors.invalid(&Path::new("type"), &new.type_, "field is immutable");
        }
        if old.immutable == Some(true) {
            let frozen = "field is immutable when `immutable` is set";
            if new.immutable != Some(true) {
                errors.forbidden(&Path::new("immutable"), frozen);
            }
            if new.data != old.data {
                errors.forbidden(&Path::new("data"), frozen);
            }
        }
        Self::validate(new, errors);
    }

    fn warnings(new: &Secret, _old: Option<&Secret>) -> Vec<String> {
        if new.type_.as_deref() != Some("kubernetes.io/tls") {
            return Vec::new();
        }
        let lacks_pem = |key: &str| {
            !Self::get(new, key).is_some_and(|bytes| {
                let begin: &[u8] = b"-----BEGIN ";
                bytes.0.windows(begin.len()).any(|window| window == begin)
            })
        };
        [("tls.crt", "certificate"), ("tls.key", "key")]
            .into_iter()
            .find(|(key, _)| lacks_pem(key))
            .map(|(_, what)| format!("tls: failed to find any PEM data in {what} input"))
            .into_iter()
            .collect()
    }

    fn selectable_fields(object: &Secret) -> Vec<(&'static str, String)> {
        vec![("type", object.type_.clone().unwrap_or_default())]
    }

    fn printer() -> Printer<Secret> {
        let text =
            |name, field| table::column(name, "string", table::field_doc::<Secret>(field), 0);
        Printer::<Secret>::named()
            .column(text("Type", "type"), |object| {
                json!(object.type_.as_deref().unwrap_or_default())
            })
            .column(text("Data", "data"), |object| {
                json!(object.data.as_ref().map_or(0, |data| data.len()))
            })
            .age()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data_and_the_type_opaque() {
        let mut object: Secret =
            serde_json::from_value(serde_json::json!({"stringData": {"a": "b"}})).unwrap();
        SecretKind::default(&mut object);
        assert_eq!(object.string_data, None);
        assert_eq!(object.data.unwrap()["a"].0, b"b");
        assert_eq!(object.type_.as_deref(), Some("Opaque"));
    }

    #[test]
    fn a_well_known_type_has_its_keys() {
        let cases = [
            ("kubernetes.io/tls", vec!["data[tls.crt]", "data[tls.key]"]),
            ("kubernetes.io/ssh-auth", vec!["data[ssh-privatekey]"]),
            (
                "kubernetes.io/basic-auth",
                vec!["data[username]", "data[password]"],
            ),
            (
                "kubernetes.io/service-account-token",
                vec!["metadata.annotations[kubernetes.io/service-account.name]"],
            ),
            ("example.com/mine", vec![]),
        ];
        for (kind, expected) in cases {
            let object = Secret {
                type_: Some(kind.to_owned()),
                ..Secret::default()
            };
            let mut errors = ErrorList::default();
            SecretKind::validate(&object, &mut errors);
            let paths: Vec<_> = errors
                .0
                .iter()
                .map(|error| error.path.to_string())
                .collect();
            assert_eq!(paths, expected, "{kind}");
        }
    }
}
