//! Watches: events after a revision, in order, without gaps.

use std::collections::VecDeque;

use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::types::{Event, Revision, Table, WatchError};

/// The events of some tables. Closed with [`WatchError::Lagged`] when its reader falls behind the bounded buffer.
#[derive(Debug)]
pub struct Watch {
    pub(crate) tables: Vec<Table>,
    pub(crate) backlog: VecDeque<Event>,
    pub(crate) live: Receiver<std::sync::Arc<[Event]>>,
    pub(crate) progress: Revision,
    pub(crate) closed: bool,
}

impl Watch {
    /// The next event; `None` when the store has stopped or after an error.
    pub async fn next(&mut self) -> Option<Result<Event, WatchError>> {
        loop {
            if self.closed {
                return None;
            }
            if let Some(event) = self.backlog.pop_front() {
                return Some(Ok(event));
            }
            match self.live.recv().await {
                Ok(events) => {
                    self.progress = events.last().map_or(self.progress, |event| event.revision);
                    self.backlog.extend(
                        events
                            .iter()
                            .filter(|event| self.tables.contains(&event.key.table))
                            .cloned(),
                    );
                }
                Err(RecvError::Lagged(_)) => {
                    self.closed = true;
                    return Some(Err(WatchError::Lagged));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Everything up to this revision was delivered: fit for a bookmark.
    pub fn progress_revision(&self) -> Revision {
        match self.backlog.front() {
            Some(event) => Revision(event.revision.0.saturating_sub(1)),
            None => self.progress,
        }
    }
}
