//! What every process of ours may do, beside what the table says.
//!
//! `UPDATE_PRIVILEGES=1` writes the table anew, for whoever has changed one of them on purpose. Helpers that create
//! containers and execute commands live too short to be read from outside: what a container can see of them is tested
//! from inside, by `row_02` and `row_03`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, TOOLS, eventually, gantry};
use serde_json::json;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attacks/privileges.txt");

/// A child that ends with the value.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

struct Process {
    pid: i32,
    parent: i32,
    command: String,
    status: String,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let command = read("cmdline")?;
        let status = String::from_utf8_lossy(&read("status")?).into_owned();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
        Some(Self {
            pid,
            parent: parent.trim().parse().ok()?,
            command: String::from_utf8_lossy(&command).replace('\0', " "),
            status,
        })
    }

    fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }

    fn field(&self, name: &str) -> &str {
        let found = self.status.lines().find_map(|line| line.strip_prefix(name));
        found.unwrap_or_default().trim()
    }

    fn link(&self, name: &str) -> String {
        let link = fs::read_link(format!("/proc/{}/{name}", self.pid)).unwrap_or_default();
        link.display().to_string()
    }

    /// Containers and what is executed in them are in groups of their own, below their pod's.
    fn is_container(&self) -> bool {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        groups
            .lines()
            .filter(|line| line.contains(":memory:") || line.starts_with("0::/gantry"))
            .any(|line| line.contains("/gantry/") && !line.ends_with("/shim"))
    }

    fn kind(&self) -> String {
        for (word, kind) in [
            ("__gantry-shim", "shim"),
            ("__gantry-pause", "holder of a shared pid namespace"),
            ("__gantry-", "helper"),
            (" up ", "server and agent"),
        ] {
            if self.command.contains(word) {
                return kind.to_owned();
            }
        }
        let program = self.command.split(' ').next().unwrap_or_default();
        program.rsplit('/').next().unwrap_or_default().to_owned()
    }

    fn capabilities(&self, all: &str) -> String {
        let sets = [
            ("effective", "CapEff:"),
            ("permitted", "CapPrm:"),
            ("inheritable", "CapInh:"),
            ("bounding", "CapBnd:"),
            ("ambient", "CapAmb:"),
        ];
        let words = sets.map(|(set, field)| {
            let bits = self.field(field);
            let word = match bits {
                bits if bits.bytes().all(|digit| digit == b'0') => "none",
                bits if bits == all => "all",
                bits => bits,
            };
            format!("{set} {word}")
        });
        words.join(", ")
    }

    fn root(&self) -> Result<&'static str> {
        let root = format!("/proc/{}/root/", self.pid);
        let (own, host) = (fs::metadata(&root)?, fs::metadata("/")?);
        Ok(if (own.dev(), own.ino()) == (host.dev(), host.ino()) {
            "the host's"
        } else if fs::read_dir(&root)?.next().is_none() {
            "empty"
        } else {
            "another"
        })
    }

    fn namespaces(&self, host: &Self) -> String {
        let kinds = ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"];
        let own = kinds.iter().filter(|kind| {
            let name = format!("ns/{kind}");
            self.link(&name) != host.link(&name)
        });
        let own: Vec<&str> = own.copied().collect();
        match own.is_empty() {
            true => "the node's".to_owned(),
            false => format!("of its own or its pod's: {}", own.join(", ")),
        }
    }

    fn program(&self) -> Result<&'static str> {
        let mount = rustix::fs::statvfs(format!("/proc/{}/exe", self.pid))?;
        let sealed = mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
        Ok(if sealed { "sealed" } else { "as installed" })
    }

    /// Whether root may look into it (program, memory, descriptors: the kernel asks the same of each) without being allowed
    /// to trace.
    fn readable(&self) -> Result<&'static str> {
        let output = Command::new("setpriv")
            .args(["--bounding-set", "-sys_ptrace", "readlink"])
            .arg(format!("/proc/{}/exe", self.pid))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("running setpriv")?;
        Ok(if output.success() { "yes" } else { "no" })
    }

    fn descriptors(&self) -> Result<BTreeSet<String>> {
        let mut kinds = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid))?.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let target = target.display().to_string();
            let kind = match target.split(':').next().unwrap_or_default() {
                "/dev/null" => "null",
                "/" => "its program",
                "anon_inode" => target
                    .trim_start_matches("anon_inode:")
                    .trim_matches(['[', ']']),
                path if path.starts_with("/run/netns/") => "namespace",
                "net" | "uts" | "ipc" | "pid" | "mnt" => "namespace",
                path if path.starts_with('/') => "file",
                kind => kind,
            };
            kinds.insert(kind.to_owned());
        }
        Ok(kinds)
    }
}

