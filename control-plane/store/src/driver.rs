//! The thread that owns consensus: gathers proposals, persists, sends, applies, answers.
//!
//! One round: take what has arrived, propose it as few log entries, write those with one fdatasync, apply what is
//! committed, answer. What arrives meanwhile forms the next round, so batches grow with the load.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use raft::eraftpb::{
    ConfChange, ConfChangeV2, Entry as LogEntry, EntryType, Message, MessageType, Snapshot,
};
use raft::{RawNode, SnapshotStatus, StateRole};
use tokio::sync::{oneshot, watch};

use crate::config::StoreConfig;
use crate::disk::Applied;
use crate::log::Log;
use crate::metrics::METRICS;
use crate::persist::Persister;
use crate::reads::Reads;
use crate::record::Decoder;
use crate::shared::Shared;
use crate::state::State;
use crate::transport::{Outgoing, Transport};
use crate::types::{Event, Leadership, ProposeError, Revision, Term};

/// Transactions are gathered into log entries up to this size.
const ENTRY_BYTES: usize = 256 << 10;
/// What one round takes in at most.
const ROUND_INPUTS: usize = 4_096;

type Reply = oneshot::Sender<Result<Revision, ProposeError>>;

/// What reaches the driver.
pub(crate) enum Input {
    /// An encoded transaction.
    Propose(Proposal),
    /// Answered once this member has applied everything acknowledged so far.
    Barrier(Reply),
    /// From another member.
    Message(Box<Message>),
    /// A member cannot be reached.
    Unreachable(u64),
    /// How a snapshot message to a member fared.
    SnapshotReport { to: u64, delivered: bool },
    /// Hand leadership over, write everything, end.
    Shutdown(oneshot::Sender<()>),
}

/// A transaction and who waits for it.
pub(crate) struct Proposal {
    pub(crate) data: Vec<u8>,
    pub(crate) reply: Reply,
    pub(crate) submitted: Instant,
}

struct Pending {
    index: u64,
    term: u64,
    proposals: Vec<(Reply, Instant)>,
}

