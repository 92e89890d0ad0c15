//! Full disks, and what other users of the machine find on it.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_agent::AgentConfig;
use gantry_e2e::{Cluster, TOOLS, eventually, gantry};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

/// What servers keep free and pods must leave, and room for both beside the store's files.
const SMALL: u64 = 900 << 20;
/// Nobody's, on most systems.
const NOBODY: u32 = 65534;

/// A cluster whose state is on a small disk.
struct Bed {
    cluster: Cluster,
    disk: PathBuf,
}

impl Bed {
    fn new(options: &str) -> Result<Self> {
        let cluster = Cluster::not_yet()?;
        let disk = cluster
            .data_dir()
            .parent()
            .context("a directory around the data directory")?
            .to_owned();
        let options = CString::new(format!("size={SMALL},mode=0700{options}"))?;
        let flags = MountFlags::empty();
        rustix::mount::mount("tmpfs", &disk, "tmpfs", flags, Some(options.as_c_str()))
            .context("mounting a small disk: this needs root")?;
        let mut bed = Self { cluster, disk };
        bed.cluster.up()?;
        bed.cluster.import_demo_images()?;
        Ok(bed)
    }

    fn free(&self) -> Result<u64> {
        let found = rustix::fs::statvfs(&self.disk)?;
        Ok(found.f_bavail * found.f_frsize)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // While the disk is there.
        let data_dir = self.cluster.data_dir().display().to_string();
        if let Err(error) = self.cluster.gantry(&["down", "--data-dir", &data_dir]) {
            eprintln!("cleaning up: {error:#}");
        }
        if let Err(error) = rustix::mount::unmount(&self.disk, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.disk.display());
        }
    }
}

fn apply(cluster: &Cluster, object: &Value) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("object.json");
    fs::write(&file, object.to_string())?;
    let file = file.display().to_string();
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": TOOLS, "command": ["sh", "-c", script]})
}

/// Bound to the node, since a node that is short of disk is not scheduled on.
fn pod(name: &str, containers: &[Value], volumes: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": "node-1", "terminationGracePeriodSeconds": 0, "restartPolicy": "Never",
            "containers": containers, "volumes": volumes,
        },
    })
}

fn status(cluster: &Cluster, name: &str) -> Result<[String; 3]> {
    let said = cluster.kubectl(&[
        "get",
        "pod",
        name,
        "-o",
        "jsonpath={.status.phase}|{.status.reason}|{.status.message}",
    ])?;
    let parts: Vec<String> = said.splitn(3, '|').map(str::to_owned).collect();
    parts.try_into().ok().context("three parts")
}

fn evicted(cluster: &Cluster, name: &str, words: &str) -> Result<()> {
    eventually(&format!("{name} to be evicted"), || {
        let [phase, reason, message] = status(cluster, name)?;
        ensure!(
            phase == "Failed" && reason == "Evicted" && message.starts_with(words),
            "{phase} {reason} {message:?}, expected {words:?}\n{}",
            cluster.log()
        );
        Ok(())
    })
}

fn runs(cluster: &Cluster, name: &str) -> Result<()> {
    eventually(&format!("{name} to run"), || {
        let said = status(cluster, name)?;
        ensure!(said[0] == "Running", "{said:?}\n{}", cluster.log());
        Ok(())
    })
}

fn config_map(name: &str, bytes: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "x".repeat(bytes)}})
}

