//! Single requests to servers, by address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::about_clocks;

const ANSWER: Duration = Duration::from_secs(30);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Nobody listens there, or the two sides do not trust each other.
    #[error("connecting to {address}: {source}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A certificate is not valid at this time.
    #[error("connecting to {address}: {words}")]
    Clocks {
        /// Where.
        address: SocketAddr,
        /// What the clocks and the certificate say.
        words: String,
    },
    /// The connection broke off.
    #[error("asking the server at {address}: {source}")]
    Exchange {
        /// Whom.
        address: SocketAddr,
        /// Why not.
        source: hyper::Error,
    },
    /// It took too long.
    #[error("{address} did not answer within {} s", ANSWER.as_secs())]
    Silence {
        /// Who.
        address: SocketAddr,
    },
}

impl RequestError {
    /// Whether the server is of an authority that is not trusted: of another cluster, then.
    pub fn is_foreign(&self) -> bool {
        let Self::Connect { source, .. } = self else {
            return false;
        };
        let inner = source
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        matches!(
            inner,
            Some(rustls::Error::InvalidCertificate(
                rustls::CertificateError::UnknownIssuer
            ))
        )
    }
}

/// A TLS connection. Where a clock may be the cause of a refusal, the error says so.
pub async fn connect(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let connected = handshake(address, tls).await;
    connected.map_err(|error| match about_clocks(&error, None) {
        Some(words) => std::io::Error::new(error.kind(), words),
        None => error,
    })
}

async fn handshake(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    secure(stream, address.ip(), tls).await
}

/// A TLS session on a connection to this address.
pub async fn secure(
    stream: TcpStream,
    address: IpAddr,
    tls: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::IpAddress(address.into());
    TlsConnector::from(tls).connect(name, stream).await
}

/// One HTTP/1.1 request and its whole answer: status and body.
pub async fn request(
    address: SocketAddr,
    mut tls: ClientConfig,
    mut request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), RequestError> {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let exchange = async {
        let connected = handshake(address, Arc::new(tls)).await;
        let stream = connected.map_err(|source| match about_clocks(&source, None) {
            Some(words) => RequestError::Clocks { address, words },
            None => RequestError::Connect { address, source },
        })?;
        let broken = |source| RequestError::Exchange { address, source };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Ends with the sender, and says to it what went wrong.
        tokio::spawn(connection);
        if let Ok(host) = http::HeaderValue::from_str(&address.to_string()) {
            request.headers_mut().insert(http::header::HOST, host);
        }
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(broken)?;
        Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(ANSWER, exchange)
        .await
        .map_err(|_| RequestError::Silence { address })?
}
