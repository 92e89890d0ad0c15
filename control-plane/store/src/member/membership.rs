//! Who takes part: learners come, become voters, go; leadership moves.
//!
//! Every change is one entry of joint consensus: it counts once a majority of the old voters and one of the new have
//! it, and the leader ends the joint phase by itself. One change at a time. Who a member is beyond its id (addresses,
//! versions) is no part of this: it belongs into ordinary keys, which every member has, can watch, and which change
//! without a change of the membership.

use std::collections::{BTreeMap, BTreeSet};

use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};
use raft::{ProgressState, StateRole};
use tokio::sync::oneshot;

use super::Member;

/// How many entries a learner may lack and still count as caught up: what a voter can lack at any moment.
const CAUGHT_UP: u64 = 128;
/// Election timeouts after which a transfer of leadership has failed.
const TRANSFER_PATIENCE: usize = 3;

/// A change of the members, or of who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    AddLearner(u64),
    Promote(u64),
    Remove(u64),
    Lead(u64),
}

/// Why the members are as before, or may not be. Every message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader changes members.
    #[error("this member does not lead: ask {}", leader.map_or_else(
        || "again when the members have elected a leader".to_owned(),
        |id| format!("member {id}, which does"),
    ))]
    NotLeader {
        /// The leader's member id, when known.
        leader: Option<u64>,
    },
    /// One change at a time.
    #[error("another change of the members is under way: try again when it is done")]
    InProgress,
    /// There is a member with this id.
    #[error("member {0} takes part already: give the new member an id that was never used")]
    Exists(u64),
    /// There is no such member.
    #[error("there is no member {0}: list the members and choose one of them")]
    NotFound(u64),
    /// It votes already.
    #[error("member {0} is a voter already: there is nothing to do")]
    Voter(u64),
    /// It does not vote, so that it cannot lead.
    #[error("member {0} is a learner: promote it first")]
    Learner(u64),
    /// It soon takes no entries.
    #[error("the disk of member {0} is nearly full: make room there first")]
    Full(u64),
    /// As a voter it would hold up every write.
    #[error(
        "learner {member} has caught up to log entry {matched} of {last} only: wait until it has the rest, then promote it"
    )]
    Behind {
        /// Which one.
        member: u64,
        /// What it is known to have.
        matched: u64,
        /// What there is.
        last: u64,
    },
    /// Without it there is no cluster.
    #[error("member {0} is the last voter: add another one and promote it first")]
    LastVoter(u64),
    /// The leader does not remove itself.
    #[error("member {0} leads: transfer leadership to another member, then ask that one")]
    Leads(u64),
    /// Too few of those who would remain can be reached.
    #[error(
        "without member {member} only {active} of {voters} voters would be reachable, too few to write: bring the \
         others back first"
    )]
    Quorum {
        /// Which one was to go.
        member: u64,
        /// How many of the rest are active, the leader included.
        active: usize,
        /// How many of the rest vote.
        voters: usize,
    },
    /// The other member did not take over.
    #[error(
        "member {0} did not take over leadership in time: check that it is reachable, then try again"
    )]
    TransferFailed(u64),
    /// Leadership was lost before the change was done.
    #[error(
        "the outcome of the change is unknown, since leadership was lost: list the members, then decide"
    )]
    Unknown,
    /// The store has stopped.
    #[error("the store has stopped ({0}): start this member again, or ask another one")]
    Stopped(String),
}

/// What a member is to consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberRole {
    /// Receives everything, counts for nothing.
    Learner,
    /// Counts for majorities, and can lead.
    Voter,
    /// Still counts until the change that removes it is done.
    Leaving,
}

