//! `pods/log`: text as the container wrote it.

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use gantry_api::field::{ErrorList, Path};
use gantry_api::names::NOT_NEGATIVE;
use gantry_api::status::StatusError;
use gantry_rpc::node::{LogOptions, open_stream, stream_frame};
use http::HeaderValue;
use tokio_stream::wrappers::ReceiverStream;

use super::{failure, target};
use crate::context::Context;
use crate::response::Answer;

/// The numbers and the time of the query, checked as Kubernetes checks them.
struct Options {
    since_seconds: Option<i64>,
    since_time: Option<String>,
    tail_lines: Option<i64>,
    limit_bytes: Option<i64>,
}

impl Options {
    fn read(context: &Context<'_>) -> Result<Self, StatusError> {
        let query = context.query;
        let options = Self {
            since_seconds: query.number("sinceSeconds")?,
            since_time: query.get("sinceTime").map(str::to_owned),
            tail_lines: query.number("tailLines")?,
            limit_bytes: query.number("limitBytes")?,
        };
        if let Some(text) = &options.since_time
            && gantry_api::time::parse(text).is_none()
        {
            return Err(StatusError::bad_request(format!(
                "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
            )));
        }
        let mut errors = ErrorList::default();
        let mut at_least = |name: &str, value: Option<i64>, least: i64| {
            if let Some(value) = value.filter(|value| *value < least) {
                let detail = match least {
                    0 => NOT_NEGATIVE,
                    _ => "must be greater than 0",
                };
                errors.invalid(&Path::new(name), value, detail);
            }
        };
        at_least("tailLines", options.tail_lines, 0);
        at_least("limitBytes", options.limit_bytes, 1);
        at_least("sinceSeconds", options.since_seconds, 1);
        if options.since_seconds.is_some() && options.since_time.is_some() {
            let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.forbidden(&Path::new(""), detail);
        }
        match errors.is_empty() {
            true => Ok(options),
            false => {
                let kind = "PodLogOptions";
                Err(StatusError::invalid_kind("", kind, context.name(), errors))
            }
        }
    }
}

pub(crate) async fn logs(context: &Context<'_>) -> Result<Answer, StatusError> {
    let (node, mut request) = target(context)?;
    let query = context.query;
    let options = Options::read(context)?;
    request.kind = Some(open_stream::Kind::Logs(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since_seconds: options.since_seconds,
        since_time: options.since_time,
        tail_lines: options.tail_lines,
        limit_bytes: options.limit_bytes,
    }));
    let mut stream = context
        .api
        .streams
        .open(&node, request)
        .await
        .map_err(StatusError::internal)?;
    // An error that comes before the first byte is the answer; later ones end the text.
    let first = loop {
        match stream.from_node.recv().await.and_then(|frame| frame.frame) {
            Some(stream_frame::Frame::Stdout(bytes) | stream_frame::Frame::Stderr(bytes)) => {
                break Some(bytes);
            }
            Some(stream_frame::Frame::Status(status)) => match failure(&status) {
                Some(error) => return Err(error),
                None => break None,
            },
            Some(_) => {}
            None => break None,
        }
    };
    let Some(first) = first else {
        return Ok(Answer::written(
            HeaderValue::from_static("text/plain"),
            Body::empty(),
        ));
    };
    let keep_open = stream.to_node;
    let rest = ReceiverStream::new(stream.from_node).filter_map(move |frame| {
        // The sender lives as long as the body: dropping it tells the node that the client is gone.
        let _ = &keep_open;
        futures::future::ready(match frame.frame {
            Some(stream_frame::Frame::Stdout(bytes) | stream_frame::Frame::Stderr(bytes)) => {
                Some(bytes)
            }
            _ => None,
        })
    });
    let body = futures::stream::once(futures::future::ready(first))
        .chain(rest)
        .map(Ok::<Bytes, std::io::Error>);
    Ok(Answer::written(
        HeaderValue::from_static("text/plain"),
        Body::from_stream(body),
    ))
}
