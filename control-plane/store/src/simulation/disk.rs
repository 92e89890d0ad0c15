//! A disk that keeps its promises and not one more: what was not synced is lost from some byte on.

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;

use super::random::Random;
use crate::disk::{Batch, Engine, EngineError, HARD_STATE, LOG_START, Space};
use crate::record::{seal, unseal};

type Records = BTreeMap<(Space, Vec<u8>), Vec<u8>>;

/// What of a disk is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Everything,
    Log,
    State,
    /// The term, the vote and the commit index.
    Vote,
    /// Where the log begins.
    Start,
}

impl Part {
    pub(crate) const ALL: [Self; 5] = [
        Self::Everything,
        Self::Log,
        Self::State,
        Self::Vote,
        Self::Start,
    ];

    fn holds(self, space: Space, key: &[u8]) -> bool {
        match self {
            Self::Everything => true,
            Self::Log => space == Space::Log,
            Self::State => space == Space::State,
            Self::Vote => key == HARD_STATE,
            Self::Start => key == LOG_START,
        }
    }
}

/// One member's disk; it outlives the member's crashes.
#[derive(Default)]
pub(crate) struct SimDisk {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// What a power cut cannot take.
    durable: Records,
    /// What the running member reads.
    current: Records,
    /// The journal since the last sync, batch by batch.
    unsynced: Vec<u8>,
    /// Writes until one fails.
    fuse: Option<u64>,
    failed: bool,
    syncs: u64,
    /// What is left of it, when that is little, and what was written since.
    room: Option<u64>,
    written: u64,
}

impl SimDisk {
    /// Lets a write fail, some writes from now: power is lost in the midst of a round, or the disk refuses a sync.
    pub(crate) fn light_fuse(&self, writes: u64) {
        self.inner.lock().fuse = Some(writes);
    }

    /// Leaves this much room, as far as anybody asks: what was accepted before still fits.
    pub(crate) fn fill(&self, room: u64) {
        let mut inner = self.inner.lock();
        (inner.room, inner.written) = (Some(room), 0);
    }

    pub(crate) fn make_room(&self) {
        self.inner.lock().room = None;
    }

    /// How much was written since there was no room at all.
    pub(crate) fn overrun(&self) -> u64 {
        let inner = self.inner.lock();
        if inner.room == Some(0) {
            inner.written
        } else {
            0
        }
    }

    /// How many syncs were done since the last call.
    pub(crate) fn take_syncs(&self) -> u64 {
        std::mem::take(&mut self.inner.lock().syncs)
    }

    /// The member is gone, and a part of what it had written as well.
    pub(crate) fn lose(&self, part: Part) {
        let mut inner = self.inner.lock();
        inner
            .durable
            .retain(|(space, key), _| !part.holds(*space, key));
        inner.unsynced.clear();
        inner.current = inner.durable.clone();
    }

    /// The member is gone: of the journal's unsynced end, some first bytes are there.
    pub(crate) fn crash(&self, random: &mut Random) {
        let mut inner = self.inner.lock();
        let mut journal = std::mem::take(&mut inner.unsynced);
        let kept = random.range(0, journal.len() as u64 + 1) as usize;
        journal.truncate(kept);
        if random.chance(30)
            && let Some(last) = journal.last_mut()
        {
            // The torn block holds something else than what was written.
            *last ^= 0x55;
        }
        replay(&journal, &mut inner.durable);
        inner.current = inner.durable.clone();
        (inner.fuse, inner.failed, inner.syncs) = (None, false, 0);
    }
}

/// Applies whole batches, up to the first that is not.
fn replay(mut journal: &[u8], records: &mut Records) {
    while let Some((length, rest)) = journal.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((frame, rest)) = rest.split_at_checked(length) else {
            return;
        };
        let Ok(batch) = unseal(frame) else {
            return;
        };
        apply(decode(batch), records);
        journal = rest;
    }
}

fn apply(batch: Batch, records: &mut Records) {
    for (space, key, record) in batch {
        match record {
            Some(record) => records.insert((space, key), record),
            None => records.remove(&(space, key)),
        };
    }
}

fn encode(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (space, key, record) in batch {
        bytes.push(u8::from(*space == Space::State));
        bytes.extend((key.len() as u32).to_le_bytes());
        bytes.extend(key);
        bytes.push(u8::from(record.is_some()));
        let record = record.as_deref().unwrap_or_default();
        bytes.extend((record.len() as u32).to_le_bytes());
        bytes.extend(record);
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Batch {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(count);
        *bytes = rest;
        taken
    }
    fn sized(bytes: &mut &[u8]) -> Vec<u8> {
        let length = take(bytes, 4).try_into().expect("four bytes");
        take(bytes, u32::from_le_bytes(length) as usize).to_vec()
    }
    let mut batch = Batch::new();
    while !bytes.is_empty() {
        let space = match take(&mut bytes, 1) {
            [0] => Space::Log,
            _ => Space::State,
        };
        let key = sized(&mut bytes);
        let present = take(&mut bytes, 1) == [1];
        let record = sized(&mut bytes);
        batch.push((space, key, present.then_some(record)));
    }
    batch
}

impl Inner {
    /// Whether this write is done.
    fn burn(&mut self) -> bool {
        match &mut self.fuse {
            Some(0) => self.failed = true,
            Some(left) => *left -= 1,
            None => {}
        }
        !self.failed
    }

    fn sync(&mut self) {
        let journal = std::mem::take(&mut self.unsynced);
        replay(&journal, &mut self.durable);
        self.syncs += 1;
    }
}

impl Engine for SimDisk {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let inner = self.inner.lock();
        let record = inner.current.get(&(space, key.to_vec()));
        Ok(record.map(|record| Bytes::copy_from_slice(record)))
    }

    fn scan(
        &self,
        space: Space,
        prefix: u8,
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), EngineError> {
        let inner = self.inner.lock();
        for ((at, key), record) in inner.current.range((space, vec![prefix])..) {
            if *at != space || key.first() != Some(&prefix) || !visit(key, record) {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch, sync: bool) -> Result<(), EngineError> {
        let mut inner = self.inner.lock();
        let frame = seal(&encode(&batch));
        inner.unsynced.extend((frame.len() as u32).to_le_bytes());
        inner.unsynced.extend(&frame);
        inner.written += frame.len() as u64;
        // A write that fails may have reached the disk in part, or wholly.
        if !inner.burn() {
            return Err("the simulated disk failed".into());
        }
        apply(batch, &mut inner.current);
        if sync {
            inner.sync();
        }
        Ok(())
    }

    fn room(&self) -> Option<u64> {
        Some(self.inner.lock().room.unwrap_or(u64::MAX))
    }

    fn place(&self, _: Space) -> Option<std::path::PathBuf> {
        None
    }

    fn sync(&self) -> Result<(), EngineError> {
        let mut inner = self.inner.lock();
        if !inner.burn() {
            return Err("the simulated disk failed".into());
        }
        inner.sync();
        Ok(())
    }
}
