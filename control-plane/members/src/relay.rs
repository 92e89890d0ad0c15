//! Streams to nodes from whichever server a client has asked: nodes are linked to the leader alone, so that another passes
//! the stream on to it.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use gantry_apiserver::{NodeStream, NodeStreams};
use gantry_rpc::node::{OpenStream, StreamFrame};
use gantry_rpc::raft::NodeStreamFrame;
use gantry_rpc::raft::raft_client::RaftClient;
use gantry_store::Store;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::leader::elsewhere;
use crate::peers::Peers;

/// Frames of a relayed stream that wait for the network.
const RELAY_BUFFER: usize = 16;

/// Streams through the links of the server that leads.
pub struct LeaderStreams {
    /// This server's own links, for when it leads.
    pub own: Arc<dyn NodeStreams>,
    /// Who leads.
    pub store: Store,
    /// How the leader is reached.
    pub peers: Peers,
}

impl LeaderStreams {
    async fn relayed(&self, leader: u64, node: &str, open: OpenStream) -> Result<NodeStream> {
        let channel = self.peers.connect(leader).await?;
        let (to_node, mut frames) = mpsc::channel::<StreamFrame>(RELAY_BUFFER);
        let (up, outbound) = mpsc::channel(RELAY_BUFFER);
        let first = NodeStreamFrame {
            node: node.to_owned(),
            open: Some(open),
            frame: None,
        };
        // The queue is empty: there is room.
        up.send(first).await.ok();
        tokio::spawn(async move {
            while let Some(frame) = frames.recv().await {
                let frame = NodeStreamFrame {
                    frame: Some(frame),
                    ..NodeStreamFrame::default()
                };
                if up.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let mut down = RaftClient::new(channel)
            .open_node_stream(ReceiverStream::new(outbound))
            .await?
            .into_inner();
        let (sender, from_node) = mpsc::channel(RELAY_BUFFER);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = down.message().await {
                if sender.send(frame).await.is_err() {
                    return;
                }
            }
        });
        Ok(NodeStream { to_node, from_node })
    }
}

#[async_trait]
impl NodeStreams for LeaderStreams {
    async fn open(&self, node: &str, request: OpenStream) -> Result<NodeStream, String> {
        match elsewhere(&self.store) {
            Some(leader) => {
                let relayed = self.relayed(leader, node, request).await;
                relayed.map_err(|error| format!("{error:#}"))
            }
            None => self.own.open(node, request).await,
        }
    }
}
