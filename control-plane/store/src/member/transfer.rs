//! States on their way to members that lack the log's beginning: offered, fetched chunk by chunk, then taken over.
//!
//! The receiver asks for every chunk, so it sets the pace, repeats what got lost, and goes on where it was when the same
//! state is offered again. Consensus hears of the state only when all of it is here and its hash is the offered one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use raft::SnapshotStatus;
use raft::eraftpb::{Message, MessageType};

use super::level::stopped_at;
use super::{Failure, Member, decode_message};
use crate::encryption::Encryption;
use crate::handover::Taken;
use crate::level::{Level, NewerLevel};
use crate::packet::{Body, Chunk, Offer, StateId, Want};
use crate::record::{Decoder, RecordError};
use crate::state::State;
use crate::types::Revision;

/// Election timeouts without a word from the receiver after which a transfer has failed, for now.
const PATIENCE: usize = 2;
/// Election timeouts after which nobody is expected to go on with a transfer.
const KEPT: usize = 20;

/// What goes out and what comes in.
#[derive(Default)]
pub(super) struct Transfers {
    sending: BTreeMap<u64, Sending>,
    receiving: Option<Receiving>,
    received: Option<Receiving>,
    /// The leader has a state that this build cannot take over.
    refused: Option<NewerLevel>,
    /// Ticks since the taken state was last asked for.
    unasked: usize,
}

struct Sending {
    taken: Arc<Taken>,
    patience: usize,
}

struct Receiving {
    from: u64,
    id: StateId,
    message: Message,
    next: u64,
    state: State,
    decoder: Decoder,
    /// Ticks since the last chunk was asked for.
    unanswered: usize,
    /// Ticks since the last chunk arrived.
    quiet: usize,
}

impl Receiving {
    fn take(&mut self, mut rows: &[u8]) -> Result<(), RecordError> {
        while !rows.is_empty() {
            let row = Vec::<u8>::decode_length_delimited(&mut rows)?;
            let (key, entry) = self.decoder.row(&row)?;
            self.state.insert(key, entry);
        }
        Ok(())
    }
}

impl Transfers {
    /// Whether this member can go on.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.refused {
            Some(newer) => Err(stopped_at("the leader's state".to_owned(), newer)),
            None => Ok(()),
        }
    }

    /// The received state of this log entry and term.
    pub(super) fn take_received(&mut self, start: (u64, u64)) -> Option<State> {
        let received = self.received.take()?;
        ((received.id.index, received.id.term) == start).then_some(received.state)
    }
}

