//! The API on loopback: relays connections to a server that answers, so that clients on the node survive the death of any.
//!
//! Bytes pass as they come: TLS is between the client and the server, whose certificate names loopback. So the relay does
//! not know who its clients are: the server ends those that do not say so in time, and when there are too many, a newcomer
//! displaces the one that has waited for that the longest.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::servers::Servers;

/// A server that takes longer to accept is passed over.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection to a server that is silent for about this long is closed, so that its client looks for another.
const SILENCE: Duration = Duration::from_secs(10);
/// The part of the process's descriptors that connections may take, of which each has two.
const SHARE: u64 = 16;
/// A connection that is older is one whose client the server knows: it ends others sooner.
const KNOWN: Duration = Duration::from_secs(20);
/// What one side may take to notice that the other has ended.
const FAREWELL: Duration = Duration::from_secs(30);

/// Bytes read at once: of a connection that says little, and of one that carries a lot, for which there is room a few times.
const LITTLE: usize = 8 * 1024;
const MUCH: usize = 64 * 1024;
static ROOM: Semaphore = Semaphore::const_new(64);

/// Connections at once.
fn capacity() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let connections = descriptors.map_or(4096, |descriptors| descriptors / SHARE);
    usize::try_from(connections).unwrap_or(4096).clamp(16, 4096)
}

/// Takes the port.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "listening on {address} for clients of the API on this node: choose another address with --local-api"
        )
    })
}

/// Relays connections on an address to whichever of some servers answers, until stopped.
pub async fn relay_api(
    address: SocketAddr,
    servers: Vec<SocketAddr>,
    stop: CancellationToken,
) -> Result<()> {
    let listener = bind(address).await?;
    serve(listener, Servers::new(servers), stop).await;
    Ok(())
}

/// Relays until stopped.
pub(crate) async fn serve(listener: TcpListener, servers: Servers, stop: CancellationToken) {
    serve_some(listener, servers, capacity(), stop).await;
}

async fn serve_some(
    listener: TcpListener,
    servers: Servers,
    capacity: usize,
    stop: CancellationToken,
) {
    let mut relays = JoinSet::new();
    // Those that may be strangers' still, the oldest first.
    let mut young: VecDeque<(Instant, AbortHandle)> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = relays.join_next() => continue,
            accepted = listener.accept(), if relays.len() <= capacity => accepted,
        };
        match accepted {
            Ok((client, _)) => {
                let servers = servers.clone();
                let relay = relays.spawn(async move { relay(client, &servers).await });
                young.retain(|(began, relay)| began.elapsed() < KNOWN && !relay.is_finished());
                // With none to displace, the next one waits.
                if relays.len() > capacity
                    && let Some((_, oldest)) = young.pop_front()
                {
                    oldest.abort();
                }
                young.push_back((Instant::now(), relay));
            }
            Err(error) => {
                // Out of descriptors, most likely: others will close theirs.
                tracing::warn!(%error, "accepting a client of the API");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn relay(client: TcpStream, servers: &Servers) {
    let Some(server) = connect(servers).await else {
        tracing::warn!("a client of the API was turned away: no server answers");
        return;
    };
    client.set_nodelay(true).ok();
    // Either side may break off; the other is told by the end of its own connection, and does not keep this one for long.
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        carry(&mut from_client, &mut to_server).await.ok();
        to_server.shutdown().await.ok();
    };
    let down = async {
        carry(&mut from_server, &mut to_client).await.ok();
        to_client.shutdown().await.ok();
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut up => drop(tokio::time::timeout(FAREWELL, down).await),
        () = &mut down => drop(tokio::time::timeout(FAREWELL, up).await),
    }
}

/// Copies to the end. Most connections say little at a time and are given little room; one that fills it gets more where
/// there is some, for as long as it has use for that.
async fn carry(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut buffer = vec![0; LITTLE];
    let mut room = None;
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
        if count == LITTLE && room.is_none() {
            room = ROOM.try_acquire().ok();
            let length = if room.is_some() { MUCH } else { LITTLE };
            buffer.resize(length, 0);
        } else if count < LITTLE && room.is_some() {
            buffer = vec![0; LITTLE];
            room = None;
        }
    }
}

