//! Commands over WebSocket, message by message, in every protocol.

use std::time::Duration;

use tokio::io::DuplexStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::KNOWN;
use super::*;

const ALL: Wanted = Wanted {
    stdin: true,
    stdout: true,
    stderr: true,
    tty: false,
};
const SUCCESS: &str = "{\"metadata\":{},\"status\":\"Success\"}";
const FAILURE: &str = "{\"status\":\"Failure\",\"message\":\"exit status 3\",\"code\":500}";

struct Bed {
    client: WebSocketStream<DuplexStream>,
    from_client: mpsc::Receiver<StreamFrame>,
    to_client: mpsc::Sender<StreamFrame>,
}

impl Bed {
    async fn new(protocol: &'static str, wanted: Wanted) -> Self {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (to_node, from_client) = mpsc::channel(4);
        let (to_client, from_node) = mpsc::channel(4);
        let stream = NodeStream { to_node, from_node };
        tokio::spawn(serve(theirs, stream, wanted, protocol));
        Self {
            client: WebSocketStream::from_raw_socket(ours, Role::Client, None).await,
            from_client,
            to_client,
        }
    }

    async fn says(&mut self, message: Message) {
        self.client.send(message).await.expect("open");
    }

    async fn node_says(&self, said: Frame) {
        self.to_client.send(frame(said)).await.expect("open");
    }

    async fn node_reads(&mut self) -> Frame {
        let read = tokio::time::timeout(Duration::from_secs(10), self.from_client.recv());
        let read = read.await.expect("in time").expect("open");
        read.frame.expect("a frame")
    }

    /// Every message up to the end, which must be a normal one.
    async fn reads_to_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let next = tokio::time::timeout(Duration::from_secs(10), self.client.next());
            match next.await.expect("in time") {
                Some(Ok(Message::Close(close))) => {
                    let code = close.map(|close| u16::from(close.code));
                    assert_eq!(code, Some(1000));
                    return messages;
                }
                Some(Ok(message)) => messages.push(message),
                other => panic!("no end of the connection: {other:?}"),
            }
        }
    }
}

fn binary(bytes: &'static [u8]) -> Message {
    Message::Binary(Bytes::from_static(bytes))
}

#[tokio::test]
async fn every_protocol_has_its_messages_and_its_words_of_the_end() {
    for &protocol in KNOWN.websocket {
        for status in [SUCCESS, FAILURE] {
            let mut bed = Bed::new(protocol, ALL).await;
            let is_text = protocol.contains("base64");
            bed.says(match is_text {
                true => Message::text("0aW4="),
                false => binary(b"\0in"),
            })
            .await;
            let read = bed.node_reads().await;
            assert_eq!(read, Frame::Stdin(Bytes::from_static(b"in")));
            bed.node_says(Frame::Stdout(Bytes::from_static(b"out")))
                .await;
            bed.node_says(Frame::Stderr(Bytes::from_static(b"err")))
                .await;
            let ended = Frame::Status(Bytes::from_static(status.as_bytes()));
            bed.node_says(ended).await;
            let mut expected = match is_text {
                true => vec![
                    Message::text("1"),
                    Message::text("1b3V0"),
                    Message::text("2ZXJy"),
                ],
                false => vec![binary(b"\x01"), binary(b"\x01out"), binary(b"\x02err")],
            };
            let told = match (protocol.starts_with('v'), status) {
                (true, status) => status,
                (false, FAILURE) => "exit status 3",
                (false, _) => "",
            };
            if !told.is_empty() {
                let framing = Framing::of(protocol);
                expected.push(framing.channel(3, told.as_bytes()));
            }
            assert_eq!(bed.reads_to_end().await, expected, "{protocol} {status}");
        }
    }
}

