//! The multi-version object store: guarded transactions over several tables, snapshots and watches.
//!
//! Depends on `gantry-rpc` alone. It must never know a Kubernetes kind: values are opaque bytes, and everything
//! selectable is extracted by the writer.
//!
//! Invariants: apply is deterministic (`state`: no clock, no random numbers, no IO); a transaction changes all of
//! its keys at one revision or none; a watch delivers every event after its revision, in order, or is closed.

mod state;
mod store;
mod table;
pub mod types;
mod watch;

pub use store::Store;
pub use table::TableSnapshot;
pub use types::*;
pub use watch::Watch;
