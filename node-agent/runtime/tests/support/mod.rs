//! What the tests of this crate share: a runtime of their own, a root file system with busybox, and the watch for
//! what is left behind. Needs root, cgroups and Debian's busybox-static, and says so when one is missing.
#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "shared by test files, each of which uses its own part"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gantry_runtime::*;
use tokio::io::AsyncReadExt;
use tokio::sync::broadcast;

/// Longer than anything here takes; waiting ends when the thing waited for happens.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at what the kernel tells nobody of, and what others need the processors for.
const PAUSE: Duration = Duration::from_millis(5);

pub async fn pause() {
    tokio::time::sleep(PAUSE).await;
}

/// A node of its own: directories, cgroup root and runtime.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub config: ShimRuntimeConfig,
    pub runtime: ShimRuntime,
    pub rootfs: PathBuf,
}

impl Node {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let dir = tempfile::Builder::new()
            .prefix("gantry-rt-")
            .tempdir()
            .unwrap();
        let name = format!(
            "gantry-rt-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let config = ShimRuntimeConfig {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            cgroup_root: Path::new("/").join(name),
            shim_command: PathBuf::from(env!("CARGO_BIN_EXE_gantry-shim")),
        };
        let rootfs = busybox(dir.path());
        let runtime = ShimRuntime::new(config.clone())
            .expect("these tests run as root, with cgroups mounted");
        Self {
            dir,
            config,
            runtime,
            rootfs,
        }
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    pub fn sandbox(&self, pod: &str) -> SandboxSpec {
        sandbox(pod, &self.logs())
    }

    pub fn container(&self, pod: &str, args: &[&str]) -> ContainerSpec {
        container(pod, &self.rootfs, args)
    }

    /// Starts a container and waits for its end.
    pub async fn run(&self, spec: ContainerSpec) -> ContainerExit {
        let mut events = self.runtime.events();
        let id = spec.id.clone();
        self.runtime.start_container(spec).await.unwrap();
        wait_exit(&self.runtime, &mut events, &id).await
    }

    /// The text of a container's log, without times and streams.
    pub fn log(&self, name: &str) -> String {
        let path = self.logs().join(name).join("0.log");
        let content =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        content
            .lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n")
            .collect()
    }

    /// Runs a script to its end and returns what it printed.
    pub async fn script(
        &self,
        pod: &str,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut ContainerSpec),
    ) -> String {
        let mut spec = self.container(pod, &["/bin/sh", "-c", script]);
        spec.id.name = name.to_owned();
        change(&mut spec);
        self.run(spec).await;
        self.log(name)
    }

    /// Every cgroup, mount and process of this node that exists.
    pub fn traces(&self) -> Vec<String> {
        let group = self.config.cgroup_root.strip_prefix("/").unwrap();
        let mut found = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for mount in mounts.lines().filter(|line| line.contains(" - cgroup")) {
            let dir = Path::new(mount.split(' ').nth(4).unwrap()).join(group);
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    found.push(format!("cgroup {}", entry.path().display()));
                }
            }
        }
        let here = self.dir.path().to_str().unwrap();
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(here))
                .map(|line| format!("mount {line}")),
        );
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let state = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let zombie = state
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .trim_start()
                .starts_with('Z');
            if (command.contains(here) || cgroup.contains(group.to_str().unwrap())) && !zombie {
                found.push(format!(
                    "process {} {}",
                    entry.path().display(),
                    command.replace('\0', " ")
                ));
            }
        }
        for entry in fs::read_dir(&self.config.run_dir)
            .into_iter()
            .flatten()
            .flatten()
        {
            found.push(format!("directory {}", entry.path().display()));
        }
        found
    }
}

impl Drop for Node {
    /// Leaves nothing behind, also when a test failed half way.
    fn drop(&mut self) {
        let group = self
            .config
            .cgroup_root
            .strip_prefix("/")
            .unwrap()
            .to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let roots: Vec<PathBuf> = mounts
            .lines()
            .filter(|line| line.contains(" - cgroup"))
            .map(|line| Path::new(line.split(' ').nth(4).unwrap()).join(&group))
            .collect();
        let deadline = std::time::Instant::now() + DEADLINE;
        while std::time::Instant::now() < deadline {
            let remaining = roots.iter().filter(|root| !sweep(root)).count();
            if remaining == 0 {
                break;
            }
            std::thread::park_timeout(PAUSE);
        }
        let here = self.dir.path().to_str().unwrap();
        for mount in mounts.lines().filter(|line| line.contains(here)) {
            let target = mount.split(' ').nth(4).unwrap();
            if let Err(error) = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH)
            {
                eprintln!("unmounting {target}: {error}");
            }
        }
    }
}

