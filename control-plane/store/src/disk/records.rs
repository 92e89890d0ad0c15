//! How log entries, rows and markers are keyed and encoded on disk. Every record carries its checksum.

use std::collections::HashMap;

use raft::eraftpb::{ConfState, Entry as LogEntry, EntryType, HardState};

use super::Applied;
use crate::encryption::Encryption;
use crate::level::Level;
use crate::record::{RecordError, encode_row, seal, unseal};
use crate::types::{Entry, Key, Revision};

pub(crate) const HARD_STATE: &[u8] = b"mhard";
pub(crate) const LOG_START: &[u8] = b"mstart";
/// There while the volume is being filled from a backup.
pub(crate) const RESTORING: &[u8] = b"mrestoring";
/// There once the state was found to differ from the other members'; the log entry.
pub(crate) const DIVERGED: &[u8] = b"mdiverged";
pub(crate) const APPLIED: &[u8] = b"mapplied";
/// The feature level; absent for the first.
pub(crate) const LEVEL: &[u8] = b"mlevel";
pub(crate) const ENTRY: u8 = b'e';
pub(crate) const ROW: u8 = b'r';

pub(crate) fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Names hold no zero byte, so that the parts cannot run into each other.
pub(crate) fn row_key(key: &Key) -> Vec<u8> {
    let parts = [&key.table.0, &key.namespace, &key.name];
    let mut bytes = vec![ROW];
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
    }
    bytes
}

pub(crate) fn row_record(key: &Key, entry: &Entry, encryption: &Encryption) -> Vec<u8> {
    seal(&encode_row(key, entry, encryption))
}

pub(crate) fn numbers<const N: usize>(values: [u64; N]) -> Vec<u8> {
    seal(&values.map(u64::to_le_bytes).concat())
}

pub(crate) fn hard_record(hard_state: &HardState) -> Vec<u8> {
    numbers([hard_state.term, hard_state.vote, hard_state.commit])
}

pub(crate) fn level_record(level: Level) -> Vec<u8> {
    numbers([u64::from(level.0)])
}

pub(crate) fn decode_numbers<const N: usize>(body: &[u8]) -> Result<[u64; N], RecordError> {
    let (words, rest) = body.as_chunks::<8>();
    if words.len() != N || !rest.is_empty() {
        return Err(RecordError::Short);
    }
    Ok(std::array::from_fn(|at| u64::from_le_bytes(words[at])))
}

/// Type, index and term, the context's length, the context, the data.
pub(crate) fn entry_record(entry: &LogEntry) -> Vec<u8> {
    let mut body = Vec::with_capacity(21 + entry.context.len() + entry.data.len());
    body.push(entry.entry_type as u8);
    body.extend_from_slice(&entry.index.to_le_bytes());
    body.extend_from_slice(&entry.term.to_le_bytes());
    body.extend_from_slice(&(entry.context.len() as u32).to_le_bytes());
    body.extend_from_slice(&entry.context);
    body.extend_from_slice(&entry.data);
    seal(&body)
}

pub(crate) fn decode_entry(index: u64, record: &[u8]) -> Result<LogEntry, RecordError> {
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

pub(crate) fn encode_applied(index: u64, revision: Revision, conf_state: &ConfState) -> Vec<u8> {
    let members = encode_conf_state(conf_state);
    let mut body = [index, revision.0].map(u64::to_le_bytes).concat();
    body.extend_from_slice(&members);
    seal(&body)
}

pub(crate) fn decode_applied(body: &[u8]) -> Result<Applied, RecordError> {
    let (head, members) = body.split_at_checked(16).ok_or(RecordError::Short)?;
    let [index, revision] = decode_numbers(head)?;
    Ok(Applied {
        index,
        revision: Revision(revision),
        level: None,
        conf_state: decode_conf_state(members)?,
        rows: HashMap::new(),
    })
}

pub(crate) fn encode_conf_state(conf_state: &ConfState) -> Vec<u8> {
    protobuf::Message::write_to_bytes(conf_state).expect("a message always fits a vector")
}

pub(crate) fn decode_conf_state(bytes: &[u8]) -> Result<ConfState, RecordError> {
    let mut conf_state = ConfState::default();
    protobuf::Message::merge_from_bytes(&mut conf_state, bytes)
        .map_err(|_| RecordError::Unknown("membership"))?;
    Ok(conf_state)
}
