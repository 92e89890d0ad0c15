//! exec and attach: a command's stdio, its terminal's size, and last how it ended.

mod channels;
mod spdy;

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use gantry_api::status::StatusError;
use gantry_rpc::node::{
    AttachOptions, ExecOptions, StreamFrame, TerminalSize, open_stream, stream_frame::Frame,
};
use http::{Request, Response};
use serde_json::{Value, json};

use super::upgrade::{Known, Transport, agree};
use super::{failed, target};
use crate::context::Context;

const V5: &str = "v5.channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
const KNOWN: Known = Known {
    websocket: &[
        "",
        V5,
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "channel.k8s.io",
        "base64.channel.k8s.io",
    ],
    newest: &[V5],
    spdy: &["v4.channel.k8s.io", "v3.channel.k8s.io", V2],
};
/// How long a client may take to open the streams it announced.
const OPENING: Duration = Duration::from_secs(30);

/// A terminal's size takes about thirty bytes: what is as long is none, and read as JSON it would take many times as much.
const LONGEST_SIZE: usize = 1024;

/// Which streams a client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// How a command's end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// As a `Status` in JSON, whatever it is.
    Json,
    /// In words, and a success not at all.
    Words,
}

impl Verdict {
    /// Since version 4 of the protocols it is a `Status`.
    fn of(protocol: &str) -> Self {
        match protocol.starts_with("v4.") || protocol.starts_with("v5.") {
            true => Self::Json,
            false => Self::Words,
        }
    }

    /// What a client is told of a node's last frame.
    fn told(self, status: Bytes) -> Option<Bytes> {
        match self {
            Self::Json => Some(status),
            Self::Words => failed(&status).map(|(_, words)| words.into()),
        }
    }
}

/// Opens the stream to the node, then answers 101 and copies until either side ends.
pub(crate) async fn remote_command(
    context: &Context<'_>,
    subresource: &str,
    request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    let agreed = agree(request.method(), context.headers, &KNOWN)?;
    let (node, mut open) = target(context)?;
    let query = context.query;
    let tty = query.flag("tty");
    let wanted = Wanted {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        // A terminal has one output.
        stderr: query.flag("stderr") && !tty,
        tty,
    };
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(StatusError::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    open.kind = Some(match subresource {
        "attach" => open_stream::Kind::Attach(AttachOptions {
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
            tty,
        }),
        _ => {
            let command = query.all("command").to_vec();
            if command.is_empty() {
                return Err(StatusError::bad_request(
                    "you must specify at least 1 command for the container",
                ));
            }
            open_stream::Kind::Exec(ExecOptions {
                command,
                stdin: wanted.stdin,
                stdout: wanted.stdout,
                stderr: wanted.stderr,
                tty,
            })
        }
    });
    let stream = context
        .api
        .streams
        .open(&node, open)
        .await
        .map_err(StatusError::internal)?;
    let protocol = agreed.protocol;
    Ok(match agreed.transport {
        Transport::WebSocket => agreed.switch(request, move |connection| {
            channels::serve(connection, stream, wanted, protocol)
        }),
        Transport::Spdy => agreed.switch(request, move |connection| {
            spdy::serve(connection, stream, wanted, protocol)
        }),
    })
}

fn frame(frame: Frame) -> StreamFrame {
    StreamFrame {
        stream_id: String::new(),
        frame: Some(frame),
    }
}

/// A terminal's size as clients write it: `{"Width":80,"Height":24}`.
fn resize(size: &Value) -> Frame {
    let number = |field: &str| {
        size[field]
            .as_u64()
            .and_then(|value| u32::try_from(value).ok())
            .unwrap_or(0)
    };
    Frame::Resize(TerminalSize {
        width: number("Width"),
        height: number("Height"),
    })
}

/// The status of a command whose node went away.
fn lost() -> Bytes {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "InternalError",
        "message": "the connection to the node was lost", "code": 500,
    });
    status.to_string().into()
}
