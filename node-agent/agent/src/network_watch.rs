//! Watches over the node's network, which others can take apart: firewalls that flush every table, hands that remove a
//! bridge. What is missing is put back within seconds, for the pods that run as well; while that does not succeed, the Node
//! is not Ready and says why.

use std::sync::Arc;
use std::time::Duration;

use gantry_cri::words;
use gantry_network::{BridgeNetwork, LinkWatch, Looked, TableWatch, VxlanOverlay};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::metrics::METRICS;
use crate::node_status::NodeStatus;
use crate::reports::{Reports, Severity};

/// Between questions whether anything has changed, which cost microseconds.
const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);
/// Between looks while nothing is said to have changed: the kernel does not tell of everything.
const BETWEEN_LOOKS: Duration = Duration::from_secs(3);

/// What is watched, and who is told.
pub(crate) struct NetworkWatch {
    pub(crate) tables: TableWatch,
    pub(crate) links: LinkWatch,
    pub(crate) network: Arc<BridgeNetwork>,
    pub(crate) overlay: Option<Arc<VxlanOverlay>>,
    /// Has everything of the node's look after its own.
    pub(crate) flushed: watch::Sender<()>,
    pub(crate) node_status: Arc<NodeStatus>,
    pub(crate) reports: Arc<Reports>,
}

impl NetworkWatch {
    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut ticks = interval(BETWEEN_QUESTIONS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looked, mut overlay_was_broken, mut told) = (Instant::now(), false, Vec::new());
        loop {
            ticks.tick().await;
            self = match self.look_for_tables().await {
                Some(watch) => watch,
                None => return,
            };
            if !self.links.stirred() && looked.elapsed() < BETWEEN_LOOKS {
                continue;
            }
            looked = Instant::now();
            let mut trouble = self.look_at_links(&mut told).await;
            if let Some(broken) = self.look_at_overlay().await {
                // What has just been found may be put right by now.
                if overlay_was_broken {
                    trouble.push(broken);
                } else {
                    tracing::warn!(broken, "the way to other nodes; putting it right");
                }
                overlay_was_broken = true;
                self.flushed.send_replace(());
            } else {
                overlay_was_broken = false;
            }
            match trouble.is_empty() {
                true => self.node_status.network_is_ready(),
                false => self.node_status.network_is_broken(&trouble.join("; ")),
            }
        }
    }

    /// Says `flushed` when tables have vanished, since pods are cut off until they are put back.
    async fn look_for_tables(mut self) -> Option<Self> {
        let look = tokio::task::spawn_blocking(move || (self.tables.vanished(), self));
        let (vanished, watch) = look.await.ok()?;
        match vanished {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => {
                METRICS.flushes.inc();
                tracing::warn!(
                    tables = ?gone,
                    "somebody removed the node's nftables tables (a firewall that flushes the whole ruleset?); putting them back"
                );
                watch.flushed.send_replace(());
            }
            Err(error) => tracing::debug!(%error, "looking for the node's tables"),
        }
        Some(watch)
    }

    /// What of the pods' network is broken and stays so.
    async fn look_at_links(&self, told: &mut Vec<String>) -> Vec<String> {
        let Looked { found, left } = match self.network.look().await {
            Ok(looked) => looked,
            Err(error) => return vec![words(&error)],
        };
        if found.is_empty() {
            told.clear();
            return left;
        }
        tracing::warn!(
            ?found,
            ?left,
            "the node's network was taken apart; putting it right"
        );
        if *told != found {
            let message = format!("The node's network was taken apart: {}", found.join("; "));
            self.reports
                .node_event(Severity::Warning, "NetworkTakenApart", &message);
            *told = found;
        }
        left
    }

    async fn look_at_overlay(&self) -> Option<String> {
        let overlay = self.overlay.as_ref()?;
        overlay
            .look()
            .await
            .unwrap_or_else(|error| Some(words(&error)))
    }
}
