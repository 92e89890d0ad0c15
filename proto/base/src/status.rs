//! Failures as Kubernetes words them: the `Status` object a client receives instead of what it asked for.

use std::collections::HashSet;

use crate::json::Members;
use serde_json::{Map, Value, json};

use crate::field::{ErrorList, ErrorType, aggregate};
use crate::resource::ResourceInfo;

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable, e.g. `FieldValueInvalid`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Path of the field; empty when none is meant.
    pub field: String,
}

/// The `details` of a Status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Object name.
    pub name: String,
    /// API group.
    pub group: String,
    /// Resource (or kind, for validation errors).
    pub kind: String,
    /// Object uid.
    pub uid: String,
    /// What was wrong, one by one.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_seconds: u32,
}

/// A refused request: HTTP code, reason and message of a Kubernetes `Status`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StatusError {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Box<Details>>,
}

/// `pods`, or `deployments.apps` outside the core group.
fn qualified(info: &ResourceInfo) -> String {
    qualify(&info.plural, &info.group)
}

fn qualify(plural: &str, group: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

fn of_resource(info: &ResourceInfo, name: &str) -> Option<Box<Details>> {
    Some(Box::new(Details {
        name: name.to_owned(),
        group: info.group.to_string(),
        kind: info.plural.to_string(),
        ..Details::default()
    }))
}

impl StatusError {
    /// Any code, reason and message; `details` as given.
    pub fn new(
        code: u16,
        reason: &'static str,
        message: impl Into<String>,
        details: Option<Details>,
    ) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: details.map(Box::new),
        }
    }

    /// 400 BadRequest.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message, None)
    }

    /// 404 for an object: `pods "x" not found`.
    pub fn not_found(info: &ResourceInfo, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(info));
        Self {
            code: 404,
            reason: "NotFound",
            message,
            details: of_resource(info, name),
        }
    }

    /// 404 for a path or resource nobody serves.
    pub fn unknown_resource() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
            Some(Details::default()),
        )
    }

    /// 409: `pods "x" already exists`.
    pub fn already_exists(info: &ResourceInfo, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(info));
        Self {
            code: 409,
            reason: "AlreadyExists",
            message,
            details: of_resource(info, name),
        }
    }

    /// 409: `Operation cannot be fulfilled on pods "x": detail`.
    pub fn conflict(info: &ResourceInfo, name: &str, detail: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {detail}",
            qualified(info)
        );
        Self {
            code: 409,
            reason: "Conflict",
            message,
            details: of_resource(info, name),
        }
    }

    /// 409 for a write that carried an old resourceVersion.
    pub fn stale(info: &ResourceInfo, name: &str) -> Self {
        Self::conflict(
            info,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 for a failed delete precondition, which names the kind instead of the resource.
    pub fn precondition(info: &ResourceInfo, name: &str, detail: &str) -> Self {
        let kind = qualify(&info.kind, &info.group);
        let message = format!("Operation cannot be fulfilled on {kind} \"{name}\": {detail}");
        let details = Details {
            kind: info.kind.to_string(),
            group: info.group.to_string(),
            name: name.into(),
            ..Details::default()
        };
        Self::new(409, "Conflict", message, Some(details))
    }

    /// 422: `Pod "x" is invalid: [a, b]`, with one cause per error.
    pub fn invalid(info: &ResourceInfo, name: &str, errors: ErrorList) -> Self {
        Self::invalid_kind(&info.group, &info.kind, name, errors)
    }

    /// 422 for a kind that is no resource, such as `ListOptions.meta.k8s.io`.
    pub fn invalid_kind(group: &str, kind: &str, name: &str, errors: ErrorList) -> Self {
        let mut told = HashSet::with_capacity(errors.0.len());
        let mut words: Vec<String> = Vec::with_capacity(errors.0.len());
        let mut causes = Vec::with_capacity(errors.0.len());
        for error in &errors.0 {
            let text = error.to_string();
            if told.insert(text.clone()) {
                words.push(text);
            }
            causes.push(Cause {
                reason: reason_of(error.kind).to_owned(),
                message: error.message.clone(),
                field: error.path.to_string(),
            });
        }
        if errors.is_full() {
            words.push("and more: correct these first".to_owned());
        }
        let list = aggregate(&words);
        let message = format!("{} \"{name}\" is invalid: {list}", qualify(kind, group));
        let details = Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes,
            ..Details::default()
        };
        Self::new(422, "Invalid", message, Some(details))
    }

    /// 422 without naming anything: what a JSON patch that cannot be applied gets.
    pub fn unprocessable() -> Self {
        Self::new(
            422,
            "Invalid",
            "the server rejected our request due to an error in our request",
            Some(Details::default()),
        )
    }

    /// 403: `pods "x" is forbidden: detail`; without a name, `pods is forbidden: detail`.
    pub fn forbidden(info: &ResourceInfo, name: &str, detail: &str) -> Self {
        Self::forbidden_resource(&info.group, &info.plural, name, detail)
    }

    /// As [`StatusError::forbidden`], for a resource that may not exist.
    pub fn forbidden_resource(group: &str, plural: &str, name: &str, detail: &str) -> Self {
        let resource = qualify(plural, group);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {detail}"),
            (false, true) => format!("{resource} is forbidden: {detail}"),
            (false, false) => format!("{resource} \"{name}\" is forbidden: {detail}"),
        };
        let details = Details {
            name: name.into(),
            group: group.into(),
            kind: plural.into(),
            ..Details::default()
        };
        Self::new(403, "Forbidden", message, Some(details))
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized", None)
    }

    /// 405 for a verb the resource does not have.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message, Some(Details::default()))
    }

    /// 406: nothing the client accepts can be produced.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!(
            "only the following media types are accepted: {}",
            accepted.join(", ")
        );
        Self::new(406, "NotAcceptable", message, None)
    }

    /// 415: the body is in a format we do not read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message, None)
    }

    /// 415: the format of a patch is none that is served here; the router's words, which name no others.
    pub fn unsupported_patch() -> Self {
        let details = Some(Details::default());
        let message = "415: Unsupported Media Type";
        Self::new(415, "UnsupportedMediaType", message, details)
    }

    /// 410: the revision asked for has been compacted away.
    pub fn gone_expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message, None)
    }

    /// 413: the body is larger than `limit` bytes.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(413, "RequestEntityTooLarge", message, None)
    }

    /// 429: try again after some seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details {
            retry_after_seconds,
            ..Details::default()
        };
        Self::new(429, "TooManyRequests", message, Some(details))
    }

    /// 500: `Internal error occurred: detail`.
    pub fn internal(detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let cause = Cause {
            reason: String::new(),
            message: detail.clone(),
            field: String::new(),
        };
        let details = Details {
            causes: vec![cause],
            ..Details::default()
        };
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {detail}"),
            Some(details),
        )
    }

    /// 500 without a reason: an error Kubernetes did not classify.
    pub fn unclassified(message: impl Into<String>) -> Self {
        Self::new(500, "", message, None)
    }

    /// 504: `Timeout: detail`.
    pub fn timeout(detail: &str, retry_after_seconds: u32) -> Self {
        let details = Details {
            retry_after_seconds,
            ..Details::default()
        };
        Self::new(504, "Timeout", format!("Timeout: {detail}"), Some(details))
    }

    /// 504: the revision asked for has not been reached.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let cause = Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        };
        let details = Details {
            causes: vec![cause],
            retry_after_seconds: 1,
            ..Details::default()
        };
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        Self::new(504, "Timeout", message, Some(details))
    }

    /// 503: nobody can answer at the moment.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message, None)
    }

    /// HTTP status code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// Machine-readable reason; empty when there is none.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The words for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The details, if any.
    pub fn details(&self) -> Option<&Details> {
        self.details.as_deref()
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            *status.member(&["reason"]) = self.reason.into();
        }
        if let Some(details) = &self.details {
            *status.member(&["details"]) = details.to_value();
        }
        status
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut object = Map::new();
        for (key, text) in [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ] {
            if !text.is_empty() {
                object.insert(key.to_owned(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_value).collect();
            object.insert("causes".to_owned(), Value::Array(causes));
        }
        if self.retry_after_seconds > 0 {
            object.insert(
                "retryAfterSeconds".to_owned(),
                self.retry_after_seconds.into(),
            );
        }
        Value::Object(object)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut object = Map::new();
        for (key, text) in [
            ("reason", &self.reason),
            ("message", &self.message),
            ("field", &self.field),
        ] {
            if !text.is_empty() {
                object.insert(key.to_owned(), text.as_str().into());
            }
        }
        Value::Object(object)
    }
}

