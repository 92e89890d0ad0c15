//! What a node says that its pods have answered: handed on as far as it is about the node's own pods.

use std::time::Instant;

use gantry_rpc::node::{Scraped, ScrapedPod};
use gantry_usage::ScrapedSample;

use super::usage::Known;
use super::{LinkReports, TURN};
use crate::said::{self, Refused};

impl LinkReports {
    /// Takes answers, unless there are more than there can be news of; waits for nothing, but lets others have their turn.
    pub(super) async fn take_scraped(&self, said: Scraped) -> Result<(), Refused> {
        if !self.allowances.scrapes.lock().take(Instant::now()) {
            tracing::debug!(node = %self.node, "too many answers of one node's pods: some were dropped");
            return Ok(());
        }
        said::scraped::check_pods(said.pods.len())?;
        let before = std::mem::take(&mut *self.scraped_pods.lock());
        let mut known = Known::new();
        let mut pods = Vec::with_capacity(said.pods.len());
        for (at, pod) in said.pods.into_iter().enumerate() {
            match self.own_answer(pod, &before, &mut known) {
                Ok(own) => pods.extend(own),
                Err(refused) => self.note(Err(refused)),
            }
            if (at + 1) % TURN == 0 {
                tokio::task::yield_now().await;
            }
        }
        *self.scraped_pods.lock() = known;
        // What another link of the node has said since is newer.
        if self.is_current() {
            let sample = ScrapedSample {
                clock: said.clock,
                pods,
            };
            let (now, clock) = (Instant::now(), &self.shared.clock);
            self.shared
                .figures
                .take_scraped(self.node.as_str(), sample, now, clock.now());
        }
        Ok(())
    }

    /// The answer of a pod, when it is the node's own; nothing of one that is gone.
    fn own_answer(
        &self,
        said: ScrapedPod,
        before: &Known,
        known: &mut Known,
    ) -> Result<Option<gantry_usage::ScrapedPod>, Refused> {
        let pod = said::scraped::pod_of(&said)?;
        let Some(name) = self.own_pod_name(&pod, before, known)? else {
            return Ok(None);
        };
        said::scraped::pod(said, name).map(Some)
    }
}
