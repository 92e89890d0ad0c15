//! When services have let go of a pod that ends: what this node has received, then what all nodes have programmed.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use gantry_pods::traits::TrafficDrain;

use crate::metrics::METRICS;
use crate::ready_endpoints::ReadyEndpoints;
use crate::reports::Reports;

/// The service rules of all nodes, as pods wait for them.
pub(crate) struct Drain {
    pub(crate) ready: Arc<ReadyEndpoints>,
    pub(crate) reports: Arc<Reports>,
}

#[async_trait]
impl TrafficDrain for Drain {
    async fn drained(&self, addresses: &[IpAddr]) {
        let revision = self.ready.withdrawn(addresses).await;
        self.reports.programmed_everywhere(revision).await;
    }

    fn given_up(&self) {
        METRICS.drain_timeouts.inc();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::ready_endpoints::tests::slice;

    #[tokio::test]
    async fn a_pod_is_drained_when_the_rules_of_every_node_follow_the_last_slice() {
        let drain = Drain {
            ready: Arc::default(),
            reports: Arc::new(Reports::new("n")),
        };
        let address = ["10.1.0.2".parse().unwrap()];
        let offered = slice("10.1.0.2", true);
        drain.ready.slice(None, Some(&offered), 7);
        drain.reports.services_everywhere(7);
        let mut drained = drain.drained(&address);
        assert_eq!((&mut drained).now_or_never(), None, "it is still chosen");
        drain.ready.slice(Some(&offered), None, 8);
        assert_eq!(
            (&mut drained).now_or_never(),
            None,
            "the rules of another node do not follow yet"
        );
        drain.reports.services_everywhere(8);
        assert_eq!(drained.now_or_never(), Some(()));
    }
}
