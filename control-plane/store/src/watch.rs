//! Watches: events after a revision, in order, without gaps.
//!
//! Every watcher has a queue of its own, which receives only what concerns its tables: a quiet table's watcher never
//! lags because of a busy one. The events of one committed batch are shared by all of its watchers.
//!
//! A watch of the past reads the history a page at a time, and joins the others when it has caught up.
//!
//! Lock order: [`Hub`] before the state. Gap-freedom rests on it: a watch reads the last of the history and joins while it
//! holds the hub, and whatever is applied after that is published after that.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};

use crate::budget::{Budget, Charge};
use crate::metrics::METRICS;
use crate::shared::Shared;
use crate::types::{Event, Revision, Table, WatchError};

/// What may wait for one reader; a single batch may be larger.
const QUEUE_BYTES: usize = 8 << 20;
/// Of what is left of the budget, the part that one reader's queue may take: many that do not read leave something.
const SHARE: usize = 8;
/// Events of the history that a watch holds at once; those of one revision stay together.
const PAGE: usize = 64;

/// Events of one commit, shared by those that watch their table.
#[derive(Debug, Default)]
struct Events {
    events: Box<[Event]>,
    weight: usize,
    /// Counted once, however many readers they wait for.
    charge: OnceLock<Charge>,
}

type Batch = Arc<Events>;

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
    by_table: HashMap<Table, BTreeSet<u64>>,
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
    /// Of clients.
    budget: Option<Arc<Budget>>,
}

impl Watchers {
    fn remove(&mut self, id: u64) {
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
    fn join(&self, watchers: &mut Watchers, watcher: Watcher) -> u64 {
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

/// The events of some tables. Closed with [`WatchError::Lagged`] when its reader falls behind the bounded buffer, and with
/// [`WatchError::Compacted`] when the history passes it while it reads that.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    tables: Arc<[Table]>,
    /// What it joins the hub with, until it has.
    joining: Option<Joining>,
    id: Option<u64>,
    /// Read from the history.
    backlog: VecDeque<Event>,
    /// The batch being delivered, and how far.
    current: Option<(Batch, usize)>,
    live: Receiver<Batch>,
    queued: Arc<AtomicUsize>,
    lagged: Arc<AtomicBool>,
    progress: Revision,
    closed: bool,
}

#[derive(Debug)]
struct Joining {
    queue: Sender<Batch>,
    budget: Option<Arc<Budget>>,
}

impl Watch {
    pub(crate) fn open(
        shared: Arc<Shared>,
        tables: &[Table],
        from: Revision,
        capacity: usize,
        budget: Option<Arc<Budget>>,
    ) -> Result<Watch, WatchError> {
        let mut tables = tables.to_vec();
        tables.sort();
        tables.dedup();
        let (queue, live) = mpsc::channel(capacity);
        let mut watch = Watch {
            shared,
            tables: tables.into(),
            joining: Some(Joining { queue, budget }),
            id: None,
            backlog: VecDeque::new(),
            current: None,
            live,
            queued: Arc::default(),
            lagged: Arc::default(),
            progress: from,
            closed: false,
        };
        watch.read_history()?;
        Ok(watch)
    }

    /// Reads the next page of the history, and joins the hub when that was the last.
    fn read_history(&mut self) -> Result<(), WatchError> {
        let mut watchers = self.shared.hub.lock();
        let state = self.shared.state.read();
        if self.progress < state.compacted {
            return Err(WatchError::Compacted(state.compacted));
        }
        let from = self.progress;
        let start = state
            .history
            .partition_point(|event| event.revision <= from);
        for event in state.history.range(start..) {
            if self.backlog.len() >= PAGE && event.revision > self.progress {
                return Ok(());
            }
            self.progress = event.revision;
            if self.tables.contains(&event.key.table) {
                self.backlog.push_back(event.clone());
            }
        }
        self.progress = state.revision.max(from);
        drop(state);
        if let Some(Joining { queue, budget }) = self.joining.take() {
            let watcher = Watcher {
                tables: Arc::clone(&self.tables),
                after: self.progress,
                queue,
                queued: Arc::clone(&self.queued),
                lagged: Arc::clone(&self.lagged),
                budget,
            };
            self.id = Some(self.shared.hub.join(&mut watchers, watcher));
        }
        Ok(())
    }

    /// An event that is here, or the end; none when it is to be waited for.
    fn ready(&mut self) -> Option<Option<Result<Event, WatchError>>> {
        loop {
            if let Some(event) = self.pop() {
                return Some(Some(Ok(event)));
            }
            if self.closed {
                return Some(None);
            }
            self.joining.as_ref()?;
            if let Err(error) = self.read_history() {
                self.closed = true;
                return Some(Some(Err(error)));
            }
        }
    }

    /// The next event; `None` when the store has stopped or after an error. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Event, WatchError>> {
        loop {
            if let Some(ready) = self.ready() {
                return ready;
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
            if let Some(ready) = self.ready() {
                return ready;
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
            self.queued.fetch_sub(batch.weight, Ordering::AcqRel);
            self.current = Some((batch, 0));
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
        let (batch, at) = self.current.as_mut()?;
        while let Some(event) = batch.events.get(*at) {
            *at += 1;
            // The first batch may begin with events that the backlog already held.
            if event.revision > self.progress {
                let event = event.clone();
                let next = batch.events.get(*at);
                if next.is_none_or(|next| next.revision > event.revision) {
                    self.progress = event.revision;
                }
                return Some(event);
            }
        }
        // Lets go of its bytes.
        self.current = None;
        None
    }

    /// Everything up to this revision was delivered: fit for a bookmark.
    pub fn progress_revision(&self) -> Revision {
        if let Some(event) = self.backlog.front() {
            return Revision(event.revision.0.saturating_sub(1));
        }
        if self.joining.is_some() {
            return self.progress;
        }
        // Read before the queue is found empty: what is published up to here was queued before.
        let published = Revision(self.shared.hub.published.load(Ordering::Acquire));
        let current = self.current.as_ref();
        let drained =
            current.is_none_or(|(batch, at)| batch.events.len() == *at) && self.live.is_empty();
        if drained && !self.lagged.load(Ordering::Acquire) {
            self.progress.max(published)
        } else {
            self.progress
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.hub.lock().remove(id);
        }
    }
}
