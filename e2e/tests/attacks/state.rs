//! A data directory that lost a part of itself.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Cluster, gantry};

/// What of a data directory makes the server who it is.
const PARTS: [&str; 4] = ["member.json", "store", "keys", "pki"];

/// Every file of a file or directory, with a hash of what is in it.
fn contents(path: &Path, found: &mut BTreeMap<PathBuf, u64>) -> Result<()> {
    if path.is_dir() {
        for item in fs::read_dir(path)? {
            contents(&item?.path(), found)?;
        }
    } else if path.exists() {
        let mut hasher = DefaultHasher::new();
        fs::read(path)?.hash(&mut hasher);
        found.insert(path.to_owned(), hasher.finish());
    }
    Ok(())
}

fn state(data_dir: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for part in PARTS {
        contents(&data_dir.join(part), &mut found)?;
    }
    Ok(found)
}

/// Makes `to` hold the parts that `from` holds, and no others.
fn exchange(from: &Path, to: &Path) -> Result<()> {
    for part in PARTS {
        if to.join(part).exists() {
            remove(&to.join(part))?;
        }
        let mut copy = Command::new("cp");
        // Journals are longer than what is in them.
        let copied = copy
            .args(["-a", "--sparse=always"])
            .arg(from.join(part))
            .arg(to)
            .status()?;
        ensure!(copied.success(), "copying {part}: {copied}");
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match path.is_dir() {
        true => fs::remove_dir_all(path)?,
        false => fs::remove_file(path)?,
    }
    Ok(())
}

/// Leaves it there with nothing in it.
fn empty(path: &Path) -> Result<()> {
    match path.is_dir() {
        true => {
            fs::remove_dir_all(path)?;
            fs::create_dir(path)?;
        }
        false => fs::write(path, b"")?,
    }
    Ok(())
}

#[test]
fn row_24_a_data_directory_that_lost_a_part_is_refused_and_left_as_it_is() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=is=here"])?;
    let data_dir = cluster.data_dir();
    let named = data_dir.display().to_string();
    cluster.gantry(&["down", "--data-dir", &named])?;
    let whole = tempfile::tempdir()?;
    exchange(&data_dir, whole.path())?;
    let journal = fs::read_dir(data_dir.join("store"))?
        .filter_map(|item| Some(item.ok()?.path()))
        .find(|path| path.extension().is_some_and(|kind| kind == "jnl"))
        .context("a journal")?;
    let journal = journal.strip_prefix(&data_dir)?.to_owned();
    let part = |name: &str| PathBuf::from(name);
    for (part, told) in [
        (part("store"), "store"),
        (part("store/version"), "store/version"),
        (part("store/keyspaces"), "store/keyspaces"),
        (part("store/keyspaces/0"), "store/keyspaces/0"),
        (part("store/keyspaces/1"), "store/keyspaces/1"),
        (part("store/keyspaces/2"), "store/keyspaces/2"),
        (journal, ".jnl"),
        (part("member.json"), "member.json"),
        (part("keys"), "keys"),
    ] {
        for harm in [remove, empty] {
            exchange(whole.path(), &data_dir)?;
            harm(&data_dir.join(&part))?;
            let before = state(&data_dir)?;
            let (code, said) = cluster.fails(&gantry()?, &["up", "--data-dir", &named])?;
            let part = part.display();
            ensure!(code == 1 && said.contains(told), "{part}: {said}");
            let helps = ["gantry member remove", "copy the file from another"];
            ensure!(
                helps.iter().any(|help| said.contains(help)),
                "{part}: no help in: {said}"
            );
            ensure!(state(&data_dir)? == before, "{part}: something was changed");
        }
    }
    exchange(whole.path(), &data_dir)?;
    cluster.gantry(&["up", "--data-dir", &named])?;
    let kept = cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.is}"])?;
    ensure!(kept == "here", "{kept}");
    cluster.gantry(&["down", "--purge", "--data-dir", &named])?;
    Ok(())
}
