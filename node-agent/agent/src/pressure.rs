//! Whether the node runs short of memory, disk or processes: the three conditions that Kubernetes' eviction signals make.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use gantry_pods::disk::{Disk, NODE_DISK_PERCENT, Share};
use tokio::time::Instant;

/// A kubelet's default hard eviction thresholds, beside those of [`gantry_pods::disk`].
const MEMORY_AVAILABLE: u64 = 100 << 20;
const IMAGE_DISK_PERCENT: u64 = 15;
/// A kubelet has no default; below this, forks begin to fail for system services too.
const PIDS_PERCENT: u64 = 5;
/// A condition that was seen holds for as long, so that it does not flap.
const TRANSITION: Duration = Duration::from_secs(5 * 60);

/// One look at the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Bytes that can be had without swapping.
    pub(crate) memory_available: u64,
    /// Where pods write.
    pub(crate) node_disk: Disk,
    /// Where images are.
    pub(crate) image_disk: Disk,
    /// Processes and threads.
    pub(crate) pids: Share,
}

impl Sample {
    /// Of the machine this runs on.
    pub(crate) fn take(data_dir: &Path) -> std::io::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path);
        let missing = |what: &str| std::io::Error::other(format!("{what} cannot be read"));
        let disk = Disk::of(data_dir)?;
        Ok(Self {
            memory_available: meminfo(&read("/proc/meminfo")?, "MemAvailable")
                .ok_or_else(|| missing("MemAvailable of /proc/meminfo"))?,
            node_disk: disk,
            // One directory holds both.
            image_disk: disk,
            pids: pids(
                &read("/proc/loadavg")?,
                &read("/proc/sys/kernel/pid_max")?,
                &read("/proc/sys/kernel/threads-max")?,
            )
            .ok_or_else(|| missing("the number of processes in /proc"))?,
        })
    }
}

/// A field of /proc/meminfo in bytes.
pub(crate) fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// `loadavg` is `0.20 0.18 0.12 running/threads last`.
fn pids(loadavg: &str, pid_max: &str, threads_max: &str) -> Option<Share> {
    let (_, threads) = loadavg.split_whitespace().nth(3)?.split_once('/')?;
    let used: u64 = threads.parse().ok()?;
    let limit = |text: &str| text.trim().parse::<u64>().ok();
    let total = limit(pid_max)?.min(limit(threads_max)?);
    Some(Share {
        available: total.saturating_sub(used),
        total,
    })
}

/// One of the node's conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) holds: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: Cow<'static, str>,
}

/// What a sample says by itself: memory, disk and pid pressure.
fn short_of(sample: &Sample) -> [bool; 3] {
    [
        sample.memory_available < MEMORY_AVAILABLE,
        sample.node_disk.is_below(NODE_DISK_PERCENT)
            || sample.node_disk.bytes.available < sample.node_disk.threshold()
            || sample.image_disk.is_below(IMAGE_DISK_PERCENT),
        sample.pids.is_below(PIDS_PERCENT),
    ]
}

/// When each pressure was seen last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pressures {
    seen: [Option<Instant>; 3],
}

impl Pressures {
    /// Takes a sample in.
    pub(crate) fn observe(&mut self, sample: &Sample, now: Instant) {
        for (seen, short) in self.seen.iter_mut().zip(short_of(sample)) {
            if short {
                *seen = Some(now);
            } else if seen.is_some_and(|at| now.duration_since(at) >= TRANSITION) {
                *seen = None;
            }
        }
    }

