//! `gantry secrets`: the keys that Secrets are encrypted with at rest, and those that sign the tokens of service accounts.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use http::Method;
use serde_json::{Value, json};

use crate::client::{Call, Cluster};
use crate::output;

const PATH: &str = "/gantry/v1/keys";
const TOKEN_KEYS: &str = "/gantry/v1/token-keys";
const LOOK: Duration = Duration::from_millis(500);

/// Look after the keys that Secrets are encrypted with at rest, and those that sign tokens
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
    /// Sign the tokens of service accounts with a new key; the old one counts until its last token has ended
    RotateTokenKey {
        /// Make no new key, but let the old ones count for nothing from now on: tokens that they signed are refused
        #[arg(long)]
        drop_old: bool,
        /// Give up waiting after this long; the servers go on by themselves
        #[arg(long, default_value = "1m", value_parser = crate::duration::parse)]
        timeout: Duration,
    },
    /// Say which keys sign and verify the tokens of service accounts
    TokenKeys,
}

impl Secrets {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        match &self.command {
            SecretsCommand::RotateKey { timeout } => rotate(cluster, *timeout).await,
            SecretsCommand::Keys => {
                let keys = cluster.call(Call::get(PATH)).await?;
                output::print(&describe(&keys))
            }
            SecretsCommand::RotateTokenKey { drop_old: true, .. } => {
                let path = format!("{TOKEN_KEYS}/drop");
                let call = Call::send(Method::POST, &path, &json!({}));
                let keys = cluster.call(call).await?;
                output::print(&describe_token_keys(&keys))
            }
            SecretsCommand::RotateTokenKey { timeout, .. } => {
                rotate_token_key(cluster, *timeout).await
            }
            SecretsCommand::TokenKeys => {
                let keys = cluster.call(Call::get(TOKEN_KEYS)).await?;
                output::print(&describe_token_keys(&keys))
            }
        }
    }
}

async fn rotate_token_key(cluster: &Cluster, timeout: Duration) -> Result<()> {
    let path = format!("{TOKEN_KEYS}/rotate");
    let mut keys = cluster
        .call(Call::send(Method::POST, &path, &json!({})))
        .await?;
    let id = keys["keys"][0]["id"].clone();
    let deadline = Instant::now() + timeout;
    let bar = output::spinner("telling every server of the new key".to_owned());
    let signs = |keys: &Value| keys["keys"][0]["signs"] == true && keys["keys"][0]["id"] == id;
    while !signs(&keys) {
        if Instant::now() > deadline {
            bar.finish_and_clear();
            bail!(
                "the new key does not sign yet, since not every server has it:\n{}look again with 'gantry secrets token-keys'",
                describe_token_keys(&keys)
            );
        }
        tokio::time::sleep(LOOK).await;
        keys = cluster.call(Call::get(TOKEN_KEYS)).await?;
    }
    bar.finish_and_clear();
    output::print(&describe_token_keys(&keys))
}

fn describe_token_keys(keys: &Value) -> String {
    let mut lines = vec![
        ["KEY", "SIGNS", "MADE", "COUNTS UNTIL"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let time = |seconds: &Value| {
        let time = seconds
            .as_i64()
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        time.map_or_else(|| "-".to_owned(), |time| time.to_string())
    };
    for key in keys["keys"].as_array().into_iter().flatten() {
        let signs = match key["signs"] == true {
            true => "yes",
            false => "no",
        };
        lines.push(vec![
            key["id"].as_str().unwrap_or("-").to_owned(),
            signs.to_owned(),
            time(&key["made"]),
            time(&key["until"]),
        ]);
    }
    output::align(&lines)
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
