//! Lasting connections to other servers, for gRPC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint};

const CONNECT: Duration = Duration::from_secs(2);
/// HTTP/2 pings find a dead peer that TCP would take minutes to miss.
const PING: Duration = Duration::from_secs(2);

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
        async move { std::io::Result::Ok(TokioIo::new(gantry_tls::connect(address, tls).await?)) }
    });
    Ok(endpoint.connect_with_connector(connector).await?)
}
