//! From a pod to its host: system settings, our own processes, our own program, what asks for isolation.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use gantry_e2e::{Cluster, TOOLS, eventually, gantry};
use serde_json::{Value, json};

/// More than enough for every test here to meet a moment that there is.
fn rounds() -> usize {
    match std::env::var("GANTRY_ATTACK").as_deref() {
        Ok("full") => 300,
        _ => 25,
    }
}

pub(super) fn started() -> Result<Cluster> {
    let cluster = Cluster::start()?;
    cluster.import_demo_images()?;
    Ok(cluster)
}

/// A pod of one container with the tools.
pub(super) fn pod(name: &str, mut spec: Value, container: Value) -> Value {
    let mut own = container;
    own["name"] = json!("main");
    own["image"] = json!(TOOLS);
    let containers = spec["containers"].as_array().cloned().unwrap_or_default();
    spec["containers"] = std::iter::once(own).chain(containers).collect();
    spec["terminationGracePeriodSeconds"] = json!(1);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn file(cluster: &Cluster, pod: &Value) -> Result<PathBuf> {
    let name = pod["metadata"]["name"].as_str().context("a name")?;
    let path = cluster.data_dir().join(format!("{name}.json"));
    fs::write(&path, pod.to_string())?;
    Ok(path)
}

pub(super) fn create(cluster: &Cluster, pod: &Value) -> Result<()> {
    let path = file(cluster, pod)?.display().to_string();
    cluster.kubectl(&["create", "-f", &path]).map(drop)
}

/// What the API says to a pod that it refuses.
pub(super) fn refused(cluster: &Cluster, pod: &Value) -> Result<String> {
    let path = file(cluster, pod)?.display().to_string();
    let (_, said) = cluster.fails(Path::new("kubectl"), &["create", "-f", &path])?;
    Ok(said)
}

pub(super) fn get(cluster: &Cluster, name: &str) -> Result<Value> {
    let text = cluster.kubectl(&["get", "pod", name, "-o", "json"])?;
    serde_json::from_str(&text).context("reading a pod")
}

pub(super) fn running(cluster: &Cluster, name: &str) -> Result<()> {
    eventually(&format!("pod {name} to run"), || {
        let status = get(cluster, name)?["status"].take();
        let all = status["containerStatuses"].as_array();
        let up = all.is_some_and(|all| all.iter().all(|one| one["state"]["running"].is_object()));
        ensure!(up, "{status}");
        Ok(())
    })
}

pub(super) fn exec(cluster: &Cluster, name: &str, script: &str) -> Result<String> {
    cluster.kubectl(&["exec", name, "-c", "main", "--", "sh", "-c", script])
}

fn gone(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.kubectl(&["delete", "pod", name, "--wait=false"])?;
    eventually(&format!("pod {name} to be gone"), || {
        let left = cluster.kubectl(&["get", "pod", name, "--ignore-not-found", "-o", "name"])?;
        ensure!(left.is_empty(), "{left} is left");
        Ok(())
    })
}

fn sysctls(pairs: &[(&str, &str)]) -> Value {
    let all: Vec<Value> = pairs
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    json!({"securityContext": {"sysctls": all}})
}

#[test]
fn row_01_a_pod_sets_safe_settings_of_its_own_namespaces_and_no_others() -> Result<()> {
    let host = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name));
    let watched = [
        "kernel/core_pattern",
        "kernel/shm_rmid_forced",
        "kernel/msgmax",
        "vm/swappiness",
        "net/ipv4/ip_unprivileged_port_start",
    ];
    let before: Vec<_> = watched.iter().map(|name| host(name).ok()).collect();
    let cluster = started()?;
    let forbidden = [
        ("kernel.core_pattern", "|/bin/sh"),
        ("kernel/core_pattern", "|/bin/sh"),
        ("kernel.msgmax", "1"),
        ("vm.swappiness", "1"),
        ("net.core.somaxconn", "1"),
        ("kernel.shm_rmid_forced/x", "1"),
    ];
    for (number, (name, value)) in forbidden.iter().enumerate() {
        let own = format!("forbidden-{number}");
        create(
            &cluster,
            &pod(
                &own,
                sysctls(&[("net.ipv4.tcp_syncookies", "1"), (name, value)]),
                json!({}),
            ),
        )?;
        eventually(&format!("{name} to be refused"), || {
            let status = get(&cluster, &own)?["status"].take();
            ensure!(
                status["phase"] == "Failed" && status["reason"] == "SysctlForbidden",
                "{status}"
            );
            let message = status["message"].as_str().unwrap_or_default();
            ensure!(
                message.contains("forbidden sysctl") && message.contains("not allowlisted"),
                "{message}"
            );
            Ok(())
        })?;
        gone(&cluster, &own)?;
    }
    for name in [
        "kernel.shm/../core_pattern",
        "net..core",
        "/kernel/core_pattern",
        "kernel.shm*",
        "../kernel.core_pattern",
    ] {
        let said = refused(&cluster, &pod("odd", sysctls(&[(name, "1")]), json!({})))?;
        ensure!(
            said.contains("must have at most 253 characters"),
            "{name}: {said}"
        );
    }
    for (field, name, host) in [
        (
            "hostNetwork",
            "net/ipv4/tcp_syncookies",
            "net.ipv4.tcp_syncookies",
        ),
        (
            "hostIPC",
            "kernel.shm_rmid_forced",
            "kernel.shm_rmid_forced",
        ),
    ] {
        for name in [name, host] {
            let mut spec = sysctls(&[(name, "1")]);
            spec[field] = json!(true);
            let said = refused(&cluster, &pod("shared", spec, json!({})))?;
            ensure!(
                said.contains(&format!("may not be specified when '{field}' is true")),
                "{said}"
            );
        }
    }
    let safe = sysctls(&[
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("kernel/shm_rmid_forced", "1"),
        ("net.ipv4.tcp_rmem", "4096 65536 80000"),
    ]);
    create(&cluster, &pod("safe", safe, json!({})))?;
    running(&cluster, "safe")?;
    let seen = exec(
        &cluster,
        "safe",
        "cd /proc/sys && cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced net/ipv4/tcp_rmem",
    )?;
    ensure!(seen == "77\n1\n4096\t65536\t80000\n", "{seen:?}");
    let after: Vec<_> = watched.iter().map(|name| host(name).ok()).collect();
    ensure!(
        before == after,
        "the host's settings changed: {before:?}, {after:?}"
    );
    Ok(())
}

