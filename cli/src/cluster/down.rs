//! `gantry down`: stops the cluster of a data directory and removes what it made in the kernel.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Place, Record, agent, daemon, hosts, require_root};
use crate::output;

/// How long the process may take to end after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Stop the cluster on this machine and everything it runs
#[derive(Debug, clap::Args)]
pub(crate) struct Down {
    #[command(flatten)]
    place: Place,
    /// Delete all state too: desired state, keys, images, logs
    #[arg(long)]
    purge: bool,
}

impl Down {
    pub(crate) async fn run(&self) -> Result<()> {
        require_root("down")?;
        let data_dir = &self.place.data_dir;
        if !data_dir.exists() {
            bail!("there is no cluster in {}", data_dir.display());
        }
        if let Some(pid) = daemon::holder(data_dir) {
            let bar = output::spinner(format!("stopping gantry (pid {})", pid.as_raw_nonzero()));
            daemon::stop(data_dir, STOP_WITHIN).await?;
            bar.finish_and_clear();
        }
        let bar = output::spinner("removing containers, network and mounts".to_owned());
        match Record::load(data_dir)? {
            Some(record) => hosts::teardown(data_dir, &record).await?,
            None => agent::teardown(&data_dir.join("agent")).await?,
        }
        bar.finish_and_clear();
        if self.purge {
            remove(data_dir).with_context(|| format!("deleting {}", data_dir.display()))?;
            return output::print("Cluster stopped and deleted\n");
        }
        output::print(&format!(
            "Cluster stopped; its desired state is kept in {} ('gantry up' brings it back, 'gantry down --purge' deletes it)\n",
            data_dir.display()
        ))
    }
}

/// Removes a data directory, which something may be mounted on. In it are trees that containers have made.
fn remove(data_dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(data_dir)? {
        gantry_durable::remove_tree(&entry?.path())?;
    }
    std::fs::remove_dir(data_dir)
}
