//! Text over WebSocket, message by message.

use std::time::Duration;

use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;

fn frame(frame: Frame) -> StreamFrame {
    StreamFrame {
        stream_id: String::new(),
        frame: Some(frame),
    }
}

#[tokio::test]
async fn text_comes_in_the_messages_of_each_protocol() {
    for &protocol in KNOWN.websocket {
        let framing = Framing::of(protocol);
        let (ours, theirs) = tokio::io::duplex(4096);
        let (to_node, _node_reads) = mpsc::channel(4);
        let (node_writes, from_node) = mpsc::channel(4);
        let stream = NodeStream { to_node, from_node };
        let first = Some(Bytes::from_static(b"one\n"));
        tokio::spawn(serve(theirs, first, stream, framing));
        let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        // What a client says means nothing.
        let said = Message::text("hello");
        client.send(said).await.expect("open");
        let two = Frame::Stdout(Bytes::from_static(b"two\xff\n"));
        node_writes.send(frame(two)).await.expect("open");
        let status = Frame::Status(Bytes::from_static(b"{\"status\":\"Success\"}"));
        node_writes.send(frame(status)).await.expect("open");
        let mut messages = Vec::new();
        let end = loop {
            let next = tokio::time::timeout(Duration::from_secs(10), client.next());
            match next.await.expect("in time").expect("open") {
                Ok(Message::Close(close)) => break close,
                message => messages.push(message.expect("a message")),
            }
        };
        let code = end.map(|close| u16::from(close.code));
        assert_eq!(code, Some(1000), "{protocol}");
        let expected = match framing {
            Framing::Binary => [
                Message::Binary(Bytes::new()),
                Message::Binary(Bytes::from_static(b"one\n")),
                Message::Binary(Bytes::from_static(b"two\xff\n")),
            ],
            Framing::Base64 => [
                Message::text(""),
                Message::text("b25lCg=="),
                Message::text("dHdv/wo="),
            ],
        };
        assert_eq!(messages, expected, "{protocol}");
    }
}

#[tokio::test]
async fn a_follower_that_leaves_ends_the_nodes_stream() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let (to_node, mut node_reads) = mpsc::channel(4);
    let (_node_writes, from_node) = mpsc::channel(4);
    let stream = NodeStream { to_node, from_node };
    let first = Some(Bytes::from_static(b"one\n"));
    let serving = tokio::spawn(serve(theirs, first, stream, Framing::Binary));
    let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    client.send(Message::Close(None)).await.expect("open");
    let ended = tokio::time::timeout(Duration::from_secs(10), node_reads.recv());
    assert_eq!(ended.await.expect("in time"), None);
    serving.await.expect("no panic");
}
