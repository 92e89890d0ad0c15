//! `gantry agent`: a node alone; and what `up` and `down` need of it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use gantry_agent::pull_verification::{PullVerification, RepositoryPattern, VerificationPolicy};
use gantry_agent::sysctls::SysctlPattern;
use gantry_agent::{Agent, AgentConfig, NodeIdentity, identity};
use gantry_network::OverlayMode;
use gantry_tasks::{Panicked, caught};
use k8s_openapi::api::core::v1::Taint;
use tokio_util::sync::CancellationToken;

use super::join_token::JoinToken;
use super::machine::{default_address, default_node_name, require_root, terminated};
use super::memory::Memory;
use super::place::Place;
use super::{daemon, server};

/// What an agent is and where it reports to.
pub(crate) struct Settings {
    pub(crate) node_name: String,
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) identity: NodeIdentity,
    pub(crate) data_dir: PathBuf,
    pub(crate) address: Ipv4Addr,
    pub(crate) address_v6: Option<Ipv6Addr>,
    pub(crate) local_api: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) overlay: Overlay,
    pub(crate) marks: Marks,
    pub(crate) memory: Memory,
}

/// Where clients on a node reach the API, unless told otherwise.
pub(crate) const LOCAL_API: &str = "127.0.0.1:6444";

/// Where a node's metrics are read, unless told otherwise.
pub(crate) const METRICS: &str = "127.0.0.1:10249";

/// When pods' packets travel in VXLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Overlay {
    /// For nodes behind a router; those of the same subnet are sent packets as they are
    Auto,
    /// For all: where the network drops packets with addresses that it does not know
    Always,
}

impl Overlay {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
        }
    }
}

impl From<Overlay> for OverlayMode {
    fn from(overlay: Overlay) -> Self {
        match overlay {
            Overlay::Auto => Self::Auto,
            Overlay::Always => Self::Always,
        }
    }
}

/// What tells a node from others, and what its pods may do.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Marks {
    /// A label of the node; may be given several times
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = own_label)]
    labels: Vec<(String, String)>,
    /// A taint that a new node begins with; may be given several times
    #[arg(long = "node-taint", value_name = "KEY[=VALUE]:EFFECT", value_parser = taint)]
    taints: Vec<Taint>,
    /// Kernel settings that pods of the node may ask for beside the safe ones, such as net.core.somaxconn or net.ipv4.*
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    allowed_unsafe_sysctls: Vec<SysctlPattern>,
    /// Which images that are on the node are used by pods that have not shown that they may pull them: NeverVerify (all),
    /// NeverVerifyPreloadedImages (those that nobody's pod has pulled; the default), NeverVerifyAllowlistedImages, or
    /// AlwaysVerify (none)
    #[arg(long, value_name = "POLICY")]
    image_pull_credentials_verification_policy: Option<VerificationPolicy>,
    /// Repositories whose images are any pod's under NeverVerifyAllowlistedImages, such as docker.io/library/nginx or
    /// registry.example/team/*
    #[arg(
        long,
        value_name = "PATTERN",
        value_delimiter = ',',
        requires = "image_pull_credentials_verification_policy"
    )]
    preloaded_images_verification_allowlist: Vec<RepositoryPattern>,
    /// Replace the tokens of pods at least this often; for tests
    #[arg(long, hide = true, value_parser = crate::duration::parse)]
    token_refresh: Option<Duration>,
}

