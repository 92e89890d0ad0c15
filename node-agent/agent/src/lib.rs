//! The node agent: runs the pods bound to this node and reports what is true.
//!
//! Pod workers know the runtime, images, network and volumes by their traits; only [`agent`], the composition root,
//! names implementations. The agent knows the server by the node link alone and must never know the control plane's
//! crates.
//!
//! Invariants kept here:
//! - a pod's phase never moves backwards ([`pod`]'s status);
//! - a container is never started twice for one attempt: the attempt is on disk before the runtime is asked;
//! - the agent's death changes nothing for running containers, and a later agent takes them over;
//! - a container starts only when the kernel isolates its pod as the network policies known by then say;
//! - secrets and tokens are written to tmpfs only.

pub mod agent;
mod checkpoint;
mod clock;
pub mod config;
pub mod desired;
mod directories;
pub mod env;
pub mod identity;
pub mod limits;
mod local_api;
pub mod logs;
pub mod program;
pub mod pull_verification;
pub mod reports;
mod servers;
pub mod sysctls;
mod tls;
pub mod users;
pub mod volumes;

mod eviction;
mod health_checks;
mod held_ports;
mod image_gc;
mod image_service;
mod link;
mod metrics;
mod network_watch;
mod node;
mod peers;
mod pod;
mod policies;
mod presence;
mod pressure;
mod pull_records;
mod reachability;
mod routed;
mod services;
mod streams;
mod tokens;

pub use agent::{Agent, teardown};
pub use config::{AgentConfig, is_agents_link};
pub use identity::NodeIdentity;
pub use local_api::relay_api;
