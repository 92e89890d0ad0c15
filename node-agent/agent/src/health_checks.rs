//! Answers the health checks of load balancers: whether this node has endpoints of a service whose
//! `externalTrafficPolicy` is `Local`, on the service's `healthCheckNodePort`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gantry_network::ServiceName;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

/// How long a client may take to ask.
const REQUEST: Duration = Duration::from_secs(10);
/// Connections to one service's check at the same time; more wait.
const CONNECTIONS: usize = 64;
const BACKLOG: u32 = 128;

/// A port that could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "listening on healthCheckNodePort {port} of service {namespace}/{name}: load balancers will not send to this \
     node until the port is free"
)]
pub(crate) struct PortTaken {
    port: u16,
    namespace: String,
    name: String,
    source: std::io::Error,
}

/// The checks that are answered; dropping them closes their ports.
#[derive(Debug, Default)]
pub(crate) struct HealthChecks {
    checks: BTreeMap<ServiceName, Check>,
    /// Those whose port was taken, with what was wanted.
    refused: BTreeMap<ServiceName, (u16, usize)>,
}

#[derive(Debug)]
struct Check {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    serving: AbortHandle,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl HealthChecks {
    /// Forgets the services for which this is false.
    pub(crate) fn keep(&mut self, keep: impl Fn(&ServiceName) -> bool) {
        self.checks.retain(|name, _| keep(name));
        self.refused.retain(|name, _| keep(name));
    }

    /// Tries the ports that were taken once more.
    pub(crate) fn retry(&mut self) -> Result<(), PortTaken> {
        let refused = std::mem::take(&mut self.refused).into_iter();
        refused
            .map(|(name, wanted)| self.set(&name, Some(wanted)))
            .fold(Ok(()), Result::and)
    }

    /// Answers for a service on the port with that many endpoints, or no longer.
    pub(crate) fn set(
        &mut self,
        name: &ServiceName,
        wanted: Option<(u16, usize)>,
    ) -> Result<(), PortTaken> {
        self.refused.remove(name);
        let Some((port, count)) = wanted else {
            self.checks.remove(name);
            return Ok(());
        };
        if let Some(check) = self.checks.get(name).filter(|check| check.port == port) {
            check.local_endpoints.store(count, Ordering::Relaxed);
            return Ok(());
        }
        self.checks.remove(name);
        let listener = listen(port).map_err(|source| {
            self.refused.insert(name.clone(), (port, count));
            PortTaken {
                port,
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                source,
            }
        })?;
        let local_endpoints = Arc::new(AtomicUsize::new(count));
        let serving = tokio::spawn(serve(listener, name.clone(), local_endpoints.clone()));
        let check = Check {
            port,
            local_endpoints,
            serving: serving.abort_handle(),
        };
        self.checks.insert(name.clone(), check);
        Ok(())
    }
}

/// On all addresses of both families, where the host has both.
fn listen(port: u16) -> std::io::Result<TcpListener> {
    let bind = |address: SocketAddr| {
        let socket = match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    match bind((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            bind(([0, 0, 0, 0], port).into())
        }
        other => other,
    }
}

async fn serve(listener: TcpListener, name: ServiceName, local_endpoints: Arc<AtomicUsize>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let name = Arc::new(name);
    let mut connections = JoinSet::new();
    while let Ok(permit) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (name, local_endpoints) = (name.clone(), local_endpoints.clone());
                connections.spawn(async move {
                    let _room = permit;
                    converse(stream, &name, &local_endpoints).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a health check's connection");
                // Out of descriptors, most likely: the next attempt would fail as fast.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, name: &ServiceName, local_endpoints: &AtomicUsize) {
    let service = service_fn(|_| {
        let answer = answer(name, local_endpoints.load(Ordering::Relaxed));
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a health check's connection ended");
    }
}

/// What kube-proxy answers, so that load balancers understand it.
fn answer(name: &ServiceName, local_endpoints: usize) -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "service": {"namespace": name.namespace, "name": name.name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::from(body.to_string()));
    if local_endpoints == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        "x-load-balancing-endpoint-weight",
        HeaderValue::from(local_endpoints),
    );
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn name() -> ServiceName {
        ServiceName {
            namespace: "shop".into(),
            name: "web".into(),
        }
    }

    async fn ask(port: u16) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request = b"GET /healthz HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// A port that was free a moment ago.
    fn free_port() -> u16 {
        let listener = listen(0).unwrap();
        listener.local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn the_count_of_local_endpoints_decides() {
        let (mut checks, port) = (HealthChecks::default(), free_port());
        checks.set(&name(), Some((port, 2))).unwrap();
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(
            answer.contains("x-load-balancing-endpoint-weight: 2"),
            "{answer}"
        );
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["localEndpoints"], 2);
        assert_eq!(body["service"]["name"], "web");
        checks.set(&name(), Some((port, 0))).unwrap();
        let answer = ask(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }

    #[tokio::test]
    async fn a_port_is_given_back_and_one_that_is_taken_is_named() {
        let (mut checks, port) = (HealthChecks::default(), free_port());
        checks.set(&name(), Some((port, 1))).unwrap();
        let mut other = name();
        other.name = "other".into();
        let error = checks.set(&other, Some((port, 1))).unwrap_err();
        let words = error.to_string();
        assert!(
            words.contains(&port.to_string()) && words.contains("shop/other"),
            "{words}"
        );
        checks.set(&name(), None).unwrap();
        tokio::time::timeout(Duration::from_secs(30), async {
            while checks.retry().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        let answer = ask(port).await.unwrap();
        assert!(answer.contains("\"other\""), "{answer}");
        checks.keep(|_| false);
        tokio::time::timeout(Duration::from_secs(30), async {
            while ask(port).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }
}
