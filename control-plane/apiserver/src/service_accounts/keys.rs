//! The keys that sign tokens: a row of the store, sealed as Secrets are.
//!
//! All keys of the row verify; one of them signs. Another key is added first and signs once every server has it, so that no
//! server is ever shown a token of a key that it does not know. The one before stays until the last token that it may have
//! signed has ended, or until an administrator drops it.
//!
//! ```text
//! added --sign--> signs --(another signs)--> kept until the last of its tokens ends --forget--> gone
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_store::{
    Demand, Guard, Index, Key as RowKey, Operation, ProposeError, Revision, Store, Table,
    Transaction,
};
use parking_lot::{Mutex, RwLock};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::claims::Payload;
use super::jwt::{self, Parts};

/// Where the row is. To be sealed: it holds private keys.
pub const TABLE: &str = "-/serviceaccountkeys";
/// Seconds by which clocks may differ.
pub(super) const LEEWAY: i64 = 60;
/// Tokens whose signature need not be verified again, at most: a pod shows the same one for an hour.
const REMEMBERED: usize = 4096;
/// What a P-256 key begins with as SubjectPublicKeyInfo (RFC 5480), before its point.
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why the keys are not changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// One change at a time.
    #[error("another key is being introduced already: it signs as soon as every server has it")]
    UnderWay,
    /// There are none yet.
    #[error("the cluster has no keys for tokens yet: try again in a moment")]
    Missing,
    /// A key could not be made.
    #[error("making a key")]
    Unmade,
    /// It could not be written down.
    #[error("writing the keys that sign tokens: {0}")]
    Store(#[from] ProposeError),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StoredKey {
    id: String,
    /// PKCS #8, base64.
    key: String,
    /// Seconds since 1970.
    made: i64,
    /// When the last token ends that it signed; none while it signs or is to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// The id of the one that signs.
    signs: String,
    /// The newest first.
    keys: Vec<StoredKey>,
    /// The longest life, in seconds, that any token has been given.
    longest: i64,
}

/// A key as administrators are shown it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedKey {
    /// As tokens name it: the SHA-256 of its public half as SubjectPublicKeyInfo, in base64url.
    pub id: String,
    /// Whether tokens are signed with it.
    pub signs: bool,
    /// Seconds since 1970.
    pub made: i64,
    /// When it is forgotten, in seconds since 1970; none for the one that signs and one that is to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
}

fn row_key() -> RowKey {
    RowKey {
        table: Table(TABLE.into()),
        namespace: "".into(),
        name: "keys".into(),
    }
}

fn read(store: &Store) -> Option<(Row, Revision)> {
    let entry = store.get(&row_key())?;
    // Only this module writes the table.
    let row = serde_json::from_slice(&entry.value).ok()?;
    Some((row, entry.modify_revision))
}

