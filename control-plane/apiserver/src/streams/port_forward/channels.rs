//! Port-forward over WebSocket channels: for the n-th port of the query, channel 2n carries its data and 2n + 1 its
//! error. Each channel begins with the port as two bytes, little-endian. Where both sides have agreed on it, channel 255
//! names a data channel in one direction of which nothing more comes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use gantry_api::status::StatusError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::{Client, Ports, forward};
use crate::streams::websocket::{Framing, accept, close, payload};
use crate::streams::{Gone, Input, pieces, pings};

/// Names the channel that has ended.
const CLOSE: u8 = 255;
/// Pieces that one channel holds before the connection waits for it.
const QUEUE: usize = 16;

/// The ports of a query: repeated, or separated by commas.
pub(super) fn ports(written: &[String]) -> Result<Vec<u16>, StatusError> {
    let mut ports = Vec::new();
    for text in written.iter().flat_map(|value| value.split(',')) {
        match text.trim().parse() {
            Ok(port @ 1..=u16::MAX) => ports.push(port),
            _ => {
                return Err(StatusError::bad_request(format!(
                    "the query parameter \"ports\" names \"{text}\", which is not a port"
                )));
            }
        }
    }
    match ports.len() {
        0 => Err(StatusError::bad_request(
            "query parameter \"ports\" is required",
        )),
        // Channels are numbered by a byte.
        1..=127 => Ok(ports),
        _ => Err(StatusError::bad_request(
            "query parameter \"ports\" names more than 127 ports",
        )),
    }
}

/// How the messages of one connection are written.
#[derive(Clone, Copy)]
pub(super) struct Dialect {
    pub(super) framing: Framing,
    /// The client says and understands when a direction has ended: [`CLOSE`].
    pub(super) ends: bool,
}

struct Channel {
    number: u8,
    dialect: Dialect,
    messages: mpsc::Sender<Message>,
}

#[async_trait]
impl Client for Channel {
    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        let message = self.dialect.framing.channel(self.number, &bytes);
        self.messages.send(message).await.map_err(|_| Gone)
    }

    async fn end(&self) -> Result<(), Gone> {
        if !self.dialect.ends {
            return Err(Gone);
        }
        let message = self.dialect.framing.channel(CLOSE, &[self.number]);
        self.messages.send(message).await.map_err(|_| Gone)
    }
}

/// Serves a connection until the client leaves or every port's connection has ended.
pub(super) async fn serve<T>(connection: T, ports: Ports, numbers: Vec<u16>, dialect: Dialect)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ports = Arc::new(ports);
    let (mut outgoing, mut incoming) = accept(connection).await.split();
    let (messages, mut queue) = mpsc::channel(QUEUE);
    let mut inputs = Vec::new();
    let mut connections = JoinSet::new();
    for (number, port) in (0_u8..).step_by(2).zip(numbers) {
        let (input, from_client) = mpsc::channel(QUEUE);
        inputs.push(input);
        let channel = |number| Channel {
            number,
            dialect,
            messages: messages.clone(),
        };
        let (data, error) = (channel(number), channel(number + 1));
        connections.spawn(connect(ports.clone(), port, from_client, data, error));
    }
    drop(messages);
    let output = async {
        let mut pings = pings();
        loop {
            let message = tokio::select! {
                message = queue.recv() => message,
                _ = pings.tick() => Some(Message::Ping(Bytes::new())),
            };
            let Some(message) = message else { break };
            if outgoing.send(message).await.is_err() {
                return;
            }
        }
        close(&mut outgoing).await;
    };
    let input = async {
        while let Some(Ok(message)) = incoming.next().await {
            if message.is_close() {
                return;
            }
            let read = payload(message).and_then(|message| dialect.framing.read(&message));
            let Some((number, bytes)) = read else {
                continue;
            };
            let ended = bytes.first().copied();
            let ended = ended.filter(|_| number == CLOSE && dialect.ends);
            let number = ended.unwrap_or(number);
            // What is sent on an error channel means nothing, and a port whose connection has ended takes nothing.
            let Some(input) = inputs.get(usize::from(number / 2)) else {
                continue;
            };
            if !number.is_multiple_of(2) {
                continue;
            }
            if ended.is_some() {
                input.send(Input::End).await.ok();
                continue;
            }
            for piece in pieces(bytes) {
                // A piece that waits must not keep all of a long message.
                let piece = Bytes::copy_from_slice(&piece);
                if input.send(Input::Data(piece)).await.is_err() {
                    break;
                }
            }
        }
    };
    tokio::select! {
        () = output => {}
        () = input => {}
    }
}

async fn connect(
    ports: Arc<Ports>,
    port: u16,
    from_client: mpsc::Receiver<Input>,
    data: Channel,
    error: Channel,
) {
    let number = Bytes::copy_from_slice(&port.to_le_bytes());
    for channel in [&data, &error] {
        if channel.send(number.clone()).await.is_err() {
            return;
        }
    }
    let forwarded = match ports.open(port).await {
        Ok(node) => forward(node, from_client, &data).await,
        Err(message) => Err(message),
    };
    if let Err(message) = forwarded {
        error.send(message.into()).await.ok();
    }
}
