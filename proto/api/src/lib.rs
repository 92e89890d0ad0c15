//! The Kubernetes kinds Gantry serves: what each means, its defaults, validation, decoding, patches and tables. The
//! vocabulary they share is `gantry-base`, whose modules are found here as well.
//!
//! Pure functions: no IO, no async, no clock. Knows nothing of the store, the API server or the node.

pub mod decode;
pub mod kind;
pub mod kinds;
pub mod patch;
pub mod pod_security;
pub mod protobuf;
pub mod quota;
pub mod schema;
// One clock for the tests of both crates, and in neither of them outside of tests.
#[cfg(test)]
#[path = "../../base/src/stopwatch.rs"]
mod stopwatch;
pub mod typed;
pub mod unstored;

pub use gantry_base::{
    annotations, by_label, conditions, field, json, meta, names, node_affinity, node_labels, paths,
    quantity, selector, status, taints, time, yaml,
};
