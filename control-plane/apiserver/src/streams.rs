//! Logs, exec, attach and port-forward: from the client's HTTP or WebSocket to whichever node runs the pod.

mod logs;
mod websocket;

pub(crate) use logs::logs;
pub(crate) use websocket::upgrade;

use async_trait::async_trait;
use gantry_api::status::StatusError;
use gantry_rpc::node::{OpenStream, StreamFrame};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::codec;
use crate::context::{Context, meta};

/// Both directions of a stream to a node; closing the sender ends it.
pub struct NodeStream {
    /// stdin, terminal sizes, the end of stdin.
    pub to_node: mpsc::Sender<StreamFrame>,
    /// stdout, stderr, and last the status.
    pub from_node: mpsc::Receiver<StreamFrame>,
}

/// Opens streams to nodes; the composition root has the links.
#[async_trait]
pub trait NodeStreams: Send + Sync + 'static {
    /// Opens a stream, or says in one sentence why that cannot be.
    async fn open(&self, node: &str, request: OpenStream) -> Result<NodeStream, String>;
}

/// No nodes: for tests and for a server that has no links yet.
pub struct NoNodes;

#[async_trait]
impl NodeStreams for NoNodes {
    async fn open(&self, node: &str, _request: OpenStream) -> Result<NodeStream, String> {
        Err(format!("node \"{node}\" is not connected"))
    }
}

/// The pod's node and a request that names pod and container; the container's name is checked, and chosen when the
/// client names none.
fn target(context: &Context<'_>) -> Result<(String, OpenStream), StatusError> {
    let entry = context.current()?;
    let pod = codec::decode(context.resource.info(), &entry.value)?;
    let node = pod["spec"]["nodeName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let containers = |list: &str| -> Vec<String> {
        pod["spec"][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| container["name"].as_str().map(str::to_owned))
            .collect()
    };
    let (main, init) = (containers("containers"), containers("initContainers"));
    let annotated =
        pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let container = match context.query.get("container").or(annotated) {
        Some(name) if main.iter().chain(&init).any(|known| known == name) => name.to_owned(),
        Some(name) => {
            return Err(StatusError::bad_request(format!(
                "container {name} is not valid for pod {}",
                context.name()
            )));
        }
        None => match main.as_slice() {
            [only] => only.clone(),
            several => {
                let mut choices = format!("choose one of: [{}]", several.join(" "));
                if !init.is_empty() {
                    choices.push_str(&format!(
                        " or one of the init containers: [{}]",
                        init.join(" ")
                    ));
                }
                return Err(StatusError::bad_request(format!(
                    "a container name must be specified for pod {}, {choices}",
                    context.name()
                )));
            }
        },
    };
    if node.is_empty() {
        return Err(StatusError::bad_request(format!(
            "pod {} does not have a host assigned",
            context.name()
        )));
    }
    let request = OpenStream {
        namespace: context.namespace().unwrap_or_default().to_owned(),
        pod: context.name().to_owned(),
        pod_uid: meta(&pod, "uid").to_owned(),
        container,
        ..OpenStream::default()
    };
    Ok((node, request))
}

/// The error that a status frame carries, unless it says success.
fn failure(status: &[u8]) -> Option<StatusError> {
    let status: Value = serde_json::from_slice(status).unwrap_or_default();
    if status["status"] == "Success" {
        return None;
    }
    let message = status["message"]
        .as_str()
        .unwrap_or("the node could not serve the stream")
        .to_owned();
    let code = status["code"]
        .as_u64()
        .and_then(|code| u16::try_from(code).ok())
        .unwrap_or(500);
    Some(match code {
        400 => StatusError::bad_request(message),
        _ => StatusError::internal(message),
    })
}
