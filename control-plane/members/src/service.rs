//! The gRPC service between servers: messages of consensus, streams to nodes, what nodes use, and metrics of objects.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use gantry_apiserver::{CustomMetrics, Identity, NodeStreams, Peer};
use gantry_rpc::node::StreamFrame;
use gantry_rpc::raft::raft_server::{Raft, RaftServer};
use gantry_rpc::raft::{
    Delivered, NodeStreamFrame, ObjectMetricsAnswer, ObjectMetricsRequest, RaftMessages,
    ServedMetricsAnswer, ServedMetricsRequest, UsedAnswer, UsedRequest,
};
use gantry_store::Store;
use gantry_usage::Figures;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::MEMBERS_GROUP;
use crate::peers::{PEER_MESSAGE, Peers};
use crate::{custom_metrics, usage};

/// The service behind `Raft`.
pub struct PeerService {
    /// What hears the messages of consensus.
    pub store: Store,
    /// What learns where the others are.
    pub peers: Peers,
    /// The links of this server's nodes.
    pub streams: Arc<dyn NodeStreams>,
    /// What those nodes use.
    pub figures: Arc<Figures>,
    /// The metrics of objects that this server knows itself.
    pub custom_metrics: Arc<dyn CustomMetrics>,
}

impl PeerService {
    /// The routes of its calls.
    pub fn router(self) -> axum::Router {
        let service = RaftServer::new(self)
            .max_decoding_message_size(PEER_MESSAGE)
            .max_encoding_message_size(PEER_MESSAGE);
        tonic::service::Routes::new(service).into_axum_router()
    }
}

fn only_members<T>(request: &Request<T>) -> Result<Peer, Status> {
    let identity = request.extensions().get::<Identity>();
    let is_member = identity.is_some_and(|identity| identity.is_in(MEMBERS_GROUP));
    let peer = request.extensions().get::<Peer>().filter(|_| is_member);
    peer.cloned().ok_or_else(|| {
        Status::permission_denied("only servers of this cluster speak to each other here")
    })
}

/// Refuses a server that was removed while it spoke.
fn still_a_member(peer: &Peer, store: &Store) -> Result<(), Status> {
    let checked = peer.check(store);
    checked.map_err(|refused| Status::permission_denied(refused.to_string()))
}

#[tonic::async_trait]
impl Raft for PeerService {
    type OpenNodeStreamStream = Pin<Box<dyn Stream<Item = Result<StreamFrame, Status>> + Send>>;

    async fn deliver(
        &self,
        request: Request<Streaming<RaftMessages>>,
    ) -> Result<Response<Delivered>, Status> {
        let peer = only_members(&request)?;
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            still_a_member(&peer, &self.store)?;
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
        let peer = only_members(&request)?;
        let mut up = request.into_inner();
        let first = up.message().await?.unwrap_or_default();
        let open = first
            .open
            .ok_or_else(|| Status::invalid_argument("the first frame says what to open"))?;
        let ends = self
            .streams
            .open(&first.node, open)
            .await
            .map_err(Status::unavailable)?;
        let (from_it, store) = (peer.clone(), self.store.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = up.message().await {
                if still_a_member(&from_it, &store).is_err() {
                    return;
                }
                let Some(frame) = message.frame else {
                    continue;
                };
                if ends.to_node.send(frame).await.is_err() {
                    return;
                }
            }
        });
        let store = self.store.clone();
        let down = ReceiverStream::new(ends.from_node)
            .map(move |frame| still_a_member(&peer, &store).map(|()| frame));
        Ok(Response::new(Box::pin(down)))
    }

    async fn used(&self, request: Request<UsedRequest>) -> Result<Response<UsedAnswer>, Status> {
        let peer = only_members(&request)?;
        still_a_member(&peer, &self.store)?;
        let answer = usage::answer(&self.figures, request.get_ref());
        Ok(Response::new(answer))
    }

    async fn served_metrics(
        &self,
        request: Request<ServedMetricsRequest>,
    ) -> Result<Response<ServedMetricsAnswer>, Status> {
        let peer = only_members(&request)?;
        still_a_member(&peer, &self.store)?;
        let answer = custom_metrics::answer_served(&*self.custom_metrics).await?;
        Ok(Response::new(answer))
    }

    async fn object_metrics(
        &self,
        request: Request<ObjectMetricsRequest>,
    ) -> Result<Response<ObjectMetricsAnswer>, Status> {
        let peer = only_members(&request)?;
        still_a_member(&peer, &self.store)?;
        let answer = custom_metrics::answer(&*self.custom_metrics, request.get_ref()).await?;
        Ok(Response::new(answer))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;

    use gantry_apiserver::{MetricOf, NoMetric, NoNodes, ObjectMetric, ServedMetric};
    use gantry_rpc::raft::raft_client::RaftClient;
    use tokio::sync::{mpsc, watch};
    use tonic::Code;

    use super::*;
    use crate::roster::Roster;

    struct NoMetrics;

    #[tonic::async_trait]
    impl CustomMetrics for NoMetrics {
        async fn served(&self) -> Result<Vec<ServedMetric>, String> {
            Ok(Vec::new())
        }

        async fn values(&self, _: MetricOf<'_>) -> Result<Vec<ObjectMetric>, NoMetric> {
            Err(NoMetric::Unknown)
        }
    }

    #[tokio::test]
    async fn a_server_that_is_removed_is_not_heard_any_more() {
        let store = Store::ephemeral();
        let client = gantry_tls::strangers().expect("a configuration");
        let address = SocketAddr::from(([192, 0, 2, 1], 6443));
        let tls = watch::Sender::new(Arc::new(client));
        let service = PeerService {
            store: store.clone(),
            peers: Peers::new(1, address, tls.subscribe()),
            streams: Arc::new(NoNodes),
            figures: Arc::default(),
            custom_metrics: Arc::new(NoMetrics),
        };
        let peers = service.peers.clone();
        let (batches, outbound) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(outbound));
        let identity = Identity::new("gantry:server:7", &[MEMBERS_GROUP]);
        request.extensions_mut().insert(identity.clone());
        request.extensions_mut().insert(Peer {
            address: IpAddr::from([192, 0, 2, 9]),
            identity: Some(identity),
            key: None,
        });
        let mut client = RaftClient::new(RaftServer::new(service));
        let call = tokio::spawn(async move { client.deliver(request).await });
        let batch = |from: u64| RaftMessages {
            messages: Vec::new(),
            from,
            address: "192.0.2.9:6443".to_owned(),
        };
        batches.send(batch(7)).await.expect("heard");
        while peers.address_of(7).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Roster::new(store).remove(7).await.expect("removed");
        batches.send(batch(8)).await.expect("on its way");
        let ended = tokio::time::timeout(Duration::from_secs(30), call).await;
        let ended = ended.expect("it ends").expect("no panic");
        let refused = ended.expect_err("removed");
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(peers.address_of(8).is_none(), "nothing it says counts");
    }
}
