//! The cluster's DNS: a server on every node, answering the cluster's names from a table in memory and forwarding the
//! others.
//!
//! - [`zone`] answers from the published table. Pure.
//! - [`upstream`] asks other resolvers, [`cache`] remembers what they said.
//! - here: sockets, messages, and the way a query takes through those.

mod cache;
mod upstream;
mod zone;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Record, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::{ClusterDns, DnsTable, NetworkError, ServiceName};

use upstream::Upstreams;
use zone::{Found, Zone};

/// What fits into a packet everywhere (DNS flag day 2020), for those who say they can take more than 512 octets.
const LARGEST_UDP: u16 = 1232;
/// Queries that wait for other resolvers at the same time; more are answered SERVFAIL at once.
const FORWARDED_AT_ONCE: usize = 1024;
/// TCP connections at the same time; more wait.
const CONNECTIONS: usize = 256;
/// How long a TCP connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// How many aliases are followed for one query.
const LONGEST_CHAIN: usize = 8;
/// How many ports of the system's choice are tried.
const CHOICES: usize = 16;

/// Answers DNS on the node until it is dropped.
#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    services: Mutex<BTreeMap<ServiceName, DnsTable>>,
    addresses: Vec<SocketAddr>,
    _serving: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    zone: ArcSwap<Zone>,
    upstreams: Upstreams,
    forwarding: Semaphore,
}

/// Both sockets of an address. A port that the system chose (0 was asked for) is one that is free for UDP, and may be
/// taken for TCP: then it chooses another.
async fn listen_on(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = if address.port() == 0 { CHOICES } else { 1 };
    loop {
        attempts -= 1;
        let udp = UdpSocket::bind(address).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if attempts == 0 || error.kind() != io::ErrorKind::AddrInUse => {
                return Err(error);
            }
            Err(_) => {}
        }
    }
}

impl DnsServer {
    /// Listens on UDP and TCP of each address and answers `cluster_domain` (such as `cluster.local`) from what is
    /// [told](ClusterDns), and everything else through `upstreams`, in that order of preference.
    ///
    /// Give concrete addresses: the answer to a query must come from the address it was sent to. An address of a
    /// service has to be held by the node first ([`BridgeNetwork::bind_dns_address`](crate::BridgeNetwork)). Upstreams
    /// that are among the addresses listened on are left out, since they would ask themselves.
    pub async fn start(
        listen: &[SocketAddr],
        cluster_domain: &str,
        upstreams: Vec<SocketAddr>,
    ) -> Result<Self, NetworkError> {
        let upstreams = upstreams
            .into_iter()
            .filter(|upstream| !listen.contains(upstream))
            .collect();
        let shared = Arc::new(Shared {
            zone: ArcSwap::from_pointee(Zone::new(cluster_domain, DnsTable::default())?),
            upstreams: Upstreams::new(upstreams),
            forwarding: Semaphore::new(FORWARDED_AT_ONCE),
        });
        let mut serving = JoinSet::new();
        let mut addresses = Vec::new();
        for &address in listen {
            let refused = |source| NetworkError::Io {
                doing: format!(
                    "listening on {address} for DNS (does the node hold it, is the port free?)"
                ),
                source,
            };
            let (udp, tcp) = listen_on(address).await.map_err(refused)?;
            addresses.push(udp.local_addr().map_err(refused)?);
            serving.spawn(serve_udp(Arc::clone(&shared), Arc::new(udp)));
            serving.spawn(serve_tcp(Arc::clone(&shared), tcp));
        }
        tracing::info!(?addresses, domain = cluster_domain, upstreams = %shared.upstreams, "DNS is served");
        Ok(Self {
            shared,
            services: Mutex::default(),
            addresses,
            _serving: serving,
        })
    }

    /// Where it listens, in the order given to [`DnsServer::start`]; a port 0 has become a real one.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl DnsServer {
    /// Answers from what all services have together.
    fn publish(&self, services: &BTreeMap<ServiceName, DnsTable>) {
        let mut all = DnsTable::default();
        for table in services.values() {
            all.records.extend(table.records.clone());
            all.reverse.extend(table.reverse.clone());
        }
        let next = self.shared.zone.load().with(all);
        self.shared.zone.store(Arc::new(next));
    }
}

impl ClusterDns for DnsServer {
    fn change(&self, service: ServiceName, names: Option<DnsTable>) {
        let mut services = self.services.lock();
        match names {
            Some(names) => services.insert(service, names),
            None => services.remove(&service),
        };
        self.publish(&services);
    }

