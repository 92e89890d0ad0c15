//! Who watches which tables, and how they are handed what is committed.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use crate::budget::{Budget, Charge};
use crate::metrics::METRICS;
use crate::types::{Event, Revision, Table};

/// What may wait for one reader; a single batch may be larger.
const QUEUE_BYTES: usize = 8 << 20;
/// Of what is left of the budget, the part that one reader's queue may take: many that do not read leave something.
const SHARE: usize = 8;

/// Events of one commit, shared by those that watch their table.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) events: Box<[Event]>,
    pub(super) weight: usize,
    /// Counted once, however many readers they wait for.
    charge: OnceLock<Charge>,
}

pub(super) type Batch = Arc<Events>;

impl FromIterator<Event> for Events {
    fn from_iter<T: IntoIterator<Item = Event>>(events: T) -> Self {
        let events: Box<[Event]> = events.into_iter().collect();
        let weigh = |event: &Event| {
            let previous = event.previous.as_ref();
            size_of::<Event>()
                + event.entry.value.len()
                + previous.map_or(0, |entry| entry.value.len())
        };
        Self {
            weight: events.iter().map(weigh).sum(),
            events,
            charge: OnceLock::new(),
        }
    }
}

/// Hands events to watchers, as etcd's watchable store does.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    watchers: Mutex<Watchers>,
    /// Everything up to here is in the queues of those that wanted it.
    pub(super) published: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Watchers {
    next: u64,
    all: HashMap<u64, Watcher>,
    by_table: HashMap<Table, BTreeSet<u64>>,
    closed: bool,
}

#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) tables: Arc<[Table]>,
    /// Events up to here came from the history, or are not wanted.
    pub(super) after: Revision,
    pub(super) queue: Sender<Batch>,
    /// Bytes in the queue.
    pub(super) queued: Arc<AtomicUsize>,
    pub(super) lagged: Arc<AtomicBool>,
    /// Of clients.
    pub(super) budget: Option<Arc<Budget>>,
}

impl Watchers {
    pub(super) fn remove(&mut self, id: u64) {
        let Some(watcher) = self.all.remove(&id) else {
            return;
        };
        METRICS.watchers.dec();
        for table in watcher.tables.iter() {
            if let Some(ids) = self.by_table.get_mut(table) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_table.remove(table);
                }
            }
        }
    }

    fn lag(&mut self, id: u64) {
        if let Some(watcher) = self.all.get(&id) {
            watcher.lagged.store(true, Ordering::Release);
            METRICS.lagged.inc();
        }
        self.remove(id);
    }
}

impl Hub {
    /// Keeps events from being published while the caller reads the state, then [`Hub::join`]s.
    pub(crate) fn lock(&self) -> parking_lot::MutexGuard<'_, Watchers> {
        self.watchers.lock()
    }

    /// Lets a watch have what is published after `after`; none when the store has stopped.
    pub(super) fn join(&self, watchers: &mut Watchers, watcher: Watcher) -> u64 {
        let id = watchers.next;
        watchers.next += 1;
        if !watchers.closed {
            for table in watcher.tables.iter() {
                watchers
                    .by_table
                    .entry(table.clone())
                    .or_default()
                    .insert(id);
            }
            watchers.all.insert(id, watcher);
            METRICS.watchers.inc();
        }
        id
    }

    /// Queues the events of one committed batch, which end at `revision`.
    pub(crate) fn publish(&self, events: &[Event], revision: Revision) {
        let mut watchers = self.watchers.lock();
        let mut by_table: HashMap<&Table, Vec<&Event>> = HashMap::new();
        for event in events {
            if watchers.by_table.contains_key(&event.key.table) {
                by_table.entry(&event.key.table).or_default().push(event);
            }
        }
        let mut slow = Vec::new();
        let mut several: Vec<u64> = Vec::new();
        for (table, events) in by_table {
            let batch: Batch = Arc::new(events.into_iter().cloned().collect());
            for id in watchers.by_table.get(table).into_iter().flatten() {
                match watchers.all.get(id) {
                    Some(watcher) if watcher.tables.len() > 1 => several.push(*id),
                    Some(watcher) if !watcher.offer(&batch) => slow.push(*id),
                    Some(_) | None => {}
                }
            }
        }
        several.sort_unstable();
        several.dedup();
        for id in several {
            if let Some(watcher) = watchers.all.get(&id) {
                // Across its tables the order of the batch must hold.
                let wanted = events.iter().filter(|event| watcher.wants(event));
                let batch: Batch = Arc::new(wanted.cloned().collect());
                if !watcher.offer(&batch) {
                    slow.push(id);
                }
            }
        }
        for id in slow {
            watchers.lag(id);
        }
        self.published.store(revision.0, Ordering::Release);
    }

    /// Closes every watch as lagging: the state jumped, and the events between are not known.
    pub(crate) fn jump(&self, revision: Revision) {
        let mut watchers = self.watchers.lock();
        let all: Vec<u64> = watchers.all.keys().copied().collect();
        for id in all {
            watchers.lag(id);
        }
        self.published.store(revision.0, Ordering::Release);
    }

    /// Ends every watch, and those still to come.
    pub(crate) fn close(&self) {
        let mut watchers = self.watchers.lock();
        watchers.closed = true;
        let all: Vec<u64> = watchers.all.keys().copied().collect();
        for id in all {
            watchers.remove(id);
        }
    }
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        event.revision > self.after && self.tables.contains(&event.key.table)
    }

    /// Whether there was room.
    fn offer(&self, batch: &Batch) -> bool {
        let last = batch.events.last();
        if last.is_none_or(|event| event.revision <= self.after) {
            return true;
        }
        let bound = match &self.budget {
            Some(budget) => QUEUE_BYTES.min(budget.free() / SHARE),
            None => QUEUE_BYTES,
        };
        let weight = batch.weight;
        let before = self.queued.fetch_add(weight, Ordering::AcqRel);
        if before > 0 && before + weight > bound {
            return false;
        }
        if let Some(budget) = &self.budget {
            batch.charge.get_or_init(|| budget.charge(weight));
        }
        // A closed queue belongs to a watch that is being dropped, and leaves by itself.
        !matches!(
            self.queue.try_send(Arc::clone(batch)),
            Err(TrySendError::Full(_))
        )
    }
}
