//! A pod's spec, as pods and the templates of workloads share it: defaults, checks, warnings.

mod amounts;
mod annotations;
mod containers;
mod defaults;
mod environment;
mod every;
mod handlers;
mod image;
mod merge;
mod mounts;
mod network;
mod resources;
mod scheduling;
mod security;
mod validation;
mod volumes;
mod warnings;
mod windows;

use validation::Surroundings;

pub(crate) use amounts::{
    Amounts, limits_of, limits_with, parsed, qos_class, raise, requests_of, requests_with,
    says_of_the_whole,
};
pub use amounts::{Parsed, limits_at_once, requests_at_once};
pub(super) use annotations::{APP_ARMOR, MIRROR, validate_annotations, validate_matches};
pub use defaults::default;
pub(super) use defaults::default_for_pod;
pub(super) use merge::merge_labels;
pub(crate) use resources::{HUGE_PAGES, is_extended, is_native};
pub(super) use resources::{
    check_amount, check_resource_name, is_of_quotas, may_be_overcommitted,
    validate as validate_resources,
};
pub(super) use scheduling::{
    check_node_affinity_additions, check_node_selector, check_node_selector_additions,
    check_tolerations_added, validate_tolerations,
};
pub use validation::{validate, validate_for_pod};
pub(super) use volumes::{
    MAX_ISCSI_NAME, check_access_modes, check_claim_spec, check_class, check_driver_name,
    check_host_path, check_initiator, check_no_backsteps, check_remote, check_volume_mode,
    is_iscsi_name,
};
pub use warnings::warnings;
pub(super) use warnings::{claim_warnings, node_label_warnings, node_terms_warnings};
