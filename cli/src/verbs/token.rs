//! `gantry token`: who may join the cluster, and for how long.
//!
//! A token is `ID.SECRET.HASH`. The first two are a Kubernetes bootstrap token, a Secret in `kube-system`; the hash is
//! that of the cluster's authority, by which the joining side recognises the cluster.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use http::Method;
use rand::Rng as _;
use serde_json::{Value, json};

use crate::client::{Call, Cluster};
use crate::{duration, output};

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const PREFIX: &str = "bootstrap-token-";
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Create, list and revoke tokens that admit machines to the cluster
#[derive(Debug, clap::Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TokenCommand {
    /// Make a token and print it
    Create(Create),
    /// List tokens
    List,
    /// Make a token useless
    Revoke {
        /// The token, or the part before its first dot
        token: String,
    },
}

/// What a token admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Admits {
    /// Servers of the control plane: who has it can read everything
    Servers,
    /// Nodes
    Nodes,
}

impl Admits {
    fn word(self) -> &'static str {
        match self {
            Self::Servers => "servers",
            Self::Nodes => "nodes",
        }
    }
}

#[derive(Debug, clap::Args)]
struct Create {
    /// What it admits
    #[arg(long = "for", value_enum)]
    admits: Admits,
    /// How long it is good for: 30m, 24h, 7d
    #[arg(long, default_value = "24h", value_parser = life)]
    ttl: i64,
    /// The node that it admits and no other, also in place of the machine that is this node now
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// What it is for, shown in lists
    #[arg(long)]
    description: Option<String>,
}

impl Create {
    /// The group of who shows the token.
    fn group(&self) -> Result<String> {
        let Some(node) = &self.node else {
            return Ok(group(self.admits));
        };
        if self.admits != Admits::Nodes {
            bail!("--node names a node: it goes with --for nodes");
        }
        if let Some(wrong) = gantry_api::names::is_dns1123_subdomain(node) {
            bail!("--node \"{node}\": {wrong}");
        }
        Ok(format!("{GROUPS}node:{node}"))
    }
}

/// What comes before the rest of a token's group.
const GROUPS: &str = "system:bootstrappers:gantry:";

fn group(admits: Admits) -> String {
    format!("{GROUPS}{}", admits.word())
}

/// A token's life.
fn life(text: &str) -> Result<i64, String> {
    let seconds = duration::parse(text)?.as_secs();
    match i64::try_from(seconds) {
        Ok(seconds) if (1..=366 * 24 * 60 * 60).contains(&seconds) => Ok(seconds),
        _ => Err(format!(
            "{text} is out of range: a token lives from 1s to 366d"
        )),
    }
}

fn random(length: usize) -> String {
    let mut source = rand::rng();
    let letter = |_| char::from(ALPHABET[source.random_range(0..ALPHABET.len())]);
    (0..length).map(letter).collect()
}

fn data(secret: &Value, field: &str) -> String {
    let encoded = secret["data"][field].as_str().unwrap_or_default();
    let bytes = STANDARD.decode(encoded).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Token {
    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        match &self.command {
            TokenCommand::Create(asked) => {
                let description = asked.description.as_deref();
                let token = create_of(cluster, &asked.group()?, asked.ttl, description).await?;
                output::print(&format!("{token}\n"))
            }
            TokenCommand::List => list(cluster).await,
            TokenCommand::Revoke { token } => revoke(cluster, token).await,
        }
    }
}

/// Makes a token that is good for some seconds.
pub(crate) async fn create(
    cluster: &Cluster,
    admits: Admits,
    ttl: i64,
    description: Option<&str>,
) -> Result<String> {
    create_of(cluster, &group(admits), ttl, description).await
}

async fn create_of(
    cluster: &Cluster,
    group: &str,
    ttl: i64,
    description: Option<&str>,
) -> Result<String> {
    let authority = cluster.authority.as_deref().context(
        "the kubeconfig names no certificate-authority, by which who joins would recognise the cluster: use the one that 'gantry server' wrote",
    )?;
    let hash = gantry_tls::fingerprint(authority);
    let (id, secret) = (random(6), random(16));
    let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
    let expiration = gantry_api::time::seconds(now + ttl * 1_000_000_000);
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("{PREFIX}{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id,
            "token-secret": secret,
            "expiration": expiration,
            "usage-bootstrap-authentication": "true",
            "auth-extra-groups": group,
            "description": description.unwrap_or_default(),
        },
    });
    cluster
        .call(Call::send(Method::POST, SECRETS, &object))
        .await?;
    Ok(format!("{id}.{secret}.{hash}"))
}

async fn list(cluster: &Cluster) -> Result<()> {
    let path = format!("{SECRETS}?fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken");
    let found = cluster.call(Call::get(&path)).await?;
    let mut lines = vec![
        ["ID", "ADMITS", "EXPIRES", "DESCRIPTION"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for secret in found["items"].as_array().into_iter().flatten() {
        let groups = data(secret, "auth-extra-groups");
        let admits = groups.strip_prefix(GROUPS).unwrap_or(&groups).to_owned();
        lines.push(vec![
            data(secret, "token-id"),
            admits,
            data(secret, "expiration"),
            data(secret, "description"),
        ]);
    }
    output::print(&output::align(&lines))
}

async fn revoke(cluster: &Cluster, token: &str) -> Result<()> {
    let id = token.split('.').next().unwrap_or_default();
    if id.len() != 6 {
        bail!("\"{token}\" is no token: 'gantry token list' shows the ids of those there are");
    }
    let path = format!("{SECRETS}/{PREFIX}{id}");
    cluster
        .call(Call::send(Method::DELETE, &path, &json!({})))
        .await?;
    output::print(&format!("token {id} revoked\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_life_has_an_end() {
        assert_eq!(life("2d"), Ok(172_800));
        for wrong in ["0s", "9999d", "soon"] {
            assert!(life(wrong).is_err(), "{wrong}");
        }
    }
}