#[test]
fn row_07_pods_that_fill_the_disk_go_and_the_cluster_heals_by_itself() -> Result<()> {
    let bed = Bed::new("")?;
    let cluster = &bed.cluster;
    let low = "The node was low on resource: ephemeral-storage. Threshold quantity: ";
    let none = json!([]);
    apply(cluster, &pod("quiet", &[shell("c", "sleep 3600")], &none))?;
    runs(cluster, "quiet")?;
    apply(cluster, &config_map("before", 10))?;
    let fill = "busybox dd if=/dev/zero of=FILE bs=1M; sleep 3600";
    let volume = json!([{"name": "v", "emptyDir": {}}]);
    let mut in_volume = shell("c", &fill.replace("FILE", "/v/fill"));
    in_volume["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let hogs = [
        ("layer", shell("c", &fill.replace("FILE", "/fill")), &none),
        ("volume", in_volume, &volume),
        // Nothing that a walk over its files would find.
        (
            "nameless",
            shell(
                "c",
                "exec 3>/fill; rm /fill; busybox dd if=/dev/zero bs=1M >&3; sleep 3600",
            ),
            &none,
        ),
    ];
    for (name, container, volumes) in hogs {
        apply(cluster, &pod(name, &[container], volumes))?;
        evicted(cluster, name, low)?;
        eventually("room on the disk", || {
            let free = bed.free()?;
            ensure!(free > SMALL / 3, "{} MiB are free", free >> 20);
            Ok(())
        })?;
        runs(cluster, "quiet")?;
        eventually("writes to be taken again", || {
            apply(cluster, &config_map(&format!("after-{name}"), 10))
        })?;
        cluster.kubectl(&["delete", "pod", name, "--timeout=30s"])?;
    }
    eventually("the node to say so", || {
        let said = cluster.kubectl(&[
            "get",
            "node",
            "node-1",
            "-o",
            "jsonpath={.status.conditions[?(@.type==\"DiskPressure\")].status} {.spec.taints[*].key}",
        ])?;
        ensure!(
            said.starts_with("True") && said.contains("node.kubernetes.io/disk-pressure"),
            "{said}"
        );
        Ok(())
    })
}

#[test]
fn row_07_a_pod_that_takes_all_inodes_goes() -> Result<()> {
    let bed = Bed::new(",nr_inodes=20000")?;
    let cluster = &bed.cluster;
    let script = "mkdir /d; i=0; while :; do true > /d/$i || sleep 1; i=$((i+1)); done";
    apply(cluster, &pod("files", &[shell("c", script)], &json!([])))?;
    evicted(
        cluster,
        "files",
        "The node was low on resource: inodes. Threshold quantity: ",
    )?;
    eventually("writes to be taken again", || {
        apply(cluster, &config_map("after", 10))
    })
}

