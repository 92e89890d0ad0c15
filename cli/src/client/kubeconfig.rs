//! Which cluster a command talks to.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// Where `gantry up` leaves the administrator's kubeconfig.
pub(crate) const ADMIN_KUBECONFIG: &str = "/var/lib/gantry/admin.kubeconfig";

/// How to find and enter the cluster.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Credentials {
    /// kubeconfig file; $KUBECONFIG, then the one `gantry up` wrote, then ~/.kube/config when not given
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
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"));
    [Some(PathBuf::from(ADMIN_KUBECONFIG)), home]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
}

impl Credentials {
    /// The connection settings of the kubeconfig's context.
    pub(crate) async fn load(&self) -> Result<kube::Config> {
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
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .with_context(|| format!("using the kubeconfig {}", path.display()))?;
        // Watches and followed logs are silent for as long as nothing happens.
        config.read_timeout = None;
        Ok(config)
    }
}