async fn connect(servers: &Servers) -> Option<TcpStream> {
    for address in servers.by_preference() {
        let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
        match connected.map_err(std::io::Error::from).flatten() {
            Ok(stream) => {
                if let Err(error) = notice_silence(&stream) {
                    tracing::debug!(%error, "asking the kernel to watch over a connection");
                }
                return Some(stream);
            }
            Err(error) => tracing::debug!(server = %address, %error, "passing a server over"),
        }
    }
    None
}

fn notice_silence(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE / 2)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE / 4)?;
    sockopt::set_tcp_keepcnt(stream, 2)?;
    let millis = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn loopback() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        (listener, address)
    }

    /// Says its number to whoever connects, then repeats what it hears.
    fn answer(listener: TcpListener, number: u8) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            let mut relays = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                relays.spawn(async move {
                    stream.write_u8(number).await.ok();
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                });
            }
        })
    }

    async fn answered_by(address: SocketAddr) -> std::io::Result<u8> {
        let mut stream = TcpStream::connect(address).await?;
        let number = stream.read_u8().await?;
        stream.write_all(b"echo").await?;
        let mut echo = [0; 4];
        stream.read_exact(&mut echo).await?;
        assert_eq!(&echo, b"echo");
        Ok(number)
    }

    #[tokio::test]
    async fn clients_reach_the_preferred_server_and_then_any_that_lives() {
        let (first, one) = loopback().await;
        let (second, two) = loopback().await;
        let first = answer(first, 1);
        let second = answer(second, 2);
        let servers = Servers::new(vec![two, one]);
        servers.prefer(one);
        let (listener, local) = loopback().await;
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, servers, stop.clone()));
        assert_eq!(answered_by(local).await.expect("an answer"), 1);
        first.abort();
        first.await.expect_err("aborted");
        assert_eq!(answered_by(local).await.expect("an answer"), 2);
        second.abort();
        second.await.expect_err("aborted");
        answered_by(local).await.expect_err("nobody answers");
        stop.cancel();
        serving.await.expect("it ends");
    }

    #[tokio::test]
    async fn whatever_is_said_arrives_in_its_order() {
        let (mut client, mut near) = tokio::io::duplex(300_000);
        let (mut far, mut server) = tokio::io::duplex(1_000_000);
        let mut sent = Vec::new();
        for (number, length) in [1, LITTLE, MUCH, 200_000, LITTLE - 1, 3, MUCH + 1]
            .into_iter()
            .enumerate()
        {
            sent.extend(std::iter::repeat_n(number as u8, length));
        }
        let sending = sent.clone();
        let writing = tokio::spawn(async move {
            client.write_all(&sending).await.expect("open");
        });
        carry(&mut near, &mut far).await.expect("open");
        drop(far);
        writing.await.expect("no panic");
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.expect("open");
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn clients_that_say_nothing_do_not_keep_others_out() {
        let (server, address) = loopback().await;
        let server = answer(server, 1);
        let (listener, local) = loopback().await;
        let stop = CancellationToken::new();
        let servers = Servers::new(vec![address]);
        let serving = tokio::spawn(serve_some(listener, servers, 4, stop.clone()));
        let mut silent = Vec::new();
        for _ in 0..20 {
            let mut stream = TcpStream::connect(local).await.expect("connected");
            assert_eq!(stream.read_u8().await.expect("a greeting"), 1);
            silent.push(stream);
        }
        assert_eq!(answered_by(local).await.expect("an answer"), 1);
        // The oldest went first.
        let end = silent[0].read_u8().await.map_err(|error| error.kind());
        end.expect_err("displaced");
        server.abort();
        stop.cancel();
        serving.await.expect("it ends");
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_the_way_out() {
        let (_taken, address) = loopback().await;
        let error = format!("{:#}", bind(address).await.expect_err("it is taken"));
        assert!(
            error.contains(&address.to_string()) && error.contains("--local-api"),
            "{error}"
        );
    }
}
