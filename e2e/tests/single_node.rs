//! One machine, end to end: apply a web application with kubectl, scale it, roll it, roll it back, crash and recover.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, HOST_ADDRESS, eventually, gantry};
use serde_json::{Value, json};

fn manifest() -> String {
    format!("{}/../deploy/examples/web.yaml", env!("CARGO_MANIFEST_DIR"))
}

/// A running cluster with the example application rolled out.
fn with_web() -> Result<Cluster> {
    roll_out(Cluster::start()?)
}

/// The same cluster, with the example application rolled out.
fn roll_out(cluster: Cluster) -> Result<Cluster> {
    cluster.import_demo_images()?;
    cluster.kubectl(&["apply", "-f", &manifest()])?;
    rolled_out(&cluster)?;
    Ok(cluster)
}

fn rolled_out(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=90s"])
}

fn service_address(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"])
}

/// Name and start time of every running container of the application.
fn started(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let text = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[0].state.running.startedAt}#{.status.containerStatuses[0].restartCount}{\"\\n\"}{end}",
    ])?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, time)| (name.to_owned(), time.to_owned()))
        .collect())
}

#[test]
fn kubectl_runs_scales_rolls_and_undoes_a_web_application() -> Result<()> {
    let cluster = with_web()?;
    let address = service_address(&cluster)?;
    let answer = eventually("an answer through the ClusterIP", || {
        cluster.curl(&format!("http://{address}/"))
    })?;
    ensure!(answer.starts_with("web v1 from web-"), "{answer}");
    let answer = cluster
        .curl(&format!("http://{HOST_ADDRESS}:30080/"))
        .context("through the NodePort")?;
    ensure!(answer.starts_with("web v1 from web-"), "{answer}");

    let table = cluster.kubectl(&["get", "deploy,rs,pods,svc", "-o", "wide"])?;
    for words in [
        "deployment.apps/web",
        "3/3",
        "replicaset.apps/web-",
        "pod/web-",
        "node-1",
        "service/web",
        "80:30080/TCP",
    ] {
        ensure!(table.contains(words), "{words} is missing in:\n{table}");
    }
    let described = cluster.kubectl(&["describe", "deploy", "web"])?;
    ensure!(described.contains("ScalingReplicaSet"), "{described}");
    let pods = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"])?;
    let pod = pods.lines().next().context("a pod")?.to_owned();
    let described = cluster.kubectl(&["describe", &pod])?;
    for words in ["Started", "Scheduled", "gantry.local/web:v1"] {
        ensure!(
            described.contains(words),
            "{words} is missing in:\n{described}"
        );
    }
    let logs = cluster.kubectl(&["logs", &pod])?;
    ensure!(logs.contains("listens on port 8080"), "{logs}");

    cluster.kubectl(&["scale", "deploy/web", "--replicas=6"])?;
    rolled_out(&cluster)?;
    cluster.kubectl(&["set", "image", "deploy/web", "web=gantry.local/web:v2"])?;
    rolled_out(&cluster)?;
    let answer = cluster.curl(&format!("http://{address}/"))?;
    ensure!(answer.starts_with("web v2 from web-"), "{answer}");
    let history = cluster.kubectl(&["rollout", "history", "deploy/web"])?;
    ensure!(
        history.contains("1 ") && history.contains("2 "),
        "{history}"
    );
    cluster.kubectl(&["rollout", "undo", "deploy/web"])?;
    rolled_out(&cluster)?;
    let answer = cluster.curl(&format!("http://{address}/"))?;
    ensure!(answer.starts_with("web v1 from web-"), "{answer}");

    cluster.kubectl(&["delete", "-f", &manifest()])?;
    eventually("every pod to be gone", || {
        let left = cluster.kubectl(&["get", "pods", "-o", "name"])?;
        ensure!(left.is_empty(), "{left} is left");
        Ok(())
    })
}

