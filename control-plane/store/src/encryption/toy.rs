//! A transformer for tests: it hides values, notices other contexts and keys, and is the same in every run of a seed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{TransformError, Transformer};
use crate::types::Table;

/// Seals as key number (8 bytes), a hash of context and value (8 bytes), and the value mixed with what follows from both.
#[derive(Debug)]
pub(crate) struct ToyTransformer {
    tables: BTreeSet<String>,
    current: AtomicU64,
    /// Keys before this one are forgotten.
    oldest: AtomicU64,
}

impl ToyTransformer {
    pub(crate) fn covering(tables: &[&str]) -> ToyTransformer {
        ToyTransformer {
            tables: tables.iter().map(|table| (*table).to_owned()).collect(),
            current: AtomicU64::new(1),
            oldest: AtomicU64::new(1),
        }
    }

    /// Seals with a new key from now on.
    pub(crate) fn rotate(&self) {
        self.current.fetch_add(1, Ordering::SeqCst);
    }

    /// Forgets every key but the newest.
    pub(crate) fn forget(&self) {
        let newest = self.current.load(Ordering::SeqCst);
        self.oldest.store(newest, Ordering::SeqCst);
    }
}

fn check(key: u64, context: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(&[context, value].join(&0xff), key)
}

fn mix(value: &[u8], seed: u64) -> Vec<u8> {
    let mask = |at: usize| xxh3_64_with_seed(&at.to_le_bytes(), seed) as u8;
    let mixed = value.iter().enumerate();
    mixed.map(|(at, byte)| byte ^ mask(at)).collect()
}

impl Transformer for ToyTransformer {
    fn covers(&self, table: &Table) -> bool {
        self.tables.contains(&*table.0)
    }

    fn seal(&self, context: &[u8], value: &[u8]) -> Vec<u8> {
        let key = self.current.load(Ordering::SeqCst);
        let check = check(key, context, value);
        let mut sealed = [key, check].map(u64::to_le_bytes).concat();
        sealed.extend(mix(value, key ^ check));
        sealed
    }

    fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, TransformError> {
        let refused = |reason: &str| Err(TransformError(reason.to_owned()));
        let (Some((key, rest)), oldest) = (
            sealed.split_first_chunk::<8>(),
            self.oldest.load(Ordering::SeqCst),
        ) else {
            return refused("too short");
        };
        let key = u64::from_le_bytes(*key);
        if key < oldest {
            return refused("the key is forgotten: bring it back");
        }
        let Some((sum, mixed)) = rest.split_first_chunk::<8>() else {
            return refused("too short");
        };
        let sum = u64::from_le_bytes(*sum);
        let value = mix(mixed, key ^ sum);
        if check(key, context, &value) == sum {
            Ok(value)
        } else {
            refused("of another object, or damaged")
        }
    }
}
