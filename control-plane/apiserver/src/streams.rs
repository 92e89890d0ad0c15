//! Logs, exec, attach, port-forward and proxied requests: from the client's HTTP, WebSocket or SPDY to whichever node
//! runs the pod.

mod logs;
pub(crate) mod nodes;
mod port_forward;
mod proxy;
mod remote_command;
mod spdy;
mod upgrade;
mod websocket;

pub(crate) use proxy::fuzz_page;
pub(crate) use spdy::fuzz as fuzz_spdy;

pub(crate) use logs::{logs, logs_over_websocket};
pub use nodes::{NoNodes, NodeStream, NodeStreams};
pub(crate) use port_forward::port_forward;
pub(crate) use proxy::proxy;
pub(crate) use remote_command::remote_command;
pub(crate) use upgrade::{asks_for_websocket, protocol_asked_for};

use std::time::Duration;

use bytes::Bytes;
use gantry_api::status::StatusError;
use gantry_rpc::node::OpenStream;
use serde_json::Value;

use crate::codec;
use crate::context::{Context, meta};

/// What a client sends in one direction of a connection. A channel of these that closes without [`Input::End`] belongs
/// to a client that has abandoned it.
#[derive(Debug, PartialEq, Eq)]
enum Input {
    /// Bytes.
    Data(Bytes),
    /// The client writes no more, and may still read.
    End,
}

/// Bytes of one frame to a node, at most: a client's message may have much more.
const PIECE: usize = 64 * 1024;

/// What a client sent, in pieces that nodes take.
fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(PIECE));
        (!piece.is_empty()).then_some(piece)
    })
}

/// The client has gone.
#[derive(Debug, PartialEq, Eq)]
struct Gone;

/// Between pings of a client. While its input waits for a command that does not read, writing to it is the only way to
/// learn that it has left.
const PING: Duration = Duration::from_secs(10);

/// Ticks when a ping is due.
fn pings() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

/// The pod that a request names.
struct Pod(Value);

fn pod(context: &Context<'_>) -> Result<Pod, StatusError> {
    let entry = context.current()?;
    codec::decode(context.resource, &entry.value).map(Pod)
}

impl Pod {
    /// Whether a node has been chosen for it.
    fn has_node(&self) -> bool {
        let node = self.0["spec"]["nodeName"].as_str();
        node.is_some_and(|node| !node.is_empty())
    }

    /// Its node, and a request for a stream that names the pod.
    fn place(&self, context: &Context<'_>) -> Result<(String, OpenStream), StatusError> {
        let node = self.0["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Err(StatusError::bad_request(format!(
                "pod {} does not have a host assigned",
                context.name()
            )));
        }
        let request = OpenStream {
            namespace: context.namespace().unwrap_or_default().to_owned(),
            pod: context.name().to_owned(),
            pod_uid: meta(&self.0, "uid").to_owned(),
            ..OpenStream::default()
        };
        Ok((node.to_owned(), request))
    }

    /// The container that the client names, the annotated one, or the only one.
    fn container(&self, context: &Context<'_>) -> Result<String, StatusError> {
        let names = |list: &str| -> Vec<&str> {
            let containers = self.0["spec"][list].as_array().into_iter().flatten();
            containers
                .filter_map(|container| container["name"].as_str())
                .collect()
        };
        let (main, init) = (names("containers"), names("initContainers"));
        let is_known = |name: &str| main.iter().chain(&init).any(|known| *known == name);
        // What an annotation says wrongly it does not say.
        let annotated =
            self.0["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"]
                .as_str()
                .filter(|name| is_known(name));
        match (
            context.query.get("container").or(annotated),
            main.as_slice(),
        ) {
            (Some(name), _) if is_known(name) => Ok(name.to_owned()),
            (Some(name), _) => Err(StatusError::bad_request(format!(
                "container {name} is not valid for pod {}",
                context.name()
            ))),
            (None, [only]) => Ok((*only).to_owned()),
            (None, several) => {
                let mut choices = format!("choose one of: [{}]", several.join(" "));
                if !init.is_empty() {
                    choices.push_str(&format!(
                        " or one of the init containers: [{}]",
                        init.join(" ")
                    ));
                }
                Err(StatusError::bad_request(format!(
                    "a container name must be specified for pod {}, {choices}",
                    context.name()
                )))
            }
        }
    }
}

/// The pod's node and a request that names pod and container.
fn target(context: &Context<'_>) -> Result<(String, OpenStream), StatusError> {
    let pod = pod(context)?;
    let container = pod.container(context)?;
    let (node, request) = pod.place(context)?;
    Ok((
        node,
        OpenStream {
            container,
            ..request
        },
    ))
}

/// Code and words of the failure that a status frame carries; `None` when it says success.
fn failed(status: &[u8]) -> Option<(u16, String)> {
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
    Some((code, message))
}

/// The error that a status frame carries, unless it says success.
fn failure(status: &[u8]) -> Option<StatusError> {
    let (code, message) = failed(status)?;
    Some(match code {
        400 => StatusError::bad_request(message),
        404 => StatusError::new(404, "NotFound", message, None),
        _ => StatusError::internal(message),
    })
}