impl Marks {
    /// As another process of this program is told them.
    pub(super) fn arguments(&self) -> Vec<String> {
        let labels = self.labels.iter();
        let labels =
            labels.flat_map(|(key, value)| ["--node-label".to_owned(), format!("{key}={value}")]);
        let taints = self.taints.iter().flat_map(|taint| {
            let value = taint.value.as_deref().unwrap_or_default();
            let text = format!("{}={value}:{}", taint.key, taint.effect);
            ["--node-taint".to_owned(), text]
        });
        let sysctls = self.allowed_unsafe_sysctls.iter();
        let sysctls =
            sysctls.flat_map(|pattern| ["--allowed-unsafe-sysctls".to_owned(), pattern.text()]);
        let policy = self.image_pull_credentials_verification_policy.iter();
        let policy = policy.flat_map(|policy| {
            let flag = "--image-pull-credentials-verification-policy".to_owned();
            [flag, policy.text().to_owned()]
        });
        let allowed = self.preloaded_images_verification_allowlist.iter();
        let allowed = allowed.flat_map(|pattern| {
            let flag = "--preloaded-images-verification-allowlist".to_owned();
            [flag, pattern.text()]
        });
        let of_pulls = policy.chain(allowed);
        let refresh = self.token_refresh.iter().flat_map(|refresh| {
            let text = format!("{}s", refresh.as_secs());
            ["--token-refresh".to_owned(), text]
        });
        labels
            .chain(taints)
            .chain(sysctls)
            .chain(of_pulls)
            .chain(refresh)
            .collect()
    }
}

/// A label that a node may give itself.
fn own_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = label(text)?;
    match gantry_api::node_labels::refusal([key.as_str()]) {
        Some(refusal) => Err(refusal),
        None => Ok((key, value)),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(format!("\"{text}\" is not of the form KEY=VALUE"));
    };
    let wrong = gantry_api::names::is_qualified_name(key)
        .into_iter()
        .chain(gantry_api::names::is_label_value(value))
        .next();
    match wrong {
        Some(wrong) => Err(format!("label \"{text}\": {wrong}")),
        None => Ok((key.to_owned(), value.to_owned())),
    }
}

