//! The Kubernetes kinds Gantry serves: names, defaults, validation, selectors, quantities, patches, tables.
//!
//! Pure functions: no IO, no async, no clock. Knows nothing of the store, the API server or the node.

pub mod field;
pub mod kind;
pub mod names;
pub mod quantity;
pub mod schema;
pub mod status;
