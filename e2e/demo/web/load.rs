//! Load on a web server: requests at a steady rate, whatever becomes of them.
//!
//! A request is sent when it is due, on a further thread and connection where all others still wait: late answers lower
//! no rate and hide no failure. Every request that was due is in the end answered in full or has failed. A kept-alive
//! connection that the server ends between two requests is no failure; one that ends in the middle of a request is.

mod options;
mod record;

use std::collections::VecDeque;
use std::io::Write;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use options::{Mode, Options};
use record::Record;

use crate::connection::{Connection, Failure, Kind};
use crate::signal;

/// The most requests that are under way at once.
const WORKERS: usize = 2000;
/// How long a thread waits for work before it ends.
const SPARE: Duration = Duration::from_secs(1);
const STACK: usize = 256 * 1024;
/// How often the pace looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);
const REPORT: Duration = Duration::from_secs(1);

/// Makes load as the arguments after `load` say; prints a line of JSON every second and one at the end. Requests that
/// fail do not make the program fail; arguments that are wrong are an error.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, String> {
    Ok(Load::new(Options::parse(arguments)?).run())
}

/// Requests that are due, and the threads that send them.
#[derive(Default)]
struct Queue {
    due: VecDeque<Instant>,
    workers: usize,
    /// Workers that wait for a request.
    waiting: usize,
    /// Nothing will be due any more.
    ended: bool,
}

/// Kept-alive connections between requests, the longest unused first.
#[derive(Default)]
struct Kept {
    idle: VecDeque<Connection>,
    /// How many exist, idle or not.
    open: usize,
}

struct Load {
    options: Options,
    record: Mutex<Record>,
    queue: Mutex<Queue>,
    /// Something is due, or nothing will be.
    work: Condvar,
    /// A worker has ended.
    gone: Condvar,
    kept: Mutex<Kept>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Prints a line at once. Whether anybody reads is not the generator's business.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        eprintln!("nobody reads the reports");
    }
}

