//! The gRPC service that agents dial, and one session per connected node.
//!
//! A session first sends `Welcome`, then every object its node needs (a pod's references and the policies that isolate it
//! before the pod), then `Synced`, and from there the changes of the store in order: nothing is missed between the snapshot and the watch,
//! because the watch starts at the snapshot's revision.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use gantry_apiserver::node_keys::{self, KeyId};
use gantry_apiserver::{ApiServer, Identity, NODE_LINK, Peer};
use gantry_informer::{EventStyle, Recorder};
use gantry_members::Roster;
use gantry_rpc::node::node_link_server::{NodeLink, NodeLinkServer, SERVICE_NAME};
use gantry_rpc::node::{
    AgentMessage, Hello, ObjectChange, PodTokenAnswer, PodTokenRequest, PolicyChange, Resource,
    ServerMessage, Servers, StreamFrame, Synced, Welcome, agent_message, server_message,
};
use gantry_store::{Entry, Event, Key, Revision, Store, Table, Term, WatchError};
use gantry_tasks::{Panicked, caught};
use gantry_usage::Figures;
use ipnet::IpNet;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::calls::{self, Calls};
use super::ending::{Ending, Said};
use super::hub::Hub;
use super::policies::{Feed, Policies, Stopped};
use super::references::{PodReferences, Reference};
use super::reports::{LinkReports, Reports};
use super::said::{self, NodeName};
use super::scraping;
use super::streams;
use super::tokens::{self, TokenAllowances};
use crate::cluster::ClusterFacts;
use crate::pod_cidr::PodCidrs;

/// The largest message on a link: an object may be 3 MiB, and the statuses of all pods are one message.
const LINK_MESSAGE: usize = 8 << 20;
/// The largest frame of a stream: agents send 32 KiB of it at once, and few words around it.
const STREAM_MESSAGE: usize = 64 << 10;
/// The largest request for a token: names and an audience.
const TOKEN_MESSAGE: usize = 8 << 10;
/// Messages queued for one node before the session waits for the network.
const QUEUE: usize = 256;

/// The service behind `NodeLink`.
pub struct LinkService {
    store: Store,
    hub: Arc<Hub>,
    api: ApiServer,
    reports: Arc<Reports>,
    roster: Roster,
    facts: ClusterFacts,
    policies: Policies,
    calls: Calls,
    tokens: TokenAllowances,
}

impl LinkService {
    /// The service of a server whose nodes' links are in `hub`; what they use is in `figures`. Fails for a pod CIDR that cannot be cut into
    /// nodes' blocks.
    /// Must be called within a tokio runtime.
    pub fn new(
        api: ApiServer,
        store: Store,
        roster: Roster,
        hub: Arc<Hub>,
        facts: ClusterFacts,
        figures: Arc<Figures>,
    ) -> anyhow::Result<Self> {
        let identity = Identity::of_system(NODE_LINK);
        let client = kube::Client::new(api.local_service(identity), "default");
        // It ends with the last link.
        let recorder = Recorder::start(
            client,
            "gantry-server",
            EventStyle::Counted,
            gantry_informer::Clock::system(),
            &CancellationToken::new(),
        );
        let reports = Reports::new(
            store.clone(),
            roster.clone(),
            facts.clone(),
            PodCidrs::new(facts.pod_cidr)?,
            recorder,
            figures,
        );
        Ok(Self {
            policies: Policies::new(store.clone(), facts.dns_service_ip.parse().ok()),
            reports: Arc::new(reports),
            store,
            hub,
            api,
            roster,
            facts,
            calls: Calls::default(),
            tokens: TokenAllowances::default(),
        })
    }

    /// All calls, each with a bound of its own on what it reads.
    pub fn router(self) -> axum::Router {
        let link = Arc::new(self);
        let served = |largest: usize| {
            NodeLinkServer::from_arc(link.clone())
                .max_decoding_message_size(largest)
                .max_encoding_message_size(LINK_MESSAGE)
        };
        axum::Router::new()
            .route_service(&format!("/{SERVICE_NAME}/Link"), served(LINK_MESSAGE))
            .route_service(&format!("/{SERVICE_NAME}/Attach"), served(STREAM_MESSAGE))
            .route_service(&format!("/{SERVICE_NAME}/PodToken"), served(TOKEN_MESSAGE))
    }
}

/// Who dials: a node, by its certificate, and where from.
struct Caller {
    node: NodeName,
    key: KeyId,
    address: IpAddr,
}