/// The cause's `reason` for an error type.
fn reason_of(kind: ErrorType) -> &'static str {
    match kind {
        ErrorType::Required => "FieldValueRequired",
        ErrorType::Invalid => "FieldValueInvalid",
        ErrorType::NotSupported => "FieldValueNotSupported",
        ErrorType::Duplicate => "FieldValueDuplicate",
        ErrorType::Forbidden => "FieldValueForbidden",
        ErrorType::TooLong => "FieldValueTooLong",
        ErrorType::TooMany => "FieldValueTooMany",
        ErrorType::NotFound => "FieldValueNotFound",
        ErrorType::TypeInvalid => "FieldValueTypeInvalid",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    #[test]
    fn several_errors_are_listed_and_repeats_are_told_once() {
        let mut errors = ErrorList::default();
        errors.required(&Path::new("spec"), "");
        errors.required(&Path::new("spec"), "");
        errors.invalid(&Path::new("a").index(1), -1, "must be positive");
        let error = StatusError::invalid_kind("apps", "Deployment", "d", errors);
        assert_eq!(
            error.message(),
            "Deployment.apps \"d\" is invalid: [spec: Required value, a[1]: Invalid value: -1: must be positive]"
        );
        assert_eq!(
            error.to_value()["details"]["causes"]
                .as_array()
                .map(Vec::len),
            Some(3)
        );
    }

    #[test]
    fn forbidden_names_what_it_knows() {
        let with = StatusError::forbidden_resource("batch", "jobs", "x", "no");
        assert_eq!(with.message(), "jobs.batch \"x\" is forbidden: no");
        let path = StatusError::forbidden_resource(
            "",
            "",
            "",
            "User \"jane\" cannot get path \"/metrics\"",
        );
        assert_eq!(
            path.message(),
            "forbidden: User \"jane\" cannot get path \"/metrics\""
        );
        assert_eq!(path.to_value()["details"], serde_json::json!({}));
    }
}
