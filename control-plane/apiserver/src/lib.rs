//! The Kubernetes API over the store: authentication, authorisation, admission, verbs, discovery, streams.
//!
//! Depends on `gantry-api` for what kinds mean and on `gantry-store` for where objects live. Must never know a
//! controller, the scheduler or a node: those are clients, and streams to nodes go through [`NodeStreams`].
//!
//! Invariants kept here:
//! - every write, from wherever, ends in one compare-and-swap transaction ([`verbs`]);
//! - what is refused names the field and leaves nothing behind: admission, validation and allocation happen before
//!   the transaction, and allocations are part of it;
//! - no object is encoded per reader ([`codec`]).

mod admission;
mod authentication;
mod authorisation;
mod bodies;
mod bootstrap;
mod bootstrap_tokens;
mod budgets;
mod clock;
mod codec;
mod connections;
mod context;
mod custom_metrics;
mod discovery;
mod encoder;
mod external_metrics;
#[doc(hidden)]
pub mod fuzzing;
mod generated_names;
mod health;
mod heavy;
mod identity;
mod limits;
mod lines;
mod media;
mod metrics;
pub mod node_keys;
mod openapi;
mod peer;
mod ranges;
mod refusals;
mod registry;
mod request;
mod response;
mod server;
pub mod service_accounts;
mod streams;
mod subresources;
mod tables;
#[cfg(test)]
mod testing;
mod usage;
mod verbs;

pub use authorisation::{Attributes, Authorizer, Decision, Target, check};
pub use clock::Clock;
pub use connections::ConnectionLimits;
pub use custom_metrics::{CustomMetrics, MetricOf, NoMetric, ObjectMetric, ServedMetric};
pub use external_metrics::{ExternalMetric, ExternalMetrics, NoExternalMetric};
pub use identity::{Identity, MASTERS, NODE_LINK, Tokens};
pub use peer::Peer;
pub use ranges::Ranges;
pub use server::{ApiServer, ApiServerConfig, LocalService, OWN_PATHS};
pub use streams::{NoNodes, NodeStream, NodeStreams};
pub use usage::{PartUsage, UsageOf, UsageSource, Used};