impl Caller {
    /// A node may only speak for itself: its certificate says `system:node:NAME` of `system:nodes`.
    fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let unknown = || Status::unauthenticated("a client certificate of a node is needed");
        let peer = request.extensions().get::<Peer>().ok_or_else(unknown)?;
        let key = peer.key.clone().ok_or_else(unknown)?;
        let node = peer.node().ok_or_else(|| {
            let user = peer.identity.as_ref().map(|identity| &identity.user);
            Status::permission_denied(format!(
                "\"{}\" is not a node: the link is for certificates of system:node:NAME in system:nodes",
                user.map(String::as_str).unwrap_or_default()
            ))
        })?;
        let node = NodeName::new(node.to_owned())
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        Ok(Self {
            node,
            key,
            address: peer.address,
        })
    }

    /// Refuses a key that does not count, also when it did a moment ago.
    fn must_count(&self, store: &Store) -> Result<(), Status> {
        match node_keys::counts(store, self.node.as_str(), &self.key) {
            true => Ok(()),
            false => Err(Status::permission_denied(
                node_keys::KeyError::Revoked(self.node.to_string()).to_string(),
            )),
        }
    }
}

#[tonic::async_trait]
impl NodeLink for LinkService {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;
    type AttachStream = Pin<Box<dyn Stream<Item = Result<StreamFrame, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let caller = Caller::of(&request)?;
        let term = self.must_lead()?;
        let opening = self.calls.opening.take(caller.node.as_str())?;
        let place = self.calls.links.take(caller.node.as_str())?;
        // From before it is looked at: no change of it is missed.
        let mut keys = self.hub.keys_of(caller.node.as_str());
        caller.must_count(&self.store)?;
        let node = caller.node.to_string();
        let mut up_stream = request.into_inner();
        let said = calls::first(up_stream.message()).await?;
        let hello = match said.and_then(|message| message.message) {
            Some(agent_message::Message::Hello(hello)) => hello,
            _ => {
                return Err(Status::invalid_argument(
                    "the first message of a link is Hello",
                ));
            }
        };
        if hello.node_name != node {
            return Err(Status::permission_denied(format!(
                "the certificate is node \"{node}\"'s, the agent says it is \"{}\"",
                said::shown(&hello.node_name)
            )));
        }
        let shown = node_keys::shown(&self.store, &node, &caller.key).await;
        shown.map_err(|error| match error {
            node_keys::KeyError::Store(error) => Status::unavailable(error.to_string()),
            error => Status::permission_denied(error.to_string()),
        })?;
        let fenced = self.api.fenced(term);
        let identity = Identity::of_system(NODE_LINK);
        let client = kube::Client::new(fenced.local_service(identity), "default");
        let reports = Arc::new(
            self.reports
                .open(caller.node.clone(), caller.address, client),
        );
        let welcome = self.register(&reports, &hello).await?;
        caller.must_count(&self.store)?;
        let (down, queue) = mpsc::channel(QUEUE);
        let generation = self.hub.connected(&node, down.clone());
        let ending = self.hub.ending(&node, generation);
        tracing::info!(
            node,
            version = said::shown(&hello.version),
            "node connected"
        );
        let session = Session {
            node: node.clone(),
            store: self.store.clone(),
            hub: self.hub.clone(),
            roster: self.roster.clone(),
            down,
            references: PodReferences::default(),
            policies: self.policies.feed(&node),
            scraping: self.hub.scraping.feed(),
        };
        tokio::spawn(tell(session, welcome, ending.clone()));
        let written = CancellationToken::new();
        tokio::spawn({
            let (reports, ended) = (reports.clone(), written.clone());
            async move { reports.write(ended).await }
        });
        let (hub, store, over) = (self.hub.clone(), self.store.clone(), ending.clone());
        tokio::spawn(async move {
            let up = Up {
                hub: &hub,
                store: &store,
                reports: &reports,
                generation,
            };
            let heard = caught(async {
                tokio::select! {
                    () = up.hear(&mut up_stream) => Ok(()),
                    () = over.ended() => Ok(()),
                    refused = revoked(&caller, &store, &mut keys) => Err(refused),
                }
            });
            let heard = heard.await;
            if let Err(status) = heard.unwrap_or_else(|panicked| Err(broken(&panicked))) {
                tracing::warn!(node, why = status.message(), "the node's link is cut");
                over.end(status);
            }
            written.cancel();
            // With nobody left who waits for it, the hub forgets the node's keys.
            drop(keys);
            // Whichever half ends, the other ends with it: a node that is not heard is not told anything either.
            hub.disconnected(&node, generation);
            tracing::info!(node, "node disconnected");
        });
        drop(opening);
        Ok(Response::new(Box::pin(ending.until(queue, place))))
    }

    async fn attach(
        &self,
        request: Request<Streaming<StreamFrame>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let caller = Caller::of(&request)?;
        let dialling = self.calls.dialling.take(caller.node.as_str())?;
        let mut keys = self.hub.keys_of(caller.node.as_str());
        caller.must_count(&self.store)?;
        let (store, node) = (self.store.clone(), caller.node.to_string());
        let cut = async move {
            // Also what was revoked before the first frame.
            revoked(&caller, &store, &mut keys).await;
        };
        let stream = streams::attach(&self.hub, &node, request.into_inner(), cut).await?;
        // From here on the server has asked for it, for a client that may have so many.
        drop(dialling);
        Ok(Response::new(Box::pin(stream)))
    }

    async fn pod_token(
        &self,
        request: Request<PodTokenRequest>,
    ) -> Result<Response<PodTokenAnswer>, Status> {
        let caller = Caller::of(&request)?;
        let node = caller.node.as_str();
        let _place = self.calls.tokens.take(node)?;
        caller.must_count(&self.store)?;
        let asked = request.into_inner();
        let answer = tokens::answer(&self.api, &self.tokens, node, asked).await?;
        Ok(Response::new(answer))
    }
}

