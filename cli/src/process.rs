//! What this process takes of its machine: descriptors, and memory that it gives back.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::sleep;

/// Descriptors are raised to this, or to what the process may have at most. Containers inherit it, and programs that close
/// every descriptor there might be take their time over more.
const DESCRIPTORS: u64 = 65_536;
/// Between two attempts to give memory back while there is some, and the longest when there is none.
const SOON: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(30);
/// An attempt that gave back less than this part of what the process has was for nothing.
const WORTH: u64 = 20;

/// Lets a daemon have as many open files and connections as it may.
pub(crate) fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        // It works with fewer connections.
        eprintln!("raising the limit of open files to {wanted}: {error}");
    }
}

/// How many descriptors the process may have.
pub(crate) fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS)
}

/// The machine's memory in bytes.
pub(crate) fn machine_memory() -> usize {
    let info = rustix::system::sysinfo();
    usize::try_from(info.totalram)
        .unwrap_or(usize::MAX)
        .saturating_mul(usize::try_from(info.mem_unit).unwrap_or(1))
}

/// Gives the kernel what the allocator has kept after a load. The allocator by itself gives back the end of its heaps
/// alone, and one small object that lives on there keeps hundreds of MiB below it. Never ends.
pub(crate) async fn give_memory_back() {
    let mut pause = SOON;
    loop {
        sleep(pause).await;
        let before = resident();
        // It may take some time, in which others must be able to run.
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
        let given = before.saturating_sub(resident());
        pause = match given > before / WORTH {
            true => SOON,
            false => (pause * 2).min(LATER),
        };
    }
}

/// Pages of memory that the process has.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0)
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the allocator has no safe interface")]
fn trim() {
    // SAFETY: malloc_trim takes the allocator's own locks, may be called by any thread at any time, and leaves every
    // block that is in use where it is.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_freed_goes_back_to_the_kernel() {
        // Small blocks, with some that stay between them, so that no heap's end is free.
        let mut blocks: Vec<Box<[u8; 1000]>> = (0..100_000).map(|_| Box::new([1; 1000])).collect();
        let full = resident();
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 1000 == 0
        });
        trim();
        let after = resident();
        assert!(
            after + 15_000 < full,
            "{full} pages before, {after} after, with {} blocks",
            blocks.len()
        );
    }
}
