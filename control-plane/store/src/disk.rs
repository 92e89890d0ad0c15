//! The files of one member: its Raft log and its state, in one fjall database.
//!
//! Two keyspaces share one journal. `log` holds entries by index, the hard state and where the log begins; writes
//! to it that consensus relies on end in one fdatasync. `state` holds rows and the applied index, written together
//! without fsync: after a crash they are some earlier state, and the log holds everything since.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use raft::eraftpb::{ConfState, Entry as LogEntry, EntryType, HardState};

use crate::config::OpenError;
use crate::record::{Decoder, RecordError, encode_row, seal, unseal};
use crate::state::State;
use crate::types::{Entry, Key, Revision};

const CACHE_BYTES: u64 = 1 << 20;
const MEMTABLE_BYTES: u64 = 8 << 20;
const JOURNAL_BYTES: u64 = 64 << 20;

const HARD_STATE: &[u8] = b"mhard";
const LOG_START: &[u8] = b"mstart";
const APPLIED: &[u8] = b"mapplied";
const ENTRY: u8 = b'e';
const ROW: u8 = b'r';

/// The database and its two keyspaces; cheap to clone.
#[derive(Clone)]
pub(crate) struct Disk {
    path: PathBuf,
    database: Database,
    log: Keyspace,
    state: Keyspace,
}

/// What a member's files say after a start.
pub(crate) struct Recovered {
    pub(crate) hard_state: HardState,
    /// Index and term of the last entry that is not in the log any more.
    pub(crate) start: (u64, u64),
    pub(crate) entries: Vec<LogEntry>,
    pub(crate) state: State,
}

/// A run of changes of the state, up to an applied index.
pub(crate) struct Applied {
    pub(crate) index: u64,
    pub(crate) revision: Revision,
    pub(crate) conf_state: ConfState,
    /// `None` removes the row.
    pub(crate) rows: HashMap<Key, Option<Arc<Entry>>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Disk").field(&self.path).finish()
    }
}