/// One member, as another sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: u64,
    /// What it is.
    pub role: MemberRole,
    /// Whether it leads.
    pub is_leader: bool,
    /// Up to which log entry it is known to have everything; known to the leader only.
    pub matched: Option<u64>,
    /// How many entries it lacks of what the leader has; known to the leader only.
    pub lag: Option<u64>,
    /// Whether the leader heard of it within about two election timeouts; known to the leader only.
    pub active: Option<bool>,
    /// Whether its disk has less room than is to be kept free, as far as this member knows.
    pub short_of_room: bool,
    /// Whether its state differs from the leader's; known to the leader only.
    pub differs: bool,
}

pub(crate) type ChangeReply = oneshot::Sender<Result<(), MembershipError>>;

/// A change and who waits for it.
pub(crate) struct ChangeInput {
    pub(crate) change: Change,
    pub(crate) reply: ChangeReply,
}

impl ChangeInput {
    pub(super) fn refuse_stopped(self, reason: &str) {
        answer(self.reply, Err(MembershipError::Stopped(reason.to_owned())));
    }
}

/// The changes under way.
#[derive(Default)]
pub(super) struct Membership {
    change: Option<Proposed>,
    transfer: Option<Transfer>,
    ticks: u64,
    /// The tick at which a leader last knew that it had heard of a member.
    heard: BTreeMap<u64, u64>,
}

struct Proposed {
    index: u64,
    term: u64,
    applied: bool,
    joint: bool,
    reply: ChangeReply,
}

struct Transfer {
    to: u64,
    patience: usize,
    reply: ChangeReply,
}

fn answer(reply: ChangeReply, result: Result<(), MembershipError>) {
    // The one who asked may have gone.
    reply.send(result).ok();
}

impl Membership {
    /// An entry changed the members.
    pub(super) fn applied(&mut self, index: u64, term: u64, members: &ConfState) {
        if let Some(change) = &mut self.change {
            change.applied |= (change.index, change.term) == (index, term);
            change.joint = !members.voters_outgoing.is_empty();
        }
    }

    pub(super) fn stop(&mut self, reason: &str) {
        let change = self.change.take().map(|change| change.reply);
        let transfer = self.transfer.take().map(|transfer| transfer.reply);
        for reply in change.into_iter().chain(transfer) {
            answer(reply, Err(MembershipError::Stopped(reason.to_owned())));
        }
    }
}

