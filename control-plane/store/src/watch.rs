//! Watches: events after a revision, in order, without gaps.
//!
//! Every watcher has a queue of its own, which receives only what concerns its tables: a quiet table's watcher never
//! lags because of a busy one. The events of one committed batch are shared by all of its watchers.
//!
//! A watch of the past reads the history a page at a time, and joins the others when it has caught up.
//!
//! Lock order: [`hub::Hub`] before the state. Gap-freedom rests on it: a watch reads the last of the history and joins while it
//! holds the hub, and whatever is applied after that is published after that.

pub(crate) mod hub;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc::{self, Receiver, Sender};

use self::hub::{Batch, Watcher};
use crate::budget::Budget;
use crate::shared::Shared;
use crate::types::{Event, Revision, Table, WatchError};

/// Events of the history that a watch holds at once; those of one revision stay together.
const PAGE: usize = 64;

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

impl Shared {
    /// Every event of the tables after `from`; the watcher's queue holds `capacity` batches, and what a budget leaves it.
    pub(crate) fn watch(
        self: &Arc<Self>,
        tables: &[Table],
        from: Revision,
        capacity: usize,
        budget: Option<Arc<Budget>>,
    ) -> Result<Watch, WatchError> {
        Watch::open(Arc::clone(self), tables, from, capacity, budget)
    }
}

impl Watch {
    fn open(
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