#[test]
fn the_doctor_finds_nothing_wrong_and_changes_nothing() -> Result<()> {
    let cluster = Cluster::start()?;
    let data_dir = cluster.data_dir().display().to_string();
    let report = cluster.gantry(&["doctor", "--data-dir", &data_dir])?;
    for words in [
        "ok       overlayfs",
        "ok       overlay ",
        "ok       port 6443/tcp",
        "ok       API",
        "ok       server node-1",
        "ok       nodes",
        "ok       certificates",
        "failed: 0",
    ] {
        ensure!(report.contains(words), "{words:?} is missing:\n{report}");
    }
    ensure!(report.contains("the API server: Gantry"), "{report}");
    // Wherever the cluster keeps its state: the kubeconfig says which one is meant, in that directory or as a copy.
    let copy = cluster.data_dir().with_file_name("copy.kubeconfig");
    std::fs::copy(cluster.data_dir().join("admin.kubeconfig"), &copy)?;
    let copy = copy.display().to_string();
    for arguments in [&["doctor"][..], &["doctor", "--kubeconfig", copy.as_str()]] {
        // Whether the disk of the usual directory is good for anything is another matter.
        let output = cluster.command(gantry()?).args(arguments).output()?;
        let report = String::from_utf8(output.stdout)?;
        ensure!(
            report.contains("ok       routes"),
            "{arguments:?}: {report}"
        );
    }
    // What it tries out is called so, and the directory it makes is called after it.
    for (program, arguments) in [
        ("ip", &["-o", "link"][..]),
        ("nft", &["list", "tables"]),
        ("ls", &["-a", &data_dir]),
    ] {
        let left = cluster.output(program, arguments)?;
        ensure!(
            !left.contains("trial") && !left.contains("gantry-doctor"),
            "something stayed behind:\n{left}"
        );
    }

    // Without a cluster, and with a port that somebody else has.
    let machine = Cluster::not_yet()?;
    let mut web = machine
        .command("busybox")
        .args(["httpd", "-f", "-p", "6443"])
        .spawn()?;
    let found = eventually("the port to be taken", || {
        let output = machine
            .command(gantry()?)
            .args([
                "doctor",
                "--kubeconfig",
                "/nonexistent/kubeconfig",
                "--data-dir",
            ])
            .arg(machine.data_dir())
            .output()?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(said.contains("failed   port 6443/tcp"), "{said}");
        Ok((output.status.code(), said))
    });
    web.kill()?;
    web.wait()?;
    let (code, said) = found?;
    ensure!(code == Some(1), "{code:?}");
    ensure!(
        said.contains("busybox (process") && said.contains("not asked: reading the kubeconfig"),
        "{said}"
    );
    Ok(())
}

#[test]
fn exec_runs_commands_and_reports_their_exit_codes() -> Result<()> {
    // Letters that mount options, lists and shells take for something else change nothing.
    let cluster = roll_out(Cluster::start_in("data of: one, or 2")?)?;
    // The image's only program; a second one finds the port taken and says so.
    let (code, said) =
        cluster.fails(Path::new("kubectl"), &["exec", "deploy/web", "--", "/web"])?;
    ensure!(
        code == 1 && said.contains("cannot listen on port 8080"),
        "kubectl: {code} {said}"
    );
    let (code, said) = cluster.fails(&gantry()?, &["exec", "deploy/web", "--", "/web"])?;
    ensure!(
        code == 1 && said.contains("cannot listen on port 8080"),
        "gantry: {code} {said}"
    );
    let (_, said) = cluster.fails(Path::new("kubectl"), &["exec", "deploy/web", "--", "/nope"])?;
    ensure!(said.contains("/nope"), "{said}");
    Ok(())
}

