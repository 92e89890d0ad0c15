//! Actions on a container: http, tcp, grpc, exec and sleep, for probes and lifecycle hooks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gantry_runtime::{ContainerId, ExecSpec, Runtime};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

/// Bytes of an answer that are kept for a message.
const KEPT: usize = 10 * 1024;

/// What an action is done to.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) id: ContainerId,
    pub(crate) container: Arc<Container>,
    /// The pod's, IPv4 first.
    pub(crate) pod_ips: Vec<IpAddr>,
}

/// What to do.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Exec(Vec<String>),
    Http(HTTPGetAction),
    Tcp {
        host: Option<String>,
        port: IntOrString,
    },
    Grpc(GRPCAction),
    Sleep(Duration),
}

impl Action {
    pub(crate) fn of_probe(probe: &Probe) -> Option<Self> {
        if let Some(exec) = &probe.exec {
            return Some(Self::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(get) = &probe.http_get {
            return Some(Self::Http(get.clone()));
        }
        if let Some(socket) = &probe.tcp_socket {
            return Some(Self::Tcp {
                host: socket.host.clone(),
                port: socket.port.clone(),
            });
        }
        probe.grpc.clone().map(Self::Grpc)
    }

    pub(crate) fn of_hook(hook: &LifecycleHandler) -> Option<Self> {
        if let Some(exec) = &hook.exec {
            return Some(Self::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(get) = &hook.http_get {
            return Some(Self::Http(get.clone()));
        }
        if let Some(socket) = &hook.tcp_socket {
            return Some(Self::Tcp {
                host: socket.host.clone(),
                port: socket.port.clone(),
            });
        }
        let sleep = hook.sleep.as_ref()?;
        Some(Self::Sleep(Duration::from_secs(
            u64::try_from(sleep.seconds).unwrap_or(0),
        )))
    }

    /// Does it. The error is worded as a kubelet's probe message.
    pub(crate) async fn run(
        &self,
        target: &Target,
        timeout: Option<Duration>,
    ) -> Result<(), String> {
        let action = async {
            match self {
                Self::Exec(command) => exec(target, command, timeout).await,
                Self::Http(get) => http_get(target, get).await,
                Self::Tcp { host, port } => {
                    let (host, port) = (target.host(host.as_deref()), target.port(port)?);
                    connect(&host, port).await.map(drop)
                }
                Self::Grpc(check) => grpc(target, check).await,
                Self::Sleep(duration) => {
                    tokio::time::sleep(*duration).await;
                    Ok(())
                }
            }
        };
        match timeout {
            None => action.await,
            Some(limit) => tokio::time::timeout(limit, action)
                .await
                .unwrap_or_else(|_| Err(self.timed_out(target, limit))),
        }
    }

    fn timed_out(&self, target: &Target, limit: Duration) -> String {
        match self {
            Self::Exec(_) => format!(
                "command timed out: exec in container {} took more than {limit:?}",
                target.id.name
            ),
            Self::Http(get) => {
                let port = target.port(&get.port).unwrap_or_default();
                let (host, path) = (
                    target.host(get.host.as_deref()),
                    get.path.as_deref().unwrap_or("/"),
                );
                let scheme = get.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
                format!(
                    "Get \"{scheme}://{host}:{port}{path}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                )
            }
            Self::Tcp { host, port } => {
                let port = target.port(port).unwrap_or_default();
                format!(
                    "dial tcp {}:{port}: i/o timeout",
                    target.host(host.as_deref())
                )
            }
            Self::Grpc(_) => format!(
                "timeout: failed to connect service within {limit:?}: context deadline exceeded"
            ),
            Self::Sleep(_) => "the sleep was cut short".to_owned(),
        }
    }
}

impl Target {
    fn host(&self, host: Option<&str>) -> String {
        let own = || self.pod_ips.first().map(IpAddr::to_string);
        host.filter(|host| !host.is_empty())
            .map(str::to_owned)
            .or_else(own)
            .unwrap_or_default()
    }

    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => {
                let ports = self.container.ports.iter().flatten();
                let named = ports
                    .into_iter()
                    .find(|port| port.name.as_deref() == Some(name));
                named
                    .map(|port| port.container_port)
                    .or_else(|| name.parse().ok())
            }
        };
        number
            .and_then(|number| u16::try_from(number).ok())
            .ok_or_else(|| {
                format!(
                    "couldn't find port: container {} has no port {port:?}",
                    self.container.name
                )
            })
    }
}

async fn exec(
    target: &Target,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<(), String> {
    let spec = ExecSpec {
        args: command.to_vec(),
        tty: false,
        stdin: false,
        timeout,
    };
    let mut session = target
        .runtime
        .exec(&target.id, spec)
        .await
        .map_err(|error| error.to_string())?;
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let stderr = session.stderr.take();
    let read_errors = async {
        if let Some(mut stderr) = stderr {
            drain(&mut stderr, &mut errors).await;
        }
    };
    tokio::join!(drain(&mut session.stdout, &mut output), read_errors);
    match session.exit.await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(code)) => {
            output.extend(errors);
            let words = String::from_utf8_lossy(&output).into_owned();
            Err(if words.is_empty() {
                format!("command exited with {code}")
            } else {
                words
            })
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the command's container {} ended", target.id.name)),
    }
}

/// Reads to the end and keeps the beginning.
async fn drain(from: &mut (dyn AsyncRead + Send + Unpin), into: &mut Vec<u8>) {
    let mut buffer = [0_u8; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = KEPT.saturating_sub(into.len()).min(count);
        into.extend_from_slice(&buffer[..room]);
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| {
        let words = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {host}:{port}: {words}")
    })
}

async fn http_get(target: &Target, get: &HTTPGetAction) -> Result<(), String> {
    let (host, port) = (target.host(get.host.as_deref()), target.port(&get.port)?);
    let secure = get.scheme.as_deref() == Some("HTTPS");
    let path = get
        .path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/");
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let url = format!(
        "{}://{host}:{port}{path}",
        if secure { "https" } else { "http" }
    );
    let wrong = |error: &dyn std::fmt::Display| format!("Get \"{url}\": {error}");
    let mut request = http::Request::get(&path);
    let mut has = (false, false);
    for header in get.http_headers.iter().flatten() {
        has.0 |= header.name.eq_ignore_ascii_case("host");
        has.1 |= header.name.eq_ignore_ascii_case("user-agent");
        request = request.header(&header.name, &header.value);
    }
    if !has.0 {
        request = request.header(http::header::HOST, format!("{host}:{port}"));
    }
    if !has.1 {
        request = request.header(http::header::USER_AGENT, "kube-probe/1.36");
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|error| wrong(&error))?;
    let stream = connect(&host, port).await.map_err(|error| wrong(&error))?;
    let (status, body) = if secure {
        let stream = crate::tls::unverified(&host, stream)
            .await
            .map_err(|error| wrong(&error))?;
        send(stream, request).await
    } else {
        send(stream, request).await
    }
    .map_err(|error| wrong(&error))?;
    if (200..400).contains(&status) {
        return Ok(());
    }
    tracing::debug!(url, status, body = %String::from_utf8_lossy(&body), "an HTTP action failed");
    Err(format!("HTTP probe failed with statuscode: {status}"))
}

async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: http::Request<Empty<Bytes>>,
) -> Result<(u16, Bytes), hyper::Error> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), KEPT)
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    driver.abort();
    Ok((status, body))
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`; 1 is SERVING.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn grpc(target: &Target, check: &GRPCAction) -> Result<(), String> {
    let uri = format!("http://{}:{}", target.host(None), check.port);
    let endpoint =
        tonic::transport::Endpoint::from_shared(uri).map_err(|error| error.to_string())?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| format!("failed to connect service: {error}"))?;
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| format!("failed to connect service: {error}"))?;
    let request = tonic::Request::new(HealthRequest {
        service: check.service.clone().unwrap_or_default(),
    });
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthRequest, HealthResponse>::default();
    let answer = client
        .unary(request, path, codec)
        .await
        .map_err(|status| format!("service unhealthy: {status}"))?;
    match answer.into_inner().status {
        1 => Ok(()),
        other => Err(format!("service unhealthy (responded with status {other})")),
    }
}

#[cfg(test)]
mod tests {
    use gantry_runtime::{FakeRuntime, PodUid};
    use serde_json::json;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn target(port: u16) -> Target {
        Target {
            runtime: Arc::new(FakeRuntime::new()),
            id: ContainerId {
                pod: PodUid("u".into()),
                name: "c".into(),
                attempt: 0,
            },
            container: Arc::new(
                serde_json::from_value(
                    json!({"name": "c", "ports": [{"name": "web", "containerPort": port}]}),
                )
                .unwrap(),
            ),
            pod_ips: vec!["127.0.0.1".parse().unwrap()],
        }
    }

    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 1024];
                if stream.read(&mut request).await.is_ok() {
                    stream.write_all(answer.as_bytes()).await.ok();
                }
            }
        });
        port
    }

    async fn get(port: u16) -> Result<(), String> {
        let probe = serde_json::from_value(json!({"httpGet": {"port": "web", "path": "/healthz"}}))
            .unwrap();
        Action::of_probe(&probe)
            .unwrap()
            .run(&target(port), Some(Duration::from_secs(5)))
            .await
    }

    #[tokio::test]
    async fn http_answers_decide() {
        let good = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(get(good).await, Ok(()));
        let bad = server("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(
            get(bad).await,
            Err("HTTP probe failed with statuscode: 503".to_owned())
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let words = get(port).await.unwrap_err();
        assert_eq!(
            words,
            format!(
                "Get \"http://127.0.0.1:{port}/healthz\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
    }

    #[tokio::test]
    async fn a_port_name_must_exist() {
        let port = server("").await;
        let named = |name: &str| Action::Tcp {
            host: None,
            port: IntOrString::String(name.into()),
        };
        assert_eq!(named("web").run(&target(port), None).await, Ok(()));
        assert!(
            named("nope")
                .run(&target(port), None)
                .await
                .unwrap_err()
                .starts_with("couldn't find port")
        );
    }
}
