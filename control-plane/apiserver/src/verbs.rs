//! The verbs, each written once for all kinds.

pub(crate) mod binding;
pub(crate) mod body;
pub(crate) mod create;
pub(crate) mod custom_metrics;
pub(crate) mod delete;
pub(crate) mod delete_collection;
pub(crate) mod eviction;
pub(crate) mod external_metrics;
pub(crate) mod finalize;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod measured;
pub(crate) mod options;
mod owners;
mod pod_condition;
pub(crate) mod reviews;
pub(crate) mod scale;
pub(crate) mod scan;
pub(crate) mod selection;
pub(crate) mod update;
pub(crate) mod watch;
pub(crate) mod write;
