//! The HTTPS listener that REST and node links share: sockets, TLS and HTTP, each bounded.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use gantry_api::status::StatusError;
use gantry_tasks::caught;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{ApiServer, Caller};
use crate::connections::{Connected, Standing, Streams};
use crate::peer::Peer;
use crate::response::Answer;

/// A client that does not finish its TLS handshake within this is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often it is looked for connections that take longer than they may.
const SWEEP: Duration = Duration::from_secs(1);
/// HTTP/2 requests of one connection at once, of a client that its certificate names.
const STREAMS: u32 = 1000;
/// As [`STREAMS`], of others: whose library wants more opens another connection.
const STREAMS_OF_STRANGERS: u32 = 250;
/// Bytes of one HTTP/2 stream that may arrive before they are read.
const STREAM_WINDOW: u32 = 256 << 10;
/// Those of all streams of a client. A node's exec and log streams share a connection with its link, which must be heard
/// although nobody reads those: the cluster's own have room for all.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Headers of an HTTP/2 request, together.
const HEADERS: u32 = 64 << 10;
/// The head of an HTTP/1 request, whose path alone may have 64 KiB: a command for a container can be as long.
const HEAD: usize = 128 << 10;
/// Bytes of an answer that HTTP/2 takes before the socket does.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes that TLS keeps encrypted for a socket that takes none.
const TLS_BUFFER: usize = 32 << 10;
/// Bytes that the kernel keeps beyond what the client's window lets it send.
const UNSENT: u32 = 128 << 10;

/// Where handshakes are made: on a thread of their own, so that a flood of them, which costs little to begin and much to
/// answer, never stands in line before the requests of those who are in.
struct Doorstep(Option<Runtime>);

impl Doorstep {
    fn new() -> std::io::Result<Self> {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        threads.worker_threads(1).thread_name("handshakes");
        Ok(Self(Some(threads.enable_time().build()?)))
    }

    /// The thread's, or the caller's where none could be had.
    fn handle(&self) -> Handle {
        let own = self.0.as_ref().map(Runtime::handle);
        own.cloned().unwrap_or_else(Handle::current)
    }
}

impl Drop for Doorstep {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Who is not in yet need not be waited for, which must not be done here either.
            runtime.shutdown_background();
        }
    }
}

/// Serves until told to stop; then answers what is under way and returns.
pub(super) async fn serve(
    server: &ApiServer,
    listener: TcpListener,
    tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    others: Option<axum::Router>,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let doorstep = Doorstep::new().unwrap_or_else(|error| {
        tracing::warn!(%error, "handshakes have no thread of their own");
        Doorstep(None)
    });
    let (outside, inside) = (doorstep.handle(), Handle::current());
    tasks.spawn({
        let (connections, stop) = (server.inner.connections.clone(), stop.clone());
        let store = server.inner.api.store.clone();
        async move {
            let mut ticks = tokio::time::interval(SWEEP);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                connections.sweep(|peer| peer.check(&store).is_ok());
            }
        }
    });
    loop {
        let (stream, from) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: others will close theirs.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection was gone at once");
            continue;
        }
        let stream = server.inner.connections.admit(stream, from.ip());
        // Each connection with the certificates of the moment.
        let acceptor = TlsAcceptor::from(tls.borrow().clone());
        let (server, others, stop) = (server.clone(), others.clone(), stop.clone());
        let (inside, admitted) = (inside.clone(), tasks.clone());
        outside.spawn(async move {
            let address = from.ip().to_canonical();
            let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream));
            match handshake.await {
                Ok(Ok(tls)) => {
                    let connection = connection(server, tls, address, others, stop);
                    admitted.spawn_on(connection, &inside);
                }
                Ok(Err(error)) if is_about_certificate(&error) => {
                    let refusals = &server.inner.refusals;
                    refusals.signed(address, "a client certificate", Instant::now());
                }
                Ok(Err(_)) | Err(_) => {}
            }
        });
    }
    tasks.close();
    // Watches end with the stop token; anything else has a moment to finish.
    tokio::time::timeout(Duration::from_secs(5), tasks.wait())
        .await
        .ok();
}

/// Bounds what the kernel keeps for a connection, and lets it notice a client that vanished.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_notsent_lowat(UNSENT)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    socket.set_tcp_keepalive(&keepalive)
}

async fn connection(
    server: ApiServer,
    mut tls: TlsStream<Connected>,
    address: IpAddr,
    others: Option<axum::Router>,
    stop: CancellationToken,
) {
    let (socket, session) = tls.get_mut();
    session.set_buffer_limit(Some(TLS_BUFFER));
    let peer = Arc::new(Peer::of(address, session.peer_certificates()));
    let connection = socket.connection().clone();
    server.greet(&connection, &peer);
    if session.alpn_protocol() == Some(b"h2") {
        connection.is_multiplexed();
    }
    let standing = connection.standing();
    let caller = Caller { peer, connection };
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (server, caller, others) = (server.clone(), caller.clone(), others.clone());
        async move {
            let request = request.map(Body::new);
            let answer = caught(server.dispatch(request, caller, others)).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|panicked| {
                tracing::error!(%panicked, "answering a request");
                let why = "the request could not be answered: this is a defect, which the server's log describes";
                Answer::error(&StatusError::internal(why)).into_response()
            }))
        }
    });
    let (streams, window) = match standing {
        Standing::Own => (STREAMS, STREAMS * STREAM_WINDOW),
        Standing::User => (STREAMS, CONNECTION_WINDOW),
        Standing::Anonymous | Standing::Stranger => (STREAMS_OF_STRANGERS, CONNECTION_WINDOW),
    };
    let mut builder = auto::Builder::new(Streams);
    builder.http1().max_buf_size(HEAD);
    builder
        .http2()
        .max_concurrent_streams(streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(window)
        .max_header_list_size(HEADERS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(Duration::from_secs(30))
        .timer(TokioTimer::new());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "a connection ended");
            }
        }
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(Duration::from_secs(1), connection).await.ok();
        }
    }
}

/// Whether a handshake failed over the certificate that the client showed.
fn is_about_certificate(error: &std::io::Error) -> bool {
    let inner = error.get_ref();
    let error = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(error, Some(rustls::Error::InvalidCertificate(_)))
}
