//! Forwarding against a node that echoes, and the parsing of queries.

use std::collections::BTreeMap;

use futures::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::streams::spdy::testing::Client as SpdyClient;

struct Collected(mpsc::Sender<Bytes>);

#[async_trait]
impl Client for Collected {
    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.0.send(bytes).await.map_err(|_| Gone)
    }

    async fn end(&self) -> Result<(), Gone> {
        self.send(Bytes::from_static(b"<end>")).await
    }
}

struct Bed {
    input: mpsc::Sender<Input>,
    output: mpsc::Receiver<Bytes>,
    node_reads: mpsc::Receiver<StreamFrame>,
    node_writes: mpsc::Sender<StreamFrame>,
    forwarding: tokio::task::JoinHandle<Result<(), String>>,
}

fn bed() -> Bed {
    let (input, from_client) = mpsc::channel(4);
    let (to_client, output) = mpsc::channel(4);
    let (to_node, node_reads) = mpsc::channel(4);
    let (node_writes, from_node) = mpsc::channel(4);
    let node = NodeStream { to_node, from_node };
    let forwarding =
        tokio::spawn(async move { forward(node, from_client, &Collected(to_client)).await });
    Bed {
        input,
        output,
        node_reads,
        node_writes,
        forwarding,
    }
}

fn frame(frame: Frame) -> StreamFrame {
    StreamFrame {
        stream_id: String::new(),
        frame: Some(frame),
    }
}

#[tokio::test]
async fn bytes_and_ends_are_carried_both_ways() {
    let mut bed = bed();
    bed.input
        .send(Input::Data(Bytes::from_static(b"up")))
        .await
        .expect("open");
    bed.input.send(Input::End).await.expect("open");
    let read = bed.node_reads.recv().await.and_then(|frame| frame.frame);
    assert_eq!(read, Some(Frame::Stdin(Bytes::from_static(b"up"))));
    let read = bed.node_reads.recv().await.and_then(|frame| frame.frame);
    assert_eq!(read, Some(Frame::CloseStdin(true)));
    let answer = frame(Frame::Stdout(Bytes::from_static(b"down")));
    bed.node_writes.send(answer).await.expect("open");
    assert_eq!(bed.output.recv().await.as_deref(), Some(&b"down"[..]));
    let status = br#"{"status":"Success"}"#;
    let status = frame(Frame::Status(Bytes::from_static(status)));
    bed.node_writes.send(status).await.expect("open");
    assert_eq!(bed.forwarding.await.expect("no panic"), Ok(()));
}

#[tokio::test]
async fn the_pods_end_leaves_the_clients_direction_open() {
    let mut bed = bed();
    let end = frame(Frame::CloseStdout(true));
    bed.node_writes.send(end).await.expect("open");
    assert_eq!(bed.output.recv().await.as_deref(), Some(&b"<end>"[..]));
    let long = Bytes::from(vec![7; 100_000]);
    bed.input.send(Input::Data(long)).await.expect("open");
    let mut read = 0;
    while read < 100_000 {
        let next = bed.node_reads.recv().await.and_then(|frame| frame.frame);
        let Some(Frame::Stdin(bytes)) = &next else {
            panic!("{next:?}");
        };
        assert!(bytes.len() <= super::super::PIECE, "{}", bytes.len());
        read += bytes.len();
    }
    bed.input.send(Input::End).await.expect("open");
    let next = bed.node_reads.recv().await.and_then(|frame| frame.frame);
    assert_eq!(next, Some(Frame::CloseStdin(true)));
}

#[tokio::test]
async fn a_refusal_of_the_node_reaches_the_client() {
    let bed = bed();
    let status = br#"{"status":"Failure","message":"connection refused","code":500}"#;
    let status = frame(Frame::Status(Bytes::from_static(status)));
    bed.node_writes.send(status).await.expect("open");
    let error = bed.forwarding.await.expect("no panic");
    assert_eq!(error, Err("connection refused".to_owned()));
}

#[tokio::test]
async fn a_client_that_abandons_it_closes_the_nodes_stream() {
    let mut bed = bed();
    drop(bed.input);
    assert_eq!(bed.forwarding.await.expect("no panic"), Ok(()));
    assert!(bed.node_reads.recv().await.is_none());
}

#[tokio::test]
async fn a_lost_node_is_an_error() {
    let bed = bed();
    drop(bed.node_writes);
    assert!(bed.forwarding.await.expect("no panic").is_err());
}

