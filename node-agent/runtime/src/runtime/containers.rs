//! Containers: what the agent prepares before it asks a pod's shim, and the streams of exec and attach.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_cri::runtime::{
    ContainerId, ContainerSpec, ContainerState, ContainerStatus, ExecSpec, IoSession, PodUid,
    Resources, RuntimeError, TerminalSize, Usage,
};
use gantry_idmap::IdBlock;
use gantry_rpc::shim::{Attach, Exec, Failure, Resize, Signal, Start, failure, reply, request};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::measuring::attempt_of;
use super::sandboxes::{PATIENCE, ask};
use super::{Sandbox, Shared, io_error, reference, status};
use crate::client::{Link, short_path};
use crate::exec::COMMAND;
use crate::helper::Orders;
use crate::session::Terminal;
use crate::spec::{self, Surroundings};
use crate::{devices, helper, namespaces, rootfs, seccomp, shim};

const SPEC: &str = "spec.json";
/// Unpacked images may be on a slow disk; after this long nothing is going to come of a start.
const START: Duration = Duration::from_secs(120);

fn talking(id: &ContainerId) -> impl FnOnce(io::Error) -> RuntimeError {
    io_error(format!(
        "talking to the shim of pod {} about container {}",
        id.pod.0, id.name
    ))
}

fn refused(id: &ContainerId, command: Option<&String>, failure: Failure) -> RuntimeError {
    match failure.kind() {
        failure::Kind::NotRunning => RuntimeError::NotRunning(id.name.clone()),
        failure::Kind::CannotExecute => {
            let command = command.cloned().unwrap_or_default();
            let cause = if !command.contains('/') && failure.message == "no such file or directory"
            {
                "executable file not found in $PATH".to_owned()
            } else {
                failure.message
            };
            RuntimeError::CannotExecute { command, cause }
        }
        failure::Kind::Create => RuntimeError::Create {
            container: id.name.clone(),
            cause: failure.message,
        },
        failure::Kind::Other => RuntimeError::Shim(failure.message),
    }
}

fn unexpected() -> RuntimeError {
    RuntimeError::Shim("unexpected answer of the pod's shim".to_owned())
}

fn sandbox(shared: &Shared, pod: &PodUid) -> Result<Arc<Sandbox>, RuntimeError> {
    shared
        .sandbox(pod)
        .ok_or_else(|| RuntimeError::NoSandbox(pod.0.clone()))
}

/// The sandbox, if its helpers understand what is written for them.
fn current_sandbox(shared: &Shared, pod: &PodUid) -> Result<Arc<Sandbox>, RuntimeError> {
    let sandbox = sandbox(shared, pod)?;
    if sandbox.version == shim::VERSION {
        Ok(sandbox)
    } else {
        Err(RuntimeError::Unsupported(format!(
            "pod {} was started by another version of gantry: what runs goes on; delete the pod to start and execute anything new",
            pod.0
        )))
    }
}

pub(super) async fn start(
    shared: &Arc<Shared>,
    spec: ContainerSpec,
) -> Result<ContainerStatus, RuntimeError> {
    let id = spec.id.clone();
    let lock = shared.lock_of(&id.pod);
    let _one_at_a_time = lock.lock().await;
    let dir = shared.container_dir(&id);
    sandbox(shared, &id.pod)?;
    if let Some(known) = find(shared, &id).await? {
        return Ok(known);
    }
    let sandbox = current_sandbox(shared, &id.pod)?;
    rootfs::check_command(&spec)?;
    let result = match prepare(shared, &sandbox, &spec, &dir) {
        Ok(()) => ask_to_start(shared, &spec, &dir).await,
        Err(error) => Err(error),
    };
    if result.is_err()
        && let Err(error) = clean(shared, &id).await
    {
        tracing::warn!(pod = id.pod.0, container = id.name, %error, "could not clean up after a failed start");
    }
    result
}

/// The container as its shim knows it.
async fn find(shared: &Shared, id: &ContainerId) -> Result<Option<ContainerStatus>, RuntimeError> {
    let known = list(shared, &id.pod).await?;
    Ok(known.into_iter().find(|status| &status.id == id))
}