/// Tells a node what it needs, until its link ends or there is no way to go on.
async fn tell(session: Session, welcome: Welcome, ending: Ending) {
    let told = tokio::select! {
        told = caught(session.run(welcome)) => told,
        () = ending.ended() => return,
    };
    if let Err(status) = told.unwrap_or_else(|panicked| Err(broken(&panicked))) {
        // The node reconnects and starts from a snapshot.
        ending.end(status);
    }
}

/// Returns once the caller's key does not count any more.
async fn revoked(caller: &Caller, store: &Store, keys: &mut watch::Receiver<u64>) -> Status {
    loop {
        if keys.changed().await.is_err() {
            return Status::unavailable("the server is stopping");
        }
        if let Err(refused) = caller.must_count(store) {
            return refused;
        }
    }
}

fn broken(panicked: &Panicked) -> Status {
    tracing::error!(%panicked, "a node's link broke off");
    Status::internal("the link broke off: this is a defect, which the server's log describes")
}

/// What a node says on its link.
struct Up<'a> {
    hub: &'a Hub,
    store: &'a Store,
    reports: &'a LinkReports,
    generation: u64,
}

impl Up<'_> {
    /// Takes what the node says until its connection is gone.
    async fn hear(&self, up: &mut Streaming<AgentMessage>) {
        let clock = gantry_apiserver::Clock::system();
        let node = self.reports.node().as_str();
        // A message or its absence: any error means that the connection is gone.
        while let Ok(Some(message)) = up.message().await {
            self.hub.heard(node, self.generation);
            // Nobody has programmed or can wait for what does not exist yet.
            let known = |revision: u64| revision.min(self.store.revision().0);
            match message.message {
                Some(agent_message::Message::ServicesProgrammed(done)) => {
                    self.hub
                        .programmed(node, self.generation, known(done.revision));
                }
                Some(agent_message::Message::AwaitServices(asked)) => {
                    self.hub
                        .await_services(node, self.generation, known(asked.revision));
                }
                Some(agent_message::Message::Heartbeat(beat)) => {
                    self.hub
                        .answer_heartbeat(node, self.generation, beat.sequence, &clock);
                }
                Some(agent_message::Message::Wake(wake)) => {
                    if let Some(service) = self.reports.wanted(wake) {
                        self.hub.wanted(node, service);
                    }
                }
                Some(message) => self.reports.take(message).await,
                None => {}
            }
        }
    }
}

impl LinkService {
    /// Nodes are linked to the server that leads, so that it alone knows which of them are alive.
    fn must_lead(&self) -> Result<Term, Status> {
        let leadership = self.store.leadership();
        let state = leadership.borrow();
        if state.is_leader {
            return Ok(state.term);
        }
        let leader = state.leader.and_then(|leader| self.roster.get(leader));
        let mut status = Status::failed_precondition("this server does not lead");
        if let Some(address) = leader.and_then(|leader| leader.address.to_string().parse().ok()) {
            status
                .metadata_mut()
                .insert(gantry_rpc::LEADER_METADATA, address);
        }
        Err(status)
    }