/// Writes a row instead of the one of a revision; false when that is not the latest.
async fn write(
    store: &Store,
    row: &Row,
    instead_of: Option<Revision>,
) -> Result<bool, ProposeError> {
    let guard = match instead_of {
        Some(revision) => Guard::ModifiedAt(row_key(), revision),
        None => Guard::Absent(row_key()),
    };
    let put = Operation::Put {
        key: row_key(),
        // Texts and numbers: there is nothing that could not be written.
        value: serde_json::to_vec(row).unwrap_or_default().into(),
        index: Index::default(),
    };
    let transaction = Transaction {
        guards: vec![guard],
        operations: vec![put],
    };
    // Little is added, and no token could be made without it.
    match store.propose_for(transaction, Demand::Changes).await {
        Ok(_) => Ok(true),
        Err(ProposeError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Changes the row until nobody else does meanwhile. `change` answers `None` where nothing is to be changed.
async fn change(
    store: &Store,
    change: impl Fn(&Row) -> Result<Option<Row>, KeysError>,
) -> Result<(), KeysError> {
    loop {
        store.read_barrier().await?;
        let (known, revision) = read(store).ok_or(KeysError::Missing)?;
        let Some(row) = change(&known)? else {
            return Ok(());
        };
        if write(store, &row, Some(revision)).await? {
            return Ok(());
        }
    }
}

fn new_key(now: i64) -> Result<StoredKey, KeysError> {
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| KeysError::Unmade)?;
    let pkcs8: &[u8] = document.as_ref();
    let key = SigningKey::of(pkcs8).ok_or(KeysError::Unmade)?;
    Ok(StoredKey {
        id: key.id,
        key: STANDARD.encode(pkcs8),
        made: now,
        until: None,
    })
}

/// Makes the first key of a cluster that has none. `now` is in seconds since 1970, here and below.
pub async fn found(store: &Store, now: i64) -> Result<(), KeysError> {
    if read(store).is_some() {
        return Ok(());
    }
    let key = new_key(now)?;
    let row = Row {
        signs: key.id.clone(),
        keys: vec![key],
        longest: 0,
    };
    // Another server may have been faster.
    write(store, &row, None).await?;
    Ok(())
}

/// Adds a key, which does not sign yet; its id.
pub async fn add(store: &Store, now: i64) -> Result<String, KeysError> {
    let key = new_key(now)?;
    change(store, |known| {
        if known.keys.first().is_some_and(|key| key.id != known.signs) {
            return Err(KeysError::UnderWay);
        }
        let mut row = known.clone();
        row.keys.insert(0, key.clone());
        Ok(Some(row))
    })
    .await?;
    Ok(key.id)
}

/// The newest key, as this server knows it, while another signs.
pub fn waiting(store: &Store) -> Option<String> {
    let (row, _) = read(store)?;
    let newest = row.keys.into_iter().next()?;
    (newest.id != row.signs).then_some(newest.id)
}

/// Signs with the newest key from now on. The caller knows that every server has it.
pub async fn sign_with(store: &Store, id: &str, now: i64) -> Result<(), KeysError> {
    change(store, |known| {
        let is_newest = known.keys.first().is_some_and(|key| key.id == id);
        if !is_newest || known.signs == id {
            return Ok(None);
        }
        let mut row = known.clone();
        id.clone_into(&mut row.signs);
        // A server that has not heard of it goes on for a moment.
        let until = now.saturating_add(known.longest).saturating_add(2 * LEEWAY);
        for key in &mut row.keys {
            if key.id == known.signs {
                key.until = Some(until);
            }
        }
        Ok(Some(row))
    })
    .await
}

/// Forgets the keys of which no token counts any more; with `all`, every one but those that sign or are to: tokens that they
/// signed are refused from then on. True when there was one.
pub async fn forget(store: &Store, now: i64, all: bool) -> Result<bool, KeysError> {
    let stays = |key: &StoredKey| key.until.is_none_or(|until| !all && until > now);
    let Some((known, _)) = read(store) else {
        return Ok(false);
    };
    if known.keys.iter().all(stays) {
        return Ok(false);
    }
    change(store, |known| {
        let mut row = known.clone();
        row.keys.retain(stays);
        Ok((row != *known).then_some(row))
    })
    .await?;
    Ok(true)
}

/// All keys as this server knows them, the newest first.
pub fn list(store: &Store) -> Vec<ListedKey> {
    let Some((row, _)) = read(store) else {
        return Vec::new();
    };
    let signs = row.signs;
    let listed = row.keys.into_iter().map(|key| ListedKey {
        signs: key.id == signs,
        id: key.id,
        made: key.made,
        until: key.until,
    });
    listed.collect()
}

/// Notes that tokens of this life are made, so that their keys are kept for as long.
pub(super) async fn note_life(store: &Store, seconds: i64) -> Result<(), KeysError> {
    change(store, |known| {
        let mut row = known.clone();
        row.longest = row.longest.max(seconds);
        Ok((row != *known).then_some(row))
    })
    .await
}

/// A key in use.
pub(super) struct SigningKey {
    pub(super) id: String,
    pair: EcdsaKeyPair,
    /// The uncompressed point: 4, x, y.
    point: Vec<u8>,
}

impl SigningKey {
    fn of(pkcs8: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random).ok()?;
        let public: &[u8] = pair.public_key().as_ref();
        let point = public.to_vec();
        let spki = [SPKI.as_slice(), point.as_slice()].concat();
        Some(Self {
            id: jwt::encoded(&Sha256::digest(&spki)),
            pair,
            point,
        })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point);
        key.verify(message, signature).is_ok()
    }

    /// The coordinates of its public half, 32 bytes each.
    pub(super) fn coordinates(&self) -> Option<(&[u8], &[u8])> {
        self.point.get(1..)?.split_at_checked(32)
    }
}

