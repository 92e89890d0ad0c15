//! The cluster's keys: what seals Secrets, the authority's key and those of tokens wherever they leave memory.
//!
//! They are in one file, `keys`, in the data directory of every server, readable by root alone, and nowhere else: not in the
//! store, not in its log, not in backups. A sealed value is the id of its key (4 bytes), a nonce (12) and what AES-256-GCM
//! makes of the value, with the object's name as associated data.

mod rotation;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gantry_store::{Table, TransformError, Transformer};
use parking_lot::RwLock;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use rotation::{KeysApi, follow};

const FILE: &str = "keys";
const KEY_BYTES: usize = 32;
/// An id's bytes.
const ID: usize = 4;
/// What is sealed.
const TABLES: &[&str] = &[
    "core/secrets",
    crate::certificates::AUTHORITIES,
    gantry_apiserver::service_accounts::keys::TABLE,
];

/// Where a data directory keeps its keys.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ring {
    /// The id of the key that seals; all of them open.
    active: String,
    /// Base64, by id.
    keys: BTreeMap<String, String>,
}

/// The keys of a data directory, in use. Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    path: PathBuf,
    loaded: Arc<RwLock<Loaded>>,
}

struct Loaded {
    ring: Ring,
    active: [u8; ID],
    keys: BTreeMap<[u8; ID], LessSafeKey>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({})", self.path.display())
    }
}

fn id_of(key: &[u8]) -> [u8; ID] {
    let digest = Sha256::digest(key);
    std::array::from_fn(|at| digest[at])
}

fn hex(id: [u8; ID]) -> String {
    format!("{:08x}", u32::from_be_bytes(id))
}

impl Loaded {
    fn new(ring: Ring) -> Result<Self> {
        let mut keys = BTreeMap::new();
        for (name, encoded) in &ring.keys {
            let key = STANDARD.decode(encoded).context("a key is not base64")?;
            ensure!(
                key.len() == KEY_BYTES && hex(id_of(&key)) == *name,
                "key {name} is not the key of that name"
            );
            let unbound = UnboundKey::new(&AES_256_GCM, &key)
                .map_err(|_| anyhow::anyhow!("key {name} cannot be used"))?;
            keys.insert(id_of(&key), LessSafeKey::new(unbound));
        }
        let active = keys.keys().find(|id| hex(**id) == ring.active).copied();
        let active =
            active.with_context(|| format!("the active key {} is missing", ring.active))?;
        Ok(Self { ring, active, keys })
    }
}

impl Keyring {
    /// The keys of a data directory.
    pub fn load(data_dir: &Path) -> Result<Self> {
        let path = path(data_dir);
        let bytes = fs::read(&path).with_context(|| {
            format!(
                "reading {}: the cluster's keys are in the data directory of every server; copy the file from another",
                path.display()
            )
        })?;
        Self::parse(&path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let parsed = serde_json::from_slice(bytes).map_err(anyhow::Error::from);
        let loaded = parsed.and_then(Loaded::new).with_context(|| {
            format!(
                "{} is damaged: copy the file from another server",
                path.display()
            )
        })?;
        Ok(Self {
            path: path.to_owned(),
            loaded: Arc::new(RwLock::new(loaded)),
        })
    }

    /// The keys of a data directory; new ones for a cluster that begins there.
    pub fn load_or_create(data_dir: &Path) -> Result<Self> {
        if path(data_dir).exists() {
            return Self::load(data_dir);
        }
        let (id, key) = new_key();
        let ring = Ring {
            keys: BTreeMap::from([(id.clone(), key)]),
            active: id,
        };
        Self::install(data_dir, &serde_json::to_vec(&ring)?)
    }

    /// The id of the key that seals.
    pub(crate) fn active(&self) -> String {
        self.loaded.read().ring.active.clone()
    }

    /// The ids of all keys.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.loaded.read().ring.keys.keys().cloned().collect()
    }

    /// Makes a key that opens, and seals nothing yet; returns its id.
    fn add_new(&self) -> Result<String> {
        let (id, key) = new_key();
        self.change(|ring| {
            ring.keys.insert(id.clone(), key);
        })?;
        Ok(id)
    }

    /// Takes in the keys of another server; the one that seals here stays the same.
    fn add_all(&self, contents: &[u8]) -> Result<()> {
        let theirs: Ring = serde_json::from_slice(contents).context("these are no keys")?;
        self.change(|ring| ring.keys.extend(theirs.keys))
    }

    /// Seals with a key from now on.
    fn activate(&self, id: &str) -> Result<()> {
        self.change(|ring| id.clone_into(&mut ring.active))
    }

    /// Forgets every key but the one that seals.
    fn keep_active_only(&self) -> Result<()> {
        self.change(|ring| {
            let active = ring.active.clone();
            ring.keys.retain(|id, _| *id == active);
        })
    }

    /// On disk first: what was sealed must open after a restart.
    fn change(&self, change: impl FnOnce(&mut Ring)) -> Result<()> {
        let mut loaded = self.loaded.write();
        let mut ring = loaded.ring.clone();
        change(&mut ring);
        let changed = Loaded::new(ring)?;
        save(&self.path, &changed.ring)?;
        *loaded = changed;
        Ok(())
    }

    /// Puts the keys of a cluster, as another server has them, into a data directory.
    pub fn install(data_dir: &Path, bytes: &[u8]) -> Result<Self> {
        let path = path(data_dir);
        let keyring = Self::parse(&path, bytes)?;
        save(&path, &keyring.loaded.read().ring)?;
        Ok(keyring)
    }

