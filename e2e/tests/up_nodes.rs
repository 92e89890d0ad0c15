//! `gantry up --nodes`: hosts on one machine, made and removed without a trace.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gantry_agent::AgentConfig;
use gantry_e2e::{Cluster, eventually, gantry};
use serde_json::{Value, json};

/// Runs `gantry up` or `gantry down` to its end.
fn gantry_in(cluster: &Cluster, verb: &str, arguments: &[&str]) -> Result<String> {
    let data_dir = cluster.data_dir().display().to_string();
    let arguments = [&[verb, "--data-dir", &data_dir], arguments].concat();
    cluster.gantry(&arguments)
}

/// What of a cluster is on this machine: links, tables, mounts, groups and processes.
fn traces(cluster: &Cluster, hosts: &[&str]) -> Result<Vec<String>> {
    let data_dir = cluster.data_dir();
    let mut configs = vec![AgentConfig::in_directory(&data_dir.join("agent"))];
    configs.extend(
        hosts.iter().map(|host| {
            AgentConfig::in_directory(&data_dir.join("hosts").join(host).join("agent"))
        }),
    );
    let mut names: Vec<String> = configs
        .iter()
        .map(|config| config.network_prefix.clone())
        .collect();
    names.push(data_dir.display().to_string());
    let mut found = Vec::new();
    let mut look = |what: &str, text: &str| {
        let lines = text
            .lines()
            .filter(|line| names.iter().any(|name| line.contains(name)));
        found.extend(lines.map(|line| format!("{what}: {line}")));
    };
    look("link", &cluster.output("ip", &["-brief", "link"])?);
    look("route", &cluster.output("ip", &["route"])?);
    look("table", &cluster.output("nft", &["list", "tables"])?);
    look("mount", &std::fs::read_to_string("/proc/self/mounts")?);
    let groups = Command::new("find")
        .args(["/sys/fs/cgroup", "-type", "d", "-path", "*gantry*"])
        .output()?;
    look("group", &String::from_utf8_lossy(&groups.stdout));
    look("process", &processes());
    for config in &configs {
        if config.run_dir.exists() {
            found.push(format!("directory: {}", config.run_dir.display()));
        }
    }
    Ok(found)
}

/// The command lines of all processes but this one.
fn processes() -> String {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = std::process::id().to_string();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.bytes().all(|byte| byte.is_ascii_digit()) && name != own
        })
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " ") + "\n")
        .collect()
}

fn pod_at(node: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("at-{node}"), "labels": {"app": "web"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "web", "image": image, "ports": [{"containerPort": 8080}]}],
        },
    })
}

fn apply(cluster: &Cluster, directory: &Path, object: &Value) -> Result<()> {
    let file = directory.join("object.json");
    std::fs::write(&file, object.to_string())?;
    cluster
        .kubectl(&["apply", "-f", &file.display().to_string()])
        .map(drop)
}

#[test]
fn three_hosts_come_up_serve_and_leave_nothing_behind() -> Result<()> {
    let cluster = Cluster::not_yet()?;
    let nodes = ["node-1", "node-2", "node-3"];
    let said = gantry_in(&cluster, "up", &["--nodes", "3"])?;
    println!("{}", said.lines().next().unwrap_or_default());
    ensure!(said.contains("3 nodes with a server"), "{said}");
    let listed = cluster.kubectl(&["get", "nodes"])?;
    ensure!(listed.matches(" Ready").count() == 3, "{listed}");

    cluster.import_demo_images()?;
    let work = tempfile::tempdir()?;
    for node in nodes {
        apply(&cluster, work.path(), &pod_at(node, "gantry.local/web:v1"))?;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]},
    });
    apply(&cluster, work.path(), &service)?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "--timeout=60s",
    ])?;
    // From this machine, through the node port of each host: to whichever pod.
    for node in nodes {
        let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
        let address = cluster.kubectl(&["get", "node", node, "-o", path])?;
        let mut answered = std::collections::BTreeSet::new();
        eventually("every pod to answer through every host", || {
            answered.insert(cluster.curl(&format!("http://{address}:30080/"))?);
            ensure!(answered.len() == 3, "through {node}: {answered:?}");
            Ok(())
        })?;
    }
    ensure!(
        !traces(&cluster, &nodes)?.is_empty(),
        "the test sees nothing of a cluster"
    );

    let refused = cluster.fails(
        &gantry()?,
        &[
            "up",
            "--nodes",
            "4",
            "--data-dir",
            &cluster.data_dir().display().to_string(),
        ],
    )?;
    ensure!(refused.1.contains("'gantry down' first"), "{refused:?}");
    gantry_in(&cluster, "down", &[])?;
    let left = traces(&cluster, &nodes)?;
    ensure!(left.is_empty(), "left behind: {left:#?}");

    // The same cluster again, with its pods and one node more.
    gantry_in(&cluster, "up", &["--nodes", "4"])?;
    eventually("all that was wanted to run again", || {
        let nodes = cluster.kubectl(&["get", "nodes"])?;
        ensure!(nodes.matches(" Ready").count() == 4, "{nodes}");
        let pods = cluster.kubectl(&["get", "pods"])?;
        ensure!(pods.matches("1/1").count() == 3, "{pods}");
        Ok(())
    })?;
    gantry_in(&cluster, "down", &["--purge"])?;
    let left = traces(&cluster, &["node-1", "node-2", "node-3", "node-4"])?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    ensure!(!cluster.data_dir().exists(), "the state is still there");
    Ok(())
}

