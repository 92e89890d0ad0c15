//! How messages reach the other members: bytes out through a trait, bytes in through [`crate::Store::deliver`].

use bytes::Bytes;

/// Sends to other members. Called on the store's own thread: it must not block, and may drop what it cannot queue,
/// since consensus repeats itself. Messages to one member should arrive in order.
///
/// A transport that knows a member to be out of reach says so with [`crate::Store::report_unreachable`]. Whatever is
/// dropped, repeated or reordered costs time, never correctness.
pub trait Transport: Send + Sync + 'static {
    /// Queues messages for the member `to`.
    fn send(&self, to: u64, messages: Vec<Outgoing>);
}

/// One message to another member.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// For [`crate::Store::deliver`] of the receiver.
    pub bytes: Bytes,
    /// Whether it carries a part of a whole state: bulk that may wait for other messages. At most one such message
    /// per member is on its way at a time, of about [`crate::StoreConfig::snapshot_chunk_bytes`].
    pub snapshot: bool,
}

/// The transport of a member that has no peers.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn send(&self, to: u64, messages: Vec<Outgoing>) {
        tracing::debug!(to, count = messages.len(), "no transport: messages dropped");
    }
}
