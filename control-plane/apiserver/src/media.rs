//! Which representation a client accepts: the format, and the shape an object or list has in it.

use gantry_api::status::StatusError;
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue};

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
}

/// The shape a client asked for instead of whole objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Table,
    Metadata,
}

/// What a client wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Media {
    pub(crate) format: Format,
    pub(crate) shape: Option<Shape>,
}

/// One choice of an Accept header.
struct Choice<'a> {
    media_type: &'a str,
    parameters: Vec<&'a str>,
}

impl<'a> Choice<'a> {
    fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters
            .iter()
            .find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='))
    }

    fn quality(&self) -> f32 {
        self.parameter("q").map_or(1.0, |quality| {
            let quality = quality.parse().unwrap_or(0.0_f32);
            if quality.is_nan() { 0.0 } else { quality }
        })
    }

    fn format(&self) -> Option<Format> {
        match self.media_type {
            "application/json" | "*/*" | "application/*" => Some(Format::Json),
            "application/yaml" => Some(Format::Yaml),
            _ => None,
        }
    }

    /// What it names, if that is served.
    fn media(&self) -> Option<Media> {
        let format = self.format()?;
        let kind = (
            self.parameter("as"),
            self.parameter("g"),
            self.parameter("v"),
        );
        let shape = match kind {
            (None, ..) => None,
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) => Some(Shape::Table),
            (
                Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                Some("meta.k8s.io"),
                Some("v1"),
            ) => Some(Shape::Metadata),
            _ => return None,
        };
        Some(Media { format, shape })
    }
}

/// The choices, the preferred first; of equal ones the first.
fn choices(headers: &HeaderMap) -> Vec<Choice<'_>> {
    let accept = headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("*/*");
    let mut choices: Vec<Choice<'_>> = accept
        .split(',')
        .map(|choice| {
            let mut parts = choice.split(';').map(str::trim);
            Choice {
                media_type: parts.next().unwrap_or_default(),
                parameters: parts.collect(),
            }
        })
        .filter(|choice| choice.quality() > 0.0)
        .collect();
    choices.sort_by(|one, other| other.quality().total_cmp(&one.quality()));
    choices
}

/// All media types that are accepted, without parameters, the preferred first.
pub(crate) fn accepted(headers: &HeaderMap) -> Vec<&str> {
    let choices = choices(headers).into_iter();
    choices.map(|choice| choice.media_type).collect()
}

impl Media {
    /// Of an object or a list; a choice that is not known is skipped, as long as another follows.
    pub(crate) fn of_answer(headers: &HeaderMap) -> Result<Self, StatusError> {
        choices(headers)
            .iter()
            .find_map(Choice::media)
            .ok_or_else(|| {
                StatusError::not_acceptable(&[
                    "application/json",
                    "application/yaml",
                    "application/vnd.kubernetes.protobuf",
                ])
            })
    }

    /// Of a watch: what cannot be streamed is refused, although it could be collected.
    pub(crate) fn of_watch(headers: &HeaderMap) -> Result<Self, StatusError> {
        match Self::of_answer(headers) {
            Ok(media) if media.format == Format::Json => Ok(media),
            _ => Err(StatusError::not_acceptable(&[
                "application/json;stream=watch",
                "application/vnd.kubernetes.protobuf;stream=watch",
            ])),
        }
    }
}

impl Format {
    /// The format of documents that have no shapes; none where no known one is accepted.
    pub(crate) fn preferred(headers: &HeaderMap) -> Option<Self> {
        choices(headers).iter().find_map(Choice::format)
    }

    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(accept: &str) -> HeaderMap {
        let value = HeaderValue::from_str(accept).expect("a header");
        HeaderMap::from_iter([(ACCEPT, value)])
    }

    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

    #[test]
    fn the_preferred_representation_is_chosen() {
        let plain = |format| {
            Some(Media {
                format,
                shape: None,
            })
        };
        let table = Some(Media {
            format: Format::Json,
            shape: Some(Shape::Table),
        });
        for (accept, wanted) in [
            ("*/*", plain(Format::Json)),
            ("application/yaml", plain(Format::Yaml)),
            ("application/yaml, application/json", plain(Format::Yaml)),
            (
                "application/yaml;q=0.5, application/json",
                plain(Format::Json),
            ),
            (
                "application/json;q=0, application/yaml",
                plain(Format::Yaml),
            ),
            ("text/html, application/yaml", plain(Format::Yaml)),
            (&format!("{TABLE},application/json"), table),
            (
                "application/json;as=Nothing;v=v1;g=meta.k8s.io,*/*",
                plain(Format::Json),
            ),
            ("application/vnd.kubernetes.protobuf", None),
            ("text/html", None),
            ("", None),
        ] {
            let chosen = Media::of_answer(&accepting(accept)).ok();
            assert_eq!(chosen, wanted, "{accept}");
        }
    }

    #[test]
    fn what_cannot_be_streamed_is_refused_for_a_watch() {
        for accept in [
            "application/yaml",
            "application/yaml;stream=watch",
            "application/yaml, application/json",
            "application/yaml;as=Table;v=v1;g=meta.k8s.io",
            "application/vnd.kubernetes.protobuf;stream=watch",
            "text/event-stream",
        ] {
            let refused = Media::of_watch(&accepting(accept)).expect_err(accept);
            assert_eq!(refused.code(), 406);
            assert_eq!(
                refused.message(),
                "only the following media types are accepted: application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
            );
        }
        for accept in ["*/*", "application/json;stream=watch", TABLE] {
            Media::of_watch(&accepting(accept)).expect(accept);
        }
    }
}
