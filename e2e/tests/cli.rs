//! The client, where only a real cluster shows what it does: commands about several things, streams whose sides end one by
//! one, logs of long lines, and archives that are piped in.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, eventually, gantry};
use serde_json::json;

/// A program that runs until the value goes.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What `gantry` prints and says, and its exit code.
fn gantry_says(cluster: &Cluster, arguments: &[&str]) -> Result<(i32, String, String)> {
    let output = cluster.command(gantry()?).args(arguments).output()?;
    Ok((
        output.status.code().context("it was killed")?,
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    ))
}

/// Runs a pod of the tools that executes a script.
fn run(cluster: &Cluster, name: &str, script: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "gantry.local/tools:v1", "command": ["busybox", "sh", "-c", script]}],
        },
    });
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("pod.json");
    std::fs::write(&file, pod.to_string())?;
    cluster.kubectl(&["apply", "-f", &file.display().to_string()])?;
    let pod = format!("pod/{name}");
    let wait = ["wait", "--for=condition=Ready", &pod, "--timeout=60s"];
    cluster.kubectl(&wait).map(drop)
}

#[test]
fn commands_about_several_objects_go_on_after_one_that_is_missing() -> Result<()> {
    let cluster = Cluster::start()?;
    for name in ["a", "b", "c"] {
        cluster.kubectl(&["create", "configmap", name])?;
    }
    let missing = "Error from server (NotFound): configmaps \"x\" not found\n";
    for (verb, shown) in [("get", "a      0      "), ("describe", "Name:")] {
        let (code, printed, said) = gantry_says(&cluster, &[verb, "cm", "a", "x", "b"])?;
        ensure!(code == 1 && said == missing, "{verb}: {code} {said}");
        ensure!(printed.contains(shown), "{verb}: {printed}");
    }
    let (code, printed, said) = gantry_says(&cluster, &["get", "cm/x", "cm/a", "-o", "name"])?;
    ensure!(
        (code, printed.as_str(), said.as_str()) == (1, "configmap/a\n", missing),
        "{code} {printed} {said}"
    );
    let arguments = ["get", "cm", "x", "a", "-o", "name", "--ignore-not-found"];
    let (code, printed, said) = gantry_says(&cluster, &arguments)?;
    ensure!(
        (code, printed.as_str(), said.as_str()) == (0, "configmap/a\n", ""),
        "{code} {printed} {said}"
    );

    let directory = tempfile::tempdir()?;
    let file = |name: &str| -> Result<String> {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        let path = directory.path().join(format!("{name}.json"));
        std::fs::write(&path, object.to_string())?;
        Ok(path.display().to_string())
    };
    let (x, b) = (file("x")?, file("b")?);
    let (code, printed, said) = gantry_says(&cluster, &["get", "-f", &x, "-f", &b, "-o", "name"])?;
    ensure!(
        (code, printed.as_str(), said.as_str()) == (1, "configmap/b\n", missing),
        "{code} {printed} {said}"
    );
    let (code, printed, said) = gantry_says(&cluster, &["delete", "cm", "a", "x", "c"])?;
    ensure!(
        code == 1 && said == missing && printed.matches("deleted").count() == 2,
        "{code} {printed} {said}"
    );
    let not_found = |file: &str, name: &str| {
        format!(
            "Error from server (NotFound): error when deleting \"{file}\": configmaps \"{name}\" not found\n"
        )
    };
    let delete = ["delete", "-f", &b, "-f", &x];
    let (code, printed, said) = gantry_says(&cluster, &delete)?;
    ensure!(
        code == 1 && said == not_found(&x, "x") && printed.contains("configmap \"b\" deleted"),
        "{code} {printed} {said}"
    );
    let (code, printed, said) = gantry_says(&cluster, &delete)?;
    let both = not_found(&x, "x") + &not_found(&b, "b");
    ensure!(
        (code, printed.as_str(), said.as_str()) == (1, "", both.as_str()),
        "{code} {printed} {said}"
    );
    Ok(())
}

