//! The servers of the cluster: who they are, how they reach each other, how one joins.
//!
//! A server's identity is its member id, drawn when it joins and kept in its data directory; its address may change.
//! Addresses are kept in the store, so that every server knows them, and a server that comes back elsewhere says so
//! itself: in the first message to each of the others, and in the store.

mod api;
mod dial;
mod endpoints;
mod exchange;
mod join;
mod peers;
mod roster;
mod seat;
mod service;

pub(crate) use api::{MembersApi, only_administrators, refuse};
pub(crate) use endpoints::keep as keep_endpoints;
pub(crate) use exchange::Exchange;
pub(crate) use join::join;
pub(crate) use peers::{PEER_MESSAGE, Peers};
pub(crate) use roster::{Roster, ServerRecord};
pub(crate) use seat::Seat;
pub(crate) use service::PeerService;

/// Decodes a server's request to join, for the fuzzer.
pub(crate) fn fuzz(body: &[u8]) {
    drop(api::JoinRequest::read(body));
}

/// The group that servers' certificates belong to.
pub(crate) const MEMBERS_GROUP: &str = "gantry:members";
/// The group of tokens that admit servers.
pub(crate) const JOINING_GROUP: &str = "system:bootstrappers:gantry:servers";
