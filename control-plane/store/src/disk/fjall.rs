//! The real engine: one fjall database with two keyspaces, which share its journal.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use fjall::{AbstractTree as _, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::Mutex;

use super::reserve::{self, Reserve, Shortage};
use super::{Batch, Change, Engine, EngineError, Space};
use crate::config::OpenError;

mod inventory;

const CACHE_BYTES: u64 = 1 << 20;
const MEMTABLE_BYTES: u64 = 8 << 20;
const JOURNAL_BYTES: u64 = 64 << 20;
/// More than what a record takes of a memtable beside its key and content.
const RECORD_BYTES: usize = 128;
/// The engine merges the tables of the first level when there are so many.
const MERGED_TABLES: usize = 4;

/// The files of one member; the directory is locked while this lives.
pub(crate) struct FjallEngine {
    database: Database,
    log: Keyspace,
    state: Keyspace,
    reserve: Mutex<Reserve>,
}

impl FjallEngine {
    /// Opens or creates the files, and takes their lock. What lacks a part is refused as it is: the engine would begin anew
    /// in its place. With `begun`, so is a directory without any of them.
    pub(crate) fn open(path: &Path, begun: bool) -> Result<FjallEngine, OpenError> {
        inventory::check(path, begun)?;
        let unwritable = |source| OpenError::Directory {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(path).map_err(unwritable)?;
        let reserve = Reserve::open(path);
        let engine = |source| match source {
            fjall::Error::Locked => OpenError::Locked {
                path: path.to_owned(),
            },
            fjall::Error::Io(source) => unwritable(source),
            source => OpenError::Engine {
                path: culprit(path, &source),
                source: source.into(),
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
        Ok(FjallEngine {
            database,
            log,
            state,
            reserve: Mutex::new(reserve),
        })
    }

    fn keyspace(&self, space: Space) -> &Keyspace {
        match space {
            Space::Log => &self.log,
            Space::State => &self.state,
        }
    }

    /// Before changes that fill a memtable: where its table has no room, the reserve gives that back, and the table is
    /// begun at once. The engine, which cannot go on after a table that it could not write, would begin it a little later,
    /// and others write to the disk meanwhile.
    fn make_way(&self, changes: &[Change], free: impl Fn() -> u64) -> Result<(), EngineError> {
        for space in [Space::Log, Space::State] {
            let own = changes.iter().filter(|(of, ..)| *of == space);
            let added: u64 = own
                .map(|(_, key, record)| {
                    (key.len() + record.as_ref().map_or(0, Vec::len) + RECORD_BYTES) as u64
                })
                .sum();
            let keyspace = self.keyspace(space);
            let fills = || added > 0 && in_memory(keyspace) + added > MEMTABLE_BYTES;
            if !fills() {
                continue;
            }
            let mut reserve = self.reserve.lock();
            // Another thread may have come first.
            let missing = match fills() {
                true => (self.tables_to_come() + added).saturating_sub(free()),
                false => 0,
            };
            if reserve.give(missing) {
                keyspace.rotate_memtable()?;
            }
        }
        Ok(())
    }

    /// At most how many bytes of tables the next one may bring about: all that is in memory, since the engine writes the
    /// tables of both spaces when it begins a new journal, and what is merged with it.
    fn tables_to_come(&self) -> u64 {
        let of = |keyspace: &Keyspace| {
            let sealed = keyspace.sealed_memtable_count();
            let merged = match keyspace.l0_table_count() + sealed + 1 >= MERGED_TABLES {
                true => keyspace.disk_space(),
                false => 0,
            };
            in_memory(keyspace) + sealed as u64 * MEMTABLE_BYTES + merged
        };
        of(&self.log) + of(&self.state)
    }
}

/// Bytes in the memtable that is written to.
fn in_memory(keyspace: &Keyspace) -> u64 {
    keyspace.tree.active_memtable().size()
}

impl Engine for FjallEngine {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let record = self.keyspace(space).get(key)?;
        Ok(record.map(|record| Bytes::copy_from_slice(&record)))
    }

    fn scan(
        &self,
        space: Space,
        prefix: u8,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), EngineError> {
        for item in self.keyspace(space).prefix([prefix]) {
            let (key, record) = item.into_inner()?;
            if !visit(&key, &record) {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, changes: Batch, sync: bool) -> Result<(), EngineError> {
        // Where that is not known, there is no reserve either.
        self.make_way(&changes, || self.room().unwrap_or(u64::MAX))?;
        let durability = sync.then_some(PersistMode::SyncData);
        let mut batch = self.database.batch().durability(durability);
        for (space, key, record) in changes {
            match record {
                Some(record) => batch.insert(self.keyspace(space), key, record),
                None => batch.remove(self.keyspace(space), key),
            }
        }
        Ok(batch.commit()?)
    }

    fn place(&self, space: Space) -> Option<PathBuf> {
        Some(self.keyspace(space).path().to_owned())
    }

    fn room(&self) -> Option<u64> {
        reserve::free(self.log.path()).ok()
    }

    fn tend(&self, shortage: Shortage) {
        self.reserve.lock().tend(shortage);
    }

    fn write_tables(&self) -> Result<(), EngineError> {
        self.log.rotate_memtable()?;
        self.state.rotate_memtable()?;
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }
}

/// The engine does not name the file it could not read. Its journal is one file most of the time.
fn culprit(path: &Path, error: &fjall::Error) -> PathBuf {
    if !matches!(error, fjall::Error::JournalRecovery(_)) {
        return path.to_owned();
    }
    let files = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut journals = files
        .map(|file| file.path())
        .filter(|file| file.extension().is_some_and(|kind| kind == "jnl"));
    match (journals.next(), journals.next()) {
        (Some(journal), None) => journal,
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(from: u32, bytes: usize) -> Batch {
        let row = |number: u32| {
            let key = format!("r{:08}", from + number).into_bytes();
            (Space::State, key, Some(vec![1; 1 << 10]))
        };
        (0..).map(row).take(bytes >> 10).collect()
    }

    #[test]
    fn the_reserve_is_given_back_when_a_table_is_due_that_has_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let engine = FjallEngine::open(directory.path(), false).unwrap();
        engine.tend(Shortage::None);
        let held = || engine.reserve.lock().pieces();
        let all = held();
        engine.commit(rows(0, 6 << 20), false).unwrap();
        let before = in_memory(&engine.state);
        let (small, large) = (rows(9_000_000, 1 << 10), rows(9_000_000, 2 << 20));
        // None is due; or one, which has room.
        engine.make_way(&small, || 0).unwrap();
        engine.make_way(&large, || u64::MAX).unwrap();
        assert_eq!((held(), in_memory(&engine.state)), (all, before));

        engine.make_way(&large, || 0).unwrap();
        let after = held();
        assert!(after < all && after > 0, "{after} of {all}");
        assert!(in_memory(&engine.state) < before, "it is begun at once");
        engine.make_way(&large, || 0).unwrap();
        assert_eq!(held(), after, "none is due any more");
        // Without a reserve, nothing is done early.
        engine.commit(rows(1_000_000, 6 << 20), false).unwrap();
        engine.reserve.lock().give(u64::MAX);
        let before = in_memory(&engine.state);
        engine.make_way(&large, || 0).unwrap();
        assert_eq!(in_memory(&engine.state), before);
    }
}
