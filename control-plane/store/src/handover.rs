//! Raft's snapshot, a state on its way to another member: taken in O(1), cut into chunks as they are asked for.

use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use raft::eraftpb::SnapshotMetadata;

use crate::encryption::Encryption;
use crate::packet::StateId;
use crate::record::encode_row;
use crate::state::State;
use crate::types::{Entry, Key};

/// What the parts of a row add to its strings, roughly.
const ROW_BYTES: usize = 48;

/// How states are cut: into chunks of about so many bytes, sealed.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    pub(crate) bytes: usize,
    pub(crate) encryption: Encryption,
}

/// A state that does not change any more. The rows of its chunks depend on it and on the chunk size alone, so that a
/// transfer that broke off goes on at the chunk it had reached.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) metadata: SnapshotMetadata,
    pub(crate) state: State,
    cut: Cut,
    /// The last key before every chunk that is known so far; `None` is the beginning.
    cursors: Mutex<Vec<Option<Key>>>,
}

impl Taken {
    pub(crate) fn new(metadata: SnapshotMetadata, state: State, cut: Cut) -> Arc<Taken> {
        Arc::new(Taken {
            metadata,
            state,
            cut,
            cursors: Mutex::new(vec![None]),
        })
    }

    pub(crate) fn id(&self) -> StateId {
        StateId {
            index: self.metadata.index,
            term: self.metadata.term,
            fingerprint: self.state.fingerprint(),
        }
    }

    /// The rows of a chunk, and whether it is the last; `None` past the last.
    pub(crate) fn chunk(&self, number: u64) -> Option<(Vec<u8>, bool)> {
        let mut cursors = self.cursors.lock();
        loop {
            let known = cursors.len() as u64;
            let at = number.min(known - 1);
            let (rows, end) = self.rows_from(cursors[at as usize].as_ref());
            if number < known {
                if number + 1 == known
                    && let Some(end) = end.clone()
                {
                    cursors.push(Some(end));
                }
                return Some((rows, end.is_none()));
            }
            cursors.push(Some(end?));
        }
    }

    /// Rows after `cursor`, and the last key when more follow.
    fn rows_from(&self, cursor: Option<&Key>) -> (Vec<u8>, Option<Key>) {
        let mut bytes = Vec::new();
        let mut weighed = 0;
        let mut last = None;
        for (key, entry) in self.state.rows_after(cursor) {
            if weighed >= self.cut.bytes {
                return (bytes, last);
            }
            weighed += weight(&key, entry);
            let row = encode_row(&key, entry, &self.cut.encryption);
            row.encode_length_delimited(&mut bytes)
                .expect("a vector grows as needed");
            last = Some(key);
        }
        (bytes, None)
    }
}

/// Of the plain row: sealed ones may differ in length between members, but chunks must end at the same rows.
fn weight(key: &Key, entry: &Entry) -> usize {
    let names = key.table.0.len() + key.namespace.len() + key.name.len();
    let pairs = entry.index.labels.iter().chain(&entry.index.fields);
    let pairs: usize = pairs.map(|(name, value)| name.len() + value.len()).sum();
    ROW_BYTES + names + entry.value.len() + pairs
}
