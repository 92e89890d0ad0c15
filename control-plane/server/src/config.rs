//! How a member of the control plane is set up.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use gantry_apiserver::ConnectionLimits;
use gantry_nodes::DualCidr;

use crate::backup::BackupSchedule;

/// How a member of the control plane is set up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Everything it keeps.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The address other machines and pods reach it at.
    pub address: Ipv4Addr,
    /// Pods of all nodes.
    pub pod_cidr: DualCidr,
    /// ClusterIPs.
    pub service_cidr: DualCidr,
    /// The zone of services, `cluster.local`.
    pub cluster_domain: String,
    /// Bearer tokens of administrators, beside client certificates.
    pub admin_tokens: Vec<String>,
    /// The server's name among the servers.
    pub name: String,
    /// The cluster to join at the first start; a new one is founded otherwise.
    pub join: Option<JoinConfig>,
    /// The backups it makes by itself.
    pub backups: BackupSchedule,
    /// How long the certificates last that it issues.
    pub certificate_life: Duration,
    /// For how long a node may be silent before it is given up.
    pub node_grace: Duration,
    /// How many connections clients may have.
    pub connections: ConnectionLimits,
    /// Bytes that may wait for clients.
    pub client_memory: usize,
}

/// A cluster to join.
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// Any of its servers.
    pub server: SocketAddr,
    /// From `gantry token create --for servers`.
    pub token: String,
}

impl ServerConfig {
    /// Refuses what cannot be one cluster's.
    pub(crate) fn check(&self) -> Result<()> {
        check_ranges(self.pod_cidr, self.service_cidr)
    }
}

/// Refuses ranges that cannot be those of one cluster.
fn check_ranges(pods: DualCidr, services: DualCidr) -> Result<()> {
    if pods.overlaps(&services) {
        bail!(
            "the pod CIDR {pods} and the service CIDR {services} overlap: choose others with --pod-cidr and --service-cidr"
        );
    }
    match (pods.v6, services.v6) {
        (Some(pods), None) => bail!(
            "the pod CIDR has a range of IPv6 ({pods}) and the service CIDR none: give --service-cidr one, or --pod-cidr none"
        ),
        (None, Some(services)) => bail!(
            "the service CIDR has a range of IPv6 ({services}) and the pod CIDR none: give --pod-cidr one, or --service-cidr none"
        ),
        _ => Ok(()),
    }
}
