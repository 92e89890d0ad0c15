//! What the bytes of nodes and of servers that join meet, for the fuzzer; no interface of the crate.

use gantry_rpc::node::agent_message::Message;

/// A message of a node, as far as it is judged without the store.
pub fn node_message(message: Message) {
    crate::node_link::fuzz(message);
}

/// The body of a request for membership.
pub fn join_request(bytes: &[u8]) {
    crate::membership::fuzz(bytes);
}