#[test]
fn row_07_what_makes_room_is_taken_on_a_full_disk() -> Result<()> {
    let bed = Bed::new("")?;
    let cluster = &bed.cluster;
    for number in 0..5 {
        apply(cluster, &config_map(&format!("c{number}"), 1000))?;
    }
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [shell("c", "sleep 3600")]}}},
    });
    apply(cluster, &deployment)?;
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"])?;
    // Somebody else fills it, to the last byte, so that no pod can help.
    let ballast = bed.disk.join("ballast");
    let mut file = fs::File::create(&ballast)?;
    let block = vec![0; 64 << 10];
    while file.write_all(&block).is_ok() {}
    let refused = eventually("writes that add to be refused", || {
        match apply(cluster, &config_map("late", 10)) {
            Err(refused) => Ok(format!("{refused:#}")),
            Ok(()) => {
                cluster.kubectl(&["delete", "configmap", "late"])?;
                bail!("it was taken")
            }
        }
    })?;
    ensure!(refused.contains("make room"), "{refused}");
    for number in 0..4 {
        cluster.kubectl(&["delete", "configmap", &format!("c{number}")])?;
    }
    cluster.kubectl(&["scale", "deploy/web", "--replicas=0"])?;
    cluster.kubectl(&["delete", "deployment", "web", "--timeout=30s"])?;
    eventually("its pods to be gone", || {
        let left = cluster.kubectl(&["get", "pods", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })?;
    drop(file);
    fs::remove_file(&ballast)?;
    eventually("writes to be taken again", || {
        apply(cluster, &config_map("after", 10))
    })
}

#[test]
fn row_07_files_that_every_container_is_given_are_counted_too() -> Result<()> {
    let bed = Bed::new("")?;
    let cluster = &bed.cluster;
    let mut hosts = shell(
        "c",
        "busybox dd if=/dev/zero of=/etc/hosts bs=1M count=3; sleep 3600",
    );
    hosts["resources"] = json!({"limits": {"ephemeral-storage": "2Mi"}});
    apply(cluster, &pod("hosts", &[hosts], &json!([])))?;
    // What Kubernetes reads is 4 KiB; there is room for little more, of the pod's own memory.
    let words =
        "busybox dd if=/dev/zero of=/dev/termination-log bs=1M count=64 || echo ended; sleep 3600";
    apply(cluster, &pod("words", &[shell("c", words)], &json!([])))?;
    evicted(
        cluster,
        "hosts",
        "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ",
    )?;
    eventually("termination messages to end", || {
        let said = cluster.kubectl(&["logs", "words"])?;
        ensure!(said.contains("No space left"), "{said}");
        Ok(())
    })
}

#[test]
fn row_07_limits_of_volumes_containers_and_pods_are_kept() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import_demo_images()?;
    let write = |path: &str| format!("busybox dd if=/dev/zero of={path} bs=1M count=3; sleep 3600");
    let mounted = |mut container: Value, limit: Option<&str>| {
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        if let Some(limit) = limit {
            container["resources"] = json!({"limits": {"ephemeral-storage": limit}});
        }
        container
    };
    let volume = |source: Value| json!([{"name": "v", "emptyDir": source}]);
    let table = [
        (
            "volume",
            mounted(shell("c", &write("/v/x")), None),
            volume(json!({"sizeLimit": "1Mi"})),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ",
        ),
        (
            "pod",
            mounted(shell("c", &write("/v/x")), Some("2Mi")),
            volume(json!({})),
            "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ",
        ),
        (
            "hidden",
            mounted(
                shell(
                    "c",
                    "d=/v; for i in $(busybox seq 200); do d=$d/d; done; mkdir -p $d; busybox ln -s / $d/root; busybox dd if=/dev/zero of=$d/x bs=1M \
                     count=3; sleep 3600",
                ),
                None,
            ),
            volume(json!({"sizeLimit": "1Mi"})),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ",
        ),
    ];
    for (name, container, volumes, _) in &table {
        apply(
            &cluster,
            &pod(name, std::slice::from_ref(container), volumes),
        )?;
    }
    let mut limited = shell("small", &write("/x"));
    limited["resources"] = json!({"limits": {"ephemeral-storage": "2Mi"}});
    let mut roomy = shell("roomy", "sleep 3600");
    roomy["resources"] = json!({"limits": {"ephemeral-storage": "1Gi"}});
    apply(&cluster, &pod("container", &[limited, roomy], &json!([])))?;
    let in_memory = "busybox dd if=/dev/zero of=/v/x bs=64k 2>/dev/null; ls -s /v/x; sleep 3600";
    let memory = pod(
        "memory",
        &[mounted(shell("c", in_memory), None)],
        &volume(json!({"medium": "Memory", "sizeLimit": "1Mi"})),
    );
    apply(&cluster, &memory)?;
    for (name, _, _, words) in &table {
        evicted(&cluster, name, words)?;
    }
    evicted(
        &cluster,
        "container",
        "Container small exceeded its local ephemeral storage limit \"2Mi\". ",
    )?;
    runs(&cluster, "memory")?;
    eventually("a volume in memory to end at its limit", || {
        let said = cluster.kubectl(&["logs", "memory"])?;
        ensure!(said.trim_start().starts_with("1024 "), "{said}");
        Ok(())
    })?;
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=Evicted"])?;
    ensure!(events.contains("exceeds the limit"), "{events}");
    Ok(())
}

/// Every path below some directories, as root finds them; what is mounted there belongs to them.
fn all_below(directories: &[&Path]) -> Result<Vec<u8>> {
    let found = Command::new("find").args(directories).output()?;
    // Pods come and go meanwhile.
    ensure!(!found.stdout.is_empty(), "nothing is there");
    Ok(found.stdout)
}

