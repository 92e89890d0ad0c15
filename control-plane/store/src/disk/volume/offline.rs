//! What is done to the records of a member that does not run.

use raft::eraftpb::{ConfState, Entry as LogEntry, HardState};

use super::{Volume, log_change, state_change};
use crate::disk::records::{
    APPLIED, HARD_STATE, LEVEL, LOG_START, RESTORING, encode_applied, entry_key, entry_record,
    hard_record, level_record, numbers, row_key, row_record,
};
use crate::disk::{Batch, DiskError};
use crate::level::Level;
use crate::state::State;
use crate::types::{Entry, Key, Revision};

impl Volume {
    /// Marks an empty volume: nobody may open it until [`Volume::finish_restore`].
    pub(crate) fn begin_restore(&self) -> Result<(), DiskError> {
        let batch = vec![log_change(RESTORING, Some(numbers([])))];
        self.commit("beginning a restore", batch, true)
    }

    /// Writes rows of the restored state, without a sync.
    pub(crate) fn restore_rows(&self, rows: &[(Key, Entry)]) -> Result<(), DiskError> {
        let row = |(key, entry): &(Key, Entry)| {
            let record = row_record(key, entry, &self.encryption);
            state_change(row_key(key), Some(record))
        };
        let batch: Batch = rows.iter().map(row).collect();
        self.commit("restoring rows", batch, false)
    }

    /// Makes the rows the state of a new cluster's founder and only voter. Durable.
    pub(crate) fn finish_restore(
        &self,
        member: u64,
        revision: Revision,
        level: Level,
    ) -> Result<(), DiskError> {
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.commit) = (1, 1);
        let members = ConfState::from((vec![member], Vec::new()));
        let applied = encode_applied(1, revision, &members);
        let batch = vec![
            log_change(RESTORING, None),
            log_change(HARD_STATE, Some(hard_record(&hard_state))),
            log_change(LOG_START, Some(numbers([1, 1]))),
            state_change(APPLIED, Some(applied)),
            state_change(LEVEL, Some(level_record(level))),
        ];
        self.commit("finishing a restore", batch, true)
    }

    /// Replaces log entries, or adds one at the end, and makes the member the only one. Durable.
    pub(crate) fn become_sole_voter(
        &self,
        member: u64,
        state: &State,
        entries: &[LogEntry],
    ) -> Result<(), DiskError> {
        let record =
            |entry: &LogEntry| log_change(entry_key(entry.index), Some(entry_record(entry)));
        let mut batch: Batch = entries.iter().map(record).collect();
        let members = ConfState::from((vec![member], Vec::new()));
        let applied = encode_applied(state.applied, state.revision, &members);
        batch.push(state_change(APPLIED, Some(applied)));
        self.commit("making this member the only voter", batch, true)
    }
}
