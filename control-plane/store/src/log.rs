//! The Raft log as consensus reads it: the newest entries in memory, all of them on disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use raft::eraftpb::{ConfState, Entry as LogEntry, HardState, Snapshot, SnapshotMetadata};
use raft::storage::{GetEntriesContext, RaftState, Storage};
use raft::{Error, StorageError};

use crate::disk::{DiskError, Shortage, Volume};
use crate::handover::{Cut, Taken};
use crate::metrics::METRICS;
use crate::state::State;

/// How many bytes of entries stay in memory once they are on disk.
const CACHE_BYTES: usize = 4 << 20;

/// The log of one member. Without a disk (tests of other crates) its memory is all there is.
pub(crate) struct Log {
    volume: Option<Volume>,
    /// Index and term of the last entry before the log.
    start: (u64, u64),
    /// Term and size of every entry of the log.
    entries: VecDeque<(u64, u32)>,
    bytes: u64,
    /// The newest entries.
    cache: VecDeque<LogEntry>,
    cache_bytes: usize,
    hard_state: HardState,
    conf_state: ConfState,
    state: Arc<RwLock<State>>,
    cut: Cut,
    /// The state that members without the log's beginning are given.
    taken: Mutex<Option<Arc<Taken>>>,
    /// Always true, unless a test of the simulation wants to see writes lost.
    pub(crate) sync: bool,
}

impl Log {
    /// A log as recovered from disk, or a new one without entries.
    pub(crate) fn new(
        volume: Option<Volume>,
        start: (u64, u64),
        entries: Vec<LogEntry>,
        hard_state: HardState,
        conf_state: ConfState,
        state: Arc<RwLock<State>>,
        cut: Cut,
    ) -> Log {
        let mut log = Log {
            volume,
            start,
            entries: VecDeque::new(),
            bytes: 0,
            cache: VecDeque::new(),
            cache_bytes: 0,
            hard_state,
            conf_state,
            state,
            cut,
            taken: Mutex::default(),
            sync: true,
        };
        log.extend(entries);
        log
    }

    /// The last index of the log.
    pub(crate) fn last(&self) -> u64 {
        self.start.0 + self.entries.len() as u64
    }

    /// The last index before the log.
    pub(crate) fn start(&self) -> u64 {
        self.start.0
    }

    /// How many bytes of data the log holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes its disk has left; `None` when that is not known.
    pub(crate) fn room(&self) -> Option<u64> {
        self.volume.as_ref().and_then(Volume::room)
    }

    /// See [`crate::disk::Engine::tend`].
    pub(crate) fn tend(&self, shortage: Shortage) {
        if let Some(volume) = &self.volume {
            volume.tend(shortage);
        }
    }

    /// See [`crate::disk::Engine::write_tables`].
    pub(crate) fn write_tables(&self) -> Result<(), DiskError> {
        self.volume.as_ref().map_or(Ok(()), Volume::write_tables)
    }

    /// Marks the disk: its state differs from the other members', and must not be used again.
    pub(crate) fn mark_diverged(&self, index: u64) -> Result<(), DiskError> {
        match &self.volume {
            Some(volume) => volume.mark_diverged(index),
            None => Ok(()),
        }
    }

    /// Appends, replacing what conflicts, and remembers the hard state. Durable when it returns, unless only the
    /// commit index changed: that one can always be found out again.
    pub(crate) fn append(
        &mut self,
        entries: Vec<LogEntry>,
        hard_state: Option<&HardState>,
        must_sync: bool,
    ) -> Result<(), DiskError> {
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        if let Some(volume) = &self.volume
            && (must_sync || !entries.is_empty())
        {
            let begun = Instant::now();
            volume.append(&entries, self.last(), &self.hard_state, self.sync)?;
            METRICS.fsync.observe(begun.elapsed().as_secs_f64());
        }
        if let Some(first) = entries.first() {
            while self.last() >= first.index {
                self.drop_last();
            }
        }
        self.extend(entries);
        Ok(())
    }

    fn extend(&mut self, entries: Vec<LogEntry>) {
        for entry in entries {
            let size = entry.data.len() + entry.context.len();
            self.entries.push_back((entry.term, size as u32));
            self.bytes += size as u64;
            self.cache_bytes += size;
            self.cache.push_back(entry);
        }
        if self.volume.is_some() {
            while self.cache_bytes > CACHE_BYTES && self.cache.len() > 1 {
                self.drop_first_cached();
            }
        }
    }

    fn drop_last(&mut self) {
        if let Some((_, size)) = self.entries.pop_back() {
            self.bytes -= u64::from(size);
        }
        if let Some(entry) = self.cache.pop_back() {
            self.cache_bytes -= entry.data.len() + entry.context.len();
        }
    }

