//! exec and attach over WebSocket.
//!
//! Channels: 0 stdin, 1 stdout, 2 stderr, 3 how it ended, 4 terminal sizes as JSON. `v5` adds 255: the channel named by the
//! next byte is closed. The first message is an empty one of the first channel that the client reads: the connection stands.

use bytes::Bytes;
use futures::{Sink, SinkExt, StreamExt};
use gantry_rpc::node::StreamFrame;
use gantry_rpc::node::stream_frame::Frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::{LONGEST_SIZE, V5, Verdict, Wanted, frame, lost, resize};
use crate::streams::websocket::{Framing, accept, close, payload};
use crate::streams::{NodeStream, pieces, pings};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How the messages of one connection are to be read.
#[derive(Clone, Copy)]
struct Reading {
    framing: Framing,
    /// What is sent to a stdin that nobody asked for means nothing.
    stdin: bool,
    /// Whether channels can be closed.
    closes: bool,
}

impl Reading {
    /// What a client's message means for the node.
    fn to_node(self, message: &Bytes) -> Vec<Frame> {
        let Some((number, bytes)) = self.framing.read(message) else {
            return Vec::new();
        };
        match number {
            STDIN if self.stdin => pieces(bytes).map(Frame::Stdin).collect(),
            RESIZE if bytes.len() <= LONGEST_SIZE => {
                serde_json::from_slice::<serde_json::Value>(&bytes)
                    .iter()
                    .map(resize)
                    .collect()
            }
            CLOSE if self.closes && bytes.first() == Some(&STDIN) => vec![Frame::CloseStdin(true)],
            _ => Vec::new(),
        }
    }
}

pub(super) async fn serve<T>(
    connection: T,
    stream: NodeStream,
    wanted: Wanted,
    protocol: &'static str,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let NodeStream {
        to_node: node,
        mut from_node,
    } = stream;
    let (framing, verdict) = (Framing::of(protocol), Verdict::of(protocol));
    let reading = Reading {
        framing,
        stdin: wanted.stdin,
        closes: protocol == V5,
    };
    let (mut outgoing, mut incoming) = accept(connection).await.split();
    let input = tokio::spawn(async move {
        while let Some(Ok(message)) = incoming.next().await {
            if message.is_close() {
                break;
            }
            let Some(message) = payload(message) else {
                continue;
            };
            for sent in reading.to_node(&message) {
                if node.send(frame(sent)).await.is_err() {
                    return;
                }
            }
        }
    });
    let first = match (wanted.stdout, wanted.stderr) {
        (true, _) => STDOUT,
        (false, true) => STDERR,
        (false, false) => STATUS,
    };
    let stands = outgoing.send(framing.channel(first, &[])).await.is_ok();
    let told = match stands {
        true => copy(&mut outgoing, &mut from_node, wanted, framing).await,
        false => None,
    };
    if let Some(told) = told.and_then(|status| verdict.told(status)) {
        // The client may be gone as well.
        outgoing.send(framing.channel(STATUS, &told)).await.ok();
    }
    close(&mut outgoing).await;
    input.abort();
}

/// Passes on what a command writes. Returns how it ended, or `None` when the client has gone before.
async fn copy(
    outgoing: &mut (impl Sink<Message> + Unpin),
    from_node: &mut mpsc::Receiver<StreamFrame>,
    wanted: Wanted,
    framing: Framing,
) -> Option<Bytes> {
    let mut pings = pings();
    loop {
        let received = tokio::select! {
            received = from_node.recv() => received,
            _ = pings.tick() => {
                outgoing.send(Message::Ping(Bytes::new())).await.ok()?;
                continue;
            }
        };
        let Some(received) = received else {
            return Some(lost());
        };
        let message = match received.frame {
            Some(Frame::Stdout(bytes)) if wanted.stdout => framing.channel(STDOUT, &bytes),
            Some(Frame::Stderr(bytes)) if wanted.stderr => framing.channel(STDERR, &bytes),
            Some(Frame::Status(status)) => return Some(status),
            _ => continue,
        };
        outgoing.send(message).await.ok()?;
    }
}

#[cfg(test)]
mod tests;
