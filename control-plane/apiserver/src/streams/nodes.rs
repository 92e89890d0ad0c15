//! Where streams to nodes come from.

use async_trait::async_trait;
use gantry_rpc::node::{OpenStream, StreamFrame};
use tokio::sync::mpsc;

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