/// The attacker's program, its marker on the host and what it says, shared with a pod as `/attack`.
struct Snoop {
    directory: tempfile::TempDir,
}

impl Snoop {
    fn build() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks/snoop.c");
        let built = Command::new("cc")
            .args(["-O2", "-Wall", "-static", "-o"])
            .arg(directory.path().join("snoop"))
            .arg(source)
            .status()
            .context("running cc: install gcc and libc6-dev, as 'make test' does")?;
        ensure!(built.success(), "cc failed");
        fs::write(directory.path().join("marker"), "of the host")?;
        Ok(Self { directory })
    }

    fn volumes(&self) -> Value {
        json!([{"name": "attack", "hostPath": {"path": self.directory.path()}}])
    }

    /// A container that snoops until it is told to stop.
    fn container(&self, capabilities: &[&str]) -> Result<Value> {
        let marker = self.directory.path().join("marker");
        let size = fs::metadata(gantry()?)?.len();
        let command = format!(
            "/attack/snoop {} {size} /attack/done > /attack/said",
            marker.display()
        );
        Ok(json!({
            "command": ["sh", "-c", format!("{command}; sleep 1000")],
            "volumeMounts": [{"name": "attack", "mountPath": "/attack"}],
            "securityContext": {"capabilities": {"add": capabilities}},
        }))
    }

    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.path().join("said")).unwrap_or_default())
    }

    fn looking(&self) -> Result<()> {
        eventually("the attacker to look", || {
            ensure!(self.said()?.contains("READY"), "not yet");
            Ok(())
        })
    }

    /// What it found, all of it.
    fn found(&self) -> Result<Vec<String>> {
        fs::write(self.directory.path().join("done"), "")?;
        let said = self.said()?;
        let finds = said.lines().filter(|line| {
            !["READY", "NEW", "MET"]
                .iter()
                .any(|word| line.starts_with(word))
        });
        Ok(finds.map(str::to_owned).collect())
    }

    fn count(&self, word: &str) -> Result<usize> {
        Ok(self
            .said()?
            .lines()
            .filter(|line| line.starts_with(word))
            .count())
    }
}