    /// What the file holds, for another server of the cluster.
    pub fn contents(&self) -> Result<serde_json::Value> {
        Ok(serde_json::to_value(&self.loaded.read().ring)?)
    }
}

/// A key's id, and the key in base64.
fn new_key() -> (String, String) {
    let key: [u8; KEY_BYTES] = rand::random();
    (hex(id_of(&key)), STANDARD.encode(key))
}

/// Replaces the file as a whole, readable by its owner alone from the first byte on.
fn save(path: &Path, ring: &Ring) -> Result<()> {
    let bytes = serde_json::to_vec(ring)?;
    gantry_durable::replace(path, &bytes, 0o600)
        .with_context(|| format!("writing {}", path.display()))
}

impl Transformer for Keyring {
    fn covers(&self, table: &Table) -> bool {
        TABLES.contains(&&*table.0)
    }

    fn seal(&self, context: &[u8], value: &[u8]) -> Vec<u8> {
        let loaded = self.loaded.read();
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = value.to_vec();
        loaded.keys[&loaded.active]
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(context),
                &mut sealed,
            )
            .expect("no object is nearly as large as what the cipher bears, 64 GiB");
        [&loaded.active[..], &nonce, &sealed].concat()
    }

    fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, TransformError> {
        let cut = || TransformError("it is cut short".to_owned());
        let (id, rest) = sealed.split_first_chunk::<ID>().ok_or_else(cut)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(cut)?;
        let loaded = self.loaded.read();
        let key = loaded.keys.get(id).ok_or_else(|| {
            TransformError(format!(
                "it needs key {}, which is not in {}: copy that file from a server of the cluster, or the copy of it that \
                 was kept with the backup",
                hex(*id),
                self.path.display()
            ))
        })?;
        let mut value = rest.to_vec();
        let opened = key.open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(context),
            &mut value,
        );
        let length = match opened {
            Ok(opened) => opened.len(),
            Err(_) => {
                return Err(TransformError(
                    "it was changed after it was sealed".to_owned(),
                ));
            }
        };
        value.truncate(length);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_opens_in_its_place_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let keyring = Keyring::load_or_create(directory.path()).expect("new keys");
        let sealed = keyring.seal(b"core/secrets\0default\0a", b"hunter2");
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        assert_ne!(
            sealed,
            keyring.seal(b"core/secrets\0default\0a", b"hunter2")
        );
        // Another server, or the next start.
        let again = Keyring::load(directory.path()).expect("the same keys");
        let opened = again.open(b"core/secrets\0default\0a", &sealed);
        assert_eq!(opened.as_deref(), Ok(&b"hunter2"[..]));
        assert!(again.open(b"core/secrets\0default\0b", &sealed).is_err());
        let mut flipped = sealed.clone();
        flipped[20] ^= 1;
        assert!(again.open(b"core/secrets\0default\0a", &flipped).is_err());
        for length in 0..sealed.len() {
            assert!(
                again
                    .open(b"core/secrets\0default\0a", &sealed[..length])
                    .is_err()
            );
        }
        let elsewhere = tempfile::tempdir().expect("a directory");
        let other = Keyring::load_or_create(elsewhere.path()).expect("new keys");
        let error = other
            .open(b"core/secrets\0default\0a", &sealed)
            .expect_err("a foreign key");
        assert!(error.0.contains("needs key"), "{error}");
    }

    #[test]
    fn an_older_key_opens_until_it_is_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let keyring = Keyring::load_or_create(directory.path()).expect("new keys");
        let old = keyring.seal(b"name", b"value");
        let elsewhere = tempfile::tempdir().expect("a directory");
        let contents = keyring.contents().expect("it is JSON").to_string();
        let other = Keyring::install(elsewhere.path(), contents.as_bytes()).expect("the same");
        let id = keyring.add_new().expect("a key");
        assert_ne!(keyring.active(), id);
        assert!(other.activate(&id).is_err(), "it lacks that key");
        let contents = keyring.contents().expect("it is JSON").to_string();
        other.add_all(contents.as_bytes()).expect("keys");
        keyring.activate(&id).expect("it has the key");
        let new = keyring.seal(b"name", b"value");
        assert_eq!(other.open(b"name", &new).as_deref(), Ok(&b"value"[..]));
        assert_eq!(keyring.open(b"name", &old).as_deref(), Ok(&b"value"[..]));
        keyring.keep_active_only().expect("it is written");
        assert_eq!(keyring.ids(), [id]);
        let again = Keyring::load(directory.path()).expect("keys");
        assert!(again.open(b"name", &old).is_err());
        assert_eq!(again.open(b"name", &new).as_deref(), Ok(&b"value"[..]));
    }

    #[test]
    fn the_file_is_for_root_and_checked() {
        let directory = tempfile::tempdir().expect("a directory");
        let keyring = Keyring::load_or_create(directory.path()).expect("new keys");
        let path = path(directory.path());
        let mode = path.metadata().expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let contents = keyring.contents().expect("it is JSON").to_string();
        let broken = contents.replace("\":\"", "\":\"A");
        for wrong in [&b""[..], b"{}", broken.as_bytes()] {
            let error = Keyring::install(directory.path(), wrong).expect_err("no keys");
            assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
        }
        // What was there is still there.
        Keyring::load(directory.path()).expect("the keys");
    }
}
