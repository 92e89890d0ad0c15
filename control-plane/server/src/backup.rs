//! Backups: the whole desired state in one file, of one moment, checked from its first byte to its last.
//!
//! [`save`] writes one, [`BackupApi`] serves one, [`ScheduledBackups`] keeps the latest few in the data directory. What is in
//! them is the store's business; what covers their secrets is the cluster's keyring, which is in none of them.

use std::fs::{self, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use gantry_apiserver::Identity;
use gantry_base::status::StatusError;
use gantry_members::{only_administrators, refuse};
use gantry_store::Store;
pub use gantry_store::backup::BackupSummary as Summary;
use gantry_store::backup::BackupSummary;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

const PATH: &str = "/gantry/v1/backup";
/// A backup travels in pieces of so many bytes, of which so many wait for its reader.
const PIECE: usize = 64 * 1024;
const WAITING: usize = 4;
const SUFFIX: &str = ".backup";
/// What an interrupted writer leaves.
const UNFINISHED: &str = ".unfinished";

/// Who made a backup and when; the store carries it without looking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// When, RFC 3339.
    pub time: String,
    /// On which server.
    pub server: String,
    /// By which version of Gantry.
    pub version: String,
}

impl Origin {
    fn here(server: &str) -> Self {
        Self {
            time: Timestamp::now().to_string(),
            server: server.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// What a backup says of itself.
    pub fn of(summary: &BackupSummary) -> Self {
        // Only this module writes it, and every version of it could be read by the next.
        serde_json::from_slice(&summary.creation).unwrap_or_default()
    }
}

/// Reads a whole backup and checks it.
pub fn inspect(path: &Path) -> Result<BackupSummary> {
    let file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    gantry_store::backup::inspect(BufReader::new(file)).with_context(|| path.display().to_string())
}

fn write(store: &Store, server: &str, to: impl Write) -> io::Result<BackupSummary> {
    let origin = serde_json::to_vec(&Origin::here(server))?;
    store.backup(origin).write(to)
}

/// Writes what this server has applied into a file that appears when it is whole and durable.
fn save(store: &Store, server: &str, path: &Path) -> io::Result<BackupSummary> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let unfinished = PathBuf::from(unfinished);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    let mut buffered = BufWriter::new(file);
    let summary = write(store, server, &mut buffered)?;
    buffered
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?
        .sync_all()?;
    gantry_durable::rename(&unfinished, path)?;
    Ok(summary)
}

/// `GET /gantry/v1/backup`, for administrators: a backup as a stream.
#[derive(Clone)]
pub(crate) struct BackupApi {
    pub(crate) store: Store,
    pub(crate) server: String,
}

impl BackupApi {
    pub(crate) fn router(self) -> Router {
        Router::new().route(PATH, get(serve)).with_state(self)
    }
}

async fn serve(State(api): State<BackupApi>, Extension(who): Extension<Identity>) -> Response {
    if let Some(refused) = only_administrators(&who) {
        return refused;
    }
    if let Err(error) = api.store.read_barrier().await {
        return refuse(&StatusError::service_unavailable(error.to_string()));
    }
    let (pieces, waiting) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut to = BufWriter::with_capacity(PIECE, Pieces(pieces));
        let written = write(&api.store, &api.server, &mut to);
        // The reader has gone, and finds that the end is missing.
        if let Err(error) = written.and_then(|_| to.flush()) {
            tracing::info!(%error, "a backup was not read to its end");
        }
    });
    Body::from_stream(ReceiverStream::new(waiting).map(io::Result::Ok)).into_response()
}

/// Hands on what is written; waits while the reader is slow.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How often a server writes a backup into its own data directory, and how many it keeps.
#[derive(Clone, Copy, Debug)]
pub struct BackupSchedule {
    /// Between two; never when zero.
    pub every: Duration,
    /// The latest that are kept, at least one.
    pub keep: usize,
}

impl Default for BackupSchedule {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(6 * 3600),
            keep: 8,
        }
    }
}

/// Writes backups by schedule.
pub(crate) struct ScheduledBackups {
    pub(crate) store: Store,
    pub(crate) server: String,
    pub(crate) directory: PathBuf,
    pub(crate) schedule: BackupSchedule,
}

impl ScheduledBackups {
    /// Until told to stop. A restart does not begin the schedule anew: the latest file says when the next is due.
    pub(crate) async fn run(&self, stop: &CancellationToken) {
        if self.schedule.every.is_zero() {
            return;
        }
        let mut wait = self.until_due();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let (store, server) = (self.store.clone(), self.server.clone());
            let path = self.directory.join(file_name(Timestamp::now()));
            let directory = self.directory.clone();
            let keep = self.schedule.keep;
            let attempt = tokio::task::spawn_blocking(move || {
                fs::DirBuilder::new().recursive(true).create(&directory)?;
                let summary = save(&store, &server, &path)?;
                tidy(&directory, keep)?;
                io::Result::Ok((path, summary))
            });
            match attempt.await {
                Ok(Ok((path, summary))) => tracing::info!(
                    path = %path.display(), revision = %summary.revision, objects = summary.rows, "wrote a backup"
                ),
                Ok(Err(error)) => tracing::error!(
                    %error, directory = %self.directory.display(),
                    "cannot write a backup: check the disk and its free space"
                ),
                Err(error) => tracing::error!(%error, "writing a backup broke off"),
            }
            wait = self.schedule.every;
        }
    }

    fn until_due(&self) -> Duration {
        let latest = backups_in(&self.directory).unwrap_or_default().pop();
        let age = latest
            .and_then(|path| path.metadata().ok()?.modified().ok()?.elapsed().ok())
            .unwrap_or(self.schedule.every);
        self.schedule.every.saturating_sub(age)
    }
}

/// Sorts by time.
fn file_name(now: Timestamp) -> String {
    format!("{}{SUFFIX}", now.strftime("%Y-%m-%dT%H-%M-%S"))
}

/// The whole ones, the oldest first.
fn backups_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        if path.to_string_lossy().ends_with(SUFFIX) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what is older than the latest `keep`, and what an interrupted writer left.
fn tidy(directory: &Path, keep: usize) -> io::Result<()> {
    let backups = backups_in(directory)?;
    for old in &backups[..backups.len().saturating_sub(keep.max(1))] {
        fs::remove_file(old)?;
    }
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        if path.to_string_lossy().ends_with(UNFINISHED) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_and_leftovers_go() {
        let directory = tempfile::tempdir().expect("a directory");
        for second in 0..5 {
            let time = Timestamp::from_second(1_700_000_000 + second).expect("in range");
            fs::write(directory.path().join(file_name(time)), "x").expect("writes");
        }
        fs::write(directory.path().join("a.backup.unfinished"), "x").expect("writes");
        fs::write(directory.path().join("notes.txt"), "x").expect("writes");
        tidy(directory.path(), 2).expect("it tidies");
        let left: Vec<_> = backups_in(directory.path())
            .expect("reads")
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect();
        assert_eq!(
            left,
            ["2023-11-14T22-13-23.backup", "2023-11-14T22-13-24.backup"]
        );
        assert!(directory.path().join("notes.txt").exists());
        assert!(!directory.path().join("a.backup.unfinished").exists());
    }
}
