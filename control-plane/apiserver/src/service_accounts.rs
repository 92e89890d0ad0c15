//! Tokens of service accounts: JWTs that the cluster signs itself (ES256), each about an account and, mostly, bound to an object
//! that must exist for as long as the token is to count: a pod, a Node or a Secret.
//!
//! Two sorts are signed with the same keys: those that are asked for (`serviceaccounts/token`, and by nodes for their pods),
//! which end, and those that are kept in Secrets of type `kubernetes.io/service-account-token`, which count for as long as the
//! Secret holds them. The keys are a sealed row of the store ([`keys`]), so that every server signs and verifies.
//!
//! Nothing of a token is believed before its signature has been verified; what a request costs does not depend on how many
//! accounts there are.

mod claims;
mod discovery;
mod issue;
mod jwt;
pub mod keys;
mod request;
mod review;
mod verify;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use gantry_store::{Entry, Key, Store};
use parking_lot::Mutex;
use serde::Deserialize;

pub use issue::{IssuedToken, PodTokenRequest};
pub(crate) use request::create as token_request;
pub(crate) use review::create as token_review;

use crate::clock::Clock;
use crate::tables::table;
use keys::{Cached, Keys};

/// The groups of all accounts, and, with a namespace behind it, of those of a namespace.
const GROUP: &str = "system:serviceaccounts";
/// Before NAMESPACE:NAME, an account's user.
const USER: &str = "system:serviceaccount:";
const NANOS: i64 = 1_000_000_000;

/// Signs and verifies the tokens of service accounts.
pub(crate) struct ServiceAccounts {
    store: Store,
    clock: Clock,
    /// Whom tokens say they are from, and the audience of those that are for this API.
    issuer: String,
    keys: Cached,
    /// When it was last asked what the other servers know of a token's objects, by the token's SHA-256.
    looked: Mutex<HashMap<[u8; 32], Instant>>,
}

/// What of an object says whether a token about it counts.
#[derive(Debug, Deserialize)]
struct StoredObject {
    metadata: StoredMeta,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredMeta {
    #[serde(default)]
    uid: String,
    deletion_timestamp: Option<String>,
}

impl ServiceAccounts {
    pub(crate) fn new(store: Store, clock: Clock, issuer: String) -> Self {
        Self {
            store,
            clock,
            issuer,
            keys: Cached::default(),
            looked: Mutex::default(),
        }
    }

    /// The audiences of a token that is for this API.
    pub(crate) fn audiences(&self) -> Vec<String> {
        vec![self.issuer.clone()]
    }

    /// The keys as this server has them; none before the cluster has any.
    fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.latest(&self.store)
    }

    /// Seconds since 1970.
    fn now(&self) -> i64 {
        self.clock.now() / NANOS
    }

    fn entry(&self, plural: &str, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        self.store.get(&Key {
            table: table("", plural),
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    fn known(&self, plural: &str, namespace: &str, name: &str) -> Option<StoredObject> {
        let entry = self.entry(plural, namespace, name)?;
        serde_json::from_slice(&entry.value).ok()
    }
}

/// Takes a token apart, for the fuzzer.
pub(crate) fn fuzz(token: &str) {
    let payload = jwt::Parts::of(token).and_then(|parts| parts.payload());
    drop(payload.and_then(|payload| claims::Payload::read(&payload)));
}

/// The user that an account is.
fn user(namespace: &str, name: &str) -> String {
    format!("{USER}{namespace}:{name}")
}

#[cfg(test)]
mod tests;
