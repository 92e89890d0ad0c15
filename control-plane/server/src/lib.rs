//! The control plane's composition root: store, API server, what is done for nodes and for trust, and on the leader the
//! scheduler and the controllers.
//!
//! The only crate that knows all of them. It decides what runs where and when, and has beside that what a member is as a
//! whole: how it joins, its backups, its recovery.

mod alarms;
pub mod backup;
mod config;
mod custom_metrics;
mod demand;
mod external;
#[doc(hidden)]
pub mod fuzzing;
mod leader;
mod level;
mod measured;
mod membership;
mod recover;
mod server;
mod start;
mod tasks;

pub use config::{JoinConfig, ServerConfig};
pub use gantry_apiserver::ConnectionLimits;
pub use gantry_authority::CERTIFICATE_LIFE;
pub use gantry_nodes::DualCidr;
pub use recover::{Recovered, Restore, recover, restore};
pub use server::Server;