#[test]
fn ports_of_a_query() {
    let parse = |values: &[&str]| {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        channels::ports(&values)
    };
    assert_eq!(parse(&["80"]).expect("one"), [80]);
    assert_eq!(parse(&["80,81", "82"]).expect("three"), [80, 81, 82]);
    for wrong in [&[][..], &["0"], &["65536"], &["http"], &["80,"]] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
    let many = vec!["1".to_owned(); 128];
    assert!(channels::ports(&many).is_err());
}

/// A node whose port 80 answers each frame in capitals, and which refuses every other.
struct Shouting;

#[async_trait]
impl NodeStreams for Shouting {
    async fn open(&self, node: &str, request: OpenStream) -> Result<NodeStream, String> {
        assert_eq!((node, request.pod.as_str()), ("n", "p"));
        let Some(open_stream::Kind::PortForward(options)) = request.kind else {
            return Err("not a port".to_owned());
        };
        assert_eq!(
            (options.address.as_str(), options.half_close),
            ("", true),
            "the loopback, each direction by itself"
        );
        if options.port != 80 {
            return Err("refused".to_owned());
        }
        let (to_node, mut from_client) = mpsc::channel::<StreamFrame>(4);
        let (to_client, from_node) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(received) = from_client.recv().await {
                let answer = match received.frame {
                    Some(Frame::Stdin(bytes)) => Frame::Stdout(bytes.to_ascii_uppercase().into()),
                    _ => Frame::Status(Bytes::from_static(b"{\"status\":\"Success\"}")),
                };
                to_client.send(frame(answer)).await.ok();
            }
        });
        Ok(NodeStream { to_node, from_node })
    }
}

fn shouting() -> Ports {
    let request = OpenStream {
        pod: "p".to_owned(),
        ..OpenStream::default()
    };
    Ports::new(Arc::new(Shouting), "n".to_owned(), request)
}

#[tokio::test]
async fn spdy_streams_are_paired_by_their_request() {
    let (mut client, connection) = SpdyClient::pair();
    let serving = tokio::spawn(spdy::serve(connection, shouting()));
    let requests = [("80", "0"), ("81", "1"), ("x", "2")];
    for (number, (port, request)) in (1..).step_by(4).zip(requests) {
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", request)];
        client.open(number, true, &headers("error")).await;
        client.open(number + 2, false, &headers("data")).await;
    }
    client.data(3, true, "hello").await;
    let read = client.read_to_end(&[1, 3, 5, 7, 9, 11]).await;
    let texts: Vec<&str> = read.values().map(String::as_str).collect();
    assert_eq!(
        texts,
        ["", "HELLO", "refused", "", "\"x\" is not a port", ""]
    );
    client
        .open(13, false, &[("streamtype", "data"), ("requestid", "9")])
        .await;
    client.wait_reset(13).await;
    drop(client);
    serving.await.expect("no panic");
}

#[tokio::test]
async fn a_reset_spdy_stream_ends_its_connection_alone() {
    let (mut client, connection) = SpdyClient::pair();
    tokio::spawn(spdy::serve(connection, shouting()));
    for (number, request) in [(1, "0"), (5, "1")] {
        let headers = |kind| [("streamtype", kind), ("port", "80"), ("requestid", request)];
        client.open(number, true, &headers("error")).await;
        client.open(number + 2, false, &headers("data")).await;
    }
    client.reset(3).await;
    let read = client.read_to_end(&[1, 3]).await;
    assert_eq!((read[&1].as_str(), read[&3].as_str()), ("", ""));
    client.data(7, true, "still").await;
    assert_eq!(client.read_to_end(&[7]).await[&7], "STILL");
}

#[tokio::test]
async fn websocket_channels_begin_with_their_port() {
    for framing in [Framing::Binary, Framing::Base64] {
        let dialect = channels::Dialect {
            framing,
            ends: false,
        };
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::spawn(channels::serve(theirs, shouting(), vec![80, 81], dialect));
        let mut socket = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let mut read: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        let hello = framing.channel(0, b"hello");
        socket.send(hello).await.expect("open");
        while read.get(&0).is_none_or(|bytes| bytes.len() < 7)
            || read.get(&3).is_none_or(|bytes| bytes.len() < 9)
        {
            let next = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next());
            let message = next
                .await
                .expect("in time")
                .expect("open")
                .expect("a message");
            assert_eq!(message.is_text(), framing == Framing::Base64);
            let (number, bytes) = framing.read(&message.into_data()).expect("a channel");
            read.entry(number).or_default().extend(&bytes);
        }
        assert_eq!(read[&0], b"\x50\0HELLO");
        assert_eq!(read[&1], b"\x50\0");
        assert_eq!(read[&2], b"\x51\0");
        assert_eq!(read[&3], b"\x51\0refused");
    }
}

