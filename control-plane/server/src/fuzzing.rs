//! What the bytes of servers that join meet, for the fuzzer; no interface of the crate.

/// The body of a request for membership.
pub fn join_request(bytes: &[u8]) {
    crate::membership::fuzz(bytes);
}
