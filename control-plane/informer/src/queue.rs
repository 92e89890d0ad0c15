//! A queue of keys: each at most once in it, never handed out twice at once, with delays and backoff per key.
//!
//! A key that is added while being worked on is remembered and handed out again once that work is done.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

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
    ready: VecDeque<T>,
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
            }),
            changed: Notify::new(),
            backoff,
        }
    }

    /// Puts the key at the end, unless it is already waiting.
    pub fn add(&self, key: T) {
        let mut state = self.state.lock();
        if state.working.contains(&key) {
            state.again.insert(key);
            return;
        }
        if state.queued.insert(key.clone()) {
            state.ready.push_back(key);
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
        if state.again.remove(key) && state.queued.insert(key.clone()) {
            state.ready.push_back(key.clone());
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
            if state.working.contains(&key) {
                state.again.insert(key);
            } else if state.queued.insert(key.clone()) {
                state.ready.push_back(key);
            }
        }
        match state.ready.pop_front() {
            Some(key) => {
                state.queued.remove(&key);
                state.working.insert(key.clone());
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
}
