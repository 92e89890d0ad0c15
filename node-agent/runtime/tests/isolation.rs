//! What a container may and may not do, seen from inside, for its init and for commands executed in it.
#![allow(
    clippy::unwrap_used,
    reason = "a failed step is a failed test, and says where"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use gantry_runtime::*;
use support::*;

/// The kernel's bits of Kubernetes' default capabilities.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

async fn running(node: &Node, change: impl FnOnce(&mut ContainerSpec)) -> ContainerId {
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let mut spec = node.container(
        "pod",
        &["/bin/sh", "-c", "cat /proc/self/status; sleep 1000"],
    );
    change(&mut spec);
    let id = spec.id.clone();
    node.runtime.start_container(spec).await.unwrap();
    id
}

async fn inside(node: &Node, id: &ContainerId, script: &str) -> (String, i32) {
    let (out, err, code) = finish(
        node.runtime
            .exec(id, command(&["/bin/sh", "-c", script]))
            .await
            .unwrap(),
    )
    .await;
    (out + &err, code)
}

#[tokio::test]
async fn default_capabilities_and_filter_hold_for_init_and_exec() {
    let node = Node::new();
    let id = running(&node, |_| {}).await;
    let (from_exec, _) = inside(&node, &id, "cat /proc/self/status").await;
    let (from_init, _) = inside(&node, &id, "cat /proc/1/status").await;
    for status in [&from_exec, &from_init] {
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(field(status, set), DEFAULT_CAPABILITIES, "{set}");
        }
        assert_eq!(field(status, "CapInh:"), "0000000000000000");
        assert_eq!(field(status, "Seccomp:"), "2", "a filter is installed");
        assert_eq!(field(status, "Seccomp_filters:"), "2");
    }
    // The filter, not a missing capability, refuses a user namespace.
    let (said, code) = inside(&node, &id, "unshare -U true").await;
    assert!(
        code != 0 && said.contains("Operation not permitted"),
        "{said}"
    );
    node.runtime.remove_sandbox(&id.pod).await.unwrap();

    // The same from init itself, and without a filter the same call succeeds: the check above can fail.
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let script = "unshare -U true && echo possible";
    assert!(
        !node
            .script("pod", "filtered", script, |_| {})
            .await
            .contains("possible")
    );
    let free = node
        .script("pod", "free", script, |spec| {
            spec.seccomp = Seccomp::Unconfined
        })
        .await;
    assert_eq!(free, "possible\n");
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn a_damaged_filter_stops_an_exec() {
    let node = Node::new();
    let id = running(&node, |_| {}).await;
    let dir = node.config.run_dir.join("pod/c/main-0");
    fs::write(dir.join("seccomp"), b"garbage").unwrap();
    let refused = node
        .runtime
        .exec(&id, command(&["/bin/true"]))
        .await
        .err()
        .expect("no filter, no command");
    assert!(refused.to_string().contains("seccomp"), "{refused}");
    fs::remove_file(dir.join("seccomp")).unwrap();
    assert!(
        node.runtime
            .exec(&id, command(&["/bin/true"]))
            .await
            .is_err()
    );
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
}

