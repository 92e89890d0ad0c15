//! A pod's place in the network: the seam between pod workers and whatever connects pods.

mod error;
mod fake;
mod node_connections;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

pub use error::NetworkError;
pub use fake::FakePodNetwork;
pub use node_connections::{NodeConnected, NodeConnection, NodeConnections};

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

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// nft's word for it, and everybody's.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Its number (IANA's assigned internet protocol numbers), which is what scripts for nft say where a value is meant: a
    /// name would be looked up in /etc/protocols, which minimal systems lack.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A port of the host that leads to a pod.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct HostPort {
    /// Host address; `None` for all. One of IPv6 leads to the pod's address of IPv6.
    pub host_ip: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl HostPort {
    /// The first port of `wanted` that one of `held` takes as well: the same number and protocol on the same address, or
    /// on all addresses.
    pub fn conflict<'a>(wanted: &'a [Self], held: &[Self]) -> Option<&'a Self> {
        let overlap = |a: Option<IpAddr>, b: Option<IpAddr>| a.is_none() || b.is_none() || a == b;
        wanted.iter().find(|port| {
            held.iter().any(|other| {
                other.host_port == port.host_port
                    && other.protocol == port.protocol
                    && overlap(other.host_ip, port.host_ip)
            })
        })
    }
}

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PodAttachment {
    /// The namespace's mount; join it with setns.
    pub netns: PathBuf,
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address, in a dual-stack cluster.
    pub ip6: Option<Ipv6Addr>,
}

impl PodAttachment {
    /// All addresses of the pod, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ip6 = self.ip6.map(IpAddr::from);
        std::iter::once(self.ip.into()).chain(ip6).collect()
    }
}

/// What has passed a link since it was made, as who is behind it sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that came.
    pub received_bytes: u64,
    /// Packets that came.
    pub received_packets: u64,
    /// Packets that could not be received.
    pub received_errors: u64,
    /// Packets that were dropped on their way in.
    pub received_dropped: u64,
    /// Bytes that went.
    pub sent_bytes: u64,
    /// Packets that went.
    pub sent_packets: u64,
    /// Packets that could not be sent.
    pub sent_errors: u64,
    /// Packets that were dropped on their way out.
    pub sent_dropped: u64,
}

/// TCP connections that were opened to a pod, of both families, whoever has opened them: the node itself, or the pod to its own
/// address, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Those that are open now, also where the other side has closed and the pod has not. What the pod has opened itself is
    /// taken off, as far as that was known some seconds ago.
    pub open: u64,
    /// All that it has accepted since its network was made.
    pub accepted: u64,
}

/// What has passed the links of a node and its pods, and the pods' connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTraffic {
    /// The link that leads out of the node, where there is one.
    pub node: Option<Traffic>,
    /// Those of the pods that are attached, by uid.
    pub pods: BTreeMap<String, Traffic>,
    /// Of the pods that are attached, by uid; of one whose network cannot be looked at there are none.
    pub connections: BTreeMap<String, Connections>,
}

/// Makes a network namespace for the pod that is given this address; one that belongs to the host's users is made without.
/// Who makes them may tell the pods of a node apart by the last 16 bits of their addresses: a node with more is refused.
pub type MakeNamespace = Arc<dyn Fn(Ipv4Addr) -> io::Result<OwnedFd> + Send + Sync>;

/// Refuses a uid that would not be a file's name of its own.
pub fn check_uid(uid: &str) -> Result<(), NetworkError> {
    let fine = !uid.is_empty()
        && uid.len() <= 128
        && uid
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if fine {
        return Ok(());
    }
    Err(NetworkError::Unsupported(format!(
        "pod uid {uid:?}: only letters, digits, '-' and '_' are allowed in it"
    )))
}

/// Connects pods. Every operation is idempotent; state survives the agent.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Creates (or finds) the pod's namespace, veth pair, address, route and host ports.
    async fn attach(
        &self,
        pod_uid: &str,
        host_ports: &[HostPort],
    ) -> Result<PodAttachment, NetworkError> {
        self.attach_namespace(pod_uid, host_ports, None).await
    }
    /// Likewise, in a namespace that somebody else makes should there be none yet.
    async fn attach_namespace(
        &self,
        pod_uid: &str,
        host_ports: &[HostPort],
        make: Option<MakeNamespace>,
    ) -> Result<PodAttachment, NetworkError>;
    /// Removes all of it and frees the address. Unknown pods are fine.
    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError>;
    /// The pods attached now, including those of an earlier agent process.
    async fn attached(&self) -> Result<BTreeMap<String, PodAttachment>, NetworkError>;
    /// What has passed the links, and how many connections there are: meant to be asked every second.
    async fn traffic(&self) -> Result<NodeTraffic, NetworkError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<[u8; 4]>, host_port: u16, protocol: Protocol) -> HostPort {
        HostPort {
            host_ip: host_ip.map(IpAddr::from),
            host_port,
            container_port: 80,
            protocol,
        }
    }

    #[test]
    fn ports_conflict_on_the_same_or_all_addresses() {
        use Protocol::{Tcp, Udp};
        let held = [port(Some([10, 0, 0, 1]), 80, Tcp)];
        assert!(HostPort::conflict(&[port(None, 80, Tcp)], &held).is_some());
        assert!(HostPort::conflict(&[port(Some([10, 0, 0, 1]), 80, Tcp)], &held).is_some());
        assert!(HostPort::conflict(&[port(Some([10, 0, 0, 2]), 80, Tcp)], &held).is_none());
        assert!(HostPort::conflict(&[port(None, 80, Udp), port(None, 81, Tcp)], &held).is_none());
    }

    #[test]
    fn a_uid_cannot_leave_the_directory() {
        for bad in ["", "../x", "a/b", "a b", "a\0"] {
            assert!(check_uid(bad).is_err(), "{bad:?}");
        }
        check_uid("0c1d7e5a-5a3c-4f3e-9d0a-000000000000").unwrap();
    }
}
