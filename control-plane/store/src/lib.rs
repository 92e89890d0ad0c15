//! The multi-version object store: guarded transactions over several tables, replicated by Raft; snapshots, watches.
//!
//! It depends on no other crate of ours. It must never know a Kubernetes kind: values are opaque bytes, and everything
//! selectable is extracted by the writer. Nor does it know the network: messages leave through [`Transport`].
//!
//! How a write travels: [`Store::propose`] encodes it > `driver` gathers it with others into a log entry > `log` and
//! `disk` make it durable with one fdatasync > a majority has it > `state` applies it > its proposer is answered,
//! `watch` hands out its events, `persist` writes the new state behind.
//!
//! Invariants: acknowledged means on the disks of a majority; apply is deterministic (`state`: no clock, no random
//! numbers, no IO); a transaction changes all of its keys at one revision or none; a watch delivers every event after
//! its revision, in order, or is closed; the log loses an entry only after the state it led to is durable.

mod config;
mod disk;
mod driver;
mod log;
mod logger;
mod metrics;
mod persist;
mod reads;
mod record;
mod shared;
mod state;
mod store;
mod table;
mod transport;
pub mod types;
mod watch;

pub use config::{OpenError, StoreConfig};
pub use store::{DeliverError, Store};
pub use table::TableSnapshot;
pub use transport::{NoPeers, Outgoing, Transport};
pub use types::*;
pub use watch::Watch;
