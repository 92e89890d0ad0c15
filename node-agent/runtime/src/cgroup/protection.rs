//! Memory that the kernel does not take back from pods: cgroup v2's memory.min and memory.low.
//!
//! A group's protection counts only as far as the groups above it have as much, so those get the sum of what is below
//! them. It is added up anew from the kernel's own files when a pod that has any comes or goes: agents that end or share
//! the groups above cannot leave a wrong sum behind for longer than that.

use std::fs;
use std::io;
use std::path::Path;

use super::{Hierarchies, below};

/// Never taken back.
pub(super) const HARD: &str = "memory.min";
/// Taken back last.
pub(super) const SOFT: &str = "memory.low";

impl Hierarchies {
    /// Whether a group has any protection.
    pub(crate) fn is_protected(&self, group: &Path) -> bool {
        let Self::Unified(mount) = self else {
            return false;
        };
        let dir = below(mount, group);
        [HARD, SOFT].iter().any(|file| amount(&dir, file) > 0)
    }

    /// Gives the group that pods are in, and those above it, the sum of what is below them. Nothing to do on v1.
    pub(crate) fn protect_above_pods(&self, root: &Path) -> io::Result<()> {
        let Self::Unified(mount) = self else {
            return Ok(());
        };
        for above in root.ancestors() {
            let dir = below(mount, above);
            // The hierarchy's own root is protected from nothing.
            if dir == *mount {
                break;
            }
            for file in [HARD, SOFT] {
                add_up(&dir, file)?;
            }
        }
        Ok(())
    }
}

fn add_up(dir: &Path, file: &str) -> io::Result<()> {
    let mut sum = 0_u64;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sum = sum.saturating_add(amount(&entry.path(), file));
        }
    }
    fs::write(dir.join(file), sum.to_string())
}

/// A group that is gone, or whose host does not limit memory, has none.
fn amount(dir: &Path, file: &str) -> u64 {
    match fs::read_to_string(dir.join(file)) {
        Ok(text) if text.trim() == "max" => u64::MAX,
        Ok(text) => text.trim().parse().unwrap_or(0),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_above_pods_have_the_sum_of_what_is_below() {
        let mount = tempfile::tempdir().unwrap();
        let found = Hierarchies::Unified(mount.path().to_owned());
        let pod = |group: &str, hard: &str, soft: &str| {
            let dir = below(mount.path(), Path::new(group));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(HARD), hard).unwrap();
            fs::write(dir.join(SOFT), soft).unwrap();
        };
        pod("/gantry/a/one", "100\n", "0\n");
        pod("/gantry/a/two", "20\n", "7\n");
        pod("/gantry/b", "1\n", "max\n");
        assert!(found.is_protected(Path::new("/gantry/a/one")));
        assert!(!found.is_protected(Path::new("/gantry/a/none")));
        found.protect_above_pods(Path::new("/gantry/a")).unwrap();
        let read = |name: &str| fs::read_to_string(mount.path().join(name)).unwrap();
        assert_eq!(read("gantry/a/memory.min"), "120");
        assert_eq!(read("gantry/a/memory.low"), "7");
        assert_eq!(read("gantry/memory.min"), "121");
        assert_eq!(read("gantry/memory.low"), u64::MAX.to_string());
        assert!(!mount.path().join(HARD).exists());
    }
}
