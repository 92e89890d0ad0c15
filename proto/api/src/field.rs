//! Field paths and validation errors, worded as Kubernetes words them.

use std::fmt;

/// Where in an object: `spec.containers[0].name`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path of one field.
    pub fn new(field: &str) -> Self {
        Self(field.to_owned())
    }

    /// `self.field`
    pub fn child(&self, field: &str) -> Self {
        if self.0.is_empty() {
            Self(field.to_owned())
        } else {
            Self(format!("{}.{field}", self.0))
        }
    }

    /// `self[index]`
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// `self[key]`
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// Why a field was refused; the name is the `reason` of a Status cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// FieldValueRequired
    Required,
    /// FieldValueInvalid
    Invalid,
    /// FieldValueNotSupported
    NotSupported,
    /// FieldValueDuplicate
    Duplicate,
    /// FieldValueForbidden
    Forbidden,
    /// FieldValueTooLong
    TooLong,
    /// FieldValueTooMany
    TooMany,
    /// FieldValueNotFound
    NotFound,
    /// FieldValueTypeInvalid
    TypeInvalid,
}

/// One refused field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Why.
    pub kind: ErrorType,
    /// Where.
    pub path: Path,
    /// The whole message of a cause, without the path: `Invalid value: -1: must be ...`.
    pub message: String,
}

/// Every refused field of an object, in the order found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorList(pub Vec<FieldError>);

impl ErrorList {
    /// Whether nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push(&mut self, kind: ErrorType, path: &Path, message: String) {
        self.0.push(FieldError {
            kind,
            path: path.clone(),
            message,
        });
    }

    /// `path: Required value[: detail]`
    pub fn required(&mut self, path: &Path, detail: &str) {
        let message = match detail {
            "" => "Required value".to_owned(),
            _ => format!("Required value: {detail}"),
        };
        self.push(ErrorType::Required, path, message);
    }

    /// `path: Invalid value: value: detail`; strings are quoted, everything else is written as JSON.
    pub fn invalid(&mut self, path: &Path, value: impl serde::Serialize, detail: &str) {
        let value = serde_json::to_string(&value).unwrap_or_default();
        self.push(
            ErrorType::Invalid,
            path,
            format!("Invalid value: {value}: {detail}"),
        );
    }

    /// `path: Unsupported value: "value": supported values: "a", "b"`
    pub fn not_supported(&mut self, path: &Path, value: impl serde::Serialize, supported: &[&str]) {
        let value = serde_json::to_string(&value).unwrap_or_default();
        let supported: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        self.push(
            ErrorType::NotSupported,
            path,
            format!(
                "Unsupported value: {value}: supported values: {}",
                supported.join(", ")
            ),
        );
    }

    /// `path: Duplicate value: value`
    pub fn duplicate(&mut self, path: &Path, value: impl serde::Serialize) {
        let value = serde_json::to_string(&value).unwrap_or_default();
        self.push(
            ErrorType::Duplicate,
            path,
            format!("Duplicate value: {value}"),
        );
    }

    /// `path: Forbidden: detail`
    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.push(ErrorType::Forbidden, path, format!("Forbidden: {detail}"));
    }

    /// `path: Too long: may not be more than max bytes`
    pub fn too_long(&mut self, path: &Path, max: usize) {
        self.push(
            ErrorType::TooLong,
            path,
            format!("Too long: may not be more than {max} bytes"),
        );
    }

    /// `path: Not found: value`
    pub fn not_found(&mut self, path: &Path, value: impl serde::Serialize) {
        let value = serde_json::to_string(&value).unwrap_or_default();
        self.push(ErrorType::NotFound, path, format!("Not found: {value}"));
    }

    /// `path: Too many: actual: must have at most max items`
    pub fn too_many(&mut self, path: &Path, actual: usize, max: usize) {
        self.push(
            ErrorType::TooMany,
            path,
            format!("Too many: {actual}: must have at most {max} items"),
        );
    }
}