impl Member {
    pub(super) fn change_members(&mut self, input: ChangeInput) {
        let ChangeInput { change, reply } = input;
        let checked = match change {
            _ if self.node.raft.state != StateRole::Leader => Err(MembershipError::NotLeader {
                leader: self.leader(),
            }),
            Change::Lead(to) => self.check_lead(to),
            Change::AddLearner(id) => self.check_add(id),
            Change::Promote(id) => self.check_promote(id),
            Change::Remove(id) => self.check_remove(id),
        };
        if let Err(refusal) = checked {
            answer(reply, Err(refusal));
            return;
        }
        let (id, kind) = match change {
            Change::Lead(to) => {
                self.transfer(to, reply);
                return;
            }
            Change::AddLearner(id) => (id, ConfChangeType::AddLearnerNode),
            Change::Promote(id) => (id, ConfChangeType::AddNode),
            Change::Remove(id) => (id, ConfChangeType::RemoveNode),
        };
        match self.propose_change(id, kind) {
            Ok((index, term)) => {
                self.membership.change = Some(Proposed {
                    index,
                    term,
                    applied: false,
                    joint: false,
                    reply,
                });
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn propose_change(
        &mut self,
        id: u64,
        kind: ConfChangeType,
    ) -> Result<(u64, u64), MembershipError> {
        let mut single = ConfChangeSingle {
            node_id: id,
            ..ConfChangeSingle::default()
        };
        single.set_change_type(kind);
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Implicit);
        change.mut_changes().push(single);
        self.node
            .propose_conf_change(Vec::new(), change)
            .map_err(|error| {
                tracing::debug!(%error, kind = ?kind, "a change of the members was dropped");
                MembershipError::InProgress
            })?;
        Ok((self.node.raft.raft_log.last_index(), self.node.raft.term))
    }

    fn changing(&self) -> bool {
        let joint = !self
            .shared
            .state
            .read()
            .conf_state
            .voters_outgoing
            .is_empty();
        joint || self.membership.change.is_some() || self.node.raft.has_pending_conf()
    }

    fn check_idle(&self) -> Result<(), MembershipError> {
        if self.changing() || self.membership.transfer.is_some() {
            return Err(MembershipError::InProgress);
        }
        Ok(())
    }

    pub(super) fn voters(&self) -> BTreeSet<u64> {
        let state = self.shared.state.read();
        state.conf_state.voters.iter().copied().collect()
    }

    fn is_learner(&self, id: u64) -> bool {
        let state = self.shared.state.read();
        state.conf_state.learners.contains(&id)
    }

    fn check_add(&self, id: u64) -> Result<(), MembershipError> {
        self.check_idle()?;
        if id == raft::INVALID_ID {
            return Err(MembershipError::NotFound(id));
        }
        if self.voters().contains(&id) || self.is_learner(id) {
            return Err(MembershipError::Exists(id));
        }
        Ok(())
    }

    fn check_promote(&self, id: u64) -> Result<(), MembershipError> {
        self.check_idle()?;
        if self.voters().contains(&id) {
            return Err(MembershipError::Voter(id));
        }
        if !self.is_learner(id) {
            return Err(MembershipError::NotFound(id));
        }
        if self.disks.is_short(id) {
            return Err(MembershipError::Full(id));
        }
        if !self.caught_up(id) {
            let progress = self.node.raft.prs().get(id);
            return Err(MembershipError::Behind {
                member: id,
                matched: progress.map_or(0, |progress| progress.matched),
                last: self.node.raft.raft_log.last_index(),
            });
        }
        Ok(())
    }

    fn caught_up(&self, id: u64) -> bool {
        let last = self.node.raft.raft_log.last_index();
        self.node.raft.prs().get(id).is_some_and(|progress| {
            progress.state == ProgressState::Replicate
                && self.active(id)
                && !self.disks.is_short(id)
                && progress.matched + CAUGHT_UP >= last
        })
    }

    /// Whether a member is this one, or was heard of within two election timeouts. Consensus forgets whom it heard of
    /// after every one, and would call everybody lost for a moment.
    pub(super) fn active(&self, id: u64) -> bool {
        let progress = self.node.raft.prs().get(id);
        let heard = self.membership.heard.get(&id);
        id == self.config.member_id
            || progress.is_some_and(|progress| progress.recent_active)
            || heard.is_some_and(|tick| {
                self.membership.ticks - tick <= self.config.election_ticks as u64
            })
    }

    fn listen(&mut self) {
        self.membership.ticks += 1;
        if self.node.raft.state != StateRole::Leader {
            self.membership.heard.clear();
            return;
        }
        let heard = self.node.raft.prs().iter();
        for (id, _) in heard.filter(|(_, progress)| progress.recent_active) {
            self.membership.heard.insert(*id, self.membership.ticks);
        }
    }

    fn check_remove(&self, id: u64) -> Result<(), MembershipError> {
        self.check_idle()?;
        let mut rest = self.voters();
        if !rest.remove(&id) {
            return match self.is_learner(id) {
                true => Ok(()),
                false => Err(MembershipError::NotFound(id)),
            };
        }
        if rest.is_empty() {
            return Err(MembershipError::LastVoter(id));
        }
        if id == self.config.member_id {
            return Err(MembershipError::Leads(id));
        }
        let voters = rest.len();
        let active = rest.iter().filter(|id| self.active(**id)).count();
        if active <= voters / 2 {
            return Err(MembershipError::Quorum {
                member: id,
                active,
                voters,
            });
        }
        Ok(())
    }

    fn check_lead(&self, to: u64) -> Result<(), MembershipError> {
        self.check_idle()?;
        if self.is_learner(to) {
            return Err(MembershipError::Learner(to));
        }
        if !self.voters().contains(&to) {
            return Err(MembershipError::NotFound(to));
        }
        if self.disks.is_short(to) {
            return Err(MembershipError::Full(to));
        }
        Ok(())
    }

    fn transfer(&mut self, to: u64, reply: ChangeReply) {
        if to == self.config.member_id {
            answer(reply, Ok(()));
            return;
        }
        self.node.transfer_leader(to);
        self.membership.transfer = Some(Transfer {
            to,
            patience: self.config.election_ticks * TRANSFER_PATIENCE,
            reply,
        });
    }

    /// Answers those whose change is done, or was lost with leadership.
    pub(super) fn report_changes(&mut self) {
        let leads = self.node.raft.state == StateRole::Leader;
        let term = self.node.raft.term;
        let over = self
            .membership
            .change
            .take_if(|change| change.applied && !change.joint || !leads || change.term != term);
        if let Some(change) = over {
            let result = match change.applied && !change.joint {
                true => Ok(()),
                false => Err(MembershipError::Unknown),
            };
            answer(change.reply, result);
        }
        let leader = self.leader();
        let over = self
            .membership
            .transfer
            .take_if(|transfer| leader == Some(transfer.to) || transfer.patience == 0);
        if let Some(transfer) = over {
            let result = match leader == Some(transfer.to) {
                true => Ok(()),
                false => Err(MembershipError::TransferFailed(transfer.to)),
            };
            answer(transfer.reply, result);
        }
    }

    pub(super) fn tick_membership(&mut self) {
        self.listen();
        if let Some(transfer) = &mut self.membership.transfer {
            transfer.patience = transfer.patience.saturating_sub(1);
        }
        if !self.config.promote_learners || !self.leads() || self.check_idle().is_err() {
            return;
        }
        let mut learners = self.shared.state.read().conf_state.learners.clone();
        learners.sort_unstable();
        let ready = learners.into_iter().find(|id| self.caught_up(*id));
        if let Some(id) = ready {
            tracing::info!(member = id, "a learner has caught up: promoting it");
            // When it is dropped, the next tick tries again.
            self.propose_change(id, ConfChangeType::AddNode).ok();
        }
    }

    /// A leader that is no member any more steps down: consensus would look for its own progress, and panic. What it
    /// had to say leaves first, since only leaders may speak before their disk has answered.
    pub(super) fn leave_if_removed(&mut self) {
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && raft.prs().get(raft.id).is_none() {
            let messages = std::mem::take(&mut raft.msgs);
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
            self.post_messages(messages);
        }
    }

    /// Everybody who takes part, by id.
    pub(super) fn members(&self) -> Vec<MemberStatus> {
        let members = self.shared.state.read().conf_state.clone();
        let leads = self.node.raft.state == StateRole::Leader;
        let leader = self.leader();
        let last = self.node.raft.raft_log.last_index();
        let ids: BTreeSet<u64> = members
            .voters
            .iter()
            .chain(&members.voters_outgoing)
            .chain(&members.learners)
            .chain(&members.learners_next)
            .copied()
            .collect();
        let status = |id: u64| {
            let progress = self.node.raft.prs().get(id).filter(|_| leads);
            MemberStatus {
                id,
                role: if members.voters.contains(&id) {
                    MemberRole::Voter
                } else if members.voters_outgoing.contains(&id) {
                    MemberRole::Leaving
                } else {
                    MemberRole::Learner
                },
                is_leader: leader == Some(id),
                matched: progress.map(|progress| progress.matched),
                lag: progress.map(|progress| last.saturating_sub(progress.matched)),
                active: progress.map(|_| self.active(id)),
                differs: self.digests.differs(id),
                short_of_room: match id == self.config.member_id {
                    true => self.is_short_of_room(),
                    false => self.disks.is_short(id),
                },
            }
        };
        ids.into_iter().map(status).collect()
    }
}
