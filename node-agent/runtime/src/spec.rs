//! From a `ContainerSpec` to the OCI configuration libcontainer reads: pure functions.
//!
//! Network, ipc and uts namespaces are not named in it: the helper joins them before it calls libcontainer.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gantry_cri::runtime::{
    BindMount, ContainerSpec, ExecSpec, Propagation, Resources, RuntimeError, SandboxSpec,
};
use gantry_idmap::IdBlock;
use serde_json::{Value, json};

use crate::devices;
use crate::exec::Command;
use crate::privileges;
use crate::rootfs::DEFAULT_PATH;
use crate::users::{self, Brought, View};

/// What Kubernetes gives a container that asks for nothing.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// All capabilities in the kernel's order: the index is the number.
const ALL_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Where a user's files are when nobody says, as other runtimes have it.
const DEFAULT_HOME: &str = "HOME=/";

const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What the node and the sandbox decide about a container.
pub(crate) struct Surroundings<'a> {
    /// The sandbox it runs in.
    pub(crate) sandbox: &'a SandboxSpec,
    /// Its cgroup, below every hierarchy's root.
    pub(crate) cgroup: &'a Path,
    /// cgroup v2.
    pub(crate) unified: bool,
    /// The pod's shared memory.
    pub(crate) shm: &'a Path,
    /// Mounted at the termination message path.
    pub(crate) termination: &'a Path,
    /// The process file system of the pod's shared pid namespace, when it has one.
    pub(crate) shared_proc: Option<&'a Path>,
    /// The capabilities this process could give at all.
    pub(crate) available: u64,
}

fn every(available: u64) -> impl Iterator<Item = &'static str> {
    ALL_CAPABILITIES
        .iter()
        .enumerate()
        .filter(move |(bit, _)| available >> bit & 1 == 1)
        .map(|(_, name)| *name)
}

/// Names (without `CAP_`) of the capabilities a container gets.
pub(crate) fn capabilities(
    spec: &ContainerSpec,
    available: u64,
) -> Result<BTreeSet<&'static str>, RuntimeError> {
    let all = || every(available);
    if spec.privileged {
        return Ok(all().collect());
    }
    let known = |asked: &str| -> Result<&'static str, RuntimeError> {
        let bare = asked.strip_prefix("CAP_").unwrap_or(asked);
        ALL_CAPABILITIES
            .iter()
            .copied()
            .find(|name| *name == bare)
            .ok_or_else(|| RuntimeError::Create {
                container: spec.id.name.clone(),
                cause: format!("unknown capability \"{asked}\" to add or drop"),
            })
    };
    let is_all = |name: &String| name == "ALL" || name == "CAP_ALL";
    let mut granted: BTreeSet<&'static str> = if spec.cap_add.iter().any(is_all) {
        all().collect()
    } else {
        all()
            .filter(|name| DEFAULT_CAPABILITIES.contains(name))
            .collect()
    };
    if spec.cap_drop.iter().any(is_all) {
        granted.clear();
    }
    for name in spec.cap_drop.iter().filter(|name| !is_all(name)) {
        granted.remove(known(name)?);
    }
    for name in spec.cap_add.iter().filter(|name| !is_all(name)) {
        let name = known(name)?;
        if !all().any(|possible| possible == name) {
            return Err(RuntimeError::Unsupported(format!(
                "capability {name} cannot be given to container {}: the node agent does not have it itself",
                spec.id.name
            )));
        }
        granted.insert(name);
    }
    Ok(granted)
}

/// The bits of capabilities in the kernel's order.
pub(crate) fn bits(capabilities: &BTreeSet<&'static str>) -> u64 {
    ALL_CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(_, name)| capabilities.contains(*name))
        .fold(0, |bits, (bit, _)| bits | 1 << bit)
}

/// Leaves exactly one HOME, which says something. Where libcontainer finds none it asks the C library for the user's,
/// when it has entered the container's root directory and before it has given up anything: and the C library then
/// executes, in that process of ours, whatever the image's /etc/nsswitch.conf names.
fn set_home(env: &mut Vec<String>) {
    let mut found = false;
    env.retain(|entry| match entry.split_once('=') {
        Some(("HOME", value)) if !value.is_empty() => !std::mem::replace(&mut found, true),
        Some((name, _)) => name != "HOME",
        None => entry != "HOME",
    });
    if !found {
        env.push(DEFAULT_HOME.to_owned());
    }
}

fn environment(spec: &ContainerSpec) -> Vec<String> {
    let mut env = spec.env.clone();
    set_home(&mut env);
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.insert(0, DEFAULT_PATH.to_owned());
    }
    if spec.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    env
}

/// The primary group is among the supplementary ones: a process that changes its group keeps its access.
fn groups(spec: &ContainerSpec) -> BTreeSet<u32> {
    spec.groups.iter().copied().chain([spec.gid]).collect()
}

