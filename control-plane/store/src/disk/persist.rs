//! Writes the applied state to disk behind the core's back: in order, coalesced, without a sync.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use super::{Applied, DiskError, Volume};
use crate::config::OpenError;

/// Runs that may wait; past it the core waits, which bounds what a slow disk can pile up.
const QUEUE: usize = 1_024;
/// Rows written at once: long batches would make log writes wait for the journal.
const BATCH_ROWS: usize = 512;

/// Who writes the state.
pub(crate) enum StateWriter {
    /// A thread of its own.
    Thread(Persister),
    /// Whoever drives the core, by [`StateWriter::step`].
    #[cfg_attr(not(test), expect(dead_code, reason = "the simulation's"))]
    Stepped(Stepped),
}

/// What waits for the next steps.
pub(crate) struct Stepped {
    volume: Volume,
    queue: VecDeque<Applied>,
    queued: u64,
    written: u64,
    persisted: u64,
    failure: Option<DiskError>,
}

impl StateWriter {
    /// A thread that continues after the log entry `persisted`.
    pub(crate) fn thread(volume: Volume, persisted: u64) -> Result<StateWriter, OpenError> {
        Persister::start(volume, persisted).map(StateWriter::Thread)
    }

    /// One that writes when it is told to, and continues after the log entry `persisted`.
    #[cfg(test)]
    pub(crate) fn stepped(volume: Volume, persisted: u64) -> StateWriter {
        StateWriter::Stepped(Stepped {
            volume,
            queue: VecDeque::new(),
            queued: 0,
            written: 0,
            persisted,
            failure: None,
        })
    }

    /// Queues changes; they follow on those before.
    pub(crate) fn write(&mut self, run: Applied) {
        match self {
            StateWriter::Thread(persister) => persister.write(run),
            StateWriter::Stepped(stepped) => {
                stepped.queued += 1;
                stepped.queue.push_back(run);
            }
        }
    }

    /// Returns when everything queued before was written, or failed.
    pub(crate) fn flush(&mut self) {
        match self {
            StateWriter::Thread(persister) => persister.flush(),
            StateWriter::Stepped(stepped) => while stepped.step() {},
        }
    }

    /// Writes one queued run, when nobody else does; false when there was nothing to do.
    #[cfg(test)]
    pub(crate) fn step(&mut self) -> bool {
        match self {
            StateWriter::Thread(_) => false,
            StateWriter::Stepped(stepped) => stepped.step(),
        }
    }

    /// How many runs were queued so far.
    pub(crate) fn queued(&self) -> u64 {
        match self {
            StateWriter::Thread(persister) => persister.queued,
            StateWriter::Stepped(stepped) => stepped.queued,
        }
    }

    /// How many of those are written.
    pub(crate) fn written(&self) -> u64 {
        match self {
            StateWriter::Thread(persister) => persister.progress.written.load(Ordering::Acquire),
            StateWriter::Stepped(stepped) => stepped.written,
        }
    }

    /// The state on disk is of this log entry, or of a later one.
    pub(crate) fn persisted(&self) -> u64 {
        match self {
            StateWriter::Thread(persister) => persister.progress.persisted.load(Ordering::Acquire),
            StateWriter::Stepped(stepped) => stepped.persisted,
        }
    }

    /// Everything was replaced by the state of this log entry; nothing may be queued.
    pub(crate) fn jump(&mut self, index: u64) {
        match self {
            StateWriter::Thread(persister) => {
                persister.progress.persisted.store(index, Ordering::Release);
            }
            StateWriter::Stepped(stepped) => stepped.persisted = index,
        }
    }

    /// Why nothing is written any more.
    pub(crate) fn failure(&self) -> Option<&DiskError> {
        match self {
            StateWriter::Thread(persister) => persister.progress.failure.get(),
            StateWriter::Stepped(stepped) => stepped.failure.as_ref(),
        }
    }

    /// Writes what is queued and ends.
    pub(crate) fn finish(mut self) {
        self.flush();
        if let StateWriter::Thread(persister) = self {
            persister.finish();
        }
    }
}

impl Stepped {
    fn step(&mut self) -> bool {
        if self.failure.is_some() {
            return false;
        }
        let Some(run) = self.queue.pop_front() else {
            return false;
        };
        match self.volume.write_state(&run) {
            Ok(()) => (self.persisted, self.written) = (run.index, self.written + 1),
            Err(error) => self.failure = Some(error),
        }
        true
    }
}

enum Job {
    Write(Applied),
    Flush(Sender<()>),
}

/// The thread that writes; it ends when this is finished or dropped.
pub(crate) struct Persister {
    queue: SyncSender<Job>,
    queued: u64,
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Progress {
    persisted: AtomicU64,
    written: AtomicU64,
    failure: OnceLock<DiskError>,
}

impl Persister {
    fn start(volume: Volume, persisted: u64) -> Result<Persister, OpenError> {
        let (queue, jobs) = sync_channel(QUEUE);
        let progress = Arc::new(Progress::default());
        progress.persisted.store(persisted, Ordering::Release);
        let shared = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("store-state".to_owned())
            .spawn(move || {
                gantry_tasks::or_abort("the thread that writes the store's state", || {
                    work(&volume, &jobs, &shared)
                })
            })
            .map_err(OpenError::Thread)?;
        Ok(Persister {
            queue,
            queued: 0,
            progress,
            thread,
        })
    }

    /// Queues changes; they follow on those before.
    fn write(&mut self, run: Applied) {
        self.queued += 1;
        // Fails only after `failure` was set, which the core looks at.
        self.queue.send(Job::Write(run)).ok();
    }

    /// Returns when everything queued before was written.
    fn flush(&self) {
        let (done, wait) = channel();
        if self.queue.send(Job::Flush(done)).is_ok() {
            // An error means that the thread failed, see above.
            wait.recv().ok();
        }
    }

    /// Writes what is queued and ends the thread.
    fn finish(self) {
        drop(self.queue);
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes the state panicked");
        }
    }
}

fn work(volume: &Volume, jobs: &Receiver<Job>, progress: &Progress) {
    let mut next = jobs.recv().ok();
    while let Some(job) = next.take() {
        match job {
            Job::Flush(done) => {
                // The one who asked may have gone.
                done.send(()).ok();
            }
            Job::Write(mut run) => {
                let mut runs = 1;
                while run.rows.len() < BATCH_ROWS {
                    match jobs.try_recv() {
                        Ok(Job::Write(later)) => {
                            run.merge(later);
                            runs += 1;
                        }
                        Ok(flush) => {
                            next = Some(flush);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                if let Err(error) = volume.write_state(&run) {
                    progress.failure.set(error).ok();
                    return;
                }
                progress.persisted.store(run.index, Ordering::Release);
                progress.written.fetch_add(runs, Ordering::Release);
            }
        }
        if next.is_none() {
            next = jobs.recv().ok();
        }
    }
}
