//! Exec, attach, logs and port-forward: each is one call back to the server, with a flow control of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_rpc::node::node_link_client::NodeLinkClient;
use gantry_rpc::node::open_stream::Kind;
use gantry_rpc::node::stream_frame::Frame;
use gantry_rpc::node::{LogOptions, OpenStream, StreamFrame};
use gantry_runtime::{
    ContainerId, ContainerState, ExecSpec, IoSession, PodUid, Runtime, RuntimeEvent, TerminalSize,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::desired::Desired;
use crate::logs::{self, LogQuery};

const CHUNK: usize = 32 * 1024;
const QUEUE: usize = 16;

/// Serves the streams that the server asks for.
pub(crate) struct Streams {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) desired: Arc<Desired>,
    pub(crate) logs_dir: PathBuf,
}

/// Why a stream could not be served, or how it ended; becomes a metav1.Status.
struct Failure {
    code: u16,
    reason: &'static str,
    message: String,
}

fn failure(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
    Failure {
        code,
        reason,
        message: message.into(),
    }
}

fn internal(error: &dyn std::error::Error) -> Failure {
    failure(500, "InternalError", crate::pod::words(error))
}

/// The exit code of a command as `kubectl exec` reads it.
fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    }
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure_status(failure: &Failure) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": failure.message, "reason": failure.reason, "code": failure.code,
    })
}

fn frame(frame: Frame) -> StreamFrame {
    StreamFrame {
        stream_id: String::new(),
        frame: Some(frame),
    }
}

/// The frames of one stream, both ways.
struct Wire {
    up: mpsc::Sender<StreamFrame>,
    down: mpsc::Receiver<StreamFrame>,
}

impl Streams {
    /// Serves one stream in the background.
    pub(crate) fn open(self: &Arc<Self>, open: OpenStream, mut client: NodeLinkClient<Channel>) {
        let streams = self.clone();
        tokio::spawn(async move {
            let (up, outbound) = mpsc::channel(QUEUE);
            let first = StreamFrame {
                stream_id: open.stream_id.clone(),
                frame: None,
            };
            if up.send(first).await.is_err() {
                return;
            }
            let down = match client.attach(ReceiverStream::new(outbound)).await {
                Ok(answer) => inbound(answer.into_inner()),
                Err(status) => {
                    tracing::warn!(stream = open.stream_id, %status, "opening a stream");
                    return;
                }
            };
            let last = up.clone();
            let status = match streams.serve(open, Wire { up, down }).await {
                Ok(status) => status,
                Err(failed) => failure_status(&failed),
            };
            // A client that has gone needs no status.
            last.send(frame(Frame::Status(status.to_string().into())))
                .await
                .ok();
        });
    }

    async fn serve(&self, open: OpenStream, wire: Wire) -> Result<Value, Failure> {
        let (namespace, name) = (open.namespace.as_str(), open.pod.as_str());
        let uid = match self.desired.pod(namespace, name) {
            Some(pod) => pod.metadata.uid.clone().unwrap_or_default(),
            None => open.pod_uid.clone(),
        };
        if !open.pod_uid.is_empty() && uid != open.pod_uid {
            return Err(failure(
                404,
                "NotFound",
                format!("pods \"{name}\" not found"),
            ));
        }
        let directory = self
            .logs_dir
            .join(format!("{namespace}_{name}_{uid}"))
            .join(&open.container);
        let attempt = last_attempt(&directory);
        let id = ContainerId {
            pod: PodUid(uid),
            name: open.container.clone(),
            attempt: attempt.unwrap_or(0),
        };
        let no_container = || {
            failure(
                400,
                "BadRequest",
                format!(
                    "container \"{}\" in pod \"{name}\" is waiting to start: ContainerCreating",
                    open.container
                ),
            )
        };
        match open.kind {
            Some(Kind::Exec(options)) => {
                attempt.ok_or_else(no_container)?;
                let spec = ExecSpec {
                    args: options.command,
                    tty: options.tty,
                    stdin: options.stdin,
                    timeout: None,
                };
                let session = self
                    .runtime
                    .exec(&id, spec)
                    .await
                    .map_err(|error| internal(&error))?;
                converse(session, wire).await
            }
            Some(Kind::Attach(options)) => {
                attempt.ok_or_else(no_container)?;
                let session = self
                    .runtime
                    .attach(&id, options.stdin)
                    .await
                    .map_err(|error| internal(&error))?;
                converse(session, wire).await
            }
            Some(Kind::Logs(options)) => {
                let attempt = attempt.ok_or_else(no_container)?;
                self.logs(&directory, id, attempt, &options, wire).await
            }
            Some(Kind::PortForward(options)) => {
                self.forward(&open.namespace, name, options.port, wire)
                    .await
            }
            None => Err(failure(
                400,
                "BadRequest",
                "the server asked for a stream of no kind that this node knows",
            )),
        }
    }

