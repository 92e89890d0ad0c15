//! What a member core writes to: its log, its state, and the seam between them and files.
//!
//! [`Volume`] knows what is recorded and in which order; an [`Engine`] stores it. [`fjall`] is the real engine. The
//! simulation has another, which crashes, tears and stalls as its seed says. A member without a disk (tests of other
//! crates) keeps everything in memory.

pub(crate) mod fjall;
mod persist;
mod records;
mod reserve;
mod volume;

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry as LogEntry, HardState};

use crate::level::Level;
use crate::state::State;
use crate::types::{Entry, Key, Revision};

pub(crate) use persist::StateWriter;
#[cfg(test)]
pub(crate) use records::{HARD_STATE, LOG_START};
pub(crate) use reserve::{JOURNAL, Shortage};
pub(crate) use volume::Volume;

/// What a storage engine says of a failure.
pub(crate) type EngineError = Box<dyn Error + Send + Sync>;

/// An ordered map in each of two spaces, changed by atomic batches through one journal: what a synced batch promises
/// holds for every batch before it too. After a crash the batches are there up to some later one, and no more.
pub(crate) trait Engine: Send + Sync {
    /// One record.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Visits the records whose key begins with `prefix`, by key, until the visitor returns false.
    fn scan(
        &self,
        space: Space,
        prefix: u8,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), EngineError>;

    /// Makes the changes together; a key may occur once. With `sync` they are durable on return.
    fn commit(&self, batch: Batch, sync: bool) -> Result<(), EngineError>;

    /// Where the records of a space are, for errors; `None` when that has no name.
    fn place(&self, space: Space) -> Option<PathBuf>;

    /// How many bytes can still be written where the records are; `None` when that is not known.
    fn room(&self) -> Option<u64>;

    /// Keeps room in reserve, as the disk's shortage is. Called all the time.
    fn tend(&self, _: Shortage) {}

    /// Begins to write what waits in memory to its tables, so that nothing has to be once the disk is full.
    fn write_tables(&self) -> Result<(), EngineError> {
        Ok(())
    }

    /// Makes everything committed so far durable.
    fn sync(&self) -> Result<(), EngineError>;
}

/// Where a record belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Space {
    /// Log entries, the vote, and where the log begins.
    Log,
    /// Rows, and the entry they are the state of.
    State,
}

/// Changes that an [`Engine`] makes together: `None` removes the record.
pub(crate) type Batch = Vec<Change>;
/// Where, under which key, and the new record; none removes it.
pub(crate) type Change = (Space, Vec<u8>, Option<Vec<u8>>);

/// A read or write that failed. Nothing may be acknowledged after one: what reached the disk is not known any more.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{doing} in {path} failed ({cause}): this member has stopped, since what it acknowledges must be on its disk; \
     check that disk and its free space, then start the member again"
)]
pub(crate) struct DiskError {
    /// What was tried.
    pub(crate) doing: &'static str,
    /// The data directory.
    pub(crate) path: PathBuf,
    /// What the engine said.
    pub(crate) cause: Arc<dyn Error + Send + Sync>,
}

/// What a member's disk says after a start.
pub(crate) struct Recovered {
    pub(crate) hard_state: HardState,
    /// Index and term of the last entry that is not in the log any more.
    pub(crate) start: (u64, u64),
    pub(crate) entries: Vec<LogEntry>,
    pub(crate) state: State,
}

impl Recovered {
    /// Term and index of the last log entry: the greater, the newer the log.
    pub(crate) fn last(&self) -> (u64, u64) {
        let (index, term) = self.start;
        let last = self.entries.last();
        last.map_or((term, index), |entry| (entry.term, entry.index))
    }
}

/// A run of changes of the state, up to an applied index.
pub(crate) struct Applied {
    pub(crate) index: u64,
    pub(crate) revision: Revision,
    /// When it was raised.
    pub(crate) level: Option<Level>,
    pub(crate) conf_state: ConfState,
    /// `None` removes the row.
    pub(crate) rows: HashMap<Key, Option<Arc<Entry>>>,
}

impl Applied {
    /// Continues with a later run: of every row, the last change remains.
    pub(crate) fn merge(&mut self, later: Applied) {
        let mut rows = std::mem::take(&mut self.rows);
        rows.extend(later.rows);
        let level = later.level.or(self.level);
        *self = Applied {
            rows,
            level,
            ..later
        };
    }
}
