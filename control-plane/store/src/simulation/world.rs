//! One run: the events in their order, the machines they happen to, and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;

use super::clients::Clients;
use super::disk::SimDisk;
use super::history::{History, Seen};
use super::network::{Network, Outbox, Port};
use super::random::Random;
use super::watchers::Watcher;
use super::{Mutation, Report};
use crate::bootstrap::Bootstrapped;
use crate::chance::{Chance, mix};
use crate::config::{OpenError, StoreConfig};
use crate::disk::{StateWriter, Volume};
use crate::encryption::Encryption;
use crate::encryption::toy::ToyTransformer;
use crate::member::{Failure, Input, Member};
use crate::packet::{Body, Packet};
use crate::shared::Shared;
use crate::types::Leadership;

/// Times are microseconds since the beginning.
pub(super) const TICK: u64 = 10_000;
/// Feature levels up to this one are known to all.
pub(super) const KNOWN_LEVEL: u32 = 1_000;
/// What a member may write to a full disk: entries it had accepted, rows of those, votes.
const RESERVED: u64 = 16 << 10;
const FAULTY: u64 = 2_500_000;
const SETTLED: u64 = FAULTY + 10_000_000;

pub(super) enum Event {
    Tick(u64, u64),
    Round(u64, u64),
    WriteBehind(u64, u64),
    Deliver(u64, Bytes),
    Client(usize),
    Watchers,
    Fault,
    Start(u64),
    Retire(u64),
    Room(u64),
    Loss,
    /// A member loses a part of its disk.
    Amnesia,
    /// Somebody takes a member out, again and again until it is out.
    TakeOut(u64),
}

/// A computer: its disk, and the member that runs on it, or not.
pub(super) struct Machine {
    pub(super) config: StoreConfig,
    pub(super) disk: Arc<SimDisk>,
    pub(super) running: Option<Running>,
    /// Counts the starts; what was planned for an earlier one does not happen.
    life: u64,
    inbox: Vec<Input>,
    round_planned: bool,
    /// Until then it waits for its disk, or is paused.
    pub(super) busy_until: u64,
    /// Between ticks: clocks are not equally fast.
    pub(super) period: u64,
    /// How long a sync takes at most.
    pub(super) sync_time: u64,
    /// Whether it was seen among the members.
    pub(super) joined: bool,
    pub(super) retired: bool,
}

impl Machine {
    pub(super) fn volume(&self) -> Volume {
        Volume::new(
            Path::new("/simulated"),
            Arc::clone(&self.disk) as Arc<_>,
            Encryption::new(self.config.transformer.clone()),
        )
    }
}

/// The member of a machine, as far as its disk lets it begin.
pub(super) fn open(
    machine: &Machine,
    seed: u64,
    outbox: &Outbox,
) -> Result<Bootstrapped, OpenError> {
    let id = machine.config.member_id;
    let volume = machine.volume();
    let port = Port {
        from: id,
        outbox: Arc::clone(outbox),
    };
    let chance = Chance::seeded(mix(seed ^ mix(id << 32 | machine.life)));
    let writer = |persisted| Ok(Some(StateWriter::stepped(volume.clone(), persisted)));
    Bootstrapped::open(
        &machine.config,
        Some(volume.clone()),
        KNOWN_LEVEL,
        chance,
        Arc::new(port),
        writer,
    )
}

pub(super) struct Running {
    pub(super) member: Member,
    pub(super) shared: Arc<Shared>,
    pub(super) leadership: watch::Receiver<Leadership>,
    seen: Seen,
}

pub(super) struct World {
    pub(super) seed: u64,
    mutation: Option<Mutation>,
    pub(super) random: Random,
    pub(super) now: u64,
    /// Numbers everything that happens, in its order.
    pub(super) order: u64,
    pub(super) planned: BTreeMap<(u64, u64), Event>,
    pub(super) machines: BTreeMap<u64, Machine>,
    pub(super) network: Network,
    pub(super) outbox: Outbox,
    pub(super) clients: Clients,
    watchers: Vec<Watcher>,
    pub(super) history: History,
    /// The members as of the newest log entry that anyone applied.
    pub(super) membership: (u64, BTreeSet<u64>),
    pub(super) report: Report,
    trace: DefaultHasher,
    template: StoreConfig,
}

