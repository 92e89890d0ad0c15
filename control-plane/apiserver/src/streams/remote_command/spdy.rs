//! exec and attach over SPDY/3.1, version 4: a stream each for stdin, stdout, stderr, terminal sizes and the status.

use bytes::Bytes;
use gantry_rpc::node::StreamFrame;
use gantry_rpc::node::stream_frame::Frame;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::{OPENING, Wanted, frame, lost, resize};
use crate::streams::spdy::{Output, Session, Stream};
use crate::streams::{Gone, Input, NodeStream};

/// The client's streams by what they are for.
#[derive(Default)]
struct Opened {
    status: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Opened {
    /// Whether nothing is missing.
    fn is_complete(&self, wanted: Wanted) -> bool {
        self.status.is_some()
            && (self.stdin.is_some() || !wanted.stdin)
            && (self.stdout.is_some() || !wanted.stdout)
            && (self.stderr.is_some() || !wanted.stderr)
            && (self.resize.is_some() || !wanted.tty)
    }

    /// Waits for the streams that were announced; `None` when the client leaves before.
    async fn wait(session: &mut Session, wanted: Wanted) -> Option<Self> {
        let mut opened = Self::default();
        while !opened.is_complete(wanted) {
            let stream = session.accept().await?;
            let place = match stream.headers.get("streamtype") {
                Some("error") => &mut opened.status,
                Some("stdin") => &mut opened.stdin,
                Some("stdout") => &mut opened.stdout,
                Some("stderr") => &mut opened.stderr,
                Some("resize") => &mut opened.resize,
                // Dropped, and thereby reset.
                _ => continue,
            };
            *place = Some(stream);
        }
        Some(opened)
    }
}

/// Passes stdin on; returns when the stream was reset or the connection is gone.
async fn pass_stdin(mut input: mpsc::Receiver<Input>, node: &mpsc::Sender<StreamFrame>) {
    while let Some(input) = input.recv().await {
        let sent = match input {
            Input::Data(bytes) => Frame::Stdin(bytes),
            Input::End => Frame::CloseStdin(true),
        };
        if node.send(frame(sent)).await.is_err() {
            return;
        }
    }
}

/// Passes terminal sizes on: JSON values, one after the other, wherever frames begin and end.
async fn pass_sizes(mut input: mpsc::Receiver<Input>, node: &mpsc::Sender<StreamFrame>) {
    /// A size takes about thirty bytes: what is as long and still no value never will be.
    const LONGEST: usize = 1024;
    let mut unread = Vec::new();
    while let Some(input) = input.recv().await {
        let Input::Data(bytes) = input else { continue };
        unread.extend_from_slice(&bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&unread).into_iter::<Value>();
        let mut latest = None;
        while let Some(Ok(size)) = sizes.next() {
            latest = Some(size);
        }
        let read = sizes.byte_offset();
        unread.drain(..read.min(unread.len()));
        if unread.len() > LONGEST {
            unread.clear();
        }
        if let Some(size) = latest
            && node.send(frame(resize(&size))).await.is_err()
        {
            return;
        }
    }
}

async fn send(output: Option<&Output>, bytes: Bytes) -> Result<(), Gone> {
    match output {
        Some(output) => output.send(bytes).await,
        None => Ok(()),
    }
}

pub(super) async fn serve<T>(connection: T, stream: NodeStream, wanted: Wanted)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = match Session::serve(connection) {
        Ok(session) => session,
        Err(error) => return tracing::error!(%error, "serving a SPDY connection"),
    };
    let opened = tokio::time::timeout(OPENING, Opened::wait(&mut session, wanted)).await;
    let Ok(Some(opened)) = opened else {
        return tracing::debug!("the client did not open the streams it announced");
    };
    let NodeStream {
        to_node,
        mut from_node,
    } = stream;
    let (stdin, _stdin_output) = opened.stdin.map(|s| (s.input, s.output)).unzip();
    let (sizes, _sizes_output) = opened.resize.map(|s| (s.input, s.output)).unzip();
    let (stdout, stderr) = (
        opened.stdout.map(|stream| stream.output),
        opened.stderr.map(|stream| stream.output),
    );
    let Some(status) = opened.status.map(|stream| stream.output) else {
        return;
    };
    let output = async {
        while let Some(received) = from_node.recv().await {
            let sent = match received.frame {
                Some(Frame::Stdout(bytes)) => send(stdout.as_ref(), bytes).await,
                Some(Frame::Stderr(bytes)) => send(stderr.as_ref(), bytes).await,
                Some(Frame::Status(status)) => return Some(status),
                _ => Ok(()),
            };
            if sent.is_err() {
                return None;
            }
        }
        Some(lost())
    };
    let input = async {
        if let Some(stdin) = stdin {
            pass_stdin(stdin, &to_node).await;
        }
        // A client without stdin, or whose stdin failed, still waits for the end.
        std::future::pending::<()>().await;
    };
    let terminal = async {
        if let Some(sizes) = sizes {
            pass_sizes(sizes, &to_node).await;
        }
        std::future::pending::<()>().await;
    };
    let left = async { while session.accept().await.is_some() {} };
    let ended = tokio::select! {
        ended = output => ended,
        () = input => None,
        () = terminal => None,
        // Dropping the node's stream ends the command.
        () = left => None,
    };
    if let Some(ended) = ended {
        for output in [stdout, stderr].into_iter().flatten() {
            output.finish().await;
        }
        status.send(ended).await.ok();
        status.finish().await;
    }
}
