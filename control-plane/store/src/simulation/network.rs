//! Messages between members: lost, repeated, late, in another order, and cut off in either direction.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::random::Random;
use crate::transport::{Outgoing, Transport};

/// What members have sent and nobody has carried yet.
pub(super) type Outbox = Arc<Mutex<Vec<(u64, u64, Bytes)>>>;

/// A member's end of the network.
pub(super) struct Port {
    pub(super) from: u64,
    pub(super) outbox: Outbox,
}

impl Transport for Port {
    fn send(&self, to: u64, messages: Vec<Outgoing>) {
        let sent = messages
            .into_iter()
            .map(|message| (self.from, to, message.bytes));
        self.outbox.lock().extend(sent);
    }
}

/// How the network behaves at the moment; times in microseconds.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// From, to.
    cut: BTreeSet<(u64, u64)>,
    pub(super) drop_percent: u64,
    pub(super) repeat_percent: u64,
    pub(super) slow_percent: u64,
}

impl Network {
    /// When copies of a message arrive, counted from now.
    pub(super) fn delays(&self, from: u64, to: u64, random: &mut Random) -> Vec<u64> {
        if self.cut.contains(&(from, to)) || random.chance(self.drop_percent) {
            return Vec::new();
        }
        let copies = if random.chance(self.repeat_percent) {
            2
        } else {
            1
        };
        let mut delay = || match random.chance(self.slow_percent) {
            true => random.range(5_000, 200_000),
            false => random.range(100, 2_000),
        };
        (0..copies).map(|_| delay()).collect()
    }

    /// Lets nothing through in one direction.
    pub(super) fn cut(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    pub(super) fn mend(&mut self) {
        self.cut.clear();
    }

    pub(super) fn heal(&mut self) {
        *self = Network::default();
    }
}
