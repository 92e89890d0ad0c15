//! Heavy work, off the workers that answer everybody else.
//!
//! Reading, checking and rendering a body takes time in proportion to its size, and a worker that does so answers nobody
//! meanwhile. What is large is therefore done where the runtime expects to wait, and no more of it at once than leaves
//! processors for the rest.

use std::sync::LazyLock;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Bytes of a body below which others hardly notice the work. It is not the bytes that take time but what they become: two
/// are a container.
const HEAVY: usize = 16 << 10;

static TURNS: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new((processors / 2).max(1))
});

/// Leave to work on so many bytes. It is kept from the first look at a body until what was made of it is proposed: that is
/// many times as large as the body, and must not pile up between two waits.
#[derive(Debug)]
pub(crate) struct Turn(Option<SemaphorePermit<'static>>);

impl Turn {
    /// Waits for its turn, where that is needed.
    pub(crate) async fn wait(bytes: usize) -> Self {
        match bytes < HEAVY {
            true => Self(None),
            // Never closed.
            false => Self(TURNS.acquire().await.ok()),
        }
    }

    /// Whether it was waited for.
    pub(crate) fn is_heavy(&self) -> bool {
        self.0.is_some()
    }

    /// Does a part of the work.
    pub(crate) fn work<T>(&self, work: impl FnOnce() -> T) -> T {
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread if self.is_heavy() => tokio::task::block_in_place(work),
            // Little to do, or nobody to leave the thread to.
            _ => work(),
        }
    }
}
