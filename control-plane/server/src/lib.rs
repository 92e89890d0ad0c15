//! The control plane's composition root: store, API server, node links, and on the leader the scheduler and the
//! controllers.
//!
//! The only crate that knows all of them. It decides what runs where and when, and holds no logic of its own beyond
//! the node link, which belongs to no single part: it reads the store, writes through the API, and carries streams.

pub mod backup;
pub mod fuzzing;
mod level;
mod membership;
mod recover;
mod room;
mod server;

pub use gantry_apiserver::ConnectionLimits;
pub use gantry_authority::CERTIFICATE_LIFE;
pub use gantry_nodes::DualCidr;
pub use recover::{Recovered, Restore, recover, restore};
pub use server::{JoinConfig, Server, ServerConfig};