/// A node whose pod says its word when it has heard all, and before that that it says no more.
struct Last;

#[async_trait]
impl NodeStreams for Last {
    async fn open(&self, _node: &str, _request: OpenStream) -> Result<NodeStream, String> {
        let (to_node, mut from_client) = mpsc::channel::<StreamFrame>(4);
        let (to_client, from_node) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut heard = Vec::new();
            while let Some(received) = from_client.recv().await {
                match received.frame {
                    Some(Frame::Stdin(bytes)) => heard.extend_from_slice(&bytes),
                    Some(Frame::CloseStdin(true)) => break,
                    other => panic!("{other:?}"),
                }
            }
            for answer in [
                Frame::Stdout(heard.into()),
                Frame::CloseStdout(true),
                Frame::Status(Bytes::from_static(b"{\"status\":\"Success\"}")),
            ] {
                to_client.send(frame(answer)).await.ok();
            }
        });
        Ok(NodeStream { to_node, from_node })
    }
}

#[tokio::test]
async fn the_end_of_a_direction_has_a_message_of_its_own_where_both_know_it() {
    let ports = Ports {
        streams: Arc::new(Last),
        ..shouting()
    };
    let dialect = channels::Dialect {
        framing: Framing::Binary,
        ends: true,
    };
    let (ours, theirs) = tokio::io::duplex(4096);
    tokio::spawn(channels::serve(theirs, ports, vec![80], dialect));
    let mut socket = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    for message in [&b"\0ask"[..], &[255, 0]] {
        let message = Message::Binary(Bytes::from_static(message));
        socket.send(message).await.expect("open");
    }
    let mut read = Vec::new();
    loop {
        let next = tokio::time::timeout(std::time::Duration::from_secs(10), socket.next());
        let message = next.await.expect("in time").expect("open");
        let message = message.expect("a message");
        if message.is_close() {
            break;
        }
        read.push(message.into_data());
    }
    assert_eq!(read, [&b"\0\x50\0"[..], b"\x01\x50\0", b"\0ask", &[255, 0]]);
}

#[tokio::test]
async fn a_spdy_clients_stream_ends_by_itself() {
    let ports = Ports {
        streams: Arc::new(Last),
        ..shouting()
    };
    let (mut client, connection) = SpdyClient::pair();
    tokio::spawn(spdy::serve(connection, ports));
    let headers = |kind| [("streamtype", kind), ("port", "80"), ("requestid", "0")];
    client.open(1, true, &headers("error")).await;
    client.open(3, false, &headers("data")).await;
    client.data(3, true, "ask").await;
    let read = client.read_to_end(&[1, 3]).await;
    assert_eq!((read[&1].as_str(), read[&3].as_str()), ("", "ask"));
}

/// A node whose pod takes nothing and says nothing.
struct Deaf(mpsc::Sender<NodeStream>);

#[async_trait]
impl NodeStreams for Deaf {
    async fn open(&self, _node: &str, _request: OpenStream) -> Result<NodeStream, String> {
        let (to_node, from_client) = mpsc::channel::<StreamFrame>(1);
        let (to_client, from_node) = mpsc::channel(1);
        let held = NodeStream {
            to_node: to_client,
            from_node: from_client,
        };
        self.0.send(held).await.map_err(|_| "gone".to_owned())?;
        Ok(NodeStream { to_node, from_node })
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_pod_is_bounded_in_bytes_and_goes_with_its_client() {
    let (held, mut holds) = mpsc::channel(1);
    let ports = Ports {
        streams: Arc::new(Deaf(held)),
        ..shouting()
    };
    let dialect = channels::Dialect {
        framing: Framing::Binary,
        ends: false,
    };
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let serving = tokio::spawn(channels::serve(theirs, ports, vec![80], dialect));
    let mut socket = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
    let _node = holds.recv().await.expect("it is opened");
    let message = Framing::Binary.channel(0, &vec![0; 1 << 20]);
    let mut sent = 0;
    let full = async {
        while socket.send(message.clone()).await.is_ok() {
            sent += 1;
        }
    };
    let waiting = tokio::time::timeout(std::time::Duration::from_secs(5), full).await;
    waiting.expect_err("the connection waits for the pod");
    assert!(sent < 4, "{sent} MiB wait");
    drop(socket);
    serving.await.expect("no panic");
}
