//! Services in nftables: a pure [`plan`] of what should be there, a [`script`] of the difference, one transaction.
//!
//! ```text
//! prerouting / output
//!   from outside?  -> outside_address / outside_port   externalTrafficPolicy: Local: local endpoints, source kept
//!   (daddr, proto, dport) -> service_address ----+
//!   (proto, dport) to a local address            |     verdict maps: which chain balances this frontend
//!                  -> service_port --------------+
//!                                                v
//!   chain <shape>_K   one per protocol, kind of frontend, affinity and *number of endpoints*:
//!       dnat to (frontend, random mod K) map @<shape>_K
//! ```
//!
//! The number of rules and chains depends on how many different endpoint counts there are, never on the number of
//! services: a changed endpoint is a handful of map elements.

mod plan;
mod script;

use std::sync::Arc;

use async_trait::async_trait;

use crate::bridge::blocking;
use crate::names::Names;
use crate::nft::Nft;
use crate::{NetworkError, NodeNetwork, ServicePort, ServiceRules};

use plan::Plan;
use script::{Programmed, Skeleton};

/// Programs the node's services into the table `<prefix>-services`.
///
/// Session affinity hashes the client's address over the endpoints: a client stays with its endpoint while the set of
/// endpoints is unchanged; the configured timeout has no effect on that.
pub struct NftServiceRules {
    nft: Nft,
    skeleton: Skeleton,
    /// What the kernel has, as far as we know; `None` when it has to be set up from scratch.
    programmed: Arc<tokio::sync::Mutex<Option<Programmed>>>,
}

impl NftServiceRules {
    /// Finds `nft`. The kernel is touched by the first [`ServiceRules::sync`], which replaces our own table (and
    /// nothing else) in one transaction, so that services keep working while the agent restarts.
    pub fn new(node: &NodeNetwork) -> Result<Self, NetworkError> {
        let names = Names::new(node)?;
        let skeleton = Skeleton {
            table: names.service_table(),
            pod_cidr: node.pod_cidr.trunc(),
            service_cidr: node.service_cidr.trunc(),
        };
        Ok(Self {
            nft: Nft::find()?,
            skeleton,
            programmed: Arc::default(),
        })
    }
}

#[async_trait]
impl ServiceRules for NftServiceRules {
    async fn sync(&self, desired: Vec<ServicePort>) -> Result<(), NetworkError> {
        let mut programmed = Arc::clone(&self.programmed).lock_owned().await;
        let (nft, skeleton) = (self.nft.clone(), self.skeleton.clone());
        blocking(move || {
            let plan = Plan::new(&desired);
            if let Some(now) = programmed.take() {
                let (script, next) = script::difference(&skeleton, &now, &plan);
                if script.is_empty() {
                    *programmed = Some(now);
                    return Ok(());
                }
                match nft.apply(&script) {
                    Ok(()) => {
                        *programmed = Some(next);
                        return Ok(());
                    }
                    // Somebody else flushed or changed our table (a firewall that was restarted, for instance).
                    Err(NetworkError::Nft(words)) => {
                        tracing::warn!(
                            words,
                            table = skeleton.table,
                            "the table of services is not as it was left"
                        );
                    }
                    Err(other) => return Err(other),
                }
            }
            let (script, next) = script::from_scratch(&skeleton, &plan);
            nft.set_up(&script)?;
            tracing::info!(
                table = skeleton.table,
                elements = plan.len(),
                "services programmed from scratch"
            );
            *programmed = Some(next);
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use crate::{Endpoint, Protocol, ServicePort};

    pub(super) fn endpoint(number: u16) -> Endpoint {
        let [high, low] = number.to_be_bytes();
        Endpoint {
            ip: [10, 244, high, low].into(),
            port: 8080,
            local: true,
        }
    }

    pub(super) fn service(name: &str, address: u16, endpoints: &[u16]) -> ServicePort {
        let [high, low] = address.to_be_bytes();
        ServicePort {
            namespace: "default".into(),
            service: name.into(),
            port_name: String::new(),
            protocol: Protocol::Tcp,
            cluster_ip: Some([10, 96, high, low].into()),
            external_ips: vec![],
            port: 80,
            node_port: None,
            client_ip_affinity: None,
            external_local: false,
            internal_local: false,
            endpoints: endpoints.iter().map(|&number| endpoint(number)).collect(),
        }
    }
}
