//! `gantry backup`: the desired state of a cluster in a file, and back.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use futures::AsyncReadExt;
use gantry_server::backup;

use crate::client::{Call, Cluster, Credentials};
use crate::cluster::{Place, RestoreArguments, describe_backup, restore};
use crate::output;

const CHUNK: usize = 64 * 1024;

/// Save, check and restore the desired state of the cluster
#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    #[command(subcommand)]
    command: BackupCommand,
}

#[derive(Debug, clap::Subcommand)]
enum BackupCommand {
    /// Write everything the cluster is to be, as of now, into a file
    Save {
        /// Where to; it appears when it is whole
        file: PathBuf,
    },
    /// Check a backup from its first byte to its last, and say what is in it
    Inspect {
        /// The backup
        file: PathBuf,
    },
    /// Make an empty data directory the first server of the cluster that a backup holds
    Restore {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        arguments: RestoreArguments,
    },
}

impl Backup {
    pub(crate) async fn run(&self, credentials: &Credentials) -> Result<()> {
        match &self.command {
            BackupCommand::Save { file } => save(&Cluster::connect(credentials).await?, file).await,
            BackupCommand::Inspect { file } => {
                output::print(&describe_backup(&backup::inspect(file)?, true))
            }
            BackupCommand::Restore {
                file,
                place,
                arguments,
            } => restore(place, file, arguments).await,
        }
    }
}

async fn save(cluster: &Cluster, file: &Path) -> Result<()> {
    if file.exists() {
        bail!(
            "{} is there already: name a file that is not",
            file.display()
        );
    }
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = PathBuf::from(unfinished);
    let saved = match download(cluster, &unfinished).await {
        // What arrived is what is checked.
        Ok(()) => backup::inspect(&unfinished),
        Err(error) => Err(error),
    };
    let summary = match saved {
        Ok(summary) => summary,
        Err(error) => {
            // It may not have been created at all.
            fs::remove_file(&unfinished).ok();
            return Err(error);
        }
    };
    gantry_durable::rename(&unfinished, file)
        .with_context(|| format!("naming it {}", file.display()))?;
    output::print(&format!(
        "{}saved to {}\na restore needs the file 'keys' of a server's data directory too: keep a copy of it elsewhere\n",
        describe_backup(&summary, false),
        file.display()
    ))
}

async fn download(cluster: &Cluster, to: &Path) -> Result<()> {
    let writing = || format!("writing {}", to.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)
        .with_context(writing)?;
    let mut stream = Box::pin(cluster.stream(Call::get("/gantry/v1/backup")).await?);
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = stream
            .read(&mut chunk)
            .await
            .context("reading the backup")?;
        if length == 0 {
            return file.sync_all().with_context(writing);
        }
        file.write_all(&chunk[..length]).with_context(writing)?;
    }
}
