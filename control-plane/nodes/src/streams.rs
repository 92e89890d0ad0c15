//! Exec, attach, log and port-forward streams: joins the client's end to the node that dialled back.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use gantry_rpc::node::StreamFrame;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::calls;
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
    let first = calls::first(up.message()).await?.ok_or_else(|| {
        Status::invalid_argument("the first frame of a stream carries its stream_id")
    })?;
    let waiting = hub.claim(node, &first.stream_id).ok_or_else(|| {
        let id = said::shown(&first.stream_id);
        Status::not_found(format!("nobody waits for stream \"{id}\""))
    })?;
    let (to_node, from_node) = waiting.accept();
    let (hub, node, id) = (hub.clone(), node.to_owned(), first.stream_id.clone());
    let over = CancellationToken::new();
    let ends_with_it = over.clone().drop_guard();
    tokio::spawn(async move {
        // Nothing goes to a node that is not heard any more.
        let _over = ends_with_it;
        let client_left = tokio::select! {
            biased;
            () = cut => return,
            left = copy(first, &mut up, &from_node) => left,
        };
        // The node may be waiting for its client to read or to write.
        if client_left {
            hub.close(&node, id).await;
        }
    });
    let to_node = ReceiverStream::new(to_node).take_until(over.cancelled_owned());
    Ok(to_node.map(Ok))
}

/// Gives a node's frames to its client; returns when either ends, and whether that is the client.
async fn copy(
    first: StreamFrame,
    up: &mut Streaming<StreamFrame>,
    from_node: &mpsc::Sender<StreamFrame>,
) -> bool {
    if first.frame.is_some() && from_node.send(first).await.is_err() {
        return true;
    }
    loop {
        let frame = tokio::select! {
            biased;
            frame = up.message() => frame,
            () = from_node.closed() => return true,
        };
        let Ok(Some(frame)) = frame else { return false };
        if from_node.send(frame).await.is_err() {
            return true;
        }
    }
}
