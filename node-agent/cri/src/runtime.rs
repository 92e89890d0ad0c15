//! Sandboxes and containers: the seam between pod workers and whatever runs them.

mod error;
mod fake;
mod sysctl;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use gantry_idmap::IdBlock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc, oneshot};

pub use error::RuntimeError;
pub use fake::FakeRuntime;
pub use sysctl::{SysctlName, SysctlNamespace};
pub use usage::{ContainerUsage, Measured, PodUsage, Pressure, Pressures, Throttling, Usage};

/// The uid of a pod; names its sandbox, cgroup and directories.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct PodUid(pub String);

/// One attempt at running a container: never reused, so a container is never started twice for one attempt.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct ContainerId {
    /// The pod it belongs to.
    pub pod: PodUid,
    /// The container's name within the pod.
    pub name: String,
    /// 0 for the first start; equals the restart count.
    pub attempt: u32,
}

/// What a pod's shim needs before its first container.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct SandboxSpec {
    /// The pod's uid.
    pub pod: PodUid,
    /// For messages and process titles.
    pub namespace: String,
    /// For messages and process titles.
    pub name: String,
    /// The UTS host name inside the pod.
    pub hostname: String,
    /// Path of the network namespace to join; `None` runs in the host's.
    pub netns: Option<PathBuf>,
    /// Users of its own: those of the user namespace that owns `netns`, which [`Runtime::own_network`] has made.
    #[serde(default)]
    pub users: Option<IdBlock>,
    /// Share the host's pid namespace.
    pub host_pid: bool,
    /// Share the host's ipc namespace.
    pub host_ipc: bool,
    /// One pid namespace for all containers (`shareProcessNamespace`).
    pub share_pid: bool,
    /// sysctls to write in the sandbox's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Pod-level limits (the sum of its containers, where each sets one).
    pub resources: Resources,
    /// Where container logs go: `<log_dir>/<container>/<attempt>.log`, CRI format.
    pub log_dir: PathBuf,
    /// Rotate a log when it reaches this many bytes.
    pub log_max_bytes: u64,
    /// Log files kept per container, the current one included.
    pub log_max_files: u32,
}

/// cgroup limits in the kernel's units; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
// An earlier agent process may have written fewer.
#[serde(default)]
pub struct Resources {
    /// Relative weight: 1 CPU = 1024 (cgroup v1 cpu.shares).
    pub cpu_shares: Option<u64>,
    /// CFS quota in microseconds per period.
    pub cpu_quota_micros: Option<i64>,
    /// CFS period in microseconds; 100 000 by default.
    pub cpu_period_micros: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<i64>,
    /// Bytes of swap beside its memory; cgroup v2.
    pub memory_swap: Option<i64>,
    /// Bytes that are never taken back while it uses them; cgroup v2's memory.min.
    pub memory_min: Option<i64>,
    /// Bytes that are taken back only when nothing else is left to take; cgroup v2's memory.low.
    pub memory_low: Option<i64>,
    /// When memory runs out all of its processes are killed, not one of them; cgroup v2's memory.oom.group.
    pub oom_group: bool,
    /// Processes and threads.
    pub pids_limit: Option<i64>,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: Option<i32>,
}

/// A bind mount into the container.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BindMount {
    /// Absolute host path.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: PathBuf,
    /// Mounted read-only.
    pub read_only: bool,
    /// `rprivate`, `rslave` or `rshared`.
    pub propagation: Propagation,
}

/// Mount propagation as Kubernetes names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Propagation {
    /// rprivate
    #[default]
    None,
    /// rslave
    HostToContainer,
    /// rshared
    Bidirectional,
}

/// The seccomp filter to install.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Seccomp {
    /// The default profile.
    #[default]
    RuntimeDefault,
    /// No filter.
    Unconfined,
    /// A profile file on the node, in the OCI JSON format.
    Localhost(PathBuf),
}

/// Everything needed to create and start one container; image defaults are already merged in.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct ContainerSpec {
    /// Its identity.
    pub id: ContainerId,
    /// The mounted root file system.
    pub rootfs: PathBuf,
    /// argv; never empty.
    pub args: Vec<String>,
    /// `NAME=value`, in order; the runtime adds PATH when absent.
    pub env: Vec<String>,
    /// Absolute working directory; created when missing.
    pub cwd: PathBuf,
    /// Numeric user.
    pub uid: u32,
    /// Numeric primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Mounts beside /proc, /dev, /sys and the like, in order.
    pub mounts: Vec<BindMount>,
    /// Root file system mounted read-only.
    pub read_only_rootfs: bool,
    /// All capabilities, no masked paths, no seccomp, host devices.
    pub privileged: bool,
    /// No masked and no read-only paths in /proc: for pods with users of their own, to which they show nothing more.
    #[serde(default)]
    pub unmasked_proc: bool,
    /// Capabilities added to the default set, without `CAP_`; `ALL` for all.
    pub cap_add: Vec<String>,
    /// Capabilities dropped, without `CAP_`; `ALL` for all.
    pub cap_drop: Vec<String>,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// The filter.
    pub seccomp: Seccomp,
    /// Limits.
    pub resources: Resources,
    /// Allocate a terminal.
    pub tty: bool,
    /// Keep stdin open for attach.
    pub stdin: bool,
    /// Bind-mounted into the container at `termination_message_path`; read at exit (at most 4096 bytes).
    pub termination_message_path: PathBuf,
}

