//! Sockets: packets in batches, connections with many queries.
//!
//! Each address has a few UDP sockets (SO_REUSEPORT), among which the kernel divides the clients, and one task for
//! each. A task takes what has come in one system call, answers what can be answered at once, and sends those answers in
//! one system call; queries that have to wait get a task of their own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::batch::{self, Batch};
use crate::lookup::{AtOnce, Lookup};
use crate::message::{encode, parse, udp_limit};
use crate::metrics::{METRICS, Meter, Transport};
use crate::room::Room;

/// Sockets of one address at most; one processor core answers more queries than a node's pods ask.
const MOST_SOCKETS: usize = 4;
/// Octets of requests that may wait in a socket, for bursts. (Small packets take about 800 each.)
const RECEIVE_BUFFER: usize = 1 << 20;
/// TCP connections at the same time; more wait, but for those of a client that has an eighth of them, which end at once.
const CONNECTIONS: usize = 256;
/// Queries of one connection that wait for other resolvers; more are not read yet.
const WAITING_PER_CONNECTION: usize = 64;
/// How long a TCP connection may be silent.
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// How many ports of the system's choice are tried.
const CHOICES: usize = 16;

/// What serves one address.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    udp: Vec<UdpSocket>,
    tcp: TcpListener,
}

impl Listener {
    /// All sockets of an address. A port that the system chose (0 was asked for) is one that is free for UDP, and may
    /// be taken for TCP: then it chooses another.
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let mut attempts = if address.port() == 0 { CHOICES } else { 1 };
        loop {
            attempts -= 1;
            let first = udp(address, false)?;
            let address = first.local_addr()?;
            match TcpListener::bind(address).await {
                Ok(tcp) => {
                    // The first was bound for itself alone, which fails when another server has the address.
                    sockopt::set_socket_reuseport(&first, true)?;
                    let cores = std::thread::available_parallelism().map_or(1, usize::from);
                    let more = (1..cores.min(MOST_SOCKETS)).map(|_| udp(address, true));
                    let udp = [Ok(first)].into_iter().chain(more);
                    return Ok(Self {
                        address,
                        udp: udp.collect::<io::Result<_>>()?,
                        tcp,
                    });
                }
                Err(error) if attempts == 0 || error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
    }

    /// Serves until the tasks are dropped.
    pub(crate) fn serve(self, lookup: &Arc<Lookup>, meter: Meter, tasks: &mut JoinSet<()>) {
        let meter = Arc::new(meter);
        for socket in self.udp {
            tasks.spawn(serve_udp(
                Arc::clone(lookup),
                Arc::clone(&meter),
                Arc::new(socket),
            ));
        }
        tasks.spawn(serve_tcp(Arc::clone(lookup), meter, self.tcp));
    }
}

fn udp(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        // An IPv4 address has sockets of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    }
    bind(&socket, &address)?;
    UdpSocket::from_std(socket.into())
}

/// A request that is being answered.
struct Asked {
    request: Message,
    client: IpAddr,
    transport: Transport,
    since: Instant,
}

impl Asked {
    fn limit(&self) -> usize {
        match self.transport {
            Transport::Udp => udp_limit(&self.request),
            Transport::Tcp => usize::from(u16::MAX),
        }
    }

