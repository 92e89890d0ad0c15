//! Which cluster a command talks to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_tls::Lifetime;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Where `gantry up` leaves the administrator's kubeconfig.
pub(crate) const ADMIN_KUBECONFIG: &str = "/var/lib/gantry/admin.kubeconfig";

/// How to find and enter the cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Credentials {
    /// kubeconfig file; $KUBECONFIG, then the one `gantry up` wrote (into $GANTRY_DATA_DIR, if set), then ~/.kube/config when
    /// not given
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use
    #[arg(long, global = true)]
    pub(crate) context: Option<String>,
    /// Namespace to act in
    #[arg(long, short = 'n', global = true)]
    pub(crate) namespace: Option<String>,
}

/// The kubeconfig used when none is named: the first that exists.
pub(crate) fn default_kubeconfig() -> Option<PathBuf> {
    if let Some(paths) = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
        return std::env::split_paths(&paths).next();
    }
    // As commands that are the cluster, not its clients, are told of another directory.
    let named = std::env::var_os("GANTRY_DATA_DIR").filter(|value| !value.is_empty());
    let named = named.map(|directory| Path::new(&directory).join("admin.kubeconfig"));
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
    [named, Some(PathBuf::from(ADMIN_KUBECONFIG)), home]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
}

/// How long a server may take to answer before another one is asked.
const ANSWER: Duration = Duration::from_secs(2);

/// The further servers that a kubeconfig names for a context, or for its current one.
fn others(kubeconfig: &Kubeconfig, context: Option<&str>) -> Vec<http::Uri> {
    let context = context.or(kubeconfig.current_context.as_deref());
    let named = kubeconfig
        .contexts
        .iter()
        .find(|known| Some(known.name.as_str()) == context);
    let cluster = named
        .and_then(|named| named.context.as_ref())
        .map(|context| context.cluster.as_str());
    let cluster = kubeconfig
        .clusters
        .iter()
        .find(|known| Some(known.name.as_str()) == cluster)
        .and_then(|known| known.cluster.as_ref());
    let extensions = cluster.and_then(|cluster| cluster.extensions.as_ref());
    let ours = extensions
        .into_iter()
        .flatten()
        .find(|extension| extension.name == gantry_tls::SERVERS_EXTENSION);
    let servers = ours.and_then(|ours| ours.extension["servers"].as_array());
    let urls = servers.into_iter().flatten().filter_map(|server| {
        let url = format!("https://{}", server.as_str()?);
        url.parse().ok()
    });
    urls.collect()
}

/// How long the client's certificate lasts that is in the kubeconfig itself.
pub(super) fn certificate(config: &kube::Config) -> Option<Lifetime> {
    let encoded = config.auth_info.client_certificate_data.as_deref()?;
    let pem = STANDARD.decode(encoded).ok()?;
    Lifetime::of(&String::from_utf8(pem).ok()?, "the client's certificate").ok()
}

async fn answers(config: &kube::Config) -> bool {
    let (Ok(client), Ok(request)) = (
        kube::Client::try_from(config.clone()),
        http::Request::get("/readyz").body(Vec::new()),
    ) else {
        return false;
    };
    matches!(
        tokio::time::timeout(ANSWER, client.request_text(request)).await,
        Ok(Ok(_))
    )
}

impl Credentials {
    /// The connection settings of the kubeconfig's context, for the server that it names or, when that one does not
    /// answer, another of its cluster.
    pub(crate) async fn find(&self) -> Result<kube::Config> {
        let (kubeconfig, config) = self.read().await?;
        let others = others(&kubeconfig, self.context.as_deref());
        if others.is_empty() || answers(&config).await {
            return Ok(config);
        }
        for url in others {
            let mut other = config.clone();
            other.cluster_url = url;
            if other.cluster_url != config.cluster_url && answers(&other).await {
                return Ok(other);
            }
        }
        // What is wrong is told of the one that is named.
        Ok(config)
    }

    /// The connection settings of the kubeconfig's context.
    pub(crate) async fn load(&self) -> Result<kube::Config> {
        self.read().await.map(|(_, config)| config)
    }

    /// The directory of the kubeconfig, with the one spelling that data directories have: the cluster's data directory, for
    /// the file that `gantry up` leaves there.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        let path = self.kubeconfig.clone().or_else(default_kubeconfig)?;
        let path = std::path::absolute(path).ok()?;
        path.parent()?.canonicalize().ok()
    }

    async fn read(&self) -> Result<(Kubeconfig, kube::Config)> {
        let Some(path) = self.kubeconfig.clone().or_else(default_kubeconfig) else {
            bail!(
                "no cluster is configured: start one with 'gantry up', or name a kubeconfig with --kubeconfig"
            );
        };
        let kubeconfig = Kubeconfig::read_from(&path)
            .with_context(|| format!("reading the kubeconfig {}", path.display()))?;
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig.clone(), &options)
            .await
            .with_context(|| format!("using the kubeconfig {}", path.display()))?;
        // Watches and followed logs are silent for as long as nothing happens.
        config.read_timeout = None;
        Ok((kubeconfig, config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_servers_are_those_of_the_context() -> Result<()> {
        let kubeconfig = Kubeconfig::from_yaml(
            "{clusters: [{name: a, cluster: {server: 'https://1.1.1.1:1', extensions: [{name: other, extension: 1}, {name: gantry, \
             extension: {servers: ['1.1.1.1:1', '[::1]:6443']}}]}}, {name: b, cluster: {server: 'https://2.2.2.2:1'}}], contexts: \
             [{name: x, context: {cluster: a, user: u}}, {name: y, context: {cluster: b, user: u}}], current-context: x}",
        )?;
        let found = |context| others(&kubeconfig, context);
        assert_eq!(found(None), ["https://1.1.1.1:1/", "https://[::1]:6443/"]);
        assert_eq!(found(Some("x")), found(None));
        assert!(found(Some("y")).is_empty() && found(Some("z")).is_empty());
        Ok(())
    }
}
