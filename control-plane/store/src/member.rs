//! One member of the cluster, without threads, sockets or a clock: inputs and ticks in, packets and answers out.
//!
//! One round: [`Member::take_in`] what has arrived, [`Member::settle`]: propose it as few log entries, write those with
//! one sync, apply what is committed, answer. What arrives meanwhile forms the next round, so batches grow with the
//! load. The driver runs rounds on a thread; the simulation runs those of several members, as its seed says.
//!
//! Equal seeds ([`Chance`]) and inputs give equal runs: nothing here asks the time, except to measure, and no map with
//! a random order is walked where the order shows.

mod apply;
mod digest;
mod forward;
mod level;
pub(crate) mod membership;
mod reseal;
mod room;
mod transfer;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};
use tokio::sync::{oneshot, watch};

use crate::chance::Chance;
use crate::config::StoreConfig;
use crate::disk::{DiskError, StateWriter};
use crate::encryption::{Encryption, TransformError};
use crate::level::NewerLevel;
use crate::log::Log;
use crate::packet::{Body, Packet, Tag, Tags};
use crate::reads::Reads;
use crate::record::Decoder;
use crate::shared::Shared;
use crate::transport::{Outgoing, Transport};
use crate::types::{Demand, Leadership, ProposeError, Revision, Term};
use digest::Digests;
use forward::{Accepted, Forwards};
use membership::{ChangeInput, MemberStatus, Membership};
use reseal::Resealing;
use room::Disks;
use transfer::Transfers;

/// Transactions are gathered into log entries up to this size.
const ENTRY_BYTES: usize = 256 << 10;

pub(crate) type Reply = oneshot::Sender<Result<Revision, ProposeError>>;

/// What reaches a member.
pub(crate) enum Input {
    /// An encoded transaction.
    Propose(Proposal),
    /// Answered once this member has applied everything acknowledged so far.
    Barrier(Reply),
    /// From another member.
    Packet(Box<Packet>),
    /// A member cannot be reached.
    Unreachable(u64),
    /// A change of the members, or of who leads.
    Change(ChangeInput),
    /// Who the members are, and how far.
    Members(oneshot::Sender<Vec<MemberStatus>>),
    /// Raise the feature level.
    RaiseLevel(u32, Reply),
    /// Seal everything anew, see [`crate::Store::reseal`].
    Reseal(oneshot::Sender<()>),
    /// Hand leadership over, write everything, end.
    Shutdown(oneshot::Sender<()>),
}

/// A transaction and who waits for it.
pub(crate) struct Proposal {
    pub(crate) data: Vec<u8>,
    pub(crate) demand: Demand,
    pub(crate) reply: Reply,
    pub(crate) submitted: Instant,
}

/// The queues of proposals, by what they ask of the disk where that makes a difference: some entries are for full disks too.
#[derive(Default)]
struct Lanes([Gathered; 3]);

/// Transactions that become one log entry.
#[derive(Default)]
struct Gathered {
    demand: Demand,
    data: Vec<u8>,
    count: usize,
    own: Vec<Own>,
    tags: Vec<Tag>,
}

/// A client of this member: which transaction of the entry is its, and since when it waits.
struct Own {
    position: usize,
    reply: Reply,
    submitted: Instant,
}

impl Own {
    /// The only one of its entry.
    fn new(reply: Reply) -> Own {
        Own {
            position: 0,
            reply,
            submitted: Instant::now(),
        }
    }
}

/// A proposed log entry and who waits for it here.
struct Pending {
    index: u64,
    term: u64,
    own: Vec<Own>,
}

/// Why a member cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("consensus failed: {0}")]
    Consensus(#[from] raft::Error),
    #[error(
        "log entry {index} cannot be applied: {reason}: this member has stopped; start the version that wrote the entry"
    )]
    Entry { index: u64, reason: String },
    #[error("this member has stopped, since {what} {newer}")]
    Newer { what: String, newer: NewerLevel },
    #[error("log entry {index} cannot be opened: {reason}: this member has stopped")]
    Sealed { index: u64, reason: TransformError },
    #[error(
        "the state of this member differs from that of the others (found at log entry {index}), so that nothing in it can be \
         trusted: it has stopped; take this server out with 'gantry member remove', and add it anew with an empty data directory"
    )]
    Diverged { index: u64 },
}

