//! [`FakePodNetwork`]: addresses without links.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use parking_lot::Mutex;

use super::{
    Connections, HostPort, MakeNamespace, NetworkError, NodeTraffic, PodAttachment, PodNetwork,
    Traffic, check_uid,
};

/// Hands out addresses and remembers who has which; nothing is connected.
#[derive(Debug)]
pub struct FakePodNetwork {
    cidr: Ipv4Net,
    pods: Mutex<BTreeMap<String, FakePod>>,
}

#[derive(Debug)]
struct FakePod {
    ip: Ipv4Addr,
    host_ports: Vec<HostPort>,
    connections: Connections,
}

impl FakePodNetwork {
    /// Pods get addresses of `pod_cidr`, of which the first usable is the gateway's.
    pub fn new(pod_cidr: Ipv4Net) -> Self {
        Self {
            cidr: pod_cidr,
            pods: Mutex::default(),
        }
    }

    /// From now on a pod that is attached has these.
    pub fn set_connections(&self, pod_uid: &str, connections: Connections) {
        if let Some(pod) = self.pods.lock().get_mut(pod_uid) {
            pod.connections = connections;
        }
    }
}

fn attachment(uid: &str, pod: &FakePod) -> PodAttachment {
    PodAttachment {
        netns: PathBuf::from("/nonexistent/netns").join(uid),
        ip: pod.ip,
        ip6: None,
    }
}

#[async_trait]
impl PodNetwork for FakePodNetwork {
    async fn attach_namespace(
        &self,
        pod_uid: &str,
        host_ports: &[HostPort],
        _: Option<MakeNamespace>,
    ) -> Result<PodAttachment, NetworkError> {
        check_uid(pod_uid)?;
        let mut pods = self.pods.lock();
        let others = pods.iter().filter(|(uid, _)| *uid != pod_uid);
        let held: Vec<HostPort> = others.flat_map(|(_, pod)| pod.host_ports.clone()).collect();
        if let Some(port) = HostPort::conflict(host_ports, &held) {
            return Err(NetworkError::HostPortInUse {
                port: port.host_port,
                protocol: port.protocol.word().to_uppercase(),
            });
        }
        let free = |ip: &Ipv4Addr| pods.values().all(|pod| pod.ip != *ip);
        let (ip, connections) = match pods.get(pod_uid) {
            Some(pod) => (pod.ip, pod.connections),
            None => {
                let free = self.cidr.hosts().skip(1).find(free);
                let ip = free.ok_or_else(|| NetworkError::NoFreeAddress(self.cidr.to_string()))?;
                (ip, Connections::default())
            }
        };
        let pod = FakePod {
            ip,
            host_ports: host_ports.to_vec(),
            connections,
        };
        let answer = attachment(pod_uid, &pod);
        pods.insert(pod_uid.to_owned(), pod);
        Ok(answer)
    }

    async fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        check_uid(pod_uid)?;
        self.pods.lock().remove(pod_uid);
        Ok(())
    }

    async fn attached(&self) -> Result<BTreeMap<String, PodAttachment>, NetworkError> {
        let pods = self.pods.lock();
        let attached = pods.iter();
        Ok(attached
            .map(|(uid, pod)| (uid.clone(), attachment(uid, pod)))
            .collect())
    }

    async fn traffic(&self) -> Result<NodeTraffic, NetworkError> {
        let pods = self.pods.lock();
        let nothing = pods.keys().map(|uid| (uid.clone(), Traffic::default()));
        let connections = pods.iter().map(|(uid, pod)| (uid.clone(), pod.connections));
        Ok(NodeTraffic {
            node: None,
            pods: nothing.collect(),
            connections: connections.collect(),
        })
    }
}
