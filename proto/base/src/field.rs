//! Field paths and validation errors, worded as Kubernetes words them.

use std::fmt;

/// Where in an object: `spec.containers[0].name`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldError {
    /// Why.
    pub kind: ErrorType,
    /// Where.
    pub path: Path,
    /// The whole message of a cause, without the path: `Invalid value: -1: must be ...`.
    pub message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.message)
    }
}

impl FieldError {
    fn size(&self) -> usize {
        self.path.0.len() + self.message.len()
    }
}

/// Errors as Go writes several of them: `[a, b]`.
pub fn aggregate(errors: &[String]) -> String {
    match errors {
        [] => String::new(),
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

/// Errors beyond these are not told: nobody reads them, and an object may be wrong in a million places.
const MAX_ERRORS: usize = 256;
/// Neither are those beyond this many bytes: what is refused may be as long as the object.
const MAX_BYTES: usize = 256 << 10;

/// The refused fields of an object, in the order found.
#[derive(Clone, Debug, Default)]
pub struct ErrorList(pub Vec<FieldError>, Counted);

/// The bytes of so many errors, so that those which come after a list is full need not add them up again.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    errors: usize,
    bytes: usize,
}

impl PartialEq for ErrorList {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for ErrorList {}

fn written(value: impl serde::Serialize) -> String {
    serde_json::to_string(&value).unwrap_or_default()
}

impl ErrorList {
    /// Whether nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each as `path: message`.
    pub fn told(&self) -> Vec<String> {
        self.0.iter().map(FieldError::to_string).collect()
    }

    /// Whether no more errors are taken.
    pub fn is_full(&self) -> bool {
        self.0.len() >= MAX_ERRORS || self.bytes() >= MAX_BYTES
    }

    fn bytes(&self) -> usize {
        match self.1.errors == self.0.len() {
            true => self.1.bytes,
            // Some were added or taken by others.
            false => self.0.iter().map(FieldError::size).sum(),
        }
    }

    /// Adds an error, whose message is made only if there is room for it.
    pub fn push(&mut self, kind: ErrorType, path: &Path, message: impl FnOnce() -> String) {
        if self.is_full() {
            return;
        }
        let error = FieldError {
            kind,
            path: path.clone(),
            message: message(),
        };
        let bytes = self.bytes() + error.size();
        self.0.push(error);
        self.1 = Counted {
            errors: self.0.len(),
            bytes,
        };
    }

    /// `path: Required value[: detail]`
    pub fn required(&mut self, path: &Path, detail: &str) {
        self.push(ErrorType::Required, path, || match detail {
            "" => "Required value".to_owned(),
            _ => format!("Required value: {detail}"),
        });
    }

    /// `path: Invalid value: value: detail`; strings are quoted, everything else is written as JSON.
    pub fn invalid(&mut self, path: &Path, value: impl serde::Serialize, detail: &str) {
        self.push(ErrorType::Invalid, path, || {
            format!("Invalid value: {}: {detail}", written(value))
        });
    }

    /// As [`Self::invalid`], once for each of `details`: what a rule for names finds wrong.
    pub fn invalid_each(
        &mut self,
        path: &Path,
        value: impl serde::Serialize + Copy,
        details: impl IntoIterator<Item = String>,
    ) {
        for detail in details {
            self.invalid(path, value, &detail);
        }
    }

    /// `path: Unsupported value: "value": supported values: "a", "b"`
    pub fn not_supported(&mut self, path: &Path, value: impl serde::Serialize, supported: &[&str]) {
        self.push(ErrorType::NotSupported, path, || {
            let supported: Vec<String> =
                supported.iter().map(|value| format!("{value:?}")).collect();
            format!(
                "Unsupported value: {}: supported values: {}",
                written(value),
                supported.join(", ")
            )
        });
    }

    /// `path: Duplicate value: value`
    pub fn duplicate(&mut self, path: &Path, value: impl serde::Serialize) {
        self.push(ErrorType::Duplicate, path, || {
            format!("Duplicate value: {}", written(value))
        });
    }

    /// `path: Forbidden: detail`
    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.push(ErrorType::Forbidden, path, || {
            format!("Forbidden: {detail}")
        });
    }

    /// `path: Too long: may not be more than max bytes`
    pub fn too_long(&mut self, path: &Path, max: usize) {
        self.push(ErrorType::TooLong, path, || {
            format!("Too long: may not be more than {max} bytes")
        });
    }

    /// `path: Not found: value: detail`
    pub fn not_found_among(&mut self, path: &Path, value: impl serde::Serialize, detail: &str) {
        self.push(ErrorType::NotFound, path, || {
            format!("Not found: {}: {detail}", written(value))
        });
    }

    /// `path: Not found: value`
    pub fn not_found(&mut self, path: &Path, value: impl serde::Serialize) {
        self.push(ErrorType::NotFound, path, || {
            format!("Not found: {}", written(value))
        });
    }

    /// `path: Too many: actual: must have at most max items`
    pub fn too_many(&mut self, path: &Path, actual: usize, max: usize) {
        self.push(ErrorType::TooMany, path, || {
            format!("Too many: {actual}: must have at most {max} items")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_bounded_in_number_and_bytes() {
        let (mut many, mut large) = (ErrorList::default(), ErrorList::default());
        for _ in 0..1_000_000 {
            many.required(&Path::new("a"), "");
            large.invalid(&Path::new("a"), "x".repeat(10), "");
        }
        assert_eq!(many.0.len(), MAX_ERRORS);
        assert!(many.is_full() && large.is_full());
        let mut huge = ErrorList::default();
        for _ in 0..1000 {
            huge.invalid(&Path::new("a"), "x".repeat(MAX_BYTES / 2), "");
        }
        assert_eq!(huge.0.len(), 2);
        huge.0.truncate(1);
        for _ in 0..3 {
            huge.invalid(&Path::new("a"), "x".repeat(MAX_BYTES / 4), "");
        }
        assert_eq!(huge.0.len(), 3, "what was taken away leaves room");
    }
}
