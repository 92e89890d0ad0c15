//! Port-forward: one connection to a port inside a pod, on the frames of a stream.

use gantry_rpc::node::stream_frame::Frame;
use gantry_runtime::{PodUid, Runtime};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::status::{Failure, exit_status, failure};
use super::{Wire, copy_out};

/// Connects to the pod's loopback and copies until the pod closes the connection or the client is gone. `name` is for
/// messages.
pub(super) async fn forward(
    runtime: &dyn Runtime,
    pod: &PodUid,
    name: &str,
    port: u32,
    wire: Wire,
) -> Result<Value, Failure> {
    let port = match u16::try_from(port) {
        Ok(port @ 1..) => port,
        _ => return Err(failure(400, "BadRequest", format!("{port} is not a port"))),
    };
    let sandbox = runtime.sandbox(pod).ok_or_else(|| {
        let message = format!("pod {name} does not run on its node");
        failure(400, "BadRequest", message)
    })?;
    let connected = gantry_network::connect_inside(sandbox.netns.as_deref(), port).await;
    let stream = connected.map_err(|error| {
        let words = crate::pod::words(&error);
        let message = format!("error forwarding port {port} to pod {name}: {words}");
        failure(500, "InternalError", message)
    })?;
    let (mut from, mut to) = stream.into_split();
    let Wire { up, mut down } = wire;
    let inbound = async {
        while let Some(message) = down.recv().await {
            let passed = match message.frame {
                Some(Frame::Stdin(bytes)) => to.write_all(&bytes).await,
                Some(Frame::CloseStdin(_)) => to.shutdown().await,
                _ => Ok(()),
            };
            if passed.is_err() {
                // It reads no more; what it still says is wanted.
                while down.recv().await.is_some() {}
            }
        }
    };
    tokio::select! {
        () = copy_out(&mut from, &up, Frame::Stdout) => {}
        () = inbound => {}
    }
    Ok(exit_status(0))
}
