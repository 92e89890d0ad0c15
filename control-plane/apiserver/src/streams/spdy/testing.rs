//! A client of a [`super::Session`], for tests: the same codecs over the other end of a pipe.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio_util::codec::{FramedRead, FramedWrite};

use super::codec::{Decoder, Encoder, Frame, Reset};
use super::headers::Headers;

pub(crate) struct Client {
    to: FramedWrite<WriteHalf<DuplexStream>, Encoder>,
    from: FramedRead<ReadHalf<DuplexStream>, Decoder>,
}

impl Client {
    /// A client, and the connection to serve it on.
    pub(crate) fn pair() -> (Self, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(4096);
        let (from, to) = tokio::io::split(ours);
        let client = Self {
            to: FramedWrite::new(to, Encoder::new().expect("an encoder")),
            from: FramedRead::new(from, Decoder::new()),
        };
        (client, theirs)
    }

    pub(in crate::streams::spdy) async fn send(&mut self, frame: Frame) {
        self.to.send(frame).await.expect("open");
    }

    pub(crate) async fn open(&mut self, stream: u32, fin: bool, headers: &[(&str, &str)]) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let headers = Headers(headers.iter().map(owned).collect());
        self.send(Frame::SynStream {
            stream,
            fin,
            headers,
        })
        .await;
    }

    pub(crate) async fn data(&mut self, stream: u32, fin: bool, text: &'static str) {
        let bytes = Bytes::from_static(text.as_bytes());
        self.send(Frame::Data { stream, fin, bytes }).await;
    }

    pub(crate) async fn reset(&mut self, stream: u32) {
        let reset = Reset::Cancel;
        self.send(Frame::RstStream { stream, reset }).await;
    }

    pub(in crate::streams::spdy) async fn next(&mut self) -> Option<Frame> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.from.next());
        let next = next.await.expect("in time");
        next.map(|frame| frame.expect("a frame"))
    }

    /// Reads until these streams have ended; what each carried.
    pub(crate) async fn read_to_end(&mut self, streams: &[u32]) -> BTreeMap<u32, String> {
        let mut texts = BTreeMap::new();
        let mut open = streams.to_vec();
        while !open.is_empty() {
            match self.next().await.expect("open") {
                Frame::Data { stream, fin, bytes } => {
                    let text: &mut String = texts.entry(stream).or_default();
                    text.push_str(&String::from_utf8_lossy(&bytes));
                    open.retain(|wanted| !(fin && *wanted == stream));
                }
                Frame::RstStream { stream, .. } => panic!("stream {stream} was reset"),
                _ => {}
            }
        }
        texts
    }

    /// Reads until a stream is reset.
    pub(crate) async fn wait_reset(&mut self, wanted: u32) {
        loop {
            match self.next().await.expect("open") {
                Frame::RstStream { stream, .. } if stream == wanted => return,
                _ => {}
            }
        }
    }

    /// Whether the server closes the connection, whatever else comes before.
    pub(crate) async fn is_closed(&mut self) -> bool {
        while self.next().await.is_some() {}
        true
    }
}