/// The keys of one revision of the row, in use.
pub(super) struct Keys {
    revision: Revision,
    signs: String,
    longest: i64,
    all: Vec<SigningKey>,
    /// What tokens say whose signature has been verified, by their SHA-256.
    verified: Mutex<HashMap<[u8; 32], Arc<Payload>>>,
}

/// The latest keys that were read.
#[derive(Default)]
pub(super) struct Cached(RwLock<Option<Arc<Keys>>>);

impl Cached {
    /// The keys as this server has them.
    pub(super) fn latest(&self, store: &Store) -> Option<Arc<Keys>> {
        let entry = store.get(&row_key())?;
        let known = self.0.read().clone();
        if let Some(known) = known.filter(|known| known.revision == entry.modify_revision) {
            return Some(known);
        }
        let row: Row = serde_json::from_slice(&entry.value).ok()?;
        let all = row.keys.iter().filter_map(|stored| {
            let pkcs8 = STANDARD.decode(&stored.key).ok()?;
            SigningKey::of(&pkcs8)
        });
        let keys = Arc::new(Keys {
            revision: entry.modify_revision,
            all: all.collect(),
            signs: row.signs,
            longest: row.longest,
            verified: Mutex::default(),
        });
        *self.0.write() = Some(keys.clone());
        Some(keys)
    }
}

impl Keys {
    /// All of them, the newest first.
    pub(super) fn all(&self) -> &[SigningKey] {
        &self.all
    }

    /// Whether its keys are kept for as long as a token of this life.
    pub(super) fn outlive(&self, seconds: i64) -> bool {
        seconds <= self.longest
    }

    /// Signs what a token is to say.
    pub(super) fn sign(&self, claims: &impl Serialize) -> Option<String> {
        let key = self.all.iter().find(|key| key.id == self.signs)?;
        let unsigned = jwt::unsigned(&key.id, claims).ok()?;
        let random = SystemRandom::new();
        let signature = key.pair.sign(&random, unsigned.as_bytes()).ok()?;
        Some(format!("{unsigned}.{}", jwt::encoded(signature.as_ref())))
    }

    /// The id of the key that signs.
    pub(super) fn signing(&self) -> &str {
        &self.signs
    }

    /// Whether a token names the key that signs now.
    pub(super) fn is_current(&self, token: &str) -> bool {
        Parts::of(token).is_some_and(|parts| parts.key == self.signs)
    }

