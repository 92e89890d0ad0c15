//! With which credentials the images of this node were pulled, so that a private image which is here for one pod is not
//! here for all: what a kubelet's image pull manager keeps.
//!
//! ```text
//! data_dir/image-pulls/ID.json        who may use an image that was pulled
//! data_dir/image-pulls/intents.json   references that are being pulled
//! ```
//!
//! Invariants: an image that a pull of ours has listed has a record, or a reference of it is among the intents, at every
//! moment and after every crash; so nobody takes it for one that an administrator brought. Credentials themselves are not
//! kept, only hashes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_cri::image::{Image, ImageError, Images};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::pull_verification::PullVerification;

const INTENTS: &str = "intents.json";
/// Names under which one image was pulled.
const REPOSITORIES: usize = 64;
/// Secrets with which one was pulled by one name, as with a kubelet: whoever has another is asked for it again.
const SECRETS: usize = 100;
/// More than a record of so many has.
const RECORD_BYTES: u64 = 16 << 20;

/// The credentials of a Secret that a pod has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SecretUsed {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// What tells them from others: [`gantry_cri::image::Credentials::fingerprint`].
    pub(crate) credentials: String,
}

impl SecretUsed {
    fn is_of_the_same(&self, other: &Self) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }

    /// Whether who has these may do what the others have shown they may. A Secret whose content has changed is still
    /// trusted, as with a kubelet: that is how credentials are renewed.
    fn vouches_for(&self, other: &Self) -> bool {
        self.credentials == other.credentials || self.is_of_the_same(other)
    }
}

/// Who may use an image by one of its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Access {
    /// It was pulled without credentials: every pod of the node.
    node_wide: bool,
    /// The latest last.
    secrets: Vec<SecretUsed>,
}

impl Access {
    /// Takes in that it was pulled, with a Secret or with nothing; whether that is new.
    fn note(&mut self, secret: Option<&SecretUsed>) -> bool {
        let Some(secret) = secret else {
            self.secrets.clear();
            return !std::mem::replace(&mut self.node_wide, true);
        };
        if self.node_wide || self.secrets.contains(secret) {
            return false;
        }
        self.secrets.retain(|known| !known.is_of_the_same(secret));
        if self.secrets.len() >= SECRETS {
            self.secrets.remove(0);
        }
        self.secrets.push(secret.clone());
        true
    }
}

/// An image that was pulled: who may use it, by the repository they name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    repositories: BTreeMap<String, Access>,
    /// Among all changes of records.
    #[serde(skip)]
    touched: u64,
}

/// The records and intents as they are on the disk.
#[derive(Default)]
struct Cache {
    /// By the image's id.
    records: BTreeMap<String, Record>,
    /// How often each reference is being pulled.
    intents: BTreeMap<String, usize>,
    changes: u64,
}

/// The records. Every change is on the disk when its method returns; only that a pull has ended is written later.
pub struct PullRecords {
    directory: PathBuf,
    verification: PullVerification,
    /// Held from a look at what is known until its change is written. By threads that may wait for the disk alone.
    writing: Mutex<()>,
    /// Never held while something is written.
    known: Mutex<Cache>,
}

