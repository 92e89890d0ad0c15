//! A state on its way to another member: taken in O(1), cut into chunks as they are asked for.

use std::sync::Arc;

use parking_lot::Mutex;
use prost::Message;
use raft::eraftpb::SnapshotMetadata;

use crate::packet::StateId;
use crate::record::encode_row;
use crate::state::State;
use crate::types::Key;

/// A state that does not change any more. Its chunks depend on it and on the chunk size alone, so that a transfer that
/// broke off goes on at the chunk it had reached.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) metadata: SnapshotMetadata,
    pub(crate) state: State,
    chunk_bytes: usize,
    /// The last key before every chunk that is known so far; `None` is the beginning.
    cursors: Mutex<Vec<Option<Key>>>,
}

impl Taken {
    pub(crate) fn new(metadata: SnapshotMetadata, state: State, chunk_bytes: usize) -> Arc<Taken> {
        Arc::new(Taken {
            metadata,
            state,
            chunk_bytes,
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
            let (rows, end) = self.cut(cursors[at as usize].as_ref());
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
    fn cut(&self, cursor: Option<&Key>) -> (Vec<u8>, Option<Key>) {
        let mut bytes = Vec::new();
        let mut last = None;
        for (key, entry) in self.state.rows_after(cursor) {
            if bytes.len() >= self.chunk_bytes {
                return (bytes, last);
            }
            let row = encode_row(&key, entry);
            row.encode_length_delimited(&mut bytes)
                .expect("a vector grows as needed");
            last = Some(key);
        }
        (bytes, None)
    }
}
