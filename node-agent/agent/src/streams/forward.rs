//! Port-forward and proxied requests: one connection to a port of a pod, on the frames of a stream.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use gantry_rpc::node::PortForwardOptions;
use gantry_rpc::node::stream_frame::Frame;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::status::{Failure, exit_status, failure};
use super::{Wire, copy_out, frame};

/// How long a pod's address may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where in a pod a port is.
#[derive(Debug)]
pub(super) enum Place {
    /// The loopback of its network namespace; `None` is the node's own.
    Loopback(Option<PathBuf>),
    /// An address of its own, on which what listens on the loopback alone is not reached.
    Address(IpAddr),
}

impl Place {
    /// Connects; the error is worded for the client.
    async fn connect(&self, name: &str, port: u16) -> Result<TcpStream, String> {
        match self {
            Self::Loopback(netns) => {
                let connected = gantry_network::connect_inside(netns.as_deref(), port).await;
                connected.map_err(|error| {
                    let words = gantry_cri::words(&error);
                    format!("error forwarding port {port} to pod {name}: {words}")
                })
            }
            Self::Address(address) => {
                let host = address.to_string();
                let connecting = gantry_pods::connect(&host, port);
                let connected = tokio::time::timeout(PATIENCE, connecting).await;
                connected.unwrap_or_else(|_| {
                    let place = std::net::SocketAddr::new(*address, port);
                    Err(format!("dial tcp {place}: i/o timeout"))
                })
            }
        }
    }
}

/// Connects to a port and copies until both sides have said all, the connection breaks off or the client is gone. `name` is
/// for messages.
pub(super) async fn forward(
    place: Place,
    name: &str,
    options: PortForwardOptions,
    wire: Wire,
) -> Result<Value, Failure> {
    let port = match u16::try_from(options.port) {
        Ok(port @ 1..) => port,
        _ => {
            let message = format!("{} is not a port", options.port);
            return Err(failure(400, "BadRequest", message));
        }
    };
    let connected = place.connect(name, port).await;
    let stream = connected.map_err(|message| failure(500, "InternalError", message))?;
    let (from, to) = stream.into_split();
    Ok(carry(from, to, options.half_close, wire).await)
}

/// Copies until both sides have said all, the connection breaks off or the client is gone.
pub(super) async fn carry(
    mut from: impl AsyncRead + Send + Unpin,
    mut to: impl AsyncWrite + Send + Unpin,
    half_close: bool,
    wire: Wire,
) -> Value {
    let Wire { up, mut down } = wire;
    let heard_all = Notify::new();
    // Ends when the client is gone.
    let inbound = async {
        let mut reads = true;
        while let Some(message) = down.recv().await {
            match message.frame {
                // A pod that reads no more may still have something to say.
                Some(Frame::Stdin(bytes)) if reads => reads = to.write_all(&bytes).await.is_ok(),
                Some(Frame::CloseStdin(_)) if reads => {
                    // Where that fails, the pod has closed the connection before.
                    to.shutdown().await.ok();
                    reads = false;
                }
                _ => {}
            }
            if !reads {
                heard_all.notify_one();
            }
        }
    };
    let outbound = async {
        let in_order = copy_out(&mut from, &up, Frame::Stdout).await;
        let told = in_order && half_close && {
            let end = frame(Frame::CloseStdout(true));
            up.send(end).await.is_ok()
        };
        if told {
            heard_all.notified().await;
        }
    };
    tokio::select! {
        () = outbound => {}
        () = inbound => {}
    }
    exit_status(0)
}
