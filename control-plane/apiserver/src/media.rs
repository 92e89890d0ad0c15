//! The one negotiation: which representation a client accepts, as the `Accept` header says it and as Kubernetes reads it.

use gantry_api::status::{Details, StatusError};
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, header};

use crate::request::Query;

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
    /// Kubernetes' envelope around the object's message.
    Protobuf,
}

/// What an object or list is turned into before it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Table,
    Metadata,
    /// The metadata of the objects of a list.
    MetadataList,
}

/// The shape a client asked for instead of whole objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) form: Form,
    /// `meta.k8s.io/v1`, or its beta.
    pub(crate) api_version: &'static str,
}

/// What a client wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Media {
    pub(crate) format: Format,
    pub(crate) shape: Option<Shape>,
    /// With line breaks and indentation.
    pub(crate) pretty: bool,
}

/// Whole objects as JSON, which need not be decoded.
pub(crate) const PLAIN: Media = Media {
    format: Format::Json,
    shape: None,
    pretty: false,
};

/// What all objects and lists are offered in, the preferred first.
pub(crate) const FORMATS: &[Format] = &[Format::Json, Format::Yaml, Format::Protobuf];

/// What is written as text.
pub(crate) const TEXTS: &[Format] = &[Format::Json, Format::Yaml];

/// What events are offered in.
const STREAMS: &[&str] = &[
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];

/// Characters of a header that are looked at, and clauses: a longer one is cut.
const MAX_ACCEPT: usize = 4096;
const MAX_CLAUSES: usize = 64;

/// One clause of an Accept header.
struct Clause<'a> {
    main: &'a str,
    sub: &'a str,
    quality: f32,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    /// As Go's autoneg does it: what it cannot read is left out.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.trim().split(';');
        let (main, sub) = match parts.next()?.split_once('/') {
            Some((main, sub)) => (main.trim(), sub.trim()),
            None if parts_is_star(text) => ("*", "*"),
            None => return None,
        };
        if sub.contains('/') {
            return None;
        }
        let mut clause = Self {
            main,
            sub,
            quality: 1.0,
            parameters: Vec::new(),
        };
        for part in parts {
            let Some((name, value)) = part.split_once('=') else {
                continue;
            };
            let (name, value) = (name.trim(), value.trim());
            if value.is_empty() || value.contains('=') {
                continue;
            }
            if name == "q" {
                let quality = value.parse().unwrap_or(0.0_f32);
                clause.quality = if quality.is_nan() { 0.0 } else { quality };
            } else {
                clause.parameters.push((name, value));
            }
        }
        Some(clause)
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        let mut found = self.parameters.iter().rev();
        found
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }

    fn names(&self, format: Format) -> bool {
        let (main, sub) = format.media_type().split_once('/').unwrap_or_default();
        match (self.main, self.sub) {
            ("*", "*") => true,
            (own, "*") => own == main,
            own => own == (main, sub),
        }
    }

    /// What it asks for in a format; none where that is not offered.
    fn media(&self, format: Format) -> Option<Media> {
        let streams = self.parameter("stream");
        if streams.is_some_and(|stream| stream != "watch" || format == Format::Yaml)
            || self.parameter("sv").is_some_and(|version| version != "v1")
        {
            return None;
        }
        let target = ["as", "g", "v"].map(|name| self.parameter(name));
        let shape = match target {
            [None, None, None] => None,
            [Some(kind), Some("meta.k8s.io"), Some(version)] => {
                Some(Shape::named(kind, version, format)?)
            }
            _ => return None,
        };
        Some(Media {
            format,
            shape,
            pretty: self.parameter("pretty") == Some("1"),
        })
    }
}

/// A type without a subtype is read where it stands for everything.
fn parts_is_star(text: &str) -> bool {
    text.split(';')
        .next()
        .is_some_and(|main| main.trim() == "*")
}

impl Shape {
    fn named(kind: &str, version: &str, format: Format) -> Option<Self> {
        let api_version = match version {
            "v1" => "meta.k8s.io/v1",
            "v1beta1" => "meta.k8s.io/v1beta1",
            _ => return None,
        };
        let form = match kind {
            // It has no message.
            "Table" if format != Format::Protobuf => Form::Table,
            "PartialObjectMetadata" => Form::Metadata,
            "PartialObjectMetadataList" => Form::MetadataList,
            _ => return None,
        };
        Some(Self { form, api_version })
    }
}

/// What the header says; an empty one says nothing.
fn accept(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(ACCEPT)?.to_str().ok()?;
    let end = text.len().min(MAX_ACCEPT);
    // A header's text is ASCII.
    text.get(..end).filter(|text| !text.is_empty())
}

/// The clauses, the preferred first; of equal ones those that say more, then the first.
fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut clauses: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(Clause::parse)
        .take(MAX_CLAUSES)
        .collect();
    clauses.sort_by(|one, other| {
        let vague = |clause: &Clause<'_>| (clause.main == "*", clause.sub == "*");
        other
            .quality
            .total_cmp(&one.quality)
            .then_with(|| vague(one).cmp(&vague(other)))
    });
    clauses
}

pub(crate) fn not_acceptable() -> StatusError {
    StatusError::not_acceptable(
        &FORMATS
            .iter()
            .map(|format| format.media_type())
            .collect::<Vec<_>>(),
    )
}

