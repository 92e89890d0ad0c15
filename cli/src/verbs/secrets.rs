//! `gantry secrets`: the keys that Secrets are encrypted with at rest.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use http::Method;
use serde_json::{Value, json};

use crate::client::{Call, Cluster};
use crate::output;

const PATH: &str = "/gantry/v1/keys";
const LOOK: Duration = Duration::from_millis(500);

/// Look after the keys that Secrets are encrypted with at rest
#[derive(Debug, clap::Args)]
pub(crate) struct Secrets {
    #[command(subcommand)]
    command: SecretsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum SecretsCommand {
    /// Make a new key, encrypt everything with it, and forget the old one
    RotateKey {
        /// Give up waiting after this long; the servers go on by themselves
        #[arg(long, default_value = "5m", value_parser = crate::duration::parse)]
        timeout: Duration,
    },
    /// Say which key encrypts, and how far each server is with it
    Keys,
}

impl Secrets {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        match &self.command {
            SecretsCommand::RotateKey { timeout } => rotate(cluster, *timeout).await,
            SecretsCommand::Keys => {
                let keys = cluster.call(Call::get(PATH)).await?;
                output::print(&describe(&keys))
            }
        }
    }
}

async fn rotate(cluster: &Cluster, timeout: Duration) -> Result<()> {
    let path = format!("{PATH}/rotate");
    let begun = cluster
        .call(Call::send(Method::POST, &path, &json!({})))
        .await?;
    let id = begun["active"].as_str().unwrap_or_default().to_owned();
    let deadline = Instant::now() + timeout;
    let bar = output::spinner(format!("encrypting everything with key {id}"));
    loop {
        let keys = cluster.call(Call::get(PATH)).await?;
        if is_done(&keys, &id) {
            bar.finish_and_clear();
            return output::print(&format!(
                "everything is encrypted with key {id}, and the older keys are forgotten\n\
                 copy the file 'keys' of a server's data directory anew; backups made before need the copy you have of the old one\n"
            ));
        }
        if Instant::now() > deadline {
            bar.finish_and_clear();
            bail!(
                "key {id} encrypts, but not every server is done:\n{}look again with 'gantry secrets keys'",
                describe(&keys)
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether every server has sealed everything with a key, and the one that answers has no other.
fn is_done(keys: &Value, id: &str) -> bool {
    let servers = keys["servers"].as_array();
    let sealed =
        servers.is_some_and(|servers| servers.iter().all(|server| server["sealedWith"] == id));
    sealed && keys["keys"] == json!([id])
}

fn describe(keys: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut lines = vec![["SERVER", "ENCRYPTED WITH"].map(str::to_owned).to_vec()];
    for server in keys["servers"].as_array().into_iter().flatten() {
        let sealed = match server["sealedWith"].is_null() {
            true => &keys["active"],
            false => &server["sealedWith"],
        };
        lines.push(vec![text(&server["name"]), text(sealed)]);
    }
    let ids: Vec<String> = keys["keys"]
        .as_array()
        .into_iter()
        .flatten()
        .map(text)
        .collect();
    format!(
        "key {} encrypts; known: {}\n{}",
        text(&keys["active"]),
        ids.join(", "),
        output::align(&lines)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn done_is_when_nobody_needs_another_key() {
        let keys = |known: &[&str], second: Option<&str>| {
            json!({
                "active": "b",
                "keys": known,
                "servers": [{"name": "s1", "sealedWith": "b"}, {"name": "s2", "sealedWith": second}],
            })
        };
        assert!(is_done(&keys(&["b"], Some("b")), "b"));
        assert!(!is_done(&keys(&["a", "b"], Some("b")), "b"));
        assert!(!is_done(&keys(&["b"], Some("a")), "b"));
        assert!(!is_done(&keys(&["b"], None), "b"));
    }
}
