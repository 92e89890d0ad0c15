//! Runs containers: one shim process per pod, libcontainer in short-lived helpers, cgroups v1 and v2, CRI logs.

pub mod error;
pub mod traits;

pub use error::RuntimeError;
pub use traits::*;
