//! The client verbs: one file per verb.

pub(crate) mod apply;
pub(crate) mod attach;
pub(crate) mod auth;
pub(crate) mod backup;
pub(crate) mod certs;
mod container;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod image;
pub(crate) mod logs;
pub(crate) mod member;
pub(crate) mod port_forward;
pub(crate) mod rollout;
pub(crate) mod scale;
pub(crate) mod secrets;
mod session;
pub(crate) mod set;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod user;
pub(crate) mod version;