impl PullRecords {
    /// Opens, or begins, those in a directory. A record that cannot be read says that the image was pulled, and of nobody
    /// that they may use it.
    pub fn open(directory: &Path, verification: PullVerification) -> io::Result<Self> {
        gantry_durable::create_directories(directory)?;
        let mut known = Cache::default();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            match name.and_then(|name| name.strip_suffix(".json")) {
                _ if name == Some(INTENTS) => {
                    let intents: Vec<String> = read(&path);
                    known.intents = intents.into_iter().map(|name| (name, 1)).collect();
                }
                Some(hash) => {
                    known.records.insert(format!("sha256:{hash}"), read(&path));
                }
                // What a crash has left of a change.
                None => {}
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            verification,
            writing: Mutex::default(),
            known: Mutex::new(known),
        })
    }

    /// Ends the intents of an earlier process: what came of its pulls is known to have been pulled, by whom is not. To be
    /// called before the first [`PullRecords::intend`]; nothing else runs then, and the disk is waited for.
    pub async fn settle(&self, images: &dyn Images) -> io::Result<()> {
        let intents = self.intents();
        for reference in &intents {
            if let Some(image) = images.find(reference).await {
                self.change(&image.id, |_| false)?;
            }
        }
        if intents.is_empty() {
            return Ok(());
        }
        self.write_intents(&BTreeMap::new())?;
        self.known.lock().intents.clear();
        Ok(())
    }

    fn intents(&self) -> Vec<String> {
        self.known.lock().intents.keys().cloned().collect()
    }

    /// Says that a reference, in full, is about to be pulled.
    pub(crate) async fn intend(self: &Arc<Self>, reference: &str) -> io::Result<Intent> {
        let (records, reference) = (self.clone(), reference.to_owned());
        blocking(move || {
            records.begin(&reference)?;
            Ok(Intent {
                records,
                reference,
                remains: false,
            })
        })
        .await
    }

    fn begin(&self, reference: &str) -> io::Result<()> {
        let _writing = self.writing.lock();
        let mut intents = self.known.lock().intents.clone();
        if intents.insert(reference.to_owned(), 1).is_none() {
            self.write_intents(&intents)?;
        }
        // Others have ended meanwhile.
        let mut known = self.known.lock();
        *known.intents.entry(reference.to_owned()).or_default() += 1;
        Ok(())
    }

    fn end(self: &Arc<Self>, reference: &str) {
        {
            let mut known = self.known.lock();
            if let Some(count) = known.intents.get_mut(reference) {
                *count -= 1;
                if *count > 0 {
                    return;
                }
                known.intents.remove(reference);
            }
        }
        let (records, reference) = (self.clone(), reference.to_owned());
        let write = move || {
            let _writing = records.writing.lock();
            let intents = records.known.lock().intents.clone();
            // One too many asks for credentials once too often.
            if let Err(error) = records.write_intents(&intents) {
                tracing::warn!(%error, reference, "forgetting that an image was being pulled");
            }
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(write)),
            Err(_) => write(),
        }
    }

    /// Whether a pod that has these Secrets for a repository must show that it may pull an image of it, which is here.
    pub(crate) async fn must_pull(
        self: &Arc<Self>,
        images: &dyn Images,
        repository: &str,
        image: &Image,
        secrets: &[SecretUsed],
    ) -> bool {
        // At one moment: a pull ends between them.
        let (record, intents): (Option<Record>, Vec<String>) = {
            let known = self.known.lock();
            let record = known.records.get(&image.id).cloned();
            (record, known.intents.keys().cloned().collect())
        };
        let mut pulled = record.is_some();
        for reference in intents.iter().take_while(|_| record.is_none()) {
            let found = images.find(reference).await;
            pulled |= found.is_some_and(|found| found.id == image.id);
        }
        if !self.verification.requires(repository, pulled) {
            return false;
        }
        let Some(access) = record
            .as_ref()
            .and_then(|record| record.repositories.get(repository))
        else {
            return true;
        };
        if access.node_wide {
            return false;
        }
        let trusted = |own: &&SecretUsed| access.secrets.iter().any(|used| own.vouches_for(used));
        let Some(own) = secrets.iter().find(trusted) else {
            return true;
        };
        // What is new of it is trusted from now on by itself; up to a number, since this costs a write and no pull.
        if access.secrets.len() < SECRETS && !access.secrets.contains(own) {
            let (records, id) = (self.clone(), image.id.clone());
            let (repository, own) = (repository.to_owned(), own.clone());
            let noted = blocking(move || records.note(&id, &repository, Some(&own))).await;
            if let Err(error) = noted {
                tracing::warn!(%error, image = image.id, "recording who may use an image");
            }
        }
        false
    }

    /// Records that an image was pulled from a repository, with a Secret or with nothing.
    fn note(&self, id: &str, repository: &str, secret: Option<&SecretUsed>) -> io::Result<()> {
        self.change(id, |record| {
            let known = &mut record.repositories;
            if known.len() >= REPOSITORIES && !known.contains_key(repository) {
                known.pop_first();
            }
            known.entry(repository.to_owned()).or_default().note(secret)
        })
    }

    /// Changes a record, which is made when there is none, and writes it when `change` says so.
    fn change(&self, id: &str, change: impl FnOnce(&mut Record) -> bool) -> io::Result<()> {
        let _writing = self.writing.lock();
        let before = self.known.lock().records.get(id).cloned();
        let is_new = before.is_none();
        let mut record = before.unwrap_or_default();
        if change(&mut record) || is_new {
            let content = serde_json::to_vec(&record)?;
            gantry_durable::replace(&self.file(id), &content, 0o600)?;
        }
        let mut known = self.known.lock();
        known.changes += 1;
        record.touched = known.changes;
        known.records.insert(id.to_owned(), record);
        Ok(())
    }

    /// Forgets images that are no longer here: who brings one of them again has it for all pods.
    pub async fn prune(self: &Arc<Self>, images: &dyn Images) -> Result<(), ImageError> {
        let before: Vec<(String, u64)> = {
            let known = self.known.lock();
            let records = known.records.iter();
            records
                .map(|(id, record)| (id.clone(), record.touched))
                .collect()
        };
        let here: BTreeSet<String> = {
            let here = images.list().await?;
            here.into_iter().map(|image| image.id).collect()
        };
        let gone = before.into_iter().filter(|(id, _)| !here.contains(id));
        let gone: Vec<(String, u64)> = gone.collect();
        if gone.is_empty() {
            return Ok(());
        }
        let records = self.clone();
        let forgotten = blocking(move || {
            records.forget(gone);
            Ok(())
        });
        forgotten.await.map_err(|source| ImageError::Io {
            doing: "forgetting who may use images".to_owned(),
            source,
        })
    }

    /// Forgets images, unless they have changed since.
    fn forget(&self, gone: Vec<(String, u64)>) {
        let _writing = self.writing.lock();
        for (id, touched) in gone {
            let now = self.known.lock().records.get(&id).map(|now| now.touched);
            // One that came meanwhile was recorded meanwhile.
            if now != Some(touched) {
                continue;
            }
            match fs::remove_file(self.file(&id)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, image = id, "forgetting who may use an image");
                }
                _ => {
                    self.known.lock().records.remove(&id);
                }
            }
        }
    }

    /// An id is `sha256:` and hexadecimal digits; anything else would be no part of a name.
    fn file(&self, id: &str) -> PathBuf {
        let hash = id.trim_start_matches("sha256:").chars();
        let hash: String = hash.filter(char::is_ascii_alphanumeric).collect();
        self.directory.join(format!("{hash}.json"))
    }

    fn write_intents(&self, intents: &BTreeMap<String, usize>) -> io::Result<()> {
        let references: Vec<&String> = intents.keys().collect();
        let content = serde_json::to_vec(&references)?;
        gantry_durable::replace(&self.directory.join(INTENTS), &content, 0o600)
    }
}

