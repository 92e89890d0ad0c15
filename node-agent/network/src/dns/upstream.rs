//! Asking other resolvers: over UDP, over TCP when the answer did not fit, the next one when one is silent.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use super::LARGEST_UDP;
use super::cache::{Cache, Sections};

/// How long one resolver is waited for. Clients wait 5 seconds by default, so that two get their chance.
const PATIENCE: Duration = Duration::from_secs(2);

/// The resolvers for names of other zones.
#[derive(Debug)]
pub(super) struct Upstreams {
    addresses: Vec<SocketAddr>,
    /// The one that answered last is asked first: one that is down costs its patience once, not for every query.
    preferred: AtomicUsize,
    cache: Mutex<Cache>,
}

impl fmt::Display for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.addresses).finish()
    }
}

impl Upstreams {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self {
            addresses,
            preferred: AtomicUsize::new(0),
            cache: Mutex::default(),
        }
    }

    /// The answer to a query, remembered or fresh.
    pub(super) async fn ask(&self, query: &Query) -> io::Result<Sections> {
        if let Some(sections) = self.cache.lock().get(query, Instant::now()) {
            return Ok(sections);
        }
        let mut failure = io::Error::new(
            io::ErrorKind::NotFound,
            "there are no other resolvers on this node",
        );
        let first = self.preferred.load(Ordering::Relaxed);
        for turn in 0..self.addresses.len() {
            let index = (first + turn) % self.addresses.len();
            let address = self.addresses[index];
            let answered = match timeout(PATIENCE, ask_one(address, query)).await {
                Ok(Ok(message)) if unhelpful(&message) => {
                    let code = message.metadata.response_code;
                    Err(io::Error::other(format!("{address} answered {code}")))
                }
                Ok(answered) => answered,
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{address} did not answer"),
                )),
            };
            match answered {
                Ok(message) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    let sections = Sections::of(message);
                    self.cache.lock().put(query, &sections, Instant::now());
                    return Ok(sections);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// Whether another resolver may know better.
fn unhelpful(message: &Message) -> bool {
    matches!(
        message.metadata.response_code,
        ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp
    )
}

async fn ask_one(address: SocketAddr, query: &Query) -> io::Result<Message> {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST_UDP).set_version(0);
    request.set_edns(edns);
    let bytes = request.to_vec().map_err(io::Error::other)?;

    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A socket of its own: a random port, and the kernel keeps out everybody but the resolver.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answers(&answer, &request) => {
                if answer.metadata.truncation {
                    return ask_over_tcp(address, &request, &bytes).await;
                }
                return Ok(answer);
            }
            other => {
                tracing::debug!(%address, valid = other.is_ok(), "a packet that is no answer to the query")
            }
        }
    }
}

async fn ask_over_tcp(address: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(address).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    if !answers(&answer, request) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{address} answered something else"),
        ));
    }
    Ok(answer)
}

/// Whether a message answers a request: forged ones would have to guess the number and repeat the question.
fn answers(answer: &Message, request: &Message) -> bool {
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == request.metadata.id
        && answer.queries == request.queries
}
