//! One connection: a task that reads frames and hands out streams, and one that writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::codec::{FramedRead, FramedWrite};

use super::SpdyError;
use super::codec::{Decoder, Encoder, Frame, Reset};
use super::headers::Headers;
use crate::streams::{Gone, Input, pings};

/// Frames waiting to be written.
const QUEUE: usize = 16;
/// Pieces of data that a stream takes before its connection waits for it. Each is as long as what is read at a time (8 KiB),
/// and all streams of a connection may have as many waiting.
const INPUT: usize = 8;
/// Streams at once; `kubectl port-forward` uses two for each connection it forwards.
const STREAMS: usize = 2000;
/// Bytes in one data frame; more is sent as several.
const LONGEST_DATA: usize = 32 * 1024;

/// A stream that the client opened.
#[derive(Debug)]
pub(crate) struct Stream {
    /// What it is for.
    pub(crate) headers: Headers,
    /// From the client.
    pub(crate) input: mpsc::Receiver<Input>,
    /// To the client.
    pub(crate) output: Output,
}

/// The sending direction of a stream. Dropped unfinished, it resets the stream.
#[derive(Debug)]
pub(crate) struct Output {
    stream: u32,
    frames: mpsc::Sender<Frame>,
    finished: AtomicBool,
}

impl Output {
    /// Sends bytes, in order; waits while the connection is full.
    pub(crate) async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(LONGEST_DATA));
            self.frame(piece, false).await?;
        }
        Ok(())
    }

    /// Ends this direction, once: nothing may be sent after it.
    pub(crate) async fn end(&self) -> Result<(), Gone> {
        match self.finished.swap(true, Ordering::Relaxed) {
            true => Ok(()),
            false => self.frame(Bytes::new(), true).await,
        }
    }

    /// Ends this direction, unless it has ended.
    pub(crate) async fn finish(self) {
        // A client that has gone needs no end.
        self.end().await.ok();
    }

    async fn frame(&self, bytes: Bytes, fin: bool) -> Result<(), Gone> {
        let frame = Frame::Data {
            stream: self.stream,
            fin,
            bytes,
        };
        self.frames.send(frame).await.map_err(|_| Gone)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !*self.finished.get_mut() {
            let reset = Frame::RstStream {
                stream: self.stream,
                reset: Reset::Cancel,
            };
            // A connection too full to take this is one whose client does not read.
            self.frames.try_send(reset).ok();
        }
    }
}

/// The server's side of a connection. Dropping it takes no more from the client; what was sent is still written.
#[derive(Debug)]
pub(crate) struct Session {
    accepted: mpsc::Receiver<Stream>,
    reader: AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Session {
    /// Serves a connection whose HTTP upgrade is done.
    pub(crate) fn serve<T>(connection: T) -> Result<Self, SpdyError>
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from, to) = tokio::io::split(connection);
        let (frames, outgoing) = mpsc::channel(QUEUE);
        let (accept, accepted) = mpsc::channel(1);
        let to = FramedWrite::new(to, Encoder::new()?);
        let reader = tokio::spawn(async move {
            let mut reader = Reader {
                accept,
                frames,
                streams: BTreeMap::new(),
                newest: 0,
            };
            if let Err(error) = reader.run(FramedRead::new(from, Decoder::new())).await {
                tracing::debug!(%error, "a SPDY connection ended");
            }
        });
        let reader = reader.abort_handle();
        let reading = reader.clone();
        tokio::spawn(async move {
            write(to, outgoing).await;
            // A client that cannot be written to has left, although what it sent last may still wait to be taken.
            reading.abort();
        });
        Ok(Self { accepted, reader })
    }

    /// The next stream, already accepted towards the client; `None` when the connection has ended.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.accepted.recv().await
    }
}

/// Writes until nobody can send any more, then closes the connection.
async fn write<W: AsyncWrite + Unpin>(
    mut to: FramedWrite<W, Encoder>,
    mut outgoing: mpsc::Receiver<Frame>,
) {
    let mut pings = pings();
    let written = async {
        loop {
            let frame = tokio::select! {
                frame = outgoing.recv() => frame,
                // Even numbers are the server's; the answer makes no difference.
                _ = pings.tick() => Some(Frame::Ping(2)),
            };
            let Some(frame) = frame else { break };
            to.feed(frame).await?;
            while let Ok(frame) = outgoing.try_recv() {
                to.feed(frame).await?;
            }
            to.flush().await?;
        }
        to.close().await
    };
    if let Err(error) = written.await {
        tracing::debug!(%error, "writing to a SPDY connection");
    }
}

struct Reader {
    accept: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Frame>,
    /// Where each stream's data goes; an entry whose receiver is gone belongs to a stream that is over.
    streams: BTreeMap<u32, mpsc::Sender<Input>>,
    newest: u32,
}