/// What a file of ours says; nothing, and a word about it, when it is damaged.
fn read<T: Default + for<'a> Deserialize<'a>>(path: &Path) -> T {
    let read = || -> io::Result<T> {
        let mut content = Vec::new();
        File::open(path)?
            .take(RECORD_BYTES)
            .read_to_end(&mut content)?;
        Ok(serde_json::from_slice(&content)?)
    };
    read().unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "reading who may use images");
        T::default()
    })
}

/// Runs what waits for the disk off the async workers. It comes to its end though nobody waits for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// A pull under way. Dropped, it has failed: a pull that does not come to its end has listed no image.
pub(crate) struct Intent {
    records: Arc<PullRecords>,
    reference: String,
    remains: bool,
}

impl Intent {
    /// It has succeeded, with a Secret or with nothing. There must be no other `await` between that and this, which is done
    /// though nobody waits for it.
    pub(crate) async fn pulled(self, image: &Image, repository: &str, secret: Option<&SecretUsed>) {
        let (id, repository) = (image.id.clone(), repository.to_owned());
        let secret = secret.cloned();
        let recorded = blocking(move || {
            let mut intent = self;
            let noted = intent.records.note(&id, &repository, secret.as_ref());
            // Who asks for it is sent to the registry.
            intent.remains = noted.is_err();
            noted
        });
        if let Err(error) = recorded.await {
            tracing::warn!(%error, image = image.id, "recording who may use an image");
        }
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        if !self.remains {
            self.records.end(&self.reference);
        }
    }
}

#[cfg(test)]
mod tests;