#[test]
fn the_kubeconfig_works_while_one_of_three_servers_is_down() -> Result<()> {
    let cluster = Cluster::not_yet()?;
    let said = gantry_in(&cluster, "up", &["--nodes", "3", "--servers", "3"])?;
    println!("{}", said.lines().next().unwrap_or_default());
    let leader = eventually("three voters", || {
        let members: Value =
            serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/gantry/v1/members"])?)?;
        let members = members.as_array().context("a list")?;
        let voters = members.iter().filter(|member| member["role"] == "voter");
        ensure!(voters.count() == 3, "{members:?}");
        let leads = members.iter().find(|member| member["leader"] == true);
        let name = leads.and_then(|leader| leader["name"].as_str());
        Ok(name.context("nobody leads")?.to_owned())
    })?;
    let pid = std::fs::read_to_string(
        cluster
            .data_dir()
            .join("hosts")
            .join(&leader)
            .join("gantry.pid"),
    )?;
    cluster.output("kill", &["-9", pid.trim()])?;
    cluster.kubectl(&["create", "configmap", "written-meanwhile"])?;
    // Its host is started again by itself.
    eventually("every node to be Ready", || {
        let nodes = cluster.kubectl(&["get", "nodes"])?;
        ensure!(nodes.matches(" Ready").count() == 3, "{nodes}");
        let again = std::fs::read_to_string(
            cluster
                .data_dir()
                .join("hosts")
                .join(&leader)
                .join("gantry.pid"),
        )?;
        ensure!(again != pid, "{leader} has not been started again");
        Ok(())
    })
}

/// Puts a file where hosts would keep what is named.
fn obstruct(cluster: &Cluster, what: &str) -> Result<()> {
    let path = cluster.data_dir().join("hosts").join(what);
    let parent = path.parent().context("a directory")?;
    std::fs::create_dir_all(parent)?;
    for directory in [cluster.data_dir().as_path(), parent] {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(std::fs::write(path, "in the way")?)
}

#[test]
fn a_node_that_cannot_start_is_named_with_the_cause_and_nothing_stays() -> Result<()> {
    let nodes = ["node-1", "node-2"];
    // One that cannot even begin, and one that joins and then cannot go on.
    for (obstacle, words) in [
        ("node-2", "node-2 is a file"),
        ("node-2/agent", "preparing"),
    ] {
        let cluster = Cluster::not_yet()?;
        let data_dir = cluster.data_dir().display().to_string();
        obstruct(&cluster, obstacle)?;
        let arguments = ["up", "--nodes", "2", "--data-dir", &data_dir];
        let (code, said) = cluster.fails(&gantry()?, &arguments)?;
        ensure!(
            code == 1 && said.contains("node-2: ") && said.contains(words),
            "{obstacle:?}: {said}"
        );
        let left = traces(&cluster, &nodes)?;
        ensure!(left.is_empty(), "{obstacle:?} left {left:#?}");

        // The obstacle is in the way of nothing that ends, however often.
        for arguments in [&[][..], &[], &["--purge"], &["--purge"]] {
            gantry_in(&cluster, "down", arguments)
                .with_context(|| format!("down {arguments:?} after {obstacle:?}"))?;
        }
        ensure!(!cluster.data_dir().exists(), "the state is still there");
    }
    Ok(())
}

#[test]
fn a_cluster_that_was_killed_while_it_began_goes_down() -> Result<()> {
    let cluster = Cluster::not_yet()?;
    let data_dir = cluster.data_dir();
    let mut up = cluster
        .command(gantry()?)
        .args(["up", "--foreground", "--nodes", "2", "--data-dir"])
        .arg(&data_dir)
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let begun = eventually("the first host to be there", || {
        let host = data_dir.join("hosts/netns/host-1");
        cluster.output("test", &["-e", &host.display().to_string()])
    });
    up.kill()?;
    up.wait()?;
    begun?;
    for arguments in [&[][..], &["--purge"], &["--purge"]] {
        gantry_in(&cluster, "down", arguments)?;
        let left = traces(&cluster, &["node-1", "node-2"])?;
        ensure!(left.is_empty(), "down {arguments:?} left {left:#?}");
    }
    Ok(())
}

#[test]
fn a_directory_that_is_no_clusters_is_not_purged() -> Result<()> {
    let cluster = Cluster::not_yet()?;
    let data_dir = cluster.data_dir();
    std::fs::create_dir_all(&data_dir)?;
    std::fs::write(data_dir.join("notes"), "mine")?;
    let named = data_dir.display().to_string();
    let arguments = ["down", "--purge", "--data-dir", named.as_str()];
    let (_, said) = cluster.fails(&gantry()?, &arguments)?;
    ensure!(said.contains("holds something else"), "{said}");
    ensure!(data_dir.join("notes").exists(), "it was deleted");
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() -> Result<()> {
    let cluster = Cluster::not_yet()?;
    let data_dir = cluster.data_dir().display().to_string();
    for (arguments, words) in [
        (&["--nodes", "0"][..], "--nodes 0"),
        (&["--nodes", "2", "--servers", "2"], "use 1, 3 or 5"),
        (
            &["--nodes", "1", "--servers", "3"],
            "--servers 3 with --nodes 1",
        ),
        (&["--servers", "3"], "--nodes"),
        (
            &["--nodes", "2", "--host-cidr", "10.77.0.0/16"],
            "it is a /24",
        ),
        (
            &["--nodes", "2", "--host-cidr", "10.244.7.0/24"],
            "--pod-cidr",
        ),
    ] {
        let arguments = [&["up", "--data-dir", &data_dir][..], arguments].concat();
        let (_, said) = cluster.fails(&gantry()?, &arguments)?;
        ensure!(said.contains(words), "{arguments:?}: {said}");
        let left = traces(&cluster, &["node-1"])?;
        ensure!(left.is_empty(), "{arguments:?} left {left:?}");
    }
    Ok(())
}
