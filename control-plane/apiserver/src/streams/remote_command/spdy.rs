//! exec and attach over SPDY/3.1: a stream each for stdin, stdout, stderr, terminal sizes (since version 3) and the status.

use bytes::Bytes;
use gantry_rpc::node::StreamFrame;
use gantry_rpc::node::stream_frame::Frame;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::{LONGEST_SIZE, OPENING, V2, Verdict, Wanted, frame, lost, resize};
use crate::streams::spdy::{Output, Session, Stream};
use crate::streams::{Gone, Input, NodeStream, pieces};

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
    fn is_complete(&self, wanted: Wanted, sizes: bool) -> bool {
        self.status.is_some()
            && (self.stdin.is_some() || !wanted.stdin)
            && (self.stdout.is_some() || !wanted.stdout)
            && (self.stderr.is_some() || !wanted.stderr)
            && (self.resize.is_some() || !sizes)
    }

    /// Waits for the streams that were announced; `None` when the client leaves before.
    async fn wait(session: &mut Session, wanted: Wanted, sizes: bool) -> Option<Self> {
        let mut opened = Self::default();
        while !opened.is_complete(wanted, sizes) {
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
        let frames: Vec<Frame> = match input {
            Input::Data(bytes) => pieces(bytes).map(Frame::Stdin).collect(),
            Input::End => vec![Frame::CloseStdin(true)],
        };
        for sent in frames {
            if node.send(frame(sent)).await.is_err() {
                return;
            }
        }
    }
}

/// Passes terminal sizes on: JSON values, one after the other, wherever frames begin and end.
async fn pass_sizes(mut input: mpsc::Receiver<Input>, node: &mpsc::Sender<StreamFrame>) {
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
        // What is as long and still no value never will be.
        if unread.len() > LONGEST_SIZE {
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

pub(super) async fn serve<T>(
    connection: T,
    stream: NodeStream,
    wanted: Wanted,
    protocol: &'static str,
) where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = match Session::serve(connection) {
        Ok(session) => session,
        Err(error) => return tracing::error!(%error, "serving a SPDY connection"),
    };
    let announced = Opened::wait(&mut session, wanted, wanted.tty && protocol != V2);
    let opened = tokio::time::timeout(OPENING, announced).await;
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
        if let Some(told) = Verdict::of(protocol).told(ended) {
            status.send(told).await.ok();
        }
        status.finish().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::spdy::testing::Client;

    const ALL: Wanted = Wanted {
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    };

    struct Bed {
        client: Client,
        from_client: mpsc::Receiver<StreamFrame>,
        to_client: mpsc::Sender<StreamFrame>,
    }

    impl Bed {
        /// A client that opens streams 1, 3, ... of these types.
        async fn new(wanted: Wanted, types: &[&str]) -> Self {
            Self::speaking("v4.channel.k8s.io", wanted, types).await
        }

        async fn speaking(protocol: &'static str, wanted: Wanted, types: &[&str]) -> Self {
            let (mut client, connection) = Client::pair();
            let (to_node, from_client) = mpsc::channel(4);
            let (to_client, from_node) = mpsc::channel(4);
            let stream = NodeStream { to_node, from_node };
            tokio::spawn(serve(connection, stream, wanted, protocol));
            for (number, kind) in (1..).step_by(2).zip(types) {
                client.open(number, false, &[("streamtype", kind)]).await;
            }
            Self {
                client,
                from_client,
                to_client,
            }
        }

        async fn node_reads(&mut self) -> Option<Frame> {
            self.from_client.recv().await?.frame
        }

        async fn node_says(&self, said: Frame) {
            self.to_client.send(frame(said)).await.expect("open");
        }
    }

    #[tokio::test]
    async fn each_stream_carries_its_own() {
        let mut bed = Bed::new(ALL, &["error", "stdin", "stdout", "stderr"]).await;
        bed.client.data(3, true, "in").await;
        let read = bed.node_reads().await;
        assert_eq!(read, Some(Frame::Stdin(Bytes::from_static(b"in"))));
        assert_eq!(bed.node_reads().await, Some(Frame::CloseStdin(true)));
        bed.node_says(Frame::Stdout(Bytes::from_static(b"out")))
            .await;
        bed.node_says(Frame::Stderr(Bytes::from_static(b"err")))
            .await;
        let status = Bytes::from_static(b"{\"status\":\"Success\"}");
        bed.node_says(Frame::Status(status)).await;
        let read = bed.client.read_to_end(&[1, 5, 7]).await;
        assert_eq!(
            (read[&1].as_str(), read[&5].as_str(), read[&7].as_str()),
            ("{\"status\":\"Success\"}", "out", "err")
        );
        assert!(bed.client.is_closed().await);
        assert_eq!(bed.node_reads().await, None);
    }

    #[tokio::test]
    async fn older_clients_are_told_failures_in_words_and_no_success() {
        for (protocol, types) in [
            ("v3.channel.k8s.io", &["error", "stdout", "resize"][..]),
            (V2, &["error", "stdout"]),
        ] {
            let wanted = Wanted {
                stdin: false,
                stdout: true,
                stderr: false,
                tty: true,
            };
            for (status, told) in [
                ("{\"status\":\"Success\"}", ""),
                ("{\"status\":\"Failure\",\"message\":\"exit 3\"}", "exit 3"),
            ] {
                let mut bed = Bed::speaking(protocol, wanted, types).await;
                bed.node_says(Frame::Status(Bytes::from_static(status.as_bytes())))
                    .await;
                let read = bed.client.read_to_end(&[1, 3]).await;
                assert_eq!((read[&1].as_str(), read[&3].as_str()), (told, ""));
            }
        }
    }

    #[tokio::test]
    async fn a_terminals_sizes_may_come_in_pieces() {
        let wanted = Wanted {
            stderr: false,
            tty: true,
            ..ALL
        };
        let mut bed = Bed::new(wanted, &["error", "stdin", "stdout", "resize"]).await;
        bed.client.data(7, false, "{\"Width\":80,").await;
        bed.client.data(7, false, "\"Height\":24}\n").await;
        let size = gantry_rpc::node::TerminalSize {
            width: 80,
            height: 24,
        };
        assert_eq!(bed.node_reads().await, Some(Frame::Resize(size)));
    }

    #[tokio::test]
    async fn a_lost_node_is_the_status() {
        let mut bed = Bed::new(ALL, &["stderr", "stdout", "stdin", "error"]).await;
        drop(bed.to_client);
        let read = bed.client.read_to_end(&[7]).await;
        assert!(read[&7].contains("the connection to the node was lost"));
    }

    #[tokio::test]
    async fn a_client_that_leaves_or_is_incomplete_ends_the_nodes_stream() {
        let mut bed = Bed::new(ALL, &["error", "stdin", "stdout", "stderr"]).await;
        drop(bed.client);
        assert!(bed.from_client.recv().await.is_none());
        let mut bed = Bed::new(ALL, &["error", "nonsense"]).await;
        bed.client.wait_reset(3).await;
        drop(bed.client);
        assert!(bed.from_client.recv().await.is_none());
    }
}