/// All containers of a pod as its shim knows them.
pub(super) async fn list(
    shared: &Shared,
    pod: &PodUid,
) -> Result<Vec<ContainerStatus>, RuntimeError> {
    sandbox(shared, pod)?;
    let body = request::Body::List(Default::default());
    let answer = ask(shared, pod, body, PATIENCE).await;
    let talking = io_error(format!(
        "talking to the shim of pod {} about its containers",
        pod.0
    ));
    match answer.map_err(talking)? {
        reply::Body::Containers(known) => {
            let known = known.containers.into_iter();
            Ok(known.map(|container| status(pod, container)).collect())
        }
        _ => Err(unexpected()),
    }
}

fn prepare(
    shared: &Shared,
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    dir: &Path,
) -> Result<(), RuntimeError> {
    let failed = |doing: &str| io_error(format!("{doing} of container {}", spec.id.name));
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("clearing the directory")(error));
        }
        _ => {}
    }
    fs::create_dir_all(dir).map_err(failed("creating the directory"))?;
    let root = sandbox.spec.users.map_or(0, IdBlock::first);
    let looking = failed("looking at the mount points");
    let placed = rootfs::check_mount_points(spec).map_err(looking)?;
    let making = format!("creating the working directory {}", spec.cwd.display());
    rootfs::ensure_directory(spec, root).map_err(failed(&making))?;
    rootfs::make_mount_points(spec, &placed, root).map_err(failed("making the mount points"))?;
    let termination = shared.termination_file(&spec.id);
    fs::write(&termination, b"")
        .and_then(|()| fs::set_permissions(&termination, fs::Permissions::from_mode(0o666)))
        .and_then(|()| chown(&termination, Some(root), Some(root)))
        .map_err(failed("creating the termination message file"))?;
    let group = shared.container_cgroup(&spec.id);
    let shm = shared.sandbox_dir(&spec.id.pod).join("shm");
    let proc = shared.sandbox_dir(&spec.id.pod).join(namespaces::PROC);
    let users = sandbox.spec.users;
    let shared_pid = sandbox.pause_pid.is_some();
    let around = Surroundings {
        sandbox: &sandbox.spec,
        cgroup: &group,
        unified: shared.hierarchies.is_unified(),
        shm: &shm,
        shared_proc: (shared_pid && users.is_none()).then_some(proc.as_path()),
        termination: &termination,
        available: shared.available,
    };
    let mut config = spec::config(&placed, &around)?;
    let view = users.map(|ids| spec::for_own_users(&mut config, ids, &around, shared_pid));
    let devices_of = (!spec.privileged).then_some(&config);
    shared
        .hierarchies
        .admit(&group, &spec.resources, devices_of)
        .map_err(failed("preparing the cgroup"))?;
    let capabilities = spec::capabilities(spec, shared.available)?;
    let devices = shared.hierarchies.devices(&group).unwrap_or_default();
    let profile = if spec.privileged {
        &gantry_cri::runtime::Seccomp::Unconfined
    } else {
        &spec.seccomp
    };
    let filter =
        seccomp::prepare(profile, &capabilities).map_err(|cause| RuntimeError::Create {
            container: spec.id.name.clone(),
            cause,
        })?;
    let orders = Orders {
        capabilities: spec::bits(&capabilities),
        oom_score_adj: spec.resources.oom_score_adj.unwrap_or(0),
        user: spec::user_on_node(spec, users),
        view,
    };
    let write = |name: &str, content: &[u8]| fs::write(dir.join(name), content);
    let json = |error: serde_json::Error| io::Error::other(error);
    serde_json::to_vec(&config)
        .map_err(json)
        .and_then(|text| write("config.json", &text))
        .and_then(|()| serde_json::to_vec(spec).map_err(json))
        .and_then(|text| write(SPEC, &text))
        .and_then(|()| write(seccomp::FILE, &filter))
        .and_then(|()| serde_json::to_vec(&orders).map_err(json))
        .and_then(|text| write(helper::ORDERS, &text))
        .and_then(|()| write(devices::GROUP, devices.as_os_str().as_encoded_bytes()))
        .map_err(failed("writing the configuration"))
}

