//! Pods: one worker each.

mod admission;
mod backoff;
mod conditions;
mod files;
mod grpc_check;
mod hooks;
mod http_get;
mod keyring;
mod launch;
mod manager;
mod node;
mod phase;
mod plan;
mod probe;
mod pull;
mod record;
mod resize;
mod restart;
mod setup;
mod status;
mod stop;
mod worker;

pub use hooks::connect;
pub use manager::{PodUpdate, PodWorkers, remove_all};
pub use node::Node;
pub(crate) use record::containers;
pub use resize::Allocations;
pub use worker::Eviction;

#[cfg(test)]
mod tests;