    async fn logs(
        &self,
        directory: &Path,
        mut id: ContainerId,
        attempt: u32,
        options: &LogOptions,
        mut wire: Wire,
    ) -> Result<Value, Failure> {
        if options.previous {
            id.attempt = attempt.checked_sub(1).filter(|old| directory.join(format!("{old}.log")).exists()).ok_or_else(
                || {
                    let (container, pod) = (&id.name, &id.pod.0);
                    failure(400, "BadRequest", format!("previous terminated container \"{container}\" in pod \"{pod}\" not found"))
                },
            )?;
        }
        let query = query(options)?;
        let ended = CancellationToken::new();
        let watcher = if query.follow {
            Some(self.watch_end(id.clone(), ended.clone()))
        } else {
            None
        };
        let (sender, mut lines) = mpsc::channel(256);
        let read = async {
            let result = logs::read(directory, id.attempt, &query, &ended, &sender).await;
            drop(sender);
            result.map_err(|error| internal(&error))
        };
        let send = async {
            while let Some(line) = lines.recv().await {
                let mut bytes = line.bytes;
                // What is there already goes in one frame.
                while bytes.len() < CHUNK
                    && let Ok(more) = lines.try_recv()
                {
                    bytes.extend(more.bytes);
                }
                if wire
                    .up
                    .send(frame(Frame::Stdout(bytes.into())))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        };
        let both = async { tokio::join!(read, send).0 };
        let result = tokio::select! {
            result = both => result,
            // The client went away.
            () = hung_up(&mut wire.down) => Ok(()),
        };
        if let Some(watcher) = watcher {
            watcher.abort();
        }
        result.map(|()| exit_status(0))
    }

    /// Cancels the token when the container is not running, or ends.
    fn watch_end(&self, id: ContainerId, ended: CancellationToken) -> tokio::task::JoinHandle<()> {
        let runtime = self.runtime.clone();
        tokio::spawn(async move {
            loop {
                let mut events = runtime.events();
                let runs = |containers: &[gantry_runtime::ContainerStatus]| {
                    containers.iter().any(|known| {
                        known.id == id && !matches!(known.state, ContainerState::Exited(_))
                    })
                };
                let sandboxes = runtime.sandboxes().await.unwrap_or_default();
                if !sandboxes
                    .iter()
                    .any(|sandbox| sandbox.spec.pod == id.pod && runs(&sandbox.containers))
                {
                    return ended.cancel();
                }
                loop {
                    match events.recv().await {
                        Ok(RuntimeEvent::Exited { id: other, .. }) if other == id => {
                            return ended.cancel();
                        }
                        Ok(RuntimeEvent::SandboxLost { pod }) if pod == id.pod => {
                            return ended.cancel();
                        }
                        Ok(_) => {}
                        // Something may have been missed: look again.
                        Err(_) => break,
                    }
                }
            }
        })
    }

    async fn forward(
        &self,
        namespace: &str,
        name: &str,
        port: u32,
        wire: Wire,
    ) -> Result<Value, Failure> {
        let pod = self.desired.pod(namespace, name);
        let ip = pod
            .as_ref()
            .and_then(|pod| pod.status.as_ref()?.pod_ip.clone());
        let ip =
            ip.ok_or_else(|| failure(400, "BadRequest", format!("pod {name} has no address yet")))?;
        let port = u16::try_from(port)
            .map_err(|_| failure(400, "BadRequest", format!("{port} is not a port")))?;
        let stream = TcpStream::connect((ip.as_str(), port))
            .await
            .map_err(|error| {
                failure(
                    500,
                    "InternalError",
                    format!("failed to connect to {ip}:{port} inside pod {name}: {error}"),
                )
            })?;
        let (mut from, mut to) = stream.into_split();
        let Wire { up, mut down } = wire;
        let inbound = async {
            while let Some(message) = down.recv().await {
                match message.frame {
                    Some(Frame::Stdin(bytes)) if to.write_all(&bytes).await.is_err() => return,
                    Some(Frame::CloseStdin(_)) => {
                        to.shutdown().await.ok();
                    }
                    _ => {}
                }
            }
        };
        tokio::select! {
            () = copy_out(&mut from, &up, Frame::Stdout) => {}
            () = inbound => {}
        }
        Ok(exit_status(0))
    }
}

/// Returns when the client is gone.
/// Takes in what the client sends. The answer is held open until the server ends it: dropping it earlier would cancel
/// the call, and with it the last frames on their way up.
fn inbound(mut answer: Streaming<StreamFrame>) -> mpsc::Receiver<StreamFrame> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while let Ok(Some(message)) = answer.message().await {
            // Nobody reads any more once the command has ended; the server's end is still waited for.
            sender.send(message).await.ok();
        }
    });
    receiver
}