#[test]
fn streams_end_one_direction_at_a_time_and_lines_stay_whole() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import_demo_images()?;

    // It answers when it has heard all.
    let answer = "busybox cat > /dev/null; busybox yes answer | busybox head -c 1000000";
    let server = format!("while true; do busybox nc -l -p 9000 -e busybox sh -c '{answer}'; done");
    run(&cluster, "late", &server)?;
    for (program, environment, port) in [
        (gantry()?, "true", 19_000),
        ("kubectl".into(), "true", 19_001),
        ("kubectl".into(), "false", 19_002),
    ] {
        // kubectl ends with the first connection that is refused.
        let listens = "busybox cat /proc/net/tcp /proc/net/tcp6 | busybox grep -q ':2328 .* 0A '";
        eventually("the pod to listen", || {
            cluster.gantry(&["exec", "late", "--", "busybox", "sh", "-c", listens])
        })?;
        let mut forward: Command = cluster.command(&program);
        forward
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", environment)
            .args(["port-forward", "late", &format!("{port}:9000")])
            .stdout(Stdio::null());
        let _forward = Running(forward.spawn()?);
        let ask = format!("printf question | timeout 20 busybox nc 127.0.0.1 {port} | wc -c");
        eventually("the whole answer", || {
            let heard = cluster.output("sh", &["-c", &ask])?;
            ensure!(heard.trim() == "1000000", "{heard}");
            Ok(())
        })
        .with_context(|| format!("{} {environment}", program.display()))?;
    }
    let mut exec = cluster.command(gantry()?);
    exec.args(["exec", "-i", "late", "--", "busybox", "sh", "-c"])
        .arg(answer)
        .stdin(Stdio::null());
    let said = exec.output()?.stdout;
    ensure!(said.len() == 1_000_000, "exec: {}", said.len());

    let long =
        "busybox head -c 40000 /dev/zero | busybox tr '\\0' x; echo; echo last; busybox sleep 1000";
    run(&cluster, "long", long)?;
    for program in [gantry()?, "kubectl".into()] {
        let lines = eventually("both lines", || {
            let said = cluster
                .command(&program)
                .args(["logs", "--timestamps", "--tail=2", "long"])
                .output()?;
            let said = String::from_utf8(said.stdout)?;
            ensure!(said.ends_with(" last\n"), "{} bytes", said.len());
            Ok(said)
        })?;
        let lines: Vec<&str> = lines.lines().collect();
        let words: Vec<&str> = lines.iter().flat_map(|line| line.split(' ')).collect();
        ensure!(
            lines.len() == 2 && words.len() == 4 && words[1].len() == 40_000,
            "{}: {} lines, {} words",
            program.display(),
            lines.len(),
            words.len()
        );
    }
    Ok(())
}

#[test]
fn archives_come_by_standard_input_with_all_their_names() -> Result<()> {
    let cluster = Cluster::start()?;
    let data_dir = cluster.data_dir().display().to_string();
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("web.tar");
    gantry_demo::pack("v1", std::fs::File::create(&archive)?)?;
    let import = ["image", "import", "--data-dir", &data_dir];
    let piped = |file: &std::path::Path| -> Result<std::process::Output> {
        let mut command = cluster.command(gantry()?);
        command.args(import).arg("-");
        command.stdin(std::fs::File::open(file)?);
        Ok(command.output()?)
    };
    let output = piped(&archive)?;
    let printed = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && printed == "imported gantry.local/web:v1\n",
        "{printed} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let nothing = directory.path().join("nothing");
    std::fs::write(&nothing, "no archive")?;
    let said = String::from_utf8(piped(&nothing)?.stderr)?;
    ensure!(
        said.contains("standard input") && !said.contains("/proc/"),
        "{said}"
    );
    // One that is missing keeps the other from nothing.
    let (absent, there) = ("/nonexistent.tar", archive.display().to_string());
    let arguments = [&import[..], &[absent, there.as_str()]].concat();
    let (code, printed, said) = gantry_says(&cluster, &arguments)?;
    ensure!(
        code == 1 && said.contains(absent) && printed.contains("imported gantry.local/web:v1"),
        "{code} {printed} {said}"
    );
    let arguments = [
        "image",
        "rm",
        "--data-dir",
        &data_dir,
        "none:v1",
        "gantry.local/web:v1",
    ];
    let (code, printed, said) = gantry_says(&cluster, &arguments)?;
    ensure!(
        code == 1 && said.contains("none:v1") && printed == "gantry.local/web:v1 removed\n",
        "{code} {printed} {said}"
    );
    Ok(())
}