#[tokio::test]
async fn a_localhost_profile_is_the_filter() {
    let node = Node::new();
    let profile = node.dir.path().join("no-mkdir.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    fs::write(&profile, text).unwrap();
    let id = running(&node, |spec| spec.seccomp = Seccomp::Localhost(profile)).await;
    let (said, code) = inside(&node, &id, "touch /tmp/file && mkdir /tmp/dir").await;
    assert!(
        code != 0 && said.contains("No space left on device"),
        "{said}"
    );
    let mut bad = node.container("pod", &["/bin/true"]);
    bad.id.name = "bad".to_owned();
    bad.seccomp = Seccomp::Localhost(PathBuf::from("/does/not/exist.json"));
    let error = node.runtime.start_container(bad).await.unwrap_err();
    assert!(
        error.to_string().contains("/does/not/exist.json"),
        "{error}"
    );
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
}

#[tokio::test]
async fn capabilities_users_and_new_privileges_as_asked() {
    let node = Node::new();
    let id = running(&node, |spec| {
        spec.cap_drop = vec!["ALL".to_owned()];
        spec.cap_add = vec!["NET_BIND_SERVICE".to_owned()];
        spec.no_new_privs = true;
        spec.seccomp = Seccomp::Unconfined;
        (spec.uid, spec.gid, spec.groups) = (1000, 2000, vec![3000]);
        spec.env = vec!["GREETING=hello".to_owned()];
        spec.cwd = PathBuf::from("/made/up");
    })
    .await;
    let (status, _) = inside(&node, &id, "cat /proc/1/status").await;
    assert_eq!(field(&status, "CapBnd:"), "0000000000000400");
    assert_eq!(field(&status, "CapEff:"), "0000000000000000", "not root");
    assert_eq!(
        (field(&status, "NoNewPrivs:"), field(&status, "Seccomp:")),
        ("1", "0")
    );
    assert_eq!(field(&status, "Groups:"), "2000 3000");
    let (said, code) = inside(
        &node,
        &id,
        "id -u; id -g; echo $GREETING $PATH; pwd; hostname",
    )
    .await;
    let expected = "1000\n2000\nhello /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/made/up\ntest-host\n";
    assert_eq!((said.as_str(), code), (expected, 0));
    let mut unknown = node.container("pod", &["/bin/true"]);
    unknown.id.name = "unknown".to_owned();
    unknown.cap_add = vec!["FLY".to_owned()];
    assert!(
        node.runtime
            .start_container(unknown)
            .await
            .unwrap_err()
            .to_string()
            .contains("FLY")
    );
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
}

#[tokio::test]
async fn file_systems_are_masked_and_read_only_where_they_should_be() {
    let node = Node::new();
    let source = node.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let id = running(&node, |spec| {
        spec.read_only_rootfs = true;
        for (target, read_only) in [("/read", true), ("/write", false)] {
            fs::create_dir(spec.rootfs.join(&target[1..])).unwrap();
            spec.mounts.push(BindMount {
                source: source.clone(),
                target: PathBuf::from(target),
                read_only,
                propagation: Propagation::None,
            });
        }
    })
    .await;
    for refused in [
        "touch /tmp/file",
        "touch /read/new",
        "echo 1 > /proc/sys/kernel/ns_last_pid",
        "touch /sys/new",
    ] {
        let (said, code) = inside(&node, &id, refused).await;
        assert!(code != 0, "{refused}: {said}");
    }
    let check = "cat /read/file && touch /write/new && touch /dev/shm/x && wc -c < /proc/keys && ls /sys/firmware | wc -l";
    let (said, code) = inside(&node, &id, check).await;
    assert_eq!((said.as_str(), code), ("content0\n0\n", 0));
    assert!(source.join("new").exists());
    let (said, _) = inside(&node, &id, "ls /dev; grep ' /dev/shm ' /proc/mounts").await;
    for device in [
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "ptmx",
        "pts",
        "size=65536k",
    ] {
        assert!(said.contains(device), "no {device} in {said}");
    }
    // On v1 there are no files; on v2 it sees its own, and cannot write to them.
    let lift = "for file in /sys/fs/cgroup/*.max /sys/fs/cgroup/cgroup.procs; do \
        { echo max > $file; } 2>/dev/null && echo $file; done; mkdir /sys/fs/cgroup/below 2>/dev/null && echo made; true";
    let (said, _) = inside(&node, &id, lift).await;
    assert_eq!(said, "", "cgroup files through which to lift its limits");
    let (said, code) = inside(&node, &id, "ls -l /proc/1/fd /proc/self/fd").await;
    assert!(
        code == 0 && !said.contains("gantry"),
        "descriptors of ours leak: {said}"
    );
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_should() {
    let node = Node::new();
    node.runtime
        .start_sandbox(SandboxSpec {
            share_pid: true,
            ..node.sandbox("pod")
        })
        .await
        .unwrap();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let mut spec = node.container("pod", &["/bin/sleep", "1000"]);
        spec.id.name = name.to_owned();
        ids.push(spec.id.clone());
        node.runtime.start_container(spec).await.unwrap();
    }
    let of = |id: usize, name: &'static str| {
        let (node, id) = (&node, &ids[id]);
        async move {
            inside(node, id, &format!("stat -L -c %i /proc/self/ns/{name}"))
                .await
                .0
        }
    };
    for shared in ["pid", "ipc", "uts", "net"] {
        assert_eq!(of(0, shared).await, of(1, shared).await, "{shared}");
    }
    assert_ne!(of(0, "mnt").await, of(1, "mnt").await);
    let host = rustix::fs::stat("/proc/self/ns/ipc").unwrap().st_ino;
    assert_ne!(of(0, "ipc").await.trim(), host.to_string());
    assert!(
        inside(&node, &ids[0], "ps")
            .await
            .0
            .matches("sleep 1000")
            .count()
            >= 2
    );
    inside(&node, &ids[0], "echo seen > /dev/shm/file").await;
    assert_eq!(
        inside(&node, &ids[1], "cat /dev/shm/file").await.0,
        "seen\n"
    );
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn a_privileged_container_is_not_confined() {
    let node = Node::new();
    let id = running(&node, |spec| spec.privileged = true).await;
    let (status, _) = inside(&node, &id, "cat /proc/1/status").await;
    assert_eq!(field(&status, "Seccomp:"), "0");
    let own = fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(field(&status, "CapEff:"), field(&own, "CapBnd:"));
    let (said, code) = inside(
        &node,
        &id,
        "mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted",
    )
    .await;
    assert_eq!((said.as_str(), code), ("mounted\n", 0));
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

/// A process that holds a network namespace, until it is dropped.
struct Namespace(std::process::Child);

impl Namespace {
    fn new() -> Self {
        use std::io::Read;
        let mut holder = std::process::Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 1000"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0u8; 5];
        holder
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        Self(holder)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_pod_joins_its_network_namespace_and_has_its_sysctls() {
    let node = Node::new();
    let namespace = Namespace::new();
    let inode = rustix::fs::stat(namespace.path())
        .unwrap()
        .st_ino
        .to_string();
    let sandbox = SandboxSpec {
        netns: Some(namespace.path()),
        sysctls: [(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "77".to_owned(),
        )]
        .into(),
        ..node.sandbox("pod")
    };
    node.runtime.start_sandbox(sandbox).await.unwrap();
    let spec = node.container("pod", &["/bin/sleep", "1000"]);
    let id = spec.id.clone();
    node.runtime.start_container(spec).await.unwrap();
    let look = "stat -L -c %i /proc/1/ns/net /proc/self/ns/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start";
    assert_eq!(
        inside(&node, &id, look).await.0,
        format!("{inode}\n{inode}\n77\n")
    );
    node.runtime.remove_sandbox(&id.pod).await.unwrap();

    // One that is not there fails the start, says so, and leaves nothing.
    let missing = SandboxSpec {
        netns: Some(PathBuf::from("/run/no-such-netns")),
        ..node.sandbox("other")
    };
    let error = node.runtime.start_sandbox(missing).await.unwrap_err();
    assert!(error.to_string().contains("/run/no-such-netns"), "{error}");
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn nothing_of_ours_can_be_used_in_a_shared_pid_namespace() {
    let node = Node::new();
    let sandbox = SandboxSpec {
        share_pid: true,
        ..node.sandbox("pod")
    };
    node.runtime.start_sandbox(sandbox).await.unwrap();
    let mut attacker = node.container("pod", &["/bin/sleep", "1000"]);
    attacker.cap_add = vec!["SYS_PTRACE".to_owned()];
    let id = attacker.id.clone();
    node.runtime.start_container(attacker).await.unwrap();
    let (status, _) = inside(&node, &id, "cat /proc/1/status").await;
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "Seccomp:"), "2");
    assert_eq!(field(&status, "NoNewPrivs:"), "1");
    assert_eq!(field(&status, "Uid:"), "65535\t65535\t65535\t65535");
    let look =
        "ls -A /proc/1/root/ /proc/1/fd/ | grep -v : ; cat /proc/1/environ; stat -c %u /proc/1/fd";
    let (seen, code) = inside(&node, &id, look).await;
    assert_eq!((seen.trim(), code), ("0", 0), "not even dumpable");
    let (said, code) = inside(&node, &id, "touch /proc/1/root/x || chmod 777 /proc/1/exe").await;
    assert!(code != 0 && said.contains("Read-only"), "{said}");

    // A container that comes later, as root and as somebody else, with a terminal and without.
    for (number, uid) in [(1, 0), (2, 1000)] {
        let mut spec = node.container(
            "pod",
            &[
                "/bin/sh",
                "-c",
                "cat /proc/self/status; cut -d ' ' -f 7 /proc/self/stat; sleep 1000",
            ],
        );
        spec.id.name = format!("later-{number}");
        (spec.uid, spec.tty) = (uid, number == 2);
        let later = spec.id.clone();
        node.runtime.start_container(spec).await.unwrap();
        let (status, _) = inside(&node, &later, "cat /proc/self/status").await;
        assert_eq!(field(&status, "CapBnd:"), DEFAULT_CAPABILITIES);
        let effective = if uid == 0 {
            DEFAULT_CAPABILITIES
        } else {
            "0000000000000000"
        };
        assert_eq!(field(&status, "CapEff:"), effective);
        assert_eq!(field(&status, "Seccomp:"), "2");
        let (processes, _) = inside(&node, &later, "cat /proc/[0-9]*/status").await;
        let of_init = processes.matches("CapBnd:\t00000000a80425fb").count();
        assert!(of_init >= 2, "{processes}");
    }
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn devices_beyond_its_own_do_not_open() {
    let node = Node::new();
    let id = running(&node, |spec| spec.cap_add = vec!["NET_ADMIN".to_owned()]).await;
    for (name, numbers) in [("tun", "10 200"), ("mem", "1 1"), ("kmsg", "1 11")] {
        let script = format!("busybox mknod /tmp/{name} c {numbers} && (: 3<> /tmp/{name})");
        let (said, code) = inside(&node, &id, &script).await;
        assert!(
            code != 0 && said.contains("Operation not permitted"),
            "{name}: {said}"
        );
    }
    let own = "for name in null zero full random urandom; do (: 3< /dev/$name) || exit 1; done; echo x > /dev/null";
    assert_eq!(inside(&node, &id, own).await, (String::new(), 0));
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
}

#[tokio::test]
async fn settings_of_the_host_are_out_of_reach() {
    let node = Node::new();
    let before = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    for name in [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4.tcp_syncookies",
    ] {
        let sandbox = SandboxSpec {
            sysctls: [(name.to_owned(), "|/x".to_owned())].into(),
            ..node.sandbox("pod")
        };
        // The last belongs to the network, which this sandbox shares with its host.
        let error = node.runtime.start_sandbox(sandbox).await.unwrap_err();
        assert!(error.to_string().contains("sysctl"), "{error}");
    }
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), before);
    assert_eq!(node.traces(), Vec::<String>::new());
    let sandbox = SandboxSpec {
        sysctls: [("kernel/msgmax".to_owned(), "4321".to_owned())].into(),
        ..node.sandbox("pod")
    };
    node.runtime.start_sandbox(sandbox).await.unwrap();
    let said = node
        .script("pod", "look", "cat /proc/sys/kernel/msgmax", |_| {})
        .await;
    assert_eq!(said, "4321\n");
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
}

#[tokio::test]
async fn no_link_leads_a_command_to_the_hosts_files() {
    let node = Node::new();
    let sandbox = SandboxSpec {
        host_pid: true,
        ..node.sandbox("pod")
    };
    node.runtime.start_sandbox(sandbox).await.unwrap();
    let script = "cd / && busybox rm -r /w && busybox ln -s /proc/1/root /w; sleep 1000";
    let mut spec = node.container("pod", &["/bin/sh", "-c", script]);
    spec.cwd = PathBuf::from("/w");
    let id = spec.id.clone();
    node.runtime.start_container(spec).await.unwrap();
    let deadline = std::time::Instant::now() + DEADLINE;
    while fs::read_link(node.rootfs.join("w")).is_err() {
        assert!(std::time::Instant::now() < deadline, "no link");
        pause().await;
    }
    let refused = node.runtime.exec(&id, command(&["/bin/ls"])).await;
    let error = refused.err().expect("a directory outside of the container");
    assert!(error.to_string().contains("Permission denied"), "{error}");
    node.runtime.remove_sandbox(&id.pod).await.unwrap();
}

/// Starts a container that must be refused, and looks that nothing happened to a directory of the host meanwhile.
async fn refused(
    node: &Node,
    elsewhere: &Path,
    name: &str,
    change: impl FnOnce(&mut ContainerSpec),
) -> String {
    let mut spec = node.container("pod", &["/bin/true"]);
    spec.id.name = name.to_owned();
    change(&mut spec);
    let refused = node.runtime.start_container(spec).await.unwrap_err();
    let left = fs::read_dir(elsewhere).unwrap().count();
    assert_eq!(left, 1, "{refused}");
    assert_eq!(fs::read(elsewhere.join("ptmx")).unwrap(), b"of the host");
    refused.to_string()
}

#[tokio::test]
async fn an_image_cannot_lead_its_own_start_to_the_hosts_files() {
    let node = Node::new();
    let elsewhere = node.dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("ptmx"), "of the host").unwrap();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let planted = node.dir.path().join("planted");
    fs::create_dir(&planted).unwrap();
    std::os::unix::fs::symlink(&elsewhere, planted.join("dev")).unwrap();
    // What runs is looked for there, and found.
    fs::create_dir(planted.join("bin")).unwrap();
    fs::copy(node.rootfs.join("bin/busybox"), planted.join("bin/true")).unwrap();
    let said = refused(&node, &elsewhere, "covered", |spec| {
        spec.mounts.push(BindMount {
            source: planted.clone(),
            target: PathBuf::from("/"),
            read_only: false,
            propagation: Propagation::None,
        });
    })
    .await;
    assert!(said.contains("the root directory"), "{said}");
    for name in ["dev", "proc", "sys"] {
        let own = node.rootfs.join(name);
        fs::remove_dir(&own).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &own).unwrap();
        let said = refused(&node, &elsewhere, name, |_| {}).await;
        assert!(said.contains(&format!("the image's /{name}")), "{said}");
        fs::remove_file(&own).unwrap();
        fs::create_dir(&own).unwrap();
    }
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test]
async fn a_home_is_given_and_nobody_asked_for_it() {
    let node = Node::new();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    // Whoever looked would find this one.
    fs::write(node.rootfs.join("etc/passwd"), "root:x:0:0::/looked-up:\n").unwrap();
    for (name, env, expected) in [
        ("none", &[][..], "HOME=/\n"),
        ("empty", &["HOME="], "HOME=/\n"),
        ("own", &["HOME=/own"], "HOME=/own\n"),
    ] {
        let homes = "env | grep ^HOME=";
        let said = node
            .script("pod", name, homes, |spec| {
                spec.env = env.iter().map(|&entry| entry.to_owned()).collect();
            })
            .await;
        assert_eq!(said, expected, "{name}");
    }
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
}

