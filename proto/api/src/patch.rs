//! The three kinds of patch: JSON (RFC 6902), merge (RFC 7386), and Kubernetes' strategic merge, which joins lists by
//! the keys their types name; and the patch that a client makes to apply a manifest.

mod difference;
mod json;
mod strategic;

pub use difference::{Difference, three_way};

use serde_json::Value;

use crate::decode::{MAX_DEPTH, MAX_STRUCTS, count_collections};
use crate::json::syntax_error;
use crate::kind::ResourceKind;
use crate::status::StatusError;

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
}

impl PatchType {
    /// By media type, without parameters.
    pub fn from_content_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// What Go calls the type of a JSON value in decode errors.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A patch document; `wanted` is Go's name of the type it must have. It is read without a schema, and made of no more than
/// the objects that it may be for.
fn parse(patch: &[u8], is_wanted: fn(&Value) -> bool, wanted: &str) -> Result<Value, String> {
    count_collections(patch, MAX_DEPTH, MAX_STRUCTS)
        .map_err(|error| syntax_error(patch).unwrap_or_else(|| error.to_string()))?;
    let value: Value = serde_json::from_slice(patch)
        .map_err(|error| syntax_error(patch).unwrap_or_else(|| error.to_string()))?;
    match is_wanted(&value) {
        true => Ok(value),
        false => Err(format!(
            "json: cannot unmarshal {} into Go value of type {wanted}",
            go_kind(&value)
        )),
    }
}

/// A patch that is a map.
fn parse_map(patch: &[u8]) -> Result<Value, String> {
    parse(patch, Value::is_object, "map[string]interface {}")
}

fn undecodable(why: String) -> StatusError {
    StatusError::bad_request(format!("error decoding patch: {why}"))
}

/// Applies a patch to an object; the result is not checked yet, see [`crate::decode::check`].
pub fn apply(
    kind: &dyn ResourceKind,
    patch_type: PatchType,
    original: &Value,
    patch: &[u8],
) -> Result<Value, StatusError> {
    let mut object = original.clone();
    match patch_type {
        PatchType::Json => json::apply(&mut object, patch)?,
        PatchType::Merge => {
            json_patch::merge(&mut object, &parse_map(patch).map_err(undecodable)?);
        }
        PatchType::Strategic => {
            let patch = parse_map(patch).map_err(StatusError::bad_request)?;
            strategic::merge(&mut object, &patch, Some(kind.schema()))?;
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::config_map::ConfigMapKind;
    use crate::typed::Typed;

    fn patched(patch_type: PatchType, patch: &Value) -> Result<Value, StatusError> {
        let kind = Typed::<ConfigMapKind>::default();
        let original = json!({"data": {"a": "1", "b": "2"}});
        apply(&kind, patch_type, &original, patch.to_string().as_bytes())
    }

    #[test]
    fn json_patches_follow_kubernetes_where_the_standard_is_stricter() {
        let replace = json!([{"op": "replace", "path": "/data/c", "value": "3"}]);
        assert_eq!(
            patched(PatchType::Json, &replace).expect("adds")["data"]["c"],
            "3"
        );
        for refused in [
            json!([{"op": "remove", "path": "/data/nope"}]),
            json!([{"op": "add", "path": "/nope/deep", "value": 1}]),
            json!([{"op": "frob", "path": "/a"}]),
            json!([{"op": "test", "path": "/data/a", "value": "2"}]),
        ] {
            assert_eq!(
                patched(PatchType::Json, &refused)
                    .expect_err("refused")
                    .code(),
                422,
                "{refused}"
            );
        }
        let error = patched(PatchType::Json, &json!({"op": "add"})).expect_err("an object");
        assert_eq!(
            error.message(),
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"
        );
    }

    #[test]
    fn a_patch_is_made_of_no_more_than_an_object_may_be() {
        let kind = Typed::<ConfigMapKind>::default();
        let refused = |patch_type, patch: String| {
            let error = apply(&kind, patch_type, &json!({}), patch.as_bytes());
            error.expect_err("too much").message().to_owned()
        };
        let many = vec![r#"{"":0}"#; MAX_STRUCTS].join(",");
        for (patch_type, patch) in [
            (PatchType::Json, format!("[{many}]")),
            (PatchType::Merge, format!(r#"{{"a":[{many}]}}"#)),
            (PatchType::Strategic, format!(r#"{{"a":[{many}]}}"#)),
        ] {
            let told = refused(patch_type, patch);
            assert!(
                told.ends_with("too many objects and lists: at most 20000 are allowed"),
                "{told}"
            );
        }
        let text = "{[".repeat(MAX_STRUCTS);
        assert!(patched(PatchType::Merge, &json!({"data": {"a": text}})).is_ok());
    }

    #[test]
    fn merge_patches_remove_by_null() {
        let patch = json!({"data": {"a": null, "c": "3"}});
        assert_eq!(
            patched(PatchType::Merge, &patch).expect("merges"),
            json!({"data": {"b": "2", "c": "3"}})
        );
        assert_eq!(
            patched(PatchType::Merge, &json!([1]))
                .expect_err("a list")
                .code(),
            400
        );
    }
}
