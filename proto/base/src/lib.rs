//! The vocabulary of the Kubernetes API that is the same for every kind: names, paths, times, quantities, selectors, metadata,
//! errors and statuses, what selects what by labels, what terms of node affinity and taints mean, and how JSON and YAML are read.
//!
//! Pure functions: no IO, no async, no clock. Knows no kind, so it rarely changes, and who needs only this is not built anew
//! when a kind is edited. `gantry-api` has these modules under the same names, beside the kinds.

pub mod annotations;
pub mod by_label;
pub mod conditions;
pub mod field;
pub mod json;
pub mod meta;
pub mod names;
pub mod node_affinity;
pub mod node_labels;
pub mod paths;
pub mod quantity;
pub mod resource;
pub mod selector;
pub mod status;
#[cfg(test)]
mod stopwatch;
pub mod taints;
pub mod time;
pub mod yaml;
