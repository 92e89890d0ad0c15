//! A queue of keys: each at most once in it, never handed out twice at once, with delays and backoff per key.
//!
//! A key that is added while being worked on is remembered and handed out again once that work is done.
//!
//! A queue that was given a name tells Prometheus how it fares.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::QueueMetrics;

/// What is due later than can be told is due then.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The waits after failures of one key: doubled each time, between these.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer than this.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(5),
            longest: Duration::from_secs(60),
        }
    }
}

impl Backoff {
    /// The wait after that many failures in a row, counted from one.
    pub fn after(&self, failures: u32) -> Duration {
        let factor = 1u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}

struct State<T> {
    /// With when they came.
    ready: VecDeque<(T, Instant)>,
    /// Those in `ready`.
    queued: HashSet<T>,
    working: HashSet<T>,
    /// Added while working: to be queued again afterwards.
    again: HashSet<T>,
    /// When a key is due; an entry of the heap that disagrees with it is void.
    due: HashMap<T, Instant>,
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    timed: HashMap<u64, T>,
    serial: u64,
    failures: HashMap<T, u32>,
    metrics: Option<QueueMetrics>,
}

impl<T: Clone + Eq + Hash> State<T> {
    /// Puts the key at the end, unless it is waiting already or being worked on; whether it did.
    fn queue(&mut self, key: T) -> bool {
        if self.working.contains(&key) {
            self.again.insert(key);
            return false;
        }
        if !self.queued.insert(key.clone()) {
            return false;
        }
        self.ready.push_back((key, Instant::now()));
        if let Some(metrics) = &self.metrics {
            metrics.adds.inc();
            metrics.depth.inc();
        }
        true
    }
}

impl<T> Drop for State<T> {
    fn drop(&mut self) {
        if let Some(metrics) = &self.metrics {
            metrics.depth.sub(count(self.ready.len()));
        }
    }
}

/// As gauges count.
fn count(keys: usize) -> i64 {
    i64::try_from(keys).unwrap_or(i64::MAX)
}

/// The queue; see the module's documentation.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    backoff: Backoff,
}

impl<T: Clone + Eq + Hash> Default for Queue<T> {
    fn default() -> Self {
        Self::new(Backoff::default())
    }
}

