//! The only randomness of a member: a seed drawn at its start, and numbers that follow from it.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A random number generator: what is random about one run of a member. Equal seeds and inputs give equal runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chance {
    seed: u64,
}

impl Chance {
    /// Another one at every call.
    pub(crate) fn fresh() -> Chance {
        Chance {
            seed: RandomState::new().build_hasher().finish(),
        }
    }

    #[cfg(test)]
    pub(crate) fn seeded(seed: u64) -> Chance {
        Chance { seed }
    }

    /// A number that tells this run from the others of the member.
    pub(crate) fn run(self) -> u64 {
        mix(self.seed)
    }

    /// Ticks until an election, from `base` to below its double: another number in every term.
    pub(crate) fn election_ticks(self, term: u64, base: usize) -> usize {
        base + (mix(self.seed ^ mix(term)) % base as u64) as usize
    }
}

/// SplitMix64's finalizer.
pub(crate) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