/// Refuses numbers that leave a process whatever it was: to the kernel they say "do not change". Those that a pod with
/// users of its own does not have would be nobody's.
fn check_user(spec: &ContainerSpec, users: Option<IdBlock>) -> Result<(), RuntimeError> {
    let mut numbers = groups(spec);
    numbers.insert(spec.uid);
    let lacks = |number: &&u32| users.is_some_and(|ids| ids.on_node(**number).is_none());
    if let Some(number) = numbers.iter().find(lacks) {
        return Err(RuntimeError::Create {
            container: spec.id.name.clone(),
            cause: format!(
                "user or group {number} is not among the {} of a pod with users of its own (hostUsers: false)",
                gantry_idmap::IDS
            ),
        });
    }
    if numbers.contains(&privileges::UNCHANGED) {
        return Err(RuntimeError::Create {
            container: spec.id.name.clone(),
            cause: format!("{} is no user or group to run as", privileges::UNCHANGED),
        });
    }
    Ok(())
}

/// The node's number of the user that a container begins as.
pub(crate) fn user_on_node(spec: &ContainerSpec, users: Option<IdBlock>) -> u32 {
    let mapped = users.and_then(|ids| ids.on_node(spec.uid));
    mapped.unwrap_or(spec.uid)
}

/// The `process` part. A container that joins a shared pid namespace itself keeps what that needs until then.
fn process(spec: &ContainerSpec, around: &Surroundings<'_>) -> Result<Value, RuntimeError> {
    check_user(spec, around.sandbox.users)?;
    let available = around.available;
    let capabilities = match around.shared_proc {
        None => capabilities(spec, available)?,
        Some(_) => every(available).collect(),
    };
    let capabilities: Vec<String> = capabilities
        .into_iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
    let mut process = json!({
        "terminal": spec.tty,
        "user": {"uid": spec.uid, "gid": spec.gid, "additionalGids": groups(spec)},
        "args": spec.args,
        "env": environment(spec),
        "cwd": spec.cwd,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    });
    if spec.no_new_privs {
        // Never written as false: libcontainer treats the field's presence as a decision about filters.
        process["noNewPrivileges"] = json!(true);
    }
    Ok(process)
}

/// What an exec's helper executes.
pub(crate) fn exec_command(
    spec: &ContainerSpec,
    exec: &ExecSpec,
    available: u64,
    users: Option<IdBlock>,
    cgroups: Vec<PathBuf>,
    container: PathBuf,
) -> Result<Command, RuntimeError> {
    let mut env = environment(spec);
    if exec.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    Ok(Command {
        args: exec.args.clone(),
        env,
        cwd: spec.cwd.clone(),
        terminal: exec.tty,
        uid: spec.uid,
        user: user_on_node(spec, users),
        own_users: users.is_some(),
        gid: spec.gid,
        groups: groups(spec).into_iter().collect(),
        capabilities: bits(&capabilities(spec, available)?),
        no_new_privs: spec.no_new_privs,
        oom_score_adj: spec.resources.oom_score_adj.unwrap_or(0),
        cgroups,
        container,
    })
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": target, "type": kind, "source": source, "options": options})
}

fn bind(mount: &BindMount) -> Value {
    let propagation = match mount.propagation {
        Propagation::None => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = if mount.read_only { "ro" } else { "rw" };
    json!({
        "destination": mount.target,
        "type": "bind",
        "source": mount.source,
        "options": ["rbind", propagation, access],
    })
}

fn mounts(spec: &ContainerSpec, around: &Surroundings<'_>) -> Vec<Value> {
    let sys: &[&str] = if spec.privileged {
        &["nosuid", "noexec", "nodev"]
    } else {
        &["nosuid", "noexec", "nodev", "ro"]
    };
    let shm = if around.sandbox.host_ipc {
        Path::new("/dev/shm")
    } else {
        around.shm
    };
    let proc = match around.shared_proc {
        // Made by a process in the namespace, which the container is not in yet.
        Some(shared) => {
            json!({"destination": "/proc", "type": "bind", "source": shared, "options": ["bind", "rprivate", "nosuid", "noexec", "nodev"]})
        }
        None => mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    };
    let mut mounts = vec![
        proc,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount("/sys", "sysfs", "sysfs", sys),
        json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["bind", "rprivate", "nosuid", "noexec", "nodev"]}),
    ];
    if around.unified {
        mounts.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ));
    }
    // On v1 there is none: those mounts cannot be made read-only, and a container could lift its own limits.
    mounts.extend(spec.mounts.iter().map(bind));
    let path = &spec.termination_message_path;
    if path.is_absolute()
        && path.parent().is_some()
        && !spec.mounts.iter().any(|mount| &mount.target == path)
    {
        mounts.push(json!({
            "destination": path,
            "type": "bind",
            "source": around.termination,
            "options": ["bind", "rprivate", "rw"],
        }));
    }
    mounts
}

