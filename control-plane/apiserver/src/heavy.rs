//! Heavy work, off the workers that answer everybody else.
//!
//! Reading, checking and rendering a body takes time in proportion to its size, and a worker that does so answers nobody
//! meanwhile. What is large is therefore done where the runtime expects to wait, and no more of it at once than leaves
//! processors for the rest.

use std::sync::LazyLock;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

/// Bytes below which moving the work costs more than doing it: about a millisecond.
const HEAVY: usize = 64 << 10;

static TURNS: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new((processors / 2).max(1))
});

/// Does work on that many bytes.
pub(crate) async fn work<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes < HEAVY {
        return work();
    }
    // Never closed.
    let _turn = TURNS.acquire().await;
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        // There is nobody else to leave the thread to.
        _ => work(),
    }
}
