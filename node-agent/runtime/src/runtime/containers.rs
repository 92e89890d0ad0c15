//! Containers: what the agent prepares before it asks a pod's shim, and the streams of exec and attach.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_rpc::shim::{Attach, Exec, Failure, Resize, Signal, Start, failure, reply, request};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::{Sandbox, Shared, io_error, reference, status};
use crate::client::{Link, call, short_path};
use crate::error::RuntimeError;
use crate::session::Terminal;
use crate::spec::{self, Surroundings};
use crate::traits::{
    ContainerId, ContainerSpec, ContainerStatus, ExecSpec, IoSession, PodUid, TerminalSize, Usage,
};
use crate::{rootfs, seccomp, shim};

const SPEC: &str = "spec.json";

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

pub(super) async fn start(
    shared: &Arc<Shared>,
    spec: ContainerSpec,
) -> Result<ContainerStatus, RuntimeError> {
    let id = spec.id.clone();
    let lock = shared.lock_of(&id.pod);
    let _one_at_a_time = lock.lock().await;
    let sandbox = sandbox(shared, &id.pod)?;
    let dir = shared.container_dir(&id);
    if let Some(known) = find(shared, &id).await? {
        return Ok(known);
    }
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
    let answer = call(
        &shared.sandbox_dir(&id.pod),
        request::Body::List(Default::default()),
    )
    .await;
    match answer.map_err(talking(id))? {
        reply::Body::Containers(known) => {
            let statuses = known
                .containers
                .into_iter()
                .map(|container| status(&id.pod, container));
            Ok(statuses.into_iter().find(|status| &status.id == id))
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
    rootfs::ensure_directory(spec).map_err(failed("creating the working directory"))?;
    let termination = dir.join(shim::TERMINATION);
    fs::write(&termination, b"")
        .and_then(|()| fs::set_permissions(&termination, fs::Permissions::from_mode(0o666)))
        .map_err(failed("creating the termination message file"))?;
    let group = shared.container_cgroup(&spec.id);
    let shm = shared.sandbox_dir(&spec.id.pod).join("shm");
    let around = Surroundings {
        sandbox: &sandbox.spec,
        cgroup: &group,
        unified: shared.hierarchies.is_unified(),
        shm: &shm,
        termination: &termination,
        pause_pid: sandbox.pause_pid,
        available: shared.available,
    };
    let config = spec::config(spec, &around)?;
    let devices_of = (!spec.privileged).then_some(&config);
    shared
        .hierarchies
        .admit(&group, &spec.resources, devices_of)
        .map_err(failed("preparing the cgroup"))?;
    let profile = if spec.privileged {
        &crate::traits::Seccomp::Unconfined
    } else {
        &spec.seccomp
    };
    let filter = seccomp::prepare(profile, &spec::capabilities(spec, shared.available)?).map_err(
        |cause| RuntimeError::Create {
            container: spec.id.name.clone(),
            cause,
        },
    )?;
    let write = |name: &str, content: &[u8]| fs::write(dir.join(name), content);
    let json = |error: serde_json::Error| io::Error::other(error);
    serde_json::to_vec(&config)
        .map_err(json)
        .and_then(|text| write("config.json", &text))
        .and_then(|()| serde_json::to_vec(spec).map_err(json))
        .and_then(|text| write(SPEC, &text))
        .and_then(|()| write(seccomp::FILE, &filter))
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
    };
    match call(&shared.sandbox_dir(&id.pod), request::Body::Start(start))
        .await
        .map_err(talking(id))?
    {
        reply::Body::Container(container) => Ok(status(&id.pod, container)),
        reply::Body::Failure(failure) => Err(refused(id, spec.args.first(), failure)),
        _ => Err(unexpected()),
    }
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
    match call(&shared.sandbox_dir(&id.pod), body)
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
    match call(&shared.sandbox_dir(&id.pod), body)
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
    let mut usage: BTreeMap<String, Usage> = BTreeMap::new();
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        let Some((container, _attempt)) = name.rsplit_once('-') else {
            continue;
        };
        if let Some(used) = shared
            .hierarchies
            .usage(&shared.pod_cgroup(pod).join(&name))
        {
            // An ended attempt that is not removed yet adds to its successor's.
            let total = usage.entry(container.to_owned()).or_default();
            total.cpu_nanos += used.cpu_nanos;
            total.memory_working_set += used.memory_working_set;
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
    sandbox(shared, &id.pod)?;
    let container_dir = shared.container_dir(id);
    let text = fs::read(container_dir.join(SPEC))
        .map_err(|_| RuntimeError::NotRunning(id.name.clone()))?;
    let failed = || io_error(format!("preparing a command for container {}", id.name));
    let spec: ContainerSpec = serde_json::from_slice(&text)
        .map_err(io::Error::other)
        .map_err(failed())?;
    let process = spec::exec_process(&spec, &exec, shared.available)?;
    // The process id keeps an earlier agent's leftovers apart.
    let number = format!("{}-{}", std::process::id(), shared.next_exec());
    let dir = ExecDir(shared.sandbox_dir(&id.pod).join("x").join(number));
    fs::create_dir_all(&dir.0).map_err(failed())?;
    fs::write(dir.0.join("process.json"), process.to_string()).map_err(failed())?;
    let request = Exec {
        container: Some(reference(id)),
        container_dir: container_dir.display().to_string(),
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
    let mut link = Link::open(&sandbox_dir, request::Body::Exec(request), theirs)
        .await
        .map_err(talking(id))?;
    match link.next().await.map_err(talking(id))? {
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
    let mut link = Link::open(&dir, request::Body::Attach(request), theirs)
        .await
        .map_err(talking(id))?;
    match link.next().await.map_err(talking(id))? {
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
