//! Decides on which node each pod runs, and binds it there.
//!
//! Sees the cluster only through `gantry-informer` and a `kube::Client`; must never know whose API server that is.
//!
//! Invariants kept here:
//! - a node is never promised more than it has: a pod counts from the moment its node is chosen ([`snapshot`]);
//! - a pod that fits nowhere says why, in its status and in [`Verdicts`], and is tried again when something changes;
//! - a pod runs on no node before all claims that it names are bound ([`volumes`]);
//! - pods of other schedulers are not placed here; they and all others that run leave only when a pod of higher priority fits
//!   nowhere else, and their going lets it fit ([`preemption`]).

mod binding;
mod budgets;
mod census;
mod cycle;
mod eviction;
mod filters;
mod nominations;
mod pod;
mod pod_affinity;
mod preemption;
mod queue;
mod resources;
mod scheduling;
mod scores;
mod search;
mod selection;
mod snapshot;
mod spread_constraint;
mod spreading;
mod trial;
mod verdict;
mod volumes;

use std::sync::Arc;

use gantry_informer::{Clock, Informers};
use tokio_util::sync::CancellationToken;

pub use self::verdict::{Explanation, Verdict, Verdicts};

/// What to run with.
#[derive(Clone)]
pub struct SchedulerConfig {
    /// Pods whose `schedulerName` is this are scheduled; all others are left alone.
    pub scheduler_name: Arc<str>,
    /// How this process calls itself in events.
    pub instance: Arc<str>,
    /// The time of day, for conditions and events.
    pub clock: Clock,
    /// Where to tell, node by node, why a pod fits nowhere. Keep a clone to ask.
    pub verdicts: Verdicts,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        // Absent outside Linux: then the name alone has to do.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            scheduler_name: "default-scheduler".into(),
            instance: format!("default-scheduler-{}", host.trim()).into(),
            clock: Clock::system(),
            verdicts: Verdicts::default(),
        }
    }
}

/// Schedules pods until stopped, by what the caches tell. Trouble with the API server is logged and tried again, so there is
/// no error to return.
pub async fn run(
    client: kube::Client,
    informers: Informers,
    config: SchedulerConfig,
    stop: CancellationToken,
) {
    scheduling::run(client, &informers.until(&stop), config, stop).await;
}
