//! Actions on a container: http, tcp, grpc, exec and sleep, for probes and lifecycle hooks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gantry_cri::network::{NodeConnection, NodeConnections};
use gantry_cri::runtime::{ContainerId, ExecSpec, Runtime};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use super::grpc_check;
use super::http_get::{self, Answer, Asker};
use crate::env::expand;

/// Bytes of an answer that are kept for a message.
pub(super) const KEPT: usize = 10 * 1024;

/// What an action is done to.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) id: ContainerId,
    pub(crate) container: Arc<Container>,
    /// The pod's, IPv4 first.
    pub(crate) pod_ips: Vec<IpAddr>,
    /// Where connections to it are counted.
    pub(crate) connections: Arc<NodeConnections>,
}

/// What to do.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Exec(Vec<String>),
    Http(HTTPGetAction, Asker),
    Tcp {
        host: Option<String>,
        port: IntOrString,
    },
    Grpc(GRPCAction),
    Sleep(Duration),
}

/// That an action succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Success {
    /// What should be told of it nevertheless.
    pub(crate) warning: Option<String>,
}

/// Why an action did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// In a kubelet's words.
    pub(crate) message: String,
    /// It could not even be tried, which says nothing of the container.
    pub(crate) untried: bool,
}

impl Failure {
    fn untried(message: String) -> Self {
        Self {
            message,
            untried: true,
        }
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self {
            message,
            untried: false,
        }
    }
}