/// Which of some paths a user without privileges can read, write, enter or execute.
fn open_to_nobody(paths: Vec<u8>) -> Result<String> {
    let script = "while IFS= read -r p; do if [ -r \"$p\" ] || [ -w \"$p\" ] || [ -x \"$p\" ]; then echo \"$p\"; fi; done";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("becoming nobody: this needs root")?;
    let mut input = child.stdin.take().context("its input")?;
    let writer = std::thread::spawn(move || input.write_all(&paths));
    let output = child.wait_with_output()?;
    writer.join().ok().context("writing paths")??;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn row_12_other_users_find_nothing_in_the_directories_of_a_cluster() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.import_demo_images()?;
    let data_dir = cluster.data_dir();
    let around = data_dir.parent().context("a directory around it")?;
    // Otherwise this alone would keep everybody out.
    fs::set_permissions(around, fs::Permissions::from_mode(0o755))?;
    let word = "Zmx1ZWdlbGhvcm4tMTIz";
    apply(
        &cluster,
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": word}}),
    )?;
    apply(&cluster, &config_map("c", 10))?;
    let mut container = shell(
        "c",
        "cat /s/k /c/k /etc/hosts /etc/resolv.conf && busybox touch /e/x /e/sub/y && ls -ld / && umask && sleep 3600",
    );
    container["env"] =
        json!([{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
    container["volumeMounts"] = json!([
        {"name": "s", "mountPath": "/s"}, {"name": "c", "mountPath": "/c"}, {"name": "e", "mountPath": "/e"},
        {"name": "e", "mountPath": "/e/sub", "subPath": "made/here"}]);
    let volumes = json!([{"name": "s", "secret": {"secretName": "s"}}, {"name": "c", "configMap": {"name": "c"}},
        {"name": "e", "emptyDir": {}}]);
    let mut unprivileged = pod("busy", &[container], &volumes);
    unprivileged["spec"]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000});
    apply(&cluster, &unprivileged)?;
    runs(&cluster, "busy")?;
    // Its own user needs what others must not see.
    eventually("a container's user to find its files", || {
        let said = cluster.kubectl(&["logs", "busy"])?;
        let root = said.lines().any(|line| line.starts_with("drwxr-xr-x"));
        ensure!(
            said.contains(word) && root && said.trim_end().ends_with("0022"),
            "{said}"
        );
        Ok(())
    })?;

    let agent = AgentConfig::in_directory(&data_dir.join("agent"));
    let check = || -> Result<()> {
        let paths = all_below(&[&data_dir, &agent.run_dir])?;
        let count = paths.iter().filter(|byte| **byte == b'\n').count();
        ensure!(count > 100, "a busy cluster has more than {count} files");
        let open = open_to_nobody(paths)?;
        ensure!(open.is_empty(), "open to everybody:\n{open}");
        Ok(())
    };
    check()?;
    // What is closed by itself, should somebody open the top.
    for file in [
        "keys",
        "member.json",
        "gantry.pid",
        "admin.kubeconfig",
        "pki/server.key",
        "agent/objects.checkpoint",
        "agent/images/index.json",
    ] {
        let path = data_dir.join(file);
        let written = || {
            path.metadata()
                .with_context(|| format!("{file} is missing"))
        };
        let mode = eventually("a file of the cluster", written)?.mode() & 0o777;
        ensure!(mode == 0o600, "{file} has mode {mode:o}");
    }
    let found = Command::new("grep")
        .args(["--recursive", "--files-with-matches", "--text", word])
        .args([&data_dir, &agent.run_dir])
        .stderr(Stdio::null())
        .output()?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure!(
        !found.is_empty(),
        "the secret is nowhere, not even in memory"
    );
    for path in found.lines().map(Path::new) {
        // A container's log is what it says of itself.
        let own_words = path.starts_with(data_dir.join("agent/logs"));
        let kind = rustix::fs::statfs(path)?.f_type;
        ensure!(
            own_words || kind == 0x0102_1994,
            "a Secret is on a disk, in {}",
            path.display()
        );
    }

    // A cluster of before, or one that somebody opened.
    for directory in [&data_dir, &agent.run_dir, &data_dir.join("agent")] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    }
    cluster.kill()?;
    cluster.up()?;
    check()?;
    runs(&cluster, "busy")
}

