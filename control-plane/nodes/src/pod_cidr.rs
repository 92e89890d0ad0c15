//! Which node's pods get which addresses: one block per node and family, cut from the cluster's pod CIDR.
//!
//! The blocks of a node have the same place in both families, so that an address of one tells that of the other.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use parking_lot::Mutex;

use crate::dual_cidr::{DualCidr, meet};

/// A node's block of the IPv4 pod CIDR: 254 pods.
const NODE_PREFIX: u8 = 24;
/// What a subnet of IPv6 usually is; smaller where the cluster's range is too small for it.
const NODE_PREFIX_V6: u8 = 64;

/// Hands out blocks that no Node object has. That two nodes never have the same is the store's business, which refuses a
/// Node with another's block; here it is only made unlikely that many who register at once choose alike.
pub(crate) struct PodCidrs {
    blocks: Blocks,
    /// One chooses at a time.
    turn: tokio::sync::Mutex<()>,
    /// The places of blocks that were chosen for Nodes which are being written.
    chosen: Arc<Mutex<BTreeSet<u32>>>,
}

/// The blocks of a node that is being registered; others may have them when this is dropped and no Node has them.
pub(crate) struct Chosen {
    /// IPv4 first.
    pub(crate) blocks: Vec<String>,
    place: u32,
    chosen: Arc<Mutex<BTreeSet<u32>>>,
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.chosen.lock().remove(&self.place);
    }
}

impl PodCidrs {
    /// Blocks out of `cluster`.
    pub(crate) fn new(cluster: DualCidr) -> Result<Self> {
        Ok(Self {
            blocks: Blocks::of(cluster)?,
            turn: tokio::sync::Mutex::default(),
            chosen: Arc::default(),
        })
    }

    /// The lowest free blocks, IPv4 first.
    pub(crate) async fn allocate(&self, client: &kube::Client) -> Result<Chosen> {
        let _turn = self.turn.lock().await;
        let nodes = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await
            .context("listing nodes")?;
        let specs = nodes.items.into_iter().filter_map(|node| node.spec);
        let used: Vec<IpNet> = specs
            .flat_map(|spec| spec.pod_cidrs.unwrap_or_default())
            .filter_map(|cidr| cidr.parse().ok())
            .collect();
        let mut chosen = self.chosen.lock();
        let free = self.blocks.lowest_free(&used, &chosen);
        let place = free.with_context(|| {
            format!(
                "every /{NODE_PREFIX} of the pod CIDR {} is taken",
                self.blocks.cluster.v4
            )
        })?;
        chosen.insert(place);
        let blocks = self.blocks.at(place);
        Ok(Chosen {
            blocks: blocks.iter().map(IpNet::to_string).collect(),
            place,
            chosen: self.chosen.clone(),
        })
    }
}

/// The blocks of a cluster.
struct Blocks {
    cluster: DualCidr,
    /// How long a node's prefix of IPv6 is.
    prefix_v6: u8,
}

impl Blocks {
    fn of(cluster: DualCidr) -> Result<Self> {
        let Some(bits) = NODE_PREFIX.checked_sub(cluster.v4.prefix_len()) else {
            bail!(
                "pod CIDR {}: a node's block of /{NODE_PREFIX} does not fit in it: make it wider with --pod-cidr",
                cluster.v4
            );
        };
        let prefix_v6 = cluster.v6.map_or(NODE_PREFIX_V6, |v6| {
            NODE_PREFIX_V6.max(v6.prefix_len() + bits)
        });
        let widest = 128 - (32 - NODE_PREFIX);
        if let Some(v6) = cluster.v6
            && prefix_v6 > widest
        {
            bail!(
                "pod CIDR {v6}: it has no room for as many nodes and pods as {}: make it /{} or wider with --pod-cidr",
                cluster.v4,
                widest - bits
            );
        }
        Ok(Self { cluster, prefix_v6 })
    }

