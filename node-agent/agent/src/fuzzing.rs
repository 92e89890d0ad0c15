//! What the bytes of pods meet, for the fuzzer; no interface of the crate.

/// What a pod answers that is asked for its metrics.
pub fn exposition(bytes: &[u8]) {
    crate::scraping::fuzz(bytes);
}
