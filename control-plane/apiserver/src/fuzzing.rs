//! What a client's bytes meet beside the decoding of objects, for the fuzzer; no interface of the crate.

use http::{HeaderMap, HeaderValue, header};

use crate::media::{Format, Media};
use crate::request::{Query, route};
use crate::service_accounts;
use crate::streams;
use crate::verbs::list::parse_token;

/// The path and query of a request.
pub fn uri(text: &str) {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    drop(route(path));
    let query = Query::parse(Some(query));
    for name in ["limit", "timeoutSeconds", "gracePeriodSeconds", "tailLines"] {
        drop(query.number(name));
        query.flag(name);
    }
    drop(query.resource_version());
    drop(query.get("continue").map(parse_token));
}

/// An `Accept` header.
pub fn accept(bytes: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let headers = HeaderMap::from_iter([(header::ACCEPT, value)]);
        drop(Media::of_answer(&headers));
        drop(Media::of_watch(&headers));
        Format::preferred(&headers);
    }
}

/// A bearer token, before its signature is looked at.
pub fn token(text: &str) {
    service_accounts::fuzz(text);
}

/// Frames of SPDY, as exec, attach and port-forward read them.
pub fn spdy(bytes: &[u8]) {
    streams::fuzz_spdy(bytes);
}

/// A page of a pod's, whose links the proxy rewrites; a zero byte ends a piece of it.
pub fn proxied_page(bytes: &[u8]) {
    streams::fuzz_page(bytes);
}
