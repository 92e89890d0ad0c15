//! One question to one resolver: over UDP, and over TCP when the answer did not fit.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::LARGEST_UDP;

/// How long until a question is sent again, since packets are lost; twice as long the next time.
const AGAIN: Duration = Duration::from_millis(500);

/// An answer and the octets it came in.
pub(crate) type Answer = (Message, usize);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// This machine's fault, which says nothing about the resolver.
    #[error("asking: {0}")]
    Local(io::Error),
    /// The resolver's, or that of the way to it.
    #[error("{0}")]
    Remote(#[from] io::Error),
}

/// Asks. Waits as long as it takes: limit it.
pub(crate) async fn ask(
    address: SocketAddr,
    query: &Query,
    dnssec: bool,
) -> Result<Answer, ExchangeError> {
    // Its number is random.
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(LARGEST_UDP).set_version(0);
    edns.flags_mut().dnssec_ok = dnssec;
    request.set_edns(edns);
    let bytes = request.to_vec().map_err(io::Error::other);
    let bytes = bytes.map_err(ExchangeError::Local)?;
    let socket = open(address).await.map_err(ExchangeError::Local)?;
    socket.connect(address).await?;
    let (mut buffer, mut patience) = (vec![0; usize::from(LARGEST_UDP)], AGAIN);
    loop {
        socket.send(&bytes).await?;
        let heard = timeout(patience, hear(&socket, &request, &mut buffer)).await;
        patience *= 2;
        match heard {
            Ok(Ok(Some(answer))) if !answer.0.metadata.truncation => return Ok(answer),
            Ok(Ok(_)) => return Ok(ask_over_tcp(address, &request, &bytes).await?),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
}

/// A socket of the question's own: a random port, and once it is connected, the kernel keeps out everybody but the
/// resolver.
async fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(any).await
}

/// The answer, or nothing when it is larger than it was asked to be.
async fn hear(
    socket: &UdpSocket,
    request: &Message,
    buffer: &mut [u8],
) -> io::Result<Option<Answer>> {
    loop {
        let length = socket.recv(buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answers(&answer, request) => return Ok(Some((answer, length))),
            Err(_) if length == buffer.len() => return Ok(None),
            other => {
                tracing::debug!(
                    valid = other.is_ok(),
                    "a packet that is no answer to the query"
                )
            }
        }
    }
}

async fn ask_over_tcp(address: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let length = answer.len();
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    if !answers(&answer, request) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{address} answered something else"),
        ));
    }
    Ok((answer, length))
}

/// Whether a message answers a request: forged ones would have to guess the number and repeat the question.
fn answers(answer: &Message, request: &Message) -> bool {
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == request.metadata.id
        && answer.queries == request.queries
}
