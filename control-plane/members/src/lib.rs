//! The servers among each other: who they are and where, the messages and requests between them, and how clients find
//! those that are there.
//!
//! A server's identity is its member id, drawn when it joins and kept in its data directory; its address may change.
//! Addresses are kept in the store, so that every server knows them, and a server that comes back elsewhere says so
//! itself: in the first message to each of the others, and in the store.
//!
//! Must never know what the servers ask each other for: keys, certificates and streams are their owners' business.

mod administration;
mod custom_metrics;
mod dial;
mod endpoints;
mod exchange;
mod leader;
mod peers;
mod relay;
mod roster;
mod service;
mod usage;

pub use administration::{only_administrators, refuse};
pub use custom_metrics::LeaderMetrics;
pub use endpoints::keep as keep_endpoints;
pub use exchange::Exchange;
pub use peers::{Peers, follow_addresses};
pub use relay::LeaderStreams;
pub use roster::{Roster, ServerRecord};
pub use service::PeerService;
pub use usage::LeaderUsage;

/// The group that servers' certificates belong to.
pub const MEMBERS_GROUP: &str = "gantry:members";
