//! What of a pod and of a namespace matters to policies, read from stored JSON.

use std::collections::BTreeMap;
use std::net::IpAddr;

use gantry_rpc::node::Protocol;
use serde::Deserialize;

pub(super) type Labels = BTreeMap<String, String>;

/// A pod as policies see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) uid: String,
    pub(super) labels: Labels,
    /// Where it is bound to.
    pub(super) node: Option<String>,
    /// It has the node's addresses, which are not its own: policies neither isolate it nor know it as a peer.
    pub(super) host_network: bool,
    /// Its containers are over, and its addresses perhaps another pod's.
    pub(super) finished: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<PodPort>,
}

/// A port that a container names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodPort {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
}

/// The protocol of a port; TCP when nothing is said, `None` when it is none of Kubernetes'.
pub(super) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

impl PodFacts {
    /// Reads a stored pod.
    pub(super) fn parse(json: &[u8]) -> serde_json::Result<Self> {
        let pod: Pod = serde_json::from_slice(json)?;
        let listening = pod
            .spec
            .init_containers
            .into_iter()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"))
            .chain(pod.spec.containers);
        let ports = listening.flat_map(|container| container.ports);
        let mut addresses: Vec<IpAddr> = pod
            .status
            .pod_ips
            .iter()
            .filter_map(|address| address.ip.as_deref())
            .chain(pod.status.pod_ip.as_deref())
            .filter_map(|address| address.parse().ok())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(Self {
            uid: pod.metadata.uid,
            labels: pod.metadata.labels,
            node: pod.spec.node_name.filter(|node| !node.is_empty()),
            host_network: pod.spec.host_network,
            finished: matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed")),
            addresses,
            ports: ports.filter_map(ContainerPort::named).collect(),
        })
    }

    /// What the cluster's DNS is to policies: the pod that it is in other clusters, which is what users' rules allow. Ours is
    /// a server on every node; they judge its clients' egress by the sets that this address is in.
    pub(super) fn dns(address: IpAddr) -> Self {
        let port = |name: &str, protocol| PodPort {
            name: name.to_owned(),
            protocol,
            number: 53,
        };
        Self {
            labels: [("k8s-app".to_owned(), "kube-dns".to_owned())].into(),
            addresses: vec![address],
            ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
            ..Self::default()
        }
    }

    /// Whether its addresses are its own to be reached at.
    pub(super) fn is_peer(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// The number that its port of this name and protocol has.
    pub(super) fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| port.name == name && port.protocol == protocol)
            .map(|port| port.number)
    }
}

/// The labels of a stored namespace.
pub(super) fn namespace_labels(json: &[u8]) -> serde_json::Result<Labels> {
    let namespace: Namespace = serde_json::from_slice(json)?;
    Ok(namespace.metadata.labels)
}

#[derive(Deserialize)]
struct Namespace {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: Labels,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    host_network: bool,
    #[serde(default, deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    init_containers: Vec<Container>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    container_port: u16,
    protocol: Option<String>,
}

impl ContainerPort {
    fn named(self) -> Option<PodPort> {
        Some(PodPort {
            name: self.name.filter(|name| !name.is_empty())?,
            protocol: protocol(self.protocol.as_deref())?,
            number: self.container_port,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(default, rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<PodAddress>,
}

#[derive(Deserialize)]
struct PodAddress {
    ip: Option<String>,
}

/// `null` means absent.
fn or_default<'de, D, T>(value: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_read_for_its_labels_addresses_and_named_ports() {
        let pod = json!({
            "metadata": {"uid": "u", "labels": {"app": "web"}},
            "spec": {
                "nodeName": "n1",
                "initContainers": [
                    {"name": "once", "ports": [{"name": "once", "containerPort": 1}]},
                    {"name": "sidecar", "restartPolicy": "Always", "ports": [{"name": "proxy", "containerPort": 15001}]},
                ],
                "containers": [{"name": "c", "ports": [
                    {"name": "http", "containerPort": 8080},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                    {"containerPort": 9},
                ]}],
            },
            "status": {"phase": "Running", "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd00::2"}]},
        });
        let facts = PodFacts::parse(pod.to_string().as_bytes()).unwrap();
        assert_eq!(facts.node.as_deref(), Some("n1"));
        assert_eq!(
            facts.addresses,
            ["10.1.0.2", "fd00::2"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(facts.port("http", Protocol::Tcp), Some(8080));
        assert_eq!(facts.port("dns", Protocol::Tcp), None);
        assert_eq!(facts.port("proxy", Protocol::Tcp), Some(15001));
        assert_eq!(facts.port("once", Protocol::Tcp), None);
        assert!(facts.is_peer());
    }

    #[test]
    fn little_is_needed_and_nulls_are_absent() {
        let facts = PodFacts::parse(
            br#"{"metadata":{"labels":null},"spec":{"hostNetwork":true,"containers":null}}"#,
        )
        .unwrap();
        assert!(facts.host_network && !facts.is_peer() && facts.addresses.is_empty());
        assert!(PodFacts::parse(br#"{"spec":3}"#).is_err());
    }
}
