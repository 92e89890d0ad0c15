//! exec and attach over WebSocket, in Kubernetes' channel protocols.
//!
//! Every message starts with a byte that names its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final status as JSON,
//! 4 terminal sizes as JSON. `v5` adds 255: the channel named by the next byte is closed. Protocols whose name starts
//! with `base64.` are not offered.

use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use gantry_api::status::StatusError;
use gantry_rpc::node::{
    AttachOptions, ExecOptions, StreamFrame, TerminalSize, open_stream, stream_frame,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};

use super::{NodeStream, NodeStreams, target};
use crate::context::Context;

const PROTOCOLS: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Whether a client asks for WebSocket.
fn is_websocket(headers: &HeaderMap) -> bool {
    let has = |name: header::HeaderName, wanted: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.to_ascii_lowercase().contains(wanted))
    };
    has(header::UPGRADE, "websocket") && has(header::CONNECTION, "upgrade")
}

/// The channel protocol both sides know; the newest first.
fn protocol(headers: &HeaderMap) -> Option<&'static str> {
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    PROTOCOLS
        .iter()
        .copied()
        .find(|known| offered.contains(known))
}

/// Opens the stream to the node, then answers 101 and copies until either side ends.
pub(crate) async fn upgrade(
    context: &Context<'_>,
    streams: &dyn NodeStreams,
    subresource: &str,
    mut request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    if request.method() != Method::GET && request.method() != Method::POST {
        return Err(StatusError::method_not_allowed());
    }
    if !is_websocket(context.headers) {
        return Err(StatusError::bad_request(
            "Upgrade request required: this server speaks exec over WebSocket (v5.channel.k8s.io, v4.channel.k8s.io)",
        ));
    }
    let Some(protocol) = protocol(context.headers) else {
        return Err(StatusError::bad_request(format!(
            "no known WebSocket subprotocol was offered; this server knows {}",
            PROTOCOLS.join(", ")
        )));
    };
    let accept = context
        .headers
        .get(header::SEC_WEBSOCKET_KEY)
        .map(|key| derive_accept_key(key.as_bytes()))
        .ok_or_else(|| StatusError::bad_request("the header Sec-WebSocket-Key is missing"))?;
    let (node, mut open) = target(context)?;
    let query = context.query;
    let tty = query.flag("tty");
    open.kind = Some(match subresource {
        "attach" => open_stream::Kind::Attach(AttachOptions {
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr") && !tty,
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
                stdin: query.flag("stdin"),
                stdout: query.flag("stdout"),
                stderr: query.flag("stderr") && !tty,
                tty,
            })
        }
    });
    let stream = streams
        .open(&node, open)
        .await
        .map_err(StatusError::internal)?;
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgraded.await {
            Ok(io) => {
                let socket =
                    WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
                copy(socket, stream).await;
            }
            Err(error) => tracing::debug!(%error, "the client left before the upgrade"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(
        header::SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(protocol),
    );
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    Ok(response)
}

fn channel(number: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(number);
    message.put_slice(bytes);
    Message::Binary(message.freeze())
}

/// What a client's message means for the node.
fn to_node(message: &Bytes) -> Option<stream_frame::Frame> {
    let (number, rest) = message.split_first()?;
    match *number {
        STDIN => Some(stream_frame::Frame::Stdin(message.slice(1..))),
        RESIZE => {
            let size: Value = serde_json::from_slice(rest).ok()?;
            let number = |field: &str| {
                size[field]
                    .as_u64()
                    .and_then(|value| u32::try_from(value).ok())
                    .unwrap_or(0)
            };
            Some(stream_frame::Frame::Resize(TerminalSize {
                width: number("Width"),
                height: number("Height"),
            }))
        }
        CLOSE if rest.first() == Some(&STDIN) => Some(stream_frame::Frame::CloseStdin(true)),
        _ => None,
    }
}

async fn copy<S>(socket: WebSocketStream<S>, stream: NodeStream)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let NodeStream {
        to_node: node,
        mut from_node,
    } = stream;
    let (mut outgoing, mut incoming) = socket.split();
    let input = tokio::spawn(async move {
        while let Some(Ok(message)) = incoming.next().await {
            let frame = match message {
                Message::Binary(bytes) => to_node(&bytes),
                Message::Text(text) => to_node(&Bytes::from(text)),
                Message::Close(_) => break,
                _ => None,
            };
            if let Some(frame) = frame {
                let frame = StreamFrame {
                    stream_id: String::new(),
                    frame: Some(frame),
                };
                if node.send(frame).await.is_err() {
                    break;
                }
            }
        }
    });
    let mut finished = false;
    while let Some(frame) = from_node.recv().await {
        let message = match frame.frame {
            Some(stream_frame::Frame::Stdout(bytes)) => channel(STDOUT, &bytes),
            Some(stream_frame::Frame::Stderr(bytes)) => channel(STDERR, &bytes),
            Some(stream_frame::Frame::Status(status)) => {
                finished = true;
                channel(STATUS, &status)
            }
            _ => continue,
        };
        if outgoing.send(message).await.is_err() || finished {
            break;
        }
    }
    if !finished {
        let lost = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "InternalError",
            "message": "the connection to the node was lost", "code": 500,
        });
        // The client may be gone as well.
        outgoing
            .send(channel(STATUS, lost.to_string().as_bytes()))
            .await
            .ok();
    }
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    outgoing.send(Message::Close(Some(close))).await.ok();
    input.abort();
}
