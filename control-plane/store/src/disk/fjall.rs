//! The real engine: one fjall database with two keyspaces, which share its journal.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::Mutex;

use super::reserve::{self, Reserve, Shortage};
use super::{Batch, Engine, EngineError, Space};
use crate::config::OpenError;

mod inventory;

const CACHE_BYTES: u64 = 1 << 20;
const MEMTABLE_BYTES: u64 = 8 << 20;
const JOURNAL_BYTES: u64 = 64 << 20;

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
        let reserve = Reserve::open(path, JOURNAL_BYTES);
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
