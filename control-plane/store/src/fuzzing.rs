//! What other members' bytes meet, for the fuzzer; no interface of the store.

use prost::Message;

use crate::encryption::Encryption;
use crate::packet::{Body, Packet};
use crate::record::{Decoder, split_transactions};

/// A packet, and what is inside of it.
pub fn packet(bytes: &[u8]) {
    let Ok(packet) = Packet::decode(bytes) else {
        return;
    };
    let mut decoder = Decoder::new(Encryption::default());
    match packet.body {
        Some(Body::Consensus(message)) => drop(crate::member::decode_message(&message)),
        Some(Body::Forward(forward)) => {
            for transaction in forward.transactions {
                drop(decoder.transactions(&transaction));
            }
        }
        Some(Body::Chunk(chunk)) => {
            for row in split_transactions(&chunk.rows) {
                drop(decoder.row(&row));
            }
        }
        _ => {}
    }
    // As a log entry holds them.
    drop(decoder.transactions(bytes));
}
