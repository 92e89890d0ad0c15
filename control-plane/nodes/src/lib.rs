//! What the control plane does for nodes: their link, on which what each node needs goes down and what it reports comes
//! up, the series of pods that autoscalers want, streams matched with the nodes that serve them, policies compiled for them, pods' tokens, blocks of addresses,
//! their Events, and the monitor that gives up the silent.
//!
//! Reads the store and writes through the API, as the leader of a term. Must never know certificates' making, controllers
//! or the scheduler.
//!
//! Invariants kept here:
//! - a node sees only what its own pods name, and speaks only for itself;
//! - what a later link of a node says is never replaced by an earlier one's word;
//! - what isolates a pod is sent before the pod.

mod addresses;
mod calls;
mod cluster;
mod dual_cidr;
mod ending;
pub mod event_expiry;
#[doc(hidden)]
pub mod fuzzing;
mod hub;
mod metrics;
pub mod monitor;
mod pod_cidr;
mod policies;
mod references;
mod reports;
mod requests;
mod restrictions;
mod routing;
mod said;
pub mod scraping;
mod session;
mod streams;
mod tokens;
mod wakes;

pub use cluster::ClusterFacts;
pub use dual_cidr::DualCidr;
pub use hub::{Hub, follow_keys};
pub use session::LinkService;
pub use wakes::Wanted;