async fn hung_up(down: &mut mpsc::Receiver<StreamFrame>) {
    while down.recv().await.is_some() {}
}

fn last_attempt(directory: &Path) -> Option<u32> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix(".log")?.parse().ok())
        .max()
}

fn query(options: &LogOptions) -> Result<LogQuery, Failure> {
    let bad = |what: &str| failure(400, "BadRequest", format!("invalid log option {what}"));
    let since = match (&options.since_time, options.since_seconds) {
        (Some(time), _) => Some(time.parse::<Timestamp>().map_err(|_| bad("sinceTime"))?),
        (None, Some(seconds)) => Some(Timestamp::now() - jiff::SignedDuration::from_secs(seconds)),
        (None, None) => None,
    };
    let tail = options
        .tail_lines
        .map(usize::try_from)
        .transpose()
        .map_err(|_| bad("tailLines"))?;
    let limit_bytes = options
        .limit_bytes
        .map(u64::try_from)
        .transpose()
        .map_err(|_| bad("limitBytes"))?;
    Ok(LogQuery {
        follow: options.follow,
        timestamps: options.timestamps,
        since,
        tail,
        limit_bytes,
    })
}

async fn copy_out(
    from: &mut (dyn AsyncRead + Send + Unpin),
    up: &mpsc::Sender<StreamFrame>,
    wrap: fn(bytes::Bytes) -> Frame,
) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let bytes = bytes::Bytes::copy_from_slice(&buffer[..count]);
        if up.send(frame(wrap(bytes))).await.is_err() {
            return;
        }
    }
}

/// Carries a session's bytes until its command has ended and all of its output was sent, or the client is gone.
async fn converse(mut session: IoSession, wire: Wire) -> Result<Value, Failure> {
    let Wire { up, mut down } = wire;
    let mut stdin = session.stdin.take();
    let resize = session.resize.clone();
    let inbound = async {
        while let Some(message) = down.recv().await {
            match message.frame {
                Some(Frame::Stdin(bytes)) => {
                    if let Some(writer) = &mut stdin
                        && (writer.write_all(&bytes).await.is_err()
                            || writer.flush().await.is_err())
                    {
                        stdin = None;
                    }
                }
                Some(Frame::CloseStdin(true)) => stdin = None,
                Some(Frame::Resize(size)) => {
                    let cells = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
                    let size = TerminalSize {
                        width: cells(size.width),
                        height: cells(size.height),
                    };
                    resize.send(size).await.ok();
                }
                _ => {}
            }
        }
    };
    let mut stderr = session.stderr.take();
    let errors = async {
        if let Some(stderr) = &mut stderr {
            copy_out(stderr, &up, Frame::Stderr).await;
        }
    };
    let outbound = async {
        tokio::join!(copy_out(&mut session.stdout, &up, Frame::Stdout), errors);
        (&mut session.exit).await
    };
    tokio::select! {
        exit = outbound => match exit {
            Ok(Ok(code)) => Ok(exit_status(code)),
            Ok(Err(error)) => Err(internal(&error)),
            Err(_) => Err(failure(500, "InternalError", "the container ended before its command did")),
        },
        // Dropping the session ends the command or detaches.
        () = inbound => Err(failure(500, "InternalError", "the client closed the stream")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_as_kubectl_reads_them() {
        assert_eq!(exit_status(0)["status"], "Success");
        let failed = exit_status(3);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(
            failed["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "3"})
        );
    }

    #[test]
    fn attempts_are_found_by_their_logs() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(last_attempt(directory.path()), None);
        for name in ["0.log", "10.log", "9.log.1", "x.log"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(last_attempt(directory.path()), Some(10));
    }

    #[test]
    fn log_options() {
        let options = LogOptions {
            tail_lines: Some(-1),
            ..LogOptions::default()
        };
        assert!(query(&options).is_err());
        let options = LogOptions {
            since_time: Some("nonsense".into()),
            ..LogOptions::default()
        };
        assert!(query(&options).is_err());
        let options = LogOptions {
            since_seconds: Some(5),
            limit_bytes: Some(7),
            ..LogOptions::default()
        };
        let query = query(&options).ok().unwrap();
        assert!(
            query.since.is_some_and(|since| since < Timestamp::now())
                && query.limit_bytes == Some(7)
        );
    }
}
