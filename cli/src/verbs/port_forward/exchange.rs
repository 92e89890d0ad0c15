//! One forwarded connection: each direction is carried until it ends, whatever has become of the other.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::client::{CLOSE, Channels, Incoming, Outgoing, PIECE};

/// Servers of Gantry have a word for the end of a direction, others have not.
const ENDS: &str = "ends.v4.channel.gantry";
pub(super) const PROTOCOLS: [&str; 2] = [ENDS, "v4.channel.k8s.io"];
/// The channels of the first port. Each begins with its number, in two bytes.
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// How long a pod may be silent after the end of what it is told, where it cannot be told of that end.
const SILENCE: Duration = Duration::from_secs(10);

/// Carries both directions until both have ended, or one side has broken off. The error is what the server says.
pub(super) async fn exchange(local: TcpStream, channels: Channels) -> Result<()> {
    let Channels {
        protocol,
        outgoing,
        incoming,
    } = channels;
    let (from_local, to_local) = local.into_split();
    let said_all = Notify::new();
    let ends = protocol == ENDS;
    tokio::select! {
        () = up(from_local, outgoing, ends, &said_all) => Ok(()),
        ended = down(incoming, to_local, &said_all) => ended,
    }
}

/// From the local side to the pod; returns when the local side has broken off.
async fn up(mut from: OwnedReadHalf, to: Outgoing, ends: bool, said_all: &Notify) {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => count,
            Err(_) => return,
        };
        if to.send(DATA, &buffer[..count]).await.is_err() {
            // Why the server takes no more is said to the other direction.
            return std::future::pending().await;
        }
    }
    match ends {
        // A connection that is lost is seen by the other direction.
        true => to.send(CLOSE, &[DATA]).await.unwrap_or_default(),
        false => said_all.notify_one(),
    }
    std::future::pending().await
}

/// From the pod to the local side, to the end of the connection.
async fn down(mut from: Incoming, mut to: OwnedWriteHalf, said_all: &Notify) -> Result<()> {
    let mut begun = [false; 2];
    let mut patience = None;
    loop {
        let next = tokio::select! {
            next = next(&mut from, patience) => next?,
            () = said_all.notified(), if patience.is_none() => {
                patience = Some(SILENCE);
                continue;
            }
        };
        let Some((channel, bytes)) = next else {
            return Ok(());
        };
        match channel {
            DATA | ERROR if !begun[usize::from(channel)] => begun[usize::from(channel)] = true,
            // Where the local side reads no more, there is nobody left to forward for.
            DATA if to.write_all(&bytes).await.is_err() => return Ok(()),
            ERROR => bail!("{}", String::from_utf8_lossy(&bytes).trim()),
            CLOSE if bytes.first() == Some(&DATA) => {
                // It may have gone already.
                to.shutdown().await.ok();
            }
            _ => {}
        }
    }
}

/// The next message, if it comes in time.
async fn next(
    from: &mut Incoming,
    patience: Option<Duration>,
) -> Result<Option<(u8, hyper::body::Bytes)>> {
    let next = from.next();
    Ok(match patience {
        None => next.await?,
        Some(patience) => match timeout(patience, next).await {
            Ok(next) => next?,
            Err(_) => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};
    use hyper::body::Bytes;
    use tokio::io::DuplexStream;
    use tokio::net::TcpListener;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    type Server = WebSocketStream<DuplexStream>;

    /// A client's connection that is being forwarded, and the server's end of it.
    async fn forwarded(
        protocol: &'static str,
    ) -> (TcpStream, Server, tokio::task::JoinHandle<Result<()>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).await.expect("connects");
        let (local, _) = listener.accept().await.expect("accepts");
        let (ours, theirs) = tokio::io::duplex(4096);
        let socket = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let channels = Channels::over(socket, protocol);
        let mut server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        let exchanging = tokio::spawn(exchange(local, channels));
        for channel in [DATA, ERROR] {
            say(&mut server, &[channel, 80, 0]).await;
        }
        (client, server, exchanging)
    }

    async fn say(server: &mut Server, message: &[u8]) {
        let message = Message::Binary(Bytes::copy_from_slice(message));
        server.send(message).await.expect("open");
    }

    async fn hear(server: &mut Server) -> Bytes {
        let next = timeout(Duration::from_secs(10), server.next()).await;
        let message = next.expect("in time").expect("open").expect("a message");
        message.into_data()
    }

    #[tokio::test]
    async fn an_answer_that_comes_after_the_question_has_ended_arrives_whole() {
        let (mut client, mut server, exchanging) = forwarded(ENDS).await;
        client.write_all(b"question").await.expect("open");
        client.shutdown().await.expect("open");
        assert_eq!(hear(&mut server).await, &b"\0question"[..]);
        assert_eq!(hear(&mut server).await, &[CLOSE, DATA][..]);
        let answering = tokio::spawn(async move {
            let mut piece = vec![7; 1 + 60_000];
            piece[0] = DATA;
            for _ in 0..50 {
                say(&mut server, &piece).await;
            }
            say(&mut server, &[CLOSE, DATA]).await;
            server.close(None).await.expect("open");
        });
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("open");
        assert_eq!(answer.len(), 50 * 60_000);
        answering.await.expect("no panic");
        exchanging.await.expect("no panic").expect("no refusal");
    }

    #[tokio::test]
    async fn a_pod_that_has_said_all_is_still_told() {
        let (mut client, mut server, exchanging) = forwarded(ENDS).await;
        say(&mut server, b"\0greeting").await;
        say(&mut server, &[CLOSE, DATA]).await;
        let mut greeting = String::new();
        client.read_to_string(&mut greeting).await.expect("open");
        assert_eq!(greeting, "greeting");
        client.write_all(b"more").await.expect("open");
        assert_eq!(hear(&mut server).await, &b"\0more"[..]);
        drop(client);
        assert_eq!(hear(&mut server).await, &[CLOSE, DATA][..]);
        server.close(None).await.expect("open");
        exchanging.await.expect("no panic").expect("no refusal");
    }

    #[tokio::test]
    async fn a_server_without_a_word_for_the_end_still_answers() {
        let (mut client, mut server, exchanging) = forwarded(PROTOCOLS[1]).await;
        client.write_all(b"question").await.expect("open");
        client.shutdown().await.expect("open");
        assert_eq!(hear(&mut server).await, &b"\0question"[..]);
        say(&mut server, b"\0answer").await;
        server.close(None).await.expect("open");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("open");
        assert_eq!(answer, "answer");
        exchanging.await.expect("no panic").expect("no refusal");
    }

    #[tokio::test]
    async fn a_refusal_is_the_error() {
        let (_client, mut server, exchanging) = forwarded(ENDS).await;
        say(&mut server, b"\x01connection refused\n").await;
        let error = exchanging.await.expect("no panic").expect_err("refused");
        assert_eq!(error.to_string(), "connection refused");
    }
}
