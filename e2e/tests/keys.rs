//! Secrets at rest: nowhere readable, and sealed anew with another key while three servers run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gantry_e2e::{Fleet, eventually};

/// Whether any file below a directory holds the text.
fn holds(directory: &Path, text: &str) -> Result<bool> {
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let found = if path.is_dir() {
            holds(&path, text)?
        } else {
            let bytes = fs::read(&path)?;
            bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn key_ids(servers: &Fleet, name: &str) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(servers.data_dir(name).join("keys"))?;
    let ring: serde_json::Value = serde_json::from_str(&text)?;
    let keys = ring["keys"].as_object().context("keys")?;
    Ok(keys.keys().cloned().collect())
}

fn secret(servers: &Fleet, at: &str) -> Result<String> {
    servers.kubectl(
        at,
        &["get", "secret", "marked", "-o", "jsonpath={.data.value}"],
    )
}

#[test]
fn secrets_are_sealed_and_get_another_key() -> Result<()> {
    let mut servers = Fleet::start(3)?;
    // What etcd-like stores would show: base64 as in the manifest.
    let (open, base64) = (
        "from-a-config-map-0123456789",
        "aGlkZGVuLWluLWEtc2VjcmV0LTAxMjM0NTY3ODk=",
    );
    let manifest = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: marked}}\ndata: {{value: {base64}}}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: marked}}\ndata: {{value: {open}}}\n"
    );
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), manifest)?;
    let path = file.path().display().to_string();
    servers.kubectl("s1", &["create", "-f", &path])?;
    for name in servers.names() {
        ensure!(secret(&servers, &name)? == base64);
        let store = servers.data_dir(&name).join("store");
        eventually("the data to be on disk", || {
            ensure!(holds(&store, open)?, "{open} is not there yet");
            Ok(())
        })?;
        ensure!(
            !holds(&servers.data_dir(&name), base64)?,
            "{name} keeps it readable"
        );
    }

    // Not without everybody.
    servers.kill("s3")?;
    let refused = servers.gantry("s1", &["secrets", "rotate-key"]);
    let said = format!("{:#}", refused.err().context("it was not refused")?);
    ensure!(
        said.contains("server \"s3\" cannot be given the new key"),
        "{said}"
    );
    servers.restart("s3")?;

    let before = key_ids(&servers, "s1")?;
    let said = servers
        .gantry("s2", &["secrets", "rotate-key", "--timeout", "45s"])
        .with_context(|| servers.logs())?;
    ensure!(said.contains("older keys are forgotten"), "{said}");
    let all_have_the_new_one_only = |servers: &Fleet| -> Result<()> {
        for name in servers.names() {
            let keys = key_ids(servers, &name)?;
            ensure!(
                keys.len() == 1 && keys.is_disjoint(&before),
                "{name}: {keys:?}"
            );
        }
        Ok(())
    };
    eventually("every server to forget the old keys", || {
        all_have_the_new_one_only(&servers)
    })?;
    for name in servers.names() {
        servers.kill(&name)?;
    }
    // All but the last wait for each other.
    servers.start_again(&["s1", "s2", "s3"])?;
    for name in servers.names() {
        ensure!(secret(&servers, &name)? == base64);
    }
    Ok(())
}
