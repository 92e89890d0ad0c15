//! `gantry-pods`: what a kubelet does for the pods of its node. A worker for each pod ([`PodWorkers`]) with its containers,
//! probes, hooks and status; volumes, logs, tokens; who may use which image; what goes when the disk is short.
//!
//! It sees the runtime, images, network and DNS by their traits alone ([`gantry_cri`]), and the agent by those of
//! [`traits`]: it must never know the node link, who programs services and policies, or an implementation.
//!
//! Invariants kept here:
//! - a pod's phase never moves backwards (`pod/status.rs`);
//! - a container is never started twice for one attempt: the attempt is on disk before the runtime is asked;
//! - a container starts only when the kernel isolates its pod as the network policies known by then say;
//! - secrets and tokens are written to tmpfs only.

pub mod disk;
pub mod env;
pub mod eviction;
pub mod hosts;
pub mod image_gc;
pub mod limits;
pub mod logs;
pub mod pull_records;
pub mod pull_verification;
pub mod resolv;
pub mod sysctls;
pub mod tokens;
pub mod traits;
pub mod users;
pub mod volumes;

mod pod;
mod tls;

pub use pod::{Allocations, Eviction, Node, PodUpdate, PodWorkers, connect, remove_all};