#[tokio::test]
async fn later_mounts_of_the_host_reach_the_volumes_that_ask_for_them() {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    let node = Node::new();
    let volume = node.dir.path().join("volume");
    let tmpfs = |at: &Path| {
        fs::create_dir(at).unwrap();
        rustix::mount::mount(
            "none",
            at,
            "tmpfs",
            MountFlags::empty(),
            None::<&std::ffi::CStr>,
        )
        .unwrap();
    };
    tmpfs(&volume);
    rustix::mount::mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
    node.runtime
        .start_sandbox(node.sandbox("pod"))
        .await
        .unwrap();
    let mut ids = Vec::new();
    for (name, propagation) in [
        ("none", Propagation::None),
        ("from-host", Propagation::HostToContainer),
        ("both", Propagation::Bidirectional),
    ] {
        let mut spec = node.container("pod", &["/bin/sleep", "1000"]);
        spec.id.name = name.to_owned();
        spec.privileged = true;
        spec.mounts.push(BindMount {
            source: volume.clone(),
            target: PathBuf::from("/volume"),
            read_only: false,
            propagation,
        });
        ids.push(spec.id.clone());
        node.runtime.start_container(spec).await.unwrap();
    }
    let later = volume.join("later");
    tmpfs(&later);
    fs::write(later.join("seen"), "").unwrap();
    for (id, expected) in ids.iter().zip(["", "seen\n", "seen\n"]) {
        let (said, _) = inside(&node, id, "ls /volume/later").await;
        assert_eq!(said, expected, "{}", id.name);
    }
    for (id, reaches) in ids.iter().zip([false, false, true]) {
        let at = format!("/volume/{}", id.name);
        let script = format!("mkdir {at} && mount -t tmpfs none {at} && touch {at}/made");
        let (said, code) = inside(&node, id, &script).await;
        assert_eq!(code, 0, "{said}");
        let made = volume.join(&id.name).join("made");
        assert_eq!(made.exists(), reaches, "{}", id.name);
    }
    node.runtime
        .remove_sandbox(&PodUid("pod".to_owned()))
        .await
        .unwrap();
    let both = volume.join("both");
    for mounted in [both, later, volume] {
        rustix::mount::unmount(&mounted, UnmountFlags::DETACH).unwrap();
    }
    assert_eq!(node.traces(), Vec::<String>::new());
}
