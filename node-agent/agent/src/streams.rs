//! Exec, attach, logs and port-forward: each is one call back to the server, with a flow control of its own.

mod command;
mod forward;
mod logs;
mod status;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_cri::runtime::{ContainerId, ExecSpec, PodUid, Runtime};
use gantry_rpc::node::node_link_client::NodeLinkClient;
use gantry_rpc::node::open_stream::Kind;
use gantry_rpc::node::stream_frame::Frame;
use gantry_rpc::node::{OpenStream, StreamFrame};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::desired::Desired;
use crate::pages::Pages;
use crate::policies::Policies;
use command::converse;
use forward::{Place, carry, forward};
use status::{Failure, failure, failure_status, internal, not_begun};

/// Bytes of one frame, at most.
const CHUNK: usize = 32 * 1024;
/// Frames buffered per direction.
const QUEUE: usize = 16;

/// Serves the streams that the server asks for.
pub(crate) struct Streams {
    runtime: Arc<dyn Runtime>,
    desired: Arc<Desired>,
    /// Knows which addresses are whose.
    policies: Arc<Policies>,
    /// The node's own, which are those of pods in its network too.
    addresses: Vec<IpAddr>,
    logs_dir: PathBuf,
    pages: Arc<Pages>,
    /// Cancelled when a stream's client has left, by the stream's id.
    running: Mutex<BTreeMap<String, CancellationToken>>,
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
    /// Nothing is served yet. `logs_dir` holds `<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub(crate) fn new(
        runtime: Arc<dyn Runtime>,
        desired: Arc<Desired>,
        policies: Arc<Policies>,
        addresses: Vec<IpAddr>,
        logs_dir: PathBuf,
        pages: Arc<Pages>,
    ) -> Self {
        Self {
            runtime,
            desired,
            policies,
            addresses,
            logs_dir,
            pages,
            running: Mutex::default(),
        }
    }

    /// The client of a stream has left: whatever the stream waits for, it ends.
    pub(crate) fn close(&self, stream_id: &str) {
        if let Some(running) = self.running.lock().get(stream_id) {
            running.cancel();
        }
    }

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
            let Some(status) = streams.attend(open, Wire { up, down }).await else {
                return;
            };
            // A client that has gone needs no status.
            last.send(frame(Frame::Status(status.to_string().into())))
                .await
                .ok();
        });
    }

    /// Serves until the end; `None` when the client has left before, and wants no status.
    async fn attend(&self, open: OpenStream, wire: Wire) -> Option<Value> {
        let (id, left) = (open.stream_id.clone(), CancellationToken::new());
        self.running.lock().insert(id.clone(), left.clone());
        let served = tokio::select! {
            served = self.serve(open, wire) => Some(served),
            () = left.cancelled() => None,
        };
        self.running.lock().remove(&id);
        served.map(|served| served.unwrap_or_else(|failed| failure_status(&failed)))
    }

    /// The network namespace of a running pod; `None` is the node's own. `name` is for messages.
    fn netns(&self, pod: &PodUid, name: &str) -> Result<Option<PathBuf>, Failure> {
        let sandbox = self.runtime.sandbox(pod).ok_or_else(|| {
            let message = format!("pod {name} does not run on its node");
            failure(400, "BadRequest", message)
        })?;
        Ok(sandbox.netns)
    }

    /// An address, if it is the pod's: nobody is led elsewhere by what is written of a pod.
    fn own_address(&self, pod: &PodUid, on_node: bool, text: &str) -> Result<IpAddr, Failure> {
        let own = match on_node {
            true => self.addresses.clone(),
            false => self.policies.addresses(&pod.0).unwrap_or_default(),
        };
        let address: Option<IpAddr> = text.parse().ok();
        address
            .filter(|address| own.contains(address))
            .ok_or_else(|| {
                let message = format!("{text:?} is no address of the pod");
                failure(400, "BadRequest", message)
            })
    }

    async fn serve(&self, open: OpenStream, wire: Wire) -> Result<Value, Failure> {
        if let Some(Kind::Pages(_)) = open.kind {
            return Ok(self.read_pages(wire).await);
        }
        let (namespace, name) = (open.namespace.as_str(), open.pod.as_str());
        let pod = self.desired.pod(namespace, name);
        let uid = match &pod {
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
        let no_container = || not_begun(pod.as_deref(), name, &open.container);
        match open.kind {
            Some(Kind::PortForward(options)) => {
                let netns = self.netns(&id.pod, name)?;
                let place = match options.address.as_str() {
                    "" => Place::Loopback(netns),
                    text => Place::Address(self.own_address(&id.pod, netns.is_none(), text)?),
                };
                forward(place, name, options, wire).await
            }
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
                attempt.ok_or_else(no_container)?;
                self.logs(&directory, id, name, &options, wire).await
            }
            Some(Kind::Pages(_)) | None => Err(failure(
                400,
                "BadRequest",
                "the server asked for a stream of no kind that this node knows",
            )),
        }
    }
}

impl Streams {
    /// Answers requests for the node's own pages.
    async fn read_pages(&self, wire: Wire) -> Value {
        let (near, far) = tokio::io::duplex(CHUNK);
        let (from, to) = tokio::io::split(near);
        // Whichever ends, the other ends with it: each holds one end of what is between them.
        let serving = self.pages.clone().serve(far);
        let ((), ended) = tokio::join!(serving, carry(from, to, true, wire));
        ended
    }
}

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

/// Returns when the client is gone.
async fn hung_up(down: &mut mpsc::Receiver<StreamFrame>) {
    while down.recv().await.is_some() {}
}

/// The newest attempt of a container, by its logs; `None` before the first.
fn last_attempt(directory: &Path) -> Option<u32> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix(".log")?.parse().ok())
        .max()
}

/// Sends what is read until its end, or until the client is gone. Whether it ended in good order, and not because of an error.
async fn copy_out(
    from: &mut (dyn AsyncRead + Send + Unpin),
    up: &mpsc::Sender<StreamFrame>,
    wrap: fn(bytes::Bytes) -> Frame,
) -> bool {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) => return true,
            Ok(count) => count,
            Err(_) => return false,
        };
        let bytes = bytes::Bytes::copy_from_slice(&buffer[..count]);
        if up.send(frame(wrap(bytes))).await.is_err() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests;
