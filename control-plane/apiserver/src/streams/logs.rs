//! `pods/log`: text as the container wrote it.

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use gantry_api::status::StatusError;
use gantry_rpc::node::{LogOptions, open_stream, stream_frame};
use http::StatusCode;
use tokio_stream::wrappers::ReceiverStream;

use super::{NodeStreams, failure, target};
use crate::context::Context;
use crate::response::Answer;

pub(crate) async fn logs(
    context: &Context<'_>,
    streams: &dyn NodeStreams,
) -> Result<Answer, StatusError> {
    let (node, mut request) = target(context)?;
    let query = context.query;
    let number = |name: &str| -> Result<Option<i64>, StatusError> {
        query
            .get(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    StatusError::bad_request(format!(
                        "strconv.ParseInt: parsing {text:?}: invalid syntax"
                    ))
                })
            })
            .transpose()
    };
    request.kind = Some(open_stream::Kind::Logs(LogOptions {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since_seconds: number("sinceSeconds")?,
        since_time: query.get("sinceTime").map(str::to_owned),
        tail_lines: number("tailLines")?,
        limit_bytes: number("limitBytes")?,
    }));
    let mut stream = streams
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
        return Ok(Answer::text(StatusCode::OK, "").with_content_type("text/plain"));
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
    let mut answer = Answer::text(StatusCode::OK, "").with_content_type("text/plain");
    answer.body = Body::from_stream(body);
    Ok(answer)
}
