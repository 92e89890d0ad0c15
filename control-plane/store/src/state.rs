//! The replicated state machine: transactions in, revisions and events out.

use std::collections::{HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use raft::eraftpb::ConfState;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::level::Level;
use crate::table::{Rows, TableSnapshot};
use crate::types::{
    Entry, Event, Guard, Key, Operation, ProposeError, Revision, Table, Term, Transaction,
};

/// Everything committed so far, and the ring of recent events. Apply depends on the state and the transaction alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) tables: HashMap<Table, Rows>,
    /// The log entry this is the state of.
    pub(crate) applied: u64,
    /// Never falls.
    pub(crate) level: Level,
    /// The members as of that entry.
    pub(crate) conf_state: ConfState,
    /// Watches can start here or later. What is remembered is each member's own.
    pub(crate) compacted: Revision,
    pub(crate) history: VecDeque<Event>,
    history_bytes: usize,
    /// The sum of the hashes of all rows.
    rows_hash: u64,
}

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryLimits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

impl State {
    /// Begins at a revision without a history of what came before.
    pub(crate) fn restart_at(&mut self, revision: Revision) {
        self.revision = revision;
        self.compacted = revision;
        self.history.clear();
        self.history_bytes = 0;
    }

    /// Goes on so many revisions later. What came before is no history any more, though its events are let go of only with
    /// time.
    pub(crate) fn skip(&mut self, revisions: u64) {
        self.revision = Revision(self.revision.0.saturating_add(revisions));
        self.compacted = self.revision;
    }

    pub(crate) fn insert(&mut self, key: Key, entry: Entry) {
        self.rows_hash = self.rows_hash.wrapping_add(row_hash(&key, &entry));
        let rows = self.tables.entry(key.table).or_default();
        rows.insert((key.namespace, key.name), Arc::new(entry));
    }

    /// A hash of the revision, the feature level and every row: equal for equal states, whichever way they came about.
    pub(crate) fn fingerprint(&self) -> u64 {
        let level = u64::from(self.level.0);
        let words = [self.revision.0, level, self.rows_hash].map(u64::to_le_bytes);
        xxh3_64(&words.concat())
    }

