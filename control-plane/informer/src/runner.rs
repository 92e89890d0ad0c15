//! Runs a reconciler over a queue: several keys at once, each of them never twice at once. One that panics is an error of
//! its key, and nobody else's.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use gantry_tasks::caught;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::Failure;
use crate::queue::Queue;

/// When a key that was reconciled without error wants to be looked at again, beside any change of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// On the next change.
    Changed,
    /// After this time.
    After(Duration),
}

/// Hands keys to `reconcile`, at most `limit` at once, until stopped; then waits for those under way.
///
/// An error is logged in a line, and the key tried again after its backoff: at once, as good as, where it fails for the first
/// time. The queue's metrics are told under `name`.
pub async fn run<T, F, Fut, E>(
    name: &'static str,
    queue: Arc<Queue<T>>,
    limit: usize,
    stop: CancellationToken,
    reconcile: F,
) where
    T: Clone + Eq + Hash + Debug + Send + Sync + 'static,
    F: Fn(T) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, E>> + Send + 'static,
    E: Failure + Send,
{
    queue.measure(name);
    let mut running = JoinSet::new();
    loop {
        while running.len() >= limit {
            joined(name, running.join_next().await);
        }
        while let Some(finished) = running.try_join_next() {
            joined(name, Some(finished));
        }
        let Some(key) = stop.run_until_cancelled(queue.next()).await else {
            break;
        };
        let (queue, reconcile) = (queue.clone(), reconcile.clone());
        running.spawn(async move {
            let work = Work {
                began: Instant::now(),
                queue,
                key,
            };
            match caught(async { reconcile(work.key.clone()).await }).await {
                Ok(Ok(next)) => {
                    work.queue.forget(&work.key);
                    if let Next::After(delay) = next {
                        work.queue.add_after(work.key.clone(), delay);
                    }
                }
                Ok(Err(error)) => {
                    let wait = work.queue.retry(work.key.clone());
                    if error.is_expected() {
                        tracing::debug!(controller = name, key = ?work.key, %error, "reconciling came at the wrong time; again in {wait:?}");
                    } else {
                        tracing::warn!(controller = name, key = ?work.key, %error, "reconciling failed; again in {wait:?}");
                    }
                }
                Err(panicked) => {
                    let wait = work.queue.retry(work.key.clone());
                    tracing::error!(controller = name, key = ?work.key, %panicked, "reconciling broke off; again in {wait:?}");
                }
            }
        });
    }
    while let Some(finished) = running.join_next().await {
        joined(name, Some(finished));
    }
}

/// A key being worked on; given back to the queue however the work ends.
struct Work<T: Clone + Eq + Hash> {
    began: Instant,
    queue: Arc<Queue<T>>,
    key: T,
}

impl<T: Clone + Eq + Hash> Drop for Work<T> {
    fn drop(&mut self) {
        self.queue.worked(self.began.elapsed());
        self.queue.done(&self.key);
    }
}

fn joined(name: &str, outcome: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(Err(error)) = outcome {
        tracing::error!(controller = name, %error, "a reconciler's task ended unexpectedly");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    impl Failure for &str {}
    impl Failure for String {}

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_is_tried_until_it_succeeds_and_others_go_on() {
        let queue = Arc::new(Queue::default());
        let stop = CancellationToken::new();
        let attempts = Arc::new(AtomicUsize::new(0));
        let (counter, stopper) = (attempts.clone(), stop.clone());
        queue.add("bad");
        queue.add("good");
        run("test", queue, 2, stop, move |key| {
            let (counter, stopper) = (counter.clone(), stopper.clone());
            async move {
                if key == "good" {
                    return Ok(Next::Changed);
                }
                if counter.fetch_add(1, Ordering::Relaxed) < 3 {
                    return Err("not yet");
                }
                stopper.cancel();
                Ok(Next::Changed)
            }
        })
        .await;
        assert_eq!(attempts.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_its_keys_alone_and_is_tried_again_later_each_time() {
        let queue = Arc::new(Queue::default());
        let stop = CancellationToken::new();
        let attempts = Arc::new(AtomicUsize::new(0));
        let (counter, stopper) = (attempts.clone(), stop.clone());
        for key in ["bad", "good", "better"] {
            queue.add(key);
        }
        let begun = tokio::time::Instant::now();
        run("test", queue, 1, stop, move |key| {
            let (counter, stopper) = (counter.clone(), stopper.clone());
            // Making the future may panic as well as running it.
            if key == "bad" && counter.fetch_add(1, Ordering::Relaxed) == 0 {
                panic!("before it begins");
            }
            async move {
                if key == "bad" {
                    match counter.load(Ordering::Relaxed) {
                        2..4 => panic!("while it runs"),
                        _ => stopper.cancel(),
                    }
                }
                Ok::<_, String>(Next::Changed)
            }
        })
        .await;
        assert_eq!(attempts.load(Ordering::Relaxed), 4);
        assert!(begun.elapsed() >= Duration::from_millis(5 + 10 + 20));
    }
}