#[test]
fn row_02_what_holds_a_shared_pid_namespace_gives_an_attacker_nothing() -> Result<()> {
    let cluster = started()?;
    let snoop = Snoop::build()?;
    // A neighbour that starts again and again: its beginning is as interesting as the process that is always there.
    let neighbour =
        json!({"name": "restless", "image": TOOLS, "command": ["sh", "-c", "sleep 0.2; exit 1"]});
    let spec = json!({"shareProcessNamespace": true, "volumes": snoop.volumes(), "containers": [neighbour]});
    create(
        &cluster,
        &pod("shared", spec, snoop.container(&["SYS_PTRACE"])?),
    )?;
    snoop.looking()?;
    let holder = exec(
        &cluster,
        "shared",
        "cat /proc/1/status; ls /proc/1/root/ /proc/1/fd /proc/1/cwd/; cat /proc/1/environ; cat /proc/1/mountinfo; ls -l /proc/1/exe",
    )?;
    let field = |name: &str| {
        holder
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure!(field(set) == Some("0000000000000000"), "{holder}");
    }
    ensure!(
        field("Seccomp:") == Some("2") && field("NoNewPrivs:") == Some("1"),
        "{holder}"
    );
    ensure!(
        field("Uid:") == Some("65535\t65535\t65535\t65535"),
        "{holder}"
    );
    ensure!(
        !holder.contains("HOME=") && !holder.contains("/etc"),
        "{holder}"
    );
    for refused in [
        "busybox touch /proc/1/root/x",
        "busybox chmod 0 /proc/1/root",
        "busybox chmod 0777 /proc/1/exe",
    ] {
        ensure!(
            exec(&cluster, "shared", refused).is_err(),
            "{refused} succeeded"
        );
    }
    eventually("the neighbour to start again", || {
        let statuses = get(&cluster, "shared")?["status"]["containerStatuses"].take();
        let restarts = statuses
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|one| one["restartCount"].as_u64())
            .max();
        ensure!(restarts >= Some(2), "{statuses}");
        Ok(())
    })?;
    for _ in 0..rounds() {
        cluster.kubectl(&["exec", "shared", "-c", "main", "--", "echo", "hello"])?;
    }
    let found = snoop.found()?;
    ensure!(found.is_empty(), "an attacker finds {found:?}");
    ensure!(
        snoop.count("NEW")? > rounds() / 2,
        "the attacker saw hardly anything: {}",
        snoop.said()?
    );
    Ok(())
}

#[test]
fn row_03_commands_and_probes_give_up_everything_before_they_can_be_attached_to() -> Result<()> {
    let cluster = started()?;
    let snoop = Snoop::build()?;
    let mut container = snoop.container(&["SYS_PTRACE"])?;
    container["livenessProbe"] = json!({"exec": {"command": ["echo", "alive"]}, "periodSeconds": 1, "failureThreshold": 100});
    container["lifecycle"] = json!({"postStart": {"exec": {"command": ["echo", "begun"]}}});
    create(
        &cluster,
        &pod("probed", json!({"volumes": snoop.volumes()}), container),
    )?;
    snoop.looking()?;
    for round in 0..rounds() {
        cluster.kubectl(&[
            "exec",
            "probed",
            "--",
            "sh",
            "-c",
            &format!("exit $((0 * {round}))"),
        ])?;
    }
    // With a terminal and with input, for both are set up in other ways.
    let said = cluster.gantry(&[
        "exec",
        "probed",
        "--",
        "sh",
        "-c",
        "ls -l /proc/self/fd/0 /proc/self/fd/1",
    ])?;
    ensure!(
        !said.contains("/dev/null"),
        "a file of the host is a command's: {said}"
    );
    let found = snoop.found()?;
    ensure!(found.is_empty(), "an attacker finds {found:?}");
    ensure!(
        snoop.count("NEW")? > rounds() / 2,
        "the attacker saw hardly anything: {}",
        snoop.said()?
    );
    Ok(())
}

