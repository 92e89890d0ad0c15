//! Connections to other servers: TLS against the cluster's authority, HTTP/2 for gRPC, HTTP/1.1 for single requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use gantry_apiserver::pki::{Credential, Pki};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

const CONNECT: Duration = Duration::from_secs(2);
/// HTTP/2 pings find a dead peer that TCP would take minutes to miss.
const PING: Duration = Duration::from_secs(2);
const REQUEST: Duration = Duration::from_secs(30);

/// Trusts the cluster's authority and shows a certificate of it.
pub(crate) fn mutual(pki: &Pki, credential: &Credential) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pki.ca_pem().as_bytes()) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(credential.certificate.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(credential.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn connect(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(tls).connect(name, stream).await
}

/// A gRPC connection.
pub(crate) async fn channel(address: SocketAddr, tls: Arc<ClientConfig>) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    let connector = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move { std::io::Result::Ok(TokioIo::new(connect(address, tls).await?)) }
    });
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// One HTTP/1.1 request and its whole answer: status and body.
pub(crate) async fn request(
    address: SocketAddr,
    mut tls: ClientConfig,
    mut request: http::Request<Full<bytes::Bytes>>,
) -> Result<(http::StatusCode, bytes::Bytes)> {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let exchange = async {
        let stream = connect(address, Arc::new(tls)).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let host = http::HeaderValue::from_str(&address.to_string())?;
        request.headers_mut().insert(http::header::HOST, host);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, body))
    };
    tokio::time::timeout(REQUEST, exchange)
        .await
        .with_context(|| format!("{address} did not answer within {} s", REQUEST.as_secs()))?
        .with_context(|| format!("asking the server at {address}"))
}