    /// Counts an answer and makes octets of it.
    fn answered(&self, lookup: &Lookup, meter: &Meter, answer: Message) -> Option<Vec<u8>> {
        let wanted = self.request.queries.first().map(Query::query_type);
        let (ours, code) = (lookup.is_ours(&self.request), answer.metadata.response_code);
        let encoded = encode(answer, self.limit());
        meter.answered(self.transport, ours, wanted, code, self.since.elapsed());
        encoded
            .inspect_err(|error| {
                METRICS.unanswered.inc();
                tracing::warn!(client = %self.client, %error, "a DNS answer cannot be encoded");
            })
            .ok()
    }
}

async fn serve_udp(lookup: Arc<Lookup>, meter: Arc<Meter>, socket: Arc<UdpSocket>) {
    let mut batch = Batch::default();
    let mut answers = Vec::new();
    let mut waiting = JoinSet::new();
    loop {
        let received = socket.async_io(Interest::READABLE, || batch.receive(socket.as_raw_fd()));
        // Such as a client's "port unreachable" for an earlier answer.
        if let Err(error) = received.await {
            tracing::debug!(%error, "receiving DNS queries");
            continue;
        }
        let since = Instant::now();
        while waiting.try_join_next().is_some() {}
        for (bytes, client) in batch.packets() {
            let Some(request) = parse(bytes) else {
                METRICS.unanswered.inc();
                continue;
            };
            let asked = Asked {
                request,
                client: client.ip(),
                transport: Transport::Udp,
                since,
            };
            match lookup.at_once(&asked.request, asked.client) {
                AtOnce::Answer(answer) => {
                    let bytes = asked.answered(&lookup, &meter, answer);
                    answers.extend(bytes.map(|bytes| (bytes, client)));
                }
                AtOnce::Wait => {
                    let (lookup, meter) = (Arc::clone(&lookup), Arc::clone(&meter));
                    let socket = Arc::clone(&socket);
                    waiting.spawn(async move {
                        let answer = lookup.answer(&asked.request, asked.client).await;
                        if let Some(bytes) = asked.answered(&lookup, &meter, answer) {
                            send(&socket, &[(bytes, client)]).await;
                        }
                    });
                }
            }
        }
        send(&socket, &answers).await;
        answers.clear();
    }
}

async fn send(socket: &UdpSocket, mut answers: &[(Vec<u8>, SocketAddr)]) {
    while let [(_, client), others @ ..] = answers {
        let sent = socket.async_io(Interest::WRITABLE, || batch::send(socket, answers));
        match sent.await {
            Ok(count) => answers = answers.get(count.max(1)..).unwrap_or_default(),
            Err(error) => {
                METRICS.unanswered.inc();
                tracing::debug!(%client, %error, "sending a DNS answer");
                answers = others;
            }
        }
    }
}

async fn serve_tcp(lookup: Arc<Lookup>, meter: Arc<Meter>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let parts = Room::new(CONNECTIONS);
    let mut connections = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, client)) => {
                let Some(place) = parts.take(client.ip()) else {
                    tracing::debug!(%client, "a client has its part of the DNS connections");
                    continue;
                };
                let (lookup, meter) = (Arc::clone(&lookup), Arc::clone(&meter));
                connections.spawn(async move {
                    let _room = (permit, place);
                    if let Err(error) = converse(&lookup, &meter, stream, client.ip()).await {
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

/// Answers the queries of one connection, each behind its length, and each when it can be: one that waits for other
/// resolvers holds up none behind it (RFC 7766).
async fn converse(
    lookup: &Arc<Lookup>,
    meter: &Arc<Meter>,
    stream: TcpStream,
    client: IpAddr,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.into_split();
    let writer = Arc::new(Mutex::new(writer));
    let mut waiting = JoinSet::new();
    loop {
        let Ok(length) = timeout(IDLE, reader.read_u16()).await else {
            break;
        };
        let length = match length {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            other => usize::from(other?),
        };
        let mut bytes = vec![0; length];
        timeout(IDLE, reader.read_exact(&mut bytes)).await??;
        let Some(request) = parse(&bytes) else {
            METRICS.unanswered.inc();
            break;
        };
        let asked = Asked {
            request,
            client,
            transport: Transport::Tcp,
            since: Instant::now(),
        };
        match lookup.at_once(&asked.request, client) {
            AtOnce::Answer(answer) => {
                if let Some(bytes) = asked.answered(lookup, meter, answer) {
                    write(&writer, &bytes).await?;
                }
            }
            AtOnce::Wait => {
                while waiting.len() >= WAITING_PER_CONNECTION {
                    waiting.join_next().await;
                }
                let (lookup, meter) = (Arc::clone(lookup), Arc::clone(meter));
                let writer = Arc::clone(&writer);
                waiting.spawn(async move {
                    let answer = lookup.answer(&asked.request, client).await;
                    if let Some(bytes) = asked.answered(&lookup, &meter, answer)
                        && let Err(error) = write(&writer, &bytes).await
                    {
                        tracing::debug!(%client, %error, "sending a DNS answer");
                    }
                });
            }
        }
    }
    // The client may have said all it has to say, and listen on.
    waiting.join_all().await;
    Ok(())
}

async fn write(writer: &Mutex<OwnedWriteHalf>, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), bytes].concat();
    let mut writer = writer.lock().await;
    timeout(IDLE, writer.write_all(&framed)).await?
}
