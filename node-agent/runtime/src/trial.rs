//! Whether a machine has what the runtime needs, found out by trying.

use std::io;
use std::path::Path;

use crate::cgroup::Hierarchies;
use crate::sys;

/// Makes a group of this name below every cgroup hierarchy's root, and removes it again. Says which hierarchies there
/// are, and which controllers are missing: a pod whose limit needs one of those does not start, or runs without it.
pub async fn try_cgroups(group: &Path) -> io::Result<(&'static str, Vec<&'static str>)> {
    let hierarchies = Hierarchies::detect()?;
    let missing = hierarchies
        .create(group)
        .and_then(|_| hierarchies.missing(group));
    // Also what a failure has left half made.
    let removed = hierarchies.remove(group).await;
    let missing = missing.and_then(|missing| removed.map(|()| missing))?;
    let version = if hierarchies.is_unified() { "v2" } else { "v1" };
    Ok((version, missing))
}

/// Whether something, such as a time service, keeps this machine's clock right, as far as the kernel was told.
pub fn clock_is_kept() -> io::Result<bool> {
    sys::clock_is_kept()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_group_that_was_tried_is_gone() {
        let name = format!("/gantry-trial-test-{}", std::process::id());
        let (version, _) = try_cgroups(Path::new(&name)).await.unwrap();
        assert!(["v1", "v2"].contains(&version));
        for root in ["", "/memory", "/cpu", "/pids"] {
            let group = format!("/sys/fs/cgroup{root}{name}");
            assert!(!Path::new(&group).exists(), "{group}");
        }
    }

    #[test]
    fn the_kernel_says_whether_its_clock_is_kept() {
        clock_is_kept().unwrap();
    }
}
