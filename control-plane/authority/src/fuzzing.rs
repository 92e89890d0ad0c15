//! What the bytes of strangers who ask for certificates meet, for the fuzzer; no interface of the crate.

use std::time::Duration;

use crate::pki::{Authority, Subject};

/// The body of a request for a certificate.
pub fn granting_request(bytes: &[u8]) {
    crate::certificates::fuzz(bytes);
}

/// A certificate request.
pub fn certificate_request(authority: &Authority, text: &str) {
    let subject = Subject::client("system:node:fuzz", &["system:nodes"]);
    drop(authority.sign(text, &subject, Duration::from_secs(60)));
}
