//! Pods with users of their own (`hostUsers: false`): root in them is nobody on the node. Needs Linux 6.3 and a file system
//! for temporary files that can be mapped (ext4, xfs, btrfs, tmpfs).
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

mod support;

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use gantry_idmap::IdBlock;
use gantry_runtime::*;

use support::{Node, command, finish};

/// A node, and the file of a network namespace in it.
struct Bed {
    node: Node,
    netns: PathBuf,
    ids: IdBlock,
}

impl Bed {
    fn new() -> Self {
        let node = Node::new();
        // As the agent is started.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let ids = IdBlock::of(Ipv4Addr::new(10, 244, 3, 7)).unwrap();
        let made = node.runtime.own_network(ids).unwrap();
        let netns = node.dir.path().join("netns");
        fs::write(&netns, "").unwrap();
        let source = format!("/proc/self/fd/{}", made.as_raw_fd());
        rustix::mount::mount_bind(source, &netns).unwrap();
        // As images are mounted: files of root are those of the pod's root.
        give(&node.rootfs, ids.first());
        Self { node, netns, ids }
    }

    fn sandbox(&self) -> SandboxSpec {
        SandboxSpec {
            netns: Some(self.netns.clone()),
            users: Some(self.ids),
            ..self.node.sandbox("pod")
        }
    }

    fn sleeper(&self, name: &str) -> ContainerSpec {
        let mut spec = self.node.container("pod", &["/bin/sleep", "1000"]);
        spec.id.name = name.to_owned();
        spec
    }

    async fn start(&self, spec: ContainerSpec) -> (ContainerId, i32) {
        let id = spec.id.clone();
        let status = self.node.runtime.start_container(spec).await.unwrap();
        let ContainerState::Running { pid, .. } = status.state else {
            panic!("{status:?}");
        };
        (id, pid)
    }

    async fn says(&self, id: &ContainerId, script: &str) -> String {
        let command = command(&["/bin/sh", "-c", script]);
        let session = self.node.runtime.exec(id, command).await.unwrap();
        let (out, err, _) = finish(session).await;
        format!("{out}{err}")
    }

    async fn end(self) {
        let pod = PodUid("pod".to_owned());
        self.node.runtime.remove_sandbox(&pod).await.unwrap();
        rustix::mount::unmount(&self.netns, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(self.node.traces(), Vec::<String>::new());
    }
}

fn give(path: &Path, owner: u32) {
    std::os::unix::fs::lchown(path, Some(owner), Some(owner)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), owner);
        }
    }
}

fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field));
    line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn root_of_a_pod_is_nobody_on_the_node() {
    let bed = Bed::new();
    bed.node.runtime.start_sandbox(bed.sandbox()).await.unwrap();
    let (id, pid) = bed.start(bed.sleeper("main")).await;
    assert_eq!(status(pid, "Uid:"), bed.ids.first().to_string());
    assert_eq!(bed.says(&id, "id -u").await, "0\n");
    let host = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
    for name in ["user", "net", "ipc", "uts", "pid", "mnt", "cgroup"] {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(theirs, host(name));
    }
    let said = bed
        .says(&id, "hostname; echo /proc/[0-9]*; ls -d /sys/class/net/lo")
        .await;
    assert!(said.starts_with("test-host\n/proc/1 "), "{said}");
    assert!(said.ends_with("/sys/class/net/lo\n"), "{said}");
    // Its own files, and nothing else.
    let said = bed
        .says(&id, "echo x > /tmp/file && stat -c %u /tmp/file")
        .await;
    assert_eq!(said, "0\n");
    let made = bed.node.rootfs.join("tmp/file").metadata().unwrap();
    assert_eq!((made.uid(), made.gid()), (bed.ids.first(), bed.ids.first()));
    for refused in [
        "echo x > /proc/sys/kernel/core_pattern",
        "mount -t tmpfs none /tmp",
        "dd if=/dev/zero of=/proc/sysrq-trigger count=1",
    ] {
        let said = bed
            .says(&id, &format!("({refused}) 2>/dev/null && echo done"))
            .await;
        assert_eq!(said, "", "{refused}");
    }
    bed.end().await;
}

