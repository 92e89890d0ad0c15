//! Forwarding against a node that echoes, and the parsing of queries.

use super::*;

struct Collected(mpsc::Sender<Bytes>);

#[async_trait]
impl Client for Collected {
    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        self.0.send(bytes).await.map_err(|_| Gone)
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