#[test]
fn a_crash_of_gantry_changes_nothing_for_containers() -> Result<()> {
    let mut cluster = with_web()?;
    let before = started(&cluster)?;
    ensure!(before.len() == 3, "{before:?}");
    let revision = |cluster: &Cluster| -> Result<u64> {
        let text = cluster.kubectl(&[
            "get",
            "deploy",
            "web",
            "-o",
            "jsonpath={.metadata.resourceVersion}",
        ])?;
        text.parse()
            .with_context(|| format!("{text:?} is no revision"))
    };
    let revision_before = revision(&cluster)?;
    cluster.kill()?;
    cluster.up()?;
    ensure!(
        revision(&cluster)? >= revision_before,
        "the store went back in time"
    );
    let after = eventually("the same pods", || {
        let after = started(&cluster)?;
        ensure!(after.len() == 3, "{after:?}");
        Ok(after)
    })?;
    ensure!(
        before == after,
        "containers were touched:\n{before:?}\n{after:?}"
    );
    let address = service_address(&cluster)?;
    eventually("an answer after the restart", || {
        cluster.curl(&format!("http://{address}/"))
    })?;
    // Everything is still in hand: a change takes effect.
    cluster.kubectl(&["scale", "deploy/web", "--replicas=1"])?;
    eventually("one pod", || {
        let left = started(&cluster)?;
        ensure!(left.len() == 1, "{left:?}");
        Ok(())
    })
}

/// A program that runs until the value goes.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn kubectl_forwards_a_port_of_a_pod() -> Result<()> {
    let cluster = with_web()?;
    for (port, websockets) in [("18080", "true"), ("18081", "false")] {
        let mut forward = cluster.command("kubectl");
        forward
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
            .args(["port-forward", "deploy/web", &format!("{port}:8080")])
            .stdout(std::process::Stdio::null());
        let _forward = Running(forward.spawn()?);
        eventually("an answer through the forwarded port", || {
            let said = cluster.curl(&format!("http://127.0.0.1:{port}/"))?;
            ensure!(said.contains("web v1"), "{said}");
            Ok(())
        })?;
    }
    // The API server passes requests on to the same pods.
    let pods = started(&cluster)?;
    let pod = pods.keys().next().context("a pod")?;
    for target in [format!("pods/{pod}:8080"), "services/web:80".to_owned()] {
        let path = format!("/api/v1/namespaces/default/{target}/proxy/");
        let said = cluster.kubectl(&["get", "--raw", &path])?;
        ensure!(said.starts_with("web v1 from web-"), "{target}: {said}");
    }
    Ok(())
}

#[test]
fn kubectl_creates_what_it_sends_as_protobuf() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.kubectl(&["create", "namespace", "shop"])?;
    cluster.kubectl(&["create", "configmap", "words", "--from-literal=a=b"])?;
    cluster.kubectl(&["create", "secret", "generic", "keys", "--from-literal=k=v"])?;
    cluster.kubectl(&["create", "deployment", "web", "--image=gantry.local/web:v1"])?;
    cluster.kubectl(&["expose", "deployment", "web", "--port=80"])?;
    let read =
        |what: &str, path: &str| cluster.kubectl(&["get", what, "-o", &format!("jsonpath={path}")]);
    assert_eq!(read("configmap/words", "{.data.a}")?, "b");
    assert_eq!(read("secret/keys", "{.data.k}")?, "dg==");
    assert_eq!(
        read("deploy/web", "{.spec.template.spec.containers[0].image}")?,
        "gantry.local/web:v1"
    );
    assert_eq!(read("svc/web", "{.spec.ports[0].port}")?, "80");
    Ok(())
}

