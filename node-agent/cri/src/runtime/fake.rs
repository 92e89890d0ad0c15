//! A runtime in memory, for tests of whatever uses [`Runtime`].
//!
//! It understands a few commands, by the last part of argv[0]: `true`, `false`, `echo`, `cat` (of stdin), `sleep`
//! (forever), and `sh -c "exit N"`. Any other command cannot be found, unless a test added it with
//! [`FakeRuntime::add_command`]. Nothing ends by itself but these; [`FakeRuntime::finish`] ends what runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use gantry_idmap::IdBlock;
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    ContainerExit, ContainerId, ContainerSpec, ContainerState, ContainerStatus, ContainerUsage,
    ExecSpec, IoSession, Measured, PodUid, PodUsage, Resources, Runtime, RuntimeError,
    RuntimeEvent, SandboxSpec, SandboxStatus, Usage,
};

/// A runtime in memory; clones share it.
#[derive(Clone)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<RuntimeEvent>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<PodUid, Sandbox>,
    commands: BTreeSet<String>,
    starts: Vec<ContainerSpec>,
    signals: Vec<(ContainerId, i32)>,
    next_pid: i32,
    exec_codes: BTreeMap<String, i32>,
}

struct Sandbox {
    spec: SandboxSpec,
    shim_pid: i32,
    containers: Vec<Container>,
}

struct Container {
    spec: ContainerSpec,
    status: ContainerStatus,
}

impl Sandbox {
    fn statuses(&self) -> Vec<ContainerStatus> {
        let statuses = self.containers.iter();
        statuses.map(|container| container.status.clone()).collect()
    }
}

/// What a command of the fake does.
enum Behaviour {
    Exits { code: i32, output: String },
    Copies,
    Runs,
}

fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// What every container of the fake uses.
fn of_a_container() -> Usage {
    Usage {
        cpu_nanos: 1_000_000,
        memory_working_set: 1 << 20,
        memory: 2 << 20,
        memory_rss: 1 << 20,
        processes: Some(1),
        ..Usage::default()
    }
}

fn behaviour(args: &[String], added: &BTreeSet<String>) -> Result<Behaviour, RuntimeError> {
    let command = args.first().cloned().unwrap_or_default();
    let name = command.rsplit('/').next().unwrap_or_default();
    let exits = |code, output: String| Ok(Behaviour::Exits { code, output });
    match (name, args.get(1).map(String::as_str), args.get(2)) {
        ("true", ..) => exits(0, String::new()),
        ("false", ..) => exits(1, String::new()),
        ("echo", ..) => exits(0, format!("{}\n", args[1..].join(" "))),
        ("cat", ..) => Ok(Behaviour::Copies),
        ("sleep", ..) => Ok(Behaviour::Runs),
        ("sh", Some("-c"), Some(script)) if script.starts_with("exit ") => {
            exits(script[5..].trim().parse().unwrap_or(2), String::new())
        }
        _ if added.contains(&command) => Ok(Behaviour::Runs),
        _ => {
            let cause = if command.contains('/') {
                format!("stat {command}: no such file or directory")
            } else {
                "executable file not found in $PATH".to_owned()
            };
            Err(RuntimeError::CannotExecute { command, cause })
        }
    }
}

impl Default for FakeRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeRuntime {
    /// An empty node.
    pub fn new() -> Self {
        let state = State {
            next_pid: 1000,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            events: broadcast::channel(1024).0,
        }
    }

    /// Makes argv[0] `command` one that runs until it is ended.
    pub fn add_command(&self, command: &str) {
        self.state.lock().commands.insert(command.to_owned());
    }

    /// Makes every exec of argv[0] `command` end with this code; it may change from one exec to the next.
    pub fn set_exec_code(&self, command: &str, code: i32) {
        self.state
            .lock()
            .exec_codes
            .insert(command.to_owned(), code);
    }

    /// Ends a running container with this code, as if by itself.
    pub fn finish(&self, id: &ContainerId, code: i32) {
        self.end(id, code, None, false);
    }

    /// Ends a running container as the kernel's OOM killer does.
    pub fn finish_out_of_memory(&self, id: &ContainerId) {
        self.end(id, 128 + libc::SIGKILL, Some(libc::SIGKILL), true);
    }

    /// Ends a pod's shim as a crash would.
    pub fn lose_sandbox(&self, pod: &PodUid) {
        if self.state.lock().sandboxes.remove(pod).is_some() {
            drop(
                self.events
                    .send(RuntimeEvent::SandboxLost { pod: pod.clone() }),
            );
        }
    }

    /// Every container started so far, in order.
    pub fn starts(&self) -> Vec<ContainerSpec> {
        self.state.lock().starts.clone()
    }

