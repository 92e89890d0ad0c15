//! Members compare the hashes of their states at equal log entries. Apply is deterministic, so that they are equal unless
//! memory, a disk or a build is faulty; and then nothing that the odd one holds can be trusted.
//!
//! Followers tell the leader the hash after the last entry that they applied, and the leader compares it with its own
//! after that entry. With a majority of the voters on its side it fences those that differ; with a majority against it,
//! it stops itself. With neither nobody can be told right, and all it can do is to say so. A member that was fenced stops,
//! and its directory is marked: it is not opened again.

use std::collections::BTreeMap;

use raft::StateRole;

use super::{Failure, Member};
use crate::metrics::METRICS;
use crate::packet::{Body, Digest};

/// Ticks between what a follower tells.
const REPEAT: u64 = 20;

/// What is known of the others' states, as the leader of a term.
#[derive(Default)]
pub(super) struct Digests {
    ticks: u64,
    term: u64,
    /// Whether the latest hash of a member was this one's.
    equal: BTreeMap<u64, bool>,
    /// What was said last, and to whom in which term.
    told: Option<(Digest, u64, u64)>,
    /// Another's word that this member is wrong.
    pub(super) accused: Option<u64>,
}

impl Digests {
    /// Whether a member's state is known to differ from the leader's.
    pub(super) fn differs(&self, member: u64) -> bool {
        self.equal.get(&member) == Some(&false)
    }
}

impl Member {
    pub(super) fn tick_digests(&mut self) {
        self.digests.ticks += 1;
        let (term, leads) = (self.node.raft.term, self.leads());
        if !leads || self.digests.term != term {
            self.digests.term = term;
            self.digests.equal.clear();
        }
        let different = self.digests.equal.values().any(|equal| !equal);
        METRICS.diverged.set(i64::from(different));
        if leads || !self.digests.ticks.is_multiple_of(REPEAT) {
            return;
        }
        let latest = self.shared.latest_fingerprint();
        let (Some((index, fingerprint)), Some(leader)) = (latest, self.leader()) else {
            return;
        };
        let said = (Digest { index, fingerprint }, leader, term);
        if self.digests.told != Some(said) {
            self.digests.told = Some(said);
            self.post(leader, Body::Digest(said.0));
        }
    }

    /// What a follower's state is after an entry.
    pub(super) fn compare(&mut self, from: u64, digest: &Digest) {
        if !self.leads() || self.digests.term != self.node.raft.term {
            return;
        }
        // It is ahead of this one, or far behind.
        let Some(own) = self.shared.fingerprint_at(digest.index) else {
            return;
        };
        let equal = own == digest.fingerprint;
        let known = self.digests.equal.insert(from, equal);
        if equal {
            return;
        }
        let voters = self.voters();
        let side = |wanted: bool| {
            let others = self.digests.equal.iter();
            let others = others.filter(|(id, equal)| voters.contains(id) && **equal == wanted);
            others.count()
        };
        let majority = voters.len() / 2 + 1;
        if side(true) + 1 >= majority {
            tracing::error!(
                member = from,
                index = digest.index,
                "a member's state differs from the majority's: it is fenced off"
            );
            self.post(
                from,
                Body::Fence(Digest {
                    index: digest.index,
                    fingerprint: own,
                }),
            );
        } else if side(false) >= majority {
            self.digests.accused = Some(digest.index);
        } else if known != Some(false) {
            tracing::error!(
                member = from,
                index = digest.index,
                "the states of two members differ, and no majority tells which is right: keep copies of both data directories"
            );
        }
    }

    /// The leader says what the majority's state is after an entry.
    pub(super) fn fenced(&mut self, from: u64, digest: &Digest) {
        if self.node.raft.state == StateRole::Leader || self.leader() != Some(from) {
            return;
        }
        let own = self.shared.fingerprint_at(digest.index);
        if own.is_some_and(|own| own != digest.fingerprint) {
            self.digests.accused = Some(digest.index);
        }
    }

    /// Stops a member whose state is wrong, for good.
    pub(super) fn check_digest(&mut self) -> Result<(), Failure> {
        match self.digests.accused {
            None => Ok(()),
            Some(index) => {
                self.node.store().mark_diverged(index)?;
                Err(Failure::Diverged { index })
            }
        }
    }
}