    /// The conditions in a kubelet's words.
    pub(crate) fn conditions(&self) -> [Condition; 3] {
        let [memory, disk, pid] = self.seen.map(|seen| seen.is_some());
        let condition = |kind, holds, words: [(&'static str, &'static str); 2]| {
            let (reason, message) = words[usize::from(holds)];
            Condition {
                kind,
                holds,
                reason,
                message: message.into(),
            }
        };
        [
            condition(
                "MemoryPressure",
                memory,
                [
                    (
                        "KubeletHasSufficientMemory",
                        "kubelet has sufficient memory available",
                    ),
                    (
                        "KubeletHasInsufficientMemory",
                        "kubelet has insufficient memory available",
                    ),
                ],
            ),
            condition(
                "DiskPressure",
                disk,
                [
                    ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                    ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ],
            ),
            condition(
                "PIDPressure",
                pid,
                [
                    (
                        "KubeletHasSufficientPID",
                        "kubelet has sufficient PID available",
                    ),
                    (
                        "KubeletHasInsufficientPID",
                        "kubelet has insufficient PID available",
                    ),
                ],
            ),
        ]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn share(available: u64, total: u64) -> Share {
        Share { available, total }
    }

    pub(crate) fn ample() -> Sample {
        let disk = Disk {
            bytes: share(50 << 30, 100 << 30),
            inodes: share(50, 100),
        };
        Sample {
            memory_available: 1 << 30,
            node_disk: disk,
            image_disk: disk,
            pids: share(30_000, 32_768),
        }
    }

    #[test]
    fn thresholds() {
        let with = |change: fn(&mut Sample)| {
            let mut sample = ample();
            change(&mut sample);
            short_of(&sample)
        };
        type Case = (fn(&mut Sample), [bool; 3]);
        let table: [Case; 10] = [
            (|_| {}, [false; 3]),
            (|s| s.memory_available = 100 << 20, [false; 3]),
            (
                |s| s.memory_available = (100 << 20) - 1,
                [true, false, false],
            ),
            (|s| s.node_disk.bytes.available = 10 << 30, [false; 3]),
            (
                |s| s.node_disk.bytes.available = 9 << 30,
                [false, true, false],
            ),
            (|s| s.image_disk.bytes.available = 15 << 30, [false; 3]),
            (
                |s| s.image_disk.bytes.available = 14 << 30,
                [false, true, false],
            ),
            (|s| s.node_disk.inodes.available = 4, [false, true, false]),
            // btrfs has no number of inodes.
            (|s| s.node_disk.inodes = share(0, 0), [false; 3]),
            (|s| s.pids.available = 1000, [false, false, true]),
        ];
        for (index, (change, wanted)) in table.into_iter().enumerate() {
            assert_eq!(with(change), wanted, "case {index}");
        }
    }

    #[test]
    fn a_pressure_holds_for_a_while() {
        let (start, mut pressures) = (Instant::now(), Pressures::default());
        let short = Sample {
            memory_available: 0,
            ..ample()
        };
        let memory = |pressures: &Pressures| pressures.conditions()[0].clone();
        pressures.observe(&ample(), start);
        assert_eq!(memory(&pressures).reason, "KubeletHasSufficientMemory");
        pressures.observe(&short, start);
        assert_eq!(
            (memory(&pressures).holds, &*memory(&pressures).message),
            (true, "kubelet has insufficient memory available")
        );
        pressures.observe(&ample(), start + TRANSITION - Duration::from_secs(1));
        assert!(memory(&pressures).holds);
        pressures.observe(&ample(), start + TRANSITION);
        assert!(!memory(&pressures).holds);
        assert!(!pressures.conditions()[1].holds && !pressures.conditions()[2].holds);
    }

    #[test]
    fn the_kernels_files_are_read() {
        let text = "MemTotal:       16384 kB\nMemAvailable: 1 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(16 << 20));
        assert_eq!(meminfo(text, "MemAvailable"), Some(1024));
        assert_eq!(meminfo("", "MemTotal"), None);
        let read = pids("0.20 0.18 0.12 1/768 11206\n", "32768\n", "100000\n");
        assert_eq!(read, Some(share(32_000, 32_768)));
        assert_eq!(pids("", "1", "1"), None);
        Sample::take(Path::new("/")).expect("this machine can be measured");
    }
}
