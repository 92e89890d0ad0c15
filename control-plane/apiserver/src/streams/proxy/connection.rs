//! A connection to a target: through its node's link or straight from this server, with TLS or without.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use gantry_api::status::StatusError;
use gantry_rpc::node::{OpenStream, PageOptions, open_stream};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_rustls::TlsConnector;

use super::target::{Backend, Target};
use super::unreachable;
use crate::streams::port_forward::{Client, forward};
use crate::streams::{Gone, Input, NodeStream};

/// Bytes under way between the two sides of a connection.
const WINDOW: usize = 64 << 10;
/// How long a target may take to accept a connection, and how long to agree on TLS.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whoever answers is trusted: a target has no name that a certificate could vouch for. Nothing is resumed, since another
/// target may have the address next.
static TLS: LazyLock<Option<Arc<ClientConfig>>> = LazyLock::new(|| {
    let mut config = gantry_tls::anyone().ok()?;
    config.resumption = Resumption::disabled();
    Some(Arc::new(config))
});

/// A connection on which one request can be sent.
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Body>,
    /// Why it broke off, when the target's node says so.
    failure: oneshot::Receiver<String>,
}

impl Connection {
    /// Why a request was not answered.
    pub(super) async fn why(self, error: &hyper::Error) -> StatusError {
        let Self { sender, failure } = self;
        drop(sender);
        // The node's own words say more than that the connection broke off.
        let why = failure.await.unwrap_or_else(|_| said(error));
        unreachable(&why)
    }
}

/// An error of HTTP, as Go says the commonest.
fn said(error: &hyper::Error) -> String {
    match error.is_incomplete_message() {
        true => "EOF".to_owned(),
        false => error.to_string(),
    }
}

/// Connects to a target.
pub(super) async fn connect(target: Target) -> Result<Connection, StatusError> {
    let (told, failure) = oneshot::channel();
    let name = target.tls.then(|| ServerName::from(target.address));
    let place = target.authority();
    match target.backend {
        Backend::Node(ports) => {
            let opened = ports.open(target.port).await;
            let node = opened.map_err(|why| unreachable(&why))?;
            begin(carried(node, told), name, failure).await
        }
        Backend::Pages(streams, node) => {
            let request = OpenStream {
                kind: Some(open_stream::Kind::Pages(PageOptions {})),
                ..OpenStream::default()
            };
            let opened = streams.open(&node, request).await;
            let node = opened.map_err(|why| unreachable(&why))?;
            begin(carried(node, told), name, failure).await
        }
        Backend::Server => {
            let connecting = TcpStream::connect((target.address, target.port));
            let stream = match tokio::time::timeout(PATIENCE, connecting).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    let why = format!("dial tcp {place}: connect: connection refused");
                    return Err(unreachable(&why));
                }
                Ok(Err(error)) => {
                    return Err(unreachable(&format!("dial tcp {place}: {error}")));
                }
                Err(_) => return Err(unreachable(&format!("dial tcp {place}: i/o timeout"))),
            };
            drop(told);
            begin(stream, name, failure).await
        }
    }
}

/// A connection that a stream to a node carries; `told` is told why it broke off.
fn carried(node: NodeStream, told: oneshot::Sender<String>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(WINDOW);
    tokio::spawn(async move {
        if let Err(why) = carry(node, far).await {
            // Nobody asks any more when the answer has begun.
            told.send(why).ok();
        }
    });
    near
}

/// Begins to speak, through TLS when the target has a name for it.
async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    name: Option<ServerName<'static>>,
    failure: oneshot::Receiver<String>,
) -> Result<Connection, StatusError> {
    let Some(name) = name else {
        return speak(stream, failure).await;
    };
    let Some(config) = TLS.clone() else {
        return Err(unreachable("tls: this server cannot speak it"));
    };
    let agreeing = TlsConnector::from(config).connect(name, stream);
    let why = match tokio::time::timeout(PATIENCE, agreeing).await {
        Ok(Ok(stream)) => return speak(stream, failure).await,
        Ok(Err(error)) => failure.await.unwrap_or_else(|_| error.to_string()),
        Err(_) => "net/http: TLS handshake timeout".to_owned(),
    };
    Err(unreachable(&why))
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    failure: oneshot::Receiver<String>,
) -> Result<Connection, StatusError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(&error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a proxied target ended");
        }
    });
    Ok(Connection { sender, failure })
}

/// What comes from the pod, on its way into the connection.
struct Inbound(Mutex<WriteHalf<DuplexStream>>);

#[async_trait]
impl Client for Inbound {
    async fn send(&self, bytes: Bytes) -> Result<(), Gone> {
        let mut writer = self.0.lock().await;
        writer.write_all(&bytes).await.map_err(|_| Gone)
    }

    async fn end(&self) -> Result<(), Gone> {
        let mut writer = self.0.lock().await;
        writer.shutdown().await.map_err(|_| Gone)
    }
}

/// Carries the bytes of a connection over a stream to the node, until either side has ended.
async fn carry(node: NodeStream, far: DuplexStream) -> Result<(), String> {
    let (mut reader, writer) = tokio::io::split(far);
    let (input, from_client) = mpsc::channel(4);
    let up = async {
        let mut buffer = BytesMut::with_capacity(WINDOW);
        while let Ok(1..) = reader.read_buf(&mut buffer).await {
            let bytes = buffer.split().freeze();
            if input.send(Input::Data(bytes)).await.is_err() {
                // The node's last words are still to be read.
                std::future::pending::<()>().await;
            }
            buffer.reserve(WINDOW);
        }
    };
    let inbound = Inbound(Mutex::new(writer));
    tokio::select! {
        ended = forward(node, from_client, &inbound) => ended,
        // The answer has been read, or nobody wants it any more.
        () = up => Ok(()),
    }
}