/// Owns consensus and everything it writes.
pub(crate) struct Member {
    node: RawNode<Log>,
    config: StoreConfig,
    chance: Chance,
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    writer: Option<StateWriter>,
    leadership: watch::Sender<Leadership>,
    pending: VecDeque<Pending>,
    forwards: Forwards,
    accepted: Accepted,
    reads: Reads,
    transfers: Transfers,
    resealing: Resealing,
    membership: Membership,
    disks: Disks,
    digests: Digests,
    decoder: Decoder,
    known_level: u32,
    outbox: BTreeMap<u64, Vec<Outgoing>>,
    applied: u64,
    applied_term: u64,
    #[cfg(test)]
    pub(crate) mutation: Option<crate::simulation::Mutation>,
}

/// What a member is made of.
pub(crate) struct Parts {
    pub(crate) node: RawNode<Log>,
    pub(crate) config: StoreConfig,
    /// The highest feature level that this build knows.
    pub(crate) known_level: u32,
    pub(crate) chance: Chance,
    pub(crate) shared: Arc<Shared>,
    pub(crate) transport: Arc<dyn Transport>,
    /// `None` without a disk.
    pub(crate) writer: Option<StateWriter>,
    pub(crate) leadership: watch::Sender<Leadership>,
}

impl Member {
    /// A member that continues where its log and state are.
    pub(crate) fn new(parts: Parts) -> Member {
        let Parts {
            node,
            config,
            known_level,
            chance,
            shared,
            transport,
            writer,
            leadership,
        } = parts;
        let applied = shared.state.read().applied;
        let reads = Reads::new(
            config.member_id,
            chance.run(),
            config.election_ticks * 6,
            config.heartbeat_ticks * 2,
        );
        Member {
            forwards: Forwards::new(chance.run()),
            accepted: Accepted::default(),
            transfers: Transfers::default(),
            resealing: Resealing::default(),
            membership: Membership::default(),
            disks: Disks::default(),
            digests: Digests::default(),
            pending: VecDeque::new(),
            decoder: Decoder::new(Encryption::new(config.transformer.clone())),
            outbox: BTreeMap::new(),
            applied,
            applied_term: 0,
            node,
            config,
            known_level,
            chance,
            shared,
            transport,
            writer,
            leadership,
            reads,
            #[cfg(test)]
            mutation: None,
        }
    }

    /// A member that is the only voter leads at once, with everything acknowledged applied.
    pub(crate) fn begin(&mut self) -> Result<(), Failure> {
        let members = self.shared.state.read().conf_state.clone();
        if members.voters == [self.config.member_id] && members.voters_outgoing.is_empty() {
            self.node.campaign()?;
        }
        self.settle()
    }

    /// Takes in what has arrived. Whoever asked for the end is returned.
    pub(crate) fn take_in(
        &mut self,
        inputs: impl Iterator<Item = Input>,
    ) -> Option<oneshot::Sender<()>> {
        let mut end = None;
        let mut lanes = Lanes::default();
        for input in inputs {
            match input {
                Input::Propose(proposal) => {
                    let gathered = self.lane(&mut lanes, proposal.demand);
                    self.make_room(gathered, proposal.data.len());
                    gathered.own.push(Own {
                        position: gathered.count,
                        reply: proposal.reply,
                        submitted: proposal.submitted,
                    });
                    gathered.data.extend_from_slice(&proposal.data);
                    gathered.count += 1;
                }
                Input::Barrier(reply) => match self.left_behind() {
                    // It would wait for entries that are not taken.
                    Some(reason) => {
                        reply.send(Err(ProposeError::ReadOnly(reason.clone()))).ok();
                    }
                    None => self.reads.gather(reply),
                },
                Input::Packet(packet) => self.receive(*packet, &mut lanes),
                Input::Unreachable(member) => self.node.report_unreachable(member),
                Input::Change(change) => self.change_members(change),
                Input::Members(reply) => {
                    // The one who asked may have gone.
                    reply.send(self.members()).ok();
                }
                Input::RaiseLevel(level, reply) => self.raise_level(Own::new(reply), level),
                Input::Reseal(reply) => self.resealing.ask(reply),
                Input::Shutdown(done) => end = Some(done),
            }
        }
        self.propose_all(lanes);
        end
    }

