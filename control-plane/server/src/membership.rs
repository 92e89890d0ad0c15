//! How a server becomes a member of a cluster, stays one and ceases to be one: its identity, the two sides of joining, and
//! what administrators ask of the members.

mod api;
mod identity;
mod join;

pub(crate) use api::{MembersApi, fuzz};
pub(crate) use identity::MemberIdentity;
pub(crate) use join::join;
