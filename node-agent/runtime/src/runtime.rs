//! [`ShimRuntime`]: sandboxes and containers through one shim process per pod.
//!
//! Everything it knows is in the run directory or asked of the shims, so that a new agent process takes over what an
//! earlier one left. Layout: `<run_dir>/<pod>/` holds `sandbox.json` (the specification), the shim's socket, config
//! and log, `shm/` and `words/` (each a tmpfs), `c/<name>-<attempt>/` per container and `x/<n>/` per exec.

mod containers;
mod measuring;
mod sandboxes;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use gantry_cri::runtime::{
    ContainerExit, ContainerId, ContainerSpec, ContainerState, ContainerStatus, ExecSpec,
    IoSession, Measured, PodUid, Resources, Runtime, RuntimeError, RuntimeEvent, SandboxSpec,
    SandboxStatus, Usage,
};
use gantry_idmap::IdBlock;
use gantry_rpc::shim::{self, ContainerRef};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::cgroup::Hierarchies;
use crate::executable::Executable;
use crate::users;

/// Where a node's runtime keeps its things. All of it derives from the agent, so that several can share a machine.
#[derive(Clone, Debug)]
pub struct ShimRuntimeConfig {
    /// For what must survive a reboot. Nothing does yet: containers do not either.
    pub data_dir: PathBuf,
    /// Sockets and state, on a tmpfs for choice.
    pub run_dir: PathBuf,
    /// Absolute path below every cgroup hierarchy's root, e.g. `/gantry/node-1`.
    pub cgroup_root: PathBuf,
    /// The binary to execute as shim: one whose `main` calls [`crate::dispatch`] first.
    pub shim_command: PathBuf,
}

impl ShimRuntimeConfig {
    /// The usual configuration of the agent of this name, in this binary.
    pub fn new(data_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>, agent: &str) -> Self {
        Self {
            data_dir: data_dir.into(),
            run_dir: run_dir.into(),
            cgroup_root: Path::new("/gantry").join(agent),
            shim_command: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// A sandbox whose shim this process is connected to.
struct Sandbox {
    spec: SandboxSpec,
    shim_pid: i32,
    pause_pid: Option<i32>,
    version: u32,
    /// It is being removed: the end of its shim is no news.
    removing: AtomicBool,
}

struct Shared {
    config: ShimRuntimeConfig,
    hierarchies: Hierarchies,
    /// What shims execute.
    executable: Executable,
    /// Capabilities this process can give.
    available: u64,
    events: broadcast::Sender<RuntimeEvent>,
    sandboxes: Mutex<HashMap<PodUid, Arc<Sandbox>>>,
    /// One at a time per pod for what creates or removes.
    locks: Mutex<HashMap<PodUid, Arc<tokio::sync::Mutex<()>>>>,
    execs: AtomicU64,
    /// Held while the protection of all pods' memory is added up.
    protecting: Mutex<()>,
    /// The files that say what pods use.
    meters: Mutex<measuring::Meters>,
}

/// Runs containers in shims of our own. Clones share everything.
#[derive(Clone)]
pub struct ShimRuntime {
    shared: Arc<Shared>,
}

fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let doing = doing.into();
    move |source| RuntimeError::Io {
        doing: format!("{doing}: {source}"),
        source,
    }
}

impl ShimRuntime {
    /// Prepares the run directory and looks at what the machine offers. Use it within a tokio runtime; call
    /// [`Runtime::sandboxes`] next to take over what an earlier process left.
    pub fn new(config: ShimRuntimeConfig) -> Result<Self, RuntimeError> {
        if !rustix::process::geteuid().is_root() {
            return Err(RuntimeError::Unsupported(
                "running containers needs root: namespaces, mounts and cgroups cannot be made without it".to_owned(),
            ));
        }
        if !config.cgroup_root.is_absolute() || config.cgroup_root == Path::new("/") {
            return Err(RuntimeError::Unsupported(format!(
                "the cgroup root must be an absolute path below /, not {}",
                config.cgroup_root.display()
            )));
        }
        fs::create_dir_all(&config.run_dir).map_err(io_error(format!(
            "creating the run directory {}",
            config.run_dir.display()
        )))?;
        let hierarchies =
            Hierarchies::detect().map_err(|error| RuntimeError::Unsupported(error.to_string()))?;
        let executable = Executable::seal(&config.shim_command).map_err(io_error(format!(
            "sealing the shims' program {}",
            config.shim_command.display()
        )))?;
        let shared = Shared {
            config,
            hierarchies,
            executable,
            available: bounding_set()
                .map_err(io_error("reading the capabilities of the node agent"))?,
            events: broadcast::channel(1024).0,
            sandboxes: Mutex::new(HashMap::new()),
            locks: Mutex::new(HashMap::new()),
            execs: AtomicU64::new(0),
            protecting: Mutex::new(()),
            meters: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Removes this runtime's part of every cgroup hierarchy, once no sandbox is left: what `gantry down` leaves
    /// nothing of.
    pub async fn teardown(&self) -> Result<(), RuntimeError> {
        let root = &self.shared.config.cgroup_root;
        let hierarchies = &self.shared.hierarchies;
        hierarchies.remove(root).await.map_err(io_error(format!(
            "removing the cgroups below {}",
            root.display()
        )))?;
        hierarchies.remove_empty_above(root);
        Ok(())
    }
}

impl Shared {
    fn sandbox_dir(&self, pod: &PodUid) -> PathBuf {
        self.config.run_dir.join(&pod.0)
    }

    /// What is mounted at a container's termination message path.
    fn termination_file(&self, id: &ContainerId) -> PathBuf {
        let words = self.sandbox_dir(&id.pod).join(sandboxes::WORDS);
        words.join(format!("{}-{}", id.name, id.attempt))
    }

    fn container_dir(&self, id: &ContainerId) -> PathBuf {
        self.sandbox_dir(&id.pod)
            .join("c")
            .join(format!("{}-{}", id.name, id.attempt))
    }

    fn pod_cgroup(&self, pod: &PodUid) -> PathBuf {
        self.config.cgroup_root.join(&pod.0)
    }

    fn container_cgroup(&self, id: &ContainerId) -> PathBuf {
        self.pod_cgroup(&id.pod)
            .join(format!("{}-{}", id.name, id.attempt))
    }

    fn sandbox(&self, pod: &PodUid) -> Option<Arc<Sandbox>> {
        self.sandboxes.lock().get(pod).cloned()
    }

    fn lock_of(&self, pod: &PodUid) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.locks.lock().entry(pod.clone()).or_default())
    }

    fn next_exec(&self) -> u64 {
        self.execs.fetch_add(1, Ordering::Relaxed)
    }
}

fn bounding_set() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .unwrap_or_default();
    u64::from_str_radix(bits.trim(), 16).map_err(io::Error::other)
}

fn reference(id: &ContainerId) -> ContainerRef {
    ContainerRef {
        name: id.name.clone(),
        attempt: id.attempt,
    }
}

fn status(pod: &PodUid, container: shim::Container) -> ContainerStatus {
    let reference = container.container.unwrap_or_default();
    let id = ContainerId {
        pod: pod.clone(),
        name: reference.name,
        attempt: reference.attempt,
    };
    let state = match container.exit {
        Some(exit) => ContainerState::Exited(ContainerExit {
            code: exit.code,
            signal: (exit.signal != 0).then_some(exit.signal),
            oom_killed: exit.oom_killed,
            started_at: container.started_at,
            finished_at: exit.finished_at,
            message: exit.message,
        }),
        None if container.pid == 0 => ContainerState::Created,
        None => ContainerState::Running {
            pid: container.pid,
            started_at: container.started_at,
        },
    };
    ContainerStatus { id, state }
}

/// A uid or name becomes part of paths: it must be one component.
fn check_name(name: &str) -> Result<(), RuntimeError> {
    let plain = !name.is_empty()
        && name.len() <= 253
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.starts_with('.');
    if plain {
        Ok(())
    } else {
        Err(RuntimeError::Unsupported(format!(
            "\"{name}\" cannot name a pod or container: use letters, digits and -"
        )))
    }
}

#[async_trait]
impl Runtime for ShimRuntime {
    async fn start_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        check_name(&spec.pod.0)?;
        let lock = self.shared.lock_of(&spec.pod);
        let _one_at_a_time = lock.lock().await;
        sandboxes::start(&self.shared, spec).await
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        sandboxes::list(&self.shared).await
    }

