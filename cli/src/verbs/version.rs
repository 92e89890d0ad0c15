//! `gantry version`.

use anyhow::Result;

use crate::client::{Call, Cluster};
use crate::output;

/// Print the version of this binary and of the cluster
#[derive(Debug, clap::Args)]
pub(crate) struct Version {
    /// Do not ask the cluster
    #[arg(long)]
    client: bool,
}

impl Version {
    /// `cluster` is absent when none is configured: the binary's own version is still worth printing.
    pub(crate) async fn run(&self, cluster: Result<Cluster>) -> Result<()> {
        output::print(&format!("Client Version: v{}\n", env!("CARGO_PKG_VERSION")))?;
        if self.client {
            return Ok(());
        }
        let version = cluster?.call(Call::get("/version")).await?;
        output::print(&format!(
            "Server Version: {}\n",
            version["gitVersion"].as_str().unwrap_or("unknown")
        ))
    }
}