fn resources(resources: &Resources, privileged: bool) -> Value {
    let mut memory = json!({});
    if let Some(limit) = resources.memory_limit {
        memory["limit"] = json!(limit);
    }
    let mut cpu = json!({});
    if let Some(shares) = resources.cpu_shares {
        cpu["shares"] = json!(shares);
    }
    if let Some(quota) = resources.cpu_quota_micros {
        cpu["quota"] = json!(quota);
        cpu["period"] = json!(resources.cpu_period_micros.unwrap_or(100_000));
    }
    let mut all = json!({
        "devices": devices::rules(privileged),
        "memory": memory,
        "cpu": cpu,
    });
    if let Some(limit) = resources.pids_limit {
        all["pids"] = json!({"limit": limit});
    }
    all
}

/// Devices of the host for a privileged container, beside those every container has.
fn host_devices() -> Vec<Value> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut devices = Vec::new();
    let mut dirs = vec![std::path::PathBuf::from("/dev")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else {
                continue;
            };
            let kind = metadata.file_type();
            let skipped = [
                "/dev/pts",
                "/dev/shm",
                "/dev/fd",
                "/dev/mqueue",
                "/dev/console",
                "/dev/ptmx",
            ];
            let ordinary = [
                "/dev/null",
                "/dev/zero",
                "/dev/full",
                "/dev/random",
                "/dev/urandom",
                "/dev/tty",
            ];
            if skipped
                .iter()
                .chain(&ordinary)
                .any(|skip| path == Path::new(skip))
            {
                continue;
            }
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_char_device() || kind.is_block_device() {
                devices.push(json!({
                    "path": path,
                    "type": if kind.is_char_device() { "c" } else { "b" },
                    "major": rustix::fs::major(metadata.rdev()),
                    "minor": rustix::fs::minor(metadata.rdev()),
                    "fileMode": metadata.mode() & 0o7777,
                    "uid": metadata.uid(),
                    "gid": metadata.gid(),
                }));
            }
        }
    }
    devices
}

/// The whole `config.json`.
pub(crate) fn config(
    spec: &ContainerSpec,
    around: &Surroundings<'_>,
) -> Result<Value, RuntimeError> {
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    // A shared one is joined when the container has given up everything.
    if around.shared_proc.is_none() && !around.sandbox.host_pid {
        namespaces.push(json!({"type": "pid"}));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": around.cgroup,
        "resources": resources(&spec.resources, spec.privileged),
    });
    let widest = spec.mounts.iter().map(|mount| mount.propagation).fold(
        Propagation::None,
        |widest, next| match (widest, next) {
            (Propagation::Bidirectional, _) | (_, Propagation::Bidirectional) => {
                Propagation::Bidirectional
            }
            (Propagation::HostToContainer, _) | (_, Propagation::HostToContainer) => {
                Propagation::HostToContainer
            }
            _ => Propagation::None,
        },
    );
    // libcontainer makes every mount this before it binds volumes, each with all below it, and those become the same: what
    // a bind's own options say of it counts for nothing.
    linux["rootfsPropagation"] = json!(match widest {
        Propagation::None => "private",
        Propagation::HostToContainer => "slave",
        Propagation::Bidirectional => "shared",
    });
    let unmasked = spec.unmasked_proc && around.sandbox.users.is_some();
    let is_shown = |path: &str| spec.privileged || unmasked && path.starts_with("/proc/");
    let hidden = |paths: &[&'static str]| -> Vec<&str> {
        let hidden = paths.iter().filter(|path| !is_shown(path));
        hidden.copied().collect()
    };
    linux["maskedPaths"] = json!(hidden(MASKED));
    linux["readonlyPaths"] = json!(hidden(READ_ONLY));
    if spec.privileged {
        linux["devices"] = Value::Array(host_devices());
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": spec.rootfs, "readonly": spec.read_only_rootfs},
        "process": process(spec, around)?,
        "mounts": mounts(spec, around),
        "linux": linux,
    }))
}

/// Rewrites a configuration for a pod with users of its own: to the places that [`users::enter`] gives things, and to its
/// namespaces. Answers what was there.
pub(crate) fn for_own_users(
    config: &mut Value,
    ids: IdBlock,
    around: &Surroundings<'_>,
    shared_pid: bool,
) -> View {
    let path = |value: &Value| PathBuf::from(value.as_str().unwrap_or_default());
    let rootfs = path(&config["root"]["path"]);
    config["root"]["path"] = json!(users::ROOTFS);
    let mut mounts = Vec::new();
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        if mount["type"] == "bind" {
            let source = path(&mount["source"]);
            mount["source"] = json!(format!("{}/{}", users::MOUNTS, mounts.len()));
            mounts.push(Brought {
                // What was made for this pod alone is of its users from the start: older kernels map no memory.
                mapped: source != around.shm && source != around.termination,
                source,
            });
        }
    }
    let mut pid = json!({"type": "pid"});
    if shared_pid {
        pid["path"] = json!(users::PID);
    }
    let own = [json!({"type": "user", "path": users::USERS}), pid];
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "pid");
        namespaces.extend(own);
    }
    View {
        ids,
        rootfs,
        mounts,
    }
}

#[cfg(test)]
pub(crate) mod tests;
