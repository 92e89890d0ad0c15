//! The three kinds of patch: JSON (RFC 6902), merge (RFC 7386), and Kubernetes' strategic merge, which joins lists by
//! the keys their types name; and the patch that a client makes to apply a manifest.

mod difference;
mod json;
mod restore;
mod strategic;

pub use difference::{Difference, three_way};
pub use restore::misfit;

use serde_json::Value;

use crate::decode::{MAX_DEPTH, MAX_STRUCTS, count_collections, untyped};
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

/// A patch document with the fields that it has twice; `wanted` is Go's name of the type it must have, where null is always
/// an empty one. It is read without a schema, and made of no more than the objects that it may be for.
fn parse(
    patch: &[u8],
    is_wanted: fn(&Value) -> bool,
    wanted: &str,
) -> Result<(Value, Vec<String>), String> {
    count_collections(patch, MAX_DEPTH, MAX_STRUCTS)
        .map_err(|error| syntax_error(patch).unwrap_or_else(|| error.to_string()))?;
    let (value, twice) =
        untyped(patch).map_err(|error| syntax_error(patch).unwrap_or_else(|| error.to_string()))?;
    match value.is_null() || is_wanted(&value) {
        true => Ok((value, twice)),
        false => Err(format!(
            "json: cannot unmarshal {} into Go value of type {wanted}",
            go_kind(&value)
        )),
    }
}

/// A patch that is a map.
fn parse_map(patch: &[u8]) -> Result<(Value, Vec<String>), String> {
    parse(patch, Value::is_object, "map[string]interface {}")
}

fn undecodable(why: String) -> StatusError {
    StatusError::bad_request(format!("error decoding patch: {why}"))
}

/// What has become of an object by a patch. It is not checked yet, see [`crate::decode::check`].
#[derive(Clone, Debug)]
pub struct Patched {
    /// The object.
    pub object: Value,
    /// Fields that the patch itself has twice or should not have, for those who are strict.
    pub findings: Vec<String>,
    /// The patch itself, where refusals show it: a strategic one.
    pub patch: Value,
}

/// A patch as Go prints it.
pub fn printed(patch: &Value) -> String {
    strategic::go_text(patch)
}

/// Applies a patch to an object.
pub fn apply(
    kind: &dyn ResourceKind,
    patch_type: PatchType,
    original: &Value,
    patch: &[u8],
) -> Result<Patched, StatusError> {
    let mut object = original.clone();
    let mut shown = Value::Null;
    let findings = match patch_type {
        PatchType::Json => json::apply(&mut object, patch)?,
        PatchType::Merge => {
            let (patch, twice) = parse_map(patch).map_err(undecodable)?;
            if patch.is_null() {
                return Err(StatusError::bad_request("Invalid JSON Patch"));
            }
            json_patch::merge(&mut object, &patch);
            twice
        }
        PatchType::Strategic => {
            let (patch, twice) = parse_map(patch).map_err(StatusError::bad_request)?;
            if !patch.is_null() {
                strategic::merge(&mut object, &patch, Some(kind.schema()))?;
            }
            shown = patch;
            twice
        }
    };
    Ok(Patched {
        object,
        findings,
        patch: shown,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::config_map::ConfigMapKind;
    use crate::typed::Typed;

    fn patched(patch_type: PatchType, patch: &Value) -> Result<Value, StatusError> {
        written(patch_type, &patch.to_string()).map(|patched| patched.object)
    }

    fn written(patch_type: PatchType, patch: &str) -> Result<Patched, StatusError> {
        let kind = Typed::<ConfigMapKind>::default();
        let original = json!({"data": {"a": "1", "b": "2"}});
        apply(&kind, patch_type, &original, patch.as_bytes())
    }

    #[test]
    fn what_a_patch_has_twice_or_should_not_have_is_found() {
        let found = |patch_type, patch: &str| {
            let patched = written(patch_type, patch).expect(patch);
            patched.findings
        };
        let twice = r#"{"data":{"a":"3","a":"4"},"data":{"a":"5"}}"#;
        let expected = [r#"duplicate field "data.a""#, r#"duplicate field "data""#];
        assert_eq!(found(PatchType::Merge, twice), expected);
        assert_eq!(found(PatchType::Strategic, twice), expected);
        let patched = written(PatchType::Merge, twice).expect("the last counts");
        assert_eq!(patched.object["data"]["a"], "5");
        let odd = r#"[{"op":"test","path":"/data/a","value":"1","foo":1,"op":"test"}]"#;
        let expected = [
            r#"json patch duplicate field "[0].op""#,
            r#"json patch unknown field "[0].foo""#,
        ];
        assert_eq!(found(PatchType::Json, odd), expected);
    }

    #[test]
    fn null_is_what_go_makes_of_it() {
        let same = json!({"data": {"a": "1", "b": "2"}});
        for patch_type in [PatchType::Json, PatchType::Strategic] {
            let patched = written(patch_type, "null").expect("nothing is changed");
            assert_eq!(patched.object, same);
        }
        let error = written(PatchType::Merge, "null").expect_err("no map");
        assert_eq!((error.code(), error.message()), (400, "Invalid JSON Patch"));
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
            let patched = apply(&kind, patch_type, &json!({}), patch.as_bytes());
            patched.expect_err("too much").message().to_owned()
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
