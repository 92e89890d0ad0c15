//! What the store holds and how it is changed.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The cluster-wide counter of committed transactions: Kubernetes' resourceVersion. 0 is before the first.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A leader's term in Raft.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Term(pub u64);

/// Who leads, as this member knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The newest term this member has seen: what [`Guard::Term`] of its leader's transactions names.
    pub term: Term,
    /// Whether this member leads and has applied everything from before its term.
    pub is_leader: bool,
    /// The leader's member id, when known.
    pub leader: Option<u64>,
}

/// The table a key belongs to, e.g. `apps/deployments` or `core/pods`; also internal ones such as `-/clusterips`.
/// Every table is an ordered map of its own, with watches of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table(pub Arc<str>);

/// An object's key within the store. Ordered by namespace, then name; cluster-scoped objects have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Which table.
    pub table: Table,
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
}

/// Labels and selectable fields, extracted once by the writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Labels, sorted by key.
    pub labels: Vec<(String, String)>,
    /// Selectable fields other than name and namespace, sorted by key.
    pub fields: Vec<(String, String)>,
}

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The object's JSON without `metadata.resourceVersion`.
    pub value: Bytes,
    /// For selectors.
    pub index: Index,
    /// When it was created.
    pub create_revision: Revision,
    /// When it was last changed.
    pub modify_revision: Revision,
}

/// A condition on the state before a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The key exists and was last changed at this revision.
    ModifiedAt(Key, Revision),
    /// The key exists.
    Exists(Key),
    /// The key does not exist.
    Absent(Key),
    /// The leader that proposed is still the leader of this term.
    Term(Term),
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates or replaces.
    Put {
        /// Which object.
        key: Key,
        /// Its JSON without `metadata.resourceVersion`.
        value: Bytes,
        /// For selectors.
        index: Index,
    },
    /// Removes; removing an absent key changes nothing.
    Delete {
        /// Which object.
        key: Key,
        /// The last state for watchers, when it differs from the stored one (a final `deletionTimestamp`).
        last: Option<Bytes>,
    },
}

/// Guards, then changes over several keys: all of them or none. The only consistency primitive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Every one must hold.
    pub guards: Vec<Guard>,
    /// Applied in order, at one revision.
    pub operations: Vec<Operation>,
}

/// What a transaction asks of the disk, which decides whether it is taken while disks are nearly full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// It removes something, or lets it be removed: taken for as long as anything can be written at all.
    Frees = 1,
    /// It changes what is there and makes little more of it, such as a status: taken out of a part of the reserve.
    Changes = 2,
    /// It adds something: refused.
    #[default]
    Adds = 0,
}

impl Demand {
    /// From its number, as members tell each other; what is unknown adds.
    pub(crate) fn of(number: u32) -> Self {
        match number {
            1 => Self::Frees,
            2 => Self::Changes,
            _ => Self::Adds,
        }
    }
}

/// Why a proposal did not change anything, or may not have.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// A guard did not hold.
    #[error("guard {guard} of the transaction does not hold")]
    Conflict {
        /// Its position in [`Transaction::guards`].
        guard: usize,
        /// The guarded key's entry at that moment.
        current: Option<Arc<Entry>>,
    },
    /// Nothing was proposed, since no leader could be reached: none is known, or it was replaced meanwhile. `leader` is
    /// its id when known. It is safe to try again.
    #[error("no leader took the proposal: try again")]
    NotLeader {
        /// The leader's member id.
        leader: Option<u64>,
    },
    /// Too many proposals are waiting.
    #[error("the store is overloaded: {waiting} proposals are waiting")]
    Overloaded {
        /// How many.
        waiting: usize,
    },
    /// Disks are nearly full, so that nothing is written until there is room again, or not through this member. Where all
    /// are concerned, reads and watches go on.
    #[error("nothing can be written: {0}")]
    ReadOnly(String),
    /// The outcome is unknown: leadership was lost before the proposal was applied, or the leader did not answer.
    #[error(
        "the outcome of the proposal is unknown: leadership was lost, or the leader did not answer"
    )]
    Unknown,
    /// The store has stopped, e.g. after a failed fsync.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

/// What is known of room on the members' disks; completely by the leader alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// The ids of the members whose disks have less room than is to be kept free.
    pub short: Vec<u64>,
    /// Why writes are refused here, if they are.
    pub read_only: Option<String>,
}

/// A change as watchers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// What.
    pub key: Key,
    /// The state after it; for a deletion the last state, with `modify_revision` = `revision`.
    pub entry: Arc<Entry>,
    /// The state before it.
    pub previous: Option<Arc<Entry>>,
    /// Whether the object is gone.
    pub deleted: bool,
}

/// A watch cannot start, or was closed because its reader fell too far behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Events older than this revision are no longer kept: HTTP 410.
    #[error("events before revision {0} are no longer kept")]
    Compacted(Revision),
    /// The reader fell too far behind: HTTP 410 too.
    #[error("the watch fell too far behind and was closed")]
    Lagged,
}
