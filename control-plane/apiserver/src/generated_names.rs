//! What `generateName` is completed with.

use rand::Rng;

/// Letters and digits that do not form words: what Kubernetes generates names of.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Five characters at random, as generated names end.
pub(crate) fn random_suffix() -> String {
    let mut random = rand::rng();
    (0..5)
        .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
        .collect()
}
