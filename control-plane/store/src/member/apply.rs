//! From committed entries to the state, the disk, the watchers, and those who wait.

use std::collections::HashMap;

use raft::eraftpb::{
    ConfChange, ConfChangeV2, ConfState, Entry as LogEntry, EntryType, HardState, Snapshot,
};

use super::{Failure, Member, Own, Pending};
use crate::disk::Applied;
use crate::metrics::METRICS;
use crate::packet::Tags;
use crate::record::RecordError;
use crate::types::{Event, ProposeError, Revision, Term};

type Outcome = Result<Revision, ProposeError>;

impl Member {
    pub(super) fn apply(&mut self, entries: Vec<LogEntry>) -> Result<(), Failure> {
        #[cfg(test)]
        let entries = self.mutate(entries);
        for entry in entries {
            match entry.get_entry_type() {
                EntryType::EntryNormal => self.apply_transactions(&entry)?,
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.apply_members(&entry)?;
                }
            }
            self.applied = entry.index;
            self.applied_term = entry.term;
            self.pass_forwards(entry.term);
        }
        METRICS.applied.set(self.applied as i64);
        Ok(())
    }

    fn apply_transactions(&mut self, entry: &LogEntry) -> Result<(), Failure> {
        let malformed = |reason: String| Failure::Entry {
            index: entry.index,
            reason,
        };
        let transactions = self.decoder.transactions(&entry.data);
        let transactions = transactions.map_err(|error| match error {
            RecordError::Sealed(reason) => Failure::Sealed {
                index: entry.index,
                reason,
            },
            error => malformed(error.to_string()),
        })?;
        let tags: Tags = prost::Message::decode(&*entry.context)
            .map_err(|error| malformed(error.to_string()))?;
        let level = self.level_of(&tags, entry.index)?;
        #[cfg(test)]
        let transactions = self.unfence(transactions);
        let mut results = Vec::with_capacity(transactions.len());
        let mut events: Vec<Event> = Vec::with_capacity(transactions.len());
        let mut state = self.shared.state.write();
        if let Some(level) = level {
            state.level = state.level.max(level);
            // The one who asked for it has the place of a transaction.
            results.push(Ok(state.revision));
        }
        let raised = level.map(|_| state.level);
        for transaction in transactions {
            let result = state.apply(transaction, Term(entry.term)).map(|changes| {
                events.extend(changes);
                state.revision
            });
            results.push(result);
        }
        state.remember(&events, self.shared.history);
        if tags.skipped > 0 {
            state.skip(tags.skipped);
        }
        state.applied = entry.index;
        let (revision, fingerprint) = (state.revision, state.fingerprint());
        let conf_state = self.writer.is_some().then(|| state.conf_state.clone());
        drop(state);
        self.shared.remember_fingerprint(entry.index, fingerprint);
        self.answer_forwards(&tags, &results);
        self.answer(entry, results);
        if tags.skipped > 0 {
            self.shared.hub.jump(revision);
        } else if !events.is_empty() {
            METRICS.revision.set(revision.0 as i64);
            self.shared.hub.publish(&events, revision);
        }
        if let (Some(writer), Some(conf_state)) = (&mut self.writer, conf_state) {
            let row = |event: Event| (event.key, (!event.deleted).then_some(event.entry));
            writer.write(Applied {
                index: entry.index,
                revision,
                level: raised,
                conf_state,
                rows: events.into_iter().map(row).collect(),
            });
        }
        Ok(())
    }

    fn answer(&mut self, entry: &LogEntry, results: Vec<Outcome>) {
        let mut results: Vec<Option<Outcome>> = results.into_iter().map(Some).collect();
        while let Some(pending) = self.next_pending(|first| first.index <= entry.index) {
            if (pending.index, pending.term) != (entry.index, entry.term) {
                self.refuse(pending, &ProposeError::Unknown);
                continue;
            }
            for own in pending.own {
                let result = results.get_mut(own.position).and_then(Option::take);
                self.answer_own(own, result.unwrap_or(Err(ProposeError::Unknown)));
            }
            return;
        }
    }

    pub(super) fn answer_own(&self, own: Own, result: Outcome) {
        METRICS
            .proposal
            .observe(own.submitted.elapsed().as_secs_f64());
        self.shared.answer(own.reply, result);
    }

    pub(super) fn next_pending(&mut self, wanted: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let next = self.pending.front().is_some_and(wanted);
        next.then(|| self.pending.pop_front()).flatten()
    }

    pub(super) fn refuse(&self, pending: Pending, error: &ProposeError) {
        for own in pending.own {
            self.shared.answer(own.reply, Err(error.clone()));
        }
    }

    fn apply_members(&mut self, entry: &LogEntry) -> Result<(), Failure> {
        let malformed = |_| Failure::Entry {
            index: entry.index,
            reason: "its membership change cannot be decoded".to_owned(),
        };
        let conf_state: ConfState = if entry.get_entry_type() == EntryType::EntryConfChange {
            let mut change = ConfChange::default();
            protobuf::Message::merge_from_bytes(&mut change, &entry.data).map_err(malformed)?;
            self.node.apply_conf_change(&change)?
        } else {
            let mut change = ConfChangeV2::default();
            protobuf::Message::merge_from_bytes(&mut change, &entry.data).map_err(malformed)?;
            self.node.apply_conf_change(&change)?
        };
        tracing::info!(
            index = entry.index, voters = ?conf_state.voters, learners = ?conf_state.learners,
            leaving = ?conf_state.voters_outgoing, "membership"
        );
        self.membership
            .applied(entry.index, entry.term, &conf_state);
        let mut state = self.shared.state.write();
        state.conf_state = conf_state.clone();
        state.applied = entry.index;
        let (revision, fingerprint) = (state.revision, state.fingerprint());
        drop(state);
        self.shared.remember_fingerprint(entry.index, fingerprint);
        if let Some(writer) = &mut self.writer {
            writer.write(Applied {
                index: entry.index,
                revision,
                level: None,
                conf_state,
                rows: HashMap::new(),
            });
        }
        Ok(())
    }

    /// Takes over the state that the leader sent, because it no longer has the entries this member lacks.
    pub(super) fn install(
        &mut self,
        snapshot: &Snapshot,
        hard_state: Option<HardState>,
    ) -> Result<(), Failure> {
        let metadata = snapshot.get_metadata();
        let start = (metadata.index, metadata.term);
        let mut state = self
            .transfers
            .take_received(start)
            .ok_or_else(|| Failure::Entry {
                index: metadata.index,
                reason: "the state up to it was not received".to_owned(),
            })?;
        state.applied = metadata.index;
        state.conf_state = metadata.get_conf_state().clone();
        tracing::info!(index = metadata.index, revision = %state.revision, "took over the leader's state");
        if let Some(writer) = &mut self.writer {
            // An older run must not be written over it.
            writer.flush();
            if let Some(error) = writer.failure() {
                return Err(Failure::Disk(error.clone()));
            }
        }
        self.node
            .mut_store()
            .install(&state, start, hard_state.as_ref())?;
        if let Some(writer) = &mut self.writer {
            writer.jump(metadata.index);
        }
        let (revision, fingerprint) = (state.revision, state.fingerprint());
        *self.shared.state.write() = state;
        self.shared
            .remember_fingerprint(metadata.index, fingerprint);
        self.applied = metadata.index;
        self.applied_term = metadata.term;
        // The entries between may have held them.
        for own in self.forwards.drain() {
            self.shared.answer(own.reply, Err(ProposeError::Unknown));
        }
        self.shared.hub.jump(revision);
        Ok(())
    }

    /// Writes one queued run of the state, when no thread does.
    #[cfg(test)]
    pub(crate) fn write_behind(&mut self) -> bool {
        self.writer
            .as_mut()
            .is_some_and(crate::disk::StateWriter::step)
    }
}

