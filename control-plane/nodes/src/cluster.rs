//! What every node is told about the cluster.

use ipnet::IpNet;

use crate::dual_cidr::DualCidr;

/// What every node is told about the cluster.
#[derive(Clone, Debug)]
pub struct ClusterFacts {
    /// Pods of all nodes.
    pub pod_cidr: DualCidr,
    /// ClusterIPs.
    pub service_cidr: DualCidr,
    /// Where pods ask for names.
    pub dns_service_ip: String,
    /// The zone of services, `cluster.local`.
    pub cluster_domain: String,
}

impl ClusterFacts {
    /// The ranges of pods and services.
    pub(crate) fn ranges(&self) -> Vec<IpNet> {
        let both = [self.pod_cidr, self.service_cidr];
        let v6 = both.into_iter().filter_map(|range| range.v6);
        let v4 = both.into_iter().map(|range| IpNet::V4(range.v4));
        v4.chain(v6.map(IpNet::V6)).collect()
    }
}
