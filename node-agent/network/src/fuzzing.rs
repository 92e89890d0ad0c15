//! What the bytes of pods meet, for the fuzzer; no interface of the crate.

use crate::holding;

/// A packet that rules have logged: it is read, and what follows from it is made.
pub fn logged_packet(bytes: &[u8]) {
    drop(holding::answers(bytes));
}
