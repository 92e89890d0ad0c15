//! Raising the feature level: one log entry, which every member applies or, when it does not know the level, stops at.

use raft::StateRole;

use super::{Failure, Member, Own, Pending};
use crate::level::{Level, NewerLevel};
use crate::packet::Tags;
use crate::types::ProposeError;

impl Member {
    /// Proposes the level, on the leader; whoever waits for it has been admitted.
    pub(super) fn raise_level(&mut self, own: Own, level: u32) {
        if self.node.raft.state != StateRole::Leader {
            let leader = self.leader();
            self.shared
                .answer(own.reply, Err(ProposeError::NotLeader { leader }));
            return;
        }
        if let Some(reason) = self.disks.refusal() {
            let refused = ProposeError::ReadOnly(reason.clone());
            self.shared.answer(own.reply, Err(refused));
            return;
        }
        let context = Tags {
            tags: Vec::new(),
            level,
            skipped: 0,
            ..Tags::default()
        };
        let context = prost::Message::encode_to_vec(&context);
        if let Err(error) = self.node.propose(context, Vec::new()) {
            tracing::debug!(%error, "a feature level was dropped");
            let waiting = self.shared.waiting();
            self.shared
                .answer(own.reply, Err(ProposeError::Overloaded { waiting }));
            return;
        }
        self.pending.push_back(Pending {
            index: self.node.raft.raft_log.last_index(),
            term: self.node.raft.term,
            own: vec![own],
        });
    }

    /// The level that an entry raises the state to, if it does.
    pub(super) fn level_of(&self, tags: &Tags, index: u64) -> Result<Option<Level>, Failure> {
        let level = Level(tags.level).known(self.known_level);
        let level = level.map_err(|newer| stopped_at(format!("log entry {index}"), newer))?;
        Ok(Some(level).filter(|level| level.0 > 0))
    }
}

/// Something came that this build cannot go on with.
pub(super) fn stopped_at(what: String, newer: NewerLevel) -> Failure {
    Failure::Newer { what, newer }
}
