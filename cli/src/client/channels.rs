//! Connections on which an API server streams: WebSocket messages whose first byte names a channel, as exec, attach and
//! port-forward have them.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Sink, SinkExt, StreamExt};
use gantry_tls::Lifetime;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{ApiError, Call};

/// Names, where both sides have agreed on it, the channel of which nothing more comes.
pub(crate) const CLOSE: u8 = 255;
/// What is sent in one message, at most: each costs both sides and everyone between them a few system calls.
pub(crate) const PIECE: usize = 64 * 1024;
/// Messages on their way to the connection.
const QUEUE: usize = 8;
/// What stands between client and server may drop a connection that is silent.
const PING: Duration = Duration::from_secs(60);
/// The longest refusal that is read, in bytes.
const REFUSAL: usize = 1 << 20;

/// The connection has ended before its time.
#[derive(Debug, thiserror::Error)]
#[error("the connection was lost{0}")]
pub(crate) struct Lost(String);

/// An open connection.
pub(crate) struct Channels {
    /// What both have agreed on.
    pub(crate) protocol: &'static str,
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
}

/// The sending side, which clones share. Without any the connection is closed.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing(mpsc::Sender<Message>);

/// The receiving side.
pub(crate) struct Incoming(BoxStream<'static, Result<Message, Error>>);

/// Which of the protocols a server has agreed to, if it has understood the handshake.
fn agreed(headers: &HeaderMap, key: &str, protocols: &[&'static str]) -> Option<&'static str> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let expected = derive_accept_key(key.as_bytes());
    let accepted = text(header::SEC_WEBSOCKET_ACCEPT) == Some(expected.as_str());
    let named = text(header::SEC_WEBSOCKET_PROTOCOL);
    let mut protocols = protocols.iter().copied().filter(|_| accepted);
    protocols.find(|known| named == Some(*known))
}

impl Channels {
    /// Opens a connection, with one of these protocols, the preferred first. `own` is how long the client's certificate
    /// lasts.
    pub(crate) async fn open(
        client: &kube::Client,
        own: Option<Lifetime>,
        path: &str,
        query: &[(&str, &str)],
        protocols: &[&'static str],
    ) -> Result<Self, ApiError> {
        let call = Call {
            query,
            accept: "*/*",
            ..Call::get(path)
        };
        let mut request = call.request().map_err(ApiError::from)?;
        let (key, offered) = (generate_key(), protocols.join(", "));
        for (name, value) in [
            (header::CONNECTION, "Upgrade"),
            (header::UPGRADE, "websocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, key.as_str()),
            (header::SEC_WEBSOCKET_PROTOCOL, offered.as_str()),
        ] {
            let value = HeaderValue::from_str(value);
            let value = value.map_err(|error| ApiError::Other(error.to_string()))?;
            request.headers_mut().insert(name, value);
        }
        let answer = client.send(request.map(Body::from)).await;
        let answer = answer.map_err(|error| ApiError::new(error, own))?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(answer).await);
        }
        let Some(protocol) = agreed(answer.headers(), &key, protocols) else {
            return Err(ApiError::Other(format!(
                "the server has not agreed to stream by any of {offered}"
            )));
        };
        let upgraded = hyper::upgrade::on(answer).await;
        let upgraded = upgraded.map_err(|error| ApiError::Unreachable(error.to_string()))?;
        let socket = TokioIo::new(upgraded);
        Ok(Self::over(
            WebSocketStream::from_raw_socket(socket, Role::Client, None).await,
            protocol,
        ))
    }

    /// On a connection whose handshake is done.
    pub(crate) fn over<S>(socket: WebSocketStream<S>, protocol: &'static str) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sink, stream) = socket.split();
        let (outgoing, queue) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            // What is wrong is seen by the side that receives.
            write(sink, queue).await.ok();
        });
        Self {
            protocol,
            outgoing: Outgoing(outgoing),
            incoming: Incoming(stream.boxed()),
        }
    }
}

/// Sends what comes, as much at once as there is, and closes the connection when nobody can send any more.
async fn write(
    mut socket: impl Sink<Message, Error = Error> + Unpin,
    mut queue: mpsc::Receiver<Message>,
) -> Result<(), Error> {
    let mut pings = interval_at(Instant::now() + PING, PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = queue.recv() => message,
            _ = pings.tick() => Some(Message::Ping(Bytes::new())),
        };
        let Some(message) = message else { break };
        socket.feed(message).await?;
        while let Ok(message) = queue.try_recv() {
            socket.feed(message).await?;
        }
        socket.flush().await?;
    }
    socket.close().await
}

/// Why the server does not stream, in its own words.
async fn refusal(answer: Response<Body>) -> ApiError {
    let code = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), REFUSAL).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    match status["message"].as_str() {
        Some(message) => ApiError::Status {
            code,
            reason: status["reason"].as_str().unwrap_or("Unknown").to_owned(),
            message: message.to_owned(),
        },
        None => ApiError::Other(format!(
            "the server answers {code} where it should stream: {}",
            String::from_utf8_lossy(&body).trim()
        )),
    }
}

impl Outgoing {
    /// Sends a message; waits while the connection is full.
    pub(crate) async fn send(&self, channel: u8, bytes: &[u8]) -> Result<(), Lost> {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        self.put(Message::Binary(message.into())).await
    }

    /// Ends the whole connection.
    pub(crate) async fn close(&self) -> Result<(), Lost> {
        self.put(Message::Close(None)).await
    }

    async fn put(&self, message: Message) -> Result<(), Lost> {
        let sent = self.0.send(message).await;
        sent.map_err(|_| Lost(String::new()))
    }
}

impl Incoming {
    /// The next message: its channel, and what it carries. `None` when the server has closed the connection.
    pub(crate) async fn next(&mut self) -> Result<Option<(u8, Bytes)>, Lost> {
        while let Some(message) = self.0.next().await {
            match message.map_err(|error| Lost(format!(": {error}")))? {
                Message::Binary(bytes) => {
                    if let Some(channel) = bytes.first() {
                        return Ok(Some((*channel, bytes.slice(1..))));
                    }
                }
                Message::Close(_) => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of a connection.
    async fn pair() -> (Channels, WebSocketStream<tokio::io::DuplexStream>) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let ours = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        (Channels::over(ours, "test"), server)
    }

    #[tokio::test]
    async fn messages_carry_their_channel_both_ways() {
        let (channels, mut server) = pair().await;
        let Channels {
            outgoing,
            incoming: _incoming,
            ..
        } = channels;
        outgoing.send(4, b"size").await.expect("open");
        drop(outgoing);
        let first = server.next().await.expect("open").expect("a message");
        assert_eq!(first.into_data(), &b"\x04size"[..]);
        let last = server.next().await.expect("open").expect("a message");
        assert!(last.is_close(), "nobody can send any more: {last:?}");

        let (channels, mut server) = pair().await;
        let mut read = channels.incoming;
        for message in [
            Message::Ping(Bytes::new()),
            Message::Binary(Bytes::new()),
            Message::Binary(Bytes::from_static(b"\x01out")),
            Message::Close(None),
        ] {
            server.send(message).await.expect("open");
        }
        let next = read.next().await.expect("no fault");
        assert_eq!(next, Some((1, Bytes::from_static(b"out"))));
        assert_eq!(read.next().await.expect("no fault"), None);
    }
}