fn taint(text: &str) -> Result<Taint, String> {
    const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let parts = text
        .rsplit_once(':')
        .filter(|(_, effect)| EFFECTS.contains(effect));
    let Some((mark, effect)) = parts else {
        return Err(format!(
            "\"{text}\" is not of the form KEY[=VALUE]:EFFECT, with an effect of {}",
            EFFECTS.join(", ")
        ));
    };
    let (key, value) = mark.split_once('=').unwrap_or((mark, ""));
    label(&format!("{key}={value}"))?;
    Ok(Taint {
        key: key.to_owned(),
        value: Some(value.to_owned()).filter(|value| !value.is_empty()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

/// Run a node's agent, in the foreground
#[derive(Debug, clap::Args)]
pub(crate) struct AgentCommand {
    #[command(flatten)]
    place: Place,
    /// The network namespace to run in, as 'gantry up --nodes' makes them
    #[arg(long, hide = true, value_name = "FILE")]
    pub(crate) netns: Option<PathBuf>,
    /// The node's kubeconfig, from 'gantry server --node-kubeconfig NAME=FILE'
    #[arg(long, value_name = "FILE", conflicts_with = "join")]
    node_kubeconfig: Option<PathBuf>,
    /// Join the cluster of this server, at the first start
    #[arg(long, value_name = "HOST[:PORT]")]
    join: Option<String>,
    #[command(flatten)]
    pub(crate) token: JoinToken,
    /// The node's name; this machine's host name when not given
    #[arg(long)]
    node_name: Option<String>,
    /// The address other machines reach this one at; that of the default route when not given
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Its IPv6 address, in a dual-stack cluster
    #[arg(long, value_name = "ADDRESS")]
    address_v6: Option<Ipv6Addr>,
    /// Where clients on this node reach the API, through whichever server lives; on loopback
    #[arg(long, value_name = "ADDRESS:PORT", default_value = LOCAL_API)]
    local_api: SocketAddr,
    /// Where Prometheus reads the node's metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = METRICS)]
    metrics: SocketAddr,
    /// Which nodes pods' packets are wrapped into VXLAN for
    #[arg(long, value_enum, default_value = "auto")]
    overlay: Overlay,
    #[command(flatten)]
    marks: Marks,
    #[command(flatten)]
    memory: Memory,
}

/// The agent's configuration, derived from its data directory alone but for who it is.
fn config(settings: Settings) -> AgentConfig {
    let usual = AgentConfig::in_directory(&settings.data_dir);
    AgentConfig {
        node_name: settings.node_name,
        servers: settings.servers,
        identity: settings.identity,
        node_address: settings.address,
        node_address_v6: settings.address_v6,
        local_api: Some(settings.local_api),
        metrics: Some(settings.metrics),
        overlay_mode: settings.overlay.into(),
        labels: settings.marks.labels.into_iter().collect(),
        taints: settings.marks.taints,
        memory: settings.memory.policy(),
        allowed_unsafe_sysctls: settings.marks.allowed_unsafe_sysctls,
        pull_verification: PullVerification {
            policy: settings
                .marks
                .image_pull_credentials_verification_policy
                .unwrap_or_default(),
            allowlist: settings.marks.preloaded_images_verification_allowlist,
        },
        token_refresh: settings.marks.token_refresh.unwrap_or(usual.token_refresh),
        ..usual
    }
}

/// Between two beginnings of an agent, of which a task panicked.
const BEGIN_AGAIN: Duration = Duration::from_secs(1);

/// Runs an agent until told to stop; its pods stay. They also stay when one of its tasks panics: the agent begins anew, as
/// it would after a restart of the process.
pub(crate) async fn run(settings: Settings, stop: CancellationToken) -> Result<()> {
    let config = config(settings);
    loop {
        let ended = caught(Agent::run(config.clone(), stop.clone())).await;
        let panicked = match ended {
            Ok(Err(error)) if error.is::<Panicked>() => format!("{error:#}"),
            Ok(ended) => return ended,
            Err(panicked) => panicked.to_string(),
        };
        tracing::error!(
            error = panicked,
            "the agent ended unexpectedly; it begins anew"
        );
        let wait = tokio::time::sleep(BEGIN_AGAIN);
        if stop.run_until_cancelled(wait).await.is_none() {
            return Ok(());
        }
    }
}

/// Ends every pod of an agent that no longer runs, and removes its network, mounts and cgroups.
pub(crate) async fn teardown(data_dir: &Path) -> Result<()> {
    if !data_dir.exists() {
        return Ok(());
    }
    gantry_agent::teardown(&AgentConfig::in_directory(data_dir))
        .await
        .context("removing what the agent left behind")
}

impl AgentCommand {
    pub(crate) async fn run(&self) -> Result<()> {
        require_root("agent")?;
        let _lock = daemon::Lock::acquire(&self.place.data_dir)?;
        let name = self.node_name.clone().unwrap_or_else(default_node_name);
        let (server, identity) = self.identity(&name).await?;
        let settings = Settings {
            node_name: name,
            servers: vec![server],
            identity,
            data_dir: self.place.data_dir.join("agent"),
            address: self.address.unwrap_or_else(default_address),
            address_v6: self.address_v6,
            local_api: self.local_api,
            metrics: self.metrics,
            overlay: self.overlay,
            marks: self.marks.clone(),
            memory: self.memory,
        };
        let stop = CancellationToken::new();
        let running = run(settings, stop.clone());
        tokio::pin!(running);
        tokio::select! {
            result = &mut running => result,
            result = terminated() => {
                result?;
                stop.cancel();
                running.await
            }
        }
    }

    /// Whether the machine is a node already, as far as that matters to one that may join again.
    async fn registration(&self, kept: &Path) -> Result<Registration> {
        if !kept.exists() {
            return Ok(Registration::Unknown);
        }
        if self.join.is_none() {
            return Ok(Registration::Registered);
        }
        let kubeconfig = kube::config::Kubeconfig::read_from(kept)
            .with_context(|| format!("reading {}", kept.display()))?;
        let Some((server, identity)) = identity_of(&kubeconfig, kept) else {
            return Ok(Registration::Registered);
        };
        if identity.is_over()? {
            return Ok(Registration::Expired { key: identity.key });
        }
        match identity.is_revoked(server).await? {
            true => Ok(Registration::Unknown),
            false => Ok(Registration::Registered),
        }
    }

    /// Where the key is kept that the node joins with, until it has a certificate.
    fn joining_key(&self) -> PathBuf {
        self.place.data_dir.join("joining.key")
    }

    fn first_key(&self, name: &str) -> Result<String> {
        let path = self.joining_key();
        if let Some(key) = gantry_tls::read(&path)? {
            return Ok(key);
        }
        let key = gantry_tls::KeyRequest::new(name)?.key;
        gantry_tls::write(&path, &key, 0o600)?;
        Ok(key)
    }

    /// Who the node is: what it was given, what it got when it joined, or what it gets now.
    async fn identity(&self, name: &str) -> Result<(SocketAddr, NodeIdentity)> {
        let kept = self.place.data_dir.join("node.kubeconfig");
        let path = self.node_kubeconfig.as_ref().unwrap_or(&kept);
        let registration = match &self.node_kubeconfig {
            Some(_) => Registration::Registered,
            None => self.registration(&kept).await?,
        };
        if registration != Registration::Registered {
            let (Some(server), Some(token)) = (&self.join, self.token.read()?) else {
                bail!(
                    "this machine is no node yet: name a server with --join HOST and the file with a token from \
                     'gantry token create --for nodes' with --token-file, or a kubeconfig with --node-kubeconfig"
                );
            };
            let server = server::server_to_join(server).await?;
            let key = match registration {
                Registration::Expired { key } => key,
                _ => self.first_key(name)?,
            };
            let identity = identity::join(server, &token, name, &key).await?;
            gantry_tls::write(&kept, &identity.to_kubeconfig(name, server)?, 0o600)?;
            let joining = self.joining_key();
            if joining.exists() {
                std::fs::remove_file(&joining)
                    .with_context(|| format!("removing {}", joining.display()))?;
            }
        }
        let kubeconfig = kube::config::Kubeconfig::read_from(path)
            .with_context(|| format!("reading {}", path.display()))?;
        identity_of(&kubeconfig, path).with_context(|| {
            format!(
                "{} has no server, certificate and key of a node: make one with 'gantry server --node-kubeconfig NAME=FILE'",
                path.display()
            )
        })
    }
}

/// What a machine is to its cluster.
#[derive(Debug, PartialEq, Eq)]
enum Registration {
    /// A node.
    Registered,
    /// A node whose certificate is over. By its key it is recognised.
    Expired {
        /// The key, PEM.
        key: String,
    },
    /// A stranger; or a node that was removed, which is one.
    Unknown,
}

/// The first cluster and user of a kubeconfig with embedded certificates.
fn identity_of(
    kubeconfig: &kube::config::Kubeconfig,
    path: &Path,
) -> Option<(SocketAddr, NodeIdentity)> {
    use base64::Engine;
    let decode = |text: &str| {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(text)
            .ok()?;
        String::from_utf8(bytes).ok()
    };
    let cluster = kubeconfig.clusters.first()?.cluster.as_ref()?;
    let user = kubeconfig.auth_infos.first()?.auth_info.as_ref()?;
    let server = cluster
        .server
        .as_deref()?
        .strip_prefix("https://")?
        .parse()
        .ok()?;
    let key = serde_json::to_value(user).ok()?;
    let field = |name: &str| key[name].as_str().and_then(decode);
    Some((
        server,
        NodeIdentity {
            trusted: decode(cluster.certificate_authority_data.as_deref()?)?,
            certificate: field("client-certificate-data")?,
            key: field("client-key-data")?,
            kubeconfig: Some(path.to_owned()),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_taints_are_read_or_refused_with_their_form() {
        assert_eq!(label("zone=a"), Ok(("zone".to_owned(), "a".to_owned())));
        let tainted = taint("dedicated=gpu:NoSchedule").expect("a taint");
        assert_eq!(
            (tainted.key.as_str(), tainted.value.as_deref()),
            ("dedicated", Some("gpu"))
        );
        assert_eq!(taint("spot:NoExecute").expect("a taint").value, None);
        for (refused, words) in [
            (label("zone").err(), "KEY=VALUE"),
            (label("a b=c").err(), "a b=c"),
            (
                own_label("node-role.kubernetes.io/control-plane=").err(),
                "[node-role.kubernetes.io/control-plane]",
            ),
            (taint("spot").err(), "KEY[=VALUE]:EFFECT"),
            (taint("spot:Never").err(), "NoSchedule"),
        ] {
            let refused = refused.expect(words);
            assert!(refused.contains(words), "{refused}");
        }
    }
}
