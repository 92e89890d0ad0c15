//! Room on the members' disks, for want of which etcd raises the alarm NOSPACE. A member that runs short of it says so to
//! the leader, does not lead if another can, and follows on. With half of that left it is full: it takes no further
//! entries, so that what it has accepted still fits, and sends its clients to others. It goes on by itself once there is
//! room again.
//!
//! When too few voters have room for a majority, or the leader has none and nobody can take over, nothing is added any
//! more: such proposals are refused with the reason. What deletes, and statuses, which let others make room, are taken
//! out of the reserve ([`crate::disk`]): their entries say so, and full members take them too.

use std::collections::BTreeMap;

use raft::StateRole;
use raft::eraftpb::{EntryType, Message, MessageType};

use prost::Message as _;

use super::Member;
use crate::disk::{JOURNAL, Shortage};
use crate::metrics::METRICS;
use crate::packet::{self, Body, Tags};
use crate::types::{Demand, Room};

/// Heartbeats after which a member that is short of room says so again.
const REPEAT: usize = 4;
/// Heartbeats for which a leader believes it.
const BELIEVED: usize = 16;

/// With less, every byte that is written comes out of the reserve.
const CRITICAL: u64 = 32 << 20;
/// How many bytes of entries are taken out of the reserve; what a deletion writes is small beside what it lets others free.
/// The journal has more than twice that left ([`crate::disk`]): it is written to for an entry and for what that changes.
const RESERVED: usize = 24 << 20;
const _: () = assert!(
    JOURNAL > 2 * RESERVED as u64,
    "the reserve holds less than is taken out of it"
);
/// How many of them for changes: the rest is for what frees.
const RESERVED_FOR_CHANGES: usize = 8 << 20;

/// What a member knows of room, its own and, as the leader, the others'.
#[derive(Default)]
pub(super) struct Disks {
    ticks: usize,
    /// How many bytes were free when the own disk was last found short.
    short: Option<u64>,
    /// Whether it is full.
    full: bool,
    /// Whether it is full and has refused entries since it took the last.
    behind: bool,
    /// How many bytes of entries were taken in this shortage with next to nothing left.
    taken: usize,
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

    fn critical(&self) -> bool {
        self.short.is_some_and(|free| free < CRITICAL)
    }

    /// Why transactions of so many bytes are not taken; counts those that are.
    pub(super) fn refuse(&mut self, demand: Demand, bytes: usize) -> Option<String> {
        let refusal = self.refusal.as_ref()?;
        let bound = match demand {
            Demand::Adds => return Some(refusal.clone()),
            Demand::Changes => RESERVED_FOR_CHANGES,
            Demand::Frees => RESERVED,
        };
        if !self.critical() {
            return None;
        }
        let taken = self.taken.saturating_add(bytes);
        if taken > bound {
            return Some(refusal.clone());
        }
        self.taken = taken;
        None
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
        self.disks
            .refusal()
            .filter(|_| follows && self.disks.behind)
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
        let known = self.disks.short.is_some();
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
                self.disks.taken = 0;
                self.tell_leader(false);
            }
            Some(_) => self.disks.short = Some(free),
            None => {}
        }
        if !self.disks.full {
            self.disks.behind = false;
        }
        let short = self.disks.short.is_some();
        self.node.store().tend(match short {
            false => Shortage::None,
            true if self.disks.critical() => Shortage::Critical,
            true => Shortage::Short,
        });
        // While there is room for that.
        if short
            && !known
            && let Err(error) = self.node.store().write_tables()
        {
            tracing::warn!(%error, "preparing for a full disk");
        }
    }

    fn tell_leader(&mut self, short: bool) {
        let leader = self.leader().filter(|id| *id != self.config.member_id);
        if let Some(leader) = leader {
            self.post(leader, Body::Shortage(packet::Shortage { short }));
        }
    }

    /// Another member says whether it lacks room.
    pub(super) fn shortage(&mut self, from: u64, shortage: &packet::Shortage) {
        if shortage.short {
            if self.disks.others.insert(from, self.disks.ticks).is_none() {
                tracing::warn!(member = from, "a member's disk is nearly full");
            }
        } else if self.disks.others.remove(&from).is_some() {
            tracing::info!(member = from, "a member has room on its disk again");
        }
    }

    /// Whether a message of consensus is taken in: without room, nothing that carries proposals or makes this member lead.
    /// The entry without data, with which a new leader begins, is taken: without it nobody could read. So are those that
    /// make room, up to a bound.
    pub(super) fn has_room_for(&mut self, message: &Message) -> bool {
        match message.get_msg_type() {
            MessageType::MsgTimeoutNow => return !self.is_short_of_room(),
            MessageType::MsgAppend if self.disks.full && !message.entries.is_empty() => {}
            _ => return true,
        }
        let grows = message.entries.iter().any(|entry| {
            entry.get_entry_type() == EntryType::EntryNormal
                && !entry.data.is_empty()
                && !Tags::decode(&*entry.context).is_ok_and(|tags| tags.makes_room)
        });
        let bytes = message.entries.iter().map(|entry| entry.data.len()).sum();
        self.disks.behind = grows || self.disks.refuse(Demand::Frees, bytes).is_some();
        !self.disks.behind
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_for_what_frees_last() {
        let full = |free| Disks {
            short: Some(free),
            refusal: Some("full".to_owned()),
            ..Disks::default()
        };
        let takes = |disks: &mut Disks, demand, bytes| disks.refuse(demand, bytes).is_none();
        let mut roomy = full(CRITICAL);
        assert!(!takes(&mut roomy, Demand::Adds, 1));
        assert!(takes(&mut roomy, Demand::Changes, RESERVED));
        assert_eq!(roomy.taken, 0, "nothing comes out of the reserve yet");

        let mut disks = full(CRITICAL - 1);
        assert!(takes(&mut disks, Demand::Changes, RESERVED_FOR_CHANGES));
        assert!(!takes(&mut disks, Demand::Changes, 1));
        let rest = RESERVED - RESERVED_FOR_CHANGES;
        assert!(takes(&mut disks, Demand::Frees, rest));
        assert!(!takes(&mut disks, Demand::Frees, 1));
        disks.refusal = None;
        assert!(takes(&mut disks, Demand::Adds, usize::MAX));
    }
}
