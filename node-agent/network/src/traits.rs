//! The seams between the agent and whatever connects pods and programs services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net};

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

/// A peer of a policy's rule: an address and, in a [`PeerSet`] with ports, a port there (0 otherwise).
pub type PolicyPeer = (IpAddr, u16);

/// Peers that rules refer to by name. Cheap to clone, and to compare with what it was before a few changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSet {
    /// Whether a peer is an address and port or an address alone.
    pub with_ports: bool,
    /// The peers.
    pub peers: OrdSet<PolicyPeer>,
}

/// Which addresses a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyPeers {
    /// All of them.
    Anyone,
    /// Any of these.
    Of {
        /// Names of peer sets.
        sets: Vec<String>,
        /// Blocks of addresses, which do not overlap.
        blocks: Vec<IpNet>,
    },
}

/// Which ports of the destination a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyPort {
    /// All ports of a protocol.
    All(Protocol),
    /// From the first to the last.
    Range(Protocol, u16, u16),
    /// Ingress only: the isolated pod's port of this name.
    Named(Protocol, String),
    /// Egress only: the port that comes with the peer, whose set has ports.
    OfPeer(Protocol),
}

/// Allows connections with some peers to some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// The other side.
    pub peers: PolicyPeers,
    /// `None` for everything, also what has no ports.
    pub ports: Option<Vec<PolicyPort>>,
}

/// What one policy allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRuleSet {
    /// To the pods that it isolates.
    pub ingress: Vec<PolicyRule>,
    /// From them.
    pub egress: Vec<PolicyRule>,
}

/// A pod of this node that policies isolate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsolatedPod {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether only what is allowed may come in.
    pub ingress: bool,
    /// Whether only what is allowed may go out.
    pub egress: bool,
    /// The policies that say what is allowed; names of rule sets.
    pub policies: BTreeSet<String>,
    /// The numbers of ports that ingress rules name.
    pub ports: BTreeSet<(Protocol, String, u16)>,
}

/// What policies mean for the pods of one node. Names (of pods, rule sets, peer sets) are of letters, digits and `-`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodePolicies {
    /// By uid.
    pub pods: BTreeMap<String, IsolatedPod>,
    /// By name.
    pub policies: BTreeMap<String, Arc<PolicyRuleSet>>,
    /// By name.
    pub peers: BTreeMap<String, PeerSet>,
}

/// Isolates pods in the kernel.
///
/// A pod that is not named here is not isolated. In a direction in which a pod is isolated, a connection is let through
/// when a rule of its policies allows it; one between two isolated pods has to be allowed on both sides. What runs on
/// the node itself reaches its pods and is reached by them, and so does a pod itself. A change holds for connections
/// that exist as for new ones.
#[async_trait]
pub trait PolicyRules: Send + Sync + 'static {
    /// Makes the kernel's rules equal to `desired` in one atomic transaction, whose cost is that of the difference.
    /// Refused when a name is not as it should be, or refers to nothing.
    async fn sync(&self, desired: NodePolicies) -> Result<(), NetworkError>;
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

/// What the cluster's DNS answers: lower-case absolute names without the trailing dot, to records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsTable {
    /// e.g. `web.default.svc.cluster.local`, `_http._tcp.web.default.svc.cluster.local`.
    pub records: BTreeMap<String, Vec<DnsRecord>>,
    /// Address to name, for PTR.
    pub reverse: BTreeMap<IpAddr, String>,
}

/// Answers names of the cluster and forwards the rest.
pub trait ClusterDns: Send + Sync + 'static {
    /// Replaces what is answered.
    fn publish(&self, table: DnsTable);
}
