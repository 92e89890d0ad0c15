//! Exec, attach, log and port-forward streams: joins the client's end to the node that dialled back.

use std::sync::Arc;

use futures::Stream;
use gantry_rpc::node::StreamFrame;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::hub::Hub;
use super::said;

/// Claims the stream that the first frame names, and copies the node's frames to its client until either ends, or until
/// the node is `cut` off.
pub(crate) async fn attach(
    hub: &Arc<Hub>,
    node: &str,
    mut up: Streaming<StreamFrame>,
    cut: impl Future<Output = ()> + Send + 'static,
) -> Result<impl Stream<Item = Result<StreamFrame, Status>> + Send + 'static, Status> {
    let first = up.message().await?.ok_or_else(|| {
        Status::invalid_argument("the first frame of a stream carries its stream_id")
    })?;
    let waiting = hub.claim(node, &first.stream_id).ok_or_else(|| {
        let id = said::shown(&first.stream_id);
        Status::not_found(format!("nobody waits for stream \"{id}\""))
    })?;
    let (to_node, from_node) = waiting.accept();
    let (hub, node, id) = (hub.clone(), node.to_owned(), first.stream_id.clone());
    tokio::spawn(async move {
        if first.frame.is_some() && from_node.send(first).await.is_err() {
            return hub.close(&node, id).await;
        }
        tokio::pin!(cut);
        loop {
            let frame = tokio::select! {
                biased;
                () = &mut cut => return,
                frame = up.message() => frame,
                // The client has left, and the node may be waiting for it to read or to write.
                () = from_node.closed() => return hub.close(&node, id).await,
            };
            let Ok(Some(frame)) = frame else { return };
            if from_node.send(frame).await.is_err() {
                return hub.close(&node, id).await;
            }
        }
    });
    Ok(ReceiverStream::new(to_node).map(Ok))
}
