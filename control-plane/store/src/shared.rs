//! What the driver and the handles share: the state, the watchers, and the tables that paged lists stay on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};

use crate::state::{HistoryLimits, State};
use crate::table::TableSnapshot;
use crate::types::{ProposeError, Revision, Room, Table};
use crate::watch::hub::Hub;

/// How many hashes are kept, for members that are ahead or behind to compare.
const FINGERPRINTS: usize = 1_024;
const PAGES: usize = 32;
const PAGE_LIFE: Duration = Duration::from_secs(300);

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: Arc<RwLock<State>>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) history: HistoryLimits,
    pub(crate) room: watch::Sender<Room>,
    waiting: AtomicUsize,
    stopped: OnceLock<String>,
    pages: Mutex<VecDeque<Page>>,
    /// Log entries and the hash of the state after each, the newest last.
    fingerprints: Mutex<VecDeque<(u64, u64)>>,
}

#[derive(Debug)]
struct Page {
    table: Table,
    rows: TableSnapshot,
    used: Instant,
}

impl Shared {
    pub(crate) fn new(state: State, history: HistoryLimits) -> Shared {
        let hub = Arc::new(Hub::default());
        hub.jump(state.revision);
        Shared {
            state: Arc::new(RwLock::new(state)),
            hub,
            history,
            room: watch::Sender::default(),
            waiting: AtomicUsize::new(0),
            stopped: OnceLock::new(),
            pages: Mutex::default(),
            fingerprints: Mutex::default(),
        }
    }

    /// Counts a proposal in, unless too many wait.
    pub(crate) fn admit(&self, limit: usize) -> Result<(), ProposeError> {
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel);
        if waiting >= limit {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(ProposeError::Overloaded { waiting });
        }
        Ok(())
    }

    /// Answers an admitted proposal.
    pub(crate) fn answer(
        &self,
        reply: oneshot::Sender<Result<Revision, ProposeError>>,
        result: Result<Revision, ProposeError>,
    ) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        // The proposer may have gone.
        reply.send(result).ok();
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    pub(crate) fn stop(&self, reason: &str) {
        // Only the driver stops, once.
        self.stopped.set(reason.to_owned()).ok();
    }

    pub(crate) fn stopped(&self) -> ProposeError {
        ProposeError::Stopped(self.why_stopped())
    }

    pub(crate) fn why_stopped(&self) -> String {
        let reason = self.stopped.get().cloned();
        reason.unwrap_or_else(|| "its thread has ended".to_owned())
    }

    /// Keeps the hash of the state after a log entry.
    pub(crate) fn remember_fingerprint(&self, index: u64, fingerprint: u64) {
        let mut fingerprints = self.fingerprints.lock();
        if fingerprints.len() >= FINGERPRINTS {
            fingerprints.pop_front();
        }
        fingerprints.push_back((index, fingerprint));
    }

    /// The last log entry that was applied in this run, and the hash of the state after it.
    pub(crate) fn latest_fingerprint(&self) -> Option<(u64, u64)> {
        self.fingerprints.lock().back().copied()
    }

    /// The hash of the state after a log entry, while it is kept.
    pub(crate) fn fingerprint_at(&self, index: u64) -> Option<u64> {
        let fingerprints = self.fingerprints.lock();
        let at = fingerprints.binary_search_by_key(&index, |(index, _)| *index);
        at.ok().map(|at| fingerprints[at].1)
    }

    /// A table as it was at a revision, while that is known.
    pub(crate) fn snapshot_at(&self, table: &Table, revision: Revision) -> Option<TableSnapshot> {
        let mut pages = self.pages.lock();
        let known = pages
            .iter_mut()
            .find(|page| page.rows.revision == revision && page.table == *table);
        if let Some(page) = known {
            page.used = Instant::now();
            return Some(page.rows.clone());
        }
        drop(pages);
        let undo = self.state.read().undo_to(table, revision)?;
        let rows = undo.run();
        let mut pages = self.pages.lock();
        if pages.len() >= PAGES {
            let oldest = pages.iter().enumerate().min_by_key(|(_, page)| page.used);
            if let Some((at, _)) = oldest {
                pages.remove(at);
            }
        }
        pages.push_back(Page {
            table: table.clone(),
            rows: rows.clone(),
            used: Instant::now(),
        });
        Some(rows)
    }

    /// Lets go of the tables that nobody pages through any more.
    pub(crate) fn expire_pages(&self) {
        let mut pages = self.pages.lock();
        if !pages.is_empty() {
            pages.retain(|page| page.used.elapsed() < PAGE_LIFE);
        }
    }
}