impl<T: Clone + Eq + Hash> Queue<T> {
    /// An empty queue.
    pub fn new(backoff: Backoff) -> Self {
        Self {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                queued: HashSet::new(),
                working: HashSet::new(),
                again: HashSet::new(),
                due: HashMap::new(),
                timers: BinaryHeap::new(),
                timed: HashMap::new(),
                serial: 0,
                failures: HashMap::new(),
                metrics: None,
            }),
            changed: Notify::new(),
            backoff,
        }
    }

    /// Gives the queue a name, under which its metrics are told from now on; those that wait count as added just now. It keeps
    /// the first name.
    pub fn measure(&self, name: &'static str) {
        let metrics = QueueMetrics::of(name);
        let mut state = self.state.lock();
        if state.metrics.is_some() {
            return;
        }
        let waiting = state.ready.len();
        metrics.depth.add(count(waiting));
        metrics
            .adds
            .inc_by(u64::try_from(waiting).unwrap_or(u64::MAX));
        state.metrics = Some(metrics);
    }

    /// Notes how long the work on a key took.
    pub(crate) fn worked(&self, took: Duration) {
        if let Some(metrics) = &self.state.lock().metrics {
            metrics.worked.observe(took.as_secs_f64());
        }
    }

    /// Puts the key at the end, unless it is already waiting.
    pub fn add(&self, key: T) {
        if self.state.lock().queue(key) {
            self.changed.notify_one();
        }
    }

    /// Adds the key once `delay` is over; of several delays, the earliest counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let now = Instant::now();
        let at = now.checked_add(delay).unwrap_or_else(|| now + FAR);
        let mut state = self.state.lock();
        if state.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        state.due.insert(key.clone(), at);
        state.serial += 1;
        let serial = state.serial;
        state.timers.push(Reverse((at, serial)));
        state.timed.insert(serial, key);
        self.changed.notify_one();
    }

    /// Adds the key after its backoff, which grows until [`Queue::forget`]. Returns the wait.
    pub fn retry(&self, key: T) -> Duration {
        let wait = {
            let mut state = self.state.lock();
            if let Some(metrics) = &state.metrics {
                metrics.retries.inc();
            }
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures += 1;
            self.backoff.after(*failures)
        };
        self.add_after(key, wait);
        wait
    }

    /// Ends the key's backoff.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    /// The work on a key from [`Queue::next`] is over.
    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        state.working.remove(key);
        if state.again.remove(key) && state.queue(key.clone()) {
            self.changed.notify_one();
        }
    }

    /// How many keys are ready.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, waiting for one; to be given back by [`Queue::done`]. For a single consumer.
    pub async fn next(&self) -> T {
        loop {
            let timer = match self.take() {
                Ok(key) => return key,
                Err(timer) => timer,
            };
            match timer {
                Some(at) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// A ready key, or when the next timer is due.
    fn take(&self) -> Result<T, Option<Instant>> {
        let mut state = self.state.lock();
        let now = Instant::now();
        while let Some(Reverse((at, serial))) = state.timers.peek().copied() {
            if at > now {
                break;
            }
            state.timers.pop();
            let Some(key) = state.timed.remove(&serial) else {
                continue;
            };
            if state.due.get(&key) != Some(&at) {
                continue;
            }
            state.due.remove(&key);
            state.queue(key);
        }
        match state.ready.pop_front() {
            Some((key, since)) => {
                state.queued.remove(&key);
                state.working.insert(key.clone());
                if let Some(metrics) = &state.metrics {
                    metrics.depth.dec();
                    metrics.waited.observe((now - since).as_secs_f64());
                }
                Ok(key)
            }
            None => Err(state.timers.peek().map(|Reverse((at, _))| *at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_handed_out_once_and_again_when_it_changed_meanwhile() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "b");
        assert!(queue.is_empty(), "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        queue.done(&"b");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("b", Duration::from_secs(3));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 2);
        queue.done(&"a");
        assert_eq!(queue.next().await, "b");
        queue.done(&"b");
        let more = tokio::time::timeout(Duration::from_secs(60), queue.next()).await;
        assert!(more.is_err(), "superseded delays are void");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_until_forgotten() {
        let queue = Queue::new(Backoff {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(3),
        });
        assert_eq!(queue.retry("a").as_secs(), 1);
        assert_eq!(queue.retry("a").as_secs(), 2);
        assert_eq!(queue.retry("a").as_secs(), 3);
        queue.forget(&"a");
        assert_eq!(queue.retry("a").as_secs(), 1);
        assert_eq!(Backoff::default().after(4000), Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_named_queue_tells_what_waits_and_for_how_long() {
        let metrics = QueueMetrics::of("queue of a test");
        let queue = Queue::default();
        queue.add("early");
        for _ in 0..2 {
            queue.measure("queue of a test");
        }
        for key in ["early", "late", "late"] {
            queue.add(key);
        }
        assert_eq!((metrics.depth.get(), metrics.adds.get()), (2, 2));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(queue.next().await, "early");
        assert_eq!(metrics.depth.get(), 1);
        assert_eq!(metrics.waited.get_sample_sum(), 3.0);
        queue.add("early");
        assert_eq!(metrics.adds.get(), 2, "it is being worked on");
        queue.worked(Duration::from_secs(2));
        queue.done(&"early");
        assert_eq!((metrics.depth.get(), metrics.adds.get()), (2, 3));
        assert_eq!(metrics.worked.get_sample_sum(), 2.0);
        queue.retry("early");
        assert_eq!(metrics.retries.get(), 1);
        drop(queue);
        assert_eq!(
            metrics.depth.get(),
            0,
            "nothing waits in a queue that is gone"
        );
    }
}