#[test]
fn what_cannot_run_says_why() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import_demo_images()?;
    cluster.kubectl(&["run", "unknown", "--image=127.0.0.1:1/none:v1"])?;
    cluster.kubectl(&[
        "run",
        "command",
        "--image=gantry.local/web:v1",
        "--command",
        "--",
        "/nope",
    ])?;
    cluster.kubectl(&["run", "big", "--image=gantry.local/web:v1", "--overrides", r#"{"spec":{"containers":[{"name":"big","image":"gantry.local/web:v1","resources":{"requests":{"cpu":"1000"}}}]}}"#])?;
    eventually("the unknown image to be refused", || {
        let reason = cluster.kubectl(&[
            "get",
            "pod",
            "unknown",
            "-o",
            "jsonpath={.status.containerStatuses[0].state.waiting.reason}",
        ])?;
        ensure!(
            reason == "ErrImagePull" || reason == "ImagePullBackOff",
            "{reason}"
        );
        Ok(())
    })?;
    eventually("the missing command to be named", || {
        let status = cluster.kubectl(&[
            "get",
            "pod",
            "command",
            "-o",
            "jsonpath={.status.containerStatuses[0]}",
        ])?;
        ensure!(status.contains("/nope"), "{status}");
        Ok(())
    })?;
    eventually("the pod that does not fit to say so", || {
        let message = cluster.kubectl(&[
            "get",
            "pod",
            "big",
            "-o",
            "jsonpath={.status.conditions[?(@.type==\"PodScheduled\")].message}",
        ])?;
        ensure!(
            message.starts_with("0/1 nodes are available: 1 Insufficient cpu."),
            "{message}"
        );
        Ok(())
    })
}

#[test]
fn down_leaves_nothing_behind() -> Result<()> {
    let cluster = with_web()?;
    let data_dir = cluster.data_dir().display().to_string();
    cluster.gantry(&["down", "--purge", "--data-dir", &data_dir])?;
    ensure!(!cluster.data_dir().exists(), "{data_dir} is left");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&data_dir), "mounts are left:\n{mounts}");
    let links = cluster.output("ip", &["-br", "link"])?;
    ensure!(
        links.lines().count() == 2,
        "only lo and uplink were there before:\n{links}"
    );
    let tables = cluster.output("nft", &["list", "tables"])?;
    ensure!(tables.is_empty(), "nft tables are left:\n{tables}");
    Ok(())
}

#[test]
fn a_machine_without_room_for_the_network_is_refused_by_up_itself() -> Result<()> {
    let cluster = Cluster::not_yet()?;
    let data_dir = cluster.data_dir().display().to_string();
    let up = ["up", "--data-dir", &data_dir];
    cluster.output("ip", &["link", "set", "uplink", "mtu", "500"])?;
    // The second time there is a Node that was made before.
    for _ in 0..2 {
        let (code, said) = cluster.fails(&gantry()?, &up)?;
        ensure!(
            code == 1 && said.contains("MTU of the link uplink is 500") && said.contains("626"),
            "{said}"
        );
    }
    cluster.output("ip", &["link", "set", "uplink", "mtu", "1500"])?;
    cluster.gantry(&up)?;
    cluster.gantry(&["down", "--data-dir", &data_dir])?;
    // A node that was Ready once.
    cluster.output("ip", &["link", "set", "uplink", "mtu", "500"])?;
    let (_, said) = cluster.fails(&gantry()?, &up)?;
    ensure!(said.contains("MTU of the link uplink is 500"), "{said}");
    cluster.output("ip", &["link", "set", "uplink", "mtu", "1500"])?;
    cluster.gantry(&["down", "--purge", "--data-dir", &data_dir])?;
    Ok(())
}

#[test]
fn a_second_cluster_is_refused_politely() -> Result<()> {
    let cluster = Cluster::start()?;
    let other = tempfile::tempdir()?;
    let data_dir = other.path().display().to_string();
    // The port is taken by the first cluster.
    let (code, said) =
        cluster.fails(&gantry()?, &["up", "--foreground", "--data-dir", &data_dir])?;
    ensure!(
        code == 1 && said.contains("6443") && said.contains("--listen"),
        "{said}"
    );
    // The data directory is taken by the first cluster.
    let data_dir = cluster.data_dir().display().to_string();
    let (code, said) =
        cluster.fails(&gantry()?, &["up", "--foreground", "--data-dir", &data_dir])?;
    ensure!(code == 1 && said.contains("already runs"), "{said}");
    Ok(())
}

/// A manifest as a file.
fn written(directory: &Path, text: &str) -> Result<String> {
    let file = directory.join("manifest.yaml");
    std::fs::write(&file, text)?;
    Ok(file.display().to_string())
}

/// Writes a manifest and applies it.
fn apply(cluster: &Cluster, directory: &Path, text: &str, more: &[&str]) -> Result<String> {
    let file = written(directory, text)?;
    cluster.kubectl(&[&["apply", "-f", file.as_str()][..], more].concat())
}