impl Disk {
    /// Opens or creates the files, and takes their lock.
    pub(crate) fn open(path: &Path) -> Result<Disk, OpenError> {
        let unwritable = |source| OpenError::Directory {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(unwritable)?;
        let engine = |source| match source {
            fjall::Error::Locked => OpenError::Locked {
                path: path.to_owned(),
            },
            fjall::Error::Io(source) => unwritable(source),
            source => OpenError::Engine {
                path: path.to_owned(),
                source,
            },
        };
        let database = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(1)
            .open()
            .map_err(engine)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let log = database.keyspace("log", options).map_err(engine)?;
        let state = database.keyspace("state", options).map_err(engine)?;
        Ok(Disk {
            path: path.to_owned(),
            database,
            log,
            state,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Everything on disk; `None` when the member is new.
    pub(crate) fn recover(&self) -> Result<Option<Recovered>, OpenError> {
        let Some(start) = self.numbers::<2>(&self.log, LOG_START)? else {
            return Ok(None);
        };
        let [term, vote, commit] = self
            .numbers::<3>(&self.log, HARD_STATE)?
            .ok_or_else(|| self.corrupt("the vote is missing"))?;
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.vote, hard_state.commit) = (term, vote, commit);
        let mut entries: Vec<LogEntry> = Vec::new();
        for item in self.log.prefix([ENTRY]) {
            let (key, record) = item.into_inner().map_err(|error| self.engine(error))?;
            let expected = start[0] + 1 + entries.len() as u64;
            if *key != entry_key(expected) {
                return Err(self.corrupt(&format!("log entry {expected} is missing")));
            }
            let entry = decode_entry(expected, &record)
                .map_err(|error| self.corrupt(&format!("log entry {expected}: {error}")))?;
            entries.push(entry);
        }
        let state = self.recover_state()?;
        let last = start[0] + entries.len() as u64;
        if state.applied < start[0] || state.applied > last {
            return Err(self.corrupt(&format!(
                "the state is of log entry {}, but the log holds {} to {last}",
                state.applied,
                start[0] + 1
            )));
        }
        // The commit index is not synced for its own sake, so what was applied can be ahead of it.
        hard_state.commit = hard_state.commit.max(state.applied);
        Ok(Some(Recovered {
            hard_state,
            start: start.into(),
            entries,
            state,
        }))
    }

    fn recover_state(&self) -> Result<State, OpenError> {
        let mut state = State::default();
        let record = self
            .state
            .get(APPLIED)
            .map_err(|error| self.engine(error))?;
        let record = record.ok_or_else(|| self.corrupt("the applied index is missing"))?;
        let applied = unseal(&record)
            .and_then(decode_applied)
            .map_err(|error| self.corrupt(&format!("the applied index: {error}")))?;
        state.applied = applied.index;
        state.conf_state = applied.conf_state;
        let mut decoder = Decoder::default();
        for item in self.state.prefix([ROW]) {
            let (key, record) = item.into_inner().map_err(|error| self.engine(error))?;
            let (key, entry) =
                unseal(&record)
                    .and_then(|body| decoder.row(body))
                    .map_err(|error| {
                        let name = String::from_utf8_lossy(&key).replace('\0', " ");
                        self.corrupt(&format!("object {name}: {error}"))
                    })?;
            state.insert(key, entry);
        }
        state.restart_at(applied.revision);
        Ok(state)
    }

    /// Makes a new member: a log that begins after `start`, and an empty state applied up to there.
    pub(crate) fn bootstrap(
        &self,
        start: (u64, u64),
        hard_state: &HardState,
        conf_state: &ConfState,
    ) -> fjall::Result<()> {
        let mut batch = self.synced();
        batch.insert(&self.log, HARD_STATE, hard_record(hard_state));
        batch.insert(&self.log, LOG_START, numbers([start.0, start.1]));
        let applied = encode_applied(start.0, Revision(0), conf_state);
        batch.insert(&self.state, APPLIED, applied);
        batch.commit()
    }

    /// Appends to the log, and replaces everything from the first entry's index on. Durable when it returns.
    pub(crate) fn append(
        &self,
        entries: &[LogEntry],
        old_last: u64,
        hard_state: &HardState,
    ) -> fjall::Result<()> {
        let mut batch = self.synced();
        for entry in entries {
            batch.insert(&self.log, entry_key(entry.index), entry_record(entry));
        }
        if let Some(last) = entries.last() {
            for index in last.index + 1..=old_last {
                batch.remove(&self.log, entry_key(index));
            }
        }
        batch.insert(&self.log, HARD_STATE, hard_record(hard_state));
        batch.commit()
    }

    /// The entries from `low` up to, not including, `high`.
    pub(crate) fn entries(&self, low: u64, high: u64) -> Result<Vec<LogEntry>, OpenError> {
        let mut entries = Vec::new();
        for index in low..high {
            let record = self.log.get(entry_key(index));
            let record = record.map_err(|error| self.engine(error))?;
            let record =
                record.ok_or_else(|| self.corrupt(&format!("log entry {index} is missing")))?;
            let entry = decode_entry(index, &record)
                .map_err(|error| self.corrupt(&format!("log entry {index}: {error}")))?;
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Forgets the entries up to `start`, whose effects must have been written by [`Disk::write_state`]. Makes those
    /// durable first: the log may only shrink once the state does not need it.
    pub(crate) fn truncate(&self, old_start: u64, start: (u64, u64)) -> fjall::Result<()> {
        self.database.persist(PersistMode::SyncData)?;
        let mut batch = self.database.batch();
        for index in old_start + 1..=start.0 {
            batch.remove(&self.log, entry_key(index));
        }
        batch.insert(&self.log, LOG_START, numbers([start.0, start.1]));
        batch.commit()
    }

    /// Writes changes of the state with their applied index, in order, without fsync.
    pub(crate) fn write_state(&self, run: &Applied) -> fjall::Result<()> {
        let mut batch = self.database.batch();
        for (key, entry) in &run.rows {
            match entry {
                Some(entry) => batch.insert(&self.state, row_key(key), row_record(key, entry)),
                None => batch.remove(&self.state, row_key(key)),
            }
        }
        let applied = encode_applied(run.index, run.revision, &run.conf_state);
        batch.insert(&self.state, APPLIED, applied);
        batch.commit()
    }

    /// Replaces everything by a state that came from another member; the log is empty and begins after it.
    pub(crate) fn install(
        &self,
        state: &State,
        start: (u64, u64),
        hard_state: &HardState,
    ) -> fjall::Result<()> {
        let mut batch = self.synced();
        // Within one batch a key may occur only once.
        let mut kept = HashSet::new();
        for (key, entry) in state.rows() {
            let (key, record) = (row_key(&key), row_record(&key, entry));
            batch.insert(&self.state, key.clone(), record);
            kept.insert(key);
        }
        for (keyspace, prefix) in [(&self.log, ENTRY), (&self.state, ROW)] {
            for item in keyspace.prefix([prefix]) {
                let key = item.key()?;
                if !kept.contains(&*key) {
                    batch.remove(keyspace, key);
                }
            }
        }
        let applied = encode_applied(start.0, state.revision, &state.conf_state);
        batch.insert(&self.state, APPLIED, applied);
        batch.insert(&self.log, HARD_STATE, hard_record(hard_state));
        batch.insert(&self.log, LOG_START, numbers([start.0, start.1]));
        batch.commit()
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> fjall::Result<()> {
        self.database.persist(PersistMode::SyncData)
    }

    fn synced(&self) -> OwnedWriteBatch {
        self.database
            .batch()
            .durability(Some(PersistMode::SyncData))
    }

    fn numbers<const N: usize>(
        &self,
        keyspace: &Keyspace,
        key: &[u8],
    ) -> Result<Option<[u64; N]>, OpenError> {
        let name = || String::from_utf8_lossy(key).into_owned();
        let record = keyspace.get(key).map_err(|error| self.engine(error))?;
        record
            .map(|record| unseal(&record).and_then(decode_numbers))
            .transpose()
            .map_err(|error| self.corrupt(&format!("record {}: {error}", name())))
    }

    fn corrupt(&self, record: &str) -> OpenError {
        OpenError::Corrupt {
            path: self.path.clone(),
            record: record.to_owned(),
        }
    }

    fn engine(&self, source: fjall::Error) -> OpenError {
        OpenError::Engine {
            path: self.path.clone(),
            source,
        }
    }
}

fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Names hold no zero byte, so that the parts cannot run into each other.
fn row_key(key: &Key) -> Vec<u8> {
    let parts = [&key.table.0, &key.namespace, &key.name];
    let mut bytes = vec![ROW];
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
    }
    bytes
}

fn row_record(key: &Key, entry: &Entry) -> Vec<u8> {
    seal(&encode_row(key, entry))
}

fn numbers<const N: usize>(values: [u64; N]) -> Vec<u8> {
    seal(&values.map(u64::to_le_bytes).concat())
}

fn hard_record(hard_state: &HardState) -> Vec<u8> {
    numbers([hard_state.term, hard_state.vote, hard_state.commit])
}

fn decode_numbers<const N: usize>(body: &[u8]) -> Result<[u64; N], RecordError> {
    let (words, rest) = body.as_chunks::<8>();
    if words.len() != N || !rest.is_empty() {
        return Err(RecordError::Short);
    }
    Ok(std::array::from_fn(|at| u64::from_le_bytes(words[at])))
}

/// Type, index and term, the context's length, the context, the data.
fn entry_record(entry: &LogEntry) -> Vec<u8> {
    let mut body = Vec::with_capacity(21 + entry.context.len() + entry.data.len());
    body.push(entry.entry_type as u8);
    body.extend_from_slice(&entry.index.to_le_bytes());
    body.extend_from_slice(&entry.term.to_le_bytes());
    body.extend_from_slice(&(entry.context.len() as u32).to_le_bytes());
    body.extend_from_slice(&entry.context);
    body.extend_from_slice(&entry.data);
    seal(&body)
}

fn decode_entry(index: u64, record: &[u8]) -> Result<LogEntry, RecordError> {
    let body = unseal(record)?;
    let (kind, body) = body.split_first().ok_or(RecordError::Short)?;
    let (stored, body) = body.split_first_chunk::<8>().ok_or(RecordError::Short)?;
    let (term, body) = body.split_first_chunk::<8>().ok_or(RecordError::Short)?;
    let (length, body) = body.split_first_chunk::<4>().ok_or(RecordError::Short)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (context, data) = body.split_at_checked(length).ok_or(RecordError::Short)?;
    if u64::from_le_bytes(*stored) != index {
        return Err(RecordError::Unknown("index"));
    }
    let mut entry = LogEntry::default();
    let kind = EntryType::from_i32(i32::from(*kind)).ok_or(RecordError::Unknown("entry type"))?;
    entry.set_entry_type(kind);
    entry.index = index;
    entry.term = u64::from_le_bytes(*term);
    entry.context = context.to_vec();
    entry.data = data.to_vec();
    Ok(entry)
}

fn encode_applied(index: u64, revision: Revision, conf_state: &ConfState) -> Vec<u8> {
    let members = encode_conf_state(conf_state);
    let mut body = [index, revision.0].map(u64::to_le_bytes).concat();
    body.extend_from_slice(&members);
    seal(&body)
}

fn decode_applied(body: &[u8]) -> Result<Applied, RecordError> {
    let (head, members) = body.split_at_checked(16).ok_or(RecordError::Short)?;
    let [index, revision] = decode_numbers(head)?;
    Ok(Applied {
        index,
        revision: Revision(revision),
        conf_state: decode_conf_state(members)?,
        rows: HashMap::new(),
    })
}

fn encode_conf_state(conf_state: &ConfState) -> Vec<u8> {
    protobuf::Message::write_to_bytes(conf_state).expect("a message always fits a vector")
}

fn decode_conf_state(bytes: &[u8]) -> Result<ConfState, RecordError> {
    let mut conf_state = ConfState::default();
    protobuf::Message::merge_from_bytes(&mut conf_state, bytes)
        .map_err(|_| RecordError::Unknown("membership"))?;
    Ok(conf_state)
}

#[cfg(test)]
mod tests;