async fn ask_to_start(
    shared: &Shared,
    spec: &ContainerSpec,
    dir: &Path,
) -> Result<ContainerStatus, RuntimeError> {
    let id = &spec.id;
    let group = shared.container_cgroup(id);
    let start = Start {
        container: Some(reference(id)),
        dir: dir.display().to_string(),
        tty: spec.tty,
        stdin: spec.stdin,
        oom_file: shared.hierarchies.oom_file(&group).display().to_string(),
        procs_file: shared.hierarchies.procs_file(&group).display().to_string(),
        termination_file: shared.termination_file(id).display().to_string(),
    };
    match ask(shared, &id.pod, request::Body::Start(start), START)
        .await
        .map_err(talking(id))?
    {
        reply::Body::Container(container) => Ok(status(&id.pod, container)),
        reply::Body::Failure(failure) => Err(refused(id, spec.args.first(), failure)),
        _ => Err(unexpected()),
    }
}

pub(super) async fn update(
    shared: &Shared,
    id: &ContainerId,
    resources: &Resources,
) -> Result<(), RuntimeError> {
    sandbox(shared, &id.pod)?;
    // Nobody removes its cgroup meanwhile.
    let lock = shared.lock_of(&id.pod);
    let _one_at_a_time = lock.lock().await;
    let known = find(shared, id).await?;
    let runs = |status: &ContainerStatus| matches!(status.state, ContainerState::Running { .. });
    if !known.as_ref().is_some_and(runs) {
        return Err(RuntimeError::NotRunning(id.name.clone()));
    }
    let group = shared.container_cgroup(id);
    let failed = io_error(format!("changing the limits of container {}", id.name));
    shared.hierarchies.limit(&group, resources).map_err(failed)
}

pub(super) async fn kill(
    shared: &Shared,
    id: &ContainerId,
    signal: i32,
) -> Result<(), RuntimeError> {
    sandbox(shared, &id.pod)?;
    let body = request::Body::Signal(Signal {
        container: Some(reference(id)),
        signal,
    });
    match ask(shared, &id.pod, body, PATIENCE)
        .await
        .map_err(talking(id))?
    {
        reply::Body::Done(_) => Ok(()),
        reply::Body::Failure(failure) => Err(refused(id, None, failure)),
        _ => Err(unexpected()),
    }
}

pub(super) async fn remove(shared: &Shared, id: &ContainerId) -> Result<(), RuntimeError> {
    let lock = shared.lock_of(&id.pod);
    let _one_at_a_time = lock.lock().await;
    if shared.sandbox(&id.pod).is_none() {
        return Ok(());
    }
    let body = request::Body::Forget(reference(id));
    match ask(shared, &id.pod, body, PATIENCE)
        .await
        .map_err(talking(id))?
    {
        reply::Body::Done(_) => clean(shared, id).await,
        reply::Body::Failure(failure) => Err(refused(id, None, failure)),
        _ => Err(unexpected()),
    }
}

async fn clean(shared: &Shared, id: &ContainerId) -> Result<(), RuntimeError> {
    let group = shared.container_cgroup(id);
    shared
        .hierarchies
        .remove(&group)
        .await
        .map_err(io_error(format!(
            "removing the cgroup {} of container {}",
            group.display(),
            id.name
        )))?;
    let words = shared.termination_file(id);
    match fs::remove_file(&words) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(format!("removing {}", words.display()))(error));
        }
        _ => {}
    }
    let dir = shared.container_dir(id);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(format!("removing {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn usage(
    shared: &Shared,
    pod: &PodUid,
) -> Result<BTreeMap<String, Usage>, RuntimeError> {
    sandbox(shared, pod)?;
    let dir = shared.sandbox_dir(pod).join("c");
    let entries = fs::read_dir(&dir).map_err(io_error(format!("reading {}", dir.display())))?;
    // Of an ended attempt that is not removed yet, its successor's counts.
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some((container, attempt)) = name.to_str().and_then(attempt_of) {
            let known = last.entry(container.to_owned()).or_default();
            *known = attempt.max(*known);
        }
    }
    let mut usage: BTreeMap<String, Usage> = BTreeMap::new();
    for (container, attempt) in last {
        let group = shared
            .pod_cgroup(pod)
            .join(format!("{container}-{attempt}"));
        if let Some(used) = shared.hierarchies.usage(&group) {
            usage.insert(container, used);
        }
    }
    Ok(usage)
}

/// A pipe for each stream: our ends, and those for the other side in the order stdin, stdout, stderr.
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
    theirs: Vec<OwnedFd>,
}