/// Kills and removes a cgroup tree; true when it is gone.
fn sweep(dir: &Path) -> bool {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sweep(&entry.path());
        }
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
    {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap_or_default();
        }
    }
    fs::remove_dir(dir).is_ok() || !dir.exists()
}

fn busybox(dir: &Path) -> PathBuf {
    let rootfs = dir.join("rootfs");
    for part in ["bin", "tmp", "etc", "proc", "dev", "sys"] {
        fs::create_dir_all(rootfs.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox"))
        .expect("install busybox-static: these tests run in it");
    for name in [
        "sh", "true", "false", "echo", "cat", "sleep", "stty", "id", "ls", "touch", "mkdir",
        "grep", "hostname", "unshare", "mount", "env", "dd", "head", "tail", "ps", "kill", "seq",
        "printf", "sync", "test", "wc", "ipcs", "chroot", "stat",
    ] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
    }
    rootfs
}

pub fn sandbox(pod: &str, logs: &Path) -> SandboxSpec {
    SandboxSpec {
        pod: PodUid(pod.to_owned()),
        namespace: "default".to_owned(),
        name: pod.to_owned(),
        hostname: "test-host".to_owned(),
        netns: None,
        host_pid: false,
        host_ipc: false,
        share_pid: false,
        users: None,
        sysctls: BTreeMap::new(),
        resources: Resources::default(),
        log_dir: logs.to_owned(),
        log_max_bytes: 10 << 20,
        log_max_files: 5,
    }
}

pub fn container(pod: &str, rootfs: &Path, args: &[&str]) -> ContainerSpec {
    ContainerSpec {
        id: ContainerId {
            pod: PodUid(pod.to_owned()),
            name: "main".to_owned(),
            attempt: 0,
        },
        rootfs: rootfs.to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Vec::new(),
        cwd: PathBuf::from("/"),
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        mounts: Vec::new(),
        read_only_rootfs: false,
        unmasked_proc: false,
        privileged: false,
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        no_new_privs: false,
        seccomp: Seccomp::RuntimeDefault,
        resources: Resources::default(),
        tty: false,
        stdin: false,
        termination_message_path: PathBuf::from("/dev/termination-log"),
    }
}

pub fn command(args: &[&str]) -> ExecSpec {
    ExecSpec {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        tty: false,
        stdin: false,
        timeout: None,
    }
}

/// Waits for the end of a container, which may have happened already.
pub async fn wait_exit(
    runtime: &dyn Runtime,
    events: &mut broadcast::Receiver<RuntimeEvent>,
    wanted: &ContainerId,
) -> ContainerExit {
    for sandbox in runtime.sandboxes().await.unwrap() {
        for status in sandbox.containers {
            if let (true, ContainerState::Exited(exit)) = (&status.id == wanted, status.state) {
                return exit;
            }
        }
    }
    tokio::time::timeout(DEADLINE, async {
        loop {
            match events.recv().await.unwrap() {
                RuntimeEvent::Exited { id, exit } if &id == wanted => return exit,
                _ => {}
            }
        }
    })
    .await
    .expect("the container ends")
}

/// Everything a session prints, and its exit code.
pub async fn finish(session: IoSession) -> (String, String, i32) {
    let IoSession {
        mut stdout,
        stderr,
        exit,
        stdin,
        resize,
    } = session;
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let reading = async {
        stdout.read_to_string(&mut out).await.unwrap();
        if let Some(mut stderr) = stderr {
            stderr.read_to_string(&mut err).await.unwrap();
        }
        exit.await.unwrap().unwrap()
    };
    let code = tokio::time::timeout(DEADLINE, reading)
        .await
        .expect("the command ends");
    drop(resize);
    (out, err, code)
}

/// Reads until the text appears.
pub async fn read_until(
    stream: &mut (impl tokio::io::AsyncRead + Unpin + ?Sized),
    wanted: &str,
) -> String {
    let mut seen = String::new();
    tokio::time::timeout(DEADLINE, async {
        let mut buffer = [0u8; 1024];
        while !seen.contains(wanted) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the stream ended before {wanted:?}: {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {wanted:?} in {seen:?}"));
    seen
}