    fn drop_first_cached(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= entry.data.len() + entry.context.len();
        }
    }

    /// Forgets the entries up to `index`, which must have been applied to the state on disk.
    pub(crate) fn truncate(&mut self, index: u64) -> Result<(), DiskError> {
        let Ok(term) = self.term(index) else {
            return Ok(());
        };
        if let Some(volume) = &self.volume {
            volume.truncate(self.start.0, (index, term))?;
        }
        while self.start.0 < index {
            if let Some((_, size)) = self.entries.pop_front() {
                self.bytes -= u64::from(size);
            }
            self.start.0 += 1;
        }
        self.start.1 = term;
        while self.cache.front().is_some_and(|entry| entry.index <= index) {
            self.drop_first_cached();
        }
        Ok(())
    }

    /// Forgets the entries up to `index`, if it has not, and makes that and the state's last writes durable.
    pub(crate) fn truncate_durably(&mut self, index: u64) -> Result<(), DiskError> {
        if index > self.start.0 {
            self.truncate(index)?;
        }
        self.volume.as_ref().map_or(Ok(()), Volume::sync)
    }

    /// Makes the state's last writes durable too; a failure costs nothing but a longer recovery.
    pub(crate) fn sync(&self) {
        if let Some(Err(error)) = self.volume.as_ref().map(Volume::sync) {
            tracing::warn!(%error, "the last sync of the data directory failed");
        }
    }

    /// Replaces everything by a received state.
    pub(crate) fn install(
        &mut self,
        state: &State,
        start: (u64, u64),
        hard_state: Option<&HardState>,
    ) -> Result<(), DiskError> {
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        self.hard_state.commit = self.hard_state.commit.max(start.0);
        if let Some(volume) = &self.volume {
            volume.install(state, start, &self.hard_state)?;
        }
        self.start = start;
        self.conf_state = state.conf_state.clone();
        self.entries.clear();
        self.bytes = 0;
        self.cache.clear();
        self.cache_bytes = 0;
        Ok(())
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<LogEntry>> {
        if low <= self.start.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let sizes = self.entries.range((low - self.start.0 - 1) as usize..);
        let mut total = 0;
        let fitting = sizes
            .take((high - low) as usize)
            .take_while(|(_, size)| {
                let first = total == 0;
                total += u64::from(*size) + 1;
                first || total <= limit
            })
            .count() as u64;
        let high = low + fitting;
        let cached = self.last() + 1 - self.cache.len() as u64;
        let mut entries = match &self.volume {
            Some(volume) if low < cached => volume
                .entries(low, high.min(cached))
                .map_err(|error| Error::Store(StorageError::Other(Box::new(error))))?,
            _ => Vec::new(),
        };
        if high > cached {
            let range = (low.max(cached) - cached) as usize..(high - cached) as usize;
            entries.extend(self.cache.range(range).cloned());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.start.0 {
            return Ok(self.start.1);
        }
        let offset = index
            .checked_sub(self.start.0 + 1)
            .ok_or(Error::Store(StorageError::Compacted))?;
        self.entries
            .get(offset as usize)
            .map(|(term, _)| *term)
            .ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Without the rows, which travel in chunks.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let wanted = request_index.max(self.start.0);
        let mut slot = self.taken.lock();
        let fits = |taken: &&Arc<Taken>| {
            taken.metadata.index >= wanted && knows(taken.metadata.get_conf_state(), to)
        };
        let taken = match slot.as_ref().filter(fits) {
            Some(taken) => Arc::clone(taken),
            None => {
                let taken = self.take(wanted)?;
                *slot = Some(Arc::clone(&taken));
                taken
            }
        };
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(taken.metadata.clone());
        Ok(snapshot)
    }
}

impl Log {
    fn take(&self, wanted: u64) -> raft::Result<Arc<Taken>> {
        let state = self.state.read().without_history();
        if state.applied < wanted {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut metadata = SnapshotMetadata {
            index: state.applied,
            term: self.term(state.applied)?,
            ..SnapshotMetadata::default()
        };
        metadata.set_conf_state(state.conf_state.clone());
        Ok(Taken::new(metadata, state, self.cut.clone()))
    }

    /// The state that was taken last.
    pub(crate) fn taken(&self) -> Option<Arc<Taken>> {
        self.taken.lock().clone()
    }

    /// Lets go of that state, whose old rows need not be kept any more.
    pub(crate) fn forget_taken(&mut self) {
        *self.taken.get_mut() = None;
    }
}

fn knows(members: &ConfState, id: u64) -> bool {
    members.voters.contains(&id)
        || members.learners.contains(&id)
        || members.voters_outgoing.contains(&id)
}