impl Pipes {
    fn new(stdin: bool, stderr: bool) -> io::Result<Self> {
        let mut theirs = Vec::new();
        let stdin = if stdin {
            let (reader, writer) = io::pipe()?;
            theirs.push(reader.into());
            Some(pipe::Sender::from_owned_fd(writer.into())?)
        } else {
            None
        };
        let mut output = || {
            let (reader, writer) = io::pipe()?;
            theirs.push(writer.into());
            pipe::Receiver::from_owned_fd(reader.into())
        };
        let stdout = output()?;
        let stderr = if stderr { Some(output()?) } else { None };
        Ok(Self {
            stdin,
            stdout,
            stderr,
            theirs,
        })
    }
}

pub(super) async fn exec(
    shared: &Arc<Shared>,
    id: &ContainerId,
    exec: ExecSpec,
) -> Result<IoSession, RuntimeError> {
    let sandbox = current_sandbox(shared, &id.pod)?;
    let container_dir = shared.container_dir(id);
    let text = fs::read(container_dir.join(SPEC))
        .map_err(|_| RuntimeError::NotRunning(id.name.clone()))?;
    let failed = || io_error(format!("preparing a command for container {}", id.name));
    let spec: ContainerSpec = serde_json::from_slice(&text)
        .map_err(io::Error::other)
        .map_err(failed())?;
    let group = shared.container_cgroup(id);
    let command = spec::exec_command(
        &spec,
        &exec,
        shared.available,
        sandbox.spec.users,
        shared.hierarchies.doors(&group),
        container_dir.clone(),
    )?;
    // The process id keeps an earlier agent's leftovers apart.
    let number = format!("{}-{}", std::process::id(), shared.next_exec());
    let dir = ExecDir(shared.sandbox_dir(&id.pod).join("x").join(number));
    fs::create_dir_all(&dir.0).map_err(failed())?;
    serde_json::to_vec(&command)
        .map_err(io::Error::other)
        .and_then(|text| fs::write(dir.0.join(COMMAND), text))
        .map_err(failed())?;
    let request = Exec {
        container: Some(reference(id)),
        dir: dir.0.display().to_string(),
        tty: exec.tty,
        stdin: exec.stdin,
    };
    let mut console = None;
    let mut pipes = None;
    let mut theirs = Vec::new();
    if exec.tty {
        let directory = rootfs::open_directory(&dir.0).map_err(failed())?;
        console =
            Some(UnixListener::bind(short_path(&directory, shim::CONSOLE)).map_err(failed())?);
    } else {
        let mut made = Pipes::new(exec.stdin, true).map_err(failed())?;
        theirs = std::mem::take(&mut made.theirs);
        pipes = Some(made);
    }
    let sandbox_dir = shared.sandbox_dir(&id.pod);
    let opened = open(&sandbox_dir, request::Body::Exec(request), theirs).await;
    let (mut link, answer) = opened.map_err(talking(id))?;
    match answer {
        reply::Body::Running(_) => {}
        reply::Body::Failure(failure) => return Err(refused(id, exec.args.first(), failure)),
        _ => return Err(unexpected()),
    }
    let (resize, sizes) = mpsc::channel(4);
    let (mut done, exit) = oneshot::channel();
    let mut terminal = None;
    let session = match (console, pipes) {
        (Some(console), _) => {
            // The helper sent it before the command ran.
            let accepted = tokio::time::timeout(Duration::from_secs(5), console.accept()).await;
            let (stream, _) = accepted
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))
                .flatten()
                .map_err(failed())?;
            let stream = stream.into_std().map_err(failed())?;
            stream.set_nonblocking(false).map_err(failed())?;
            let fd = shim::receive_console(&stream).map_err(failed())?;
            let side = Terminal::new(fd).map_err(failed())?;
            terminal = Some(side.clone());
            IoSession {
                stdin: exec.stdin.then(|| Box::new(side.clone()) as Box<_>),
                stdout: Box::new(side),
                stderr: None,
                resize,
                exit,
            }
        }
        (None, Some(pipes)) => IoSession {
            stdin: pipes.stdin.map(|stdin| Box::new(stdin) as Box<_>),
            stdout: Box::new(pipes.stdout),
            stderr: pipes.stderr.map(|stderr| Box::new(stderr) as Box<_>),
            resize,
            exit,
        },
        (None, None) => return Err(unexpected()),
    };
    let timeout = exec.timeout;
    tokio::spawn(async move {
        // Closing the connection, which ends with this task, kills a command that still runs.
        let _dir = dir;
        let following = follow(&mut link, sizes, terminal);
        let ended = async {
            match timeout {
                None => following.await,
                Some(limit) => tokio::time::timeout(limit, following)
                    .await
                    .unwrap_or_else(|_| {
                        Err(RuntimeError::Shim(format!(
                            "command timed out after {}s",
                            limit.as_secs_f64()
                        )))
                    }),
            }
        };
        tokio::select! {
            result = ended => drop(done.send(result)),
            // The session was dropped: nobody cares any more.
            () = done.closed() => {}
        }
    });
    Ok(session)
}

