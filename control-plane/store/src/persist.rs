//! Writes the applied state to disk behind the driver's back: in order, coalesced, without fsync.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::config::OpenError;
use crate::disk::{Applied, Disk};

/// Runs that may wait; past it the driver waits, which bounds what a slow disk can pile up.
const QUEUE: usize = 1_024;
/// Rows written at once: long batches would make log writes wait for the journal.
const BATCH_ROWS: usize = 512;

enum Job {
    Write(Applied),
    Flush(Sender<()>),
}

/// The thread that writes; it ends when this is finished or dropped.
pub(crate) struct Persister {
    queue: SyncSender<Job>,
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Progress {
    persisted: AtomicU64,
    failure: OnceLock<String>,
}

impl Persister {
    pub(crate) fn start(disk: Disk, persisted: u64) -> Result<Persister, OpenError> {
        let (queue, jobs) = sync_channel(QUEUE);
        let progress = Arc::new(Progress::default());
        progress.persisted.store(persisted, Ordering::Release);
        let shared = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("store-state".to_owned())
            .spawn(move || work(&disk, &jobs, &shared))
            .map_err(OpenError::Thread)?;
        Ok(Persister {
            queue,
            progress,
            thread,
        })
    }

    /// Queues changes; they follow on those before.
    pub(crate) fn write(&self, run: Applied) {
        // Fails only after `failure` was set, which the driver looks at.
        self.queue.send(Job::Write(run)).ok();
    }

    /// Returns when everything queued before was written.
    pub(crate) fn flush(&self) {
        let (done, wait) = channel();
        if self.queue.send(Job::Flush(done)).is_ok() {
            // An error means that the thread failed, see above.
            wait.recv().ok();
        }
    }

    /// The state on disk is of this log entry, or a later one.
    pub(crate) fn persisted(&self) -> u64 {
        self.progress.persisted.load(Ordering::Acquire)
    }

    /// Why nothing is written any more.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.progress.failure.get().map(String::as_str)
    }

    /// Writes what is queued and ends the thread.
    pub(crate) fn finish(self) {
        drop(self.queue);
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes the state panicked");
        }
    }
}

fn work(disk: &Disk, jobs: &Receiver<Job>, progress: &Progress) {
    let mut next = jobs.recv().ok();
    while let Some(job) = next.take() {
        match job {
            Job::Flush(done) => {
                // The one who asked may have gone.
                done.send(()).ok();
            }
            Job::Write(mut run) => {
                while run.rows.len() < BATCH_ROWS {
                    match jobs.try_recv() {
                        Ok(Job::Write(later)) => merge(&mut run, later),
                        Ok(flush) => {
                            next = Some(flush);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                if let Err(error) = disk.write_state(&run) {
                    progress.failure.set(error.to_string()).ok();
                    return;
                }
                progress.persisted.store(run.index, Ordering::Release);
            }
        }
        if next.is_none() {
            next = jobs.recv().ok();
        }
    }
}

fn merge(run: &mut Applied, later: Applied) {
    let rows = std::mem::take(&mut run.rows);
    *run = Applied {
        rows: chain(rows, later.rows),
        ..later
    };
}

fn chain<K: Eq + std::hash::Hash, V>(
    mut first: HashMap<K, V>,
    second: HashMap<K, V>,
) -> HashMap<K, V> {
    first.extend(second);
    first
}
