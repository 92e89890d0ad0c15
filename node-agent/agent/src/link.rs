//! The node link: dials a server, says who this node is, applies what is sent, and reports; again and again.
//!
//! Losing it changes nothing on the node. On the next connection the server sends everything anew, and the agent says
//! the latest status of every pod anew.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gantry_pods::PodUpdate;
use gantry_rpc::node::node_link_client::NodeLinkClient;
use gantry_rpc::node::{
    AgentMessage, Heartbeat, Hello, ServerMessage, Welcome, agent_message, server_message,
};
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use rustls::ClientConfig;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::clock::Clock;
use crate::desired::{Desired, Touched};
use crate::outgoing::outgoing;
use crate::policies::Policies;
use crate::reports::Reports;
use crate::scraping::Scrapes;
use crate::servers::Servers;
use crate::streams::Streams;
use crate::token_issuer::LinkIssuer;
use crate::usage::Readings;

const HEARTBEAT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 pings find a dead server that TCP would take minutes to miss; together with the answer's time limit before
/// another server gives this node up.
const PING: Duration = Duration::from_secs(2);
const PONG: Duration = Duration::from_secs(4);
/// What one stream may have on its way, unread. The connection's own window has room for all of the streams that a
/// server takes, so that streams which nobody reads never keep the link itself from being heard.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1000 * STREAM_WINDOW;
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(2);
const QUEUE: usize = 64;
/// Pods with large specifications; the store takes no object as large.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Why a connection ended or could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("connecting to {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: tonic::transport::Error,
    },
    #[error("the server ended the link: {0}")]
    Ended(#[from] tonic::Status),
    #[error("the server closed the link")]
    Closed,
}

impl LinkError {
    /// Where the leader listens, when the server refused because it does not lead.
    fn leader(&self) -> Option<SocketAddr> {
        match self {
            Self::Ended(status) => status
                .metadata()
                .get(gantry_rpc::LEADER_METADATA)?
                .to_str()
                .ok()?
                .parse()
                .ok(),
            _ => None,
        }
    }
}

/// What the link works with.
pub(crate) struct Link {
    pub(crate) node_name: String,
    /// What connections are made with, as of the moment.
    pub(crate) tls: watch::Receiver<Arc<ClientConfig>>,
    pub(crate) desired: Arc<Desired>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) reports: Arc<Reports>,
    /// What the node uses, as it is read.
    pub(crate) figures: watch::Receiver<Readings>,
    /// What pods are asked for, and what they answer.
    pub(crate) scrapes: Arc<Scrapes>,
    pub(crate) streams: Arc<Streams>,
    /// Told of each link: pods' tokens are asked for beside it.
    pub(crate) tokens: Arc<LinkIssuer>,
    /// The Node object's JSON, made anew for each connection.
    pub(crate) node: Box<dyn Fn() -> Bytes + Send + Sync>,
    pub(crate) news: mpsc::UnboundedSender<PodUpdate>,
    /// Services or EndpointSlices have changed.
    pub(crate) services: Arc<Notify>,
    /// Nodes have changed.
    pub(crate) nodes: Arc<Notify>,
    /// Anything worth a checkpoint has changed.
    pub(crate) changed: Arc<Notify>,
    pub(crate) welcome: watch::Sender<Option<Welcome>>,
    pub(crate) servers: Servers,
    /// Compared with each server's.
    pub(crate) clock: Clock,
}

