//! Options of writes: how a body is read, and whether anything comes of it. They are checked before bodies are.

use gantry_api::decode::FieldValidation;
use gantry_api::field::{ErrorList, Path};
use gantry_api::status::StatusError;

use crate::request::Query;

/// Options of the API group that all of them belong to.
const GROUP: &str = "meta.k8s.io";
/// Bytes of a field manager's name.
const MAX_MANAGER: usize = 128;
/// The only sort of dry run there is.
const ALL: &str = "All";

/// CreateOptions, UpdateOptions and PatchOptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) validation: FieldValidation,
}

impl WriteOptions {
    /// Of a request's query; `kind` is what Kubernetes calls the options of the verb.
    pub(crate) fn read(query: &Query, kind: &str) -> Result<Self, StatusError> {
        let mut errors = ErrorList::default();
        if kind == "PatchOptions" && query.first("force").is_some() {
            let detail = "may not be specified for non-apply patch";
            errors.forbidden(&Path::new("force"), detail);
        }
        check_manager(query.get("fieldManager").unwrap_or_default(), &mut errors);
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let validation = match query.get("fieldValidation") {
            Some("Strict") => FieldValidation::Strict,
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                errors.not_supported(&Path::new("fieldValidation"), other, &supported);
                FieldValidation::Warn
            }
        };
        refuse(kind, errors)?;
        Ok(Self {
            dry_run,
            validation,
        })
    }
}

/// Refuses options with errors.
pub(crate) fn refuse(kind: &str, errors: ErrorList) -> Result<(), StatusError> {
    match errors.is_empty() {
        true => Ok(()),
        false => Err(StatusError::invalid_kind(GROUP, kind, "", errors)),
    }
}

/// Whether nothing may be stored.
pub(crate) fn dry_run(values: &[String], errors: &mut ErrorList) -> bool {
    if values.iter().any(|value| value != ALL) {
        errors.not_supported(&Path::new("dryRun"), values, &[ALL]);
    }
    !values.is_empty()
}

fn check_manager(manager: &str, errors: &mut ErrorList) {
    let path = Path::new("fieldManager");
    if manager.len() > MAX_MANAGER {
        errors.too_long(&path, MAX_MANAGER);
    }
    // What Go prints as it is: no control characters, and of blanks only the plain one.
    let is_plain = |letter: char| letter == ' ' || !(letter.is_control() || letter.is_whitespace());
    for (at, letter) in manager.char_indices().filter(|(_, one)| !is_plain(*one)) {
        let code = u32::from(letter);
        let detail = format!("invalid character U+{code:04X} (at position {at})");
        errors.invalid(&path, manager, &detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(query: &str, kind: &str) -> String {
        let error = WriteOptions::read(&Query::parse(Some(query)), kind).expect_err(query);
        error.message().to_owned()
    }

    #[test]
    fn every_option_is_checked_before_any_counts() {
        let read = |query: &str| WriteOptions::read(&Query::parse(Some(query)), "CreateOptions");
        let plain = WriteOptions {
            dry_run: false,
            validation: FieldValidation::Warn,
        };
        assert_eq!(read(""), Ok(plain));
        assert_eq!(read("force=true&fieldManager=a%20b"), Ok(plain));
        assert_eq!(
            refused("dryRun=", "CreateOptions"),
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"\"]: supported values: \"All\""
        );
        let dry_run = WriteOptions {
            dry_run: true,
            validation: FieldValidation::Strict,
        };
        assert_eq!(
            read("dryRun=All&dryRun=All&fieldValidation=Strict"),
            Ok(dry_run)
        );
        let several = format!(
            "dryRun=All&dryRun=x&fieldManager={}&fieldValidation=y",
            "m".repeat(129)
        );
        assert_eq!(
            refused(&several, "UpdateOptions"),
            "UpdateOptions.meta.k8s.io \"\" is invalid: [fieldManager: Too long: may not be more than 128 bytes, dryRun: Unsupported value: [\"All\",\"x\"]: supported values: \"All\", fieldValidation: Unsupported value: \"y\": supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"]"
        );
        assert_eq!(
            refused("force=false", "PatchOptions"),
            "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch"
        );
        assert_eq!(
            refused("fieldManager=a%0Ab", "CreateOptions"),
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)"
        );
    }
}
