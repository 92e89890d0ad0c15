//! What the bytes of nodes meet, for the fuzzer; no interface of the crate.

use gantry_rpc::node::agent_message::Message;

/// A message of a node, as far as it is judged without the store.
pub fn node_message(message: Message) {
    crate::said::fuzz(message);
}