/// Opens a connection that goes on after its first answer. A shim that was stopped has none: whoever asks for a command
/// or a probe is not kept waiting for that.
async fn open(
    dir: &Path,
    body: request::Body,
    fds: Vec<OwnedFd>,
) -> io::Result<(Link, reply::Body)> {
    let opened = async {
        let mut link = Link::open(dir, body, fds).await?;
        let answer = link.next().await?;
        Ok((link, answer))
    };
    let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "the pod's shim does not answer");
    tokio::time::timeout(START, opened)
        .await
        .unwrap_or_else(|_| Err(timed_out()))
}

/// Removes an exec's directory when the command has ended, or never began.
struct ExecDir(std::path::PathBuf);

impl Drop for ExecDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::debug!(dir = %self.0.display(), %error, "an exec's directory is gone already");
        }
    }
}

/// Waits for the exit code, applying terminal sizes meanwhile: to our side, or through the shim when it has none.
async fn follow(
    link: &mut Link,
    mut sizes: mpsc::Receiver<TerminalSize>,
    terminal: Option<Terminal>,
) -> Result<i32, RuntimeError> {
    let mut resizable = true;
    loop {
        tokio::select! {
            answer = link.next() => match answer {
                Ok(reply::Body::Exited(code)) => return Ok(code),
                Ok(_) => {}
                Err(source) => {
                    return Err(RuntimeError::Io { doing: "waiting for a command's end".to_owned(), source });
                }
            },
            size = sizes.recv(), if resizable => match (size, &terminal) {
                (Some(size), Some(terminal)) => {
                    if let Err(error) = terminal.resize(size) {
                        tracing::debug!(%error, "a terminal could not be resized");
                    }
                }
                (Some(size), None) => {
                    let size = Resize { width: size.width.into(), height: size.height.into() };
                    if let Err(error) = link.send(request::Body::Resize(size), &[]).await {
                        tracing::debug!(%error, "a terminal could not be resized");
                    }
                }
                (None, _) => resizable = false,
            },
        }
    }
}

pub(super) async fn attach(
    shared: &Arc<Shared>,
    id: &ContainerId,
    stdin: bool,
) -> Result<IoSession, RuntimeError> {
    sandbox(shared, &id.pod)?;
    let text = fs::read(shared.container_dir(id).join(SPEC))
        .map_err(|_| RuntimeError::NotRunning(id.name.clone()))?;
    let failed = || io_error(format!("attaching to container {}", id.name));
    let spec: ContainerSpec = serde_json::from_slice(&text)
        .map_err(io::Error::other)
        .map_err(failed())?;
    let mut pipes = Pipes::new(stdin, !spec.tty).map_err(failed())?;
    let request = Attach {
        container: Some(reference(id)),
        stdin,
    };
    let theirs = std::mem::take(&mut pipes.theirs);
    let dir = shared.sandbox_dir(&id.pod);
    let opened = open(&dir, request::Body::Attach(request), theirs).await;
    let (mut link, answer) = opened.map_err(talking(id))?;
    match answer {
        reply::Body::Done(_) => {}
        reply::Body::Failure(failure) => return Err(refused(id, None, failure)),
        _ => return Err(unexpected()),
    }
    let (resize, sizes) = mpsc::channel(4);
    let (mut done, exit) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            result = follow(&mut link, sizes, None) => drop(done.send(result)),
            // The session was dropped: closing the connection detaches.
            () = done.closed() => {}
        }
    });
    Ok(IoSession {
        stdin: pipes.stdin.map(|stdin| Box::new(stdin) as Box<_>),
        stdout: Box::new(pipes.stdout),
        stderr: pipes.stderr.map(|stderr| Box::new(stderr) as Box<_>),
        resize,
        exit,
    })
}
