//! What the cluster's DNS is told: the seam between who knows services and pods, and whatever answers.

mod fake;

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::ServiceName;

pub use fake::FakeDns;

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
