//! What is left of a cluster becomes one again: one server of three, or a backup.

use std::fs;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, eventually};

fn keep(servers: &Fleet, at: &str, kind: &str, name: &str, value: &str) -> Result<()> {
    let literal = format!("--from-literal=value={value}");
    let kind: &[&str] = match kind {
        "secret" => &["secret", "generic"],
        _ => &["configmap"],
    };
    let arguments = [&["create"], kind, &[name, &literal]].concat();
    servers.kubectl(at, &arguments).map(drop)
}

fn value_of(servers: &Fleet, at: &str, kind: &str, name: &str) -> Result<String> {
    servers.kubectl(at, &["get", kind, name, "-o", "jsonpath={.data.value}"])
}

fn names(servers: &Fleet, at: &str) -> Result<Vec<String>> {
    let members = servers.members(at)?;
    let name = |member: &serde_json::Value| member["name"].as_str().map(str::to_owned);
    let mut names: Vec<String> = members.iter().filter_map(name).collect();
    names.sort();
    Ok(names)
}

/// Fails unless the command failed and said what is expected.
fn refused(attempt: Result<String>, words: &str) -> Result<()> {
    match attempt {
        Ok(said) => anyhow::bail!("it was not refused: {said}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(words), "{said}");
            Ok(())
        }
    }
}

fn revision_of(servers: &Fleet, at: &str, name: &str) -> Result<u64> {
    let path = "jsonpath={.metadata.resourceVersion}";
    let text = servers.kubectl(at, &["get", "configmap", name, "-o", path])?;
    text.parse().context("a revision")
}

/// Fails unless a watch from this revision on is refused.
fn told_to_look_anew(servers: &Fleet, at: &str, revision: u64) -> Result<()> {
    let path = format!("/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={revision}");
    let watched = servers.kubectl(at, &["get", "--raw", &path, "--request-timeout=10s"]);
    let said = format!("{watched:?}");
    ensure!(
        said.contains("Expired") || said.contains("too old"),
        "{said}"
    );
    Ok(())
}

#[test]
fn one_of_three_becomes_a_cluster_again() -> Result<()> {
    let mut servers = Fleet::start(3)?;
    for number in 0..50 {
        let at = ["s1", "s2", "s3"][number % 3];
        keep(&servers, at, "configmap", &format!("kept-{number}"), "x")?;
    }
    keep(&servers, "s2", "secret", "password", "hunter2")?;
    let seen = revision_of(&servers, "s1", "kept-49")?;
    servers.kill("s3")?;
    servers.kill("s1")?;
    let recover = |servers: &Fleet| {
        let data_dir = servers.data_dir("s1");
        servers.offline(&["recover", "--data-dir", &data_dir.display().to_string()])
    };
    // One of the dead is not dead.
    refused(recover(&servers), "server \"s2\"")?;
    servers.kill("s2")?;
    let said = recover(&servers)?;
    ensure!(
        said.contains("server \"s1\" is the whole cluster now"),
        "{said}"
    );
    servers.restart("s1")?;
    for number in 0..50 {
        value_of(&servers, "s1", "configmap", &format!("kept-{number}"))?;
    }
    // What the survivor does not have may have been seen: its revisions are not given again.
    keep(&servers, "s1", "configmap", "later", "1")?;
    let later = revision_of(&servers, "s1", "later")?;
    ensure!(later > seen + 500_000_000, "{later} after {seen}");
    told_to_look_anew(&servers, "s1", seen)?;
    eventually("the dead to be forgotten", || {
        let names = names(&servers, "s1")?;
        ensure!(names == ["s1"], "{names:?}");
        Ok(())
    })?;
    // A second time there is nothing to recover from.
    servers.terminate("s1")?;
    refused(recover(&servers), "needs no recovery")?;
    servers.restart("s1")?;
    let added = servers.add("s1", "s1")?;
    ensure!(added == "s4", "{added}");
    eventually("the new server to vote", || {
        let members = servers.members("s4")?;
        let voters = members.iter().filter(|member| member["role"] == "voter");
        ensure!(voters.count() == 2, "{members:?}");
        Ok(())
    })?;
    let password = value_of(&servers, "s4", "secret", "password")?;
    ensure!(password == "aHVudGVyMg==", "{password}");
    Ok(())
}