type Rows = BTreeMap<String, BTreeMap<&'static str, BTreeSet<String>>>;

/// Adds what is true of a process to what is true of others of its kind.
fn add(rows: &mut Rows, process: &Process, host: &Process, all: &str) -> Result<()> {
    let kind = process.kind();
    let row = rows.entry(kind.clone()).or_default();
    let mut say = |name: &'static str, value: String| row.entry(name).or_default().insert(value);
    let one = |name: &str| {
        process
            .field(name)
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    say("user", format!("{}:{}", one("Uid:"), one("Gid:")));
    say("capabilities", process.capabilities(all));
    say(
        "system calls",
        match process.field("Seccomp:") {
            "2" => "filtered",
            _ => "all",
        }
        .to_owned(),
    );
    say(
        "new privileges",
        match process.field("NoNewPrivs:") {
            "1" => "never",
            _ => "possible",
        }
        .to_owned(),
    );
    say("readable by root", process.readable()?.to_owned());
    say("root directory", process.root()?.to_owned());
    say("namespaces", process.namespaces(host));
    say("program", process.program()?.to_owned());
    let descriptors = process.descriptors()?;
    let row = rows
        .entry(kind)
        .or_default()
        .entry("descriptors")
        .or_default();
    row.extend(descriptors);
    Ok(())
}

fn text(rows: &Rows) -> String {
    let mut text = String::new();
    for (kind, facts) in rows {
        text.push_str(&format!("{kind}\n"));
        for (name, values) in facts {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let values = if values.is_empty() {
                "none".to_owned()
            } else {
                values.join(", ")
            };
            text.push_str(&format!("  {name:<18}{values}\n"));
        }
    }
    text
}

fn busy() -> Result<(Cluster, Vec<Guard>)> {
    let cluster = Cluster::start()?;
    cluster.import_demo_images()?;
    let probe = json!({"exec": {"command": ["echo", "alive"]}, "periodSeconds": 1});
    let container = |name: &str| json!({"name": name, "image": TOOLS, "livenessProbe": probe});
    let pod = |name: &str, spec: serde_json::Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    let pods = [
        pod(
            "plain",
            json!({"containers": [container("one"), container("two")]}),
        ),
        pod(
            "shared",
            json!({"shareProcessNamespace": true, "containers": [container("one"), container("two")]}),
        ),
        pod(
            "of-the-host",
            json!({"hostNetwork": true, "hostIPC": true, "hostPID": true, "containers": [container("one")]}),
        ),
        pod(
            "set",
            json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "1"}]}, "containers": [container("one")]}),
        ),
    ];
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let file = cluster.data_dir().join(format!("{name}.json"));
        fs::write(&file, pod.to_string())?;
        cluster.kubectl(&["create", "-f", &file.display().to_string()])?;
    }
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "--timeout=90s",
    ])?;
    let mut guards = Vec::new();
    let sessions: [(&Path, &[&str]); 3] = [
        (
            Path::new("kubectl"),
            &["exec", "plain", "-c", "one", "--", "sleep", "1000"],
        ),
        (
            Path::new("kubectl"),
            &["exec", "shared", "-c", "two", "--", "sleep", "1000"],
        ),
        (
            Path::new("kubectl"),
            &["port-forward", "pod/plain", ":8080"],
        ),
    ];
    for (program, arguments) in sessions {
        let child = cluster
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        guards.push(Guard(child));
    }
    eventually("the commands to run", || {
        let found = Process::all()
            .iter()
            .filter(|process| process.command.trim() == "sleep 1000" && process.is_container())
            .count();
        ensure!(found >= 2, "{found} of them");
        Ok(())
    })?;
    Ok((cluster, guards))
}