    fn replace(&self, all: BTreeMap<ServiceName, DnsTable>) {
        let mut services = self.services.lock();
        *services = all;
        self.publish(&services);
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut waiting = JoinSet::new();
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // Such as a client's "port unreachable" for an earlier answer.
            Err(error) => {
                tracing::debug!(%error, "receiving a DNS query");
                continue;
            }
        };
        while waiting.try_join_next().is_some() {}
        let Some(request) = parse(&buffer[..length]) else {
            continue;
        };
        let limit = usize::from(request.max_payload().clamp(512, LARGEST_UDP));
        match shared.at_once(&request) {
            AtOnce::Answer(answer) => send(&socket, client, &answer, limit).await,
            AtOnce::Wait => {
                let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
                waiting.spawn(async move {
                    let answer = shared.answer(&request).await;
                    send(&socket, client, &answer, limit).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, client: SocketAddr, answer: &Message, limit: usize) {
    let encoded = match answer.to_vec() {
        Ok(bytes) if bytes.len() > limit => answer.truncate().to_vec(),
        other => other,
    };
    match encoded {
        Ok(bytes) => {
            if let Err(error) = socket.send_to(&bytes, client).await {
                tracing::debug!(%client, %error, "sending a DNS answer");
            }
        }
        Err(error) => tracing::warn!(%client, %error, "a DNS answer cannot be encoded"),
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let _room = permit;
                    if let Err(error) = converse(&shared, stream).await {
                        tracing::debug!(%error, "a DNS connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection");
                // Out of descriptors, most likely: the next attempt would fail as fast.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Answers the queries of one connection, each behind its length.
async fn converse(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else {
            return Ok(());
        };
        let mut bytes = vec![0; usize::from(length?)];
        timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let Some(request) = parse(&bytes) else {
            return Ok(());
        };
        let answer = match shared.at_once(&request) {
            AtOnce::Answer(answer) => answer,
            AtOnce::Wait => shared.answer(&request).await,
        };
        let encoded = match answer.to_vec() {
            Ok(bytes) if bytes.len() > usize::from(u16::MAX) => answer.truncate().to_vec(),
            other => other,
        };
        let bytes = encoded.map_err(std::io::Error::other)?;
        let mut framed = Vec::with_capacity(bytes.len() + 2);
        framed.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
        framed.extend_from_slice(&bytes);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// The request in a packet. What is no request gets no answer, so that two servers never answer each other for ever;
/// what is one but cannot be read is refused as far as its header goes.
fn parse(bytes: &[u8]) -> Option<Message> {
    match Message::from_vec(bytes) {
        Ok(message) => (message.metadata.message_type == MessageType::Query).then_some(message),
        Err(error) => {
            tracing::debug!(%error, "a DNS packet that cannot be read");
            let [high, low, flags, ..] = *bytes else {
                return None;
            };
            let is_query = flags & 0x80 == 0;
            is_query.then(|| {
                Message::new(
                    u16::from_be_bytes([high, low]),
                    MessageType::Query,
                    OpCode::Query,
                )
            })
        }
    }
}

enum AtOnce {
    Answer(Message),
    Wait,
}

impl Shared {
    /// Answers what needs no other resolver.
    fn at_once(&self, request: &Message) -> AtOnce {
        if let Some(refusal) = refuse(request) {
            return AtOnce::Answer(reply(request, refusal));
        }
        match self
            .zone
            .load()
            .find(&request.queries[0], request.metadata.id)
        {
            Found::Answer(found) => {
                let mut answer = reply(request, found.code);
                answer.metadata.authoritative = true;
                answer
                    .add_answers(found.answers)
                    .add_authorities(found.authorities)
                    .add_additionals(found.additionals);
                AtOnce::Answer(answer)
            }
            Found::Alias { .. } | Found::Elsewhere => AtOnce::Wait,
        }
    }

    /// Answers with the help of others: names of other zones, and aliases to them.
    async fn answer(&self, request: &Message) -> Message {
        let Ok(_permit) = self.forwarding.try_acquire() else {
            tracing::warn!(
                limit = FORWARDED_AT_ONCE,
                "too many DNS queries wait for other resolvers"
            );
            return reply(request, ResponseCode::ServFail);
        };
        let mut query = request.queries[0].clone();
        let mut chain: Vec<Record> = Vec::new();
        let mut authoritative = false;
        for _ in 0..LONGEST_CHAIN {
            let found = self.zone.load().find(&query, request.metadata.id);
            match found {
                Found::Alias { record, target } => {
                    chain.push(*record);
                    authoritative = true;
                    query.set_name(target);
                }
                Found::Answer(found) => {
                    let mut answer = reply(request, found.code);
                    answer.metadata.authoritative = true;
                    answer
                        .add_answers(chain)
                        .add_answers(found.answers)
                        .add_authorities(found.authorities);
                    return answer;
                }
                Found::Elsewhere => {
                    let from_others = match self.upstreams.ask(&query).await {
                        Ok(sections) => sections,
                        Err(error) => {
                            tracing::debug!(name = %query.name(), %error, "other resolvers did not answer");
                            let mut answer = reply(request, ResponseCode::ServFail);
                            answer.add_answers(chain);
                            return answer;
                        }
                    };
                    let mut answer = reply(request, from_others.code);
                    answer.metadata.authoritative = authoritative;
                    answer
                        .add_answers(chain)
                        .add_answers(from_others.answers)
                        .add_authorities(from_others.authorities)
                        .add_additionals(from_others.additionals);
                    return answer;
                }
            }
        }
        tracing::debug!(name = %request.queries[0].name(), "a chain of aliases is too long or has no end");
        reply(request, ResponseCode::ServFail)
    }
}

/// Why a request is not looked up at all.
fn refuse(request: &Message) -> Option<ResponseCode> {
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Some(ResponseCode::BADVERS);
    }
    if request.metadata.op_code != OpCode::Query {
        return Some(ResponseCode::NotImp);
    }
    let [query] = &request.queries[..] else {
        return Some(ResponseCode::FormErr);
    };
    let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
    (query.query_class() != DNSClass::IN || transfer).then_some(ResponseCode::Refused)
}

fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata.response_code = code;
    answer.metadata.recursion_desired = request.metadata.recursion_desired;
    answer.metadata.checking_disabled = request.metadata.checking_disabled;
    answer.metadata.recursion_available = true;
    answer.add_queries(request.queries.iter().map(Query::clone));
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(LARGEST_UDP).set_version(0);
        answer.set_edns(edns);
    }
    answer
}

#[cfg(test)]
mod tests;
