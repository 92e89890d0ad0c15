//! The three kinds of patch: JSON (RFC 6902), merge (RFC 7386), and Kubernetes' strategic merge, which joins lists by
//! the keys their types name.

mod strategic;

use serde_json::Value;

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

/// A patch document; `wanted` is Go's name of the type it must have.
fn parse(patch: &[u8], is_wanted: fn(&Value) -> bool, wanted: &str) -> Result<Value, StatusError> {
    let refused = |why: String| StatusError::bad_request(format!("error decoding patch: {why}"));
    let value: Value = serde_json::from_slice(patch).map_err(|error| refused(error.to_string()))?;
    match is_wanted(&value) {
        true => Ok(value),
        false => Err(refused(format!(
            "json: cannot unmarshal {} into Go value of type {wanted}",
            go_kind(&value)
        ))),
    }
}

/// Applies a patch to an object; the result is not checked yet.
pub fn apply(
    kind: &dyn ResourceKind,
    patch_type: PatchType,
    original: &Value,
    patch: &[u8],
) -> Result<Value, StatusError> {
    match patch_type {
        PatchType::Json => json(original, patch),
        PatchType::Merge => {
            let patch = parse(patch, Value::is_object, "map[string]interface {}")?;
            let mut object = original.clone();
            json_patch::merge(&mut object, &patch);
            Ok(object)
        }
        PatchType::Strategic => {
            let patch = parse(patch, Value::is_object, "map[string]interface {}")?;
            let mut object = original.clone();
            strategic::merge(&mut object, &patch, Some(kind.schema()))?;
            Ok(object)
        }
    }
}

fn json(original: &Value, patch: &[u8]) -> Result<Value, StatusError> {
    let document = parse(patch, Value::is_array, "[]handlers.jsonPatchOp")?;
    let mut object = original.clone();
    for operation in document.as_array().into_iter().flatten() {
        let mut operation = operation.clone();
        // Kubernetes' library replaces what is missing: an add.
        if operation["op"] == "replace"
            && operation["path"]
                .as_str()
                .is_some_and(|path| object.pointer(path).is_none())
        {
            operation["op"] = Value::from("add");
        }
        let one: json_patch::PatchOperation =
            serde_json::from_value(operation).map_err(|_| StatusError::unprocessable())?;
        json_patch::patch(&mut object, std::slice::from_ref(&one))
            .map_err(|_| StatusError::unprocessable())?;
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
