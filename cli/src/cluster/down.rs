//! `gantry down`: stops the cluster of a data directory and removes what it made in the kernel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::hosts::Record;
use super::machine::require_root;
use super::place::Place;
use super::{agent, daemon, hosts, place};
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
            return output::print(&format!("There is no cluster in {}\n", data_dir.display()));
        }
        ensure!(
            place::is_ours(data_dir)
                .with_context(|| format!("looking at {}", data_dir.display()))?,
            "there is no cluster in {}, which holds something else",
            data_dir.display()
        );
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
    let mut entries: Vec<PathBuf> = std::fs::read_dir(data_dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    // By a mark it is known as a cluster's, should the rest not go at once.
    entries.sort_by_key(|path| path.file_name().is_some_and(place::is_mark));
    for entry in entries {
        gantry_durable::remove_tree(&entry)?;
    }
    std::fs::remove_dir(data_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_data_directory_is_still_known_as_one() -> Result<()> {
        let base = tempfile::tempdir()?;
        let directory = base.path().join("data");
        std::fs::create_dir_all(directory.join("agent/images"))?;
        std::fs::create_dir(directory.join("store"))?;
        std::fs::write(directory.join("gantry.pid"), "1")?;
        assert!(place::is_ours(&directory)?);
        remove(&directory)?;
        assert!(!directory.exists());
        Ok(())
    }
}
