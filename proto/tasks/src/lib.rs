//! What happens when a task panics: it ends, and nothing else does. Long-lived tasks are begun anew.
//!
//! Depends on nothing of Gantry. Both the control plane and the node's agent run their tasks through this crate, so that a
//! message that somebody's code did not foresee costs one connection, one stream or one reconcile.
//!
//! Invariants kept here:
//! - a panic is an error with the words of the panic, never the end of the process ([`caught`], [`supervised`]);
//! - the one exception is code after whose panic memory and disk may differ, see [`or_abort`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

/// The wait after a panic, doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A task that has run for this long is well again: its next panic counts as the first.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Something panicked, with these words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked(String);

impl Panicked {
    /// Of what a panic carries.
    pub fn of(payload: &(dyn Any + Send)) -> Self {
        let words = payload
            .downcast_ref::<&str>()
            .map(|words| (*words).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned());
        Self(words.unwrap_or_else(|| "without words".to_owned()))
    }
}

impl std::fmt::Display for Panicked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "panicked: {}", self.0)
    }
}

impl std::error::Error for Panicked {}

/// The outcome of a future, whatever it does. What it shared with others must bear that it stopped anywhere.
pub async fn caught<F: Future>(future: F) -> Result<F::Output, Panicked> {
    AssertUnwindSafe(future)
        .catch_unwind()
        .await
        .map_err(|payload| Panicked::of(payload.as_ref()))
}

/// The outcome of a function, whatever it does; see [`caught`].
pub fn caught_now<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| Panicked::of(payload.as_ref()))
}

/// Runs a task until it ends by itself or is stopped; one that panics is begun anew after a wait, which grows.
pub async fn supervised<F: Future<Output = ()>>(
    name: &'static str,
    stop: &CancellationToken,
    mut begin: impl FnMut() -> F,
) {
    let mut wait = FIRST_WAIT;
    loop {
        let begun = tokio::time::Instant::now();
        // Making the future is part of the task.
        let Err(panicked) = caught(async { begin().await }).await else {
            return;
        };
        if begun.elapsed() >= WELL_AFTER {
            wait = FIRST_WAIT;
        }
        tracing::error!(task = name, %panicked, "a task ended unexpectedly; it begins anew in {wait:?}");
        if stop
            .run_until_cancelled(tokio::time::sleep(wait))
            .await
            .is_none()
        {
            return;
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Runs what must not be half done: should it panic, the process ends at once, saying so. For a member's state machine,
/// which would otherwise answer from a state that is not the one of the log.
pub fn or_abort<T>(what: &str, work: impl FnOnce() -> T) -> T {
    match caught_now(work) {
        Ok(done) => done,
        Err(panicked) => {
            // Logs may be on their way through a thread that is gone with the process.
            eprintln!(
                "error: {what} {panicked}: the process ends, so that nobody is answered from a state that may be wrong"
            );
            std::process::abort()
        }
    }
}

/// Logs panics as everything else is logged, with where they were.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let panicked = Panicked::of(info.payload());
        let place = info.location().map(ToString::to_string);
        tracing::error!(place = place.unwrap_or_default(), %panicked, "this is a defect of Gantry: please report it");
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_its_words() {
        let number = 7;
        let formatted: Result<(), _> = caught(async { panic!("number {number}") }).await;
        assert_eq!(formatted.unwrap_err().to_string(), "panicked: number 7");
        let plain: Result<(), _> = caught_now(|| panic!("plain"));
        assert_eq!(plain.unwrap_err().to_string(), "panicked: plain");
        assert_eq!(caught(async { 1 }).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_begins_anew_until_it_ends_by_itself() {
        let stop = CancellationToken::new();
        let begun = Arc::new(AtomicUsize::new(0));
        supervised("test", &stop, || {
            let begun = begun.clone();
            async move {
                if begun.fetch_add(1, Ordering::Relaxed) < 4 {
                    panic!("again");
                }
            }
        })
        .await;
        assert_eq!(begun.load(Ordering::Relaxed), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait_between_two_beginnings() {
        let stop = CancellationToken::new();
        let stopper = stop.clone();
        let begun = AtomicUsize::new(0);
        supervised("test", &stop, || {
            begun.fetch_add(1, Ordering::Relaxed);
            stopper.cancel();
            async { panic!("at once") }
        })
        .await;
        assert_eq!(begun.load(Ordering::Relaxed), 1);
    }
}
