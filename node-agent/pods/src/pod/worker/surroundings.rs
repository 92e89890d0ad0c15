//! The pod's surroundings (network, volumes, sandbox): made before the first container, removed after the last.

use std::time::Duration;

use tokio::time::Instant;

use super::{Effect, Worker};
use crate::pod::launch::{Sandbox, rootfs_key};
use crate::pod::setup::{self, NotSetUp};
use crate::traits::Severity;

/// Between attempts at what should not fail.
pub(super) const RETRY: Duration = Duration::from_secs(2);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

/// After so many failures in a row.
pub(super) fn retry_delay(failures: u32) -> Duration {
    (RETRY * 2_u32.saturating_pow(failures.min(6))).min(RETRY_LONGEST)
}

/// The pod's sandbox, and its network and volumes.
pub(super) enum Surroundings {
    /// Not there; tried from this moment on.
    Missing { retry_at: Instant },
    /// Being made.
    Making,
    /// There.
    Ready(Sandbox),
    /// Being removed.
    Unmaking,
    /// Removed for good.
    Unmade,
    /// Volumes, logs and journal are being removed too.
    Removing,
}

impl Worker {
    pub(super) fn set_up(&mut self, result: Result<Sandbox, NotSetUp>) {
        match result {
            Ok(sandbox) => {
                self.setup_failures = 0;
                self.pod_ips = sandbox.pod_ips.clone();
                self.surroundings = Surroundings::Ready(sandbox);
                self.resume_probes();
            }
            Err(NotSetUp { reason, message }) => {
                self.event(None, Severity::Warning, reason, &message);
                // What was missing may have come meanwhile.
                let delay = match self.contents.is_outdated() {
                    true => Duration::ZERO,
                    false => retry_delay(self.setup_failures),
                };
                self.setup_failures += 1;
                self.surroundings = Surroundings::Missing {
                    retry_at: Instant::now() + delay,
                };
            }
        }
    }

    pub(super) fn retry_tear_down(&mut self) {
        let (node, uid, keys) = (self.node.clone(), self.uid.clone(), self.rootfs_keys());
        self.effects.spawn(async move {
            tokio::time::sleep(RETRY).await;
            Effect::TornDown(setup::tear_down(node, uid, keys).await)
        });
    }

    pub(super) fn rootfs_keys(&self) -> Vec<String> {
        let attempts = self
            .records
            .iter()
            .filter_map(|record| Some((record.name.as_str(), record.attempt?)));
        // The attempt before may still be on its way out.
        attempts
            .flat_map(|(name, attempt)| {
                [Some(attempt), attempt.checked_sub(1), Some(attempt + 1)]
                    .into_iter()
                    .flatten()
                    .map(move |attempt| (name, attempt))
            })
            .chain(
                self.records
                    .iter()
                    .filter(|record| record.attempt.is_none())
                    .map(|record| (record.name.as_str(), 0)),
            )
            .map(|(name, attempt)| rootfs_key(&self.uid, name, attempt))
            .collect()
    }
}