    /// Where a transaction is gathered: all together while there is room, since one entry costs less than three.
    fn lane<'a>(&self, lanes: &'a mut Lanes, demand: Demand) -> &'a mut Gathered {
        let leads = self.node.raft.state == StateRole::Leader;
        let demand = match leads && self.disks.refusal().is_none() {
            true => Demand::default(),
            false => demand,
        };
        let lane = &mut lanes.0[demand as usize];
        lane.demand = demand;
        lane
    }

    fn propose_all(&mut self, lanes: Lanes) {
        for gathered in lanes.0 {
            self.propose(gathered);
        }
    }

    /// Keeps entries at their size.
    fn make_room(&mut self, gathered: &mut Gathered, bytes: usize) {
        if !gathered.data.is_empty() && gathered.data.len() + bytes > ENTRY_BYTES {
            let demand = gathered.demand;
            self.propose(std::mem::take(gathered));
            gathered.demand = demand;
        }
    }

    fn receive(&mut self, packet: Packet, lanes: &mut Lanes) {
        let Packet { from, body, .. } = packet;
        match body {
            Some(Body::Consensus(bytes)) => match decode_message(&bytes) {
                // A state is taken over only after its rows have arrived.
                Some(message) if message.get_msg_type() != MessageType::MsgSnapshot => {
                    if self.has_room_for(&message) {
                        self.step(message);
                    }
                    let forwarded = lanes.0.iter().any(|gathered| !gathered.tags.is_empty());
                    if self.node.raft.state != StateRole::Leader && forwarded {
                        // They were for the leader of a term that is over.
                        self.propose_all(std::mem::take(lanes));
                    }
                }
                _ => tracing::debug!(from, "a message of another member was malformed"),
            },
            Some(Body::Forward(forward)) => self.accept(from, forward, lanes),
            Some(Body::Refusal(refusal)) => self.refused(&refusal),
            Some(Body::Offer(_)) if self.is_short_of_room() => {}
            Some(Body::Offer(offer)) => self.offered(from, offer),
            Some(Body::Want(want)) => self.wanted(from, &want),
            Some(Body::Chunk(chunk)) => self.chunk_arrived(from, &chunk),
            Some(Body::Received(id)) => self.state_received(from, id),
            Some(Body::Shortage(shortage)) => self.shortage(from, &shortage),
            Some(Body::Digest(digest)) => self.compare(from, &digest),
            Some(Body::Fence(digest)) => self.fenced(from, &digest),
            None => tracing::debug!(from, "a packet of another member was of an unknown kind"),
        }
    }

    fn step(&mut self, message: Message) {
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "a message of another member was refused");
        }
    }

    fn propose(&mut self, mut gathered: Gathered) {
        if gathered.count == 0 {
            return;
        }
        if let Some(reason) = self.disks.refuse(gathered.demand, gathered.data.len()) {
            let refused = ProposeError::ReadOnly(reason);
            for own in gathered.own.drain(..) {
                self.shared.answer(own.reply, Err(refused.clone()));
            }
            if self.node.raft.state == StateRole::Leader {
                self.refuse_forwards(&gathered.tags, &refused);
                return;
            }
        }
        if self.node.raft.state != StateRole::Leader {
            self.forward(gathered);
            return;
        }
        let Gathered {
            data,
            demand,
            own,
            tags,
            ..
        } = gathered;
        // Nothing to say is no bytes at all.
        let context = prost::Message::encode_to_vec(&Tags {
            tags: tags.clone(),
            makes_room: demand != Demand::Adds,
            ..Tags::default()
        });
        if let Err(error) = self.node.propose(context, data) {
            tracing::debug!(%error, "proposals were dropped");
            let waiting = self.shared.waiting();
            for own in own {
                self.shared
                    .answer(own.reply, Err(ProposeError::Overloaded { waiting }));
            }
            self.refuse_forwards(&tags, &ProposeError::Overloaded { waiting });
            return;
        }
        self.pending.push_back(Pending {
            index: self.node.raft.raft_log.last_index(),
            term: self.node.raft.term,
            own,
        });
    }

    fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    fn leads(&self) -> bool {
        // Only what was committed in its own term tells a leader what is committed at all.
        self.node.raft.state == StateRole::Leader && self.applied_term == self.node.raft.term
    }

    /// Time passes.
    pub(crate) fn tick(&mut self) {
        let drawn = self
            .chance
            .election_ticks(self.node.raft.term, self.config.election_ticks);
        // Those with room go first.
        let ticks = match self.is_short_of_room() {
            true => self.config.election_ticks * 2 - 1,
            false => drawn,
        };
        self.node.raft.set_randomized_election_timeout(ticks);
        self.tick_room();
        self.tick_digests();
        self.tick_membership();
        self.node.tick();
        self.reads.tick(self.leader());
        self.tick_forwards();
        self.tick_transfers();
    }

    /// Lets go of the tables that nobody pages through any more.
    pub(crate) fn expire_pages(&self) {
        self.shared.expire_pages();
    }

    fn ask_for_reads(&mut self) {
        let leads = self.node.raft.state == StateRole::Leader;
        if (leads && self.leads() || !leads && self.leader().is_some())
            && let Some(context) = self.reads.ask()
        {
            self.node.read_index(context);
        }
    }

    /// Persists, sends and applies until consensus has nothing more to say. After a failure the member must not be
    /// used any more, except to [`Member::stop`] it.
    pub(crate) fn settle(&mut self) -> Result<(), Failure> {
        self.check_digest()?;
        self.ask_for_reads();
        while self.node.has_ready() {
            self.round()?;
        }
        self.send();
        self.forget_received();
        self.report_leadership();
        let revision = self.shared.state.read().revision;
        self.reads.answer(self.applied, revision);
        self.transfers.check()?;
        self.shrink_log()?;
        self.reseal()?;
        match self.writer.as_ref().and_then(StateWriter::failure) {
            Some(error) => Err(Failure::Disk(error.clone())),
            None => Ok(()),
        }
    }

    fn round(&mut self) -> Result<(), Failure> {
        let mut ready = self.node.ready();
        // A leader's appends leave before its own disk has them: followers write at the same time.
        self.post_messages(ready.take_messages());
        self.send();
        if !ready.snapshot().is_empty() {
            self.install(ready.snapshot(), ready.hs().cloned())?;
        }
        for read in ready.take_read_states() {
            self.reads.confirm(&read.request_ctx, read.index);
        }
        self.apply(ready.take_committed_entries())?;
        self.leave_if_removed();
        let (entries, must_sync) = (ready.take_entries(), ready.must_sync());
        let hard_state = ready.hs().cloned();
        self.node
            .mut_store()
            .append(entries, hard_state.as_ref(), must_sync)?;
        self.post_messages(ready.take_persisted_messages());
        let mut light = self.node.advance_append(ready);
        self.post_messages(light.take_messages());
        self.apply(light.take_committed_entries())?;
        self.leave_if_removed();
        self.node.advance_apply_to(self.applied);
        Ok(())
    }

    fn post_messages(&mut self, messages: Vec<Message>) {
        for message in messages {
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.offer(message);
                continue;
            }
            match protobuf::Message::write_to_bytes(&message) {
                Ok(bytes) => self.post(message.to, Body::Consensus(bytes.into())),
                Err(error) => tracing::error!(%error, "a message cannot be encoded"),
            }
        }
    }

    fn post(&mut self, to: u64, body: Body) {
        let snapshot = matches!(body, Body::Chunk(_));
        let packet = Packet {
            from: self.config.member_id,
            to,
            body: Some(body),
        };
        self.outbox.entry(to).or_default().push(Outgoing {
            bytes: Bytes::from(prost::Message::encode_to_vec(&packet)),
            snapshot,
        });
    }

    fn send(&mut self) {
        for (member, messages) in std::mem::take(&mut self.outbox) {
            self.transport.send(member, messages);
        }
    }

    fn report_leadership(&mut self) {
        let (term, role) = (self.node.raft.term, self.node.raft.state);
        let lost = |pending: &Pending| role != StateRole::Leader || pending.term != term;
        while let Some(pending) = self.next_pending(lost) {
            self.refuse(pending, &ProposeError::Unknown);
        }
        if role == StateRole::Leader {
            self.accepted.lead(term);
        }
        self.report_changes();
        let now = Leadership {
            term: Term(term),
            is_leader: self.leads(),
            leader: self.leader(),
        };
        let changed = self.leadership.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
        if changed {
            tracing::info!(term, leader = ?now.leader, is_leader = now.is_leader, "leadership");
        }
    }

    /// Drops log entries that neither this member nor a follower at a normal distance needs.
    fn shrink_log(&mut self) -> Result<(), Failure> {
        let written = self.written();
        let (start, keep) = (self.node.store().start(), self.config.log_entries);
        if self.node.store().bytes() > self.config.log_bytes && written > start {
            self.node.mut_store().truncate(written)?;
        } else if written > start + 2 * keep + 1 {
            self.node.mut_store().truncate(written - keep)?;
        }
        Ok(())
    }

    /// Whether somebody else could lead.
    pub(crate) fn can_hand_over(&self) -> bool {
        self.node.raft.state == StateRole::Leader && self.best_follower().is_some()
    }

    fn best_follower(&self) -> Option<u64> {
        let voters = self.node.raft.prs().conf().voters();
        let progress = self.node.raft.prs().iter();
        progress
            .filter(|(id, _)| {
                **id != self.config.member_id
                    && voters.contains(**id)
                    && self.active(**id)
                    && !self.disks.is_short(**id)
            })
            .max_by_key(|(id, progress)| (progress.matched, **id))
            .map(|(id, _)| *id)
    }

    /// Asks the voter that is furthest to lead instead.
    pub(crate) fn hand_over(&mut self) {
        if self.node.raft.state == StateRole::Leader
            && let Some(follower) = self.best_follower()
        {
            self.node.transfer_leader(follower);
        }
    }

    /// Answers everybody, the inputs included, writes everything, and lets go of the files.
    pub(crate) fn stop(mut self, reason: &str, inputs: impl Iterator<Item = Input>) {
        self.shared.stop(reason);
        let stopped = ProposeError::Stopped(reason.to_owned());
        for input in inputs {
            match input {
                Input::Propose(proposal) => {
                    self.shared.answer(proposal.reply, Err(stopped.clone()));
                }
                Input::RaiseLevel(_, reply) => self.shared.answer(reply, Err(stopped.clone())),
                Input::Barrier(reply) => self.reads.gather(reply),
                Input::Shutdown(done) => {
                    done.send(()).ok();
                }
                Input::Change(change) => change.refuse_stopped(reason),
                Input::Packet(_) | Input::Unreachable(_) | Input::Members(_) | Input::Reseal(_) => {
                }
            }
        }
        while let Some(pending) = self.pending.pop_front() {
            self.refuse(pending, &stopped);
        }
        for own in self.forwards.drain() {
            self.shared.answer(own.reply, Err(stopped.clone()));
        }
        self.membership.stop(reason);
        self.reads.stop(reason);
        self.leadership
            .send_modify(|leadership| leadership.is_leader = false);
        self.shared.hub.close();
        if let Some(writer) = self.writer.take() {
            writer.finish();
        }
        self.node.store().sync();
    }
}

pub(crate) fn decode_message(bytes: &[u8]) -> Option<Message> {
    let mut message = Message::default();
    protobuf::Message::merge_from_bytes(&mut message, bytes).ok()?;
    let known = MessageType::from_i32(message.msg_type).is_some()
        && message
            .entries
            .iter()
            .all(|entry| raft::eraftpb::EntryType::from_i32(entry.entry_type).is_some());
    known.then_some(message)
}