/// What is secret in the arguments or environment of a process: join tokens and keys.
fn secret_in(text: &str) -> Option<String> {
    let is_lower = |word: &str| {
        word.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let is_token = |word: &str| {
        word.split_once('.').is_some_and(|(id, rest)| {
            id.len() >= 6
                && is_lower(&id[id.len() - 6..])
                && rest.get(..16).is_some_and(is_lower)
                && rest[..16].bytes().any(|byte| byte.is_ascii_digit())
        })
    };
    let words =
        text.split(|letter: char| letter.is_whitespace() || letter == '\0' || letter == '=');
    for word in words {
        if is_token(word) || word.contains("PRIVATE") || word.contains("LS0tLS1CRUdJTi") {
            return Some(word.to_owned());
        }
    }
    None
}

/// Processes of a cluster, and their children, with something secret where everybody can read it.
fn exposed(data_dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read = |file: &str| {
            let bytes = fs::read(process.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let arguments = read("cmdline");
        let own = arguments.contains(data_dir) || {
            let stat = read("stat");
            let parent = stat
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split(' ').nth(2));
            let parent = parent.unwrap_or_default();
            let above = fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&above).contains(data_dir)
        };
        if own && let Some(word) = secret_in(&format!("{arguments}\0{}", read("environ"))) {
            found.push(format!("{word} in: {}", arguments.replace('\0', " ")));
        }
    }
    found
}

