//! The one encoder: what an answer says, written as its client wants to read it.

mod pretty;
mod shapes;

use axum::body::Body;
use bytes::Bytes;
use gantry_api::protobuf;
use gantry_api::schema::TypeSchema;
use gantry_api::status::StatusError;
use gantry_api::yaml;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde_json::Value;

pub(crate) use pretty::{pretty, pretty_body};
pub(crate) use shapes::{
    check_object_policy, column_definitions, not_a_single_object, partial, row,
};

use crate::codec;
use crate::context::Context;
use crate::media::{FORMATS, Format, Media, PLAIN};
use crate::registry::Resource;
use crate::request::Query;
use crate::response::{Answer, Content};

/// Writes the answer to a request for a resource.
pub(crate) fn encode(context: &Context<'_>, answer: Answer) -> Response<Body> {
    if !answer.status.is_success() {
        return refusal(answer, context.headers, context.query);
    }
    let Answer {
        status,
        headers,
        content,
    } = answer;
    let written = match content {
        Content::Written(body) => return respond(status, headers, None, body),
        Content::Stored { value, revision } if context.media == PLAIN => {
            codec::object_bytes(context.resource, &value, revision)
                .map(|bytes| (Format::Json.content_type(), bytes))
        }
        Content::Stored { value, revision } => codec::decode_at(context.resource, &value, revision)
            .and_then(|object| written(context, object)),
        Content::Document(object) => written(context, object),
    };
    match written {
        Ok((content_type, bytes)) => respond(status, headers, Some(content_type), bytes),
        Err(error) => refusal(Answer::error(&error), context.headers, context.query),
    }
}

/// An object in the shape and format that the client asked for.
fn written(context: &Context<'_>, object: Value) -> Result<(HeaderValue, Bytes), StatusError> {
    let object = match context.media.shape {
        Some(shape) => shapes::shaped(context, shape, object)?,
        None => object,
    };
    Ok(text_or_message(
        &object,
        context.media,
        Some(context.resource),
    ))
}

/// Writes an answer that has no resource.
pub(crate) fn document(answer: Answer, media: Media) -> Response<Body> {
    let Answer {
        status,
        headers,
        content,
    } = answer;
    match content {
        Content::Written(body) => respond(status, headers, None, body),
        Content::Document(value) => {
            let (content_type, bytes) = text_or_message(&value, media, None);
            respond(status, headers, Some(content_type), bytes)
        }
        // Nobody makes one without a resource that would say what it is.
        Content::Stored { value, .. } => {
            respond(status, headers, Some(Format::Json.content_type()), value)
        }
    }
}

impl Answer {
    /// Written as JSON, where nobody has negotiated anything else.
    pub(crate) fn into_response(self) -> Response<Body> {
        document(self, PLAIN)
    }
}

/// Writes a refusal: in whatever the client reads, and as JSON where it reads nothing that there is.
pub(crate) fn refusal(answer: Answer, headers: &HeaderMap, query: &Query) -> Response<Body> {
    let media = Media::of_document(headers, FORMATS).unwrap_or(PLAIN);
    document(answer, media.prettier(headers, query))
}

fn respond(
    status: StatusCode,
    headers: HeaderMap,
    content_type: Option<HeaderValue>,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if let Some(content_type) = content_type {
        // Some answers have one of their own.
        let types = response.headers_mut().entry(header::CONTENT_TYPE);
        types.or_insert(content_type);
    }
    response
}

/// A document in a format. What has no message, or cannot be written as YAML, is JSON.
fn text_or_message(
    value: &Value,
    media: Media,
    resource: Option<&Resource>,
) -> (HeaderValue, Bytes) {
    let json = || {
        let text = Bytes::from(value.to_string());
        let text = if media.pretty { pretty(&text) } else { text };
        (Format::Json, text)
    };
    let (format, bytes) = match media.format {
        Format::Json => json(),
        Format::Yaml => (Format::Yaml, Bytes::from(yaml::to_string(value))),
        Format::Protobuf => schema_of(value, resource)
            .and_then(|schema| protobuf::from_json(value, schema))
            .map_or_else(json, |message| (Format::Protobuf, Bytes::from(message))),
    };
    (format.content_type(), bytes)
}

/// The type of an object that may be written as a message.
fn schema_of(value: &Value, resource: Option<&Resource>) -> Option<&'static TypeSchema> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("v1", "Status") => Some(TypeSchema::of::<Status>()),
        ("autoscaling/v1", "Scale") => Some(TypeSchema::of::<Scale>()),
        (version, kind) => {
            let resource = resource?;
            let info = resource.info();
            let own = info.kind == kind && info.api_version() == version;
            own.then(|| resource.kind.schema())
        }
    }
}
