//! Proposals at a follower: they travel to the leader, and their results come back through the log.
//!
//! A forward names its sender's run, a number, and the term whose leader it is for. That leader alone may propose it,
//! and remembers in its memory which it did: since nobody can lead one term in two runs, a forward is proposed at most
//! once, however often the network repeats it. The log entry carries the forward's name; the sender finds it when it
//! applies the entry, and answers from its own state. So the answer is the log's, and readers of the sender see it.
//!
//! An entry of a newer term in the log means that no more entries of the forward's term follow: what was not seen by
//! then was never proposed, or is lost for good. Where entries were skipped (a state was taken over), or nothing
//! arrives for too long, the outcome is unknown.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft::StateRole;

use super::{Gathered, Lanes, Member, Own};
use crate::packet::{Body, Forward, Refusal, Tag, Tags};
use crate::record::split_transactions;
use crate::types::{Demand, ProposeError, Revision};

/// How many forwards of one run a leader remembers; what is older is not accepted any more.
const REMEMBERED: usize = 8_192;
/// Election timeouts after which a forward's outcome is given up on.
const PATIENCE: usize = 4;

/// What this member sent to leaders.
pub(super) struct Forwards {
    run: u64,
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    term: u64,
    patience: usize,
    own: Vec<Own>,
}

impl Forwards {
    pub(super) fn new(run: u64) -> Forwards {
        Forwards {
            run,
            next: 0,
            waiting: BTreeMap::new(),
        }
    }

    /// Everybody who waits.
    pub(super) fn drain(&mut self) -> Vec<Own> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_values().flat_map(|sent| sent.own).collect()
    }

    fn take(&mut self, gone: impl Fn(&Waiting) -> bool) -> Vec<Own> {
        let (taken, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, waiting)| gone(waiting));
        self.waiting = rest;
        taken.into_values().flat_map(|sent| sent.own).collect()
    }
}

/// What this member proposed for others in the term it led last.
#[derive(Default)]
pub(super) struct Accepted {
    term: u64,
    seen: BTreeMap<(u64, u64), BTreeSet<u64>>,
}

impl Accepted {
    pub(super) fn lead(&mut self, term: u64) {
        if self.term != term {
            self.term = term;
            self.seen.clear();
        }
    }

    fn knows(&self, name: &Tag) -> bool {
        let numbers = self.seen.get(&(name.member, name.run));
        numbers.is_some_and(|numbers| {
            let forgotten = numbers.len() >= REMEMBERED
                && numbers.first().is_some_and(|first| name.number < *first);
            forgotten || numbers.contains(&name.number)
        })
    }

    fn remember(&mut self, name: &Tag) {
        let numbers = self.seen.entry((name.member, name.run)).or_default();
        numbers.insert(name.number);
        if numbers.len() > REMEMBERED {
            numbers.pop_first();
        }
    }
}

impl Member {
    /// Sends what was gathered to the leader, or refuses it when there is none.
    pub(super) fn forward(&mut self, gathered: Gathered) {
        let leader = self.leader();
        self.refuse_forwards(&gathered.tags, &ProposeError::NotLeader { leader });
        let Some(to) = leader.filter(|id| *id != self.config.member_id) else {
            for own in gathered.own {
                self.shared
                    .answer(own.reply, Err(ProposeError::NotLeader { leader }));
            }
            return;
        };
        let demand = gathered.demand;
        let transactions = split_transactions(&Bytes::from(gathered.data));
        let mut sent = Vec::new();
        let mut own = Vec::new();
        for mut waiter in gathered.own {
            sent.extend(transactions.get(waiter.position).cloned());
            waiter.position = own.len();
            own.push(waiter);
        }
        if own.is_empty() {
            return;
        }
        let term = self.node.raft.term;
        self.forwards.next += 1;
        let forward = Forward {
            run: self.forwards.run,
            number: self.forwards.next,
            term,
            transactions: sent,
            demand: demand as u32,
        };
        let waiting = Waiting {
            term,
            patience: self.config.election_ticks * PATIENCE,
            own,
        };
        self.forwards.waiting.insert(forward.number, waiting);
        self.post(to, Body::Forward(forward));
    }