#[test]
fn row_04_our_program_cannot_be_changed_from_a_pod() -> Result<()> {
    let cluster = started()?;
    let facts = || -> Result<_> {
        let meta = fs::metadata(gantry()?)?;
        let who = (meta.mode(), meta.uid(), meta.gid());
        Ok((who, meta.len(), meta.mtime()))
    };
    let before = facts()?;
    // Whoever may trace others meets it before it executes a command; anybody does who makes it the interpreter of a
    // script, where it needs no libraries that the image lacks.
    for (name, capabilities) in [("default", [].as_slice()), ("tracing", &["SYS_PTRACE"])] {
        let snoop = Snoop::build()?;
        let script = snoop.directory.path().join("run");
        fs::write(&script, "#!/proc/self/exe\n")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let spec = json!({"volumes": snoop.volumes()});
        create(&cluster, &pod(name, spec, snoop.container(capabilities)?))?;
        snoop.looking()?;
        for _ in 0..rounds() {
            // It is no command of ours, and says so.
            let script = ["exec", name, "--", "/attack/run"];
            cluster.fails(Path::new("kubectl"), &script)?;
        }
        let found = snoop.found()?;
        ensure!(found.is_empty(), "an attacker finds {found:?}");
        let met = snoop.count("MET")?;
        ensure!(
            met > 0 || capabilities.is_empty(),
            "the attacker never saw our program: {}",
            snoop.said()?
        );
        exec(&cluster, name, "true").context("after the attack")?;
    }
    ensure!(before == facts()?, "the host's program was changed");
    Ok(())
}

pub(super) fn events(cluster: &Cluster, name: &str) -> Result<String> {
    let selector = format!("involvedObject.name={name}");
    cluster.kubectl(&[
        "get",
        "events",
        "--field-selector",
        &selector,
        "-o",
        "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}",
    ])
}

#[test]
fn row_06_a_field_that_asks_for_isolation_is_honoured_or_the_pod_is_refused() -> Result<()> {
    let cluster = started()?;
    let context = |field: Value| json!({"securityContext": field});
    let none = || json!({});
    let waits = [
        (
            "windows",
            none(),
            context(json!({"windowsOptions": {"runAsUserName": "x"}})),
            "windowsOptions",
        ),
        (
            "filter",
            none(),
            context(
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "missing.json"}}),
            ),
            "missing.json",
        ),
        (
            "filter-pod",
            context(
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "none/missing.json"}}),
            ),
            none(),
            "missing.json",
        ),
    ];
    for (name, spec, container, _) in &waits {
        create(&cluster, &pod(name, spec.clone(), container.clone()))?;
    }
    for (name, spec, container) in [
        (
            "armour",
            none(),
            context(json!({"appArmorProfile": {"type": "RuntimeDefault"}})),
        ),
        (
            "armour-pod",
            context(
                json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "missing"}}),
            ),
            none(),
        ),
    ] {
        create(&cluster, &pod(name, spec, container))?;
        eventually("a profile to be missed", || {
            let status = get(&cluster, name)?["status"].take();
            ensure!(
                status["phase"] == "Failed" && status["reason"] == "AppArmor",
                "{status}"
            );
            Ok(())
        })?;
    }
    for (name, _, _, word) in &waits {
        eventually(&format!("pod {name} to be told why"), || {
            let said = events(&cluster, name)?;
            ensure!(said.contains(word), "{said}");
            Ok(())
        })?;
        let status = get(&cluster, name)?["status"].take();
        let ran = status["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|one| {
                one["state"]["running"].is_object()
                    || !one["state"]["running"]["startedAt"].is_null()
            });
        ensure!(!ran, "{name} runs: {status}");
    }
    let said = refused(
        &cluster,
        &pod("proc", none(), context(json!({"procMount": "Unmasked"}))),
    )?;
    ensure!(said.contains("procMount"), "{said}");
    // What is honoured, seen from inside.
    let strict = json!({"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 7, "capabilities": {"drop": ["ALL"]}});
    create(&cluster, &pod("strict", none(), context(strict)))?;
    running(&cluster, "strict")?;
    let status = exec(
        &cluster,
        "strict",
        "cat /proc/self/status; echo x > /x || echo read-only",
    )?;
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapBnd:\t0000000000000000",
        "Uid:\t7",
        "read-only",
    ] {
        ensure!(status.contains(line), "no {line:?} in {status}");
    }
    Ok(())
}