    /// The blocks at a place.
    fn at(&self, index: u32) -> Vec<IpNet> {
        let v4 = u32::from(self.cluster.v4.network()) + (index << (32 - NODE_PREFIX));
        let v4 = Ipv4Net::new_assert(Ipv4Addr::from(v4), NODE_PREFIX);
        let mut blocks = vec![IpNet::V4(v4)];
        if let Some(cluster) = self.cluster.v6 {
            let place = u128::from(index) << (128 - self.prefix_v6);
            let v6 = Ipv6Addr::from(u128::from(cluster.network()) + place);
            blocks.push(IpNet::V6(Ipv6Net::new_assert(v6, self.prefix_v6)));
        }
        blocks
    }

    fn is_free(&self, index: u32, used: &[IpNet]) -> bool {
        let blocks = self.at(index);
        let taken = |block| used.iter().any(|other| meet(block, other));
        !blocks.iter().any(taken)
    }

    fn lowest_free(&self, used: &[IpNet], handed_out: &BTreeSet<u32>) -> Option<u32> {
        let count = 1_u32 << (NODE_PREFIX - self.cluster.v4.prefix_len());
        (0..count).find(|index| !handed_out.contains(index) && self.is_free(*index, used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(cluster: &str) -> Result<Blocks> {
        Blocks::of(cluster.parse().expect("ranges"))
    }

    fn lowest(cluster: &str, used: &[&str], handed_out: &[u32]) -> Option<Vec<String>> {
        let used: Vec<IpNet> = used
            .iter()
            .map(|cidr| cidr.parse().expect("a range"))
            .collect();
        let handed_out = handed_out.iter().copied().collect();
        let blocks = blocks(cluster).expect("blocks");
        let index = blocks.lowest_free(&used, &handed_out)?;
        Some(blocks.at(index).iter().map(IpNet::to_string).collect())
    }

    #[test]
    fn blocks_never_overlap() {
        let cluster = "10.244.0.0/16";
        let free = |used: &[&str]| lowest(cluster, used, &[]);
        assert_eq!(free(&[]), Some(vec!["10.244.0.0/24".to_owned()]));
        assert_eq!(
            free(&["10.244.0.0/23"]),
            Some(vec!["10.244.2.0/24".to_owned()])
        );
        assert_eq!(free(&[cluster]), None);
        assert_eq!(
            lowest(cluster, &[], &[0, 1]),
            Some(vec!["10.244.2.0/24".to_owned()]),
            "what was handed out is in no Node yet"
        );
    }

    #[test]
    fn a_node_has_the_same_place_in_both_families() {
        let pair = |v4: &str, v6: &str| Some(vec![v4.to_owned(), v6.to_owned()]);
        let cluster = "10.244.0.0/16,fd10:244::/48";
        assert_eq!(
            lowest(cluster, &["10.244.0.0/24"], &[]),
            pair("10.244.1.0/24", "fd10:244:0:1::/64")
        );
        assert_eq!(
            lowest(cluster, &["fd10:244::/63"], &[]),
            pair("10.244.2.0/24", "fd10:244:0:2::/64")
        );
        assert_eq!(
            lowest("10.244.0.0/16,fd10::/64", &[], &[0]),
            pair("10.244.1.0/24", "fd10::100:0:0:0/72"),
            "a small range is shared by as many nodes"
        );
    }

    #[test]
    fn ranges_without_room_are_refused() {
        for (cluster, said) in [
            ("10.244.0.0/25", "does not fit in it"),
            ("10.244.0.0/16,fd10::/113", "make it /112 or wider"),
        ] {
            let error = blocks(cluster).err().map(|error| error.to_string());
            assert!(
                error.as_ref().is_some_and(|error| error.contains(said)),
                "{cluster}: {error:?}"
            );
        }
        assert!(blocks("10.244.0.0/16,fd10::/112").is_ok());
    }
}