    /// Creates or refreshes the Node object and says which pod CIDRs are the node's.
    async fn register(&self, reports: &LinkReports, hello: &Hello) -> Result<Welcome, Status> {
        let registered = caught(reports.register(hello)).await;
        let registered = registered.map_err(|panicked| broken(&panicked))?;
        let blocks = registered.map_err(|error| {
            Status::failed_precondition(format!(
                "registering node \"{}\": {error:#}",
                reports.node()
            ))
        })?;
        Ok(Welcome {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pod_cidr: of_family(&blocks, false),
            cluster_pod_cidr: self.facts.pod_cidr.v4.to_string(),
            service_cidr: self.facts.service_cidr.v4.to_string(),
            dns_service_ip: self.facts.dns_service_ip.clone(),
            cluster_domain: self.facts.cluster_domain.clone(),
            servers: addresses(&self.roster),
            pod_cidr_v6: of_family(&blocks, true),
            cluster_pod_cidr_v6: text(self.facts.pod_cidr.v6),
            service_cidr_v6: text(self.facts.service_cidr.v6),
        })
    }
}

/// The block of a family; empty for none.
fn of_family(blocks: &[IpNet], v6: bool) -> String {
    let mut blocks = blocks.iter();
    text(blocks.find(|block| block.addr().is_ipv6() == v6))
}

fn text(range: Option<impl ToString>) -> String {
    range.map(|range| range.to_string()).unwrap_or_default()
}

fn addresses(roster: &Roster) -> Vec<String> {
    let servers = roster.all();
    servers
        .iter()
        .map(|server| server.address.to_string())
        .collect()
}

/// The tables a link watches, with what they are called on the wire.
fn tables() -> [(Table, Resource); 8] {
    [
        (Table("core/namespaces".into()), Resource::Namespace),
        (Table("core/nodes".into()), Resource::Node),
        (Table("core/services".into()), Resource::Service),
        (
            Table("discovery.k8s.io/endpointslices".into()),
            Resource::EndpointSlice,
        ),
        (Table("core/configmaps".into()), Resource::ConfigMap),
        (Table("core/secrets".into()), Resource::Secret),
        (
            Table("core/serviceaccounts".into()),
            Resource::ServiceAccount,
        ),
        (Table("core/pods".into()), Resource::Pod),
    ]
}

fn table_of(resource: Resource) -> Option<Table> {
    tables()
        .into_iter()
        .find(|(_, known)| *known == resource)
        .map(|(table, _)| table)
}

struct Session {
    node: String,
    store: Store,
    hub: Arc<Hub>,
    roster: Roster,
    down: mpsc::Sender<Said>,
    references: PodReferences,
    policies: Feed,
    scraping: scraping::Feed,
}

/// The node's end of the connection is closed, or there is nothing more to be told on ours.
enum Closed {
    ByNode,
    Stopping,
}

impl From<Closed> for Status {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::ByNode => Status::cancelled("the node closed the link"),
            Closed::Stopping => Status::unavailable("the server is stopping"),
        }
    }
}

impl From<Stopped> for Closed {
    fn from(_: Stopped) -> Self {
        Self::Stopping
    }
}

impl Session {
    async fn run(mut self, welcome: Welcome) -> Result<(), Status> {
        self.send(server_message::Message::Welcome(welcome)).await?;
        let objects = tables().into_iter().map(|(table, _)| table);
        let names: Vec<Table> = objects.chain([Roster::table()]).collect();
        // The watch is opened first: what changes while the snapshot is sent is sent again by it, in order.
        let from = self.store.revision();
        let mut watch = self.store.watch(&names, from).map_err(behind)?;
        self.policies_up_to(from).await?;
        for (table, resource) in tables() {
            let snapshot = self.store.snapshot(&table);
            for ((namespace, name), entry) in snapshot.iter() {
                let key = Key {
                    table: table.clone(),
                    namespace: namespace.clone(),
                    name: name.clone(),
                };
                self.present(resource, &key, entry).await?;
            }
        }
        self.send(server_message::Message::Synced(Synced { revision: from.0 }))
            .await?;
        loop {
            tokio::select! {
                event = watch.next() => match event {
                    Some(event) => self.change(&event.map_err(behind)?).await?,
                    None => return Err(Closed::Stopping.into()),
                },
                changes = self.policies.changed() => {
                    let changes = changes.map_err(Closed::from)?;
                    self.policies(changes).await?;
                }
                wanted = self.scraping.next() => {
                    self.send(server_message::Message::ScrapeWanted(wanted)).await?;
                }
            }
        }
    }

