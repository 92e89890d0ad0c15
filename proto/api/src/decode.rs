//! placeholder
use crate::kind::ResourceKind;
use crate::status::StatusError;
use serde_json::Value;
/// How strictly fields are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// a
    Ignore,
    /// b
    Warn,
    /// c
    Strict,
}
/// Decoded.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// o
    pub object: Value,
    /// w
    pub warnings: Vec<String>,
}
/// d
pub fn decode(
    body: &[u8],
    content_type: &str,
    kind: &dyn ResourceKind,
    validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    let object: Value = if content_type.contains("yaml") {
        serde_norway::from_slice(body).map_err(|e| StatusError::bad_request(e.to_string()))?
    } else {
        serde_json::from_slice(body).map_err(|e| StatusError::bad_request(e.to_string()))?
    };
    check(object, kind, validation)
}
/// c
pub fn check(
    mut object: Value,
    kind: &dyn ResourceKind,
    _validation: FieldValidation,
) -> Result<Decoded, StatusError> {
    kind.schema().complete(&mut object);
    Ok(Decoded {
        object,
        warnings: Vec::new(),
    })
}
