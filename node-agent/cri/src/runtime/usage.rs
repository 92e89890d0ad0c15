//! What groups of processes use, as the kernel counts it.

use std::time::Instant;

use super::PodUid;

/// Resource usage of a pod, a container or the whole machine. Times are counted since the group was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory that cannot be reclaimed easily, bytes.
    pub memory_working_set: u64,
    /// All memory, that of files included, bytes.
    pub memory: u64,
    /// Memory of no file, bytes.
    pub memory_rss: u64,
    /// How it was held back by its limit of CPU.
    pub throttling: Throttling,
    /// Processes and threads, where the kernel counts them by group.
    pub processes: Option<u64>,
    /// What it had to wait for, where the kernel tells it by group: cgroup v2.
    pub pressures: Option<Pressures>,
}

/// How a group was held back by its limit of CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods of the limit that have passed.
    pub periods: u64,
    /// Those in which it was held back.
    pub throttled_periods: u64,
    /// For how long, nanoseconds.
    pub throttled_nanos: u64,
}

/// How long a group has waited for each of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    /// A processor.
    pub cpu: Pressure,
    /// Memory.
    pub memory: Pressure,
    /// Disks.
    pub io: Pressure,
}

/// How long processes have waited for something, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some of them (the kernel's `some`).
    pub waiting_micros: u64,
    /// All of them (the kernel's `full`).
    pub stalled_micros: u64,
}

/// A container that runs, and what it uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name in the pod.
    pub name: String,
    /// Which attempt at it.
    pub attempt: u32,
    /// What that uses.
    pub usage: Usage,
}

/// A sandbox, and what it and its containers use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUsage {
    /// Which.
    pub pod: PodUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it was read.
    pub read_at: Instant,
    /// All of it together.
    pub usage: Usage,
    /// Those that run.
    pub containers: Vec<ContainerUsage>,
}

/// What everything uses that runs on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// When the machine's own was read.
    pub read_at: Instant,
    /// All processes of the machine together.
    pub machine: Usage,
    /// Memory that can still be had, bytes.
    pub memory_available: u64,
    /// The sandboxes of this node.
    pub pods: Vec<PodUsage>,
}