/// Deliberately broken rules, which the simulation must notice.
#[cfg(test)]
mod mutations {
    use super::*;
    use crate::simulation::Mutation;
    use crate::types::{Guard, Transaction};

    impl Member {
        pub(crate) fn mutate_to(&mut self, mutation: Option<Mutation>) {
            self.mutation = mutation;
            self.node.mut_store().sync = mutation != Some(Mutation::AcknowledgeBeforeSync);
        }

        pub(super) fn mutate(&self, mut entries: Vec<LogEntry>) -> Vec<LogEntry> {
            if self.mutation == Some(Mutation::ApplyOutOfOrder) {
                let normal = |entry: &LogEntry| {
                    entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty()
                };
                for at in 1..entries.len() {
                    if normal(&entries[at - 1]) && normal(&entries[at]) {
                        entries.swap(at - 1, at);
                        let (earlier, later) = entries.split_at_mut(at);
                        std::mem::swap(&mut earlier[at - 1].index, &mut later[0].index);
                    }
                }
            }
            entries
        }

        pub(super) fn unfence(&self, mut transactions: Vec<Transaction>) -> Vec<Transaction> {
            if self.mutation == Some(Mutation::SkipTermFence) {
                for transaction in &mut transactions {
                    transaction
                        .guards
                        .retain(|guard| !matches!(guard, Guard::Term(_)));
                }
            }
            transactions
        }
    }
}
