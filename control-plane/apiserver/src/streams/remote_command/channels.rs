//! exec and attach over WebSocket.
//!
//! Channels: 0 stdin, 1 stdout, 2 stderr, 3 the final status as JSON, 4 terminal sizes as JSON. `v5` adds 255: the
//! channel named by the next byte is closed. Protocols whose name starts with `base64.` are not offered.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use gantry_rpc::node::stream_frame::Frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Message;

use super::{frame, lost, resize};
use crate::streams::websocket::{accept, channel, close, payload};
use crate::streams::{NodeStream, pieces, pings};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What a client's message means for the node.
fn to_node(message: &Bytes) -> Vec<Frame> {
    let Some((number, rest)) = message.split_first() else {
        return Vec::new();
    };
    match *number {
        STDIN => pieces(message.slice(1..)).map(Frame::Stdin).collect(),
        RESIZE => serde_json::from_slice::<serde_json::Value>(rest)
            .iter()
            .map(resize)
            .collect(),
        CLOSE if rest.first() == Some(&STDIN) => vec![Frame::CloseStdin(true)],
        _ => Vec::new(),
    }
}

pub(super) async fn serve<T>(connection: T, stream: NodeStream)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let NodeStream {
        to_node: node,
        mut from_node,
    } = stream;
    let (mut outgoing, mut incoming) = accept(connection).await.split();
    let input = tokio::spawn(async move {
        while let Some(Ok(message)) = incoming.next().await {
            if message.is_close() {
                break;
            }
            for sent in payload(message).iter().flat_map(to_node) {
                if node.send(frame(sent)).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut finished = false;
    let mut pings = pings();
    loop {
        let received = tokio::select! {
            received = from_node.recv() => received,
            _ = pings.tick() => match outgoing.send(Message::Ping(Bytes::new())).await {
                Ok(()) => continue,
                Err(_) => break,
            },
        };
        let Some(received) = received else { break };
        let message = match received.frame {
            Some(Frame::Stdout(bytes)) => channel(STDOUT, &bytes),
            Some(Frame::Stderr(bytes)) => channel(STDERR, &bytes),
            Some(Frame::Status(status)) => {
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
        // The client may be gone as well.
        outgoing.send(channel(STATUS, &lost())).await.ok();
    }
    close(&mut outgoing).await;
    input.abort();
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_left_is_noticed_although_nobody_takes_its_input() {
        let (ours, theirs) = tokio::io::duplex(256);
        let (to_node, _unread) = mpsc::channel(1);
        let (_silent, from_node) = mpsc::channel(1);
        let serving = tokio::spawn(serve(theirs, NodeStream { to_node, from_node }));
        let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let full = async { while client.send(channel(STDIN, b"x")).await.is_ok() {} };
        let waiting = tokio::time::timeout(std::time::Duration::from_secs(5), full).await;
        waiting.expect_err("the connection waits for the command");
        drop(client);
        serving.await.expect("no panic");
    }

    #[test]
    fn what_messages_mean() {
        let mean = |bytes: &'static [u8]| to_node(&Bytes::from_static(bytes));
        assert_eq!(mean(b"\0ls"), [Frame::Stdin(Bytes::from_static(b"ls"))]);
        assert_eq!(mean(b"\xff\0"), [Frame::CloseStdin(true)]);
        let size = gantry_rpc::node::TerminalSize {
            width: 80,
            height: 24,
        };
        assert_eq!(
            mean(b"\x04{\"Width\":80,\"Height\":24}"),
            [Frame::Resize(size)]
        );
        for nothing in [&b""[..], b"\x01x", b"\x04{", b"\xff", b"\xff\x01", b"\x63"] {
            assert!(mean(nothing).is_empty(), "{nothing:?}");
        }
        let long = Bytes::from(vec![0; 1 + 150_000]);
        let lengths: Vec<usize> = to_node(&long)
            .iter()
            .map(|frame| match frame {
                Frame::Stdin(bytes) => bytes.len(),
                _ => 0,
            })
            .collect();
        assert_eq!(lengths, [65_536, 65_536, 18_928]);
    }
}
