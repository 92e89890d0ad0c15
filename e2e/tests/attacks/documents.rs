//! Bodies that cost more to read than to send.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, eventually};
use serde_json::{Value, json};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const JSON_PATCH: &str = "application/json-patch+json";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// How long any of these requests may take: what is refused is refused soon, on a busy machine in a debug build as well.
const SOON: Duration = Duration::from_secs(20);

/// A cluster and plain HTTP to its API, as its administrator.
struct Target {
    cluster: Cluster,
    proxy: Child,
    files: tempfile::TempDir,
}

impl Target {
    fn start() -> Result<Self> {
        let cluster = Cluster::start()?;
        let proxy = cluster
            .command("kubectl")
            .args(["proxy", "--port=8001"])
            .stdout(Stdio::null())
            .spawn()
            .context("starting kubectl proxy")?;
        let target = Self {
            cluster,
            proxy,
            files: tempfile::tempdir()?,
        };
        eventually("the proxy to answer", || target.get("/healthz"))?;
        Ok(target)
    }

    fn curl(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.command("curl");
        command.args(["-sS", "--max-time", "120"]).args(arguments);
        command
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        self.send("GET", path, JSON, "")
    }

    /// Sends a body; the answer's code and text.
    fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: impl AsRef<[u8]>,
    ) -> Result<(u16, String)> {
        let file = tempfile::NamedTempFile::new_in(self.files.path())?;
        std::fs::write(file.path(), body)?;
        let data = format!("@{}", file.path().display());
        let content_type = format!("Content-Type: {content_type}");
        let url = format!("http://127.0.0.1:8001{path}");
        let mut arguments = vec![
            "-X",
            method,
            "-H",
            &content_type,
            "-w",
            "\n%{http_code}",
            &url,
        ];
        if method != "GET" {
            arguments.extend(["--data-binary", &data]);
        }
        let output = self.curl(&arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, code) = text.rsplit_once('\n').with_context(|| {
            format!(
                "no answer from {path}: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        let code = code.parse()?;
        ensure!(
            code != 0,
            "no answer from {path}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok((code, answer.to_owned()))
    }

    /// A body must be refused with one of these codes, soon.
    fn refused(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: impl AsRef<[u8]>,
        codes: &[u16],
    ) -> Result<String> {
        let body = body.as_ref();
        let start = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let started = Instant::now();
        let (code, answer) = self.send(method, path, content_type, body)?;
        let shown: String = answer.chars().take(400).collect();
        ensure!(
            codes.contains(&code),
            "{method} {path} with {start}: {code} {shown}"
        );
        ensure!(
            started.elapsed() < SOON,
            "{start} took {:?}",
            started.elapsed()
        );
        Ok(answer)
    }

    /// The most memory that the server has had, in MiB.
    fn peak_memory(&self) -> Result<u64> {
        let data_dir = self.cluster.data_dir().display().to_string();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            if !arguments.contains(" up --foreground") || !arguments.contains(&data_dir) {
                continue;
            }
            let status = std::fs::read_to_string(entry.path().join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kibibytes = line.and_then(|line| line.split_whitespace().next());
            return Ok(kibibytes.context("VmHWM")?.parse::<u64>()? >> 10);
        }
        anyhow::bail!("no process of {data_dir}")
    }

    fn config_map(&self, name: &str, data: &Value) -> Result<()> {
        let object = json!({"metadata": {"name": name}, "data": data});
        let (code, answer) = self.send("POST", CONFIG_MAPS, JSON, object.to_string())?;
        ensure!(code == 201, "{answer}");
        Ok(())
    }

    /// The longest that another client waits for an answer while something is done.
    fn waits_during(&self, attack: impl Fn() -> Result<()> + Sync) -> Result<Duration> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let attackers = [scope.spawn(&attack), scope.spawn(&attack)];
            let other = scope.spawn(|| -> Result<Duration> {
                let mut longest = Duration::ZERO;
                while !over.load(Ordering::Acquire) {
                    let started = Instant::now();
                    let (code, answer) = self.get("/api/v1/namespaces/default")?;
                    ensure!(code == 200, "{answer}");
                    longest = longest.max(started.elapsed());
                }
                Ok(longest)
            });
            let results: Vec<_> = attackers
                .into_iter()
                .map(|attacker| attacker.join())
                .collect();
            over.store(true, Ordering::Release);
            for result in results {
                result.expect("no panic")?;
            }
            other.join().expect("no panic")
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.proxy.kill().ok();
        self.proxy.wait().ok();
    }
}

#[test]
fn row_19_patches_neither_nest_nor_multiply_an_object() -> Result<()> {
    let target = Target::start()?;
    target.config_map("victim", &json!({"large": "x".repeat(200_000)}))?;
    let path = format!("{CONFIG_MAPS}/victim");
    let doubling: Vec<Value> = (0..15)
        .map(|at| {
            let innermost = "/b".repeat((1 << at) - 1);
            json!({"op": "copy", "from": "/data", "path": format!("/data{innermost}/b")})
        })
        .collect();
    let multiplied: Vec<Value> = (0..20)
        .map(|at| json!({"op": "copy", "from": "/data/large", "path": format!("/data/c{at}")}))
        .collect();
    let mut moved: Vec<Value> = (0..4_000)
        .map(|at| json!({"op": "add", "path": format!("/data/m{at}"), "value": {}}))
        .collect();
    moved.extend((1..4_000).map(|at| {
        json!({"op": "move", "from": format!("/data/m{}", at - 1), "path": format!("/data/m{at}/x")})
    }));
    for operations in [doubling, multiplied, moved] {
        target.refused(
            "PATCH",
            &path,
            JSON_PATCH,
            json!(operations).to_string(),
            &[422],
        )?;
    }
    let many = vec![json!({"op": "test", "path": "/data/a", "value": 1}); 10_001];
    let answer = target.refused("PATCH", &path, JSON_PATCH, json!(many).to_string(), &[413])?;
    ensure!(
        answer.contains("The allowed maximum operations in a JSON patch is 10000, got 10001"),
        "{answer}"
    );

    let depth = 100_000;
    let deep = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let lists = format!("{{\"data\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    for media_type in [
        JSON_PATCH,
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ] {
        for body in [&deep, &lists] {
            target.refused("PATCH", &path, media_type, body, &[400, 422])?;
        }
    }
    for body in [&deep, &lists] {
        for media_type in [JSON, YAML] {
            // JSON that nobody asks for is skipped: then the name is missing.
            target.refused("POST", CONFIG_MAPS, media_type, body, &[400, 422])?;
        }
    }
    let mut nested = Vec::new();
    for _ in 0..2_000 {
        drop(nested.splice(0..0, length_delimited(nested.len())));
    }
    let groups = [vec![0x0b; depth], vec![0x0c; depth]].concat();
    for object in [nested, groups] {
        let mut body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap".to_vec();
        body.push(0x12);
        varint(object.len(), &mut body);
        body.extend(object);
        // Fields that nobody knows are skipped, however they look: such an object only lacks a name.
        target.refused("POST", CONFIG_MAPS, PROTOBUF, body, &[400, 422])?;
    }
    ensure!(target.get("/healthz")?.0 == 200, "the server died");
    let peak = target.peak_memory()?;
    ensure!(peak < 1024, "{peak} MiB");
    Ok(())
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The beginning of field 1 with that many bytes.
fn length_delimited(length: usize) -> Vec<u8> {
    let mut start = vec![0x0a];
    varint(length, &mut start);
    start
}

#[test]
fn row_20_yaml_takes_linear_time_and_bounded_memory() -> Result<()> {
    let target = Target::start()?;
    let depth = 100_000;
    for body in [
        "[".repeat(depth),
        "{a: ".repeat(depth),
        "- ".repeat(depth),
        "? ".repeat(depth),
        format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(1_700_000),
            "*a,".repeat(3_000)
        ),
        (0..40).fold("a0: &a0 lol\n".to_owned(), |text, at| {
            let list = vec![format!("*a{at}"); 9].join(",");
            format!("{text}a{}: &a{} [{list}]\n", at + 1, at + 1)
        }),
        format!(
            "a: &a {{{}}}\nb: [{}]\n",
            (0..5_000)
                .map(|at| format!("k{at}: 1,"))
                .collect::<String>(),
            "{<<: *a},".repeat(5_000)
        ),
    ] {
        target.refused("POST", CONFIG_MAPS, YAML, body, &[400])?;
    }
    let peak = target.peak_memory()?;
    ensure!(peak < 1024, "{peak} MiB");

    let honest =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: shared\ndata: {a: &a one, b: *a}\n";
    let (code, answer) = target.send("POST", CONFIG_MAPS, YAML, honest)?;
    ensure!(code == 201, "{answer}");

    let manifest = target.files.path().join("deep.yaml");
    std::fs::write(&manifest, "[".repeat(depth))?;
    let started = Instant::now();
    let manifest = manifest.display().to_string();
    let (_, said) = target
        .cluster
        .fails(&gantry_e2e::gantry()?, &["apply", "-f", &manifest])?;
    ensure!(said.contains("exceeded max depth"), "{said}");
    ensure!(started.elapsed() < SOON, "{:?}", started.elapsed());
    Ok(())
}

#[test]
fn row_21_enormous_lists_hold_up_nobody_else() -> Result<()> {
    let target = Target::start()?;
    let empty = |count: usize| {
        let containers = vec!["{}"; count].join(",");
        format!(r#"{{"metadata":{{"name":"p"}},"spec":{{"containers":[{containers}]}}}}"#)
    };
    let endless = empty(600_000);
    for body in [endless, empty(15_000)] {
        let longest = target.waits_during(|| {
            target.refused("POST", PODS, JSON, &body, &[400, 422])?;
            Ok(())
        })?;
        ensure!(
            longest < Duration::from_secs(5),
            "others waited {longest:?}"
        );
    }
    let answer = target.refused("POST", PODS, JSON, empty(15_000), &[422])?;
    let causes = serde_json::from_str::<Value>(&answer)?["details"]["causes"].clone();
    let causes = causes.as_array().map_or(0, Vec::len);
    ensure!(
        (1..=512).contains(&causes) && answer.len() < 1 << 20,
        "{causes} causes, {} bytes",
        answer.len()
    );

    let same: Vec<Value> = (0..15_000)
        .map(|_| json!({"name": "a", "value": "b"}))
        .collect();
    let ports: Vec<Value> = (0..4_000)
        .map(|at| json!({"name": format!("p{at}"), "containerPort": at + 1, "hostPort": 1}))
        .collect();
    let mounts: Vec<Value> = (0..4_000)
        .map(|at| json!({"name": "none", "mountPath": format!("/m{at}")}))
        .collect();
    let container = json!({"name": "c", "image": "i", "env": same, "ports": ports});
    let container_with_mounts = json!({"name": "c", "image": "i", "volumeMounts": mounts});
    for (container, codes) in [(container, [201, 422]), (container_with_mounts, [422, 422])] {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}});
        target.refused("POST", PODS, JSON, pod.to_string(), &codes)?;
    }
    let peak = target.peak_memory()?;
    ensure!(peak < 1024, "{peak} MiB");
    Ok(())
}

