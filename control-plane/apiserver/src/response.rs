//! Answers: status, headers and body, before they become HTTP.

use axum::body::Body;
use bytes::Bytes;
use gantry_api::kind::ResourceInfo;
use gantry_api::status::{Details, StatusError};
use gantry_store::Revision;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use crate::codec;
use crate::context::warning_headers;

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

/// An answer to a request.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
}

impl Answer {
    fn json(status: StatusCode, body: impl Into<Body>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        Self {
            status,
            headers,
            body: body.into(),
        }
    }

    /// 200 with an object's bytes and the revision spliced in.
    pub(crate) fn object(info: &ResourceInfo, value: &[u8], revision: Revision) -> Self {
        Self::json(StatusCode::OK, codec::object_bytes(info, value, revision))
    }

    /// 201 with an object's bytes; revision 0 is a dry run.
    pub(crate) fn created(info: &ResourceInfo, value: &[u8], revision: Revision) -> Self {
        let bytes = match revision {
            Revision(0) => match codec::decode(info, value) {
                Ok(object) => Bytes::from(object.to_string()),
                Err(error) => return Self::error(&error),
            },
            _ => codec::object_bytes(info, value, revision),
        };
        Self::json(StatusCode::CREATED, bytes)
    }

    /// 200 with a JSON document.
    pub(crate) fn value(value: &Value) -> Self {
        Self::json(StatusCode::OK, value.to_string())
    }

    /// Any status with a JSON document.
    pub(crate) fn value_with(status: StatusCode, value: &Value) -> Self {
        Self::json(status, value.to_string())
    }

    /// 200 with JSON text.
    pub(crate) fn bytes(bytes: Bytes) -> Self {
        Self::json(StatusCode::OK, bytes)
    }

    /// 200 with JSON that is made as it is read.
    pub(crate) fn streamed(body: Body) -> Self {
        Self::json(StatusCode::OK, body)
    }

    /// Plain text.
    pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        Self {
            status,
            headers,
            body: Body::from(text.into()),
        }
    }

    /// A refusal.
    pub(crate) fn error(error: &StatusError) -> Self {
        let status =
            StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = Self::json(status, error.to_value().to_string());
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

    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}