    /// What a container may use, as it is now.
    pub fn resources(&self, id: &ContainerId) -> Option<Resources> {
        let mut state = self.state.lock();
        state
            .container(id)
            .map(|container| container.spec.resources.clone())
    }

    /// Every signal sent so far, in order.
    pub fn signals(&self) -> Vec<(ContainerId, i32)> {
        self.state.lock().signals.clone()
    }

    fn end(&self, id: &ContainerId, code: i32, signal: Option<i32>, oom_killed: bool) {
        let mut state = self.state.lock();
        let Some(container) = state.container(id) else {
            return;
        };
        let ContainerState::Running { started_at, .. } = container.status.state else {
            return;
        };
        let exit = ContainerExit {
            code,
            signal,
            oom_killed,
            started_at,
            finished_at: now(),
            message: String::new(),
        };
        container.status.state = ContainerState::Exited(exit.clone());
        drop(state);
        // Nobody listening is nobody to tell.
        drop(self.events.send(RuntimeEvent::Exited {
            id: id.clone(),
            exit,
        }));
    }

    fn session(behaviour: Behaviour, stdin: bool, tty: bool, code: Option<i32>) -> IoSession {
        let (ours, stdout): (DuplexStream, DuplexStream) = tokio::io::duplex(64 * 1024);
        let (input, their_input) = tokio::io::duplex(64 * 1024);
        let (resize, mut sizes) = mpsc::channel(4);
        let (mut done, exit) = oneshot::channel();
        tokio::spawn(async move { while sizes.recv().await.is_some() {} });
        tokio::spawn(async move {
            let mut ours = ours;
            let result = match behaviour {
                Behaviour::Exits { code, output } => {
                    ours.write_all(output.as_bytes()).await.map(|()| code)
                }
                Behaviour::Copies if stdin => {
                    let mut input = their_input;
                    tokio::io::copy(&mut input, &mut ours).await.map(|_| 0)
                }
                Behaviour::Copies => Ok(0),
                Behaviour::Runs => {
                    done.closed().await;
                    Ok(0)
                }
            };
            drop(ours);
            let result = result
                .map(|own| code.unwrap_or(own))
                .map_err(|source| RuntimeError::Io {
                    doing: "running a command of the fake".to_owned(),
                    source,
                });
            drop(done.send(result));
        });
        IoSession {
            stdin: stdin.then(|| Box::new(input) as Box<_>),
            stdout: Box::new(stdout),
            stderr: (!tty).then(|| Box::new(tokio::io::empty()) as Box<_>),
            resize,
            exit,
        }
    }
}

impl State {
    fn container(&mut self, id: &ContainerId) -> Option<&mut Container> {
        self.sandboxes
            .get_mut(&id.pod)?
            .containers
            .iter_mut()
            .find(|container| &container.status.id == id)
    }

    fn running(&mut self, id: &ContainerId) -> Result<&mut Container, RuntimeError> {
        if !self.sandboxes.contains_key(&id.pod) {
            return Err(RuntimeError::NoSandbox(id.pod.0.clone()));
        }
        self.container(id)
            .filter(|container| matches!(container.status.state, ContainerState::Running { .. }))
            .ok_or_else(|| RuntimeError::NotRunning(id.name.clone()))
    }

    fn pid(&mut self) -> i32 {
        self.next_pid += 1;
        self.next_pid
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn start_sandbox(&self, spec: SandboxSpec) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        let shim_pid = state.pid();
        let pod = spec.pod.clone();
        state.sandboxes.entry(pod).or_insert(Sandbox {
            spec,
            shim_pid,
            containers: Vec::new(),
        });
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let state = self.state.lock();
        let status = |sandbox: &Sandbox| SandboxStatus {
            spec: sandbox.spec.clone(),
            shim_pid: sandbox.shim_pid,
            containers: sandbox.statuses(),
        };
        Ok(state.sandboxes.values().map(status).collect())
    }

    fn sandbox(&self, pod: &PodUid) -> Option<SandboxSpec> {
        let state = self.state.lock();
        state.sandboxes.get(pod).map(|known| known.spec.clone())
    }

