//! How a server becomes a member of a cluster, stays one and ceases to be one: its identity, the two sides of joining, and
//! what administrators ask of the members.

mod api;
mod identity;
mod join;

pub(crate) use api::MembersApi;
pub(crate) use identity::MemberIdentity;
pub(crate) use join::join;

/// Decodes a server's request to join, for the fuzzer.
pub(crate) fn fuzz(body: &[u8]) {
    drop(api::JoinRequest::read(body));
}

/// The group of tokens that admit servers.
pub(crate) const JOINING_GROUP: &str = "system:bootstrappers:gantry:servers";
