//! Answers: status, headers and what is said, before they are written: see [`crate::encoder`].

use axum::body::Body;
use bytes::Bytes;
use gantry_api::status::{Details, StatusError};
use gantry_store::Revision;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

/// Characters of a refusal's message, and of each of its details, which repeat what the client sent: names are no longer.
const MAX_REFUSAL: usize = 512;
const MAX_DETAIL: usize = 256;

/// The beginning of a text.
pub(crate) fn cut(text: &str, characters: usize) -> &str {
    let end = text.char_indices().nth(characters);
    end.map_or(text, |(end, _)| text.get(..end).unwrap_or_default())
}

/// A refusal that repeats no more of the user's name, the path and the headers than names are long: whoever may do nothing
/// must not make answers of any size.
pub(crate) fn shortened(error: &StatusError) -> StatusError {
    let details = error.details().map(|details| Details {
        name: cut(&details.name, MAX_DETAIL).to_owned(),
        group: cut(&details.group, MAX_DETAIL).to_owned(),
        kind: cut(&details.kind, MAX_DETAIL).to_owned(),
        ..details.clone()
    });
    let message = cut(error.message(), MAX_REFUSAL);
    StatusError::new(error.code(), error.reason(), message, details)
}

/// An answer to a request: what is said, before it is known how the client wants to read it.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) content: Content,
}

/// What an answer says.
pub(crate) enum Content {
    /// An object of the request's resource, as it is stored; at revision 0 it is not.
    Stored { value: Bytes, revision: Revision },
    /// A JSON document.
    Document(Value),
    /// Written already, as the headers say.
    Written(Body),
}

impl Answer {
    fn new(status: StatusCode, content: Content) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            content,
        }
    }

    /// 200 with an object of the request's resource.
    pub(crate) fn object(value: &Bytes, revision: Revision) -> Self {
        let value = value.clone();
        Self::new(StatusCode::OK, Content::Stored { value, revision })
    }

    /// 201 with an object of the request's resource; revision 0 is a dry run.
    pub(crate) fn created(value: &Bytes, revision: Revision) -> Self {
        let value = value.clone();
        Self::new(StatusCode::CREATED, Content::Stored { value, revision })
    }

    /// 200 with a JSON document.
    pub(crate) fn value(value: &Value) -> Self {
        Self::value_with(StatusCode::OK, value)
    }

    /// Any status with a JSON document.
    pub(crate) fn value_with(status: StatusCode, value: &Value) -> Self {
        Self::new(status, Content::Document(value.clone()))
    }

    /// 200 with what is written in a media type already, perhaps as it is read.
    pub(crate) fn written(content_type: HeaderValue, body: impl Into<Body>) -> Self {
        let mut answer = Self::new(StatusCode::OK, Content::Written(body.into()));
        answer.headers.insert(header::CONTENT_TYPE, content_type);
        answer
    }

    /// Plain text.
    pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Self {
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        let text: String = text.into();
        let mut answer = Self::written(plain, text);
        answer.status = status;
        answer.headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        answer
    }

    /// A refusal.
    pub(crate) fn error(error: &StatusError) -> Self {
        let status =
            StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = Self::value_with(status, &error.to_value());
        let retry_after = error
            .details()
            .map_or(0, |details| details.retry_after_seconds);
        if retry_after > 0 {
            answer
                .headers
                .insert(header::RETRY_AFTER, HeaderValue::from(retry_after));
        }
        answer
    }

    /// What came of a request.
    pub(crate) fn of(result: Result<Self, StatusError>) -> Self {
        result.unwrap_or_else(|error| Self::error(&error))
    }

    /// The same answer under another media type.
    pub(crate) fn with_content_type(mut self, content_type: &'static str) -> Self {
        self.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        self
    }

    /// The same answer, which whoever passes it on may keep for an hour.
    pub(crate) fn kept_for_an_hour(mut self) -> Self {
        let kept = HeaderValue::from_static("public, max-age=3600");
        self.headers.insert(header::CACHE_CONTROL, kept);
        self
    }

    /// The same answer with warnings.
    pub(crate) fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        warning_headers(&mut self.headers, &warnings);
        self
    }
}

/// Characters that the warnings of an answer may have together, and each of them where they have more: clients read only so
/// much of headers.
const MAX_WARNINGS: usize = 4096;
const MAX_WARNING: usize = 256;

/// Warnings as headers.
fn warning_headers(headers: &mut HeaderMap, warnings: &[String]) {
    let mut told = std::collections::HashSet::new();
    let total: usize = warnings.iter().map(|warning| warning.chars().count()).sum();
    let longest = if total > MAX_WARNINGS {
        MAX_WARNING
    } else {
        MAX_WARNINGS
    };
    let mut room = MAX_WARNINGS;
    for warning in warnings.iter().filter(|warning| told.insert(*warning)) {
        let warning: String = warning.chars().take(longest).collect();
        let Some(left) = room.checked_sub(warning.chars().count()) else {
            return;
        };
        room = left;
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        // A warning that cannot be a header is left out rather than the answer.
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            headers.append(header::WARNING, value);
        }
    }
}
