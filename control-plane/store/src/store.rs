//! The handle others hold.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use parking_lot::RwLock;
use raft::RawNode;
use raft::eraftpb::{ConfState, EntryType, HardState, Message, MessageType};
use tokio::sync::{oneshot, watch};

use crate::config::{OpenError, StoreConfig};
use crate::disk::{Disk, Recovered};
use crate::driver::{Driver, Input, Proposal};
use crate::log::Log;
use crate::logger;
use crate::persist::Persister;
use crate::record::encode_transaction;
use crate::shared::Shared;
use crate::state::{HistoryLimits, State};
use crate::table::TableSnapshot;
use crate::transport::{NoPeers, Transport};
use crate::types::{
    Entry, Key, Leadership, ProposeError, Revision, Table, Transaction, WatchError,
};
use crate::watch::Watch;

/// The object store; cheap to clone. It stops when it is shut down, or when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    inputs: Sender<Input>,
    leadership: watch::Receiver<Leadership>,
    max_pending: usize,
    watch_buffer: usize,
    member_id: u64,
}

/// A message for [`Store::deliver`] that is none.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// The bytes are not a message.
    #[error("the bytes are not a message between members of a store")]
    Malformed,
    /// It is for somebody else.
    #[error("the message is for member {to}, but this is member {member}")]
    Misdirected {
        /// Whom it is for.
        to: u64,
        /// Who this is.
        member: u64,
    },
}

impl Store {
    /// Opens the member's data, recovers what was acknowledged, and starts to take part in consensus. A member that
    /// is the only voter leads when this returns; others find out through [`Store::leadership`].
    pub async fn open(
        config: StoreConfig,
        transport: Arc<dyn Transport>,
    ) -> Result<Store, OpenError> {
        let opening = move || {
            config.check()?;
            let disk = Disk::open(&config.data_dir)?;
            Store::start(config, transport, Some(disk))
        };
        match tokio::task::spawn_blocking(opening).await {
            Ok(opened) => opened,
            Err(stopped) => Err(OpenError::Thread(std::io::Error::other(stopped))),
        }
    }

    /// A store of this process's memory alone, for tests: nothing survives it, and it is always its own leader. It
    /// runs on the same code as the real one, without files.
    pub fn ephemeral() -> Store {
        Store::in_memory(StoreConfig::default(), Arc::new(NoPeers))
            .expect("a store without files needs nothing but a thread")
    }

    /// Like [`Store::open`], but nothing is written: for tests of several members, or of narrow bounds.
    pub fn in_memory(
        config: StoreConfig,
        transport: Arc<dyn Transport>,
    ) -> Result<Store, OpenError> {
        config.check()?;
        Store::start(config, transport, None)
    }