#[test]
fn a_backup_becomes_a_cluster() -> Result<()> {
    let mut servers = Fleet::start(1)?;
    keep(&servers, "s1", "configmap", "before", "1")?;
    keep(&servers, "s1", "secret", "password", "hunter2")?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("cluster.backup");
    let backup = file.display().to_string();
    let said = servers.gantry("s1", &["backup", "save", &backup])?;
    ensure!(said.contains("saved to"), "{said}");
    keep(&servers, "s1", "configmap", "after", "1")?;
    let after = revision_of(&servers, "s1", "after")?;
    let said = servers.offline(&["backup", "inspect", &backup])?;
    ensure!(said.contains("configmaps"), "{said}");

    // Half of it is no backup, and neither is one with a flipped bit.
    let bytes = fs::read(&file)?;
    ensure!(
        !bytes.windows(7).any(|window| window == b"hunter2"),
        "the secret is readable in the backup"
    );
    let broken = directory.path().join("broken.backup");
    let inspect_broken = |bytes: &[u8]| -> Result<()> {
        fs::write(&broken, bytes)?;
        let inspected = servers.offline(&["backup", "inspect", &broken.display().to_string()]);
        refused(inspected, "the backup is damaged")
    };
    inspect_broken(&bytes[..bytes.len() / 2])?;
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    inspect_broken(&flipped)?;

    let keys = directory.path().join("keys");
    fs::copy(servers.data_dir("s1").join("keys"), &keys)?;
    let restore = |servers: &Fleet, backup: &str, name: &str| {
        servers.offline(&[
            "backup",
            "restore",
            backup,
            "--keys",
            &keys.display().to_string(),
            "--name",
            name,
            "--data-dir",
            &servers.data_dir(name).display().to_string(),
        ])
    };
    // Over a living cluster, and over one that is stopped.
    refused(restore(&servers, &backup, "s1"), "already runs from")?;
    servers.kill("s1")?;
    refused(
        restore(&servers, &backup, "s1"),
        "already holds the server \"s1\"",
    )?;
    refused(
        restore(&servers, &broken.display().to_string(), "s2"),
        "broken.backup",
    )?;
    restore(&servers, &backup, "s2")?;
    let restored = servers.add_alone()?;
    ensure!(restored == "s2", "{restored}");
    let names = names(&servers, "s2")?;
    ensure!(names == ["s2"], "{names:?}");
    ensure!(value_of(&servers, "s2", "configmap", "before")? == "1");
    let password = value_of(&servers, "s2", "secret", "password")?;
    ensure!(password == "aHVudGVyMg==", "{password}");
    refused(value_of(&servers, "s2", "configmap", "after"), "not found")?;
    // Whoever followed the old cluster is told to look anew, rather than shown another past.
    keep(&servers, "s2", "configmap", "another", "1")?;
    let another = revision_of(&servers, "s2", "another")?;
    ensure!(another > after, "{another} after {after}");
    told_to_look_anew(&servers, "s2", after)?;
    Ok(())
}

#[test]
fn a_server_keeps_the_latest_backups_by_itself() -> Result<()> {
    let mut servers = Fleet::start(1)?;
    servers.terminate("s1")?;
    servers.restart_with("s1", &["--backup-every", "1s", "--backups", "2"])?;
    let directory = servers.data_dir("s1").join("backups");
    let mut newest = None;
    let mut seen = 0;
    eventually("four backups to have been made", || {
        let mut files: Vec<_> = fs::read_dir(&directory)?
            .map(|file| Ok(file?.path()))
            .collect::<Result<_>>()?;
        files.retain(|path| path.extension().is_some_and(|end| end == "backup"));
        files.sort();
        if files.last() != newest.as_ref() {
            newest = files.last().cloned();
            seen += 1;
        }
        ensure!(seen >= 4, "{seen} so far");
        // One more while the oldest is being removed.
        ensure!(files.len() <= 3, "{files:?}");
        Ok(())
    })?;
    servers.kill("s1")?;
    let newest = newest.context("a backup")?.display().to_string();
    let said = servers.offline(&["backup", "inspect", &newest])?;
    ensure!(said.contains("namespaces"), "{said}");
    Ok(())
}
