//! The Kubernetes kinds Gantry serves: names, defaults, validation, selectors, quantities, patches, tables.
//!
//! Pure functions: no IO, no async, no clock. Knows nothing of the store, the API server or the node.

pub mod decode;
pub mod field;
pub mod json;
pub mod kind;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod node_labels;
pub mod patch;
pub mod paths;
pub mod pod_security;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
#[cfg(test)]
mod stopwatch;
pub mod time;
pub mod typed;
pub mod unstored;
pub mod yaml;
