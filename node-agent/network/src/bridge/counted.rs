//! What the kernel has counted of the pods on a bridge.

use crate::{NetworkError, NodeTraffic, traffic};

use super::Shared;

impl Shared {
    /// What has passed the node's links, and the pods' connections.
    pub(super) fn traffic(&self) -> Result<NodeTraffic, NetworkError> {
        let links = traffic::links().map_err(|source| NetworkError::Io {
            doing: "reading what the kernel has counted of links".to_owned(),
            source,
        })?;
        let uplink = traffic::uplink().and_then(|link| links.get(&link).copied());
        let (pods, namespaces) = {
            let state = self.state.lock();
            let ready = state.pods.iter().filter(|(_, lease)| lease.ready);
            let pods = ready.clone().filter_map(|(uid, lease)| {
                let link = links.get(&self.names.host_link(lease.ip))?;
                Some((uid.clone(), traffic::turned(link)))
            });
            let namespaces = ready.map(|(uid, _)| (uid.clone(), self.names.netns_dir().join(uid)));
            (pods.collect(), namespaces.collect())
        };
        Ok(NodeTraffic {
            node: uplink,
            pods,
            connections: self.connections.read(&namespaces),
        })
    }
}