#[tokio::test]
async fn volumes_hold_the_ids_that_the_pod_sees() {
    let bed = Bed::new();
    let volume = bed.node.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(volume.join("secret"), "of 1000\n").unwrap();
    fs::set_permissions(volume.join("secret"), fs::Permissions::from_mode(0o400)).unwrap();
    chown(volume.join("secret"), Some(1000), Some(1000)).unwrap();
    let file = bed.node.dir.path().join("hosts");
    fs::write(&file, "of root\n").unwrap();
    bed.node.runtime.start_sandbox(bed.sandbox()).await.unwrap();
    let mut spec = bed.sleeper("main");
    spec.cwd = PathBuf::from("/made/here");
    let bind = |source: &Path, target: &str, read_only| BindMount {
        source: source.to_owned(),
        target: PathBuf::from(target),
        read_only,
        propagation: Propagation::None,
    };
    spec.mounts = vec![
        bind(&volume, "/volume", false),
        bind(&volume, "/read-only", true),
        bind(&file, "/etc/hosts", false),
    ];
    let (id, _) = bed.start(spec).await;
    let script = "stat -c %u:%g /volume /volume/secret /etc/hosts /made/here; cat /etc/hosts; echo new > /volume/new; \
        echo message > /dev/termination-log; echo shared > /dev/shm/file; cat /dev/shm/file; \
        echo x 2>/dev/null > /read-only/x || echo refused";
    let said = bed.says(&id, script).await;
    let expected = "0:0\n1000:1000\n0:0\n0:0\nof root\nshared\n";
    assert!(
        said.starts_with(expected) && said.contains("refused"),
        "{said}"
    );
    let new = volume.join("new").metadata().unwrap();
    assert_eq!((new.uid(), new.gid()), (0, 0), "on the disk");
    bed.end().await;
}

#[tokio::test]
async fn another_user_and_a_terminal_work_as_elsewhere() {
    let bed = Bed::new();
    bed.node.runtime.start_sandbox(bed.sandbox()).await.unwrap();
    let mut spec = bed.sleeper("main");
    (spec.uid, spec.gid, spec.groups) = (1000, 2000, vec![3000]);
    let (id, pid) = bed.start(spec).await;
    assert_eq!(status(pid, "Uid:"), (bed.ids.first() + 1000).to_string());
    let said = bed
        .says(&id, "id -u; id -g; id -G; echo named > /dev/stdout")
        .await;
    assert_eq!(said, "1000\n2000\n2000 3000\nnamed\n");
    let mut with_terminal = command(&[
        "/bin/sh",
        "-c",
        "stat -c %u $(readlink /proc/self/fd/0); test -t 1 && echo terminal",
    ]);
    with_terminal.tty = true;
    let session = bed.node.runtime.exec(&id, with_terminal).await.unwrap();
    let (out, _, _) = finish(session).await;
    assert!(out.contains("terminal"), "{out}");

    let mut spec = bed
        .node
        .container("pod", &["/bin/sh", "-c", "test -t 0 && id -u"]);
    spec.id.name = "terminal".to_owned();
    spec.tty = true;
    bed.node.run(spec).await;
    assert_eq!(bed.node.log("terminal").trim(), "0");

    let mut spec = bed.sleeper("foreign");
    spec.uid = gantry_idmap::IDS;
    let refused = bed.node.runtime.start_container(spec).await.unwrap_err();
    assert!(refused.to_string().contains("65536"), "{refused}");
    bed.end().await;
}

#[tokio::test]
async fn containers_may_share_processes_and_settings_are_written() {
    let bed = Bed::new();
    let mut sandbox = bed.sandbox();
    sandbox.share_pid = true;
    for (name, value) in [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_local_port_range", "40000\t40100"),
    ] {
        sandbox.sysctls.insert(name.to_owned(), value.to_owned());
    }
    bed.node.runtime.start_sandbox(sandbox).await.unwrap();
    let (one, first) = bed.start(bed.sleeper("one")).await;
    let (_, second) = bed.start(bed.sleeper("two")).await;
    let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(of(first), of(second));
    let script = "ps | grep -c '[s]leep 1000'; \
        cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range; \
        ls -l /proc/1/root /proc/1/exe 2>&1 | grep -c denied";
    let said = bed.says(&one, script).await;
    assert_eq!(said, "2\n1\n40000\t40100\n2\n");
    bed.end().await;
}

#[tokio::test]
async fn more_rights_are_rights_over_the_pod_alone() {
    let bed = Bed::new();
    bed.node.runtime.start_sandbox(bed.sandbox()).await.unwrap();
    let mut spec = bed.sleeper("main");
    spec.privileged = true;
    spec.unmasked_proc = true;
    let (id, pid) = bed.start(spec).await;
    assert_eq!(status(pid, "Uid:"), bed.ids.first().to_string());
    let own = bed
        .says(
            &id,
            "mount -t tmpfs none /tmp && echo mounted; hostname other && hostname",
        )
        .await;
    assert_eq!(own, "mounted\nother\n");
    for refused in [
        "echo x > /proc/sys/kernel/core_pattern",
        "echo 1 > /proc/sys/vm/drop_caches",
        "mount -t ext4 /dev/vda /tmp",
        "dd if=/dev/mem of=/dev/null count=1",
    ] {
        let said = bed
            .says(&id, &format!("({refused}) 2>/dev/null && echo done"))
            .await;
        assert_eq!(said, "", "{refused}");
    }
    bed.end().await;
}
