//! Everything covered is sealed anew: rows are rewritten in slices between other work, then the log is cut.
//!
//! A slice is a run of the state like any other, with the rows as they are at that moment, so that nothing older ever
//! follows on something newer. What changes behind the slices is sealed with the current key anyway.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::{Failure, Member};
use crate::disk::{Applied, StateWriter};
use crate::encryption::Encryption;
use crate::types::Key;

/// Rows rewritten between two looks at what else is to do.
const SLICE: usize = 512;

/// Rewriting under way, and those who asked for another one.
#[derive(Default)]
pub(super) struct Resealing {
    asked: Vec<oneshot::Sender<()>>,
    current: Option<Rewrite>,
}

struct Rewrite {
    stage: Stage,
    /// No log entry up to this one may stay.
    until: u64,
    replies: Vec<oneshot::Sender<()>>,
}

enum Stage {
    /// Rows up to this one are queued.
    Rows(Option<Key>),
    /// All are; they are written once the writer has done so many runs.
    Log(u64),
}

impl Resealing {
    /// Someone wants everything rewritten that was sealed before this call.
    pub(super) fn ask(&mut self, reply: oneshot::Sender<()>) {
        self.asked.push(reply);
    }
}

impl Member {
    /// The next step of it, if there is anything to do.
    pub(super) fn reseal(&mut self) -> Result<(), Failure> {
        let mut rewrite = match self.resealing.current.take() {
            Some(rewrite) => rewrite,
            None if self.resealing.asked.is_empty() => return Ok(()),
            None => Rewrite {
                stage: Stage::Rows(None),
                until: self.node.raft.raft_log.last_index(),
                replies: std::mem::take(&mut self.resealing.asked),
            },
        };
        if let Stage::Rows(cursor) = rewrite.stage {
            rewrite.stage = self.rewrite_slice(cursor);
        }
        // A new leader may have cut the log below.
        rewrite.until = rewrite.until.min(self.node.raft.raft_log.last_index());
        if let Stage::Log(runs) = rewrite.stage
            && self
                .writer
                .as_ref()
                .is_none_or(|writer| writer.written() >= runs)
            && self.written() >= rewrite.until
        {
            self.node.mut_store().truncate_durably(rewrite.until)?;
            tracing::info!(index = rewrite.until, "sealed everything anew");
            for reply in rewrite.replies {
                // The one who asked may have gone.
                reply.send(()).ok();
            }
            return Ok(());
        }
        self.resealing.current = Some(rewrite);
        Ok(())
    }

    fn rewrite_slice(&mut self, cursor: Option<Key>) -> Stage {
        let Some(writer) = &mut self.writer else {
            return Stage::Log(0);
        };
        let encryption = Encryption::new(self.config.transformer.clone());
        let state = self.shared.state.read();
        let rows: HashMap<_, _> = state
            .rows_of(|table| encryption.covers(table), cursor.as_ref())
            .take(SLICE)
            .map(|(key, entry)| (key, Some(entry.clone())))
            .collect();
        let last = rows.keys().max().cloned();
        let run = Applied {
            index: state.applied,
            revision: state.revision,
            level: None,
            conf_state: state.conf_state.clone(),
            rows,
        };
        drop(state);
        writer.write(run);
        match last {
            Some(key) => Stage::Rows(Some(key)),
            None => Stage::Log(writer.queued()),
        }
    }

    /// The state on disk is at least of this log entry.
    pub(super) fn written(&self) -> u64 {
        let persisted = self.writer.as_ref().map(StateWriter::persisted);
        persisted.map_or(self.applied, |index| index.min(self.applied))
    }
}
