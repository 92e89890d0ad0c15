//! `gantry port-forward`: local ports that lead to ports of a pod.

mod exchange;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use gantry_api::paths;
use gantry_tls::Lifetime;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::Api;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::logs::pod_of;
use crate::client::{ApiError, Channels, Cluster};
use crate::output;
use exchange::{PROTOCOLS, exchange};

/// Forward local ports to a pod, until interrupted
#[derive(Debug, clap::Args)]
pub(crate) struct PortForward {
    /// POD or TYPE/NAME; of a service, one of its pods
    target: String,
    /// PORT, LOCAL:PORT, or :PORT for any free local port; PORT is a number or a name, of the service where one is named
    #[arg(required = true, value_parser = Ports::parse)]
    ports: Vec<Ports>,
    /// Local addresses to listen on
    #[arg(long, value_delimiter = ',', default_value = "localhost", value_parser = addresses)]
    address: Vec<Vec<IpAddr>>,
}

/// A local port, and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ports {
    /// 0 for any; none for the same number as the remote one's.
    local: Option<u16>,
    remote: IntOrString,
}

/// Where a remote port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    /// Its number, of the service where one is named.
    number: u16,
    /// The number of the pod's port.
    of_pod: u16,
}

impl Ports {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not PORT, LOCAL:PORT or :PORT");
        let (local, remote) = match text.split_once(':') {
            Some(("", remote)) => (Some(0), remote),
            Some((local, remote)) => (Some(local.parse::<u16>().map_err(|_| wrong())?), remote),
            None => (None, text),
        };
        let is_number = remote.bytes().all(|byte| byte.is_ascii_digit());
        let remote = match number(remote) {
            Some(port) => IntOrString::Int(port.into()),
            None if is_number => return Err(wrong()),
            None => IntOrString::String(remote.to_owned()),
        };
        Ok(Self { local, remote })
    }
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    if text == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let address = text.parse();
    let address = address.map_err(|_| format!("\"{text}\" is neither localhost nor an address"))?;
    Ok(vec![address])
}

/// The ports of a pod or a service, by which a port is found.
struct Remote {
    pod: Pod,
    service: Option<Service>,
}

impl Remote {
    fn port(&self, wanted: &IntOrString) -> Result<Found> {
        let Some(service) = &self.service else {
            let number = self.of_pod(wanted)?;
            return Ok(Found {
                number,
                of_pod: number,
            });
        };
        let spec = service.spec.as_ref();
        let ports = spec.and_then(|spec| spec.ports.as_ref());
        let matches = |port: &&ServicePort| match wanted {
            IntOrString::Int(number) => port.port == *number,
            IntOrString::String(name) => port.name.as_ref() == Some(name),
        };
        let mut found = ports.into_iter().flatten().filter(matches).peekable();
        if found.peek().is_none() {
            bail!("the service has no port {}", shown(wanted));
        }
        // The number may be of two ports, of which streams can lead to one.
        let found = found
            .find(|port| port.protocol.as_deref() != Some("UDP"))
            .with_context(|| format!("UDP is not forwarded, as of port {}", shown(wanted)))?;
        let own = IntOrString::Int(found.port);
        // Of a service without an address, clients dial the pods themselves, at the port that they know.
        let is_headless = spec.is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"));
        let target = found.target_port.as_ref().filter(|_| !is_headless);
        Ok(Found {
            number: u16::try_from(found.port)?,
            of_pod: self.of_pod(target.unwrap_or(&own))?,
        })
    }

    fn of_pod(&self, wanted: &IntOrString) -> Result<u16> {
        let number = match wanted {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => {
                let containers = self.pod.spec.iter().flat_map(|spec| &spec.containers);
                let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
                let named = ports.find(|port| port.name.as_ref() == Some(name));
                named.map(|port| port.container_port)
            }
        };
        number
            .and_then(|number| u16::try_from(number).ok())
            .with_context(|| format!("no container of the pod has a port {}", shown(wanted)))
    }
}

fn shown(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => format!("named \"{name}\""),
    }
}

impl PortForward {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let name = pod_of(cluster, &self.target).await?;
        let remote = Remote {
            pod: pods.get(&name).await.map_err(ApiError::from)?,
            service: self.service(cluster).await?,
        };
        let phase = remote
            .pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        if phase != Some("Running") {
            let phase = phase.unwrap_or("Pending");
            bail!("pod {name} is {phase}: its ports are there while it is Running");
        }
        let place = Place {
            client: cluster.client.clone(),
            own: cluster.certificate,
            path: paths::namespaced(&cluster.namespace, &["pods", &name, "portforward"]),
            pods,
            pod: name,
        };
        let mut forwards = JoinSet::new();
        for ports in &self.ports {
            let found = remote.port(&ports.remote)?;
            let port = found.of_pod;
            let local = ports.local.unwrap_or(found.number);
            for listener in listeners(self.address.concat(), local).await? {
                let address = listener.local_addr()?;
                output::print(&format!("Forwarding from {address} -> {port}\n"))?;
                forwards.spawn(forward(listener, place.clone(), port));
            }
        }
        match forwards.join_next().await {
            Some(ended) => ended?,
            None => Ok(()),
        }
    }

    /// The service, where the target is one.
    async fn service(&self, cluster: &Cluster) -> Result<Option<Service>> {
        let Some((resource, name)) = self.target.split_once('/') else {
            return Ok(None);
        };
        if cluster.mapping(resource).await?.kind != "Service" {
            return Ok(None);
        }
        let services: Api<Service> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        Ok(Some(services.get(name).await.map_err(ApiError::from)?))
    }
}

