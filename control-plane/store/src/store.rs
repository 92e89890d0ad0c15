//! The handle others hold.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use parking_lot::RwLock;
use prost::Message;
use tokio::sync::{oneshot, watch};

use crate::backup::Backup;
use crate::bootstrap::Bootstrapped;
use crate::budget::Budget;
use crate::chance::Chance;
use crate::config::{OpenError, StoreConfig};
use crate::disk::fjall::FjallEngine;
use crate::disk::{StateWriter, Volume};
use crate::driver;
use crate::encryption::Encryption;
use crate::level::FEATURE_LEVEL;
use crate::member::membership::{Change, ChangeInput, MemberStatus, MembershipError};
use crate::member::{Input, Proposal};
use crate::packet::Packet;
use crate::record::encode_transaction;
use crate::shared::Shared;
use crate::state::State;
use crate::table::TableSnapshot;
use crate::transport::{NoPeers, Transport};
use crate::types::{
    Demand, Entry, Key, Leadership, ProposeError, Revision, Room, Table, Transaction, WatchError,
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
    encryption: Encryption,
    known_level: u32,
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

/// Why [`Store::raise_level`] did not raise the level, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// This build would stop at it.
    #[error(
        "feature level {level} is not known to this gantry, which knows up to {known}: upgrade this server first"
    )]
    Unknown {
        /// What was wanted.
        level: u32,
        /// What this build knows.
        known: u32,
    },
    /// It was not proposed, or its outcome is unknown.
    #[error("the feature level was not raised: {0}")]
    Propose(#[from] ProposeError),
}

