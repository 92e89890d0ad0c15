//! Port-forward: one connection to a port inside a pod, on the frames of a stream.

use gantry_rpc::node::PortForwardOptions;
use gantry_rpc::node::stream_frame::Frame;
use gantry_runtime::{PodUid, Runtime};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use super::status::{Failure, exit_status, failure};
use super::{Wire, copy_out, frame};

/// Connects to the pod's loopback and copies until both sides have said all, the connection breaks off or the client is
/// gone. `name` is for messages.
pub(super) async fn forward(
    runtime: &dyn Runtime,
    pod: &PodUid,
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
        let told = in_order && options.half_close && {
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
    Ok(exit_status(0))
}
