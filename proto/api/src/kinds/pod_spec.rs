//! A pod's spec, as pods and the templates of workloads share it: defaults, checks, warnings.

mod containers;
mod defaults;
mod environment;
mod handlers;
mod network;
mod resources;
mod scheduling;
mod security;
mod validation;
mod volumes;
mod warnings;

pub use defaults::default;
pub(super) use resources::{check_amount, qos_class, validate as validate_resources};
pub(super) use scheduling::{
    check_node_selector_additions, check_tolerations_added, validate_tolerations,
};
pub use validation::{validate, validate_for_pod};
pub use warnings::warnings;
