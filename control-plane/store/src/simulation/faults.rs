//! What goes wrong, and which changes the operators of the cluster make meanwhile.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::disk::Part;
use super::world::{Event, KNOWN_LEVEL, Machine, World, open};
use crate::config::OpenError;
use crate::disk::Recovered;
use crate::member::Input;
use crate::member::membership::{Change, ChangeInput};
use crate::recovery;

impl World {
    /// One thing goes wrong, or gets well again.
    pub(super) fn fault(&mut self) {
        if self.calm() {
            return;
        }
        let up = self.up();
        let one = self.random.pick(&up).copied();
        let all: Vec<u64> = self.machines.keys().copied().collect();
        match (self.random.range(0, 100), one) {
            (0..14, Some(id)) => self.crash(id),
            (14..18, Some(id)) => self.stop(id),
            (18..26, Some(id)) => {
                let writes = self.random.range(0, 12);
                self.machines[&id].disk.light_fuse(writes);
            }
            (26..34, Some(id)) => {
                // One way only.
                let to = self.random.pick(&all).copied().unwrap_or(id);
                self.network.cut(id, to);
            }
            (34..42, Some(id)) => {
                let direction = self.random.range(0, 3);
                for other in all {
                    if direction != 1 {
                        self.network.cut(id, other);
                    }
                    if direction != 0 {
                        self.network.cut(other, id);
                    }
                }
            }
            (42..47, _) => self.split(&all),
            (47..62, _) => self.network.mend(),
            (62..68, _) => {
                self.network.drop_percent = self.random.range(0, 20);
                self.network.repeat_percent = self.random.range(0, 20);
                self.network.slow_percent = self.random.range(0, 30);
            }
            (68..71, _) => self.network.heal(),
            (71..76, Some(id)) => self.change(id, |machine, random| {
                machine.sync_time = random.range(200, 60_000);
            }),
            (76..80, Some(id)) => {
                // Paused, as by SIGSTOP.
                let until = self.now + self.random.range(50_000, 500_000);
                self.change(id, |machine, _| machine.busy_until = until);
            }
            (80..83, Some(id)) => self.change(id, |machine, random| {
                machine.period = random.range(5_000, 20_000);
            }),
            (83..85, Some(id)) => {
                // Nobody waits for it.
                let (reply, _) = oneshot::channel();
                self.input(id, Input::Reseal(reply));
            }
            (85..87, Some(id)) => self.raise_level(id),
            (87..91, Some(id)) => {
                // None, or a little less than is to be kept free.
                let reserve = self.machines[&id].config.reserve;
                let room = if self.random.chance(50) {
                    0
                } else {
                    reserve - 1
                };
                self.machines[&id].disk.fill(room);
                let until = self.random.range(20_000, 800_000);
                self.plan(until, Event::Room(id));
                self.report.disks_filled += 1;
            }
            (91.., _) => self.operate(&all),
            _ => {}
        }
        let after = self.random.range(10_000, 120_000);
        self.plan(after, Event::Fault);
    }

    fn change(
        &mut self,
        id: u64,
        how: impl FnOnce(&mut super::world::Machine, &mut super::random::Random),
    ) {
        if let Some(machine) = self.machines.get_mut(&id) {
            how(machine, &mut self.random);
        }
    }

    fn raise_level(&mut self, id: u64) {
        let level = self.random.range(0, u64::from(KNOWN_LEVEL)) as u32;
        let running = self.machines[&id].running.as_ref();
        if running.is_some_and(|running| running.shared.admit(1_000).is_ok()) {
            // Nobody waits for it: what became of it is in the states' hashes.
            let (reply, _) = oneshot::channel();
            self.input(id, Input::RaiseLevel(level, reply));
        }
    }

    fn split(&mut self, all: &[u64]) {
        let side = self.random.next();
        for from in all {
            for to in all {
                if (side >> from ^ side >> to) & 1 == 1 {
                    self.network.cut(*from, *to);
                }
            }
        }
    }

    /// Someone changes the members, or who leads.
    fn operate(&mut self, all: &[u64]) {
        if self.is_one_lost() {
            return;
        }
        let leads = |id: &u64| {
            let running = self.machines[id].running.as_ref();
            running.is_some_and(|running| running.leadership.borrow().is_leader)
        };
        let Some(leader) = all.iter().copied().find(leads) else {
            return;
        };
        let members: Vec<u64> = self.membership.1.iter().copied().collect();
        let Some(target) = self.random.pick(&members).copied() else {
            return;
        };
        let change = match self.random.range(0, 100) {
            0..30 if members.len() < 6 && all.len() < 9 => {
                let id = all.last().copied().unwrap_or_default() + 1;
                self.add_machine(id, Vec::new());
                Change::AddLearner(id)
            }
            30..50 => Change::Promote(target),
            50..75 if members.len() > 2 => Change::Remove(target),
            _ => Change::Lead(target),
        };
        // Nobody waits for it: what became of it is seen in the members.
        let (reply, _) = oneshot::channel();
        self.input(leader, Input::Change(ChangeInput { change, reply }));
    }