    /// Takes in another member's forward: proposes it once, or says that it never will.
    pub(super) fn accept(&mut self, from: u64, forward: Forward, lanes: &mut Lanes) {
        let bytes = forward.transactions.iter().map(Bytes::len).sum();
        let gathered = self.lane(lanes, Demand::of(forward.demand));
        self.make_room(gathered, bytes);
        let name = Tag {
            member: from,
            run: forward.run,
            number: forward.number,
            first: gathered.count as u64,
        };
        let term = self.node.raft.term;
        let leads = self.node.raft.state == StateRole::Leader;
        if leads {
            self.accepted.lead(term);
        }
        // Another run of this member may have led that term, and accepted it.
        if self.accepted.term != forward.term || self.accepted.knows(&name) {
            return;
        }
        if !leads || term != forward.term {
            let leader = self.leader();
            self.refuse_forwards(&[name], &ProposeError::NotLeader { leader });
            return;
        }
        self.accepted.remember(&name);
        gathered.tags.push(name);
        gathered.count += forward.transactions.len();
        for transaction in forward.transactions {
            gathered.data.extend_from_slice(&transaction);
        }
    }

    /// Tells the senders that their transactions will not be proposed, and why.
    pub(super) fn refuse_forwards(&mut self, tags: &[Tag], why: &ProposeError) {
        let leader = self.leader().unwrap_or_default();
        let (waiting, read_only) = match why {
            ProposeError::Overloaded { waiting } => (Some(*waiting as u64), None),
            ProposeError::ReadOnly(reason) => (None, Some(reason)),
            _ => (None, None),
        };
        for tag in tags {
            let refusal = Refusal {
                run: tag.run,
                number: tag.number,
                waiting,
                leader,
                read_only: read_only.cloned(),
            };
            self.post(tag.member, Body::Refusal(refusal));
        }
    }

    /// The leader will not propose it.
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        if refusal.run != self.forwards.run {
            return;
        }
        let error = match (refusal.waiting, &refusal.read_only) {
            (Some(waiting), _) => ProposeError::Overloaded {
                waiting: waiting as usize,
            },
            (None, Some(reason)) => ProposeError::ReadOnly(reason.clone()),
            (None, None) => ProposeError::NotLeader {
                leader: Some(refusal.leader).filter(|id| *id != raft::INVALID_ID),
            },
        };
        let waiting = self.forwards.waiting.remove(&refusal.number);
        for own in waiting.into_iter().flat_map(|waiting| waiting.own) {
            self.shared.answer(own.reply, Err(error.clone()));
        }
    }

    /// An entry was applied: whoever of this member's clients is in it learns the result.
    pub(super) fn answer_forwards(
        &mut self,
        tags: &Tags,
        results: &[Result<Revision, ProposeError>],
    ) {
        for tag in &tags.tags {
            if (tag.member, tag.run) != (self.config.member_id, self.forwards.run) {
                continue;
            }
            let waiting = self.forwards.waiting.remove(&tag.number);
            for own in waiting.into_iter().flat_map(|waiting| waiting.own) {
                let result = results.get(tag.first as usize + own.position).cloned();
                self.answer_own(own, result.unwrap_or(Err(ProposeError::Unknown)));
            }
        }
    }

    /// An entry of this term was applied: forwards for older terms cannot follow.
    pub(super) fn pass_forwards(&mut self, term: u64) {
        if self.forwards.waiting.is_empty() {
            return;
        }
        let leader = self.leader();
        for own in self.forwards.take(|waiting| waiting.term < term) {
            self.shared
                .answer(own.reply, Err(ProposeError::NotLeader { leader }));
        }
    }

    pub(super) fn tick_forwards(&mut self) {
        for waiting in self.forwards.waiting.values_mut() {
            waiting.patience = waiting.patience.saturating_sub(1);
        }
        for own in self.forwards.take(|waiting| waiting.patience == 0) {
            self.shared.answer(own.reply, Err(ProposeError::Unknown));
        }
    }
}