/// Pids of the processes whose command line has all of these.
fn processes(words: &[&str]) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        words.iter().all(|word| line.contains(word))
    })
    .collect()
}

fn uid(cluster: &Cluster, name: &str) -> Result<String> {
    cluster.kubectl(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"])
}

#[test]
fn row_08_a_tunnel_device_does_not_open() -> Result<()> {
    let cluster = started()?;
    let container = json!({"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}});
    create(&cluster, &pod("tunnel", json!({}), container))?;
    running(&cluster, "tunnel")?;
    for (device, numbers) in [
        ("tun", "10 200"),
        ("mem", "1 1"),
        ("fuse", "10 229"),
        ("kmsg", "1 11"),
    ] {
        let script = format!(
            "busybox mknod /tmp-{device} c {numbers} && echo made; (: 3<> /tmp-{device}) 2>&1 && echo opened; true"
        );
        let said = exec(&cluster, "tunnel", &script)?;
        ensure!(
            said.contains("made") && !said.contains("opened"),
            "{device}: {said}"
        );
    }
    let own = "for name in null zero full random urandom; do (: 3< /dev/$name) || echo no $name; done; echo x > /dev/null";
    let said = exec(&cluster, "tunnel", own)?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

#[test]
fn row_08_a_pod_goes_whose_shim_is_stopped_or_dead() -> Result<()> {
    let cluster = started()?;
    for (name, signal) in [("stopped", "STOP"), ("dead", "KILL")] {
        create(
            &cluster,
            &pod(
                name,
                json!({}),
                json!({"command": ["sh", "-c", "trap '' TERM; while :; do sleep 1000; done"]}),
            ),
        )?;
        running(&cluster, name)?;
        let uid = uid(&cluster, name)?;
        let shims = processes(&["__gantry-shim", &uid]);
        let [shim] = shims[..] else {
            bail!("shims: {shims:?}")
        };
        cluster.output("kill", &[&format!("-{signal}"), &shim.to_string()])?;
        gone(&cluster, name)?;
        eventually("nothing of the pod to be left", || {
            ensure!(
                processes(&[&uid]).is_empty(),
                "processes: {:?}",
                processes(&[&uid])
            );
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            ensure!(!mounts.contains(&uid), "mounts of {uid} are left");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn row_08_a_container_that_is_refused_leaves_no_mount() -> Result<()> {
    let cluster = started()?;
    let refused = [
        ("root", json!({"securityContext": {"runAsNonRoot": true}})),
        ("command", json!({"command": ["/not/there"]})),
        (
            "filter",
            json!({"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "missing.json"}}}),
        ),
        (
            "capability",
            json!({"securityContext": {"capabilities": {"add": ["FLY"]}}}),
        ),
        (
            "directory",
            json!({"command": ["sh"], "workingDir": "/proc/self/fd/9"}),
        ),
    ];
    for (name, container) in &refused {
        create(
            &cluster,
            &pod(name, json!({"restartPolicy": "Never"}), container.clone()),
        )?;
    }
    let data = cluster.data_dir().display().to_string();
    for (name, _) in &refused {
        eventually(&format!("container {name} to be refused"), || {
            let said = events(&cluster, name)?;
            ensure!(said.contains("Error: "), "{said}");
            Ok(())
        })?;
        let uid = uid(&cluster, name)?;
        eventually("no root file system to be left", || {
            let mounts = fs::read_to_string("/proc/self/mountinfo")?;
            let left: Vec<&str> = mounts
                .lines()
                .filter(|line| {
                    line.contains(" - overlay ") && line.contains(&data) && line.contains(&uid)
                })
                .collect();
            ensure!(left.is_empty(), "{name}: {left:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Where a pod's emptyDir is on this machine.
fn empty_dir(cluster: &Cluster, uid: &str, name: &str) -> PathBuf {
    let pods = cluster.data_dir().join("agent/pods");
    pods.join(uid)
        .join("volumes/kubernetes.io~empty-dir")
        .join(name)
}

#[test]
fn row_28_containers_read_what_we_write_and_write_what_is_theirs() -> Result<()> {
    let cluster = started()?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"k": "1"}});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "1"}});
    create(&cluster, &map)?;
    create(&cluster, &secret)?;
    let item = json!([{"path": "k", "fieldRef": {"fieldPath": "metadata.name"}}]);
    let volumes = json!([
        {"name": "map", "configMap": {"name": "m"}},
        {"name": "secret", "secret": {"secretName": "s"}},
        {"name": "projected", "projected": {"sources": [{"configMap": {"name": "m"}}]}},
        {"name": "downward", "downwardAPI": {"items": item}},
        {"name": "empty", "emptyDir": {}}]);
    let written = ["map", "secret", "projected", "downward"];
    let mut mounts: Vec<Value> = written
        .iter()
        .map(|name| json!({"name": name, "mountPath": format!("/{name}")}))
        .collect();
    mounts.extend([
        json!({"name": "map", "mountPath": "/file", "subPath": "k"}),
        json!({"name": "empty", "mountPath": "/empty"}),
        json!({"name": "empty", "mountPath": "/part", "subPath": "made/here"}),
    ]);
    let container = json!({"volumeMounts": mounts});
    create(
        &cluster,
        &pod("reader", json!({"volumes": volumes}), container),
    )?;
    running(&cluster, "reader")?;
    let script = "for name in map secret projected downward; do
        cat /$name/k > /dev/null || echo cannot read $name
        busybox mkfifo /$name/pipe && echo made a pipe in $name
        busybox ln -s / /$name/link && echo made a link in $name
        echo x > /$name/k && echo wrote to $name
        busybox rm /$name/..data && echo took $name apart
    done 2> /dev/null
    (echo x > /file) 2> /dev/null && echo wrote to a file
    echo x > /part/file && busybox cmp /part/file /empty/made/here/file";
    let said = exec(&cluster, "reader", script)?;
    ensure!(said.is_empty(), "{said}");
    // Nor does who is not root find a part of a volume closed.
    let spec = json!({
        "volumes": [{"name": "empty", "emptyDir": {}}],
        "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000},
    });
    let container = json!({
        "env": [{"name": "PART", "value": "by/name"}],
        "securityContext": {"readOnlyRootFilesystem": true},
        "volumeMounts": [
            {"name": "empty", "mountPath": "/part", "subPath": "made/here"},
            {"name": "empty", "mountPath": "/named", "subPathExpr": "$(PART)"},
        ],
    });
    create(&cluster, &pod("user", spec, container))?;
    running(&cluster, "user")?;
    let script = "for part in /part /named; do
        busybox touch $part/file && busybox stat -c '%u:%g' $part/file
    done";
    let said = exec(&cluster, "user", script)?;
    ensure!(said == "1000:2000\n1000:2000\n", "{said}");
    let uid = uid(&cluster, "reader")?;
    gone(&cluster, "reader")?;
    eventually("nothing of the pod to be mounted", || {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&uid), "mounts of {uid} are left");
        Ok(())
    })
}

#[test]
fn row_28_what_a_pod_leaves_goes_however_deep_it_is() -> Result<()> {
    let cluster = started()?;
    let volumes = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
    create(&cluster, &pod("deep", volumes, json!({})))?;
    running(&cluster, "deep")?;
    let uid = uid(&cluster, "deep")?;
    let volume = empty_dir(&cluster, &uid, "v");
    // As the pod could, by 'mkdir d; cd d' over and over.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let (none, all) = (rustix::fs::Mode::empty(), rustix::fs::Mode::RWXU);
    let mut current = rustix::fs::open(&volume, flags, none).context("opening the volume")?;
    for _ in 0..60_000 {
        rustix::fs::mkdirat(&current, "d", all)?;
        current = rustix::fs::openat(&current, "d", flags, none)?;
    }
    drop(current);
    gone(&cluster, "deep")?;
    eventually("the volume to be removed", || {
        let path = volume.display().to_string();
        cluster.output("test", &["!", "-e", &path]).map(drop)
    })?;
    create(&cluster, &pod("next", json!({}), json!({})))?;
    running(&cluster, "next").context("after the deep tree")
}
