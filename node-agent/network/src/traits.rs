//! The seams between the agent and whatever leads packets between nodes, programs services and isolates pods. How pods are
//! connected is of [`gantry_cri::network`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use gantry_cri::ServiceName;
use gantry_cri::network::{NetworkError, Protocol};
use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

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
    /// How pods of other nodes are reached; `None` for a node that is alone.
    pub overlay: Option<OverlaySettings>,
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

/// When packets to pods of another node are wrapped into VXLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverlayMode {
    /// For nodes that are behind a router; those on the node's own subnet are sent the pods' packets as they are.
    #[default]
    Auto,
    /// Always: for networks that drop packets with addresses they do not know, as those of some clouds do.
    Always,
}

/// This node's end of the network between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlaySettings {
    /// The address other nodes reach this one at.
    pub node_address: IpAddr,
    /// When to wrap packets.
    pub mode: OverlayMode,
    /// VXLAN network identifier, the same on every node.
    pub vni: u32,
    /// UDP port, the same on every node.
    pub port: u16,
}

impl OverlaySettings {
    /// Gantry's own network identifier, so that another VXLAN on the same port does no harm.
    pub const VNI: u32 = 71;
    /// The port that Linux uses for VXLAN unless told otherwise.
    pub const PORT: u16 = 8472;

    /// The usual settings of a node with this address.
    pub fn new(node_address: IpAddr) -> Self {
        Self {
            node_address,
            mode: OverlayMode::default(),
            vni: Self::VNI,
            port: Self::PORT,
        }
    }
}

/// Another node, as far as its pods' packets are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Name of the Node.
    pub name: String,
    /// Where it is reached.
    pub address: IpAddr,
    /// The ranges of its pods' addresses: one IPv4 range, and an IPv6 range in a dual-stack cluster.
    pub pod_cidrs: Vec<IpNet>,
}

/// How a packet gets to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerPath {
    /// As it is, over the subnet that both nodes are on.
    Direct,
    /// Wrapped into VXLAN.
    Vxlan,
}

/// How the pods of one range are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// The pods' range.
    pub pod_cidr: IpNet,
    /// The node they are on.
    pub address: IpAddr,
    /// How packets get there.
    pub path: PeerPath,
}

/// What the VXLAN device has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets that could not be understood.
    pub rx_errors: u64,
    /// Packets that could not be sent, for want of a route to the other node.
    pub tx_errors: u64,
    /// Received packets for which there was no room.
    pub rx_dropped: u64,
    /// Packets to a node that is not known, or for which there was no room.
    pub tx_dropped: u64,
}

/// Leads packets to the pods of other nodes.
#[async_trait]
pub trait Overlay: Send + Sync + 'static {
    /// Makes the kernel's entries those of exactly these peers, at a cost that is that of the difference. What an
    /// earlier agent process left is found again. A peer that cannot be programmed is named in the error; the others
    /// are programmed nevertheless.
    async fn sync(&self, peers: Vec<PeerNode>) -> Result<(), NetworkError>;
    /// Puts back what others removed since the last [`Overlay::sync`]; before the first, nothing is touched.
    async fn reassert(&self) -> Result<(), NetworkError>;
    /// What is programmed now, in the order of the ranges.
    async fn routes(&self) -> Result<Vec<PodRoute>, NetworkError>;
}

/// Asks other nodes for a sign of life, on the way that the packets of pods take.
#[async_trait]
pub trait PeerEcho: Send + Sync + 'static {
    /// Whether the node whose pods are in `pod_cidr` has answered within so long. An error says that this node could not
    /// even ask.
    async fn answers(&self, pod_cidr: Ipv4Net, within: Duration) -> Result<bool, NetworkError>;
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
    /// What becomes of new connections while nobody answers, be it here or elsewhere: they are refused when this is `None`.
    pub held: Option<Held>,
}

/// Connections to a port that nobody answers wait until somebody does. Of TCP only: others are refused as ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Who neither waits nor is waited for: what comes from these addresses is refused.
    pub ignored: Vec<IpNet>,
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

/// What has become of the connections to one service that are held, since this was last told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HoldingNews {
    /// Connections have come that wait; earlier ones did not.
    pub began: bool,
    /// Connections that came to wait.
    pub held: u64,
    /// Connections that waited, and may go on since somebody answers.
    pub released: u64,
    /// Connections that were refused: there were too many, or nobody came in time.
    pub refused: u64,
    /// How long the first of those that were released had waited.
    pub waited: Option<Duration>,
}

/// Holds connections to services that nobody answers, as far as [`ServicePort::held`] says so.
#[async_trait]
pub trait Holding: Send + Sync + 'static {
    /// Waits until something has happened to held connections, and tells of it once.
    async fn news(&self) -> BTreeMap<ServiceName, HoldingNews>;
    /// How many connections wait at this moment, of each service that has any.
    fn held(&self) -> BTreeMap<ServiceName, u64>;
}

/// A port of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalPort {
    /// Protocol.
    pub protocol: Protocol,
    /// On this address; `None` for any.
    pub address: Option<IpAddr>,
    /// Its number.
    pub port: u16,
}

/// Knows what processes of this host listen on.
#[async_trait]
pub trait Listeners: Send + Sync + 'static {
    /// Those of the ports that a process listens on, on their address or on all of them. Nobody has a port of an address
    /// that is not this host's.
    async fn held(&self, ports: BTreeSet<LocalPort>) -> Result<BTreeSet<LocalPort>, NetworkError>;
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
/// the node itself reaches its pods and is reached by them, but for the cluster's DNS, and so does a pod itself. A change holds for connections
/// that exist as for new ones.
#[async_trait]
pub trait PolicyRules: Send + Sync + 'static {
    /// Makes the kernel's rules equal to `desired` in one atomic transaction, whose cost is that of the difference.
    /// Refused when a name is not as it should be, or refers to nothing.
    async fn sync(&self, desired: NodePolicies) -> Result<(), NetworkError>;
}