    fn sandbox(&self, pod: &PodUid) -> Option<SandboxSpec> {
        self.shared.sandbox(pod).map(|known| known.spec.clone())
    }

    async fn containers(&self, pod: &PodUid) -> Result<Vec<ContainerStatus>, RuntimeError> {
        containers::list(&self.shared, pod).await
    }

    fn own_network(&self, ids: IdBlock) -> io::Result<OwnedFd> {
        users::make_network(&self.shared.executable.path(), ids)
    }

    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        check_name(&pod.0)?;
        let lock = self.shared.lock_of(pod);
        let held = lock.lock().await;
        let removed = sandboxes::remove(&self.shared, pod).await;
        drop(held);
        self.shared.locks.lock().remove(pod);
        removed
    }

    async fn start_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, RuntimeError> {
        check_name(&spec.id.name)?;
        containers::start(&self.shared, spec).await
    }

    async fn update_container(
        &self,
        id: &ContainerId,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        check_name(&id.name)?;
        containers::update(&self.shared, id, resources).await
    }

    async fn update_sandbox(
        &self,
        pod: &PodUid,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        check_name(&pod.0)?;
        sandboxes::update(&self.shared, pod, resources).await
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError> {
        containers::kill(&self.shared, id, signal).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        check_name(&id.name)?;
        containers::remove(&self.shared, id).await
    }

    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<IoSession, RuntimeError> {
        containers::exec(&self.shared, id, spec).await
    }

    async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<IoSession, RuntimeError> {
        containers::attach(&self.shared, id, stdin).await
    }

    async fn usage(&self, pod: &PodUid) -> Result<BTreeMap<String, Usage>, RuntimeError> {
        containers::usage(&self.shared, pod)
    }

    async fn measure(&self) -> Result<Measured, RuntimeError> {
        let shared = Arc::clone(&self.shared);
        let measured = tokio::task::spawn_blocking(move || measuring::measure(&shared)).await;
        measured
            .map_err(|error| io_error("measuring what the node uses")(io::Error::other(error)))?
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.shared.events.subscribe()
    }
}
