//! The node agent: what a node hears and says, the programs of its network, and the composition of all its parts.
//!
//! [`gantry_pods`] runs the pods. The agent gives it the objects and takes its reports ([`desired`], [`reports`]), programs
//! services and network policies, keeps the node's identity, and serves the streams and the local API. Only [`agent`], the
//! composition root, chooses implementations; beside it, what watches over the network and counts its packets looks at the
//! network's own. The agent knows the server by the node link alone and must never know the control plane's crates.
//!
//! Invariants kept here:
//! - the agent's death changes nothing for running containers, and a later agent takes them over;
//! - a container starts only when the kernel isolates its pod as the network policies known by then say;
//! - secrets are written to tmpfs only.

pub mod agent;
mod checkpoint;
mod clock;
pub mod config;
pub mod desired;
mod directories;
mod drain;
#[doc(hidden)]
pub mod fuzzing;
pub mod identity;
mod local_api;
pub mod proxier;
pub mod reports;
mod servers;

mod health_checks;
mod held_ports;
mod image_service;
mod link;
mod metrics;
mod network_watch;
mod node;
mod node_status;
mod outgoing;
mod pages;
mod peers;
mod policies;
mod pressure;
mod reachability;
mod ready_endpoints;
mod scraping;
mod services;
mod streams;
mod token_issuer;
mod usage;
mod wakes;

pub use agent::{Agent, teardown};
pub use config::{AgentConfig, is_agents_link};
pub use gantry_pods::{limits, pull_verification, sysctls};
pub use identity::NodeIdentity;
pub use local_api::relay_api;