impl World {
    pub(super) fn new(seed: u64, mutation: Option<Mutation>) -> World {
        let mut random = Random::new(seed);
        let members = if random.chance(60) { 3 } else { 5 };
        let pick = |random: &mut Random, from: &[usize]| *random.pick(from).expect("not empty");
        let template = StoreConfig {
            voters: (1..=members).collect(),
            transformer: random
                .chance(30)
                .then(|| Arc::new(ToyTransformer::covering(&["reg"])) as Arc<_>),
            event_history: pick(&mut random, &[64, 1_000]),
            watch_buffer: pick(&mut random, &[2, 64]),
            log_entries: pick(&mut random, &[3, 10, 1_000]) as u64,
            snapshot_chunk_bytes: pick(&mut random, &[1, 100, 10_000]),
            promote_learners: random.chance(50),
            heartbeat_ticks: 2,
            election_ticks: 10,
            ..StoreConfig::default()
        };
        let watchers: [&[&str]; 4] = [&["reg"], &["reg", "mirror"], &["mirror"], &["fence", "reg"]];
        let mut world = World {
            seed,
            mutation,
            random,
            now: 0,
            order: 0,
            planned: BTreeMap::new(),
            machines: BTreeMap::new(),
            network: Network::default(),
            outbox: Outbox::default(),
            clients: Clients::new(5),
            watchers: watchers
                .iter()
                .map(|tables| Watcher::new(tables, template.watch_buffer))
                .collect(),
            history: History::default(),
            membership: (0, (1..=members).collect()),
            report: Report::default(),
            trace: DefaultHasher::new(),
            template,
        };
        for id in 1..=members {
            world.add_machine(id, (1..=members).collect());
        }
        for client in 0..world.clients.count() {
            let at = world.random.range(0, 300_000);
            world.plan(at, Event::Client(client));
        }
        world.plan(1_000, Event::Watchers);
        world.plan(200_000, Event::Fault);
        if world.random.chance(20) {
            let at = world.random.range(400_000, FAULTY);
            world.plan(at, Event::Amnesia);
        }
        if world.random.chance(15) {
            let at = world.random.range(400_000, FAULTY);
            world.plan(at, Event::Loss);
        }
        world
    }

    pub(super) fn add_machine(&mut self, id: u64, voters: Vec<u64>) {
        let machine = Machine {
            config: StoreConfig {
                member_id: id,
                voters,
                ..self.template.clone()
            },
            disk: Arc::default(),
            running: None,
            life: 0,
            inbox: Vec::new(),
            round_planned: false,
            busy_until: 0,
            period: self.random.range(8_000, 13_000),
            sync_time: 300,
            joined: false,
            retired: false,
        };
        self.machines.insert(id, machine);
        self.plan(0, Event::Start(id));
    }

    pub(super) fn plan(&mut self, after: u64, event: Event) {
        self.order += 1;
        self.planned.insert((self.now + after, self.order), event);
    }

    pub(super) fn calm(&self) -> bool {
        self.now >= FAULTY
    }

    pub(super) fn run(mut self) -> Result<Report, String> {
        let mut healed = false;
        while let Some(((time, order), event)) = self.planned.pop_first() {
            self.now = time;
            if self.calm() && !healed {
                healed = true;
                self.heal();
            }
            (time, order).hash(&mut self.trace);
            self.happen(event).map_err(|reason| self.located(&reason))?;
            if healed && self.clients.finished() && self.converged() {
                return self.verdict();
            }
            if time > SETTLED {
                return Err(self.located("the healed cluster did not settle"));
            }
        }
        Err("nothing is left to happen".to_owned())
    }

