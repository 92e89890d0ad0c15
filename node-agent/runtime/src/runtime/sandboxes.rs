//! Shims: starting, finding, watching and removing them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_cri::runtime::{
    ContainerState, PodUid, Resources, RuntimeError, RuntimeEvent, SandboxSpec, SandboxStatus,
};
use gantry_idmap::IdBlock;
use gantry_rpc::shim::{Containers, Empty, SandboxConfig, reply, request};
use prost::Message;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::io::AsyncReadExt;

use super::{Sandbox, Shared, io_error, status};
use crate::client::Link;
use crate::{SHIM, namespaces, shim, sys};

/// A shim that takes longer to start, to answer or to end than this is not going to.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
const SPEC: &str = "sandbox.json";
const SHM: &str = "shm";
/// The termination messages of a pod's containers: in memory that only the pod can fill. Kubernetes reads 4 KiB of each.
pub(super) const WORDS: &str = "words";

pub(super) async fn start(shared: &Arc<Shared>, spec: SandboxSpec) -> Result<(), RuntimeError> {
    let pod = spec.pod.clone();
    if shared.sandbox(&pod).is_some() || take_over(shared, &pod).await.is_some() {
        return Ok(());
    }
    // Whatever is left of one whose shim is gone would be in the way.
    clean(shared, &pod).await?;
    match try_start(shared, &spec).await {
        Ok(()) => Ok(()),
        Err(error) => {
            if let Err(leftover) = clean(shared, &pod).await {
                tracing::warn!(pod = pod.0, error = %leftover, "could not clean up after a sandbox that did not start");
            }
            Err(error)
        }
    }
}

async fn try_start(shared: &Arc<Shared>, spec: &SandboxSpec) -> Result<(), RuntimeError> {
    let pod = &spec.pod;
    let dir = shared.sandbox_dir(pod);
    let shm = dir.join(SHM);
    fs::create_dir_all(&shm).map_err(io_error(format!("creating {}", shm.display())))?;
    for part in ["c", "x", WORDS, namespaces::PROC, namespaces::EMPTY] {
        fs::create_dir_all(dir.join(part)).map_err(io_error(format!(
            "creating the directories of pod {}",
            pod.0
        )))?;
    }
    // Whoever gives up the host's users still has to stand there.
    fs::set_permissions(
        dir.join(namespaces::EMPTY),
        fs::Permissions::from_mode(0o755),
    )
    .map_err(io_error(format!(
        "preparing the directories of pod {}",
        pod.0
    )))?;
    let root = spec.users.map_or(0, IdBlock::first);
    for (part, options) in [
        (SHM, format!("mode=1777,size=65536k,uid={root},gid={root}")),
        (WORDS, "mode=700,size=4096k,nr_inodes=4096".to_owned()),
    ] {
        let options = std::ffi::CString::new(options).unwrap_or_default();
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(part, dir.join(part), "tmpfs", flags, options.as_c_str())
            .map_err(|error| io_error(format!("mounting {part} of pod {}", pod.0))(error.into()))?;
    }
    let group = shared.pod_cgroup(pod);
    let doors = shared
        .hierarchies
        .create(&group)
        .and_then(|_| shared.hierarchies.limit(&group, &spec.resources))
        .and_then(|()| shared.hierarchies.create(&group.join("shim")))
        .map_err(io_error(format!("preparing the cgroup of pod {}", pod.0)))?;
    if spec.resources.memory_min.is_some() || spec.resources.memory_low.is_some() {
        protect(shared)?;
    }
    let config = SandboxConfig {
        pod: pod.0.clone(),
        hostname: spec.hostname.clone(),
        netns: spec
            .netns
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        own_users: spec.users.is_some(),
        first_id: spec.users.map_or(0, IdBlock::first),
        host_ipc: spec.host_ipc,
        share_pid: spec.share_pid && !spec.host_pid,
        sysctls: spec.sysctls.clone().into_iter().collect(),
        log_dir: spec.log_dir.display().to_string(),
        log_max_bytes: spec.log_max_bytes,
        log_max_files: spec.log_max_files,
        cgroup_procs: doors
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
    };
    fs::write(dir.join(shim::CONFIG), config.encode_to_vec()).map_err(io_error(format!(
        "writing the configuration of pod {}",
        pod.0
    )))?;
    spawn(shared, pod, &dir).await?;
    // Written last: a directory without it is one whose shim never worked.
    let text = serde_json::to_vec(spec).map_err(|error| {
        io_error(format!("encoding the sandbox of pod {}", pod.0))(io::Error::other(error))
    })?;
    fs::write(dir.join(SPEC), text)
        .map_err(io_error(format!("writing the sandbox of pod {}", pod.0)))?;
    subscribe(shared, spec)
        .await
        .map(|_| ())
        .map_err(io_error(format!("connecting to the shim of pod {}", pod.0)))
}

