//! Connections to what listens inside a pod, on its loopback as well as on its address.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::NetworkError;
use crate::netns;

/// A listener that accepts nothing is given up on after this long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to `port` on the loopback of the network namespace mounted at `netns`; `None` is the node's own. IPv4 is
/// tried first, then IPv6.
pub async fn connect_inside(
    netns: Option<&Path>,
    port: u16,
) -> Result<tokio::net::TcpStream, NetworkError> {
    let netns = netns.map(Path::to_owned);
    let connected = tokio::task::spawn_blocking(move || match netns {
        Some(path) => netns::inside(&path, || loopback(port)),
        None => loopback(port),
    });
    let stream = connected
        .await
        .map_err(|error| failed(port, error.into()))??;
    tokio::net::TcpStream::from_std(stream).map_err(|error| failed(port, error))
}

fn failed(port: u16, source: std::io::Error) -> NetworkError {
    NetworkError::Io {
        doing: format!("connecting to localhost:{port}"),
        source,
    }
}

fn loopback(port: u16) -> Result<TcpStream, NetworkError> {
    let connect = |address: SocketAddr| -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    connect((Ipv4Addr::LOCALHOST, port).into())
        // What was wrong with IPv4 says more: a pod need not have IPv6 at all.
        .or_else(|error| connect((Ipv6Addr::LOCALHOST, port).into()).map_err(|_| error))
        .map_err(|error| failed(port, error))
}
