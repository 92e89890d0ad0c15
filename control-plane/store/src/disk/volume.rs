//! The records of one member, and in which order they may change.
//!
//! Two spaces share one journal. [`Space::Log`] holds entries by index, the hard state and where the log begins;
//! writes to it that consensus relies on are synced. [`Space::State`] holds rows and the applied index, written together
//! without a sync: after a crash they are some earlier state, and the log holds everything since.

mod offline;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use raft::eraftpb::{ConfState, Entry as LogEntry, EntryType, HardState};

use super::records::{
    APPLIED, DIVERGED, ENTRY, HARD_STATE, LEVEL, LOG_START, RESTORING, ROW, decode_applied,
    decode_entry, decode_numbers, encode_applied, entry_key, entry_record, hard_record,
    level_record, numbers, row_key, row_record,
};
use super::{Applied, Batch, DiskError, Engine, EngineError, Recovered, Shortage, Space};
use crate::config::OpenError;
use crate::encryption::{Encryption, TransformError};
use crate::level::Level;
use crate::packet::Tags;
use crate::record::{Decoder, RecordError, unseal};
use crate::state::State;
use crate::types::Revision;

/// Takes in a key and its record.
type Visitor<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), OpenError> + 'a;

/// A member's records; cheap to clone.
#[derive(Clone)]
pub(crate) struct Volume {
    path: PathBuf,
    engine: Arc<dyn Engine>,
    encryption: Encryption,
}

impl Volume {
    /// The volume at `path`, which names it in errors.
    pub(crate) fn new(path: &Path, engine: Arc<dyn Engine>, encryption: Encryption) -> Volume {
        Volume {
            path: path.to_owned(),
            engine,
            encryption,
        }
    }

