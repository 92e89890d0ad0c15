//! The seams between the agent and whatever connects pods and programs services.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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
    /// IPv6 beside IPv4; `None` when the cluster has only IPv4.
    pub ipv6: Option<Ipv6Network>,
}

/// The IPv6 side of a node's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Network {
    /// Pods of this node get addresses here, at the same offsets as in the IPv4 pod CIDR.
    pub pod_cidr: Ipv6Net,
    /// Never masqueraded.
    pub cluster_pod_cidr: Ipv6Net,
    /// ClusterIPs; `None` when services have no IPv6 addresses.
    pub service_cidr: Option<Ipv6Net>,
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

/// Which Service something belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
}

/// One port of a service in one address family, and what answers it: the service's addresses and endpoints are all of
/// the family of `cluster_ip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name of the port; empty when there is one.
    pub port_name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// ClusterIP.
    pub cluster_ip: IpAddr,
    /// Service port.
    pub port: u16,
    /// externalIPs.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of the load balancer, served on every node.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may use the addresses of the load balancer; anybody when empty.
    pub source_ranges: Vec<IpNet>,
    /// Node port, when there is one.
    pub node_port: Option<u16>,
    /// `sessionAffinity: ClientIP` with its timeout in seconds.
    pub client_ip_affinity: Option<u32>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// Where new connections are sent.
    pub endpoints: Vec<Endpoint>,
    /// Where they are sent under a policy of `Local`: endpoints of this node. It may have some that `endpoints` lacks,
    /// for where this node has none that is ready, one that still serves while it terminates is better than nothing.
    pub local_endpoints: Vec<Endpoint>,
}

/// An address and port that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
    /// On this node.
    pub local: bool,
}

/// What has changed about services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceChanges {
    /// `services` is everything: those that are not named are gone.
    pub complete: bool,
    /// All ports that a changed service has now; none when it is gone or needs no rules.
    pub services: BTreeMap<ServiceName, Vec<ServicePort>>,
}

/// Programs services into the kernel.
#[async_trait]
pub trait ServiceRules: Send + Sync + 'static {
    /// Brings the changes into the kernel in one transaction, whose cost is that of the services named.
    ///
    /// After an error the kernel may lack them, but they are not forgotten: the next call, be it one without changes,
    /// programs them as well.
    async fn apply(&self, changes: ServiceChanges) -> Result<(), NetworkError>;
    /// Puts everything back should another program have removed it; does nothing before the first
    /// [`ServiceRules::apply`]. Cheap, and meant to be called now and then.
    async fn reassert(&self) -> Result<(), NetworkError>;
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

/// Answers names of the cluster and forwards the rest. Nothing here waits.
pub trait ClusterDns: Send + Sync + 'static {
    /// Replaces the records and reverse names of one service, or removes them.
    fn change(&self, service: ServiceName, names: Option<DnsTable>);
    /// Replaces all services at once: no query is answered from a part of them.
    fn replace(&self, all: BTreeMap<ServiceName, DnsTable>);
}
