//! The Raft-replicated multi-version object store.

pub mod types;
pub use types::*;
