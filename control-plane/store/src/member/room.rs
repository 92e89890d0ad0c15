//! Room on the members' disks. A member that runs short of it says so to the leader, does not lead if another can, and
//! follows on. With half of that left it is full: it takes no further entries, so that what it has accepted still fits,
//! and sends its clients to others. It goes on by itself once there is room again.
//!
//! When too few voters have room for a majority, or the leader has none and nobody can take over, the cluster is
//! read-only: proposals are refused with the reason, everything else goes on.

use std::collections::BTreeMap;

use raft::StateRole;
use raft::eraftpb::{EntryType, Message, MessageType};

use super::Member;
use crate::metrics::METRICS;
use crate::packet::{Body, Shortage};
use crate::types::Room;

/// Heartbeats after which a member that is short of room says so again.
const REPEAT: usize = 4;
/// Heartbeats for which a leader believes it.
const BELIEVED: usize = 16;

/// What a member knows of room, its own and, as the leader, the others'.
#[derive(Default)]
pub(super) struct Disks {
    ticks: usize,
    /// How many bytes were free when the own disk was last found short.
    short: Option<u64>,
    /// Whether it is full.
    full: bool,
    /// The others that are short, and the tick at which they said so last.
    others: BTreeMap<u64, usize>,
    /// Why proposals are refused here.
    refusal: Option<String>,
}

impl Disks {
    /// Why this member takes no proposals, if it does not.
    pub(super) fn refusal(&self) -> Option<&String> {
        self.refusal.as_ref()
    }

    /// Whether another member lacks room, as far as it has told.
    pub(super) fn is_short(&self, member: u64) -> bool {
        self.others.contains_key(&member)
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes >> 20
}

impl Member {
    /// Whether this member's disk has less room than is to be kept free.
    pub(super) fn is_short_of_room(&self) -> bool {
        self.disks.short.is_some()
    }

    /// Why this member cannot even follow, so that clients must ask another.
    pub(super) fn left_behind(&self) -> Option<&String> {
        let follows = self.node.raft.state != StateRole::Leader;
        self.disks.refusal().filter(|_| follows)
    }

    pub(super) fn tick_room(&mut self) {
        self.disks.ticks += 1;
        self.look_at_disk();
        let heartbeat = self.config.heartbeat_ticks;
        match self.node.raft.state {
            StateRole::Leader => {
                let now = self.disks.ticks;
                self.disks
                    .others
                    .retain(|_, said| now - *said <= BELIEVED * heartbeat);
                self.find_successor();
            }
            _ => {
                self.disks.others.clear();
                if self.is_short_of_room() && self.disks.ticks.is_multiple_of(REPEAT * heartbeat) {
                    self.tell_leader(true);
                }
            }
        }
        self.disks.refusal = match self.node.raft.state {
            StateRole::Leader => self.why_read_only(),
            _ => self.disks.full.then(|| self.own_shortage()),
        };
        self.publish_room();
    }

    fn look_at_disk(&mut self) {
        let Some(free) = self.node.store().room() else {
            return;
        };
        METRICS.free.set(i64::try_from(free).unwrap_or(i64::MAX));
        let reserve = self.config.reserve;
        // A little more to begin again with, so that a member does not hover around the lines.
        let (half, margin) = (reserve / 2, reserve / 4);
        self.disks.full = free < half || self.disks.full && free < half + margin;
        let enough = reserve + margin;
        match self.disks.short {
            None if free < reserve => {
                tracing::warn!(
                    free_mib = mebibytes(free),
                    reserve_mib = mebibytes(reserve),
                    directory = %self.config.data_dir.display(),
                    "the disk is nearly full: this member does not lead until there is room, and takes no writes with half of that left"
                );
                self.disks.short = Some(free);
                self.tell_leader(true);
            }
            Some(_) if free >= enough => {
                tracing::info!(
                    free_mib = mebibytes(free),
                    "there is room on the disk again"
                );
                self.disks.short = None;
                self.tell_leader(false);
            }
            Some(_) => self.disks.short = Some(free),
            None => {}
        }
    }

    fn tell_leader(&mut self, short: bool) {
        let leader = self.leader().filter(|id| *id != self.config.member_id);
        if let Some(leader) = leader {
            self.post(leader, Body::Shortage(Shortage { short }));
        }
    }

    /// Another member says whether it lacks room.
    pub(super) fn shortage(&mut self, from: u64, shortage: &Shortage) {
        if shortage.short {
            if self.disks.others.insert(from, self.disks.ticks).is_none() {
                tracing::warn!(member = from, "a member's disk is nearly full");
            }
        } else if self.disks.others.remove(&from).is_some() {
            tracing::info!(member = from, "a member has room on its disk again");
        }
    }

    /// Whether a message of consensus is taken in: without room, nothing that carries proposals or makes this member lead.
    /// The entry without data, with which a new leader begins, is taken: without it nobody could read.
    pub(super) fn has_room_for(&self, message: &Message) -> bool {
        let grows = match message.get_msg_type() {
            MessageType::MsgAppend => message.entries.iter().any(|entry| {
                entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty()
            }),
            MessageType::MsgTimeoutNow => return !self.is_short_of_room(),
            _ => false,
        };
        !grows || !self.disks.full
    }

    fn find_successor(&mut self) {
        if self.is_short_of_room()
            && self.node.raft.lead_transferee.is_none()
            && let Some(follower) = self.best_follower()
        {
            tracing::info!(to = follower, "handing leadership over for want of room");
            self.node.transfer_leader(follower);
        }
    }

    fn own_shortage(&self) -> String {
        format!(
            "the disk with {} has {} MiB left, and {} MiB are kept free for what was accepted before: make room there, and this \
             server writes again by itself",
            self.config.data_dir.display(),
            mebibytes(self.disks.short.unwrap_or_default()),
            mebibytes(self.config.reserve),
        )
    }

    fn why_read_only(&self) -> Option<String> {
        let own = self.config.member_id;
        // While leadership is handed over, consensus takes no proposals anyway.
        if self.is_short_of_room() && self.best_follower().is_none() {
            return Some(self.own_shortage());
        }
        let state = self.shared.state.read();
        let members = &state.conf_state;
        let short = |id: &u64| match *id == own {
            true => self.is_short_of_room(),
            false => self.disks.is_short(*id),
        };
        let lacking = [&members.voters, &members.voters_outgoing]
            .into_iter()
            .any(|voters| {
                let with_room = voters.iter().filter(|id| !short(id)).count();
                !voters.is_empty() && with_room <= voters.len() / 2
            });
        if !lacking {
            return None;
        }
        let full: Vec<String> = members
            .voters
            .iter()
            .filter(|id| short(id))
            .map(u64::to_string)
            .collect();
        Some(format!(
            "the disks of too many servers are nearly full ('gantry member list' shows which; their ids are {}): make room \
             there, and writes are taken again by themselves",
            full.join(", ")
        ))
    }

    fn publish_room(&self) {
        let own = self.disks.short.map(|_| self.config.member_id);
        let mut short: Vec<u64> = self.disks.others.keys().copied().chain(own).collect();
        short.sort_unstable();
        let read_only = self.disks.refusal.clone();
        METRICS.read_only.set(i64::from(read_only.is_some()));
        self.shared.room.send_if_modified(|known| {
            // Numbers within the reason move all the time.
            let changed = known.short != short || known.read_only.is_some() != read_only.is_some();
            *known = Room { short, read_only };
            changed
        });
    }
}