async fn spawn(shared: &Shared, pod: &PodUid, dir: &Path) -> Result<(), RuntimeError> {
    let log_path = dir.join("shim.log");
    let log = fs::File::create(&log_path)
        .map_err(io_error(format!("creating {}", log_path.display())))?;
    let mut shim = tokio::process::Command::new(shared.executable.path())
        .arg0("gantry")
        .arg(SHIM)
        .arg(dir)
        // What it starts can be seen by containers: nothing of the agent's environment is for them.
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(io_error(format!(
            "starting {}",
            shared.config.shim_command.display()
        )))?;
    let mut said = String::new();
    if let Some(mut stdout) = shim.stdout.take() {
        let reading = tokio::time::timeout(PATIENCE, stdout.read_to_string(&mut said)).await;
        if !matches!(reading, Ok(Ok(_))) {
            said.clear();
        }
    }
    if said == shim::READY {
        // As long as this process is its parent, it also has to collect it.
        tokio::spawn(async move { shim.wait().await });
        return Ok(());
    }
    if let Err(error) = shim.kill().await {
        tracing::debug!(pod = pod.0, %error, "the shim had ended already");
    }
    let cause = fs::read_to_string(&log_path).unwrap_or_default();
    let cause = match cause.trim() {
        "" => "it said nothing".to_owned(),
        said => said.lines().collect::<Vec<_>>().join("; "),
    };
    Err(RuntimeError::Shim(format!(
        "the shim of pod {} did not start: {cause}",
        pod.0
    )))
}

/// Asks a shim for one reply. One that has none within the given time was stopped, or cannot go on: it is ended with
/// all that it holds, since nothing can be done about its containers any more; what listens to it then says so.
pub(super) async fn ask(
    shared: &Shared,
    pod: &PodUid,
    body: request::Body,
    patience: Duration,
) -> io::Result<reply::Body> {
    let dir = shared.sandbox_dir(pod);
    match tokio::time::timeout(patience, crate::client::call(&dir, body)).await {
        Ok(answer) => answer,
        Err(_) => {
            tracing::warn!(pod = pod.0, "a pod's shim does not answer: ending the pod");
            shared.hierarchies.kill(&shared.pod_cgroup(pod));
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the pod's shim does not answer, and was ended with the pod's containers",
            ))
        }
    }
}

