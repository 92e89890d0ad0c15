//! What the bytes of strangers meet, for the fuzzer; no interface of the crate.

use crate::answer::{number_at, prometheus};
use crate::source::{Question, Source};

/// What a source answers, and what somebody registers.
pub fn answer(bytes: &[u8]) {
    drop(prometheus(bytes));
    let text = String::from_utf8_lossy(bytes);
    if let Ok(source) = Source::parse(&text)
        && let Question::Path(path) = &source.question
    {
        drop(number_at(path, bytes));
    }
    drop(number_at("a.0.b", bytes));
    drop(number_at("/a/0/b", bytes));
}