/// Another Deployment without pods: what its container runs and may use, and the names of what runs before.
fn alike(command: &[&str], limits: &Value, before: &[&str]) -> String {
    let container = |name: &str| json!({"name": name, "image": "none"});
    let before: Vec<Value> = before.iter().map(|name| container(name)).collect();
    let main = json!({
        "name": "c", "image": "none", "command": command, "resources": {"limits": limits},
    });
    let labels = json!({"app": "alike"});
    let template = json!({
        "metadata": {"labels": labels},
        "spec": {"initContainers": before, "containers": [main]},
    });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "alike"},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    })
    .to_string()
}

/// A Service with ports: name, number and protocol.
fn service(name: &str, ports: &[(&str, u16, &str)]) -> String {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, protocol)| json!({"name": name, "port": port, "protocol": protocol}))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports},
    })
    .to_string()
}

/// A Deployment without pods: variables of its container by name and value, ports, and names of its volumes.
fn deployment(variables: &[(&str, &str)], ports: &[u16], volumes: &[&str]) -> String {
    let variables = variables
        .iter()
        .map(|(name, value)| format!("{{name: {name}, value: '{value}'}}"));
    let ports = ports
        .iter()
        .map(|port| format!("{{containerPort: {port}}}"));
    let mounts = volumes
        .iter()
        .map(|name| format!("{{name: {name}, mountPath: /{name}}}"));
    let names = volumes
        .iter()
        .map(|name| format!("{{name: {name}, emptyDir: {{}}}}"));
    let list = |items: Vec<String>| items.join(", ");
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: merged}}
spec:
  replicas: 0
  selector: {{matchLabels: {{app: merged}}}}
  template:
    metadata: {{labels: {{app: merged}}}}
    spec:
      volumes: [{}]
      containers:
      - name: c
        image: none
        env: [{}]
        ports: [{}]
        volumeMounts: [{}]
",
        list(names.collect()),
        list(variables.collect()),
        list(ports.collect()),
        list(mounts.collect()),
    )
}

#[test]
fn kubectl_knows_from_the_schemas_how_lists_merge_and_what_lists_are() -> Result<()> {
    let cluster = Cluster::start()?;
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let shown = |path: &str| {
        let path = format!("jsonpath={{.spec.template.spec.{path}}}");
        cluster.kubectl(&["get", "deploy", "merged", "-o", &path])
    };
    let first = deployment(&[("A", "1"), ("B", "2")], &[80, 81], &["first", "second"]);
    apply(&cluster, directory, &first, &[])?;
    let second = deployment(&[("A", "1")], &[81], &["second"]);
    apply(&cluster, directory, &second, &[])?;
    for (path, left) in [
        ("containers[0].env[*].name", "A"),
        ("containers[0].ports[*].containerPort", "81"),
        ("containers[0].volumeMounts[*].name", "second"),
        ("volumes[*].name", "second"),
    ] {
        ensure!(shown(path)? == left, "{path}: {}", shown(path)?);
    }
    // A name that is there twice, and then is corrected. kubectl sees one of the two go and asks for the deletion of
    // both, as it warned that it would: what it asks for is done, and the next time nothing is missing.
    let twice = deployment(&[("A", "1"), ("A", "2"), ("B", "3")], &[], &[]);
    apply(&cluster, directory, &twice, &[])?;
    let once = deployment(&[("A", "4"), ("B", "3")], &[], &[]);
    apply(&cluster, directory, &once, &[])?;
    let variables = shown("containers[0].env[*].value")?;
    ensure!(variables == "3", "{variables}");
    apply(&cluster, directory, &once, &[])?;
    let variables = shown("containers[0].env[*].value")?;
    ensure!(variables == "4 3", "{variables}");

    let first = alike(
        &["a", "b"],
        &json!({"cpu": "1", "memory": "1Gi"}),
        &["x", "y"],
    );
    apply(&cluster, directory, &first, &[])?;
    apply(
        &cluster,
        directory,
        &alike(&["a"], &json!({"cpu": "1"}), &["y"]),
        &[],
    )?;
    for (path, left) in [
        ("containers[0].command", "[\"a\"]"),
        ("containers[0].resources.limits", "{\"cpu\":\"1\"}"),
        ("initContainers[*].name", "y"),
    ] {
        let path = format!("jsonpath={{.spec.template.spec.{path}}}");
        let shown = cluster.kubectl(&["get", "deploy", "alike", "-o", &path])?;
        ensure!(shown == left, "{path}: {shown}");
    }

    let list = |names: &[&str]| {
        let items = names.iter().map(|name| {
            let metadata = json!({"name": name, "labels": {"of": "list"}});
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
        });
        let items: Vec<Value> = items.collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    };
    let prune = [
        "--prune",
        "-l",
        "of=list",
        "--prune-allowlist=core/v1/ConfigMap",
    ];
    apply(&cluster, directory, &list(&["one", "two"]), &prune)?;
    apply(&cluster, directory, &list(&["two"]), &prune)?;
    let left = cluster.kubectl(&["get", "cm", "-l", "of=list", "-o", "name"])?;
    ensure!(left.trim() == "configmap/two", "{left}");
    // Without a list of kinds kubectl looks for those of its own, which all have to be served.
    let prune = ["--prune", "-l", "of=list"];
    apply(&cluster, directory, &list(&["two", "five"]), &prune)?;
    apply(&cluster, directory, &list(&["two"]), &prune)?;
    let left = cluster.kubectl(&["get", "cm", "-l", "of=list", "-o", "name"])?;
    ensure!(left.trim() == "configmap/two", "{left}");
    let three = written(directory, &list(&["three", "four"]))?;
    for (verb, done) in [("create", "created"), ("replace", "replaced")] {
        let said = cluster.kubectl(&[verb, "-f", &three])?;
        ensure!(said.matches(done).count() == 2, "{verb}: {said}");
    }

    let explained = cluster.kubectl(&["explain", "deployment.spec.strategy"])?;
    ensure!(explained.contains("rollingUpdate"), "{explained}");
    let document = cluster.kubectl(&["get", "--raw", "/openapi/v2"])?;
    ensure!(document.contains("\"swagger\":\"2.0\""), "{document:.300}");
    Ok(())
}

