//! When most voters are gone for good: one that is left goes on alone, with everything that is in its log.
//!
//! What this keeps: every entry of the survivor's log, whether or not it knew the entry to be committed, since an
//! acknowledged write may lie beyond the commit index that it heard of. Opening the store commits all of it.
//!
//! What this cannot keep: an acknowledged write is on the disks of a majority, and the survivor may be the one that
//! lacked it. Of several survivors the one with the greatest [`Recovery::last`] (term, then index) has every
//! acknowledged write that any of them has; of all voters together it has every one there is. Where acknowledged writes
//! are lost, their revisions are not given again: a last entry raises the revision by [`REVISION_GAP`], and watches from
//! before it are told to list anew.
//!
//! Changes of the members that the state on disk has not seen yet would bring the others back when they are applied,
//! alone or as a half of joint consensus. They become empty entries of the same index and term: the entry was about
//! who takes part, and that is decided now. So this log differs from the others' at those entries. The others must never
//! be started with their old directories again; they join anew, with new ids.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use raft::eraftpb::{ConfState, Entry as LogEntry, EntryType};

use crate::backup::REVISION_GAP;
use crate::config::{OpenError, StoreConfig};
use crate::disk::fjall::FjallEngine;
use crate::disk::{Recovered, Volume};
use crate::encryption::Encryption;
use crate::level::FEATURE_LEVEL;
use crate::packet::Tags;
use crate::types::{Revision, Term};

/// What a member went on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The members that are none any more.
    pub dropped: Vec<u64>,
    /// Term and index of its last log entry.
    pub last: (Term, u64),
    /// The revision of its state on disk, before the rest of its log.
    pub revision: Revision,
    /// How many log entries follow on that state.
    pub unapplied: u64,
    /// How many of those would have changed the members.
    pub changes_undone: u64,
}

/// Makes the member `config.member_id`, which must be stopped, the only voter: opened again it leads and commits its
/// whole log, and goes on at a revision that nobody has seen. Doing it twice does no harm. Blocks while it reads; the change is one durable write.
pub fn become_sole_voter(config: &StoreConfig) -> Result<Recovery, OpenError> {
    config.check()?;
    let vacant = || OpenError::NoMember {
        path: config.data_dir.clone(),
    };
    // Opening would create the files.
    if is_vacant(&config.data_dir)? {
        return Err(vacant());
    }
    let engine = Arc::new(FjallEngine::open(&config.data_dir, true)?);
    let encryption = Encryption::new(config.transformer.clone());
    let volume = Volume::new(&config.data_dir, engine, encryption);
    let found = volume.recover(FEATURE_LEVEL)?.ok_or_else(vacant)?;
    let recovery = go_on_alone(&volume, found, config)?;
    tracing::warn!(
        member = config.member_id, ?recovery, path = %config.data_dir.display(),
        "this member is the only voter now"
    );
    Ok(recovery)
}

fn is_vacant(path: &Path) -> Result<bool, OpenError> {
    match fs::read_dir(path) {
        Ok(mut items) => Ok(items.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(OpenError::Directory {
            path: path.to_owned(),
            source,
        }),
    }
}

/// The same for records that were read already.
pub(crate) fn go_on_alone(
    volume: &Volume,
    found: Recovered,
    config: &StoreConfig,
) -> Result<Recovery, OpenError> {
    let member = config.member_id;
    let (last_term, last_index) = found.last();
    let Recovered { entries, state, .. } = found;
    let members = everybody(&state.conf_state);
    if members.is_empty() {
        return Err(OpenError::NoState {
            path: config.data_dir.clone(),
        });
    }
    if !members.contains(&member) {
        return Err(OpenError::Stranger {
            path: config.data_dir.clone(),
            member,
            members,
        });
    }
    let changes = entries.iter().filter(|entry| {
        entry.index > state.applied && entry.get_entry_type() != EntryType::EntryNormal
    });
    let mut replaced: Vec<LogEntry> = changes
        .map(|entry| LogEntry {
            index: entry.index,
            term: entry.term,
            ..LogEntry::default()
        })
        .collect();
    let undone = replaced.len() as u64;
    let skip = Tags {
        skipped: REVISION_GAP,
        ..Tags::default()
    };
    replaced.push(LogEntry {
        index: last_index + 1,
        term: last_term,
        context: prost::Message::encode_to_vec(&skip),
        ..LogEntry::default()
    });
    volume
        .become_sole_voter(member, &state, &replaced)
        .map_err(|error| OpenError::Directory {
            path: config.data_dir.clone(),
            source: io::Error::other(error.cause),
        })?;
    Ok(Recovery {
        dropped: members.into_iter().filter(|id| *id != member).collect(),
        last: (Term(last_term), last_index),
        revision: state.revision,
        unapplied: last_index - state.applied,
        changes_undone: undone,
    })
}

fn everybody(members: &ConfState) -> Vec<u64> {
    let lists = [
        &members.voters,
        &members.voters_outgoing,
        &members.learners,
        &members.learners_next,
    ];
    let mut ids: Vec<u64> = lists.into_iter().flatten().copied().collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests;
