//! Decides on which node each pod runs, and binds it there.
//!
//! Sees the cluster only through `gantry-informer` and a `kube::Client`; must never know whose API server that is.

use std::sync::Arc;

use gantry_informer::Clock;
use tokio_util::sync::CancellationToken;

/// What to run with.
#[derive(Clone)]
pub struct SchedulerConfig {
    /// Pods whose `schedulerName` is this are scheduled; all others are left alone.
    pub scheduler_name: Arc<str>,
    /// The time of day, for conditions and events.
    pub clock: Clock,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            clock: Clock::system(),
        }
    }
}

/// Schedules pods until stopped. Trouble with the API server is logged and tried again, so there is no error to return.
pub async fn run(client: kube::Client, config: SchedulerConfig, stop: CancellationToken) {
    tracing::info!(
        scheduler = &*config.scheduler_name,
        api = client.default_namespace(),
        "starting"
    );
    stop.cancelled().await;
}