/// Why the driver cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("writing to the data directory failed: {0}")]
    Disk(#[from] fjall::Error),
    #[error("writing the state to the data directory failed: {0}")]
    State(String),
    #[error("consensus failed: {0}")]
    Consensus(#[from] raft::Error),
    #[error("log entry {index} cannot be applied: {reason}")]
    Entry { index: u64, reason: String },
}

/// Owns consensus and everything it writes.
pub(crate) struct Driver {
    node: RawNode<Log>,
    config: StoreConfig,
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    persister: Option<Persister>,
    leadership: watch::Sender<Leadership>,
    pending: VecDeque<Pending>,
    reads: Reads,
    decoder: Decoder,
    applied: u64,
    applied_term: u64,
}

impl Driver {
    pub(crate) fn new(
        node: RawNode<Log>,
        config: StoreConfig,
        shared: Arc<Shared>,
        transport: Arc<dyn Transport>,
        persister: Option<Persister>,
        leadership: watch::Sender<Leadership>,
    ) -> Driver {
        let applied = shared.state.read().applied;
        let reads = Reads::new(
            config.member_id,
            config.election_ticks * 6,
            config.heartbeat_ticks * 2,
        );
        Driver {
            node,
            config,
            shared,
            transport,
            persister,
            leadership,
            pending: VecDeque::new(),
            reads,
            decoder: Decoder::default(),
            applied,
            applied_term: 0,
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

    /// Serves until shut down, dropped by every handle, or failed.
    pub(crate) fn run(mut self, inputs: &Receiver<Input>) {
        let mut done = None;
        let reason = match self.serve(inputs, &mut done) {
            Ok(()) => "it was shut down".to_owned(),
            Err(failure) => {
                tracing::error!(error = %failure, "the store has stopped");
                failure.to_string()
            }
        };
        self.stop(&reason, inputs);
        if let Some(done) = done {
            // The one who asked may have gone.
            done.send(()).ok();
        }
    }

    fn serve(
        &mut self,
        inputs: &Receiver<Input>,
        done: &mut Option<oneshot::Sender<()>>,
    ) -> Result<(), Failure> {
        let mut next_tick = Instant::now() + self.config.tick;
        let mut patience = 0;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let first = match inputs.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let gathered = first.into_iter().chain(inputs.try_iter());
            if let Some(end) = self.take_in(gathered.take(ROUND_INPUTS)) {
                *done = Some(end);
                patience = self.config.election_ticks;
                self.hand_over();
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + self.config.tick;
                self.tick();
                patience = patience.saturating_sub(1);
            }
            self.ask_for_reads();
            self.settle()?;
            self.shrink_log()?;
            if let Some(failure) = self.persister.as_ref().and_then(Persister::failure) {
                return Err(Failure::State(failure.to_owned()));
            }
            if done.is_some() && (patience == 0 || !self.can_hand_over()) {
                return Ok(());
            }
        }
    }

    fn take_in(&mut self, inputs: impl Iterator<Item = Input>) -> Option<oneshot::Sender<()>> {
        let mut end = None;
        let mut data = Vec::new();
        let mut proposals = Vec::new();
        for input in inputs {
            match input {
                Input::Propose(proposal) => {
                    if !data.is_empty() && data.len() + proposal.data.len() > ENTRY_BYTES {
                        self.propose(std::mem::take(&mut data), std::mem::take(&mut proposals));
                    }
                    data.extend_from_slice(&proposal.data);
                    proposals.push((proposal.reply, proposal.submitted));
                }
                Input::Barrier(reply) => self.reads.gather(reply),
                Input::Message(message) => {
                    if let Err(error) = self.node.step(*message) {
                        tracing::debug!(%error, "a message of another member was refused");
                    }
                }
                Input::Unreachable(member) => self.node.report_unreachable(member),
                Input::SnapshotReport { to, delivered } => {
                    let status = if delivered {
                        SnapshotStatus::Finish
                    } else {
                        SnapshotStatus::Failure
                    };
                    self.node.report_snapshot(to, status);
                }
                Input::Shutdown(done) => end = Some(done),
            }
        }
        if !proposals.is_empty() {
            self.propose(data, proposals);
        }
        end
    }

    fn propose(&mut self, data: Vec<u8>, proposals: Vec<(Reply, Instant)>) {
        let refusal = if self.node.raft.state != StateRole::Leader {
            let leader = self.leader();
            Some(ProposeError::NotLeader { leader })
        } else if let Err(error) = self.node.propose(Vec::new(), data) {
            tracing::debug!(%error, "proposals were dropped");
            Some(ProposeError::Overloaded {
                waiting: self.shared.waiting(),
            })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            for (reply, _) in proposals {
                self.shared.answer(reply, Err(refusal.clone()));
            }
            return;
        }
        self.pending.push_back(Pending {
            index: self.node.raft.raft_log.last_index(),
            term: self.node.raft.term,
            proposals,
        });
    }

    fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|id| *id != raft::INVALID_ID)
    }

    fn leads(&self) -> bool {
        // Only what was committed in its own term tells a leader what is committed at all.
        self.node.raft.state == StateRole::Leader && self.applied_term == self.node.raft.term
    }

    fn tick(&mut self) {
        self.node.tick();
        self.reads.tick(self.leader());
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

    /// Persists, sends and applies until consensus has nothing more to say.
    fn settle(&mut self) -> Result<(), Failure> {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            self.send(ready.take_messages());
            if !ready.snapshot().is_empty() {
                self.install(ready.snapshot(), ready.hs().cloned())?;
            }
            for read in ready.take_read_states() {
                self.reads.confirm(&read.request_ctx, read.index);
            }
            self.apply(ready.take_committed_entries())?;
            let (entries, must_sync) = (ready.take_entries(), ready.must_sync());
            let hard_state = ready.hs().cloned();
            self.node
                .mut_store()
                .append(entries, hard_state.as_ref(), must_sync)?;
            self.send(ready.take_persisted_messages());
            let mut light = self.node.advance_append(ready);
            self.send(light.take_messages());
            self.apply(light.take_committed_entries())?;
            self.node.advance_apply_to(self.applied);
        }
        self.report_leadership();
        let revision = self.shared.state.read().revision;
        self.reads.answer(self.applied, revision);
        Ok(())
    }

    fn send(&self, messages: Vec<Message>) {
        let mut by_member: HashMap<u64, Vec<Outgoing>> = HashMap::new();
        for message in messages {
            let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
            match protobuf::Message::write_to_bytes(&message) {
                Ok(bytes) => by_member.entry(message.to).or_default().push(Outgoing {
                    bytes: bytes.into(),
                    snapshot,
                }),
                Err(error) => tracing::error!(%error, "a message cannot be encoded"),
            }
        }
        for (member, messages) in by_member {
            self.transport.send(member, messages);
        }
    }

    fn apply(&mut self, entries: Vec<LogEntry>) -> Result<(), Failure> {
        for entry in entries {
            match entry.get_entry_type() {
                EntryType::EntryNormal => self.apply_transactions(&entry)?,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_members(&entry)?;
                }
            }
            self.applied = entry.index;
            self.applied_term = entry.term;
        }
        METRICS.applied.set(self.applied as i64);
        Ok(())
    }

    fn apply_transactions(&mut self, entry: &LogEntry) -> Result<(), Failure> {
        let transactions =
            self.decoder
                .transactions(&entry.data)
                .map_err(|error| Failure::Entry {
                    index: entry.index,
                    reason: error.to_string(),
                })?;
        let mut results = Vec::with_capacity(transactions.len());
        let mut events: Vec<Event> = Vec::with_capacity(transactions.len());
        let mut state = self.shared.state.write();
        for transaction in transactions {
            let result = state.apply(transaction, Term(entry.term)).map(|changes| {
                events.extend(changes);
                state.revision
            });
            results.push(result);
        }
        state.remember(&events, self.shared.history);
        state.applied = entry.index;
        let revision = state.revision;
        let conf_state = self.persister.is_some().then(|| state.conf_state.clone());
        drop(state);
        self.answer(entry, results);
        if !events.is_empty() {
            METRICS.revision.set(revision.0 as i64);
            self.shared.hub.publish(&events, revision);
        }
        if let (Some(persister), Some(conf_state)) = (&self.persister, conf_state) {
            let row = |event: Event| (event.key, (!event.deleted).then_some(event.entry));
            persister.write(Applied {
                index: entry.index,
                revision,
                conf_state,
                rows: events.into_iter().map(row).collect(),
            });
        }
        Ok(())
    }

    fn answer(&mut self, entry: &LogEntry, results: Vec<Result<Revision, ProposeError>>) {
        while let Some(pending) = self.next_pending(|first| first.index <= entry.index) {
            if (pending.index, pending.term) != (entry.index, entry.term) {
                self.refuse(pending, &ProposeError::Unknown);
                continue;
            }
            for ((reply, submitted), result) in pending.proposals.into_iter().zip(results) {
                METRICS.proposal.observe(submitted.elapsed().as_secs_f64());
                self.shared.answer(reply, result);
            }
            return;
        }
    }

    fn next_pending(&mut self, wanted: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let next = self.pending.front().is_some_and(wanted);
        next.then(|| self.pending.pop_front()).flatten()
    }

    fn refuse(&self, pending: Pending, error: &ProposeError) {
        for (reply, _) in pending.proposals {
            self.shared.answer(reply, Err(error.clone()));
        }
    }

    fn apply_members(&mut self, entry: &LogEntry) -> Result<(), Failure> {
        let malformed = |_| Failure::Entry {
            index: entry.index,
            reason: "its membership change cannot be decoded".to_owned(),
        };
        let conf_state = if entry.get_entry_type() == EntryType::EntryConfChange {
            let mut change = ConfChange::default();
            protobuf::Message::merge_from_bytes(&mut change, &entry.data).map_err(malformed)?;
            self.node.apply_conf_change(&change)?
        } else {
            let mut change = ConfChangeV2::default();
            protobuf::Message::merge_from_bytes(&mut change, &entry.data).map_err(malformed)?;
            self.node.apply_conf_change(&change)?
        };
        let mut state = self.shared.state.write();
        state.conf_state = conf_state.clone();
        state.applied = entry.index;
        let revision = state.revision;
        drop(state);
        if let Some(persister) = &self.persister {
            persister.write(Applied {
                index: entry.index,
                revision,
                conf_state,
                rows: HashMap::new(),
            });
        }
        Ok(())
    }

    /// Takes over the state that the leader sent, because it no longer has the entries this member lacks.
    fn install(
        &mut self,
        snapshot: &Snapshot,
        hard_state: Option<raft::eraftpb::HardState>,
    ) -> Result<(), Failure> {
        let metadata = snapshot.get_metadata();
        let mut state = State::decode(&snapshot.data).map_err(|error| Failure::Entry {
            index: metadata.index,
            reason: format!("the received state: {error}"),
        })?;
        state.applied = metadata.index;
        state.conf_state = metadata.get_conf_state().clone();
        tracing::info!(index = metadata.index, revision = %state.revision, "took over the leader's state");
        if let Some(persister) = &self.persister {
            // An older run must not be written over it.
            persister.flush();
        }
        let start = (metadata.index, metadata.term);
        self.node
            .mut_store()
            .install(&state, start, hard_state.as_ref())?;
        let revision = state.revision;
        *self.shared.state.write() = state;
        self.applied = metadata.index;
        self.applied_term = metadata.term;
        self.shared.hub.jump(revision);
        Ok(())
    }

    fn report_leadership(&mut self) {
        let (term, role) = (self.node.raft.term, self.node.raft.state);
        let lost = |pending: &Pending| role != StateRole::Leader || pending.term != term;
        while let Some(pending) = self.next_pending(lost) {
            self.refuse(pending, &ProposeError::Unknown);
        }
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
        let written = match &self.persister {
            Some(persister) => persister.persisted().min(self.applied),
            None => self.applied,
        };
        let (start, keep) = (self.node.store().start(), self.config.log_entries);
        if self.node.store().bytes() > self.config.log_bytes && written > start {
            self.node.mut_store().truncate(written)?;
        } else if written > start + 2 * keep + 1 {
            self.node.mut_store().truncate(written - keep)?;
        }
        Ok(())
    }

    /// Whether somebody else could lead.
    fn can_hand_over(&self) -> bool {
        self.node.raft.state == StateRole::Leader && self.best_follower().is_some()
    }

    fn best_follower(&self) -> Option<u64> {
        let voters = self.node.raft.prs().conf().voters();
        let progress = self.node.raft.prs().iter();
        progress
            .filter(|(id, progress)| {
                **id != self.config.member_id && voters.contains(**id) && progress.recent_active
            })
            .max_by_key(|(_, progress)| progress.matched)
            .map(|(id, _)| *id)
    }

    fn hand_over(&mut self) {
        if self.node.raft.state == StateRole::Leader
            && let Some(follower) = self.best_follower()
        {
            self.node.transfer_leader(follower);
        }
    }

    /// Answers everybody, writes everything, and lets go of the files.
    fn stop(mut self, reason: &str, inputs: &Receiver<Input>) {
        self.shared.stop(reason);
        let stopped = ProposeError::Stopped(reason.to_owned());
        while let Some(pending) = self.pending.pop_front() {
            self.refuse(pending, &stopped);
        }
        for input in inputs.try_iter() {
            match input {
                Input::Propose(proposal) => {
                    self.shared.answer(proposal.reply, Err(stopped.clone()))
                }
                Input::Barrier(reply) => self.reads.gather(reply),
                Input::Shutdown(done) => {
                    done.send(()).ok();
                }
                Input::Message(_) | Input::Unreachable(_) | Input::SnapshotReport { .. } => {}
            }
        }
        self.reads.stop(reason);
        self.leadership
            .send_modify(|leadership| leadership.is_leader = false);
        self.shared.hub.close();
        if let Some(persister) = self.persister.take() {
            persister.finish();
        }
        self.node.store().sync();
    }
}
