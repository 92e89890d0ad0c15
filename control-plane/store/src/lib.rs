//! The multi-version object store: guarded transactions over several tables, replicated by Raft; snapshots, watches.
//!
//! It depends on no other crate of ours but `gantry-tasks`. It must never know a Kubernetes kind: values are opaque bytes,
//! and everything selectable is extracted by the writer. Nor does it know the network: messages leave through
//! [`Transport`].
//!
//! How a write travels: [`Store::propose`] encodes it > `member` gathers it with others into a log entry, or forwards it
//! to the leader, whose member does > `log` and `disk` make it durable with one fdatasync > a majority has it > `state`
//! applies it > its proposer is answered, `watch` hands out its events, `disk::persist` writes the new state behind.
//!
//! `member` is the whole of it without threads, sockets, files and a clock; `driver` is the thread around it. The
//! simulation (`simulation`, in tests) runs several members on a virtual network, disk and clock.
//!
//! Values of tables that a [`Transformer`] covers are plain in memory and sealed everywhere else: in log entries and forwarded
//! proposals from the encoding on, in rows, in chunks of states.
//!
//! A state leaves the cluster as a [`backup`], and comes back as a cluster of one. Where a majority is lost for good,
//! [`recovery`] lets one member go on alone.
//!
//! Members of different builds can take part together: a cluster has a feature level ([`Store::level`]) that rises only
//! when it is told to, and whoever meets a level that it does not know stops and says so.
//!
//! Members are ids. Whatever else is to be known of one (addresses, versions) belongs into ordinary keys: every member
//! has those, can watch them, and a new address needs no change of the membership.
//!
//! Invariants: acknowledged means on the disks of a majority; apply is deterministic (`state`: no clock, no random
//! numbers, no IO); a transaction changes all of its keys at one revision or none; a watch delivers every event after
//! its revision, in order, or is closed; the log loses an entry only after the state it led to is durable.

pub mod backup;
mod bootstrap;
mod budget;
mod chance;
mod config;
mod disk;
mod driver;
mod encryption;
#[doc(hidden)]
pub mod fuzzing;
mod handover;
mod level;
mod log;
mod logger;
mod member;
mod metrics;
mod packet;
mod reads;
mod record;
pub mod recovery;
mod shared;
#[cfg(test)]
mod simulation;
mod state;
mod store;
mod table;
mod transport;
pub mod types;
mod watch;

pub use backup::{Backup, BackupError, BackupSummary};
pub use budget::{Budget, Charge};
pub use config::{OpenError, StoreConfig};
pub use encryption::{TransformError, Transformer};
pub use level::{FEATURE_LEVEL, NewerLevel};
pub use member::membership::{MemberRole, MemberStatus, MembershipError};
pub use store::{DeliverError, LevelError, ResealError, Store};
pub use table::TableSnapshot;
pub use transport::{NoPeers, Outgoing, Transport};
pub use types::*;
pub use watch::Watch;
