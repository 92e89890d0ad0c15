//! The seams between the agent and whatever connects pods and programs services.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::Ipv4Net;

use crate::error::NetworkError;

/// Layer-4 protocol of a port.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

/// What a node needs to know to set up its network.
#[derive(Clone, Debug)]
pub struct NodeNetwork {
    /// Names the bridge, tables and namespaces, so that several agents can share a machine: at most 8 characters.
    pub prefix: String,
    /// Pods of this node get addresses here; the first usable is the bridge's.
    pub pod_cidr: Ipv4Net,
    /// Never masqueraded.
    pub cluster_pod_cidr: Ipv4Net,
    /// ClusterIPs.
    pub service_cidr: Ipv4Net,
    /// Persistent state: address leases, namespace mounts.
    pub data_dir: PathBuf,
}

/// A port of the host that leads to a pod.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct HostPort {
    /// Host address; `None` for all.
    pub host_ip: Option<Ipv4Addr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PodAttachment {
    /// The namespace's mount; join it with setns.
    pub netns: PathBuf,
    /// The pod's address.
    pub ip: Ipv4Addr,
}

/// Connects pods. Every operation is idempotent; state survives the agent.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Creates (or finds) the pod's namespace, veth pair, address, route and host ports.
    async fn attach(
        &self,
        pod_uid: &str,
        host_ports: &[HostPort],
    ) -> Result<PodAttachment, NetworkError>;
    /// Removes all of it and frees the address. Unknown pods are fine.
    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError>;
    /// The pods attached now, including those of an earlier agent process.
    async fn attached(&self) -> Result<BTreeMap<String, PodAttachment>, NetworkError>;
}

/// One port of a service and what answers it. `(namespace, service, port_name)` is its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Name of the port; empty when there is one.
    pub port_name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// ClusterIP; `None` when headless.
    pub cluster_ip: Option<Ipv4Addr>,
    /// externalIPs and load balancer addresses.
    pub external_ips: Vec<Ipv4Addr>,
    /// Service port.
    pub port: u16,
    /// Node port, when there is one.
    pub node_port: Option<u16>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub client_ip_affinity: Option<u32>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// Ready endpoints, sorted; `local` marks those on this node.
    pub endpoints: Vec<Endpoint>,
}

/// An address and port that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Address.
    pub ip: Ipv4Addr,
    /// Port.
    pub port: u16,
    /// On this node.
    pub local: bool,
}

/// Programs services into the kernel.
#[async_trait]
pub trait ServiceRules: Send + Sync + 'static {
    /// Makes the kernel's rules equal to `desired` in one atomic transaction, whose cost is that of the difference.
    async fn sync(&self, desired: Vec<ServicePort>) -> Result<(), NetworkError>;
}

/// One record set of the cluster's zone, relative names without the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsRecord {
    /// Addresses of a name.
    Addresses(Vec<IpAddr>),
    /// SRV targets: (priority, weight, port, absolute target name).
    Services(Vec<(u16, u16, u16, String)>),
    /// CNAME to an absolute name (ExternalName).
    Alias(String),
}

/// What the cluster's DNS answers for a service: lower-case absolute names without the trailing dot, to records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsTable {
    /// e.g. `web.default.svc.cluster.local`, `_http._tcp.web.default.svc.cluster.local`.
    pub records: BTreeMap<String, Vec<DnsRecord>>,
    /// Address to name, for PTR.
    pub reverse: BTreeMap<IpAddr, String>,
}

/// Which Service something belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
}

/// Answers names of the cluster and forwards the rest. Nothing here waits.
pub trait ClusterDns: Send + Sync + 'static {
    /// Replaces the records and reverse names of one service, or removes them. The cost is that of the service, however
    /// many others there are.
    ///
    /// A service answers for `<name>.<namespace>.svc.<domain>` and names below it; others are left out.
    fn change(&self, service: ServiceName, names: Option<DnsTable>);
    /// Replaces all services at once: no query is answered from a part of them.
    fn replace(&self, all: BTreeMap<ServiceName, DnsTable>);
    /// Tells the search list in the resolv.conf of the pod that asks from `address`, so that its walk through that list
    /// is answered in one round trip; `None` when the pod is gone. Clients that are not told of walk by themselves.
    fn client(&self, address: IpAddr, searches: Option<Vec<String>>);
}