    fn located(&self, reason: &str) -> String {
        let states: Vec<String> = self
            .machines
            .iter()
            .map(|(id, machine)| match &machine.running {
                None => format!("{id}: down"),
                Some(running) => {
                    let state = running.shared.state.read();
                    let leadership = *running.leadership.borrow();
                    format!(
                        "{id}: term {} leader {:?} applied {} revision {} voters {:?} learners {:?}",
                        leadership.term.0,
                        leadership.leader,
                        state.applied,
                        state.revision,
                        state.conf_state.voters,
                        state.conf_state.learners
                    )
                }
            })
            .collect();
        format!(
            "after {} ms: {reason}\n  {}",
            self.now / 1_000,
            states.join("\n  ")
        )
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Start(id) => self.start(id)?,
            Event::Tick(id, life) => self.tick(id, life)?,
            Event::Round(id, life) => {
                if let Some(machine) = self.alive(id, life) {
                    machine.round_planned = false;
                    self.round(id)?;
                }
            }
            Event::WriteBehind(id, life) => {
                let after = self.random.range(500, 20_000);
                if let Some(machine) = self.alive(id, life) {
                    if let Some(running) = &mut machine.running {
                        running.member.write_behind();
                    }
                    self.plan(after, Event::WriteBehind(id, life));
                }
            }
            Event::Deliver(to, bytes) => {
                let packet = Packet::decode(bytes).map_err(|error| error.to_string())?;
                if matches!(packet.body, Some(Body::Received(_))) {
                    self.report.states_taken_over += 1;
                }
                self.input(to, Input::Packet(Box::new(packet)));
            }
            Event::Client(client) => self.client_acts(client),
            Event::Watchers => self.watchers_act(),
            Event::Fault => self.fault(),
            Event::Room(id) => self.machines[&id].disk.make_room(),
            Event::Loss => self.lose_most()?,
            Event::Amnesia => self.forget()?,
            Event::TakeOut(id) => self.take_out(id),
            Event::Retire(id) => {
                self.crash(id);
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.retired = true;
                }
            }
        }
        Ok(())
    }

    fn alive(&mut self, id: u64, life: u64) -> Option<&mut Machine> {
        let machine = self.machines.get_mut(&id)?;
        (machine.running.is_some() && machine.life == life).then_some(machine)
    }

    /// Something reaches a member; when it is down nobody hears of it.
    pub(super) fn input(&mut self, id: u64, input: Input) {
        let delay = self.random.range(20, 300);
        let Some(machine) = self.machines.get_mut(&id) else {
            return;
        };
        if machine.running.is_none() {
            return;
        }
        machine.inbox.push(input);
        if !machine.round_planned {
            machine.round_planned = true;
            let wait = machine.busy_until.saturating_sub(self.now);
            let life = machine.life;
            self.plan(delay.max(wait), Event::Round(id, life));
        }
    }

    fn start(&mut self, id: u64) -> Result<(), String> {
        let Some(machine) = self.machines.get_mut(&id) else {
            return Ok(());
        };
        if machine.running.is_some() || machine.retired {
            return Ok(());
        }
        machine.life += 1;
        let life = machine.life;
        let bootstrapped = open(machine, self.seed, &self.outbox)
            .map_err(|error| format!("member {id} does not start again: {error}"))?;
        machine.config.begun = true;
        let mut member = bootstrapped.member;
        member.mutate_to(self.mutation);
        machine.inbox.clear();
        machine.round_planned = false;
        machine.running = Some(Running {
            member,
            shared: bootstrapped.shared,
            leadership: bootstrapped.leadership,
            seen: Seen::default(),
        });
        let period = machine.period;
        self.plan(period, Event::Tick(id, life));
        self.plan(period / 2, Event::WriteBehind(id, life));
        self.round(id)
    }

    fn tick(&mut self, id: u64, life: u64) -> Result<(), String> {
        let now = self.now;
        let Some(machine) = self.alive(id, life) else {
            return Ok(());
        };
        let period = machine.period;
        if machine.busy_until > now {
            let wait = machine.busy_until - now;
            self.plan(wait, Event::Tick(id, life));
            return Ok(());
        }
        if let Some(running) = &mut machine.running {
            running.member.tick();
        }
        self.plan(period, Event::Tick(id, life));
        self.round(id)
    }

    /// Takes in what has arrived and lets the member do what follows.
    fn round(&mut self, id: u64) -> Result<(), String> {
        let Some(machine) = self.machines.get_mut(&id) else {
            return Ok(());
        };
        let Some(running) = &mut machine.running else {
            return Ok(());
        };
        let inputs = std::mem::take(&mut machine.inbox);
        running.member.take_in(inputs.into_iter());
        let outcome = running.member.settle();
        self.carry();
        match outcome {
            Ok(()) => {}
            Err(Failure::Disk(_)) => {
                self.crash(id);
                return Ok(());
            }
            Err(failure) => return Err(format!("member {id} failed: {failure}")),
        }
        let machine = self.machines.get_mut(&id).expect("it ran just now");
        let written = machine.disk.overrun();
        self.report.written_when_full = self.report.written_when_full.max(written);
        if written > RESERVED {
            return Err(format!(
                "member {id} wrote {written} bytes to a disk that is full"
            ));
        }
        let syncs = machine.disk.take_syncs();
        if syncs > 0 {
            let time = self.random.range(50, machine.sync_time + 51) * syncs;
            machine.busy_until = machine.busy_until.max(self.now + time);
        }
        self.observe(id)?;
        self.poll_clients(id)
    }

    /// Hands what was sent to the network.
    fn carry(&mut self) {
        let sent = std::mem::take(&mut *self.outbox.lock());
        for (from, to, bytes) in sent {
            bytes.hash(&mut self.trace);
            for delay in self.network.delays(from, to, &mut self.random) {
                self.plan(delay, Event::Deliver(to, bytes.clone()));
            }
        }
    }

    fn observe(&mut self, id: u64) -> Result<(), String> {
        let machine = self.machines.get_mut(&id).expect("it ran just now");
        let Some(running) = &mut machine.running else {
            return Ok(());
        };
        let leadership = *running.leadership.borrow();
        self.history
            .observe(id, &running.shared, leadership, &mut running.seen)?;
        let state = running.shared.state.read();
        if state.applied <= self.membership.0 {
            return Ok(());
        }
        let members = &state.conf_state;
        let ids: BTreeSet<u64> = [
            &members.voters,
            &members.learners,
            &members.voters_outgoing,
            &members.learners_next,
        ]
        .into_iter()
        .flatten()
        .copied()
        .collect();
        self.membership.0 = state.applied;
        drop(state);
        if ids != self.membership.1 {
            self.report.membership_changes += 1;
            self.membership.1 = ids;
            self.clients.leave_out(&self.membership.1);
        }
        let mut gone = Vec::new();
        for (id, machine) in &mut self.machines {
            if self.membership.1.contains(id) {
                machine.joined = true;
            } else if machine.joined {
                machine.joined = false;
                gone.push(*id);
            }
        }
        for id in gone {
            let after = self.random.range(0, 400_000);
            self.plan(after, Event::Retire(id));
        }
        Ok(())
    }

    /// The member is gone at once; its disk keeps what it must.
    pub(super) fn crash(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else {
            return;
        };
        if machine.running.take().is_none() {
            return;
        }
        self.report.crashes += 1;
        machine.inbox.clear();
        machine.disk.crash(&mut self.random);
        for watcher in &mut self.watchers {
            if watcher.member == id {
                watcher.drain();
                watcher.leave();
            }
        }
        self.clients.lose(id);
        let after = match self.calm() {
            true => 1_000,
            false => self.random.range(1_000, 600_000),
        };
        self.plan(after, Event::Start(id));
    }

    /// Stops a member in good order.
    pub(super) fn stop(&mut self, id: u64) {
        if let Some(machine) = self.machines.get_mut(&id)
            && let Some(running) = &mut machine.running
        {
            running.member.hand_over();
            let settled = running.member.settle();
            self.carry();
            let machine = self.machines.get_mut(&id).expect("it is there");
            let inbox = std::mem::take(&mut machine.inbox);
            if let Some(running) = machine.running.take() {
                if settled.is_ok() {
                    running.member.stop("it was shut down", inbox.into_iter());
                }
                machine.disk.crash(&mut self.random);
            }
            for watcher in &mut self.watchers {
                if watcher.member == id {
                    watcher.drain();
                    watcher.leave();
                }
            }
            self.clients.lose(id);
            let after = self.random.range(1_000, 300_000);
            self.plan(after, Event::Start(id));
        }
    }

    /// Those that run now.
    pub(super) fn up(&self) -> Vec<u64> {
        let up = self.machines.iter();
        up.filter(|(_, machine)| machine.running.is_some())
            .map(|(id, _)| *id)
            .collect()
    }

    fn watchers_act(&mut self) {
        let up = self.up();
        for at in 0..self.watchers.len() {
            self.watchers[at].drain();
            let moves = self.random.chance(2);
            if (moves || !self.watchers[at].is_watching())
                && let Some(id) = self.random.pick(&up)
                && let Some(running) = &self.machines[id].running
            {
                self.watchers[at].join(*id, &running.shared);
            }
        }
        let after = self.random.range(1_000, 40_000);
        self.plan(after, Event::Watchers);
    }

    fn heal(&mut self) {
        self.network.heal();
        let ids: Vec<u64> = self.machines.keys().copied().collect();
        for id in ids {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.busy_until = 0;
                machine.disk.make_room();
                (machine.period, machine.sync_time) = (TICK, 300);
            }
            self.plan(0, Event::Start(id));
        }
        self.clients.finish(&self.membership.1);
        for client in 0..self.clients.count() {
            self.plan(1, Event::Client(client));
        }
    }

    fn converged(&self) -> bool {
        let mut states = self.membership.1.iter().map(|id| {
            let running = self.machines.get(id)?.running.as_ref()?;
            let state = running.shared.state.read();
            Some((state.applied, state.fingerprint()))
        });
        let first = states.next().flatten();
        first.is_some() && states.all(|state| state == first)
    }

    fn verdict(mut self) -> Result<Report, String> {
        for at in 0..self.watchers.len() {
            self.watchers[at].drain();
            let told = self.watchers[at].check(&self.history);
            self.report.events += told.map_err(|reason| self.located(&reason))?;
        }
        let checked = self
            .clients
            .check(&self.history)
            .and_then(|()| self.history.check_fence("fence"));
        checked.map_err(|reason| self.located(&reason))?;
        self.report.acknowledged = self.clients.acknowledged();
        self.report.unknown = self.clients.unknown();
        self.report.reads = self.clients.reads();
        self.report.elections = self.history.terms();
        self.report.trace = self.trace.finish();
        Ok(self.report)
    }
}