#[test]
fn row_23_numbers_out_of_range_are_refused_or_bounded() -> Result<()> {
    let target = Target::start()?;
    target.config_map("one", &json!({"a": "b"}))?;
    let one = format!("{CONFIG_MAPS}/one");
    for number in [
        "-1",
        "%2B1",
        "1.5",
        "1e9",
        "18446744073709551616",
        "1000000000000000000000000000000",
        "NaN",
        "0x10",
        "%ff",
    ] {
        for path in [
            format!("{one}?resourceVersion={number}"),
            format!("{CONFIG_MAPS}?resourceVersion={number}"),
            format!("{CONFIG_MAPS}?watch=1&resourceVersion={number}"),
        ] {
            target.refused("GET", &path, JSON, "", &[400])?;
        }
    }
    for number in [
        "",
        "1.5",
        "1e9",
        "1000000000000000000000000000000",
        "NaN",
        "%ff",
        "--1",
    ] {
        for name in ["limit", "timeoutSeconds"] {
            let path = format!("{CONFIG_MAPS}?{name}={number}");
            target.refused("GET", &path, JSON, "", &[400])?;
        }
        let path = format!("{one}?gracePeriodSeconds={number}");
        target.refused("DELETE", &path, JSON, "", &[400])?;
    }
    for path in [
        format!("{CONFIG_MAPS}?limit=-1"),
        format!("{CONFIG_MAPS}?limit=9223372036854775807"),
        format!("{CONFIG_MAPS}?timeoutSeconds=-5&continue="),
    ] {
        let (code, answer) = target.get(&path)?;
        ensure!(code == 200, "{path}: {answer}");
    }
    for body in [
        json!({"gracePeriodSeconds": 1e30}),
        json!({"gracePeriodSeconds": "5"}),
        json!({"preconditions": {"uid": 5}}),
        json!({"dryRun": {"a": 1}}),
    ] {
        target.refused("DELETE", &one, JSON, body.to_string(), &[400])?;
    }
    for finalizers in [
        json!(5),
        json!([5]),
        json!({"a": 1}),
        json!(["no such form!"]),
    ] {
        let body = json!({"metadata": {"name": "default"}, "spec": {"finalizers": finalizers}});
        let path = "/api/v1/namespaces/default/finalize";
        target.refused("PUT", path, JSON, body.to_string(), &[400, 422])?;
    }
    let far = format!("{one}?gracePeriodSeconds=9223372036854775807&dryRun=All");
    let (code, answer) = target.send("DELETE", &far, JSON, "")?;
    ensure!(code == 200, "{answer}");

    for (at, surge) in [
        "99999999999999%",
        "9223372036854775807%",
        "99999999999999999999999%",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("surge-{at}");
        let labels = json!({"app": name});
        let deployment = json!({
            "metadata": {"name": name},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "strategy": {"rollingUpdate": {"maxSurge": surge}},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "gantry.local/none:1"}]}},
            },
        });
        let path = "/apis/apps/v1/namespaces/default/deployments";
        let (code, answer) = target.send("POST", path, JSON, deployment.to_string())?;
        ensure!(code == 201, "{answer}");
        eventually("the deployment to make its pods", || {
            let selector = format!("app={name}");
            let sizes = target.cluster.kubectl(&[
                "get",
                "rs",
                "-l",
                &selector,
                "-o",
                "jsonpath={.items[*].spec.replicas}",
            ])?;
            ensure!(sizes == "2", "the replica set has {sizes:?}");
            Ok(())
        })?;
    }
    ensure!(target.get("/healthz")?.0 == 200, "the server died");
    Ok(())
}
