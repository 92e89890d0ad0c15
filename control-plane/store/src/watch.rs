//! Watches: events after a revision, in order, without gaps.
//!
//! Every watcher has a queue of its own, which receives only what concerns its tables: a quiet table's watcher never
//! lags because of a busy one. The events of one committed batch are shared by all of its watchers.
//!
//! Lock order: [`Hub`] before the state. Gap-freedom rests on it: a watch reads the history and joins while it holds
//! the hub, and whatever is applied after that is published after that.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};

use crate::metrics::METRICS;
use crate::types::{Event, Revision, Table, WatchError};

type Batch = Arc<[Event]>;

/// What may wait for one reader; a single batch may be larger.
const QUEUE_BYTES: usize = 8 << 20;

/// What a batch keeps in memory, with what it came from.
fn weight(batch: &[Event]) -> usize {
    let weigh = |event: &Event| {
        let previous = event.previous.as_ref();
        size_of::<Event>() + event.entry.value.len() + previous.map_or(0, |entry| entry.value.len())
    };
    batch.iter().map(weigh).sum()
}

/// Hands events to watchers.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    watchers: Mutex<Watchers>,
    /// Everything up to here is in the queues of those that wanted it.
    published: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Watchers {
    next: u64,
    all: HashMap<u64, Watcher>,
    by_table: HashMap<Table, Vec<u64>>,
    closed: bool,
}

#[derive(Debug)]
struct Watcher {
    tables: Arc<[Table]>,
    /// Events up to here came from the history, or are not wanted.
    after: Revision,
    queue: Sender<Batch>,
    /// Bytes in the queue.
    queued: Arc<AtomicUsize>,
    lagged: Arc<AtomicBool>,
}

impl Watchers {
    fn remove(&mut self, id: u64) {
        let Some(watcher) = self.all.remove(&id) else {
            return;
        };
        METRICS.watchers.dec();
        for table in watcher.tables.iter() {
            if let Some(ids) = self.by_table.get_mut(table) {
                ids.retain(|other| *other != id);
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

    /// A watch of what comes after `after`, beginning with `backlog`.
    pub(crate) fn join(
        self: &Arc<Hub>,
        watchers: &mut Watchers,
        tables: &[Table],
        backlog: VecDeque<Event>,
        after: Revision,
        capacity: usize,
    ) -> Watch {
        let (queue, live) = mpsc::channel(capacity);
        let (lagged, queued) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let id = watchers.next;
        watchers.next += 1;
        if !watchers.closed {
            let mut tables = tables.to_vec();
            tables.sort();
            tables.dedup();
            for table in &tables {
                watchers.by_table.entry(table.clone()).or_default().push(id);
            }
            let watcher = Watcher {
                tables: tables.into(),
                after,
                queue,
                queued: Arc::clone(&queued),
                lagged: Arc::clone(&lagged),
            };
            watchers.all.insert(id, watcher);
            METRICS.watchers.inc();
        }
        Watch {
            hub: Arc::clone(self),
            id,
            backlog,
            current: (Vec::new().into(), 0),
            live,
            queued,
            lagged,
            progress: after,
            closed: false,
        }
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
            let batch: Batch = events.into_iter().cloned().collect();
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
                let batch: Batch = wanted.cloned().collect();
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
        if batch
            .last()
            .is_none_or(|event| event.revision <= self.after)
        {
            return true;
        }
        let weight = weight(batch);
        let before = self.queued.fetch_add(weight, Ordering::AcqRel);
        if before > 0 && before + weight > QUEUE_BYTES {
            return false;
        }
        // A closed queue belongs to a watch that is being dropped, and leaves by itself.
        !matches!(
            self.queue.try_send(Arc::clone(batch)),
            Err(TrySendError::Full(_))
        )
    }
}

/// The events of some tables. Closed with [`WatchError::Lagged`] when its reader falls behind the bounded buffer.
#[derive(Debug)]
pub struct Watch {
    hub: Arc<Hub>,
    id: u64,
    backlog: VecDeque<Event>,
    /// The batch being delivered, and how far.
    current: (Batch, usize),
    live: Receiver<Batch>,
    queued: Arc<AtomicUsize>,
    lagged: Arc<AtomicBool>,
    progress: Revision,
    closed: bool,
}

impl Watch {
    /// The next event; `None` when the store has stopped or after an error. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Event, WatchError>> {
        loop {
            if let Some(event) = self.pop() {
                return Some(Ok(event));
            }
            if self.closed {
                return None;
            }
            let batch = self.live.recv().await;
            if let Some(end) = self.accept(batch) {
                return end;
            }
        }
    }

    /// The next event when it is already here: lets a reader put what has gathered into one write.
    pub fn try_next(&mut self) -> Option<Result<Event, WatchError>> {
        loop {
            if let Some(event) = self.pop() {
                return Some(Ok(event));
            }
            if self.closed {
                return None;
            }
            let batch = match self.live.try_recv() {
                Ok(batch) => Some(batch),
                Err(mpsc::error::TryRecvError::Empty) => return None,
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            };
            if let Some(end) = self.accept(batch) {
                return end;
            }
        }
    }

    /// Takes over a received batch; `Some` is the end of the watch.
    fn accept(&mut self, batch: Option<Batch>) -> Option<Option<Result<Event, WatchError>>> {
        if let Some(batch) = batch {
            self.queued.fetch_sub(weight(&batch), Ordering::AcqRel);
            self.current = (batch, 0);
            return None;
        }
        self.closed = true;
        let lagged = self.lagged.load(Ordering::Acquire);
        Some(lagged.then_some(Err(WatchError::Lagged)))
    }

    fn pop(&mut self) -> Option<Event> {
        if let Some(event) = self.backlog.pop_front() {
            return Some(event);
        }
        let (batch, at) = &mut self.current;
        while let Some(event) = batch.get(*at) {
            *at += 1;
            // The first batch may begin with events that the backlog already held.
            if event.revision > self.progress {
                let event = event.clone();
                if batch
                    .get(*at)
                    .is_none_or(|next| next.revision > event.revision)
                {
                    self.progress = event.revision;
                }
                return Some(event);
            }
        }
        None
    }

    /// Everything up to this revision was delivered: fit for a bookmark.
    pub fn progress_revision(&self) -> Revision {
        if let Some(event) = self.backlog.front() {
            return Revision(event.revision.0.saturating_sub(1));
        }
        // Read before the queue is found empty: what is published up to here was queued before.
        let published = Revision(self.hub.published.load(Ordering::Acquire));
        let drained = self.current.0.len() == self.current.1 && self.live.is_empty();
        if drained && !self.lagged.load(Ordering::Acquire) {
            self.progress.max(published)
        } else {
            self.progress
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.lock().remove(self.id);
    }
}
