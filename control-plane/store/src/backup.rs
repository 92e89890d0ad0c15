//! A whole state in one file: written while the store goes on, verified without keys, restored into an empty directory.
//!
//! The file: [`format`]. Values that a transformer covers are sealed in it; restoring needs the key, inspecting does not.
//!
//! A restored member is the only voter of a new cluster with a new log. Its revision is [`REVISION_GAP`] above that of
//! the backup, so that whatever clients remember from after the backup is in the past, and their watches are told to
//! list again. That holds for one restore of a backup: to go back a second time, back up the restored cluster and use
//! that file, or clients of the first restored one may hold revisions that the second one has yet to reach.

mod format;
mod restore;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::config::OpenError;
use crate::encryption::{Encryption, TransformError};
use crate::level::{FEATURE_LEVEL, NewerLevel};
use crate::record::Decoder;
use crate::state::State;
use crate::types::{Revision, Table};
use format::{BackupReader, BackupWriter, Header};

pub use restore::restore;
#[cfg(test)]
pub(crate) use restore::restore_knowing;

/// How far the revision of a restored member is above that of its backup.
pub const REVISION_GAP: u64 = 1_000_000_000;

/// A state that does not change any more, on its way to a file.
#[derive(Debug)]
pub struct Backup {
    state: State,
    encryption: Encryption,
    creation: Vec<u8>,
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSummary {
    /// What was given to [`crate::Store::backup`].
    pub creation: Vec<u8>,
    /// The feature level of the cluster.
    pub level: u32,
    /// The revision that was saved.
    pub revision: Revision,
    /// How many objects each table has.
    pub tables: BTreeMap<Table, u64>,
    /// How many objects there are.
    pub rows: u64,
    /// How many of them need a key to be read.
    pub sealed: u64,
    /// The size of the file.
    pub bytes: u64,
}

/// Why a backup is refused. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file cannot be read.
    #[error("the backup cannot be read ({0}): check the file and its disk, or use another backup")]
    Read(#[source] io::Error),
    /// It is something else.
    #[error("this is no backup of a gantry cluster: give a file that a backup wrote")]
    Foreign,
    /// A format of the future.
    #[error("the backup has format {found}, this server knows {known}: upgrade this server")]
    Format {
        /// The backup's.
        found: u32,
        /// This build's.
        known: u32,
    },
    /// A feature level of the future.
    #[error("the backup {0}")]
    Newer(#[from] NewerLevel),
    /// Something in it is not as it was written.
    #[error("the backup is damaged ({what}, before byte {at}): use another copy or another backup")]
    Damaged {
        /// How that shows.
        what: String,
        /// Where it was noticed.
        at: u64,
    },
    /// A value cannot be opened.
    #[error("the backup cannot be opened: {0}")]
    Sealed(#[source] TransformError),
    /// There is something already.
    #[error(
        "the directory {path} is not empty: a backup is restored into an empty directory only, so stop the server that \
         uses this one, move it away and restore again"
    )]
    Occupied {
        /// Which directory.
        path: PathBuf,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The restored data could not be written.
    #[error(
        "cannot write what was restored ({0}): check that disk and its free space, then restore again"
    )]
    Write(#[source] io::Error),
}

impl Backup {
    pub(crate) fn new(state: State, encryption: Encryption, creation: Vec<u8>) -> Backup {
        Backup {
            state,
            encryption,
            creation,
        }
    }

    /// The revision that is saved.
    pub fn revision(&self) -> Revision {
        self.state.revision
    }

    /// Writes everything. It takes as long as the writer does, and holds up nobody meanwhile. The file is whole when
    /// this returns; making it durable is up to the caller.
    pub fn write(self, writer: impl io::Write) -> io::Result<BackupSummary> {
        let header = Header {
            level: self.state.level.0,
            revision: self.state.revision.0,
            creation: self.creation,
        };
        let mut file = BackupWriter::begin(writer, header)?;
        for (key, entry) in self.state.rows() {
            file.row(&key, entry, &self.encryption)?;
        }
        file.finish()
    }
}

/// Verifies the whole backup and says what it holds; no key is needed. Blocks while it reads.
pub fn inspect(reader: impl io::Read) -> Result<BackupSummary, BackupError> {
    let mut file = BackupReader::begin(reader, FEATURE_LEVEL)?;
    let mut decoder = Decoder::default();
    while let Some(row) = file.row()? {
        let (key, sealed) = decoder.name(&row).map_err(|error| file.damaged(&error))?;
        file.count(key.table, sealed);
    }
    file.finish()
}

#[cfg(test)]
mod tests;
