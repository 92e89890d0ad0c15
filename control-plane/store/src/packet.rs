//! What members send each other: consensus' own messages, forwarded proposals, and states in chunks.

use bytes::Bytes;
use prost::Message;

/// One message between two members.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Packet {
    #[prost(uint64, tag = "1")]
    pub(crate) from: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) to: u64,
    #[prost(oneof = "Body", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(crate) body: Option<Body>,
}

/// The kinds of packets; the numbers are part of the protocol.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Body {
    /// A message of the consensus library, in its own encoding.
    #[prost(bytes = "bytes", tag = "3")]
    Consensus(Bytes),
    #[prost(message, tag = "4")]
    Forward(Forward),
    #[prost(message, tag = "5")]
    Refusal(Refusal),
    #[prost(message, tag = "6")]
    Offer(Offer),
    #[prost(message, tag = "7")]
    Want(Want),
    #[prost(message, tag = "8")]
    Chunk(Chunk),
    #[prost(message, tag = "9")]
    Received(StateId),
    #[prost(message, tag = "10")]
    Shortage(Shortage),
    /// Of a follower's state.
    #[prost(message, tag = "11")]
    Digest(Digest),
    /// Of the majority's, from the leader to a member whose state differs.
    #[prost(message, tag = "12")]
    Fence(Digest),
}

/// Proposals of a follower's clients, for the leader of `term` and no other.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Forward {
    /// Distinguishes the sender's runs.
    #[prost(uint64, tag = "1")]
    pub(crate) run: u64,
    /// Counts within a run.
    #[prost(uint64, tag = "2")]
    pub(crate) number: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) term: u64,
    /// Encoded transactions.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub(crate) transactions: Vec<Bytes>,
    /// The greatest [`crate::Demand`] of them, by its number.
    #[prost(uint32, tag = "5")]
    pub(crate) demand: u32,
}

/// A forward was not proposed, and will not be.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Refusal {
    #[prost(uint64, tag = "1")]
    pub(crate) run: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) number: u64,
    /// How many proposals wait at the leader, when that is why.
    #[prost(uint64, optional, tag = "3")]
    pub(crate) waiting: Option<u64>,
    /// Who leads instead, or 0.
    #[prost(uint64, tag = "4")]
    pub(crate) leader: u64,
    /// Why the cluster is read-only, when that is why.
    #[prost(string, optional, tag = "5")]
    pub(crate) read_only: Option<String>,
}

/// Whether the sender's disk lacks the room for further entries.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Shortage {
    #[prost(bool, tag = "1")]
    pub(crate) short: bool,
}

/// The hash of a state after a log entry.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Digest {
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) fingerprint: u64,
}

/// Which state: equal ids mean equal chunks.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct StateId {
    /// The log entry it is the state of.
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
    /// That entry's term.
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) fingerprint: u64,
}

/// A state that the receiver should fetch.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Offer {
    #[prost(message, required, tag = "1")]
    pub(crate) id: StateId,
    #[prost(uint64, tag = "2")]
    pub(crate) revision: u64,
    /// Consensus' own message for when it is there.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) message: Bytes,
    #[prost(uint32, tag = "4")]
    pub(crate) level: u32,
}

/// Asks for one chunk.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Want {
    #[prost(message, required, tag = "1")]
    pub(crate) id: StateId,
    #[prost(uint64, tag = "2")]
    pub(crate) number: u64,
}

/// Some rows of a state.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Chunk {
    #[prost(message, required, tag = "1")]
    pub(crate) id: StateId,
    #[prost(uint64, tag = "2")]
    pub(crate) number: u64,
    /// Whether no rows follow.
    #[prost(bool, tag = "3")]
    pub(crate) last: bool,
    /// Length-delimited.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) rows: Bytes,
}

/// Which transactions of a log entry came from a forward: its context on the log.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Tag {
    #[prost(uint64, tag = "1")]
    pub(crate) member: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) run: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) number: u64,
    /// The position of the first one in the entry.
    #[prost(uint64, tag = "4")]
    pub(crate) first: u64,
}

/// The context of a log entry.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tags {
    #[prost(message, repeated, tag = "1")]
    pub(crate) tags: Vec<Tag>,
    /// The feature level that the entry raises the state to; 0 for all others.
    #[prost(uint32, tag = "2")]
    pub(crate) level: u32,
    /// By how much the entry raises the revision; 0 for all others.
    #[prost(uint64, tag = "3")]
    pub(crate) skipped: u64,
    /// Whether the entry is for full disks too, since it adds nothing.
    #[prost(bool, tag = "4")]
    pub(crate) makes_room: bool,
}