    /// Whether the signature of a token has been verified before, and is known without being so again.
    pub(super) fn remember(&self, token: &str) -> bool {
        if token.len() > jwt::LONGEST {
            return false;
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        self.verified.lock().contains_key(&digest)
    }

    /// What a token says, if one of the keys has signed it.
    pub(super) fn verified(&self, token: &str) -> Option<Arc<Payload>> {
        if token.len() > jwt::LONGEST {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.verified.lock().get(&digest) {
            return Some(known.clone());
        }
        let parts = Parts::of(token)?;
        let key = self.all.iter().find(|key| key.id == parts.key)?;
        if !key.verifies(parts.signed.as_bytes(), &parts.signature) {
            return None;
        }
        let payload = Arc::new(Payload::read(&parts.payload()?)?);
        let mut verified = self.verified.lock();
        if verified.len() >= REMEMBERED {
            // Whoever is still there is verified once more.
            verified.clear();
        }
        verified.insert(digest, payload.clone());
        Some(payload)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims() -> serde_json::Value {
        json!({
            "iss": super::super::claims::SECRET_ISSUER, "sub": "s",
            "kubernetes.io/serviceaccount/namespace": "n",
            "kubernetes.io/serviceaccount/secret.name": "t",
            "kubernetes.io/serviceaccount/service-account.name": "a",
            "kubernetes.io/serviceaccount/service-account.uid": "u",
        })
    }

    #[tokio::test]
    async fn what_is_signed_verifies_until_its_key_is_forgotten() {
        let (store, cached) = (Store::ephemeral(), Cached::default());
        assert!(cached.latest(&store).is_none());
        found(&store, 0).await.expect("a key");
        let first = list(&store);
        found(&store, 1).await.expect("there is one");
        assert_eq!(list(&store), first);
        let keys = cached.latest(&store).expect("keys");
        let old = keys.sign(&claims()).expect("signed");
        assert!(keys.verified(&old).is_some() && keys.is_current(&old));
        note_life(&store, 3600).await.expect("written");

        let added = add(&store, 10).await.expect("another");
        assert!(matches!(add(&store, 10).await, Err(KeysError::UnderWay)));
        assert_eq!(waiting(&store).as_deref(), Some(added.as_str()));
        let keys = cached.latest(&store).expect("keys");
        let between = keys.sign(&claims()).expect("signed");
        assert!(keys.is_current(&old), "the new one does not sign yet");
        sign_with(&store, &added, 20).await.expect("it signs");
        assert_eq!(waiting(&store), None);
        let keys = cached.latest(&store).expect("keys");
        let new = keys.sign(&claims()).expect("signed");
        for token in [&old, &between, &new] {
            assert!(keys.verified(token).is_some(), "{token}");
        }
        assert!(keys.is_current(&new) && !keys.is_current(&old));

        assert!(!forget(&store, 3600, false).await.expect("no error"));
        assert!(forget(&store, 4000, false).await.expect("its time is over"));
        let keys = cached.latest(&store).expect("keys");
        assert!(keys.verified(&old).is_none() && keys.verified(&new).is_some());
        assert!(!forget(&store, i64::MAX, true).await.expect("no error"));
        assert_eq!(list(&store).len(), 1, "the one that signs stays");
    }

    #[tokio::test]
    async fn a_changed_token_or_another_clusters_is_refused() {
        let (store, other) = (Store::ephemeral(), Store::ephemeral());
        for store in [&store, &other] {
            found(store, 0).await.expect("a key");
        }
        let keys = Cached::default().latest(&store).expect("keys");
        let theirs = Cached::default().latest(&other).expect("keys");
        let token = theirs.sign(&claims()).expect("signed");
        assert!(keys.verified(&token).is_none());
        // Under the name of a key of ours.
        let (_, rest) = token.split_once('.').expect("three parts");
        let header = json!({"alg": "ES256", "kid": keys.all()[0].id}).to_string();
        let forged = format!("{}.{rest}", jwt::encoded(header.as_bytes()));
        assert!(keys.verified(&forged).is_none());
        let own = keys.sign(&claims()).expect("signed");
        let at = own.find('.').expect("three parts") + 5;
        for at in [5, at, own.len() - 5] {
            let mut changed = own.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("text");
            assert!(keys.verified(&changed).is_none(), "{at}");
        }
    }

    #[tokio::test]
    async fn no_more_tokens_are_remembered_than_there_is_room_for() {
        let store = Store::ephemeral();
        found(&store, 0).await.expect("a key");
        let keys = Cached::default().latest(&store).expect("keys");
        let payload = Arc::new(Payload::read(claims().to_string().as_bytes()).expect("claims"));
        for number in 0..REMEMBERED {
            let digest = Sha256::digest(number.to_string()).into();
            keys.verified.lock().insert(digest, payload.clone());
        }
        let token = keys.sign(&claims()).expect("signed");
        assert!(!keys.remember(&token));
        assert!(keys.verified(&token).is_some() && keys.remember(&token));
        assert_eq!(keys.verified.lock().len(), 1);
    }
}