/// Connects to a shim and keeps listening to it. Only for a pod that is not in the map.
async fn subscribe(
    shared: &Arc<Shared>,
    spec: &SandboxSpec,
) -> io::Result<(Arc<Sandbox>, Containers)> {
    let pod = spec.pod.clone();
    let dir = shared.sandbox_dir(&pod);
    let mut link = Link::open(&dir, request::Body::Subscribe(Empty {}), Vec::new()).await?;
    let reply::Body::Containers(known) = link.next().await? else {
        return Err(io::Error::other("unexpected answer of the shim"));
    };
    let sandbox = Arc::new(Sandbox {
        spec: spec.clone(),
        shim_pid: known.shim_pid,
        pause_pid: (known.pause_pid != 0).then_some(known.pause_pid),
        version: known.version,
        removing: AtomicBool::new(false),
    });
    shared
        .sandboxes
        .lock()
        .insert(pod.clone(), Arc::clone(&sandbox));
    // A weak reference: a runtime that is dropped stops listening, and the shims live on.
    let (weak, watched) = (Arc::downgrade(shared), Arc::clone(&sandbox));
    let events = shared.events.clone();
    tokio::spawn(async move {
        loop {
            match link.next().await {
                Ok(reply::Body::Container(container)) => {
                    let status = status(&pod, container);
                    if let ContainerState::Exited(exit) = status.state {
                        // Nobody listening is nobody to tell.
                        drop(events.send(RuntimeEvent::Exited {
                            id: status.id,
                            exit,
                        }));
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    let Some(shared) = weak.upgrade() else { return };
                    if !watched.removing.load(Ordering::Acquire) {
                        tracing::warn!(pod = pod.0, %error, "a pod's shim is gone");
                        shared.hierarchies.kill(&shared.pod_cgroup(&pod));
                        let mut sandboxes = shared.sandboxes.lock();
                        if sandboxes
                            .get(&pod)
                            .is_some_and(|known| Arc::ptr_eq(known, &watched))
                        {
                            sandboxes.remove(&pod);
                        }
                        drop(sandboxes);
                        drop(events.send(RuntimeEvent::SandboxLost { pod }));
                    }
                    return;
                }
            }
        }
    });
    Ok((sandbox, known))
}

/// Connects to the shim an earlier process started, if it lives.
async fn take_over(shared: &Arc<Shared>, pod: &PodUid) -> Option<(Arc<Sandbox>, Containers)> {
    let text = fs::read(shared.sandbox_dir(pod).join(SPEC)).ok()?;
    let spec: SandboxSpec = serde_json::from_slice(&text).ok()?;
    // One that was stopped takes connections all the same. What is left is killed with its cgroup.
    let subscribed = tokio::time::timeout(PATIENCE, subscribe(shared, &spec));
    subscribed.await.ok()?.ok()
}

pub(super) async fn list(shared: &Arc<Shared>) -> Result<Vec<SandboxStatus>, RuntimeError> {
    let run_dir = &shared.config.run_dir;
    let entries =
        fs::read_dir(run_dir).map_err(io_error(format!("reading {}", run_dir.display())))?;
    let mut pods: Vec<PodUid> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(PodUid)
        .collect();
    pods.sort();
    let mut found = Vec::new();
    for pod in pods {
        let lock = shared.lock_of(&pod);
        let _one_at_a_time = lock.lock().await;
        let taken = match shared.sandbox(&pod) {
            Some(sandbox) => {
                match ask(shared, &pod, request::Body::List(Empty {}), PATIENCE).await {
                    Ok(reply::Body::Containers(known)) => Some((sandbox, known)),
                    _ => None,
                }
            }
            None => take_over(shared, &pod).await,
        };
        let Some((sandbox, known)) = taken else {
            if shared.sandbox(&pod).is_none() {
                tracing::info!(
                    pod = pod.0,
                    "removing what is left of a sandbox without a shim"
                );
                clean(shared, &pod).await?;
            }
            continue;
        };
        found.push(SandboxStatus {
            spec: sandbox.spec.clone(),
            shim_pid: sandbox.shim_pid,
            containers: known
                .containers
                .into_iter()
                .map(|container| status(&pod, container))
                .collect(),
        });
    }
    Ok(found)
}

pub(super) async fn remove(shared: &Arc<Shared>, pod: &PodUid) -> Result<(), RuntimeError> {
    let dir = shared.sandbox_dir(pod);
    let known = shared.sandboxes.lock().remove(pod);
    if let Some(sandbox) = &known {
        sandbox.removing.store(true, Ordering::Release);
    }
    let ended = tokio::time::timeout(PATIENCE, async {
        // It closes the connection at its very end.
        let mut link = Link::open(&dir, request::Body::Shutdown(Empty {}), Vec::new()).await?;
        while link.next().await.is_ok() {}
        Ok::<(), io::Error>(())
    });
    match ended.await {
        Ok(Ok(())) => {}
        // No shim to ask: what it left is cleaned all the same.
        Ok(Err(error)) => tracing::debug!(pod = pod.0, %error, "no shim to end"),
        Err(_) => {
            if let Some(sandbox) = &known
                && let Err(error) = sys::kill(sandbox.shim_pid, libc::SIGKILL)
            {
                tracing::warn!(pod = pod.0, %error, "could not kill a shim that does not end");
            }
        }
    }
    clean(shared, pod).await
}

/// Changes a pod's limits.
pub(super) async fn update(
    shared: &Shared,
    pod: &PodUid,
    resources: &Resources,
) -> Result<(), RuntimeError> {
    let missing = || RuntimeError::NoSandbox(pod.0.clone());
    shared.sandbox(pod).ok_or_else(missing)?;
    let lock = shared.lock_of(pod);
    let _one_at_a_time = lock.lock().await;
    let failed = io_error(format!("changing the limits of pod {}", pod.0));
    let group = shared.pod_cgroup(pod);
    shared
        .hierarchies
        .limit(&group, resources)
        .map_err(failed)?;
    match resources.memory_min.is_some() || resources.memory_low.is_some() {
        true => protect(shared),
        false => Ok(()),
    }
}

/// Gives the groups above pods as much protection of memory as their pods have.
fn protect(shared: &Shared) -> Result<(), RuntimeError> {
    let _one_at_a_time = shared.protecting.lock();
    let root = &shared.config.cgroup_root;
    shared
        .hierarchies
        .protect_above_pods(root)
        .map_err(io_error(format!(
            "protecting the memory of the pods below {}",
            root.display()
        )))
}

/// Removes every trace of a sandbox but its logs.
async fn clean(shared: &Shared, pod: &PodUid) -> Result<(), RuntimeError> {
    let group = shared.pod_cgroup(pod);
    let protected = shared.hierarchies.is_protected(&group);
    shared
        .hierarchies
        .remove(&group)
        .await
        .map_err(io_error(format!(
            "removing the cgroup {} of pod {}",
            group.display(),
            pod.0
        )))?;
    if protected {
        protect(shared)?;
    }
    let dir = shared.sandbox_dir(pod);
    for (mounted, what) in [
        (SHM, "shared memory"),
        (WORDS, "termination messages"),
        (namespaces::PROC, "processes"),
    ] {
        match rustix::mount::unmount(dir.join(mounted), UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => {
                let doing = format!("unmounting the {what} of pod {}", pod.0);
                return Err(io_error(doing)(error.into()));
            }
        }
    }
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(format!("removing {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}
