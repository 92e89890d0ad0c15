//! How a store is opened, and why it may not be.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::encryption::{TransformError, Transformer};
use crate::level::NewerLevel;

/// What the entries that are in the log already may still need on disk, in bytes: the engine's journal, which is made
/// longer than what is written of it (64 MiB), tables on their way from memory (two of 8 MiB), and tables that are
/// written anew before the old ones go.
const RESERVE: u64 = 160 << 20;

/// Where a member keeps its data, who it is, and its bounds. The defaults describe a single server.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The directory of this member alone; created when missing.
    pub data_dir: PathBuf,
    /// This member's id; never 0, never reused.
    pub member_id: u64,
    /// The members that vote in a new cluster; ignored once the data directory holds a membership. Empty for a
    /// member that waits to be added to an existing cluster.
    pub voters: Vec<u64>,
    /// Whether this member has written to `data_dir` before: what is missing there now was lost, and with it perhaps a vote
    /// or an entry that was acknowledged. Such a directory is refused.
    pub begun: bool,
    /// What keeps the values of some tables unreadable outside of memory. Every member needs one that opens what the
    /// others seal, or none.
    pub transformer: Option<Arc<dyn Transformer>>,
    /// How many events are kept for watches that start in the past.
    pub event_history: usize,
    /// How many bytes of values those events may hold.
    pub event_history_bytes: usize,
    /// How many events may wait for one watcher before it is closed as lagging, counted in committed batches.
    pub watch_buffer: usize,
    /// How many proposals may wait before further ones are refused.
    pub max_pending: usize,
    /// How many applied log entries are kept for followers that fall behind; beyond it they get a snapshot.
    pub log_entries: u64,
    /// How many bytes of applied log entries are kept at most.
    pub log_bytes: u64,
    /// The size of the chunks in which a state travels to a member that lacks the log's beginning, in bytes of rows; a
    /// chunk ends with the row that reaches it.
    pub snapshot_chunk_bytes: usize,
    /// Whether this member, while it leads, makes a learner a voter as soon as that one has caught up.
    pub promote_learners: bool,
    /// Bytes of the disk that are to be kept free: with less a member does not lead if it can help it, and with half of
    /// that it takes no further entries. 0 for no bound.
    pub reserve: u64,
    /// The unit of the timeouts below.
    pub tick: Duration,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ticks without a leader before an election; the actual value is drawn between this and its double.
    pub election_ticks: usize,
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig {
            data_dir: PathBuf::from("/var/lib/gantry/store"),
            member_id: 1,
            voters: vec![1],
            begun: false,
            transformer: None,
            event_history: 100_000,
            event_history_bytes: 64 << 20,
            watch_buffer: 8_192,
            max_pending: 8_192,
            log_entries: 4_096,
            log_bytes: 64 << 20,
            snapshot_chunk_bytes: 256 << 10,
            promote_learners: true,
            reserve: RESERVE,
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: 12,
        }
    }
}

/// Why a store did not open. Every message names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration contradicts itself.
    #[error("the store's configuration is wrong: {0}")]
    Config(String),
    /// The directory cannot be created or written.
    #[error(
        "cannot write to the data directory {path}: check that it exists on a writable disk and belongs to this user"
    )]
    Directory {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error(
        "the data directory {path} is in use by another process: stop the other server, or give this one a directory of its own"
    )]
    Locked {
        /// Which directory.
        path: PathBuf,
    },
    /// The storage engine refused its files: a checksum of theirs does not match, or a part is missing.
    #[error(
        "{path} cannot be read ({source}): keep a copy of the data directory, then empty it and let this member join the \
         others again, or restore it from a backup"
    )]
    Engine {
        /// The file when it is known, or the directory it is in.
        path: PathBuf,
        /// What the engine said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A record does not match its checksum or contradicts the others.
    #[error(
        "{path} is damaged: {record}: keep a copy of the data directory, then empty it and let this member join the \
         others again, or restore it from a backup"
    )]
    Corrupt {
        /// The directory that holds the record.
        path: PathBuf,
        /// Which record, and how.
        record: String,
    },
    /// A value cannot be read without a key.
    #[error("{path} cannot be opened: {reason}")]
    Sealed {
        /// The directory that holds it.
        path: PathBuf,
        /// Which object, why, and what to do.
        reason: TransformError,
    },
    /// Something of the data is not there any more.
    #[error(
        "{path} is missing or empty, but this member has data: without all of it the member could vote twice, or forget what \
         it acknowledged. Put back what was moved away; or else, while the other servers run, take this one out with 'gantry \
         member remove' and add it anew with an empty data directory; if it was the only one, empty the data directory and \
         restore a backup with 'gantry recover --backup'"
    )]
    Lost {
        /// The file or directory.
        path: PathBuf,
    },
    /// A restore from a backup was killed.
    #[error(
        "a backup was being restored into {path} and that did not finish: empty the directory, then restore the backup again"
    )]
    Unfinished {
        /// Which directory.
        path: PathBuf,
    },
    /// The state was found to be wrong.
    #[error(
        "the state in {path} differs from that of the other servers (found at log entry {index}), so that nothing in it can be \
         trusted: keep a copy of the directory, take this server out with 'gantry member remove', and add it anew with an empty one"
    )]
    Diverged {
        /// The data directory.
        path: PathBuf,
        /// At which log entry it was found.
        index: u64,
    },
    /// The data needs a newer build.
    #[error("{path} {newer}")]
    Newer {
        /// The data directory.
        path: PathBuf,
        /// What it needs.
        newer: NewerLevel,
    },
    /// There is nobody to recover.
    #[error(
        "there is no member's data in {path}: give the data directory of a server that took part in the cluster"
    )]
    NoMember {
        /// Which directory.
        path: PathBuf,
    },
    /// The member waits for the cluster's state.
    #[error(
        "the member in {path} has not received the cluster's state: recover another member, or restore a backup"
    )]
    NoState {
        /// Which directory.
        path: PathBuf,
    },
    /// The data is another member's.
    #[error(
        "{path} holds the state of a cluster of the members {members:?}, and {member} is none of them: give the id of the \
         member that ran on this directory"
    )]
    Stranger {
        /// Which directory.
        path: PathBuf,
        /// The id that was given.
        member: u64,
        /// Those that the data knows.
        members: Vec<u64>,
    },
    /// Consensus could not start on the recovered data.
    #[error("consensus cannot start from {path}: {reason}")]
    Consensus {
        /// Which directory.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The system refused a thread.
    #[error("cannot start a thread for the store: raise the limit of processes")]
    Thread(#[source] std::io::Error),
}

impl StoreConfig {
    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let problem = if self.member_id == 0 || self.voters.contains(&0) {
            "a member's id must not be 0"
        } else if !self.voters.is_empty() && !self.voters.contains(&self.member_id) {
            "member_id is not among the voters"
        } else if self.heartbeat_ticks == 0 || self.election_ticks <= self.heartbeat_ticks {
            "election_ticks must be greater than heartbeat_ticks, which must not be 0"
        } else if self.tick.is_zero() {
            "tick must not be 0"
        } else if self.watch_buffer == 0 || self.max_pending == 0 || self.snapshot_chunk_bytes == 0
        {
            "watch_buffer, max_pending and snapshot_chunk_bytes must not be 0"
        } else {
            return Ok(());
        };
        Err(OpenError::Config(problem.to_owned()))
    }
}