    /// Everything on disk; `None` when the member is new. `known` is the highest feature level that may be there.
    pub(crate) fn recover(&self, known: u32) -> Result<Option<Recovered>, OpenError> {
        // First of all: whatever else is there may have changed with the level.
        let level = self.recover_level(known)?;
        if self.numbers::<0>(Space::Log, RESTORING)?.is_some() {
            return Err(OpenError::Unfinished {
                path: self.path.clone(),
            });
        }
        if let Some([index]) = self.numbers(Space::Log, DIVERGED)? {
            return Err(OpenError::Diverged {
                path: self.path.clone(),
                index,
            });
        }
        let Some(start) = self.numbers::<2>(Space::Log, LOG_START)? else {
            return Ok(None);
        };
        let [term, vote, commit] = self
            .numbers::<3>(Space::Log, HARD_STATE)?
            .ok_or_else(|| self.corrupt(Space::Log, "the vote is missing"))?;
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.vote, hard_state.commit) = (term, vote, commit);
        let mut entries: Vec<LogEntry> = Vec::new();
        self.visit(Space::Log, ENTRY, &mut |key, record| {
            let expected = start[0] + 1 + entries.len() as u64;
            if *key != entry_key(expected) {
                return Err(self.corrupt(Space::Log, &format!("log entry {expected} is missing")));
            }
            let entry = decode_entry(expected, record).map_err(|error| {
                self.corrupt(Space::Log, &format!("log entry {expected}: {error}"))
            })?;
            if entries
                .last()
                .is_some_and(|before| before.term > entry.term)
            {
                let older = format!("log entry {expected} is of an older term than the one before");
                return Err(self.corrupt(Space::Log, &older));
            }
            entries.push(entry);
            Ok(())
        })?;
        let state = self.recover_state(level)?;
        let last = start[0] + entries.len() as u64;
        if state.applied < start[0] || state.applied > last {
            return Err(self.corrupt(
                Space::Log,
                &format!(
                    "the state is of log entry {}, but the log holds {} to {last}",
                    state.applied,
                    start[0] + 1
                ),
            ));
        }
        // The commit index is not synced for its own sake, so what was applied can be ahead of it.
        hard_state.commit = hard_state.commit.max(state.applied);
        self.check_readable(&entries, state.applied, known)?;
        Ok(Some(Recovered {
            hard_state,
            start: start.into(),
            entries,
            state,
        }))
    }

    /// Whether the entries that were not applied yet can be opened, and are for this build: better refused now than when one is due.
    fn check_readable(
        &self,
        entries: &[LogEntry],
        applied: u64,
        known: u32,
    ) -> Result<(), OpenError> {
        let mut decoder = Decoder::new(self.encryption.clone());
        let due = entries.iter().filter(|entry| {
            entry.index > applied && entry.get_entry_type() == EntryType::EntryNormal
        });
        // What else is wrong with one is said when it is applied.
        for entry in due {
            if let Ok(tags) = Tags::decode(&*entry.context) {
                self.check_level(Level(tags.level), known)?;
            }
            if let Err(RecordError::Sealed(reason)) = decoder.transactions(&entry.data) {
                return Err(self.sealed(Space::Log, reason));
            }
        }
        Ok(())
    }

    fn recover_level(&self, known: u32) -> Result<Level, OpenError> {
        let Some([number]) = self.numbers(Space::State, LEVEL)? else {
            return Ok(Level::default());
        };
        let level = Level(u32::try_from(number).unwrap_or(u32::MAX));
        self.check_level(level, known)
    }

    fn check_level(&self, level: Level, known: u32) -> Result<Level, OpenError> {
        level.known(known).map_err(|newer| OpenError::Newer {
            path: self.path.clone(),
            newer,
        })
    }

    fn recover_state(&self, level: Level) -> Result<State, OpenError> {
        let mut state = State::default();
        let record = self.engine.get(Space::State, APPLIED);
        let record = record
            .map_err(|error| self.unreadable(Space::State, error))?
            .ok_or_else(|| self.corrupt(Space::State, "the applied index is missing"))?;
        let applied = unseal(&record)
            .and_then(decode_applied)
            .map_err(|error| self.corrupt(Space::State, &format!("the applied index: {error}")))?;
        state.level = level;
        state.applied = applied.index;
        state.conf_state = applied.conf_state;
        let mut decoder = Decoder::new(self.encryption.clone());
        self.visit(Space::State, ROW, &mut |key, record| {
            let (key, entry) =
                unseal(record)
                    .and_then(|body| decoder.row(body))
                    .map_err(|error| match error {
                        RecordError::Sealed(reason) => self.sealed(Space::State, reason),
                        error => {
                            let name = String::from_utf8_lossy(key).replace('\0', " ");
                            self.corrupt(Space::State, &format!("object {name}: {error}"))
                        }
                    })?;
            state.insert(key, entry);
            Ok(())
        })?;
        state.restart_at(applied.revision);
        Ok(state)
    }

    /// Makes a new member: a log that begins after `start`, and an empty state applied up to there. Durable.
    pub(crate) fn bootstrap(
        &self,
        start: (u64, u64),
        hard_state: &HardState,
        conf_state: &ConfState,
    ) -> Result<(), DiskError> {
        let applied = encode_applied(start.0, Revision(0), conf_state);
        let batch = vec![
            log_change(HARD_STATE, Some(hard_record(hard_state))),
            log_change(LOG_START, Some(numbers([start.0, start.1]))),
            state_change(APPLIED, Some(applied)),
        ];
        self.commit("creating the member", batch, true)
    }

    /// Appends to the log, whose last index was `old_last`, and replaces everything from the first entry's index on.
    /// Durable when `sync` says so.
    pub(crate) fn append(
        &self,
        entries: &[LogEntry],
        old_last: u64,
        hard_state: &HardState,
        sync: bool,
    ) -> Result<(), DiskError> {
        let record =
            |entry: &LogEntry| log_change(entry_key(entry.index), Some(entry_record(entry)));
        let mut batch: Batch = entries.iter().map(record).collect();
        if let Some(last) = entries.last() {
            let replaced = last.index + 1..=old_last;
            batch.extend(replaced.map(|index| log_change(entry_key(index), None)));
        }
        batch.push(log_change(HARD_STATE, Some(hard_record(hard_state))));
        self.commit("writing the log", batch, sync)
    }

    /// The entries from `low` up to, not including, `high`, which must be in the log.
    pub(crate) fn entries(&self, low: u64, high: u64) -> Result<Vec<LogEntry>, OpenError> {
        let mut entries = Vec::new();
        for index in low..high {
            let record = self.engine.get(Space::Log, &entry_key(index));
            let record = record
                .map_err(|error| self.unreadable(Space::Log, error))?
                .ok_or_else(|| {
                    self.corrupt(Space::Log, &format!("log entry {index} is missing"))
                })?;
            let entry = decode_entry(index, &record).map_err(|error| {
                self.corrupt(Space::Log, &format!("log entry {index}: {error}"))
            })?;
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Forgets the entries after `old_start` up to `start`, whose effects must have been written by
    /// [`Volume::write_state`]. Makes those durable first: the log may only shrink once the state does not need it.
    pub(crate) fn truncate(&self, old_start: u64, start: (u64, u64)) -> Result<(), DiskError> {
        self.sync()?;
        let forgotten = old_start + 1..=start.0;
        let mut batch: Batch = forgotten
            .map(|index| log_change(entry_key(index), None))
            .collect();
        batch.push(log_change(LOG_START, Some(numbers([start.0, start.1]))));
        self.commit("shortening the log", batch, false)
    }

    /// Writes changes of the state with their applied index, in order, without a sync.
    pub(crate) fn write_state(&self, run: &Applied) -> Result<(), DiskError> {
        let mut batch = Batch::with_capacity(run.rows.len() + 1);
        for (key, entry) in &run.rows {
            let record = entry
                .as_ref()
                .map(|entry| row_record(key, entry, &self.encryption));
            batch.push(state_change(row_key(key), record));
        }
        if let Some(level) = run.level {
            batch.push(state_change(LEVEL, Some(level_record(level))));
        }
        let applied = encode_applied(run.index, run.revision, &run.conf_state);
        batch.push(state_change(APPLIED, Some(applied)));
        self.commit("writing the state", batch, false)
    }

    /// Replaces everything by a state that came from another member; the log is empty and begins after it. Durable.
    pub(crate) fn install(
        &self,
        state: &State,
        start: (u64, u64),
        hard_state: &HardState,
    ) -> Result<(), DiskError> {
        let mut batch = Batch::new();
        // Within one batch a key may occur only once.
        let mut kept = HashSet::new();
        for (key, entry) in state.rows() {
            let (key, record) = (row_key(&key), row_record(&key, entry, &self.encryption));
            kept.insert(key.clone());
            batch.push(state_change(key, Some(record)));
        }
        for (space, prefix) in [(Space::Log, ENTRY), (Space::State, ROW)] {
            let mut forget = |key: &[u8], _: &[u8]| {
                if !kept.contains(key) {
                    batch.push((space, key.to_vec(), None));
                }
                true
            };
            self.engine
                .scan(space, prefix, &mut forget)
                .map_err(|error| self.failed("taking over a state", error))?;
        }
        let applied = encode_applied(start.0, state.revision, &state.conf_state);
        batch.push(state_change(APPLIED, Some(applied)));
        batch.push(state_change(LEVEL, Some(level_record(state.level))));
        batch.push(log_change(HARD_STATE, Some(hard_record(hard_state))));
        batch.push(log_change(LOG_START, Some(numbers([start.0, start.1]))));
        self.commit("taking over a state", batch, true)
    }

    /// Lets nobody open the volume again: its state differs from the others' since this log entry or earlier. Durable.
    pub(crate) fn mark_diverged(&self, index: u64) -> Result<(), DiskError> {
        let batch = vec![log_change(DIVERGED, Some(numbers([index])))];
        self.commit("marking a state that differs", batch, true)
    }

    /// How many bytes can still be written; `None` when that is not known.
    pub(crate) fn room(&self) -> Option<u64> {
        self.engine.room()
    }

    /// See [`Engine::tend`].
    pub(crate) fn tend(&self, shortage: Shortage) {
        self.engine.tend(shortage);
    }

    /// See [`Engine::write_tables`].
    pub(crate) fn write_tables(&self) -> Result<(), DiskError> {
        let begun = self.engine.write_tables();
        begun.map_err(|error| self.failed("writing tables", error))
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<(), DiskError> {
        let synced = self.engine.sync();
        synced.map_err(|error| self.failed("syncing the state", error))
    }

    fn commit(&self, doing: &'static str, batch: Batch, sync: bool) -> Result<(), DiskError> {
        let written = self.engine.commit(batch, sync);
        written.map_err(|error| self.failed(doing, error))
    }

    fn visit(&self, space: Space, prefix: u8, record: &mut Visitor<'_>) -> Result<(), OpenError> {
        let mut outcome = Ok(());
        let mut visit = |key: &[u8], value: &[u8]| {
            outcome = record(key, value);
            outcome.is_ok()
        };
        self.engine
            .scan(space, prefix, &mut visit)
            .map_err(|error| self.unreadable(space, error))?;
        outcome
    }

    fn numbers<const N: usize>(
        &self,
        space: Space,
        key: &[u8],
    ) -> Result<Option<[u64; N]>, OpenError> {
        let name = || String::from_utf8_lossy(key).into_owned();
        let record = self.engine.get(space, key);
        record
            .map_err(|error| self.unreadable(space, error))?
            .map(|record| unseal(&record).and_then(decode_numbers))
            .transpose()
            .map_err(|error| self.corrupt(space, &format!("record {}: {error}", name())))
    }

    fn corrupt(&self, space: Space, record: &str) -> OpenError {
        OpenError::Corrupt {
            path: self.place(space),
            record: record.to_owned(),
        }
    }

    fn sealed(&self, space: Space, reason: TransformError) -> OpenError {
        OpenError::Sealed {
            path: self.place(space),
            reason,
        }
    }

    fn unreadable(&self, space: Space, source: EngineError) -> OpenError {
        OpenError::Engine {
            path: self.place(space),
            source,
        }
    }

    fn place(&self, space: Space) -> PathBuf {
        let place = self.engine.place(space);
        place.unwrap_or_else(|| self.path.clone())
    }

    fn failed(&self, doing: &'static str, cause: EngineError) -> DiskError {
        DiskError {
            doing,
            path: self.path.clone(),
            cause: cause.into(),
        }
    }
}

fn log_change(
    key: impl Into<Vec<u8>>,
    record: Option<Vec<u8>>,
) -> (Space, Vec<u8>, Option<Vec<u8>>) {
    (Space::Log, key.into(), record)
}

fn state_change(
    key: impl Into<Vec<u8>>,
    record: Option<Vec<u8>>,
) -> (Space, Vec<u8>, Option<Vec<u8>>) {
    (Space::State, key.into(), record)
}

#[cfg(test)]
mod tests;
