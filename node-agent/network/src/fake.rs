//! Implementations of the seams without a kernel, for tests of what is built on them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use parking_lot::Mutex;

use crate::ipam::AddressPool;
use crate::leases::{Lease, check_uid};
use crate::{
    ClusterDns, DnsTable, HostPort, NetworkError, PodAttachment, PodNetwork, ServiceName,
    ServicePort, ServiceRules, pod_rules,
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

/// Remembers the names and clients that it was told of.
#[derive(Debug, Default)]
pub struct FakeDns {
    services: Mutex<BTreeMap<ServiceName, DnsTable>>,
    clients: Mutex<BTreeMap<IpAddr, Vec<String>>>,
}

impl FakeDns {
    /// The names that are answered now.
    pub fn services(&self) -> BTreeMap<ServiceName, DnsTable> {
        self.services.lock().clone()
    }

    /// The search lists of the clients.
    pub fn clients(&self) -> BTreeMap<IpAddr, Vec<String>> {
        self.clients.lock().clone()
    }
}

impl ClusterDns for FakeDns {
    fn change(&self, service: ServiceName, names: Option<DnsTable>) {
        let mut services = self.services.lock();
        match names {
            Some(names) => services.insert(service, names),
            None => services.remove(&service),
        };
    }

    fn replace(&self, all: BTreeMap<ServiceName, DnsTable>) {
        *self.services.lock() = all;
    }

    fn client(&self, address: IpAddr, searches: Option<Vec<String>>) {
        let mut clients = self.clients.lock();
        match searches {
            Some(searches) => clients.insert(address, searches),
            None => clients.remove(&address),
        };
    }
}