/// Where a container is in its life. `Created -> Running -> Exited`, never back.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum ContainerState {
    /// Being set up; the command has not been executed.
    Created,
    /// Executing.
    Running {
        /// pid in the host's pid namespace.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Ended.
    Exited(ContainerExit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ContainerExit {
    /// Exit code; 128 + signal when killed by one.
    pub code: i32,
    /// The signal, when killed by one.
    pub signal: Option<i32>,
    /// The kernel's OOM killer ended a process of its cgroup.
    pub oom_killed: bool,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// Contents of the termination message file (at most 4096 bytes).
    pub message: String,
}

/// One container as the shim knows it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ContainerStatus {
    /// Its identity.
    pub id: ContainerId,
    /// Its state.
    pub state: ContainerState,
}

/// A sandbox found or known.
#[derive(Clone, Debug)]
pub struct SandboxStatus {
    /// As given at creation.
    pub spec: SandboxSpec,
    /// pid of the shim.
    pub shim_pid: i32,
    /// All containers not yet removed, in creation order.
    pub containers: Vec<ContainerStatus>,
}

/// Something happened to a container that nobody asked for.
#[derive(Clone, Debug)]
pub enum RuntimeEvent {
    /// A container ended.
    Exited {
        /// Which.
        id: ContainerId,
        /// How.
        exit: ContainerExit,
    },
    /// The shim is gone; its containers with it.
    SandboxLost {
        /// Which.
        pod: PodUid,
    },
}

/// A command to run in a running container.
#[derive(Clone, Debug)]
pub struct ExecSpec {
    /// argv; never empty.
    pub args: Vec<String>,
    /// Allocate a terminal (stderr is then part of stdout).
    pub tty: bool,
    /// Connect stdin.
    pub stdin: bool,
    /// Kill the command after this long.
    pub timeout: Option<Duration>,
}

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A running exec or attach.
pub struct IoSession {
    /// Write side of stdin, when asked for; dropping it closes stdin.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// stdout (with a tty, everything).
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// stderr, absent with a tty.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal sizes, applied as they arrive.
    pub resize: mpsc::Sender<TerminalSize>,
    /// The exit code, once all output has been written.
    pub exit: oneshot::Receiver<Result<i32, RuntimeError>>,
}

/// Runs sandboxes and containers. Every operation is idempotent: repeating one that has happened is not an error.
///
/// Sandboxes outlive the process that holds this value; [`Runtime::sandboxes`] finds them again.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Starts the pod's shim and namespaces.
    async fn start_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError>;
    /// Every sandbox of this node, including those of an earlier agent process.
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;
    /// One sandbox as it was given at creation, when it is known: waits for no shim.
    fn sandbox(&self, pod: &PodUid) -> Option<SandboxSpec>;
    /// All containers of one sandbox that are not yet removed, in creation order: asks no other sandbox's shim.
    async fn containers(&self, pod: &PodUid) -> Result<Vec<ContainerStatus>, RuntimeError>;
    /// Makes a network namespace in a user namespace that has these ids of the node's. It lives as long as the answer, and
    /// what it was mounted at.
    fn own_network(&self, ids: IdBlock) -> io::Result<OwnedFd>;
    /// Kills what still runs, ends the shim and removes every trace but the logs.
    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), RuntimeError>;
    /// Creates and starts a container; returns when its command is executing.
    async fn start_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, RuntimeError>;
    /// Changes what a running container may use, without a restart; what is `None` stays as it is. A limit of memory below what
    /// it uses may cost it processes.
    async fn update_container(
        &self,
        id: &ContainerId,
        resources: &Resources,
    ) -> Result<(), RuntimeError>;
    /// As [`Runtime::update_container`], of all containers of a pod together. On cgroup v1 their limit of CPU time is refused
    /// when a container has a higher one.
    async fn update_sandbox(&self, pod: &PodUid, resources: &Resources)
    -> Result<(), RuntimeError>;
    /// Sends a signal to the container's init process.
    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError>;
    /// Forgets an exited container and releases its cgroup and state directory; logs stay.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;
    /// Runs a command in a running container.
    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<IoSession, RuntimeError>;
    /// Connects to the stdio of a running container's init process.
    async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<IoSession, RuntimeError>;
    /// What a pod uses, per container name.
    async fn usage(&self, pod: &PodUid) -> Result<BTreeMap<String, Usage>, RuntimeError>;
    /// What the machine, all sandboxes and their running containers use: meant to be asked every second. It asks no shim, and
    /// reads beside the runtime's own threads.
    async fn measure(&self) -> Result<Measured, RuntimeError>;
    /// Events from now on. A receiver that lags must call [`Runtime::sandboxes`] again.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;
}