/// The same port on each address; a machine may lack one of the families.
async fn listeners(addresses: Vec<IpAddr>, mut port: u16) -> Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut refusal = None;
    for address in addresses {
        match TcpListener::bind(SocketAddr::new(address, port)).await {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(listener);
            }
            Err(error) => refusal = Some((SocketAddr::new(address, port), error)),
        }
    }
    match (listeners.is_empty(), refusal) {
        (true, Some((address, error))) => Err(error).with_context(|| {
            format!("listening on {address}: choose another local port, or :PORT")
        }),
        _ => Ok(listeners),
    }
}

/// The pod, and how to reach it.
#[derive(Clone)]
struct Place {
    client: kube::Client,
    /// How long the client's certificate lasts.
    own: Option<Lifetime>,
    path: String,
    pods: Api<Pod>,
    pod: String,
}

/// Takes connections until the pod is gone.
async fn forward(listener: TcpListener, place: Place, port: u16) -> Result<()> {
    let local = listener.local_addr()?.port();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (connection, _) = accepted.context("taking a connection")?;
                eprintln!("Handling connection for {local}");
                connections.spawn(carry(connection, place.clone(), port));
            }
            Some(ended) = connections.join_next() => if let Err(error) = ended? {
                eprintln!("error: port {port}: {error:#}");
                let found = place.pods.get_opt(&place.pod).await;
                if found.is_ok_and(|found| found.is_none()) {
                    bail!("pod {} is gone", place.pod);
                }
            },
        }
    }
}

async fn carry(local: TcpStream, place: Place, port: u16) -> Result<()> {
    // Small pieces are not to wait for more.
    local.set_nodelay(true).ok();
    let port = port.to_string();
    let query = [("ports", port.as_str())];
    let opened = Channels::open(&place.client, place.own, &place.path, &query, &PROTOCOLS);
    exchange(local, opened.await?).await
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn ports_are_numbers_or_names_with_a_local_one_before() {
        let number = |local, remote| {
            Some(Ports {
                local,
                remote: IntOrString::Int(remote),
            })
        };
        for (text, expected) in [
            ("8080", number(None, 8080)),
            ("80:8080", number(Some(80), 8080)),
            (":8080", number(Some(0), 8080)),
            ("0:8080", number(Some(0), 8080)),
            ("0", None),
            ("80:0", None),
            ("70000", None),
            ("x:80", None),
        ] {
            assert_eq!(Ports::parse(text).ok(), expected, "{text}");
        }
        let named = Ports::parse("8000:http").unwrap();
        assert_eq!(named.remote, IntOrString::String("http".into()));
        assert_eq!(named.local, Some(8000));
        assert_eq!(Ports::parse("http").unwrap().local, None);
    }

    #[test]
    fn a_services_port_leads_to_the_pods_port() {
        let remote = |service: Value| Remote {
            pod: serde_json::from_value(json!({"spec": {"containers": [
                {"name": "web", "ports": [{"name": "http", "containerPort": 8080}]},
            ]}}))
            .unwrap(),
            service: serde_json::from_value(service).unwrap(),
        };
        let int = IntOrString::Int;
        let found = |number, of_pod| Found { number, of_pod };
        let name = |name: &str| IntOrString::String(name.to_owned());
        let pod = remote(Value::Null);
        assert_eq!(pod.port(&int(81)).unwrap(), found(81, 81));
        assert_eq!(pod.port(&name("http")).unwrap(), found(8080, 8080));
        let error = pod.port(&name("metrics")).unwrap_err().to_string();
        assert!(error.contains("named \"metrics\""), "{error}");
        let service = remote(json!({"spec": {"ports": [
            {"name": "web", "port": 80, "targetPort": "http"},
            {"name": "plain", "port": 81},
        ]}}));
        assert_eq!(service.port(&int(80)).unwrap(), found(80, 8080));
        assert_eq!(service.port(&name("web")).unwrap(), found(80, 8080));
        assert_eq!(service.port(&int(81)).unwrap(), found(81, 81));
        assert!(service.port(&int(8080)).is_err());
        let both = remote(json!({"spec": {"ports": [
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "http"},
        ]}}));
        assert_eq!(both.port(&int(53)).unwrap(), found(53, 8080));
        assert!(both.port(&name("dns")).is_err());
        let headless = remote(json!({"spec": {"clusterIP": "None", "ports": [
            {"name": "web", "port": 80, "targetPort": 8080},
        ]}}));
        assert_eq!(headless.port(&name("web")).unwrap(), found(80, 80));
    }
}
