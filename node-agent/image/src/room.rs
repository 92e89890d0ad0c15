//! How much of the disk is not for images. The agent evicts pods when a tenth of it is left (its `pressure.rs`): a pull stops
//! before that, since nobody's pods are to go for somebody's image. Unused images are removed earlier, with less than 16 %.

use std::io;
use std::path::Path;

use rustix::fs::statvfs;

/// Below so much pods are evicted: a part of the disk, and on a small one more, as the agent has it.
const EVICTION_DIVISOR: u64 = 10;
const EVICTION_LEAST: u64 = 256 << 20;
const EVICTION_LEAST_DIVISOR: u64 = 3;
/// Of the inodes, pods go below so many hundredths.
const EVICTION_INODES: u64 = 5;
/// What is kept beside that, in hundredths: several pulls look at once, and pods write meanwhile.
const DISTANCE: u64 = 2;
/// Bytes that may be written between two looks.
pub(crate) const LOOK: u64 = 8 << 20;

/// A part of the disk, in bytes or inodes.
#[derive(Clone, Copy, Debug)]
struct Left {
    total: u64,
    available: u64,
}

impl Left {
    /// Counted as df does: what is reserved for root is neither available nor part of the whole.
    fn of(unit: u64, total: u64, free: u64, available: u64) -> Self {
        let total = total.saturating_sub(free).saturating_add(available);
        Self {
            total: total.saturating_mul(unit),
            available: available.saturating_mul(unit),
        }
    }

    fn bytes_kept(self) -> u64 {
        let least = EVICTION_LEAST.min(self.total / EVICTION_LEAST_DIVISOR);
        let evicted = (self.total / EVICTION_DIVISOR).max(least);
        evicted.saturating_add(self.total / 100 * DISTANCE)
    }

    /// 0 where the file system has no number of them.
    fn inodes_kept(self) -> u64 {
        self.total / 100 * (EVICTION_INODES + DISTANCE)
    }
}

/// Fails with [`io::ErrorKind::StorageFull`] when images may have no more of the disk that a directory is on.
pub(crate) fn check(directory: &Path) -> io::Result<()> {
    let disk = statvfs(directory)?;
    judge(
        Left::of(disk.f_frsize, disk.f_blocks, disk.f_bfree, disk.f_bavail),
        Left::of(1, disk.f_files, disk.f_ffree, disk.f_favail),
    )
}

fn judge(bytes: Left, inodes: Left) -> io::Result<()> {
    for (left, kept, unit) in [
        (bytes, bytes.bytes_kept(), "bytes"),
        (inodes, inodes.inodes_kept(), "inodes"),
    ] {
        if left.available < kept {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "the disk has {} {unit} left, and images leave {kept} to pods: remove what is not used, or give the node more",
                    left.available
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn left(total: u64, available: u64) -> Left {
        Left { total, available }
    }

    #[test]
    fn images_stop_before_pods_are_evicted_and_after_unused_images_go() {
        let inodes = left(0, 0);
        for (total, evicted) in [(100 * GIB, 10 * GIB), (GIB, 256 << 20), (GIB / 2, GIB / 6)] {
            let kept = left(total, 0).bytes_kept();
            assert!(kept > evicted, "{total}: {kept}");
            judge(left(total, kept), inodes).expect("enough");
            let error = judge(left(total, kept - 1), inodes).expect_err("too little");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        }
        // With 16 hundredths the agent's collector begins.
        assert!(left(100 * GIB, 0).bytes_kept() < 15 * GIB);
    }

    #[test]
    fn inodes_count_where_there_are_any() {
        let bytes = left(100 * GIB, 100 * GIB);
        judge(bytes, left(0, 0)).expect("none are counted");
        judge(bytes, left(1_000, 70)).expect("enough");
        let error = judge(bytes, left(1_000, 69)).expect_err("too few");
        assert!(error.to_string().contains("69 inodes"), "{error}");
    }

    #[test]
    fn what_is_reserved_for_root_is_no_part_of_the_disk() {
        let left = Left::of(4096, 100, 30, 20);
        assert_eq!((left.total, left.available), (90 * 4096, 20 * 4096));
    }
}
