//! The replicated state machine: transactions in, revisions and events out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::table::{Rows, TableSnapshot};
use crate::types::{
    Entry, Event, Guard, Key, Operation, ProposeError, Revision, Table, Term, Transaction,
};

/// Everything committed so far, and the ring of recent events. Apply depends on the state and the transaction alone.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) compacted: Revision,
    pub(crate) tables: HashMap<Table, Rows>,
    pub(crate) history: VecDeque<Event>,
}

impl State {
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

    /// Keeps the events for watchers, and drops whole revisions beyond `limit` events.
    pub(crate) fn remember(&mut self, events: &[Event], limit: usize) {
        self.history.extend(events.iter().cloned());
        while self.history.len() > limit {
            let Some(oldest) = self.history.front().map(|event| event.revision) else {
                break;
            };
            while self
                .history
                .front()
                .is_some_and(|event| event.revision == oldest)
            {
                self.history.pop_front();
            }
            self.compacted = oldest;
        }
    }
}