impl Reader {
    async fn run<R: AsyncRead + Unpin>(
        &mut self,
        mut from: FramedRead<R, Decoder>,
    ) -> Result<(), SpdyError> {
        while let Some(frame) = from.next().await {
            match frame? {
                Frame::SynStream {
                    stream,
                    fin,
                    headers,
                } => {
                    if self.open(stream, fin, headers).await.is_err() {
                        return Ok(());
                    }
                }
                Frame::Data { stream, fin, bytes } => self.data(stream, fin, bytes).await,
                Frame::RstStream { stream, .. } => {
                    self.streams.remove(&stream);
                }
                // Odd numbers are the client's questions; even ones would answer ours.
                Frame::Ping(number) if !number.is_multiple_of(2) => {
                    self.frames.send(Frame::Ping(number)).await.ok();
                }
                Frame::Ping(_) | Frame::SynReply { .. } | Frame::GoAway | Frame::Other => {}
            }
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> Result<(), Gone> {
        self.streams.retain(|_, input| !input.is_closed());
        let refused = if stream.is_multiple_of(2) || stream <= self.newest {
            Some(Reset::ProtocolError)
        } else if self.streams.len() >= STREAMS {
            Some(Reset::RefusedStream)
        } else {
            None
        };
        if let Some(reset) = refused {
            let reset = Frame::RstStream { stream, reset };
            return self.frames.send(reset).await.map_err(|_| Gone);
        }
        self.newest = stream;
        let (sender, input) = mpsc::channel(INPUT);
        if fin {
            sender.send(Input::End).await.ok();
        }
        self.streams.insert(stream, sender);
        let reply = Frame::SynReply {
            stream,
            fin: false,
            headers: Headers::default(),
        };
        self.frames.send(reply).await.map_err(|_| Gone)?;
        let output = Output {
            stream,
            frames: self.frames.clone(),
            finished: AtomicBool::new(false),
        };
        let opened = Stream {
            headers,
            input,
            output,
        };
        self.accept.send(opened).await.map_err(|_| Gone)
    }

    /// Data of a stream that nobody reads any more is dropped.
    async fn data(&mut self, stream: u32, fin: bool, bytes: Bytes) {
        let Some(input) = self.streams.get(&stream) else {
            return;
        };
        if !bytes.is_empty() {
            input.send(Input::Data(bytes)).await.ok();
        }
        if fin {
            input.send(Input::End).await.ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::codec::Framed;

    use super::super::testing::Client;
    use super::*;

    fn pair() -> (Client, Session) {
        let (client, theirs) = Client::pair();
        (client, Session::serve(theirs).expect("serves"))
    }

    /// The headers make no difference to a session.
    async fn open(client: &mut Client, stream: u32, fin: bool) {
        client.open(stream, fin, &[("streamtype", "data")]).await;
    }

    fn reply(stream: u32) -> Frame {
        Frame::SynReply {
            stream,
            fin: false,
            headers: Headers::default(),
        }
    }

    #[tokio::test]
    async fn a_stream_carries_both_directions_and_their_ends() {
        let (mut client, mut session) = pair();
        open(&mut client, 1, false).await;
        let mut stream = session.accept().await.expect("a stream");
        assert_eq!(stream.headers.get("streamtype"), Some("data"));
        assert_eq!(client.next().await, Some(reply(1)));
        client.data(1, true, "up").await;
        assert_eq!(
            stream.input.recv().await,
            Some(Input::Data(Bytes::from_static(b"up")))
        );
        assert_eq!(stream.input.recv().await, Some(Input::End));
        stream
            .output
            .send(Bytes::from_static(b"down"))
            .await
            .expect("open");
        stream.output.finish().await;
        let (mut text, mut ended) = (Vec::new(), false);
        while !ended {
            let Some(Frame::Data { stream, fin, bytes }) = client.next().await else {
                panic!("data");
            };
            assert_eq!(stream, 1);
            text.extend_from_slice(&bytes);
            ended = fin;
        }
        assert_eq!(text, b"down");
        drop(session);
        assert_eq!(client.next().await, None, "the connection is closed");
    }

    #[tokio::test]
    async fn a_reset_closes_the_input_without_an_end() {
        let (mut client, mut session) = pair();
        open(&mut client, 1, false).await;
        let mut stream = session.accept().await.expect("a stream");
        let reset = Reset::Cancel;
        client.send(Frame::RstStream { stream: 1, reset }).await;
        assert_eq!(stream.input.recv().await, None);
        drop(client);
        assert!(session.accept().await.is_none());
    }

    #[tokio::test]
    async fn numbers_are_the_clients_and_grow() {
        let (mut client, mut session) = pair();
        for stream in [2, 5, 5, 3] {
            open(&mut client, stream, true).await;
        }
        client.send(Frame::Ping(1)).await;
        let accepted = session.accept().await.expect("the fifth");
        let refused = |stream| {
            let reset = Reset::Other(1);
            Some(Frame::RstStream { stream, reset })
        };
        assert_eq!(client.next().await, refused(2));
        assert_eq!(client.next().await, Some(reply(5)));
        assert_eq!(client.next().await, refused(5));
        assert_eq!(client.next().await, refused(3));
        assert_eq!(client.next().await, Some(Frame::Ping(1)));
        drop(accepted);
        let cancelled = Frame::RstStream {
            stream: 5,
            reset: Reset::Other(5),
        };
        assert_eq!(client.next().await, Some(cancelled));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_left_is_noticed_although_nobody_takes_its_data() {
        let (mut client, mut session) = pair();
        open(&mut client, 1, false).await;
        let _untaken = session.accept().await.expect("a stream");
        let full = async {
            loop {
                client.data(1, false, "x").await;
            }
        };
        let waiting = tokio::time::timeout(std::time::Duration::from_secs(5), full).await;
        waiting.expect_err("the connection waits for its stream");
        drop(client);
        assert!(session.accept().await.is_none());
    }

    #[tokio::test]
    async fn what_is_no_spdy_ends_the_connection() {
        let (ours, theirs) = tokio::io::duplex(64);
        let mut session = Session::serve(theirs).expect("serves");
        let mut raw = Framed::new(ours, tokio_util::codec::BytesCodec::new());
        raw.send(Bytes::from_static(b"GET / HTTP/1.1\r\n"))
            .await
            .expect("open");
        // 'G' has no control bit: data of an unknown stream, which is skipped until the connection ends.
        raw.send(Bytes::from_static(b"\xff\xff\xff\xff\xff\xff\xff\xff"))
            .await
            .ok();
        drop(raw);
        assert!(session.accept().await.is_none());
    }
}
