//! From a backup to the directory of a member that opens as the only voter of its cluster.
//!
//! Rows are written while the backup is read, below a mark that lets nobody open the directory. Only when all of it is
//! verified the mark gives way to what makes a member, in one synced write. What fails before leaves an empty directory;
//! what is killed before leaves the mark.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use super::format::BackupReader;
use super::{BackupError, BackupSummary, REVISION_GAP};
use crate::config::{OpenError, StoreConfig};
use crate::disk::fjall::FjallEngine;
use crate::disk::{DiskError, Volume};
use crate::encryption::Encryption;
use crate::level::FEATURE_LEVEL;
use crate::record::{Decoder, RecordError};
use crate::types::Revision;

/// Rows are written together up to this size.
const BATCH_BYTES: usize = 1 << 20;

/// Makes `config.data_dir`, which must be empty or missing, the directory of the member `config.member_id`, the only
/// voter. `config.transformer` must open what the backup's transformer sealed. Blocks while it reads and writes.
pub fn restore(reader: impl io::Read, config: &StoreConfig) -> Result<BackupSummary, BackupError> {
    restore_knowing(reader, config, FEATURE_LEVEL)
}

pub(crate) fn restore_knowing(
    reader: impl io::Read,
    config: &StoreConfig,
    known: u32,
) -> Result<BackupSummary, BackupError> {
    config.check()?;
    let existed = is_empty(&config.data_dir)?;
    let file = BackupReader::begin(reader, known)?;
    let engine = FjallEngine::open(&config.data_dir, false)?;
    let restored = fill(file, Arc::new(engine), config);
    if restored.is_err()
        && let Err(error) = clear(&config.data_dir, existed)
    {
        tracing::warn!(%error, path = %config.data_dir.display(), "a backup was not restored, and what was written of it is still there");
    }
    restored
}

/// Whether the directory exists; it must be empty then.
fn is_empty(path: &Path) -> Result<bool, BackupError> {
    let unreadable = |source| OpenError::Directory {
        path: path.to_owned(),
        source,
    };
    match fs::read_dir(path) {
        Ok(mut items) => match items.next().transpose().map_err(unreadable)? {
            None => Ok(true),
            Some(_) => Err(BackupError::Occupied {
                path: path.to_owned(),
            }),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(unreadable(error).into()),
    }
}

fn fill<R: io::Read>(
    mut file: BackupReader<R>,
    engine: Arc<FjallEngine>,
    config: &StoreConfig,
) -> Result<BackupSummary, BackupError> {
    let encryption = Encryption::new(config.transformer.clone());
    let volume = Volume::new(&config.data_dir, engine, encryption.clone());
    volume.begin_restore().map_err(unwritten)?;
    let mut decoder = Decoder::new(encryption);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = file.row()? {
        let read = decoder
            .name(&row)
            .and_then(|(key, sealed)| Ok((key, sealed, decoder.row(&row)?.1)));
        let (key, sealed, entry) = read.map_err(|error| match error {
            RecordError::Sealed(reason) => BackupError::Sealed(reason),
            error => file.damaged(&error),
        })?;
        file.count(key.table.clone(), sealed);
        rows.push((key, entry));
        bytes += row.len();
        if bytes >= BATCH_BYTES {
            volume.restore_rows(&rows).map_err(unwritten)?;
            rows.clear();
            bytes = 0;
        }
    }
    volume.restore_rows(&rows).map_err(unwritten)?;
    let (revision, level) = (file.revision(), file.level());
    let summary = file.finish()?;
    let revision = Revision(revision.0.saturating_add(REVISION_GAP));
    volume
        .finish_restore(config.member_id, revision, level)
        .map_err(unwritten)?;
    Ok(summary)
}

/// Removes what was begun; the directory itself only when it did not exist before.
fn clear(path: &Path, existed: bool) -> io::Result<()> {
    if !existed {
        return fs::remove_dir_all(path);
    }
    for item in fs::read_dir(path)? {
        let item = item?.path();
        if item.is_dir() {
            fs::remove_dir_all(item)?;
        } else {
            fs::remove_file(item)?;
        }
    }
    Ok(())
}

fn unwritten(error: DiskError) -> BackupError {
    BackupError::Write(io::Error::other(format!(
        "{} in {}: {}",
        error.doing,
        error.path.display(),
        error.cause
    )))
}