/// [`Store::reseal`] did not finish.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// The store has stopped.
    #[error(
        "not everything was sealed anew, since the store has stopped ({0}): start this member again, then repeat it"
    )]
    Stopped(String),
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
            let engine = Arc::new(FjallEngine::open(&config.data_dir, config.begun)?);
            let volume = Volume::new(
                &config.data_dir,
                engine,
                Encryption::new(config.transformer.clone()),
            );
            Store::start(config, transport, Some(volume), FEATURE_LEVEL)
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
        Store::start(config, transport, None, FEATURE_LEVEL)
    }

    /// Starts a member whose build knows feature levels up to `known`.
    pub(crate) fn start(
        config: StoreConfig,
        transport: Arc<dyn Transport>,
        volume: Option<Volume>,
        known: u32,
    ) -> Result<Store, OpenError> {
        let begun = Instant::now();
        let writer = |persisted| {
            let writer = volume.clone();
            writer
                .map(|volume| StateWriter::thread(volume, persisted))
                .transpose()
        };
        let bootstrapped = Bootstrapped::open(
            &config,
            volume.clone(),
            known,
            Chance::fresh(),
            transport,
            writer,
        )?;
        let mut member = bootstrapped.member;
        member.begin().map_err(|failure| OpenError::Consensus {
            path: config.data_dir.clone(),
            reason: failure.to_string(),
        })?;
        let (inputs, received) = channel();
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                gantry_tasks::or_abort("the store's member", || {
                    driver::run(member, &received, config.tick, config.election_ticks)
                })
            })
            .map_err(OpenError::Thread)?;
        let store = Store {
            inner: Arc::new(Inner {
                shared: bootstrapped.shared,
                inputs,
                leadership: bootstrapped.leadership,
                max_pending: config.max_pending,
                watch_buffer: config.watch_buffer,
                member_id: config.member_id,
                encryption: Encryption::new(config.transformer),
                known_level: known,
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
        self.propose_for(transaction, Demand::default()).await
    }

    /// Like [`Store::propose`], for a transaction that may be taken where others are refused for want of room.
    pub async fn propose_for(
        &self,
        transaction: Transaction,
        demand: Demand,
    ) -> Result<Revision, ProposeError> {
        let inner = &self.inner;
        inner.shared.admit(inner.max_pending)?;
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal {
            data: encode_transaction(&transaction, &inner.encryption),
            demand,
            reply,
            submitted: Instant::now(),
        };
        self.submit(Input::Propose(proposal));
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
        let inner = &self.inner;
        inner.shared.watch(tables, from, inner.watch_buffer, None)
    }

    /// As [`Store::watch`], for a client: what waits for it is counted in a budget, and is the less the less is left.
    pub fn watch_within(
        &self,
        tables: &[Table],
        from: Revision,
        budget: Arc<Budget>,
    ) -> Result<Watch, WatchError> {
        let (inner, budget) = (&self.inner, Some(budget));
        inner.shared.watch(tables, from, inner.watch_buffer, budget)
    }

    /// Which members lack room on their disks, as far as this one knows.
    pub fn room(&self) -> watch::Receiver<Room> {
        self.inner.shared.room.subscribe()
    }

    /// Who leads, and from when on this member does.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Takes in a message that another member's [`Transport`] sent.
    pub fn deliver(&self, bytes: &[u8]) -> Result<(), DeliverError> {
        let packet = Packet::decode(bytes).map_err(|_| DeliverError::Malformed)?;
        let member = self.inner.member_id;
        if packet.to != member {
            return Err(DeliverError::Misdirected {
                to: packet.to,
                member,
            });
        }
        self.input(Input::Packet(Box::new(packet)));
        Ok(())
    }

    /// Tells consensus that a member cannot be reached, so that it sends less until it can.
    pub fn report_unreachable(&self, member: u64) {
        self.input(Input::Unreachable(member));
    }

    /// Who takes part, by id, as this member knows it; what the leader alone knows is left out elsewhere. Empty once
    /// the store has stopped.
    pub async fn members(&self) -> Vec<MemberStatus> {
        let (reply, answer) = oneshot::channel();
        self.input(Input::Members(reply));
        answer.await.unwrap_or_default()
    }

    /// Lets a new member take part without a vote: it receives everything. Its id must never have been used, and its
    /// directory must be empty ([`StoreConfig::voters`] too). On the leader only. Answers once the members have agreed,
    /// whether or not the new one runs yet.
    ///
    /// The other members must know where to reach it: write its address, as an ordinary key, before.
    ///
    /// A leader with [`StoreConfig::promote_learners`] makes it a voter by itself when it has caught up.
    pub async fn add_learner(&self, id: u64) -> Result<(), MembershipError> {
        self.change(Change::AddLearner(id)).await
    }

    /// Makes a learner that has caught up a voter. On the leader only.
    pub async fn promote(&self, id: u64) -> Result<(), MembershipError> {
        self.change(Change::Promote(id)).await
    }

    /// Removes a learner, or a voter that does not lead and is not the last. On the leader only. The member that was
    /// removed must not be started again with its old directory.
    pub async fn remove(&self, id: u64) -> Result<(), MembershipError> {
        self.change(Change::Remove(id)).await
    }

    /// Makes another voter the leader. On the leader only; answers once this member knows of the new one.
    pub async fn transfer_leadership(&self, to: u64) -> Result<(), MembershipError> {
        self.change(Change::Lead(to)).await
    }

    async fn change(&self, change: Change) -> Result<(), MembershipError> {
        let (reply, answer) = oneshot::channel();
        self.input(Input::Change(ChangeInput { change, reply }));
        answer
            .await
            .unwrap_or_else(|_| Err(MembershipError::Stopped(self.inner.shared.why_stopped())))
    }

    /// The feature level of the cluster, as far as this member has applied it.
    pub fn level(&self) -> u32 {
        self.state().read().level.0
    }

    /// Raises the feature level, which never falls; nothing changes when the cluster has it already. On the leader only.
    /// Members that do not know the level stop when they apply it, so ask all of them before.
    pub async fn raise_level(&self, level: u32) -> Result<(), LevelError> {
        let inner = &self.inner;
        let known = inner.known_level;
        if level > known {
            return Err(LevelError::Unknown { level, known });
        }
        if level <= self.level() {
            return Ok(());
        }
        inner.shared.admit(inner.max_pending)?;
        let (reply, answer) = oneshot::channel();
        self.submit(Input::RaiseLevel(level, reply));
        answer
            .await
            .unwrap_or_else(|_| Err(inner.shared.stopped()))?;
        Ok(())
    }

    /// Writes every covered row of this member's disk anew, as [`crate::Transformer::seal`] seals it now, and shortens the log
    /// to what was appended since. Durable when it returns; it waits for entries that are not committed yet.
    ///
    /// A proposal that was under way, here or from another member, may enter the log as it was sealed before: after all
    /// members have taken a new key, reseal once more when those have been answered, before the old key is destroyed.
    /// Members that lack the shortened log's beginning are sent the whole state.
    ///
    /// What the new records replace is no record any more, but its bytes stay in the storage engine's files until that
    /// has compacted them: values written before there was a transformer can be found there until then.
    pub async fn reseal(&self) -> Result<(), ResealError> {
        let (done, wait) = oneshot::channel();
        self.input(Input::Reseal(done));
        wait.await
            .map_err(|_| ResealError::Stopped(self.inner.shared.why_stopped()))
    }

    /// The state as it is now, for a file; O(1), and later writes do not change it. `creation` is stored as it is: what
    /// tells this backup from others (the cluster, the version, the time).
    ///
    /// Everything that this member has applied is in it; after [`Store::read_barrier`], everything acknowledged before.
    pub fn backup(&self, creation: Vec<u8>) -> Backup {
        let state = self.state().read().without_history();
        Backup::new(state, self.inner.encryption.clone(), creation)
    }

    /// The last applied log entry, and a hash of the state after it. Members with different hashes at the same entry
    /// have diverged: see [`Store::fingerprint_at`].
    pub fn fingerprint(&self) -> (u64, u64) {
        let state = self.state().read();
        (state.applied, state.fingerprint())
    }

    /// The hash of the state after a log entry, for about the last thousand entries that this run applied.
    pub fn fingerprint_at(&self, index: u64) -> Option<u64> {
        self.inner.shared.fingerprint_at(index)
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

    /// Hands on what was admitted.
    fn submit(&self, input: Input) {
        if let Err(unsent) = self.inner.inputs.send(input)
            && let Input::Propose(Proposal { reply, .. }) | Input::RaiseLevel(_, reply) = unsent.0
        {
            let stopped = Err(self.inner.shared.stopped());
            self.inner.shared.answer(reply, stopped);
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

#[cfg(test)]
mod tests;
