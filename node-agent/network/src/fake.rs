//! Implementations of the seams without a kernel, for tests of what is built on them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use parking_lot::Mutex;

use crate::ipam::AddressPool;
use crate::leases::{Lease, check_uid};
use crate::{
    ClusterDns, DnsTable, HostPort, NetworkError, NodePolicies, PodAttachment, PodNetwork,
    PolicyRules, ServicePort, ServiceRules, pod_rules, policy,
};

/// Hands out addresses and remembers who has which; nothing is connected.
#[derive(Debug)]
pub struct FakePodNetwork {
    state: Mutex<(AddressPool, BTreeMap<String, Lease>)>,
}

impl FakePodNetwork {
    /// Pods get addresses of `pod_cidr`.
    pub fn new(pod_cidr: Ipv4Net) -> Self {
        Self {
            state: Mutex::new((AddressPool::new(pod_cidr, []), BTreeMap::new())),
        }
    }
}

fn attachment(uid: &str, lease: &Lease) -> PodAttachment {
    PodAttachment {
        netns: PathBuf::from("/nonexistent/netns").join(uid),
        ip: lease.ip,
    }
}

#[async_trait]
impl PodNetwork for FakePodNetwork {
    async fn attach(
        &self,
        pod_uid: &str,
        host_ports: &[HostPort],
    ) -> Result<PodAttachment, NetworkError> {
        check_uid(pod_uid)?;
        let mut state = self.state.lock();
        let (pool, pods) = &mut *state;
        let others = pods.iter().filter(|(uid, _)| *uid != pod_uid);
        let held: Vec<HostPort> = others
            .flat_map(|(_, lease)| lease.host_ports.clone())
            .collect();
        if let Some(port) = pod_rules::conflict(host_ports, &held) {
            let protocol = port.protocol.word().to_uppercase();
            return Err(NetworkError::HostPortInUse {
                port: port.host_port,
                protocol,
            });
        }
        let ip = match pods.get(pod_uid) {
            Some(lease) => lease.ip,
            None => pool.take()?,
        };
        let lease = Lease {
            ip,
            host_ports: host_ports.to_vec(),
            ready: true,
        };
        let answer = attachment(pod_uid, &lease);
        pods.insert(pod_uid.to_owned(), lease);
        Ok(answer)
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        check_uid(pod_uid)?;
        let mut state = self.state.lock();
        if let Some(lease) = state.1.remove(pod_uid) {
            state.0.free(lease.ip);
        }
        Ok(())
    }

    async fn attached(&self) -> Result<BTreeMap<String, PodAttachment>, NetworkError> {
        Ok(self
            .state
            .lock()
            .1
            .iter()
            .map(|(uid, lease)| (uid.clone(), attachment(uid, lease)))
            .collect())
    }
}

/// Remembers what it was last asked to program.
#[derive(Debug, Default)]
pub struct FakeServiceRules {
    programmed: Mutex<Vec<ServicePort>>,
}

impl FakeServiceRules {
    /// The services of the last sync.
    pub fn programmed(&self) -> Vec<ServicePort> {
        self.programmed.lock().clone()
    }
}

#[async_trait]
impl ServiceRules for FakeServiceRules {
    async fn sync(&self, desired: Vec<ServicePort>) -> Result<(), NetworkError> {
        *self.programmed.lock() = desired;
        Ok(())
    }
}

/// Remembers what it was last asked to program.
#[derive(Debug, Default)]
pub struct FakePolicyRules {
    programmed: Mutex<NodePolicies>,
    refusal: Mutex<Option<String>>,
}

impl FakePolicyRules {
    /// The policies of the last sync.
    pub fn programmed(&self) -> NodePolicies {
        self.programmed.lock().clone()
    }

    /// Refuses every sync with these words, or none any more.
    pub fn refuse(&self, words: Option<&str>) {
        *self.refusal.lock() = words.map(str::to_owned);
    }
}

#[async_trait]
impl PolicyRules for FakePolicyRules {
    async fn sync(&self, desired: NodePolicies) -> Result<(), NetworkError> {
        policy::check(&desired)?;
        if let Some(words) = &*self.refusal.lock() {
            return Err(NetworkError::Nft(words.clone()));
        }
        *self.programmed.lock() = desired;
        Ok(())
    }
}

/// Remembers the table that was last published.
#[derive(Debug, Default)]
pub struct FakeDns {
    table: Mutex<DnsTable>,
}

impl FakeDns {
    /// The table that is answered from.
    pub fn published(&self) -> DnsTable {
        self.table.lock().clone()
    }
}

impl ClusterDns for FakeDns {
    fn publish(&self, table: DnsTable) {
        *self.table.lock() = table;
    }
}
