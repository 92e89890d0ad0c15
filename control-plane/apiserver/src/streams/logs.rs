//! `pods/log`: text as the container wrote it, as the body of an answer or over WebSocket.

use axum::body::Body;
use bytes::Bytes;
use futures::{Sink, SinkExt, StreamExt};
use gantry_api::field::{ErrorList, Path};
use gantry_api::names::NOT_NEGATIVE;
use gantry_api::status::StatusError;
use gantry_rpc::node::stream_frame::Frame;
use gantry_rpc::node::{LogOptions, OpenStream, StreamFrame, open_stream};
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;

use super::upgrade::{Known, agree};
use super::websocket::{Framing, accept, close};
use super::{Gone, NodeStream, failure, pings, pod};
use crate::context::Context;
use crate::response::Answer;

const KNOWN: Known = Known {
    websocket: &["", "binary.k8s.io", "base64.binary.k8s.io"],
    newest: &[],
    spdy: &[],
};

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

/// A log: what was there first, and the stream of what follows.
type Begun = (Option<Bytes>, NodeStream);

/// Opens the stream to the node, and waits for the first bytes: an error that comes before them is the answer. `None` where no
/// node has been chosen yet, so that nothing can have been written.
async fn begin(context: &Context<'_>) -> Result<Option<Begun>, StatusError> {
    let options = Options::read(context)?;
    let pod = pod(context)?;
    let container = pod.container(context)?;
    if !pod.has_node() {
        return Ok(None);
    }
    let (node, request) = pod.place(context)?;
    let mut request = OpenStream {
        container,
        ..request
    };
    let query = context.query;
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
    let first = loop {
        match stream.from_node.recv().await.and_then(|frame| frame.frame) {
            Some(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => break Some(bytes),
            Some(Frame::Status(status)) => match failure(&status) {
                Some(error) => return Err(error),
                None => break None,
            },
            Some(_) => {}
            None => break None,
        }
    };
    Ok(Some((first, stream)))
}

/// Answers with the text, or that there is none: 204. Errors that come after its first byte end it.
pub(crate) async fn logs(context: &Context<'_>) -> Result<Answer, StatusError> {
    let plain = HeaderValue::from_static("text/plain");
    let Some((first, stream)) = begin(context).await? else {
        let mut answer = Answer::written(plain, Body::empty());
        answer.status = StatusCode::NO_CONTENT;
        answer.headers.clear();
        return Ok(answer);
    };
    let Some(first) = first else {
        return Ok(Answer::written(plain, Body::empty()));
    };
    let keep_open = stream.to_node;
    let rest = ReceiverStream::new(stream.from_node).filter_map(move |frame| {
        // The sender lives as long as the body: dropping it tells the node that the client is gone.
        let _ = &keep_open;
        futures::future::ready(match frame.frame {
            Some(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => Some(bytes),
            _ => None,
        })
    });
    let body = futures::stream::once(futures::future::ready(first))
        .chain(rest)
        .map(Ok::<Bytes, std::io::Error>);
    Ok(Answer::written(plain, Body::from_stream(body)))
}

/// Switches to WebSocket and sends the text in messages, of which the first is empty: the connection stands. What a client
/// sends means nothing but that it is there.
pub(crate) async fn logs_over_websocket(
    context: &Context<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    context.query.check()?;
    // As for an answer's body: what was written through another server is seen here.
    context.api.catch_up().await?;
    let agreed = agree(request.method(), context.headers, &KNOWN)?;
    let framing = Framing::of(agreed.protocol);
    let Some((first, stream)) = begin(context).await? else {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    };
    Ok(agreed.switch(request, move |connection| {
        serve(connection, first, stream, framing)
    }))
}

async fn serve<T>(connection: T, first: Option<Bytes>, stream: NodeStream, framing: Framing)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Dropping the sender tells the node that the client is gone.
    let NodeStream {
        to_node: _keep_open,
        from_node,
    } = stream;
    let (mut outgoing, mut incoming) = accept(connection).await.split();
    let left = async {
        while let Some(Ok(message)) = incoming.next().await {
            if message.is_close() {
                return;
            }
        }
    };
    let text = async {
        // A client that has gone needs no end.
        if copy(&mut outgoing, first, from_node, framing).await.is_ok() {
            close(&mut outgoing).await;
        }
    };
    tokio::select! {
        () = text => {}
        () = left => {}
    }
}

/// Sends the text up to its end.
async fn copy(
    outgoing: &mut (impl Sink<Message> + Unpin),
    first: Option<Bytes>,
    mut from_node: mpsc::Receiver<StreamFrame>,
    framing: Framing,
) -> Result<(), Gone> {
    let stands = framing.message(Bytes::new());
    outgoing.send(stands).await.map_err(|_| Gone)?;
    let Some(first) = first else { return Ok(()) };
    let mut message = framing.message(first);
    let mut pings = pings();
    loop {
        outgoing.send(message).await.map_err(|_| Gone)?;
        message = tokio::select! {
            received = from_node.recv() => match received.and_then(|frame| frame.frame) {
                Some(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => framing.message(bytes),
                Some(Frame::Status(_)) | None => return Ok(()),
                Some(_) => Message::Ping(Bytes::new()),
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
    }
}

#[cfg(test)]
mod tests;