impl Member {
    /// Consensus wants a member to have a state: offers it.
    pub(super) fn offer(&mut self, message: Message) {
        let to = message.to;
        let index = message.get_snapshot().get_metadata().index;
        let taken = self.node.store().taken();
        let Some(taken) = taken.filter(|taken| taken.metadata.index == index) else {
            self.node.report_snapshot(to, SnapshotStatus::Failure);
            return;
        };
        let bytes = match protobuf::Message::write_to_bytes(&message) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "a message cannot be encoded");
                return;
            }
        };
        let offer = Offer {
            id: taken.id(),
            revision: taken.state.revision.0,
            level: taken.state.level.0,
            message: Bytes::from(bytes),
        };
        tracing::info!(
            to,
            index,
            "a member lacks the log's beginning: offering the state"
        );
        let patience = self.config.election_ticks * PATIENCE;
        let sending = Sending { taken, patience };
        self.transfers.sending.insert(to, sending);
        self.transfers.unasked = 0;
        self.post(to, Body::Offer(offer));
    }

    pub(super) fn offered(&mut self, from: u64, offer: Offer) {
        let message = decode_message(&offer.message).filter(|message| {
            let metadata = message.get_snapshot().get_metadata();
            message.get_msg_type() == MessageType::MsgSnapshot
                && message.from == from
                && message.to == self.config.member_id
                && (metadata.index, metadata.term) == (offer.id.index, offer.id.term)
        });
        let Some(message) = message else {
            tracing::warn!(from, "an offered state was malformed");
            return;
        };
        if message.term < self.node.raft.term || offer.id.index <= self.applied {
            // Consensus answers what the sender should know instead.
            self.post(from, Body::Received(offer.id));
            return;
        }
        let level = match Level(offer.level).known(self.known_level) {
            Ok(level) => level,
            Err(newer) => {
                self.transfers.refused = Some(newer);
                return;
            }
        };
        match &mut self.transfers.receiving {
            Some(receiving) if receiving.id == offer.id => {
                (receiving.from, receiving.message, receiving.quiet) = (from, message, 0);
            }
            slot => {
                let mut state = State::default();
                state.level = level;
                state.restart_at(Revision(offer.revision));
                *slot = Some(Receiving {
                    from,
                    id: offer.id,
                    message,
                    next: 0,
                    state,
                    decoder: Decoder::new(Encryption::new(self.config.transformer.clone())),
                    unanswered: 0,
                    quiet: 0,
                });
            }
        }
        self.ask_for_chunk();
    }

    fn ask_for_chunk(&mut self) {
        if let Some(receiving) = &mut self.transfers.receiving {
            receiving.unanswered = 0;
            let (from, id, number) = (receiving.from, receiving.id, receiving.next);
            self.post(from, Body::Want(Want { id, number }));
        }
    }

    pub(super) fn wanted(&mut self, from: u64, want: &Want) {
        let Some(sending) = self.transfers.sending.get_mut(&from) else {
            return;
        };
        if sending.taken.id() != want.id {
            return;
        }
        sending.patience = self.config.election_ticks * PATIENCE;
        self.transfers.unasked = 0;
        if let Some((rows, last)) = sending.taken.chunk(want.number) {
            let chunk = Chunk {
                id: want.id,
                number: want.number,
                last,
                rows: rows.into(),
            };
            self.post(from, Body::Chunk(chunk));
        }
    }

    pub(super) fn chunk_arrived(&mut self, from: u64, chunk: &Chunk) {
        let Some(receiving) = &mut self.transfers.receiving else {
            return;
        };
        if (receiving.from, receiving.id, receiving.next) != (from, chunk.id, chunk.number) {
            return;
        }
        if let Err(error) = receiving.take(&chunk.rows) {
            tracing::error!(from, %error, "a chunk of a state was malformed: starting over");
            self.transfers.receiving = None;
            return;
        }
        receiving.next += 1;
        receiving.quiet = 0;
        if !chunk.last {
            self.ask_for_chunk();
            return;
        }
        let Some(receiving) = self.transfers.receiving.take() else {
            return;
        };
        if receiving.state.fingerprint() != receiving.id.fingerprint {
            tracing::error!(
                from,
                "a received state does not match its hash: starting over"
            );
            return;
        }
        let message = receiving.message.clone();
        self.post(from, Body::Received(receiving.id));
        self.transfers.received = Some(receiving);
        self.step(message);
    }

    /// What consensus did not take over it does not need.
    pub(super) fn forget_received(&mut self) {
        self.transfers.received = None;
    }

    /// The receiver has the state, or does not need it.
    pub(super) fn state_received(&mut self, from: u64, id: StateId) {
        let known = self.transfers.sending.get(&from);
        if known.is_some_and(|sending| sending.taken.id() == id) {
            self.transfers.sending.remove(&from);
            self.node.report_snapshot(from, SnapshotStatus::Finish);
        }
    }

    pub(super) fn tick_transfers(&mut self) {
        let retry_after = self.config.heartbeat_ticks * 2;
        let kept = self.config.election_ticks * KEPT;
        let applied = self.applied;
        // The log may have come after all, or whoever had the state is gone.
        self.transfers
            .receiving
            .take_if(|receiving| receiving.quiet >= kept || receiving.id.index <= applied);
        if let Some(receiving) = &mut self.transfers.receiving {
            receiving.quiet += 1;
            receiving.unanswered += 1;
            if receiving.unanswered >= retry_after {
                self.ask_for_chunk();
            }
        }
        let mut failed = Vec::new();
        for (to, sending) in &mut self.transfers.sending {
            sending.patience = sending.patience.saturating_sub(1);
            if sending.patience == 0 {
                failed.push(*to);
            }
        }
        for to in failed {
            self.transfers.sending.remove(&to);
            tracing::info!(to, "a member does not fetch the state it was offered");
            self.node.report_snapshot(to, SnapshotStatus::Failure);
        }
        self.transfers.unasked += 1;
        if self.transfers.unasked == kept {
            self.node.mut_store().forget_taken();
        }
    }
}
