//! `gantry recover`: a cluster again from one server, or from a backup.

use std::path::{Path, PathBuf};

use anyhow::Result;
use gantry_server::Restore;
use gantry_server::backup::{Origin, Summary};

use super::daemon;
use super::machine::default_node_name;
use super::place::{self, DATA_DIR, Place};
use crate::output;

/// What a restored server needs beside the backup.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RestoreArguments {
    /// A copy of the file 'keys' of the cluster that the backup is of; the one in the data directory when not given
    #[arg(long)]
    keys: Option<PathBuf>,
    /// The server's name; this machine's host name when not given
    #[arg(long)]
    name: Option<String>,
}

/// Make one server, or a backup, a whole cluster again
#[derive(Debug, clap::Args)]
pub(crate) struct Recover {
    #[command(flatten)]
    place: Place,
    /// From this backup, into an empty data directory; from the data directory itself when not given
    #[arg(long)]
    backup: Option<PathBuf>,
    #[command(flatten)]
    restore: RestoreArguments,
    /// Go on although something answers at the address of another server
    #[arg(long, conflicts_with = "backup")]
    force: bool,
}

impl Recover {
    pub(crate) async fn run(&self) -> Result<()> {
        match &self.backup {
            Some(backup) => restore(&self.place, backup, &self.restore).await,
            None => recover(&self.place.data_dir, self.force).await,
        }
    }
}

/// What is in a backup; with the number of objects of each kind when `whole`.
pub(crate) fn describe_backup(summary: &Summary, whole: bool) -> String {
    let origin = Origin::of(summary);
    let mut lines = vec![
        vec!["Made".to_owned(), origin.time],
        vec!["Server".to_owned(), origin.server],
        vec!["Version".to_owned(), origin.version],
        vec!["Feature level".to_owned(), summary.level.to_string()],
        vec!["Revision".to_owned(), summary.revision.to_string()],
        vec!["Objects".to_owned(), summary.rows.to_string()],
    ];
    if whole {
        let tables = summary.tables.iter();
        lines.extend(tables.map(|(table, rows)| vec![format!("  {}", table.0), rows.to_string()]));
    }
    output::align(&lines)
}

async fn recover(data_dir: &Path, force: bool) -> Result<()> {
    let _lock = daemon::Lock::acquire(data_dir)?;
    let recovered = gantry_server::recover(data_dir, force).await?;
    output::print(&format!(
        "server \"{}\" is the whole cluster now, with everything up to revision {}\n\
         {} must not be started again with the old data: empty the data directory and join anew\n{}",
        recovered.server,
        recovered.revision,
        recovered.left_behind.join(", "),
        next(data_dir)
    ))
}

/// Makes an empty data directory the first server of the cluster that a backup holds.
pub(crate) async fn restore(
    place: &Place,
    backup: &Path,
    arguments: &RestoreArguments,
) -> Result<()> {
    let data_dir = &place.data_dir;
    let _lock = daemon::Lock::acquire(data_dir)?;
    let name = arguments.name.clone();
    let from = Restore {
        backup: backup.to_owned(),
        keys: arguments.keys.clone(),
        name: name.unwrap_or_else(default_node_name),
    };
    let summary = gantry_server::restore(data_dir, from).await?;
    output::print(&format!(
        "{}restored into {}\n{}",
        describe_backup(&summary, false),
        data_dir.display(),
        next(data_dir)
    ))
}

fn next(data_dir: &Path) -> String {
    let named = match data_dir == Path::new(DATA_DIR) {
        true => String::new(),
        false => format!(" --data-dir {}", place::quoted(data_dir)),
    };
    format!(
        "start it with 'gantry server{named}', then add servers with 'gantry token create --for servers'\n"
    )
}