    fn start(
        config: StoreConfig,
        transport: Arc<dyn Transport>,
        disk: Option<Disk>,
    ) -> Result<Store, OpenError> {
        let begun = Instant::now();
        let recovered = recover(&config, disk.as_ref())?;
        let history = HistoryLimits {
            events: config.event_history,
            bytes: config.event_history_bytes,
        };
        let applied = recovered.state.applied;
        let conf_state = recovered.state.conf_state.clone();
        let shared = Arc::new(Shared::new(recovered.state, history));
        let log = Log::new(
            disk.clone(),
            recovered.start,
            recovered.entries,
            recovered.hard_state,
            conf_state,
            Arc::clone(&shared.state),
        );
        let consensus = |reason: String| OpenError::Consensus {
            path: config.data_dir.clone(),
            reason,
        };
        let node = RawNode::new(&raft_config(&config, applied), log, &logger::bridge())
            .map_err(|error| consensus(error.to_string()))?;
        let persister = disk
            .map(|disk| Persister::start(disk, applied))
            .transpose()?;
        let (sender, leadership) = watch::channel(Leadership::default());
        let mut driver = Driver::new(
            node,
            config.clone(),
            Arc::clone(&shared),
            transport,
            persister,
            sender,
        );
        driver
            .begin()
            .map_err(|failure| consensus(failure.to_string()))?;
        let (inputs, received) = channel();
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || driver.run(&received))
            .map_err(OpenError::Thread)?;
        let store = Store {
            inner: Arc::new(Inner {
                shared,
                inputs,
                leadership,
                max_pending: config.max_pending,
                watch_buffer: config.watch_buffer,
                member_id: config.member_id,
            }),
        };
        tracing::info!(
            revision = %store.revision(),
            elapsed = ?begun.elapsed(),
            "the store is open"
        );
        Ok(store)
    }

    /// Applies the transaction when all of its guards hold, and answers once it is on the disks of a majority and
    /// readers of this member see it.
    pub async fn propose(&self, transaction: Transaction) -> Result<Revision, ProposeError> {
        let inner = &self.inner;
        inner.shared.admit(inner.max_pending)?;
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal {
            data: encode_transaction(&transaction),
            reply,
            submitted: Instant::now(),
        };
        if let Err(unsent) = inner.inputs.send(Input::Propose(proposal))
            && let Input::Propose(proposal) = unsent.0
        {
            let stopped = Err(inner.shared.stopped());
            inner.shared.answer(proposal.reply, stopped);
        }
        answer.await.unwrap_or_else(|_| Err(inner.shared.stopped()))
    }

    /// Waits until this member has applied everything that was acknowledged anywhere before the call: reads after it
    /// are linearizable. Works on every member that can reach the leader.
    pub async fn read_barrier(&self) -> Result<Revision, ProposeError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || self.inner.shared.stopped();
        let sent = self.inner.inputs.send(Input::Barrier(reply));
        sent.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The last applied revision.
    pub fn revision(&self) -> Revision {
        self.inner.shared.state.read().revision
    }

    /// Watches can start at this revision or later.
    pub fn compacted(&self) -> Revision {
        self.inner.shared.state.read().compacted
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.state().read().get(key).cloned()
    }

    /// A table as it is now, in O(1).
    pub fn snapshot(&self, table: &Table) -> TableSnapshot {
        self.state().read().snapshot(table)
    }

    /// A table as it was at a revision: any one since [`Store::compacted`], and older ones while somebody pages
    /// through them. `None` when that is forgotten or yet to come.
    pub fn snapshot_at(&self, table: &Table, revision: Revision) -> Option<TableSnapshot> {
        self.inner.shared.snapshot_at(table, revision)
    }

    /// Every event of the tables with a revision greater than `from`, in order.
    pub fn watch(&self, tables: &[Table], from: Revision) -> Result<Watch, WatchError> {
        let hub = &self.inner.shared.hub;
        let mut watchers = hub.lock();
        let state = self.state().read();
        if from < state.compacted {
            return Err(WatchError::Compacted(state.compacted));
        }
        let start = state
            .history
            .partition_point(|event| event.revision <= from);
        let backlog = state
            .history
            .range(start..)
            .filter(|event| tables.contains(&event.key.table))
            .cloned()
            .collect();
        let after = state.revision.max(from);
        drop(state);
        let capacity = self.inner.watch_buffer;
        Ok(hub.join(&mut watchers, tables, backlog, after, capacity))
    }

    /// Who leads, and from when on this member does.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Takes in a message that another member's [`Transport`] sent.
    pub fn deliver(&self, bytes: &[u8]) -> Result<(), DeliverError> {
        let mut message = Message::default();
        protobuf::Message::merge_from_bytes(&mut message, bytes)
            .map_err(|_| DeliverError::Malformed)?;
        let known = MessageType::from_i32(message.msg_type).is_some()
            && message
                .entries
                .iter()
                .all(|entry| EntryType::from_i32(entry.entry_type).is_some());
        if !known {
            return Err(DeliverError::Malformed);
        }
        let member = self.inner.member_id;
        if message.to != member {
            return Err(DeliverError::Misdirected {
                to: message.to,
                member,
            });
        }
        self.input(Input::Message(Box::new(message)));
        Ok(())
    }

    /// Tells consensus that a member cannot be reached, so that it sends less until it can.
    pub fn report_unreachable(&self, member: u64) {
        self.input(Input::Unreachable(member));
    }

    /// Tells consensus how a message marked as a snapshot fared.
    pub fn report_snapshot(&self, member: u64, delivered: bool) {
        self.input(Input::SnapshotReport {
            to: member,
            delivered,
        });
    }

    /// Hands leadership over when it can, writes everything, and closes the files: afterwards the directory can be
    /// opened again. Proposals and watches end.
    pub async fn shutdown(&self) {
        let (done, wait) = oneshot::channel();
        if self.inner.inputs.send(Input::Shutdown(done)).is_ok() {
            // An error means that it has stopped already.
            wait.await.ok();
        }
    }

    fn input(&self, input: Input) {
        // After a stop there is nobody left to tell.
        self.inner.inputs.send(input).ok();
    }

    fn state(&self) -> &RwLock<State> {
        &self.inner.shared.state
    }
}

fn raft_config(config: &StoreConfig, applied: u64) -> raft::Config {
    raft::Config {
        id: config.member_id,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        max_size_per_msg: 1 << 20,
        max_uncommitted_size: 64 << 20,
        max_committed_size_per_ready: 8 << 20,
        check_quorum: true,
        pre_vote: true,
        ..raft::Config::default()
    }
}

/// What the disk holds, or a new member's beginning.
fn recover(config: &StoreConfig, disk: Option<&Disk>) -> Result<Recovered, OpenError> {
    if let Some(found) = disk.map(Disk::recover).transpose()?.flatten() {
        return Ok(found);
    }
    let mut hard_state = HardState::default();
    let mut state = State::default();
    let mut start = (0, 0);
    if !config.voters.is_empty() {
        // The founding members begin as if they had shared a first entry: whoever joins later gets a snapshot, and
        // with it the membership that no log entry tells.
        start = (1, 1);
        (hard_state.term, hard_state.commit, state.applied) = (1, 1, 1);
        state.conf_state = ConfState::from((config.voters.clone(), Vec::new()));
    }
    if let Some(disk) = disk {
        disk.bootstrap(start, &hard_state, &state.conf_state)
            .map_err(|source| OpenError::Engine {
                path: disk.path().to_owned(),
                source,
            })?;
    }
    Ok(Recovered {
        hard_state,
        start,
        entries: Vec::new(),
        state,
    })
}

#[cfg(test)]
mod tests;
