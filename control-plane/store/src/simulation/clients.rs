//! Clients: they write, swap, delete and read at any member, give up when it takes too long, and remember everything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::history::History;
use super::linear::{self, Action, Operation, Value};
use super::world::{Event, World};
use crate::encryption::Encryption;
use crate::member::{Input, Proposal};
use crate::record::encode_transaction;
use crate::shared::Shared;
use crate::types::{
    Demand, Entry, Guard, Index, Key, Operation as Change, ProposeError, Revision, Table, Term,
    Transaction,
};

const KEYS: u64 = 5;
/// Some room remains for those that are under way.
const PER_KEY: usize = linear::MOST - 12;

type Answer = oneshot::Receiver<Result<Revision, ProposeError>>;

/// All clients, and what they know together.
pub(super) struct Clients {
    clients: Vec<Client>,
    next_value: u64,
    histories: BTreeMap<u64, Vec<Operation>>,
    /// Revision, table, name, value.
    acknowledged: Vec<(Revision, &'static str, String, Vec<u8>)>,
    unknown: u64,
    reads: u64,
    /// Once healed: members that still have to take a write.
    last: Option<BTreeSet<u64>>,
}

#[derive(Default)]
struct Client {
    pending: Option<Pending>,
    /// What it saw of every key, and at which revision.
    seen: BTreeMap<u64, (Value, Revision)>,
    /// A term that a member led when this client looked, and may still believe in.
    held: Option<u64>,
}

struct Pending {
    member: u64,
    key: u64,
    called: u64,
    deadline: u64,
    action: Option<Action>,
    fenced: Option<Vec<u8>>,
    answer: Answer,
}

fn key(table: &str, name: &str) -> Key {
    Key {
        table: Table(table.into()),
        namespace: "".into(),
        name: name.into(),
    }
}

fn name(key: u64) -> String {
    format!("k{key}")
}

fn bytes(value: u64) -> Vec<u8> {
    format!("w{value}").into_bytes()
}

fn value(entry: Option<&Entry>) -> Value {
    let text = std::str::from_utf8(&entry?.value).ok()?;
    text.strip_prefix('w')?.parse().ok()
}

/// Both tables hold every key, always equal.
fn change(key_number: u64, value: Value) -> Vec<Change> {
    ["reg", "mirror"]
        .into_iter()
        .map(|table| match value {
            Some(value) => Change::Put {
                key: key(table, &name(key_number)),
                value: Bytes::from(bytes(value)),
                index: Index::default(),
            },
            None => Change::Delete {
                key: key(table, &name(key_number)),
                last: None,
            },
        })
        .collect()
}

impl Clients {
    pub(super) fn new(count: usize) -> Clients {
        Clients {
            clients: (0..count).map(|_| Client::default()).collect(),
            next_value: 0,
            histories: BTreeMap::new(),
            acknowledged: Vec::new(),
            unknown: 0,
            reads: 0,
            last: None,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.clients.len()
    }

    /// From now on they write once at every member, and rest.
    pub(super) fn finish(&mut self, members: &BTreeSet<u64>) {
        self.last = Some(members.clone());
    }

    /// Who is no member any more need not take the last write.
    pub(super) fn leave_out(&mut self, members: &BTreeSet<u64>) {
        if let Some(left) = &mut self.last {
            left.retain(|member| members.contains(member));
        }
    }

    pub(super) fn finished(&self) -> bool {
        let idle = self.clients.iter().all(|client| client.pending.is_none());
        idle && self.last.as_ref().is_some_and(BTreeSet::is_empty)
    }

    /// The member is gone, and with it its answers.
    pub(super) fn lose(&mut self, member: u64) {
        for at in 0..self.clients.len() {
            let lost = |pending: &mut Pending| pending.member == member;
            if let Some(mut pending) = self.clients[at].pending.take_if(lost) {
                let answer = pending.answer.try_recv().ok();
                // What was answered before counts; a read without its state does not.
                let order = pending.called;
                match answer {
                    Some(Err(error)) => self.refused(at, pending, error, order),
                    _ => self.give_up(&pending),
                }
            }
        }
    }

    fn record(&mut self, key: u64, called: u64, answered: Option<u64>, action: Action) {
        self.histories.entry(key).or_default().push(Operation {
            called,
            answered,
            action,
        });
    }

    fn give_up(&mut self, pending: &Pending) {
        if let Some(action) = pending.action {
            self.unknown += 1;
            self.record(pending.key, pending.called, None, action);
        }
    }

    fn refused(&mut self, at: usize, pending: Pending, error: ProposeError, order: u64) {
        match error {
            ProposeError::Conflict { current, .. } if pending.fenced.is_none() => {
                let current = current.as_deref();
                let seen = value(current);
                if order > pending.called {
                    self.record(pending.key, pending.called, Some(order), Action::Read(seen));
                }
                let revision = current.map_or(Revision(0), |entry| entry.modify_revision);
                self.clients[at].seen.insert(pending.key, (seen, revision));
            }
            ProposeError::Conflict { .. } => self.clients[at].held = None,
            ProposeError::NotLeader { .. }
            | ProposeError::Overloaded { .. }
            | ProposeError::ReadOnly(_) => {}
            ProposeError::Unknown | ProposeError::Stopped(_) => self.give_up(&pending),
        }
    }

    fn accepted(&mut self, at: usize, pending: &Pending, revision: Revision, order: u64) {
        if let Some(member) = self.last.as_mut() {
            member.remove(&pending.member);
        }
        if let Some(value) = &pending.fenced {
            let acknowledged = (revision, "fence", "f".to_owned(), value.clone());
            self.acknowledged.push(acknowledged);
            return;
        }
        let Some(action) = pending.action else {
            return;
        };
        self.record(pending.key, pending.called, Some(order), action);
        let (Action::Write(new) | Action::Swap(_, new)) = action else {
            return;
        };
        self.clients[at].seen.insert(pending.key, (new, revision));
        if let Some(value) = new {
            let acknowledged = (revision, "reg", name(pending.key), bytes(value));
            self.acknowledged.push(acknowledged);
        }
    }

    fn read(
        &mut self,
        at: usize,
        pending: &Pending,
        shared: &Shared,
        order: u64,
    ) -> Result<(), String> {
        let state = shared.state.read();
        let name = name(pending.key);
        let entry = state.get(&key("reg", &name));
        let mirror = state.get(&key("mirror", &name));
        let facts = |entry: &std::sync::Arc<Entry>| (entry.value.clone(), entry.modify_revision);
        if entry.map(facts) != mirror.map(facts) {
            return Err(format!(
                "a transaction is half done: {entry:?} but {mirror:?}"
            ));
        }
        let seen = value(entry.map(|entry| &**entry));
        let revision = entry.map_or(Revision(0), |entry| entry.modify_revision);
        drop(state);
        self.reads += 1;
        self.record(pending.key, pending.called, Some(order), Action::Read(seen));
        self.clients[at].seen.insert(pending.key, (seen, revision));
        Ok(())
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    pub(super) fn unknown(&self) -> u64 {
        self.unknown
    }

    pub(super) fn reads(&self) -> u64 {
        self.reads
    }

    /// Whether everything they saw can have happened.
    pub(super) fn check(&self, history: &History) -> Result<(), String> {
        for (revision, table, name, value) in &self.acknowledged {
            let fact = (table.to_string(), name.clone(), value.clone(), false);
            let there = history
                .events
                .get(&revision.0)
                .is_some_and(|facts| facts.contains(&fact));
            if !there {
                return Err(format!(
                    "the write of {} to {name}, acknowledged at revision {revision}, is lost",
                    String::from_utf8_lossy(value)
                ));
            }
        }
        for (key, operations) in &self.histories {
            linear::check(operations).map_err(|reason| format!("key k{key}: {reason}"))?;
        }
        Ok(())
    }
}

impl World {
    /// A client starts something, or loses its patience.
    pub(super) fn client_acts(&mut self, at: usize) {
        let now = self.now;
        let overdue = |pending: &mut Pending| pending.deadline <= now;
        if let Some(pending) = self.clients.clients[at].pending.take_if(overdue) {
            self.clients.give_up(&pending);
        }
        if self.clients.clients[at].pending.is_none() {
            self.begin(at);
        }
        if !self.clients.finished() {
            let after = self.random.range(2_000, 40_000);
            self.plan(after, Event::Client(at));
        }
    }

    fn begin(&mut self, at: usize) {
        let up = match &self.clients.last {
            Some(left) => left.iter().copied().collect(),
            None => self.up(),
        };
        let Some(member) = self.random.pick(&up).copied() else {
            return;
        };
        let (sender, answer) = oneshot::channel();
        self.order += 1;
        let mut pending = Pending {
            member,
            key: self.random.range(0, KEYS),
            called: self.order,
            deadline: self.now + self.random.range(100_000, 700_000),
            action: None,
            fenced: None,
            answer,
        };
        let history = self.clients.histories.get(&pending.key);
        let full = history.is_some_and(|operations| operations.len() >= PER_KEY);
        let kind = match &self.clients.last {
            Some(_) => 100,
            None => self.random.range(0, 100),
        };
        let transaction = if kind < 30 && !full {
            pending.action = None;
            None
        } else if kind < 80 && !full {
            let (action, guards) = self.choose_write(at, pending.key, kind);
            pending.action = Some(action);
            let (Action::Write(new) | Action::Swap(_, new)) = action else {
                return;
            };
            Some(Transaction {
                guards,
                operations: change(pending.key, new),
            })
        } else {
            let Some(transaction) = self.fenced(at, member, kind == 100, &mut pending) else {
                return;
            };
            Some(transaction)
        };
        let input = match transaction {
            None => Input::Barrier(sender),
            Some(transaction) => {
                let running = self.machines[&member].running.as_ref();
                let Some(running) = running else {
                    return;
                };
                if running.shared.admit(1_000).is_err() {
                    return;
                }
                let encryption = Encryption::new(self.machines[&member].config.transformer.clone());
                Input::Propose(Proposal {
                    demand: Demand::default(),
                    data: encode_transaction(&transaction, &encryption),
                    reply: sender,
                    submitted: Instant::now(),
                })
            }
        };
        self.clients.clients[at].pending = Some(pending);
        self.input(member, input);
    }

    fn choose_write(&mut self, at: usize, number: u64, kind: u64) -> (Action, Vec<Guard>) {
        self.clients.next_value += 1;
        let new = Some(self.clients.next_value);
        let seen = self.clients.clients[at].seen.get(&number).copied();
        let row = key("reg", &name(number));
        match (kind, seen) {
            (30..45, _) => (Action::Write(new), Vec::new()),
            (45..50, _) => (Action::Write(None), Vec::new()),
            (_, Some((Some(old), revision))) => (
                Action::Swap(Some(old), new),
                vec![Guard::ModifiedAt(row, revision)],
            ),
            _ => (Action::Swap(None, new), vec![Guard::Absent(row)]),
        }
    }

    /// A write that only the leader's own parts may do, perhaps by one that is no leader any more.
    fn fenced(
        &mut self,
        at: usize,
        member: u64,
        plain: bool,
        pending: &mut Pending,
    ) -> Option<Transaction> {
        self.clients.next_value += 1;
        let number = self.clients.next_value;
        if plain {
            // The last writes at every member need no term.
            let new = Some(number);
            pending.key = KEYS;
            pending.action = Some(Action::Write(new));
            return Some(Transaction {
                guards: Vec::new(),
                operations: change(KEYS, new),
            });
        }
        let leadership = *self.machines[&member].running.as_ref()?.leadership.borrow();
        let looks = self.random.chance(40);
        let client = &mut self.clients.clients[at];
        if leadership.is_leader && (looks || client.held.is_none()) {
            client.held = Some(leadership.term.0);
        }
        let term = client.held?;
        let value = format!("t{term}-{number}").into_bytes();
        pending.fenced = Some(value.clone());
        Some(Transaction {
            guards: vec![Guard::Term(Term(term))],
            operations: vec![Change::Put {
                key: key("fence", "f"),
                value: Bytes::from(value),
                index: Index::default(),
            }],
        })
    }

    /// Answers that a member has given in its last round.
    pub(super) fn poll_clients(&mut self, member: u64) -> Result<(), String> {
        for at in 0..self.clients.clients.len() {
            let waits = self.clients.clients[at]
                .pending
                .as_mut()
                .filter(|pending| pending.member == member);
            let Some(pending) = waits else {
                continue;
            };
            let answer = match pending.answer.try_recv() {
                Err(TryRecvError::Empty) => continue,
                Ok(answer) => Some(answer),
                Err(TryRecvError::Closed) => None,
            };
            let Some(pending) = self.clients.clients[at].pending.take() else {
                continue;
            };
            self.order += 1;
            let order = self.order;
            let reads = pending.action.is_none() && pending.fenced.is_none();
            match answer {
                Some(Ok(_)) if reads => {
                    if let Some(running) = &self.machines[&member].running {
                        self.clients.read(at, &pending, &running.shared, order)?;
                    }
                }
                Some(Ok(revision)) => self.clients.accepted(at, &pending, revision, order),
                Some(Err(error)) => self.clients.refused(at, pending, error, order),
                None => self.clients.give_up(&pending),
            }
        }
        Ok(())
    }
}