impl Load {
    fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            record: Mutex::new(Record::new(options.messages)),
            options,
            queue: Mutex::default(),
            work: Condvar::new(),
            gone: Condvar::new(),
            kept: Mutex::default(),
        })
    }

    fn run(self: &Arc<Self>) -> ExitCode {
        let (stop, stopped) = mpsc::channel::<()>();
        let reporter = std::thread::spawn({
            let load = self.clone();
            move || {
                while stopped.recv_timeout(REPORT) == Err(RecvTimeoutError::Timeout) {
                    let line = locked(&load.record).interval();
                    say(&line);
                }
            }
        });
        self.pace();
        self.finish();
        drop(stop);
        if reporter.join().is_err() {
            eprintln!("the reports have ended early");
        }
        say(&locked(&self.record).total(&self.options));
        ExitCode::SUCCESS
    }

    /// Makes every request due in its time, until the end.
    fn pace(self: &Arc<Self>) {
        let began = locked(&self.record).began();
        let end = self.options.duration.map(|duration| began + duration);
        let mut due = began;
        loop {
            if end.is_some_and(|end| due >= end) {
                return;
            }
            loop {
                if signal::is_stopping() {
                    return;
                }
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                std::thread::park_timeout(left.min(LOOK));
            }
            self.make_due(due);
            due += self.options.pause(due.saturating_duration_since(began));
        }
    }

    fn make_due(self: &Arc<Self>, due: Instant) {
        locked(&self.record).sent();
        let mut queue = locked(&self.queue);
        queue.due.push_back(due);
        if queue.due.len() > queue.waiting && queue.workers < WORKERS {
            let load = self.clone();
            let thread = std::thread::Builder::new().stack_size(STACK);
            // Where no thread can be had, the request waits for one that is there, and fails when that takes too long.
            match thread.spawn(move || load.work()) {
                Ok(_) => queue.workers += 1,
                Err(error) => eprintln!("a further thread: {error}"),
            }
        }
        self.work.notify_one();
    }

    /// Waits until every request is answered or has failed.
    fn finish(&self) {
        let mut queue = locked(&self.queue);
        queue.ended = true;
        self.work.notify_all();
        while queue.workers > 0 {
            queue = self
                .gone
                .wait(queue)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        // Those that no thread has taken.
        let mut record = locked(&self.record);
        for due in queue.due.drain(..) {
            record.failed(due, Failure::new(Kind::Generator, "no thread to send it"));
        }
    }

    /// Sends requests until there are none for a while.
    fn work(&self) {
        while let Some(due) = self.next() {
            let outcome = self.attempt(due);
            let mut record = locked(&self.record);
            match outcome {
                Ok((latency, body)) => record.ok(latency, &body),
                Err(failure) => record.failed(due, failure),
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        let mut queue = locked(&self.queue);
        loop {
            if let Some(due) = queue.due.pop_front() {
                return Some(due);
            }
            if queue.ended {
                break;
            }
            queue.waiting += 1;
            let (again, waited) = self
                .work
                .wait_timeout(queue, SPARE)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            queue = again;
            queue.waiting -= 1;
            if waited.timed_out() && queue.due.is_empty() {
                break;
            }
        }
        queue.workers -= 1;
        self.gone.notify_all();
        None
    }

    /// Sends one request; returns the answer's latency and body. The latency counts from when the request was due, so
    /// that one that had to wait for the generator is as late as its client would say.
    fn attempt(&self, due: Instant) -> Result<(Duration, Vec<u8>), Failure> {
        let deadline = due + self.options.timeout;
        if Instant::now() >= deadline {
            let message = format!("{WORKERS} requests are under way already");
            return Err(Failure::new(Kind::Generator, message));
        }
        let keep = self.options.mode == Mode::KeepAlive;
        let kept = if keep { self.take() } else { None };
        let mut connection = match kept {
            Some(connection) => connection,
            None => self.connect(deadline)?,
        };
        let answer = connection.request(&self.options.target, keep, deadline);
        let latency = due.elapsed();
        let stays = answer.as_ref().is_ok_and(|answer| answer.keep);
        if keep {
            if answer.is_ok() && !stays {
                locked(&self.record).told_to_close += 1;
            }
            self.give(Some(connection).filter(|_| stays));
        } else if answer.is_ok() {
            connection.end();
        }
        let answer = answer?;
        // The resolver has a time limit of its own.
        if latency > self.options.timeout {
            return Err(Failure::new(Kind::Timeout, "answered too late"));
        }
        if answer.status != 200 {
            let body = String::from_utf8_lossy(&answer.body);
            let message = format!("{} {}", answer.status, body.trim_end());
            return Err(Failure::new(Kind::Status, message));
        }
        Ok((latency, answer.body))
    }

    fn connect(&self, deadline: Instant) -> Result<Connection, Failure> {
        let connected = Connection::open(&self.options.target, deadline);
        match &connected {
            Ok(_) => locked(&self.record).connections += 1,
            Err(_) if self.options.mode == Mode::KeepAlive => self.give(None),
            Err(_) => {}
        }
        connected
    }

    /// A kept-alive connection to use, in turn; where there are too few, none, and one is to be made.
    fn take(&self) -> Option<Connection> {
        let mut kept = locked(&self.kept);
        while kept.open >= self.options.connections {
            let Some(connection) = kept.idle.pop_front() else {
                break;
            };
            if !connection.has_ended() {
                return Some(connection);
            }
            kept.open -= 1;
            locked(&self.record).closed_idle += 1;
        }
        kept.open += 1;
        None
    }

    /// Gives back what [`Load::take`] gave, or the place of it.
    fn give(&self, connection: Option<Connection>) {
        let mut kept = locked(&self.kept);
        match connection.filter(|_| kept.open <= self.options.connections) {
            Some(connection) => kept.idle.push_back(connection),
            None => kept.open -= 1,
        }
    }
}