impl Link {
    /// Keeps the link up until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut delay = FIRST_DELAY;
        let mut turn = 0;
        let mut leader = None;
        loop {
            let servers = self.servers.known();
            let address = leader.take().unwrap_or(servers[turn % servers.len()]);
            let began = tokio::time::Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.connection(address) => ended,
            };
            if began.elapsed() > LONGEST_DELAY {
                delay = FIRST_DELAY;
            }
            if let Err(error) = ended {
                tracing::info!(server = %address, error = gantry_cri::words(&error), ?delay, "the node link is down; connecting again");
                leader = error.leader().filter(|leader| *leader != address);
            }
            if leader.is_none() {
                turn += 1;
            } else {
                delay = FIRST_DELAY;
            }
            let jitter = rand::rng().random_range(0.75..1.25);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(delay.mul_f64(jitter)) => {}
            }
            delay = (delay * 2).min(LONGEST_DELAY);
        }
    }

    async fn connection(&self, address: SocketAddr) -> Result<(), LinkError> {
        let tls = self.tls.borrow().clone();
        let channel = dial(address, tls)
            .await
            .map_err(|source| LinkError::Connect { address, source })?;
        let mut client = NodeLinkClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let (up, outbound) = mpsc::channel(QUEUE);
        let hello = Hello {
            node_name: self.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: (self.node)(),
        };
        let hello = AgentMessage {
            message: Some(agent_message::Message::Hello(hello)),
        };
        let (wanted, figures) = (self.reports.clone(), self.figures.clone());
        let outgoing = outgoing(hello, wanted, outbound, figures, self.scrapes.subscribe());
        let mut down = client.link(outgoing).await?.into_inner();
        self.desired.link_opened();
        self.policies.link_opened();
        self.servers.prefer(address);
        tracing::info!(server = %address, "node link is up");
        self.tokens.link(Some(client.clone()));
        let ended = tokio::select! {
            ended = self.receive(&mut down, &client, address) => ended,
            ended = self.send(up) => ended,
        };
        self.tokens.link(None);
        ended
    }

    /// Sends reports as they come, and heartbeats.
    async fn send(&self, up: mpsc::Sender<AgentMessage>) -> Result<(), LinkError> {
        self.reports.link_opened();
        self.clock.link_opened();
        let mut sequence = 0;
        let mut beats = tokio::time::interval(HEARTBEAT);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Room first, so that nothing is taken that cannot be sent.
            let room = up.reserve().await.map_err(|_| LinkError::Closed)?;
            tokio::select! {
                messages = self.reports.next() => {
                    drop(room);
                    for message in messages {
                        up.send(message).await.map_err(|_| LinkError::Closed)?;
                    }
                }
                _ = beats.tick() => {
                    sequence += 1;
                    self.clock.sent(sequence);
                    room.send(AgentMessage { message: Some(agent_message::Message::Heartbeat(Heartbeat { sequence })) });
                }
            }
        }
    }

    async fn receive(
        &self,
        down: &mut Streaming<ServerMessage>,
        client: &NodeLinkClient<Channel>,
        server: SocketAddr,
    ) -> Result<(), LinkError> {
        // While the snapshot is on its way, services would be seen half.
        let mut synced = false;
        while let Some(message) = down.message().await? {
            match message.message {
                Some(server_message::Message::Welcome(welcome)) => {
                    self.servers.learn(&welcome.servers);
                    self.welcome.send_replace(Some(welcome));
                }
                Some(server_message::Message::Servers(servers)) => {
                    self.servers.learn(&servers.addresses);
                    self.welcome.send_modify(|welcome| {
                        if let Some(welcome) = welcome {
                            welcome.servers = servers.addresses;
                        }
                    });
                }
                Some(server_message::Message::Change(change)) => {
                    let touched = self.desired.apply(&change).unwrap_or_else(|error| {
                        tracing::warn!(%error, "ignoring an object");
                        Touched::Nothing
                    });
                    self.changed.notify_one();
                    self.tell(touched, synced);
                }
                Some(server_message::Message::Synced(done)) => {
                    synced = true;
                    self.policies.synced();
                    for pod in self.desired.synced(done.revision) {
                        self.news.send(PodUpdate::Gone(pod)).ok();
                    }
                    self.news.send(PodUpdate::Synced).ok();
                    self.services.notify_one();
                    self.nodes.notify_one();
                    self.changed.notify_one();
                }
                Some(server_message::Message::Policies(change)) => {
                    if let Err(error) = self.policies.apply(change) {
                        tracing::error!(%error, "the policies stay as they were");
                    }
                    self.changed.notify_one();
                }
                Some(server_message::Message::OpenStream(open)) => {
                    self.streams.open(open, client.clone())
                }
                Some(server_message::Message::CloseStream(close)) => {
                    self.streams.close(&close.stream_id);
                }
                Some(server_message::Message::ScrapeWanted(wanted)) => self.scrapes.want(wanted),
                Some(server_message::Message::ServicesEverywhere(done)) => {
                    self.reports.services_everywhere(done.revision);
                }
                Some(server_message::Message::HeartbeatAnswer(answer)) => {
                    self.clock
                        .answered(answer.sequence, answer.unix_milliseconds, server);
                }
                None => {}
            }
        }
        Err(LinkError::Closed)
    }

    fn tell(&self, touched: Touched, synced: bool) {
        let news = match touched {
            Touched::Pod(pod) => PodUpdate::Pod(pod),
            Touched::PodGone(pod) => PodUpdate::Gone(pod),
            Touched::Reference(namespace) => PodUpdate::References(namespace),
            Touched::Service => {
                if synced {
                    self.services.notify_one();
                }
                return;
            }
            Touched::Node => {
                if synced {
                    self.nodes.notify_one();
                    // A node's zone decides which endpoints are near.
                    self.services.notify_one();
                }
                return;
            }
            Touched::Nothing => return,
        };
        // Nobody listens once the agent is stopping.
        self.news.send(news).ok();
    }
}

/// A mutually authenticated HTTP/2 connection.
async fn dial(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move { std::io::Result::Ok(TokioIo::new(gantry_tls::connect(address, tls).await?)) }
    });
    endpoint.connect_with_connector(connector).await
}