impl Action {
    /// What a probe of this container does. A command's `$(NAME)` are variables that are written in the container itself.
    pub(crate) fn of_probe(probe: &Probe, container: &Container) -> Option<Self> {
        if let Some(exec) = &probe.exec {
            let known = |name: &str| {
                let mut variables = container.env.iter().flatten().rev();
                let variable = variables.find(|variable| variable.name == name)?;
                Some(variable.value.clone().unwrap_or_default())
            };
            let command = exec.command.iter().flatten();
            return Some(Self::Exec(
                command.map(|part| expand(part, &known)).collect(),
            ));
        }
        if let Some(get) = &probe.http_get {
            return Some(Self::Http(get.clone(), Asker::Probe));
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
            return Some(Self::Http(get.clone(), Asker::Hook));
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
    ) -> Result<Success, Failure> {
        let action = async {
            match self {
                Self::Exec(command) => exec(target, command, timeout).await?,
                Self::Http(get, Asker::Probe) => return probe_http(target, get).await,
                Self::Http(get, Asker::Hook) => call_http(target, get).await?,
                Self::Tcp { host, port } => {
                    let (host, port) = (target.host(host.as_deref()), target.port(port)?);
                    target.connect(&host, port).await.map(drop)?;
                }
                Self::Grpc(check) => {
                    let port = target.port(&IntOrString::Int(check.port))?;
                    let service = check.service.as_deref().unwrap_or_default();
                    grpc_check::check(target, &target.host(None), port, service, timeout).await?;
                }
                Self::Sleep(duration) => tokio::time::sleep(*duration).await,
            }
            Ok(Success::default())
        };
        match timeout {
            None => action.await,
            Some(limit) => tokio::time::timeout(limit, action)
                .await
                .unwrap_or_else(|_| Err(self.timed_out(target, limit).into())),
        }
    }

    fn timed_out(&self, target: &Target, limit: Duration) -> String {
        match self {
            Self::Exec(_) => format!(
                "command timed out: exec in container {} took more than {limit:?}",
                target.id.name
            ),
            Self::Http(get, _) => {
                let port = target.port(&get.port).unwrap_or_default();
                let address = http_get::address(get, &target.host(get.host.as_deref()), port);
                format!(
                    "Get \"{address}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                )
            }
            Self::Tcp { host, port } => {
                let port = target.port(port).unwrap_or_default();
                let address = join_host_port(&target.host(host.as_deref()), port);
                format!("dial tcp {address}: i/o timeout")
            }
            Self::Grpc(check) => {
                let port = u16::try_from(check.port).unwrap_or_default();
                let address = join_host_port(&target.host(None), port);
                format!(
                    "timeout: failed to connect service {address:?} within {limit:?}: context deadline exceeded"
                )
            }
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

    /// Counts a connection that is about to be made, where it is one to the pod.
    pub(super) fn count(&self, host: &str) -> Option<NodeConnection> {
        let host: IpAddr = host.parse().ok()?;
        let is_own = self.pod_ips.contains(&host);
        is_own.then(|| self.connections.begin(&self.id.pod.0))
    }

    /// As [`connect`], and counts it for as long as what is answered with the stream is kept.
    pub(super) async fn connect(
        &self,
        host: &str,
        port: u16,
    ) -> Result<(TcpStream, Option<NodeConnection>), String> {
        let mut counted = self.count(host);
        let stream = connect(host, port).await?;
        counted.iter_mut().for_each(NodeConnection::connected);
        Ok((stream, counted))
    }

    fn port(&self, port: &IntOrString) -> Result<u16, Failure> {
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
                Failure::untried(format!(
                    "couldn't find port: container {} has no port {port:?}",
                    self.container.name
                ))
            })
    }
}

async fn exec(
    target: &Target,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<(), Failure> {
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
        .map_err(|error| Failure::untried(error.to_string()))?;
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
            Err(match words.is_empty() {
                true => format!("command exited with {code}").into(),
                false => words.into(),
            })
        }
        Ok(Err(error)) => Err(error.to_string().into()),
        Err(_) => Err(format!("the command's container {} ended", target.id.name).into()),
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

/// A host and a port as an address is written: an IPv6 one in brackets.
pub(super) fn join_host_port(host: &str, port: u16) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Connects as probes do; the error is worded as Go words it.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| {
        use std::io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
        };
        let words = match error.kind() {
            ConnectionRefused => "connect: connection refused".to_owned(),
            ConnectionReset => "connect: connection reset by peer".to_owned(),
            HostUnreachable => "connect: no route to host".to_owned(),
            NetworkUnreachable => "connect: network is unreachable".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {}: {words}", join_host_port(host, port))
    })
}

/// A probe succeeds on answers that are good, and on those that lead to another host, of which it says so.
async fn probe_http(target: &Target, get: &HTTPGetAction) -> Result<Success, Failure> {
    let (host, port) = (target.host(get.host.as_deref()), target.port(&get.port)?);
    let answer = http_get::get(target, get, &host, port, Asker::Probe).await;
    let Answer { status, body } = answer.map_err(|none| none.message)?;
    let body = String::from_utf8_lossy(&body);
    match status {
        200..300 => Ok(Success::default()),
        300..400 => Ok(Success {
            warning: Some(format!("Probe terminated redirects, Response body: {body}")),
        }),
        _ => {
            tracing::debug!(pod = target.id.pod.0, status, %body, "an HTTP probe failed");
            Err(format!("HTTP probe failed with statuscode: {status}").into())
        }
    }
}

/// A hook succeeds with any answer, and with one in plain HTTP where TLS is not spoken.
async fn call_http(target: &Target, get: &HTTPGetAction) -> Result<(), Failure> {
    let (host, port) = (target.host(get.host.as_deref()), target.port(&get.port)?);
    let refused = match http_get::get(target, get, &host, port, Asker::Hook).await {
        Ok(_) => return Ok(()),
        Err(refused) => refused,
    };
    if refused.speaks_http {
        let mut plain = get.clone();
        plain.scheme = Some("HTTP".to_owned());
        // What was meant for nobody else's eyes stays unsaid.
        let headers = plain.http_headers.get_or_insert_default();
        headers.retain(|header| !header.name.eq_ignore_ascii_case("authorization"));
        if http_get::get(target, &plain, &host, port, Asker::Hook)
            .await
            .is_ok()
        {
            return Ok(());
        }
    }
    Err(refused.message.into())
}

#[cfg(test)]
pub(super) mod tests {
    use gantry_cri::runtime::{FakeRuntime, PodUid};
    use serde_json::{Value, json};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    pub(in crate::pod) fn target(port: u16) -> Target {
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
            connections: Arc::default(),
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

    async fn get(port: u16) -> Result<Success, String> {
        let probe = serde_json::from_value(json!({"httpGet": {"port": "web", "path": "/healthz"}}))
            .unwrap();
        let target = target(port);
        Action::of_probe(&probe, &target.container)
            .unwrap()
            .run(&target, Some(Duration::from_secs(60)))
            .await
            .map_err(|failure| failure.message)
    }

    #[tokio::test]
    async fn http_answers_decide() {
        let good = server("HTTP/1.1 204 No Content\r\n\r\n").await;
        assert_eq!(get(good).await, Ok(Success::default()));
        let bad = server("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(
            get(bad).await,
            Err("HTTP probe failed with statuscode: 503".to_owned())
        );
        let elsewhere =
            "HTTP/1.1 302 Found\r\nlocation: http://example.org/\r\ncontent-length: 4\r\n\r\nthat";
        let warned = get(server(elsewhere).await).await.unwrap().warning;
        let words = "Probe terminated redirects, Response body: that";
        assert_eq!(warned.as_deref(), Some(words));
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
    async fn a_hook_is_content_with_any_answer() {
        let bad = server("HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        let call = |get: Value| {
            let hook = serde_json::from_value(json!({"httpGet": get})).unwrap();
            let action = Action::of_hook(&hook).unwrap();
            async move { action.run(&target(bad), None).await }
        };
        assert_eq!(call(json!({"port": "web"})).await, Ok(Success::default()));
        let secure = json!({"port": "web", "scheme": "HTTPS"});
        assert_eq!(call(secure).await, Ok(Success::default()), "in plain HTTP");
    }

    #[test]
    fn a_probes_command_knows_what_is_written_in_its_container() {
        let container = json!({"name": "c", "env": [
            {"name": "A", "value": "1"}, {"name": "A", "value": "2"},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]});
        let probe = json!({"exec": {"command": ["x", "$(A)$(B)", "$(C)", "$$(A)"]}});
        let probe = serde_json::from_value(probe).unwrap();
        let container = serde_json::from_value(container).unwrap();
        let Some(Action::Exec(command)) = Action::of_probe(&probe, &container) else {
            panic!("a command");
        };
        assert_eq!(command, ["x", "2", "$(C)", "$(A)"]);
    }

    #[tokio::test]
    async fn connections_to_the_pod_are_counted_and_no_others() {
        let port = server("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let target = target(port);
        let made = || target.connections.of("u", std::time::Instant::now()).made;
        let run = async |probe: Value| {
            let probe = serde_json::from_value(probe).unwrap();
            let action = Action::of_probe(&probe, &target.container).unwrap();
            action.run(&target, Some(Duration::from_secs(60))).await
        };
        run(json!({"httpGet": {"port": port}})).await.unwrap();
        assert_eq!(made(), 1);
        run(json!({"tcpSocket": {"port": port}})).await.unwrap();
        assert_eq!(made(), 2);
        run(json!({"grpc": {"port": port}})).await.unwrap_err();
        assert_eq!(made(), 3, "it was connected to all the same");
        run(json!({"tcpSocket": {"port": port, "host": "localhost"}}))
            .await
            .unwrap();
        assert_eq!(made(), 3, "another host");
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        for probe in [
            json!({"tcpSocket": {"port": port}}),
            json!({"grpc": {"port": port}}),
        ] {
            run(probe).await.unwrap_err();
            assert_eq!(made(), 3, "nobody took it");
        }
    }

    #[tokio::test]
    async fn a_port_name_must_exist() {
        let port = server("").await;
        let named = |name: &str| Action::Tcp {
            host: None,
            port: IntOrString::String(name.into()),
        };
        let reached = named("web").run(&target(port), None).await;
        assert_eq!(reached, Ok(Success::default()));
        let unknown = named("nope").run(&target(port), None).await.unwrap_err();
        assert!(unknown.message.starts_with("couldn't find port"));
        assert!(unknown.untried);
    }
}
