//! Which options of lists and watches may stand together.

use gantry_api::field::{ErrorList, Path};
use gantry_api::status::StatusError;

use crate::request::Query;

const NOT_OLDER_THAN: &str = "NotOlderThan";

fn refuse(errors: ErrorList) -> Result<(), StatusError> {
    match errors.is_empty() {
        true => Ok(()),
        false => Err(StatusError::invalid_kind(
            "meta.k8s.io",
            "ListOptions",
            "",
            errors,
        )),
    }
}

/// Of a list.
pub(super) fn check(query: &Query) -> Result<(), StatusError> {
    let mut errors = ErrorList::default();
    let path = Path::new("resourceVersionMatch");
    let version = query.get("resourceVersion");
    if let Some(how) = query.get("resourceVersionMatch") {
        if version.is_none() {
            errors.forbidden(
                &path,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            );
        }
        if query.get("continue").is_some() {
            errors.forbidden(
                &path,
                "resourceVersionMatch is forbidden when continue is provided",
            );
        }
        if !["Exact", NOT_OLDER_THAN].contains(&how) {
            errors.not_supported(&path, how, &["Exact", NOT_OLDER_THAN, ""]);
        }
        if how == "Exact" && version == Some("0") {
            errors.forbidden(
                &path,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            );
        }
    }
    if query.first("sendInitialEvents").is_some() {
        errors.forbidden(
            &Path::new("sendInitialEvents"),
            "sendInitialEvents is forbidden for list",
        );
    }
    refuse(errors)
}

/// Of a watch.
pub(in crate::verbs) fn check_watch(query: &Query) -> Result<(), StatusError> {
    let mut errors = ErrorList::default();
    let path = Path::new("resourceVersionMatch");
    let sends = query.first("sendInitialEvents").is_some();
    let how = query.get("resourceVersionMatch");
    if sends && how != Some(NOT_OLDER_THAN) {
        errors.forbidden(
            &path,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    if let Some(how) = how {
        if !sends {
            errors.forbidden(
                &path,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if how != NOT_OLDER_THAN {
            errors.not_supported(&path, how, &[NOT_OLDER_THAN]);
        }
        if query.get("continue").is_some() {
            errors.forbidden(
                &path,
                "resourceVersionMatch is forbidden when continue is provided",
            );
        }
    }
    refuse(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<(), StatusError>) -> Vec<String> {
        let Err(error) = result else {
            return Vec::new();
        };
        assert_eq!(error.code(), 422);
        let causes = error.details().expect("details").causes.iter();
        causes
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let list = |query: &str| refused(check(&Query::parse(Some(query))));
        assert_eq!(
            list("resourceVersion=5&resourceVersionMatch=Exact"),
            [""; 0]
        );
        assert_eq!(
            list("sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
            [
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"
            ]
        );
        assert_eq!(
            list("continue=x&resourceVersion=1&resourceVersionMatch=Odd").len(),
            2
        );
        assert_eq!(
            list("resourceVersion=0&resourceVersionMatch=Exact").len(),
            1
        );
        let watch = |query: &str| refused(check_watch(&Query::parse(Some(query))));
        assert_eq!(
            watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan"),
            [""; 0]
        );
        assert_eq!(
            watch("sendInitialEvents=false"),
            [
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            ]
        );
        assert_eq!(
            watch("resourceVersionMatch=Exact"),
            [
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                "resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\""
            ]
        );
    }
}
