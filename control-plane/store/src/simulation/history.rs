//! What truly happened, as the members' states tell: one history of events, one hash per log entry, one leader per term.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::shared::Shared;
use crate::types::{Event, Leadership, Revision, Table};

/// An event as watches and the history compare it: table, name, value, whether it is a deletion.
pub(super) type Fact = (String, String, Vec<u8>, bool);

/// The history that all members must share.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) events: BTreeMap<u64, Vec<Fact>>,
    fingerprints: BTreeMap<u64, (u64, u64)>,
    leaders: HashMap<u64, u64>,
    values: BTreeSet<(String, Vec<u8>)>,
}

/// How much of a member was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    revision: u64,
    index: u64,
}

pub(super) fn fact(event: &Event) -> Fact {
    (
        event.key.table.0.to_string(),
        event.key.name.to_string(),
        event.entry.value.to_vec(),
        event.deleted,
    )
}

impl History {
    /// Compares what a member has done since the last look.
    pub(super) fn observe(
        &mut self,
        member: u64,
        shared: &Shared,
        leadership: Leadership,
        seen: &mut Seen,
    ) -> Result<(), String> {
        if leadership.is_leader {
            let leader = *self.leaders.entry(leadership.term.0).or_insert(member);
            if leader != member {
                return Err(format!(
                    "members {leader} and {member} both led term {}",
                    leadership.term.0
                ));
            }
        }
        let state = shared.state.read();
        let applied = state.applied;
        let start = state
            .history
            .partition_point(|event| event.revision.0 <= seen.revision);
        let mut fresh: BTreeMap<u64, Vec<Fact>> = BTreeMap::new();
        for event in state.history.range(start..) {
            fresh.entry(event.revision.0).or_default().push(fact(event));
        }
        seen.revision = state.revision.0;
        drop(state);
        for (revision, facts) in fresh {
            self.compare_events(member, revision, facts)?;
        }
        for index in seen.index + 1..=applied {
            if let Some(fingerprint) = shared.fingerprint_at(index) {
                let (other, known) = *self
                    .fingerprints
                    .entry(index)
                    .or_insert((member, fingerprint));
                if known != fingerprint {
                    return Err(format!(
                        "members {other} and {member} have different states at log entry {index}"
                    ));
                }
            }
        }
        seen.index = applied;
        Ok(())
    }

    fn compare_events(
        &mut self,
        member: u64,
        revision: u64,
        facts: Vec<Fact>,
    ) -> Result<(), String> {
        if let Some(known) = self.events.get(&revision) {
            if *known != facts {
                return Err(format!(
                    "member {member} has {facts:?} at revision {revision}, others {known:?}"
                ));
            }
            return Ok(());
        }
        for (table, _, value, deleted) in &facts {
            if !deleted && !self.values.insert((table.clone(), value.clone())) {
                let value = String::from_utf8_lossy(value);
                return Err(format!("{value} was written twice, again at {revision}"));
            }
        }
        self.events.insert(revision, facts);
        Ok(())
    }

    /// How many terms had a leader.
    pub(super) fn terms(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// The events of some tables after one revision up to another.
    pub(super) fn between(
        &self,
        tables: &[Table],
        from: Revision,
        to: Revision,
    ) -> Vec<(u64, Fact)> {
        self.events
            .range(from.0 + 1..)
            .take_while(|(revision, _)| **revision <= to.0)
            .flat_map(|(revision, facts)| facts.iter().map(|fact| (*revision, fact.clone())))
            .filter(|(_, fact)| tables.iter().any(|table| *table.0 == *fact.0))
            .collect()
    }

    /// Fenced values are `t<term>-...`: their terms must not go back.
    pub(super) fn check_fence(&self, table: &str) -> Result<(), String> {
        let mut newest = (0, 0);
        for (revision, fact) in
            self.between(&[Table(table.into())], Revision(0), Revision(u64::MAX))
        {
            let text = String::from_utf8_lossy(&fact.2).into_owned();
            let term = text
                .strip_prefix('t')
                .and_then(|rest| rest.split('-').next())
                .and_then(|term| term.parse().ok())
                .ok_or_else(|| format!("{text} is no fenced value"))?;
            if term < newest.0 {
                return Err(format!(
                    "a write fenced by term {term} happened at revision {revision}, after one of term {} at {}",
                    newest.0, newest.1
                ));
            }
            newest = (term, revision);
        }
        Ok(())
    }
}
