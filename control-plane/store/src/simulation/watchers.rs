//! Watchers that follow some tables, at one member after another, and what they were told.

use std::sync::Arc;

use super::history::{Fact, History, fact};
use crate::shared::Shared;
use crate::types::{Revision, Table, WatchError};
use crate::watch::Watch;

/// One watcher.
pub(super) struct Watcher {
    tables: Vec<Table>,
    pub(super) member: u64,
    capacity: usize,
    watch: Option<Watch>,
    /// The part that is being told.
    told: Told,
    parts: Vec<Told>,
}

/// What was told from a revision up to another.
#[derive(Clone, Debug, Default)]
struct Told {
    from: Revision,
    to: Revision,
    events: Vec<(u64, Fact)>,
}

impl Watcher {
    pub(super) fn new(tables: &[&str], capacity: usize) -> Watcher {
        Watcher {
            tables: tables.iter().map(|table| Table((*table).into())).collect(),
            member: 0,
            capacity,
            watch: None,
            told: Told::default(),
            parts: Vec::new(),
        }
    }

    /// Goes on at a member where it was, or from that member's present when that is forgotten.
    pub(super) fn join(&mut self, member: u64, shared: &Arc<Shared>) {
        self.leave();
        let mut from = self.told.to;
        let tables = &self.tables;
        let watch = shared
            .watch(tables, from, self.capacity, None)
            .or_else(|_| {
                from = shared.state.read().revision;
                shared.watch(tables, from, self.capacity, None)
            });
        self.told = Told {
            from,
            to: from,
            events: Vec::new(),
        };
        (self.member, self.watch) = (member, watch.ok());
    }

    pub(super) fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// Takes what is there.
    pub(super) fn drain(&mut self) {
        let Some(watch) = &mut self.watch else {
            return;
        };
        let mut end = None;
        while let Some(next) = watch.try_next() {
            match next {
                Ok(event) => self.told.events.push((event.revision.0, fact(&event))),
                Err(error) => end = Some(error),
            }
        }
        self.told.to = watch.progress_revision();
        if let Some(WatchError::Lagged | WatchError::Compacted(_)) = end {
            self.leave();
        }
    }

    /// The member is gone, or the watch.
    pub(super) fn leave(&mut self) {
        if self.watch.take().is_some() {
            self.parts.push(self.told.clone());
        }
    }

    /// Compares everything that was told with what happened; the number of events.
    pub(super) fn check(&mut self, history: &History) -> Result<u64, String> {
        self.leave();
        let mut count = 0;
        for told in &self.parts {
            let expected = history.between(&self.tables, told.from, told.to);
            if told.events != expected {
                let at = told
                    .events
                    .iter()
                    .zip(&expected)
                    .take_while(|(told, expected)| told == expected)
                    .count();
                return Err(format!(
                    "a watch of {:?} from {} to {} was told {} events of {}; the first difference: {:?} instead of {:?}",
                    self.tables,
                    told.from,
                    told.to,
                    told.events.len(),
                    expected.len(),
                    told.events.get(at),
                    expected.get(at),
                ));
            }
            count += told.events.len() as u64;
        }
        Ok(count)
    }
}
