//! placeholder
use crate::kind::ResourceKind;
use crate::status::StatusError;
use serde_json::Value;
/// p
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// j
    Json,
    /// m
    Merge,
    /// s
    Strategic,
}
impl PatchType {
    /// f
    pub fn from_content_type(t: &str) -> Option<Self> {
        match t {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}
/// a
pub fn apply(
    _kind: &dyn ResourceKind,
    patch_type: PatchType,
    original: &Value,
    patch: &[u8],
) -> Result<Value, StatusError> {
    let bad = |e: String| StatusError::bad_request(e);
    let mut object = original.clone();
    match patch_type {
        PatchType::Json => {
            let p: json_patch::Patch =
                serde_json::from_slice(patch).map_err(|e| bad(e.to_string()))?;
            json_patch::patch(&mut object, &p).map_err(|e| bad(e.to_string()))?;
        }
        _ => {
            let p: Value = serde_json::from_slice(patch).map_err(|e| bad(e.to_string()))?;
            json_patch::merge(&mut object, &p);
        }
    }
    Ok(object)
}