#[test]
fn gantry_applies_as_kubectl_does_and_what_kubectl_has_applied() -> Result<()> {
    let cluster = Cluster::start()?;
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let apply_with_ours = |text: &str| {
        let file = written(directory, text)?;
        cluster.gantry(&["apply", "-f", &file])
    };
    let shown = |name: &str, path: &str| {
        let path = format!("jsonpath={{{path}}}");
        cluster.kubectl(&["get", "svc", name, "-o", &path])
    };
    let (a, b) = (("a", 80, "TCP"), ("b", 81, "TCP"));
    let (tcp, udp) = (("tcp", 8301, "TCP"), ("udp", 8301, "UDP"));
    apply_with_ours(&service("ours", &[a, b, tcp, udp]))?;
    let said = apply_with_ours(&service("ours", &[a, tcp, udp]))?;
    ensure!(said.contains("configured"), "{said}");
    let left = shown("ours", ".spec.ports[*].name")?;
    ensure!(left == "a tcp udp", "{left}");
    let said = apply_with_ours(&service("ours", &[a, tcp, udp]))?;
    ensure!(said.contains("unchanged"), "{said}");
    // A port of the same number goes alone.
    apply_with_ours(&service("ours", &[a, udp]))?;
    let left = shown("ours", ".spec.ports[*].protocol")?;
    ensure!(left == "TCP UDP", "{left}");

    apply(&cluster, directory, &service("theirs", &[a, b]), &[])?;
    cluster.kubectl(&["label", "svc", "theirs", "edited=yes"])?;
    let patch = "{\"spec\": {\"sessionAffinity\": \"ClientIP\"}}";
    cluster.kubectl(&["patch", "svc", "theirs", "-p", patch])?;
    let said = apply_with_ours(&service("theirs", &[b]))?;
    ensure!(said.contains("configured"), "{said}");
    let paths = ".spec.ports[*].name} {.metadata.labels.edited} {.spec.sessionAffinity";
    let left = shown("theirs", paths)?;
    ensure!(left == "b yes ClientIP", "{left}");
    Ok(())
}