    /// Sends what the node does not know yet of the policies up to this revision.
    async fn policies_up_to(&mut self, revision: Revision) -> Result<(), Closed> {
        let changes = self.policies.up_to(revision).await?;
        self.policies(changes).await
    }

    async fn policies(&self, changes: Vec<PolicyChange>) -> Result<(), Closed> {
        for change in changes {
            self.send(server_message::Message::Policies(change)).await?;
        }
        Ok(())
    }

    async fn send(&self, message: server_message::Message) -> Result<(), Closed> {
        let message = ServerMessage {
            message: Some(message),
        };
        self.down
            .send(Ok(message))
            .await
            .map_err(|_| Closed::ByNode)
    }

    /// Sends an object of the snapshot, when this node needs it.
    async fn present(
        &mut self,
        resource: Resource,
        key: &Key,
        entry: &Entry,
    ) -> Result<(), Closed> {
        match resource {
            Resource::Pod if self.is_mine(entry) => self.pod(key, entry).await,
            // Sent with the pods that refer to them.
            Resource::Pod | Resource::ConfigMap | Resource::Secret | Resource::ServiceAccount => {
                Ok(())
            }
            _ => self.object(resource, key, entry, false).await,
        }
    }

    async fn change(&mut self, event: &Event) -> Result<(), Closed> {
        if event.key.table == Roster::table() {
            let servers = Servers {
                addresses: addresses(&self.roster),
            };
            return self.send(server_message::Message::Servers(servers)).await;
        }
        let Some((_, resource)) = tables()
            .into_iter()
            .find(|(table, _)| *table == event.key.table)
        else {
            return Ok(());
        };
        match resource {
            Resource::Pod => {
                if event.deleted || !self.is_mine(&event.entry) {
                    if self
                        .references
                        .remove(&event.key.namespace, &event.key.name)
                    {
                        self.object(resource, &event.key, &event.entry, true)
                            .await?;
                    }
                    return Ok(());
                }
                self.pod(&event.key, &event.entry).await
            }
            Resource::ConfigMap | Resource::Secret | Resource::ServiceAccount => {
                let reference = Reference {
                    resource,
                    namespace: event.key.namespace.to_string(),
                    name: event.key.name.to_string(),
                };
                match self.references.contains(&reference) {
                    true => {
                        self.object(resource, &event.key, &event.entry, event.deleted)
                            .await
                    }
                    false => Ok(()),
                }
            }
            Resource::Service | Resource::EndpointSlice => {
                self.hub.sending_services(event.entry.modify_revision.0);
                self.object(resource, &event.key, &event.entry, event.deleted)
                    .await
            }
            _ => {
                self.object(resource, &event.key, &event.entry, event.deleted)
                    .await
            }
        }
    }

    fn is_mine(&self, pod: &Entry) -> bool {
        pod.index
            .fields
            .iter()
            .any(|(field, value)| field == "spec.nodeName" && *value == self.node)
    }

    /// Sends a pod of this node, after what it refers to and what isolates it.
    async fn pod(&mut self, key: &Key, entry: &Entry) -> Result<(), Closed> {
        self.policies_up_to(entry.modify_revision).await?;
        // The store holds only what the API server wrote: JSON.
        let pod: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        for reference in self.references.set(&key.namespace, &key.name, &pod) {
            let Some(table) = table_of(reference.resource) else {
                continue;
            };
            let key = Key {
                table,
                namespace: reference.namespace.as_str().into(),
                name: reference.name.as_str().into(),
            };
            if let Some(entry) = self.store.get(&key) {
                self.object(reference.resource, &key, &entry, false).await?;
            }
        }
        self.object(Resource::Pod, key, entry, false).await?;
        match self.scraping.pod_of(&key.namespace) {
            Some(wanted) => {
                let wanted = server_message::Message::ScrapeWanted(wanted);
                self.send(wanted).await
            }
            None => Ok(()),
        }
    }

    async fn object(
        &self,
        resource: Resource,
        key: &Key,
        entry: &Entry,
        deleted: bool,
    ) -> Result<(), Closed> {
        self.send(server_message::Message::Change(ObjectChange {
            resource: resource.into(),
            deleted,
            revision: entry.modify_revision.0,
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            object: entry.value.clone(),
        }))
        .await
    }
}

/// The node reconnects and starts over.
fn behind(error: WatchError) -> Status {
    Status::aborted(format!("the link fell behind: {error}"))
}

#[cfg(test)]
mod tests;
