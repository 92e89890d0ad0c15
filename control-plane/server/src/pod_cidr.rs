//! Which node's pods get which addresses: one block per node, cut from the cluster's pod CIDR.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use tokio::sync::Mutex;

/// Hands out blocks that no Node object has.
pub(crate) struct PodCidrs {
    cluster: Ipv4Net,
    node_prefix: u8,
    /// Two nodes that register at the same moment must not see the same block free.
    allocating: Mutex<BTreeSet<Ipv4Net>>,
}

impl PodCidrs {
    /// Blocks of `/node_prefix` out of `cluster`.
    pub(crate) fn new(cluster: Ipv4Net, node_prefix: u8) -> Result<Self> {
        if node_prefix < cluster.prefix_len() || node_prefix > 30 {
            bail!("pod CIDR {cluster}: a node's block of /{node_prefix} does not fit in it");
        }
        Ok(Self {
            cluster,
            node_prefix,
            allocating: Mutex::default(),
        })
    }

    /// The lowest free block.
    pub(crate) async fn allocate(&self, client: &kube::Client) -> Result<String> {
        let mut handed_out = self.allocating.lock().await;
        let nodes = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await
            .context("listing nodes")?;
        let mut used: BTreeSet<Ipv4Net> = nodes
            .items
            .into_iter()
            .filter_map(|node| node.spec?.pod_cidr?.parse().ok())
            .collect();
        used.extend(handed_out.iter());
        let free = lowest_free(self.cluster, self.node_prefix, &used).with_context(|| {
            format!(
                "every /{} of the pod CIDR {} is taken",
                self.node_prefix, self.cluster
            )
        })?;
        handed_out.insert(free);
        Ok(free.to_string())
    }
}

fn lowest_free(cluster: Ipv4Net, prefix: u8, used: &BTreeSet<Ipv4Net>) -> Option<Ipv4Net> {
    cluster.subnets(prefix).ok()?.find(|block| {
        !used
            .iter()
            .any(|other| other.contains(block) || block.contains(other))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_never_overlap() {
        let cluster: Ipv4Net = "10.244.0.0/16".parse().expect("a network");
        let mut used = BTreeSet::new();
        assert_eq!(
            lowest_free(cluster, 24, &used)
                .map(|block| block.to_string())
                .as_deref(),
            Some("10.244.0.0/24")
        );
        used.insert("10.244.0.0/23".parse().expect("a network"));
        assert_eq!(
            lowest_free(cluster, 24, &used)
                .map(|block| block.to_string())
                .as_deref(),
            Some("10.244.2.0/24")
        );
        used.insert(cluster);
        assert_eq!(lowest_free(cluster, 24, &used), None);
    }
}
