//! Linearizable reads, batched: one round of consensus serves every reader that waits.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::types::{ProposeError, Revision};

type Reply = oneshot::Sender<Result<Revision, ProposeError>>;

struct Reader {
    reply: Reply,
    patience: usize,
}

/// Readers on their way: gathered, asked for under a context, confirmed at a log index, answered once applied.
pub(crate) struct Reads {
    member: u64,
    /// Distinguishes this run of the process: an old answer must not confirm a new read.
    run: u64,
    next: u64,
    patience: usize,
    retry_after: usize,
    gathered: Vec<Reader>,
    asked: VecDeque<(u64, usize, Vec<Reader>)>,
    confirmed: Vec<(u64, Vec<Reader>)>,
}

impl Reads {
    /// A reader gives up after `patience` ticks; a question is repeated after `retry_after`.
    pub(crate) fn new(member: u64, run: u64, patience: usize, retry_after: usize) -> Reads {
        Reads {
            member,
            run,
            next: 0,
            patience,
            retry_after,
            gathered: Vec::new(),
            asked: VecDeque::new(),
            confirmed: Vec::new(),
        }
    }

    pub(crate) fn gather(&mut self, reply: Reply) {
        let patience = self.patience;
        self.gathered.push(Reader { reply, patience });
    }

    /// The context to ask consensus with for those gathered, when there are any.
    pub(crate) fn ask(&mut self) -> Option<Vec<u8>> {
        if self.gathered.is_empty() {
            return None;
        }
        self.next += 1;
        let readers = std::mem::take(&mut self.gathered);
        self.asked.push_back((self.next, self.retry_after, readers));
        Some(
            [self.member, self.run, self.next]
                .map(u64::to_le_bytes)
                .concat(),
        )
    }

    /// Consensus answered: whoever was asked for under this context may read at `index`.
    pub(crate) fn confirm(&mut self, context: &[u8], index: u64) {
        let at = self.asked.iter().position(|(number, ..)| {
            [self.member, self.run, *number]
                .map(u64::to_le_bytes)
                .concat()
                == context
        });
        if let Some((_, _, readers)) = at.and_then(|at| self.asked.remove(at)) {
            self.confirmed.push((index, readers));
        }
    }

    /// Answers those whose index is applied.
    pub(crate) fn answer(&mut self, applied: u64, revision: Revision) {
        for (_, readers) in self
            .confirmed
            .extract_if(.., |(index, _)| *index <= applied)
        {
            for reader in readers {
                // The reader may have gone.
                reader.reply.send(Ok(revision)).ok();
            }
        }
    }

    /// Time passes: questions that got lost are asked again, and nobody waits forever.
    pub(crate) fn tick(&mut self, leader: Option<u64>) {
        let Reads {
            gathered,
            asked,
            confirmed,
            ..
        } = self;
        for (_, left, readers) in asked.iter_mut() {
            *left = left.saturating_sub(1);
            if *left == 0 {
                gathered.append(readers);
            }
        }
        asked.retain(|(_, left, _)| *left > 0);
        let waiting = asked.iter_mut().flat_map(|(_, _, readers)| readers);
        let behind = confirmed.iter_mut().flat_map(|(_, readers)| readers);
        for reader in waiting.chain(behind).chain(gathered.iter_mut()) {
            reader.patience = reader.patience.saturating_sub(1);
        }
        // A member that was removed learns what it should apply, but never gets it.
        let mut impatient = Vec::new();
        for (_, readers) in confirmed.iter_mut() {
            impatient.extend(readers.extract_if(.., |reader| reader.patience == 0));
        }
        confirmed.retain(|(_, readers)| !readers.is_empty());
        impatient.extend(gathered.extract_if(.., |reader| reader.patience == 0));
        for reader in impatient {
            reader
                .reply
                .send(Err(ProposeError::NotLeader { leader }))
                .ok();
        }
    }

    /// Refuses everybody.
    pub(crate) fn stop(&mut self, reason: &str) {
        let asked = self.asked.drain(..).flat_map(|(_, _, readers)| readers);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, readers)| readers);
        for reader in self.gathered.drain(..).chain(asked).chain(confirmed) {
            let stopped = ProposeError::Stopped(reason.to_owned());
            reader.reply.send(Err(stopped)).ok();
        }
    }
}