    async fn containers(&self, pod: &PodUid) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let state = self.state.lock();
        let sandbox = state.sandboxes.get(pod).map(Sandbox::statuses);
        sandbox.ok_or_else(|| RuntimeError::NoSandbox(pod.0.clone()))
    }

    fn own_network(&self, _: IdBlock) -> io::Result<OwnedFd> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    async fn remove_sandbox(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        self.state.lock().sandboxes.remove(pod);
        Ok(())
    }

    async fn start_container(&self, spec: ContainerSpec) -> Result<ContainerStatus, RuntimeError> {
        let id = spec.id.clone();
        let (status, ending) = {
            let mut state = self.state.lock();
            if !state.sandboxes.contains_key(&id.pod) {
                return Err(RuntimeError::NoSandbox(id.pod.0.clone()));
            }
            if let Some(known) = state.container(&id) {
                return Ok(known.status.clone());
            }
            let behaviour = behaviour(&spec.args, &state.commands)?;
            let running = ContainerState::Running {
                pid: state.pid(),
                started_at: now(),
            };
            let status = ContainerStatus {
                id: id.clone(),
                state: running,
            };
            state.starts.push(spec.clone());
            let container = Container {
                spec,
                status: status.clone(),
            };
            let ending = match behaviour {
                Behaviour::Exits { code, .. } => Some(code),
                Behaviour::Copies if !container.spec.stdin => Some(0),
                _ => None,
            };
            if let Some(sandbox) = state.sandboxes.get_mut(&id.pod) {
                sandbox.containers.push(container);
            }
            (status, ending)
        };
        if let Some(code) = ending {
            self.finish(&id, code);
        }
        Ok(status)
    }

    async fn update_container(
        &self,
        id: &ContainerId,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        state.running(id)?.spec.resources = resources.clone();
        Ok(())
    }

    async fn update_sandbox(
        &self,
        pod: &PodUid,
        resources: &Resources,
    ) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        let sandbox = state.sandboxes.get_mut(pod);
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NoSandbox(pod.0.clone()))?;
        sandbox.spec.resources = resources.clone();
        Ok(())
    }

    async fn kill(&self, id: &ContainerId, signal: i32) -> Result<(), RuntimeError> {
        {
            let mut state = self.state.lock();
            if !state.sandboxes.contains_key(&id.pod) {
                return Err(RuntimeError::NoSandbox(id.pod.0.clone()));
            }
            if state.container(id).is_none() {
                return Err(RuntimeError::NotRunning(id.name.clone()));
            }
            state.signals.push((id.clone(), signal));
        }
        if signal != 0 {
            self.end(id, 128 + signal, Some(signal), false);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut state = self.state.lock();
        if state.running(id).is_ok() {
            return Err(RuntimeError::Shim(format!(
                "container {} is still running",
                id.name
            )));
        }
        if let Some(sandbox) = state.sandboxes.get_mut(&id.pod) {
            sandbox
                .containers
                .retain(|container| &container.status.id != id);
        }
        Ok(())
    }

    async fn exec(&self, id: &ContainerId, spec: ExecSpec) -> Result<IoSession, RuntimeError> {
        let mut state = self.state.lock();
        state.running(id)?;
        let command = spec.args.first().cloned().unwrap_or_default();
        let code = state.exec_codes.get(&command).copied();
        let behaviour = match code {
            Some(code) => Behaviour::Exits {
                code,
                output: String::new(),
            },
            None => behaviour(&spec.args, &state.commands)?,
        };
        drop(state);
        Ok(Self::session(behaviour, spec.stdin, spec.tty, code))
    }

    async fn attach(&self, id: &ContainerId, stdin: bool) -> Result<IoSession, RuntimeError> {
        let mut state = self.state.lock();
        let container = state.running(id)?;
        let (args, tty) = (container.spec.args.clone(), container.spec.tty);
        let behaviour = behaviour(&args, &state.commands)?;
        drop(state);
        Ok(Self::session(behaviour, stdin, tty, None))
    }

    async fn usage(&self, pod: &PodUid) -> Result<BTreeMap<String, Usage>, RuntimeError> {
        let state = self.state.lock();
        let sandbox = state
            .sandboxes
            .get(pod)
            .ok_or_else(|| RuntimeError::NoSandbox(pod.0.clone()))?;
        let running = sandbox
            .containers
            .iter()
            .filter(|known| matches!(known.status.state, ContainerState::Running { .. }));
        Ok(running
            .map(|container| (container.status.id.name.clone(), of_a_container()))
            .collect())
    }

    async fn measure(&self) -> Result<Measured, RuntimeError> {
        let state = self.state.lock();
        let read_at = Instant::now();
        let pods = state.sandboxes.values().map(|sandbox| {
            let containers = sandbox.containers.iter().map(|known| &known.status);
            let running =
                containers.filter(|known| matches!(known.state, ContainerState::Running { .. }));
            PodUsage {
                pod: sandbox.spec.pod.clone(),
                namespace: sandbox.spec.namespace.clone(),
                name: sandbox.spec.name.clone(),
                read_at,
                usage: of_a_container(),
                containers: running
                    .map(|known| ContainerUsage {
                        name: known.id.name.clone(),
                        attempt: known.id.attempt,
                        usage: of_a_container(),
                    })
                    .collect(),
            }
        });
        Ok(Measured {
            read_at,
            machine: of_a_container(),
            memory_available: 1 << 30,
            pods: pods.collect(),
        })
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
}