#[tokio::test]
async fn the_first_channel_that_is_read_says_that_the_connection_stands() {
    for (stdout, stderr, first) in [
        (true, true, &b"\x01"[..]),
        (false, true, b"\x02"),
        (false, false, b"\x03"),
    ] {
        let wanted = Wanted {
            stdout,
            stderr,
            ..ALL
        };
        let mut bed = Bed::new("v4.channel.k8s.io", wanted).await;
        // What nobody asked for is not sent.
        bed.node_says(Frame::Stdout(Bytes::from_static(b"o"))).await;
        bed.node_says(Frame::Stderr(Bytes::from_static(b"e"))).await;
        let status = Frame::Status(Bytes::from_static(SUCCESS.as_bytes()));
        bed.node_says(status).await;
        let mut expected = vec![binary(first)];
        if stdout {
            expected.push(binary(b"\x01o"));
        }
        if stderr {
            expected.push(binary(b"\x02e"));
        }
        expected.push(Framing::Binary.channel(3, SUCCESS.as_bytes()));
        assert_eq!(bed.reads_to_end().await, expected);
    }
}

#[tokio::test]
async fn a_lost_node_is_told() {
    for (protocol, words) in [
        (V5, String::from_utf8_lossy(&lost()).into_owned()),
        (
            "channel.k8s.io",
            "the connection to the node was lost".to_owned(),
        ),
    ] {
        let mut bed = Bed::new(protocol, ALL).await;
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut bed.to_client, closed));
        let told = Framing::Binary.channel(3, words.as_bytes());
        assert_eq!(bed.reads_to_end().await, [binary(b"\x01"), told]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_is_noticed_although_nobody_takes_its_input() {
    let (ours, theirs) = tokio::io::duplex(256);
    let (to_node, _unread) = mpsc::channel(1);
    let (_silent, from_node) = mpsc::channel(1);
    let stream = NodeStream { to_node, from_node };
    let serving = tokio::spawn(serve(theirs, stream, ALL, V5));
    let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let message = || Framing::Binary.channel(STDIN, b"x");
    let full = async { while client.send(message()).await.is_ok() {} };
    let waiting = tokio::time::timeout(Duration::from_secs(5), full).await;
    waiting.expect_err("the connection waits for the command");
    drop(client);
    serving.await.expect("no panic");
}

#[test]
fn what_messages_mean() {
    let newest = Reading {
        framing: Framing::Binary,
        stdin: true,
        closes: true,
    };
    let mean = |reading: Reading, bytes: &'static [u8]| reading.to_node(&Bytes::from_static(bytes));
    assert_eq!(
        mean(newest, b"\0ls"),
        [Frame::Stdin(Bytes::from_static(b"ls"))]
    );
    assert_eq!(mean(newest, b"\xff\0"), [Frame::CloseStdin(true)]);
    let sized = || {
        [Frame::Resize(gantry_rpc::node::TerminalSize {
            width: 80,
            height: 24,
        })]
    };
    assert_eq!(mean(newest, b"\x04{\"Width\":80,\"Height\":24}"), sized());
    for nothing in [
        &b""[..],
        b"\0",
        b"\x01x",
        b"\x04{",
        b"\xff",
        b"\xff\x01",
        b"\x63",
    ] {
        assert!(mean(newest, nothing).is_empty(), "{nothing:?}");
    }
    let older = Reading {
        framing: Framing::Base64,
        stdin: false,
        closes: false,
    };
    assert_eq!(mean(older, b"4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9"), sized());
    // Nobody reads stdin, no channel is closed, and what is no base64 means nothing.
    for nothing in [&b"0bHM="[..], b"\xffMA==", b"4{}"] {
        assert!(mean(older, nothing).is_empty(), "{nothing:?}");
    }
    // Much of nothing is no size either.
    let padded = format!("\u{4}{}{{\"Width\":80,\"Height\":24}}", " ".repeat(2000));
    assert!(newest.to_node(&Bytes::from(padded)).is_empty());
    let long = Bytes::from(vec![0; 1 + 150_000]);
    let lengths: Vec<usize> = newest
        .to_node(&long)
        .iter()
        .map(|frame| match frame {
            Frame::Stdin(bytes) => bytes.len(),
            _ => 0,
        })
        .collect();
    assert_eq!(lengths, [65_536, 65_536, 18_928]);
}
