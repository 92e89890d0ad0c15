//! What a node says at one moment.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Which pod it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// Which Service it is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// How long processes have waited for something, in microseconds since their group was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Some of them waited (the kernel's `some`).
    pub waiting_micros: u64,
    /// All of them waited (the kernel's `full`).
    pub stalled_micros: u64,
}

/// Pressure by what was waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    /// A processor.
    pub cpu: Pressure,
    /// Memory.
    pub memory: Pressure,
    /// Disks.
    pub io: Pressure,
}

/// What the kernel counts of a group of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// CPU time since the group was made, nanoseconds.
    pub cpu_nanos: u64,
    /// Memory that cannot be reclaimed easily, bytes.
    pub working_set_bytes: u64,
    /// All memory, that of files included, bytes.
    pub memory_bytes: u64,
    /// Memory of no file, bytes.
    pub rss_bytes: u64,
    /// Periods of its limit of CPU that have passed.
    pub periods: u64,
    /// Those in which it was held back.
    pub throttled_periods: u64,
    /// For how long, nanoseconds.
    pub throttled_nanos: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Where the kernel tells it.
    pub pressures: Option<Pressures>,
}

/// What has passed a link since it was made, as who is behind it sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that came.
    pub received_bytes: u64,
    /// Packets that came.
    pub received_packets: u64,
    /// Packets that could not be received.
    pub received_errors: u64,
    /// Packets that were dropped on their way in.
    pub received_dropped: u64,
    /// Bytes that went.
    pub sent_bytes: u64,
    /// Packets that went.
    pub sent_packets: u64,
    /// Packets that could not be sent.
    pub sent_errors: u64,
    /// Packets that were dropped on their way out.
    pub sent_dropped: u64,
}

/// Connections of TCP that were opened to a pod by others than its node and itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Those that are open now.
    pub open: u64,
    /// All that there have been since the pod's network was made. It may stay behind, but does not fall.
    pub opened: u64,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSample {
    /// Its name in the pod.
    pub name: String,
    /// How often it has been started anew: counters of different attempts are different ones.
    pub attempt: u32,
    /// What it uses.
    pub amounts: Amounts,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSample {
    /// Which.
    pub pod: Arc<PodName>,
    /// When it was read, nanoseconds by [`Sample::clock`].
    pub at: u64,
    /// All of it together.
    pub amounts: Amounts,
    /// Of its link; a pod on its node's network has none.
    pub traffic: Option<Traffic>,
    /// A pod on its node's network has none of its own.
    pub connections: Option<Connections>,
    /// Those that run.
    pub containers: Vec<ContainerSample>,
}

/// The node itself, pods included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSample {
    /// When it was read, nanoseconds by [`Sample::clock`].
    pub at: u64,
    /// All that runs on it together.
    pub amounts: Amounts,
    /// Memory that can still be had, bytes.
    pub available_bytes: u64,
    /// Of the link that leads to others.
    pub traffic: Option<Traffic>,
}

/// All that a node says at one moment: what it does not name is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Whose times these are: those of different agent processes cannot be compared.
    pub clock: u64,
    /// The node.
    pub node: NodeSample,
    /// Its pods.
    pub pods: Vec<PodSample>,
    /// How many connections it holds to each Service that nothing serves, until something does.
    pub held: HashMap<ServiceName, u64>,
}

/// A series that a pod exposes, as far as anybody wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScrapedSeries {
    /// Its name.
    pub name: String,
    /// Of its labels those by which somebody tells it apart.
    pub labels: BTreeMap<String, String>,
    /// It only grows, and begins anew with its process.
    pub is_counter: bool,
    /// Finite.
    pub value: f64,
}

/// What one pod has answered.
#[derive(Clone, Debug, PartialEq)]
pub struct ScrapedPod {
    /// Which.
    pub pod: Arc<PodName>,
    /// When it was read, nanoseconds by [`ScrapedSample::clock`].
    pub at: u64,
    /// The wanted series, or why there are none.
    pub answer: Result<Vec<ScrapedSeries>, String>,
}

/// All that the pods of a node have answered last: of one that it does not name nothing is wanted any more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScrapedSample {
    /// Whose times these are: those of different agent processes cannot be compared.
    pub clock: u64,
    /// The pods that were asked.
    pub pods: Vec<ScrapedPod>,
}