    /// A member loses its disk, or a part of it. It must not start again, or it could vote twice; somebody takes it out.
    /// Others may join meanwhile, under ids of their own.
    pub(super) fn forget(&mut self) -> Result<(), String> {
        // Of four, one may be on its way out already.
        let voters = self.newest_voters();
        if voters.len() < 4 || self.is_one_lost() {
            return Ok(());
        }
        let Some(id) = self.random.pick(&voters).copied() else {
            return Ok(());
        };
        let Some(part) = self.random.pick(&Part::ALL).copied() else {
            return Ok(());
        };
        if !self.machines[&id].config.begun {
            return Ok(());
        }
        self.crash(id);
        self.machines[&id].disk.lose(part);
        match open(&self.machines[&id], self.seed, &self.outbox) {
            Err(OpenError::Lost { .. } | OpenError::Corrupt { .. }) => {}
            Err(other) => return Err(format!("member {id} lost {part:?} and says: {other}")),
            Ok(_) => {
                return Err(format!(
                    "member {id} lost {part:?} and begins as if nothing had happened"
                ));
            }
        }
        self.change(id, |machine, _| machine.retired = true);
        self.report.disks_lost += 1;
        self.plan(0, Event::TakeOut(id));
        Ok(())
    }

    /// Those that vote, as of the newest log entry that a running member has applied.
    fn newest_voters(&self) -> Vec<u64> {
        let running = self
            .machines
            .values()
            .filter_map(|machine| machine.running.as_ref());
        let newest = running
            .map(|running| {
                let state = running.shared.state.read();
                (state.applied, state.conf_state.clone())
            })
            .max_by_key(|(applied, _)| *applied);
        newest.map_or(Vec::new(), |(_, members)| {
            let before = &members.voters_outgoing;
            let stays = |id: &u64| before.is_empty() || before.contains(id);
            members.voters.iter().copied().filter(stays).collect()
        })
    }

    /// Whether a member has lost its disk and is not out yet: then no other leaves.
    fn is_one_lost(&self) -> bool {
        let lost = |id: &u64| self.machines.get(id).is_none_or(|machine| machine.retired);
        self.membership.1.iter().any(lost)
    }

    /// Asks whoever leads to take a member out, until it is.
    pub(super) fn take_out(&mut self, id: u64) {
        if !self.membership.1.contains(&id) {
            return;
        }
        let leads = |machine: &Machine| {
            let running = machine.running.as_ref();
            running.is_some_and(|running| running.leadership.borrow().is_leader)
        };
        let leader = self.machines.iter().find(|(_, machine)| leads(machine));
        if let Some(leader) = leader.map(|(id, _)| *id) {
            // Nobody waits for it: what became of it is seen in the members.
            let (reply, _) = oneshot::channel();
            let change = Change::Remove(id);
            self.input(leader, Input::Change(ChangeInput { change, reply }));
        }
        self.plan(100_000, Event::TakeOut(id));
    }

    /// Every member but one is lost for good, and that one is told to go on alone. It is the one with the newest log:
    /// any other may lack what was acknowledged.
    pub(super) fn lose_most(&mut self) -> Result<(), String> {
        let ids: Vec<u64> = self.machines.keys().copied().collect();
        for id in ids {
            self.crash(id);
        }
        // Nothing that was sent before is on its way any more by then.
        self.planned
            .retain(|_, event| !matches!(event, Event::Deliver(..)));
        let mut newest: Option<(u64, Recovered)> = None;
        for (id, machine) in &self.machines {
            if machine.retired || !self.membership.1.contains(id) {
                continue;
            }
            let found = machine.volume().recover(KNOWN_LEVEL);
            let found = found.map_err(|error| error.to_string())?;
            if let Some(found) = found
                && newest
                    .as_ref()
                    .is_none_or(|(_, best)| best.last() < found.last())
            {
                newest = Some((*id, found));
            }
        }
        let Some((survivor, found)) = newest else {
            return Ok(());
        };
        let machine = &self.machines[&survivor];
        recovery::go_on_alone(&machine.volume(), found, &machine.config)
            .map_err(|error| format!("member {survivor} cannot go on alone: {error}"))?;
        for (_, machine) in self.machines.iter_mut().filter(|(id, _)| **id != survivor) {
            (machine.retired, machine.joined) = (true, false);
        }
        self.membership = (0, BTreeSet::from([survivor]));
        self.report.recoveries += 1;
        Ok(())
    }
}