/// All media types that are accepted, type and subtype, the preferred first; any where the client says nothing.
pub(crate) fn accepted(headers: &HeaderMap) -> Vec<(&str, &str)> {
    let Some(accept) = accept(headers) else {
        return vec![("*", "*")];
    };
    let clauses = clauses(accept).into_iter();
    clauses.map(|clause| (clause.main, clause.sub)).collect()
}

impl Media {
    /// Of an object or a list: the first clause that can be had.
    pub(crate) fn of_answer(headers: &HeaderMap) -> Result<Self, StatusError> {
        Self::among(headers, FORMATS)
    }

    /// As [`Self::of_answer`], of what is written in some formats only.
    fn among(headers: &HeaderMap, formats: &[Format]) -> Result<Self, StatusError> {
        let Some(accept) = accept(headers) else {
            return Ok(PLAIN);
        };
        clauses(accept)
            .iter()
            .find_map(|clause| {
                let named = formats.iter().filter(|format| clause.names(**format));
                named.copied().find_map(|format| clause.media(format))
            })
            .ok_or_else(not_acceptable)
    }

    /// Of a list, which is written while it is read: a message would have to tell its length first. Who accepts something
    /// else beside messages gets that.
    pub(crate) fn of_list(headers: &HeaderMap) -> Result<Self, StatusError> {
        match Self::of_answer(headers)? {
            media if media.format == Format::Protobuf => Self::among(headers, TEXTS),
            media => Ok(media),
        }
    }

    /// Of a watch: what cannot be streamed is refused, although it could be collected.
    pub(crate) fn of_watch(headers: &HeaderMap) -> Result<Self, StatusError> {
        let media = Self::of_list(headers).ok();
        let streamed = media.filter(|media| media.format == Format::Json);
        let media = streamed.ok_or_else(|| StatusError::not_acceptable(STREAMS))?;
        Ok(Self {
            pretty: false,
            ..media
        })
    }

    /// Of what has no shapes: a clause that asks for one is passed over. None where none is left.
    pub(crate) fn of_document(headers: &HeaderMap, formats: &[Format]) -> Option<Self> {
        let Some(accept) = accept(headers) else {
            return Some(PLAIN);
        };
        clauses(accept).iter().find_map(|clause| {
            let named = formats.iter().filter(|format| clause.names(**format));
            let media = named.copied().find_map(|format| clause.media(format));
            media.filter(|media| media.shape.is_none())
        })
    }

    /// Whether discovery is to be told in one document, and in which format.
    pub(crate) fn of_aggregated(headers: &HeaderMap) -> Option<Format> {
        let clauses = clauses(accept(headers)?);
        let wanted = clauses.iter().find_map(|clause| {
            let format = TEXTS.iter().find(|format| clause.names(**format))?;
            match ["as", "g", "v"].map(|name| clause.parameter(name)) {
                [None, None, None] => Some(None),
                [
                    Some("APIGroupDiscoveryList"),
                    Some("apidiscovery.k8s.io"),
                    Some("v2"),
                ] => Some(Some(*format)),
                _ => None,
            }
        });
        wanted.flatten()
    }

    /// As the client's query and program ask for it too.
    pub(crate) fn prettier(self, headers: &HeaderMap, query: &Query) -> Self {
        Self {
            pretty: self.pretty || is_read_by_people(headers, query),
            ..self
        }
    }
}

/// Whether the answer is to be read as it stands: by the query, or for browsers and command line tools.
fn is_read_by_people(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(asked) = query.get("pretty") {
        return ["1", "t", "T", "TRUE", "true", "True"].contains(&asked);
    }
    let program = headers
        .get(USER_AGENT)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let people = [&b"curl"[..], b"Wget", b"Mozilla/5.0"];
    people.iter().any(|start| program.starts_with(start))
}

/// Refuses a client that accepts nothing a route produces, before anything is looked at; parameters and qualities do not
/// count here. `produces` is what there is beside what all objects have.
pub(crate) fn check_route(
    headers: &HeaderMap,
    method: &Method,
    produces: &[&str],
) -> Result<(), StatusError> {
    let Some(accept) = accept(headers) else {
        return Ok(());
    };
    let formats = FORMATS.iter().map(|format| format.media_type());
    let offered: Vec<&str> = formats.chain(produces.iter().copied()).collect();
    let named = accept.split(',').map(|clause| {
        let name = clause.split(';').next().unwrap_or_default();
        name.trim()
    });
    for name in named {
        if name == "*/*" || offered.contains(&name) {
            return Ok(());
        }
    }
    let empty = headers
        .get(header::CONTENT_LENGTH)
        .is_none_or(|length| length.as_bytes() == b"0");
    let changes = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    let (code, reason, words) = match changes && empty {
        true => (415, "UnsupportedMediaType", "415: Unsupported Media Type"),
        false => (406, "NotAcceptable", "406: Not Acceptable"),
    };
    let message = format!(
        "{words}\n\nAvailable representations: {}",
        offered.join(", ")
    );
    Err(StatusError::new(
        code,
        reason,
        message,
        Some(Details::default()),
    ))
}

/// What lists produce beside what all objects do: they may be watched.
pub(crate) const OF_LISTS: &[&str] = STREAMS;

impl Format {
    /// The text format of documents that have no shapes; none where no known one is accepted.
    pub(crate) fn preferred(headers: &HeaderMap) -> Option<Self> {
        Media::of_document(headers, TEXTS).map(|media| media.format)
    }

    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    pub(crate) const fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(self.media_type())
    }
}

#[cfg(test)]
mod tests;
