//! Port-forward: each connection that the client takes becomes one stream to the node, which connects inside the pod.
//!
//! Clients speak SPDY, tunnelled in WebSocket messages (kubectl since 1.31) or by itself (before), with two streams for
//! each connection; or WebSocket channels, two for each port of the query (client libraries, and `gantry`, with a word for the
//! end of one direction).

mod channels;
mod spdy;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use gantry_api::status::StatusError;
use gantry_rpc::node::{
    OpenStream, PortForwardOptions, StreamFrame, open_stream, stream_frame::Frame,
};
use http::{Request, Response};
use tokio::sync::mpsc;

use super::upgrade::{Known, Transport, agree};
use super::websocket::{Framing, accept, pipe};
use super::{Gone, Input, NodeStream, NodeStreams, failed, pieces, pod};
use crate::context::Context;

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// As `v4.channel.k8s.io`, and channel 255 says which channel has ended. Not called `v5.channel.k8s.io`, which has that
/// too: client libraries offer it, and take such a message for a fault.
const ENDS: &str = "ends.v4.channel.gantry";
const KNOWN: Known = Known {
    websocket: &[
        "",
        TUNNEL,
        ENDS,
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
    ],
    newest: &[TUNNEL, ENDS],
    spdy: &["portforward.k8s.io"],
};

/// Opens connections to the ports of one pod.
#[derive(Clone)]
pub(super) struct Ports {
    streams: Arc<dyn NodeStreams>,
    node: String,
    /// Names the pod.
    request: OpenStream,
    /// Which of the pod's addresses; its loopback when empty.
    address: String,
}

impl Ports {
    /// Those on the loopback of the pod that `request` names.
    pub(super) fn new(streams: Arc<dyn NodeStreams>, node: String, request: OpenStream) -> Self {
        Self {
            streams,
            node,
            request,
            address: String::new(),
        }
    }

    /// Those on one of the pod's addresses instead.
    pub(super) fn at(self, address: IpAddr) -> Self {
        Self {
            address: address.to_string(),
            ..self
        }
    }

    pub(super) async fn open(&self, port: u16) -> Result<NodeStream, String> {
        let mut request = self.request.clone();
        request.kind = Some(open_stream::Kind::PortForward(PortForwardOptions {
            port: port.into(),
            half_close: true,
            address: self.address.clone(),
        }));
        self.streams.open(&self.node, request).await
    }
}

/// Answers 101, then forwards until the client leaves.
pub(crate) async fn port_forward(
    context: &Context<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    let agreed = agree(request.method(), context.headers, &KNOWN)?;
    let (node, named) = pod(context)?.place(context)?;
    let ports = Ports::new(context.api.streams.clone(), node, named);
    Ok(match (agreed.transport, agreed.protocol) {
        (Transport::Spdy, _) => {
            agreed.switch(request, move |connection| spdy::serve(connection, ports))
        }
        (Transport::WebSocket, TUNNEL) => agreed.switch(request, async move |connection| {
            spdy::serve(pipe(accept(connection).await), ports).await;
        }),
        (Transport::WebSocket, protocol) => {
            let numbers = channels::ports(context.query.all("ports"))?;
            let dialect = channels::Dialect {
                framing: Framing::of(protocol),
                ends: protocol == ENDS,
            };
            agreed.switch(request, move |connection| {
                channels::serve(connection, ports, numbers, dialect)
            })
        }
    })
}

/// Where the bytes of a pod's port go.
#[async_trait]
pub(super) trait Client: Sync {
    async fn send(&self, bytes: Bytes) -> Result<(), Gone>;
    /// The pod writes no more, and may still read. [`Gone`] where a client can be told no other way than by the end of
    /// its connection.
    async fn end(&self) -> Result<(), Gone>;
}

/// Carries one connection until both directions have ended or the client abandons it. The error is worded for the client.
pub(super) async fn forward(
    node: NodeStream,
    mut from_client: mpsc::Receiver<Input>,
    client: &dyn Client,
) -> Result<(), String> {
    let NodeStream {
        to_node,
        mut from_node,
    } = node;
    let up = async {
        while let Some(input) = from_client.recv().await {
            let frames: Vec<Frame> = match input {
                Input::Data(bytes) => pieces(bytes).map(Frame::Stdin).collect(),
                Input::End => vec![Frame::CloseStdin(true)],
            };
            for frame in frames {
                let frame = StreamFrame {
                    stream_id: String::new(),
                    frame: Some(frame),
                };
                if to_node.send(frame).await.is_err() {
                    // The node's last words are still to be read.
                    std::future::pending::<()>().await;
                }
            }
        }
    };
    let down = async {
        while let Some(received) = from_node.recv().await {
            let sent = match received.frame {
                Some(Frame::Stdout(bytes)) => client.send(bytes).await,
                Some(Frame::CloseStdout(_)) => client.end().await,
                Some(Frame::Status(status)) => {
                    return failed(&status).map_or(Ok(()), |(_, message)| Err(message));
                }
                _ => Ok(()),
            };
            if sent.is_err() {
                return Ok(());
            }
        }
        Err("the connection to the node was lost".to_owned())
    };
    tokio::select! {
        () = up => Ok(()),
        ended = down => ended,
    }
}

#[cfg(test)]
mod tests;