#[test]
fn row_13_no_token_or_key_is_seen_in_a_list_of_processes() -> Result<()> {
    ensure!(secret_in("--token\0abc123.0123456789abcdef:ff").is_some());
    ensure!(secret_in("--pod-cidr\x0010.244.0.0/16").is_none());
    let cluster = Cluster::not_yet()?;
    let data_dir = cluster.data_dir().display().to_string();
    let done = AtomicBool::new(false);
    let mut looks = 0;
    let seen = std::thread::scope(|scope| {
        let up = scope.spawn(|| {
            let said = cluster.gantry(&["up", "--nodes", "3", "--data-dir", &data_dir]);
            done.store(true, Ordering::Relaxed);
            said
        });
        let mut seen = Vec::new();
        while !done.load(Ordering::Relaxed) {
            seen.extend(exposed(&data_dir));
            looks += 1;
        }
        up.join().map(|said| said.map(|_| seen))
    });
    let seen = seen.ok().context("starting hosts panicked")??;
    ensure!(seen.is_empty(), "{seen:#?}");
    ensure!(looks > 3, "{looks} looks are too few to say anything");
    let nodes = cluster.kubectl(&["get", "nodes"])?;
    ensure!(nodes.matches(" Ready").count() == 3, "{nodes}");

    // What a user writes on the command line leaves it, with a word of warning.
    let other = tempfile::tempdir()?;
    let log = fs::File::create(other.path().join("log"))?;
    let token = format!("abc123.0123456789abcdef.{}", "a".repeat(64));
    let token = token.as_str();
    let mut agent = cluster
        .command(gantry()?)
        .args([
            "agent",
            "--join",
            "192.0.2.1",
            "--token",
            token,
            "--data-dir",
        ])
        .arg(other.path().join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    let place = format!("/proc/{}/cmdline", agent.id());
    let hidden = eventually("the token to leave the command line", || {
        let arguments = fs::read(&place)?;
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        ensure!(arguments.contains("--token-file"), "{arguments}");
        ensure!(!arguments.contains(token), "{arguments}");
        Ok(())
    });
    agent.kill()?;
    agent.wait()?;
    hidden?;
    let said = fs::read_to_string(other.path().join("log"))?;
    ensure!(said.contains("--token-file"), "{said}");
    Ok(())
}

/// Runs a command for a limited time; what it says, and whether it succeeded.
fn within(limit: Duration, command: &mut Command) -> Result<(bool, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} hangs");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    };
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn row_27_a_data_directory_works_however_it_is_named() -> Result<()> {
    let cluster = Cluster::not_yet()?;
    let data_dir = cluster.data_dir();
    let around = data_dir.parent().context("a directory around it")?;
    fs::create_dir(around.join("other"))?;
    std::os::unix::fs::symlink(".", around.join("link"))?;
    for (number, written) in ["data", "other/../data/", "link/./data"]
        .into_iter()
        .enumerate()
    {
        let gantry_at = |arguments: &[&str]| -> Result<String> {
            let mut command = cluster.command(gantry()?);
            command.current_dir(around).args(arguments);
            let (done, said) = within(Duration::from_secs(80), &mut command)?;
            ensure!(done, "{written}: {said}");
            Ok(said)
        };
        gantry_at(&["up", "--node-name", "node-1", "--data-dir", written])?;
        cluster.import_demo_images()?;
        let name = format!("p{number}");
        apply(
            &cluster,
            &pod(&name, &[shell("c", "sleep 3600")], &json!([])),
        )?;
        runs(&cluster, &name)?;
        gantry_at(&["down", "--data-dir", written])?;
    }
    let long = format!("{}/{}", around.display(), ["x"; 120].join("/"));
    let refused = [
        ("", "is empty"),
        ("/", "whole machine"),
        ("/proc/version", "/proc/version"),
        ("/proc/none", "/proc/none"),
        ("missing/../data", "without '..'"),
    ];
    for (written, words) in refused {
        for verb in ["up", "server", "agent"] {
            let mut command = cluster.command(gantry()?);
            command.args([verb, "--data-dir", written]);
            let (done, said) = within(Duration::from_secs(20), &mut command)?;
            ensure!(!done && said.contains(words), "{verb} {written:?}: {said}");
        }
    }
    // Longer than the address of a socket may be.
    let mut command = cluster.command(gantry()?);
    let (done, said) = within(
        Duration::from_secs(80),
        command.args(["up", "--node-name", "node-1", "--data-dir", &long]),
    )?;
    let (down, words) = within(
        Duration::from_secs(60),
        cluster
            .command(gantry()?)
            .args(["down", "--purge", "--data-dir", &long]),
    )?;
    ensure!(done && down, "{said}{words}");
    Ok(())
}

#[test]
fn row_27_files_without_content_are_named_or_made_anew() -> Result<()> {
    let cluster = Cluster::not_yet()?;
    let data_dir = cluster.data_dir();
    let directory = data_dir.display().to_string();
    let up = || {
        within(
            Duration::from_secs(80),
            cluster.command(gantry()?).args([
                "up",
                "--node-name",
                "node-1",
                "--data-dir",
                &directory,
            ]),
        )
    };
    let down = || cluster.gantry(&["down", "--data-dir", &directory]);
    let (done, said) = up()?;
    ensure!(done, "{said}");
    cluster.import_demo_images()?;
    down()?;
    let files = [
        "keys",
        "member.json",
        "pki/ca.crt",
        "pki/server.crt",
        "pki/server.key",
        "admin.kubeconfig",
        "gantry.pid",
        "agent/images/index.json",
        "agent/cluster.checkpoint",
        "agent/objects.checkpoint",
    ];
    for file in files {
        let path = data_dir.join(file);
        let before = fs::read(&path).with_context(|| format!("reading {file}"))?;
        for content in ["", "{}", "garbage\n"] {
            fs::write(&path, content)?;
            let (done, said) = up()?;
            let name = file.rsplit('/').next().unwrap_or(file);
            ensure!(
                done || said.contains(name),
                "{file} with {content:?} is not named: {said}"
            );
            down()?;
            println!(
                "{file} with {content:?}: {}",
                if done { "made anew" } else { "named" }
            );
        }
        fs::write(&path, before)?;
    }
    let (done, said) = up()?;
    ensure!(done, "{said}");
    down().map(drop)
}
