//! One module per kind, each a [`crate::kind::Kind`], and what several of them share.

pub mod config_map;
pub mod namespace;
pub mod secret;
pub mod service_account;
pub mod table;
