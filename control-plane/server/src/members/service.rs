//! The gRPC service between servers: messages of consensus, and streams to nodes.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use gantry_apiserver::Identity;
use gantry_rpc::node::StreamFrame;
use gantry_rpc::raft::raft_server::Raft;
use gantry_rpc::raft::{Delivered, NodeStreamFrame, RaftMessages};
use gantry_store::Store;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{MEMBERS_GROUP, Peers};
use crate::node_link::Hub;

/// The service behind `Raft`.
pub(crate) struct PeerService {
    pub(crate) store: Store,
    pub(crate) peers: Peers,
    pub(crate) hub: Arc<Hub>,
}

fn only_members<T>(request: &Request<T>) -> Result<(), Status> {
    let identity = request.extensions().get::<Identity>();
    match identity {
        Some(identity) if identity.is_in(MEMBERS_GROUP) => Ok(()),
        _ => Err(Status::permission_denied(
            "only servers of this cluster speak to each other here",
        )),
    }
}

#[tonic::async_trait]
impl Raft for PeerService {
    type OpenNodeStreamStream = Pin<Box<dyn Stream<Item = Result<StreamFrame, Status>> + Send>>;

    async fn deliver(
        &self,
        request: Request<Streaming<RaftMessages>>,
    ) -> Result<Response<Delivered>, Status> {
        only_members(&request)?;
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            if let Ok(address) = batch.address.parse() {
                self.peers.learn(batch.from, address);
            }
            for message in &batch.messages {
                self.store
                    .deliver(message)
                    .map_err(|error| Status::invalid_argument(error.to_string()))?;
            }
        }
        Ok(Response::new(Delivered {}))
    }

    async fn open_node_stream(
        &self,
        request: Request<Streaming<NodeStreamFrame>>,
    ) -> Result<Response<Self::OpenNodeStreamStream>, Status> {
        only_members(&request)?;
        let mut up = request.into_inner();
        let first = up.message().await?.unwrap_or_default();
        let open = first
            .open
            .ok_or_else(|| Status::invalid_argument("the first frame says what to open"))?;
        let ends = self
            .hub
            .open(&first.node, open)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                let Some(frame) = message.frame else {
                    continue;
                };
                if ends.to_node.send(frame).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(
            ReceiverStream::new(ends.from_node).map(Ok),
        )))
    }
}
