//! What of a disk is left, and from where on pods have to go for it.

use std::path::Path;

/// A kubelet's default hard eviction thresholds.
pub const NODE_DISK_PERCENT: u64 = 10;
const INODES_PERCENT: u64 = 5;
/// A server beside the agent takes no writes that add with less than 200 MiB: on a small disk, pods must go before that.
const LEAST_NODE_DISK: u64 = 256 << 20;
/// But never for more than a part of the disk.
const LEAST_DIVISOR: u64 = 3;

/// Something of which a part is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// What is left.
    pub available: u64,
    /// All of it.
    pub total: u64,
}

impl Share {
    /// Whether less than so many hundredths are left. What has no size cannot run short.
    pub fn is_below(self, percent: u64) -> bool {
        u128::from(self.available) * 100 < u128::from(self.total) * u128::from(percent)
    }

    /// Hundredths in use, rounded up.
    pub fn percent_used(self) -> u64 {
        let free = (u128::from(self.available) * 100).checked_div(u128::from(self.total));
        100 - u64::try_from(free.unwrap_or(100)).unwrap_or(100).min(100)
    }
}

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its bytes.
    pub bytes: Share,
    /// Its inodes; a total of 0 where it has no number of them.
    pub inodes: Share,
}

impl Disk {
    /// The file system that holds a path, counted as df does: what is reserved for others is neither available nor part
    /// of the whole.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let disk = rustix::fs::statvfs(path)?;
        let share = |total: u64, free: u64, available: u64| Share {
            available,
            total: total.saturating_sub(free).saturating_add(available),
        };
        let blocks = share(disk.f_blocks, disk.f_bfree, disk.f_bavail);
        Ok(Self {
            bytes: Share {
                available: blocks.available.saturating_mul(disk.f_frsize),
                total: blocks.total.saturating_mul(disk.f_frsize),
            },
            inodes: share(disk.f_files, disk.f_ffree, disk.f_favail),
        })
    }

    /// Whether less than so many hundredths of its bytes are left, or too few inodes.
    pub fn is_below(self, percent: u64) -> bool {
        self.bytes.is_below(percent) || self.inodes.is_below(INODES_PERCENT)
    }

    /// With fewer bytes than this, pods have to go.
    pub fn threshold(&self) -> u64 {
        let total = self.bytes.total;
        let least = LEAST_NODE_DISK.min(total / LEAST_DIVISOR);
        (total / 100 * NODE_DISK_PERCENT).max(least)
    }

    /// The same for inodes; 0 where the file system has no number of them.
    pub fn inodes_threshold(&self) -> u64 {
        self.inodes.total / 100 * INODES_PERCENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(available: u64, total: u64) -> Share {
        Share { available, total }
    }

    #[test]
    fn a_small_disk_is_short_before_a_server_on_it_is() {
        let threshold = |total| {
            let bytes = share(0, total);
            let inodes = Share::default();
            Disk { bytes, inodes }.threshold()
        };
        assert_eq!(threshold(300 << 20), 100 << 20);
        assert_eq!(threshold(1 << 30), 256 << 20);
        assert_eq!(threshold(100 << 30), (100 << 30) / 100 * 10);
    }

    #[test]
    fn use_is_rounded_up() {
        assert_eq!(share(15, 100).percent_used(), 85);
        assert_eq!(share(159, 1000).percent_used(), 85);
        assert_eq!(share(0, 0).percent_used(), 0);
        assert_eq!(share(u64::MAX, u64::MAX).percent_used(), 0);
    }
}