    /// Every object, ordered by table, namespace and name.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (Key, &Arc<Entry>)> {
        self.rows_after(None)
    }

    /// The objects after `cursor`, in the same order.
    pub(crate) fn rows_after(
        &self,
        cursor: Option<&Key>,
    ) -> impl Iterator<Item = (Key, &Arc<Entry>)> {
        self.rows_of(|_| true, cursor)
    }

    /// The objects of some tables after `cursor`, in the same order.
    pub(crate) fn rows_of(
        &self,
        wanted: impl Fn(&Table) -> bool,
        cursor: Option<&Key>,
    ) -> impl Iterator<Item = (Key, &Arc<Entry>)> {
        let mut tables: Vec<_> = self
            .tables
            .iter()
            .filter(|(table, _)| cursor.is_none_or(|cursor| **table >= cursor.table))
            .filter(|(table, _)| wanted(table))
            .collect();
        tables.sort_by_key(|(table, _)| *table);
        tables.into_iter().flat_map(move |(table, rows)| {
            let start = match cursor.filter(|cursor| cursor.table == *table) {
                Some(key) => Bound::Excluded((Arc::clone(&key.namespace), Arc::clone(&key.name))),
                None => Bound::Unbounded,
            };
            rows.range((start, Bound::Unbounded))
                .map(|((namespace, name), entry)| {
                    let key = Key {
                        table: table.clone(),
                        namespace: Arc::clone(namespace),
                        name: Arc::clone(name),
                    };
                    (key, entry)
                })
        })
    }

    /// A copy without history, in O(tables).
    pub(crate) fn without_history(&self) -> State {
        State {
            revision: self.revision,
            tables: self.tables.clone(),
            applied: self.applied,
            level: self.level,
            conf_state: self.conf_state.clone(),
            rows_hash: self.rows_hash,
            ..State::default()
        }
    }

    /// A table as it was at an earlier revision, by undoing what came since; `None` when that is forgotten.
    pub(crate) fn undo_to(&self, table: &Table, revision: Revision) -> Option<Undo> {
        if revision > self.revision || revision < self.compacted {
            return None;
        }
        let newer = self.history.iter().rev();
        let changes = newer
            .take_while(|event| event.revision > revision)
            .filter(|event| event.key.table == *table)
            .map(|event| (event.key.clone(), event.previous.clone()))
            .collect();
        Some(Undo {
            now: self.snapshot(table).rows,
            revision,
            changes,
        })
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Entry>> {
        let rows = self.tables.get(&key.table)?;
        rows.get(&(Arc::clone(&key.namespace), Arc::clone(&key.name)))
    }

    pub(crate) fn snapshot(&self, table: &Table) -> TableSnapshot {
        TableSnapshot {
            revision: self.revision,
            rows: self.tables.get(table).cloned().unwrap_or_default(),
        }
    }

    /// Checks every guard, then applies every operation at one new revision. A transaction that changes nothing
    /// keeps the revision. `term` is the term of the entry being applied.
    pub(crate) fn apply(
        &mut self,
        transaction: Transaction,
        term: Term,
    ) -> Result<Vec<Event>, ProposeError> {
        for (position, guard) in transaction.guards.iter().enumerate() {
            let (holds, current) = match guard {
                Guard::ModifiedAt(key, revision) => {
                    let current = self.get(key);
                    (
                        current.is_some_and(|entry| entry.modify_revision == *revision),
                        current,
                    )
                }
                Guard::Exists(key) => (self.get(key).is_some(), None),
                Guard::Absent(key) => (self.get(key).is_none(), self.get(key)),
                Guard::Term(wanted) => (*wanted == term, None),
            };
            if !holds {
                return Err(ProposeError::Conflict {
                    guard: position,
                    current: current.cloned(),
                });
            }
        }
        let revision = Revision(self.revision.0 + 1);
        let events: Vec<Event> = transaction
            .operations
            .into_iter()
            .filter_map(|operation| self.change(operation, revision))
            .collect();
        if !events.is_empty() {
            self.revision = revision;
        }
        Ok(events)
    }

    fn change(&mut self, operation: Operation, revision: Revision) -> Option<Event> {
        match operation {
            Operation::Put { key, value, index } => {
                let previous = self.get(&key).cloned();
                let create_revision = previous
                    .as_ref()
                    .map_or(revision, |entry| entry.create_revision);
                let entry = Arc::new(Entry {
                    value,
                    index,
                    create_revision,
                    modify_revision: revision,
                });
                let removed = previous.as_ref().map_or(0, |entry| row_hash(&key, entry));
                self.rows_hash = self
                    .rows_hash
                    .wrapping_sub(removed)
                    .wrapping_add(row_hash(&key, &entry));
                let rows = self.tables.entry(key.table.clone()).or_default();
                rows.insert(
                    (Arc::clone(&key.namespace), Arc::clone(&key.name)),
                    Arc::clone(&entry),
                );
                Some(Event {
                    revision,
                    key,
                    entry,
                    previous,
                    deleted: false,
                })
            }
            Operation::Delete { key, last } => {
                let rows = self.tables.get_mut(&key.table)?;
                let previous = rows.remove(&(Arc::clone(&key.namespace), Arc::clone(&key.name)))?;
                self.rows_hash = self.rows_hash.wrapping_sub(row_hash(&key, &previous));
                let mut entry = Entry::clone(&previous);
                entry.modify_revision = revision;
                if let Some(value) = last {
                    entry.value = value;
                }
                Some(Event {
                    revision,
                    key,
                    entry: Arc::new(entry),
                    previous: Some(previous),
                    deleted: true,
                })
            }
        }
    }

    /// Keeps the events for watchers, and drops whole revisions beyond the limits.
    pub(crate) fn remember(&mut self, events: &[Event], limits: HistoryLimits) {
        self.history.extend(events.iter().cloned());
        self.history_bytes += events.iter().map(weight).sum::<usize>();
        while self.history.len() > limits.events || self.history_bytes > limits.bytes {
            let Some(oldest) = self.history.front().map(|event| event.revision) else {
                break;
            };
            while let Some(event) = self.history.front()
                && event.revision == oldest
            {
                self.history_bytes -= weight(event);
                self.history.pop_front();
            }
            self.compacted = self.compacted.max(oldest);
        }
    }
}

/// Rows are summed up, so that a change costs what the row costs. Every part follows on its length, so that no two rows
/// have the same parts.
fn row_hash(key: &Key, entry: &Entry) -> u64 {
    let mut hasher = Xxh3::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for name in [&key.table.0, &key.namespace, &key.name] {
        part(name.as_bytes());
    }
    part(&entry.value);
    for list in [&entry.index.labels, &entry.index.fields] {
        part(&(list.len() as u64).to_le_bytes());
        for (name, value) in list {
            part(name.as_bytes());
            part(value.as_bytes());
        }
    }
    part(&entry.create_revision.0.to_le_bytes());
    part(&entry.modify_revision.0.to_le_bytes());
    hasher.digest()
}

/// What an event keeps alive, in bytes, roughly.
fn weight(event: &Event) -> usize {
    const FIXED: usize = 256;
    FIXED + event.entry.value.len()
}

/// What is needed to bring a table back to an earlier revision; done outside of the lock.
pub(crate) struct Undo {
    now: Rows,
    revision: Revision,
    changes: Vec<(Key, Option<Arc<Entry>>)>,
}

impl Undo {
    pub(crate) fn run(mut self) -> TableSnapshot {
        for (key, previous) in self.changes {
            match previous {
                Some(entry) => self.now.insert((key.namespace, key.name), entry),
                None => self.now.remove(&(key.namespace, key.name)),
            };
        }
        TableSnapshot {
            revision: self.revision,
            rows: self.now,
        }
    }
}

#[cfg(test)]
mod tests;