#[test]
fn every_process_of_ours_has_the_privileges_of_the_table() -> Result<()> {
    let (cluster, _guards) = busy()?;
    let own = Process::read(i32::try_from(std::process::id())?).context("this process")?;
    let all = own.field("CapBnd:").to_owned();
    let data = cluster.data_dir().display().to_string();
    let gantry = gantry()?.display().to_string();
    let processes = Process::all();
    let main = processes
        .iter()
        .find(|process| process.command.starts_with(&gantry) && process.command.contains(&data))
        .context("the cluster's process")?;
    let mut family: BTreeSet<i32> = BTreeSet::from([main.pid]);
    loop {
        let more: Vec<i32> = processes
            .iter()
            .filter(|process| family.contains(&process.parent) && !process.is_container())
            .map(|process| process.pid)
            .filter(|pid| !family.contains(pid))
            .collect();
        if more.is_empty() {
            break;
        }
        family.extend(more);
    }
    let mut rows = Rows::new();
    for process in processes
        .iter()
        .filter(|process| family.contains(&process.pid))
    {
        // Helpers and nft come and go: what is read of one may be of two moments of its life. What is ending has no
        // command line any more.
        let passing = matches!(process.kind().as_str(), "helper" | "nft" | "");
        if passing || process.field("State:").starts_with('Z') {
            continue;
        }
        let added = add(&mut rows, process, main, &all);
        if Process::read(process.pid).is_some() {
            added.with_context(|| format!("reading {}", process.command))?;
        }
    }
    let found = text(&rows);
    if std::env::var_os("UPDATE_PRIVILEGES").is_some() {
        fs::write(TABLE, &found)?;
    }
    let table = fs::read_to_string(TABLE).context("reading the table")?;
    let mut differences = String::new();
    let named = |text: &str| -> BTreeSet<String> {
        let mut kind = String::new();
        let lines = text.lines().map(|line| {
            if !line.starts_with(' ') {
                kind = line.to_owned();
            }
            format!("{kind}: {}", line.trim())
        });
        lines.collect()
    };
    let (wanted, got) = (named(&table), named(&found));
    // Of descriptors the table says which there may be: a shim has one of a container while it starts a command in it.
    let allowed = |line: &String| {
        let parts = |line: &str| -> Option<(String, BTreeSet<String>)> {
            let (kind, kinds) = line.split_once(": descriptors")?;
            let kinds = kinds.split(',').map(|kind| kind.trim().to_owned());
            Some((kind.to_owned(), kinds.collect()))
        };
        parts(line).is_some_and(|(kind, found)| {
            let known = wanted.iter().filter_map(|line| parts(line));
            known
                .filter(|(known, _)| *known == kind)
                .any(|(_, listed)| found.is_subset(&listed))
        })
    };
    for line in wanted
        .difference(&got)
        .filter(|line| !line.contains(": descriptors"))
    {
        differences.push_str(&format!("- {line}\n"));
    }
    for line in got.difference(&wanted).filter(|line| !allowed(line)) {
        differences.push_str(&format!("+ {line}\n"));
    }
    ensure!(
        differences.is_empty(),
        "privileges differ from {TABLE} (-), they are (+):\n{differences}"
    );
    Ok(())
}
