//! The handle others hold.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::broadcast;

use crate::state::State;
use crate::table::TableSnapshot;
use crate::types::{
    Entry, Event, Key, ProposeError, Revision, Table, Term, Transaction, WatchError,
};
use crate::watch::Watch;

const EVENT_HISTORY: usize = 100_000;
const WATCH_BUFFER: usize = 16_384;

/// The object store; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: RwLock<State>,
    events: broadcast::Sender<Arc<[Event]>>,
    event_history: usize,
}

impl Store {
    /// A store of this process's memory alone, for tests: nothing survives it, and it is always its own leader of
    /// term 1.
    pub fn ephemeral() -> Store {
        Store::in_memory(EVENT_HISTORY, WATCH_BUFFER)
    }

    fn in_memory(event_history: usize, watch_buffer: usize) -> Store {
        let (events, _) = broadcast::channel(watch_buffer);
        Store {
            shared: Arc::new(Shared {
                state: RwLock::default(),
                events,
                event_history,
            }),
        }
    }

    /// Applies the transaction when all of its guards hold, and answers once readers see it.
    pub async fn propose(&self, transaction: Transaction) -> Result<Revision, ProposeError> {
        let mut state = self.shared.state.write();
        let events = state.apply(transaction, Term(1))?;
        if !events.is_empty() {
            state.remember(&events, self.shared.event_history);
            // Sent under the lock, so that events leave in revision order; an error only means nobody watches.
            self.shared.events.send(events.into()).ok();
        }
        Ok(state.revision)
    }

    /// The last applied revision.
    pub fn revision(&self) -> Revision {
        self.shared.state.read().revision
    }

    /// Watches can start at this revision or later.
    pub fn compacted(&self) -> Revision {
        self.shared.state.read().compacted
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.shared.state.read().get(key).cloned()
    }

    /// A table as it is now, in O(1).
    pub fn snapshot(&self, table: &Table) -> TableSnapshot {
        self.shared.state.read().snapshot(table)
    }

    /// Every event of the tables with a revision greater than `from`, in order.
    pub fn watch(&self, tables: &[Table], from: Revision) -> Result<Watch, WatchError> {
        // Under the lock no event can fall between the history and the live stream.
        let state = self.shared.state.read();
        if from < state.compacted {
            return Err(WatchError::Compacted(state.compacted));
        }
        let start = state
            .history
            .partition_point(|event| event.revision <= from);
        let backlog = state
            .history
            .range(start..)
            .filter(|event| tables.contains(&event.key.table))
            .cloned()
            .collect();
        let live = self.shared.events.subscribe();
        Ok(Watch {
            tables: tables.to_vec(),
            backlog,
            live,
            progress: state.revision.max(from),
            closed: false,
        })
    }
}

#[cfg(test)]
mod tests;
