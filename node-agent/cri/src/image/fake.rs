//! [`FakeImages`]: images by name, with directories instead of mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use async_trait::async_trait;
use gantry_idmap::Users;
use parking_lot::Mutex;

use super::{Credentials, Image, ImageConfig, ImageError, Images, ProgressSink, digest, normalise};

/// In-memory images for tests of what uses them. What a "registry" offers is told with [`FakeImages::offer`]. Each is of
/// one byte, unless told otherwise with [`FakeImages::resize`].
#[derive(Debug, Default)]
pub struct FakeImages {
    directory: PathBuf,
    offered: Mutex<BTreeMap<String, Image>>,
    present: Mutex<BTreeMap<String, Image>>,
    mounted: Mutex<BTreeMap<String, String>>,
    /// User and password, by what they are needed for.
    protected: Mutex<BTreeMap<String, (String, String)>>,
    pulls: AtomicUsize,
    /// Bytes of removed images that were not collected yet.
    garbage: AtomicU64,
}

impl FakeImages {
    /// Root file systems become directories below `directory`.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            ..Self::default()
        }
    }

    /// Makes an image available for pulling.
    pub fn offer(&self, reference: &str, config: ImageConfig) -> Image {
        let tag = normalise(reference).unwrap_or_else(|_| reference.to_owned());
        let image = Image {
            id: digest(tag.as_bytes()),
            digests: vec![format!(
                "{}@{}",
                tag.rsplit_once(':').map_or(tag.as_str(), |(name, _)| name),
                digest(tag.as_bytes())
            )],
            tags: vec![tag.clone()],
            size: 1,
            config,
        };
        self.offered.lock().insert(tag, image.clone());
        image
    }

    /// Lets nobody pull an image without these credentials.
    pub fn protect(&self, reference: &str, credentials: &Credentials) {
        let full = normalise(reference).unwrap_or_else(|_| reference.to_owned());
        let pair = (credentials.username.clone(), credentials.password.clone());
        self.protected.lock().insert(full, pair);
    }

    /// Brings an image that is offered here, as an archive would.
    pub fn preload(&self, reference: &str) {
        let full = normalise(reference).unwrap_or_else(|_| reference.to_owned());
        if let Some(image) = self.offered.lock().get(&full).cloned() {
            self.present.lock().insert(full, image);
        }
    }

    /// Offers nothing any more.
    pub fn withdraw(&self) {
        self.offered.lock().clear();
    }

    /// Makes a present image take so many bytes.
    pub fn resize(&self, id: &str, size: u64) {
        for image in self.present.lock().values_mut() {
            if image.id == id {
                image.size = size;
            }
        }
    }

    /// How often [`Images::pull`] was called.
    pub fn pulls(&self) -> usize {
        self.pulls.load(Ordering::Relaxed)
    }

    fn known(&self, reference: &str) -> Option<Image> {
        let present = self.present.lock();
        let full = normalise(reference).unwrap_or_else(|_| reference.to_owned());
        present
            .get(&full)
            .or_else(|| present.values().find(|image| image.id == reference))
            .cloned()
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn find(&self, reference: &str) -> Option<Image> {
        self.known(reference)
    }

    async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        _progress: Option<ProgressSink>,
    ) -> Result<Image, ImageError> {
        self.pulls.fetch_add(1, Ordering::Relaxed);
        let full = normalise(reference)?;
        let given = credentials.map(|given| (given.username, given.password));
        if let Some(needed) = self.protected.lock().get(&full)
            && given.as_ref() != Some(needed)
        {
            return Err(ImageError::Pull {
                reference: reference.to_owned(),
                cause: "unauthorized: authentication required".to_owned(),
            });
        }
        let image = self.offered.lock().get(&full).cloned();
        match image {
            Some(image) => {
                self.present.lock().insert(full, image.clone());
                Ok(image)
            }
            None => Err(ImageError::Pull {
                reference: reference.to_owned(),
                cause: "manifest unknown".to_owned(),
            }),
        }
    }

    async fn import(
        &self,
        archive: &Path,
        _progress: Option<ProgressSink>,
    ) -> Result<Vec<Image>, ImageError> {
        Err(ImageError::Archive {
            path: archive.display().to_string(),
            cause: "the fake reads no archives".to_owned(),
        })
    }

    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        Ok(self.present.lock().values().cloned().collect())
    }

    async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let image = self
            .known(reference)
            .ok_or_else(|| ImageError::NotFound(reference.to_owned()))?;
        if self.mounted.lock().values().any(|id| *id == image.id) {
            return Err(ImageError::InUse(reference.to_owned()));
        }
        self.present
            .lock()
            .retain(|_, present| present.id != image.id);
        self.garbage.fetch_add(image.size, Ordering::Relaxed);
        Ok(())
    }

    async fn mount_rootfs(
        &self,
        image_id: &str,
        key: &str,
        _: Option<Users>,
    ) -> Result<PathBuf, ImageError> {
        self.known(image_id)
            .ok_or_else(|| ImageError::NotFound(image_id.to_owned()))?;
        let path = self.directory.join(key);
        std::fs::create_dir_all(&path).map_err(|source| ImageError::Io {
            doing: format!("creating {}", path.display()),
            source,
        })?;
        self.mounted
            .lock()
            .insert(key.to_owned(), image_id.to_owned());
        Ok(path)
    }

    async fn make_volume(
        &self,
        key: &str,
        path: &str,
        _: Option<Users>,
    ) -> Result<PathBuf, ImageError> {
        if !self.mounted.lock().contains_key(key) {
            return Err(ImageError::NotFound(key.to_owned()));
        }
        let name = digest(path.as_bytes());
        let volume = self.directory.join(key).join(name.replace(':', "-"));
        std::fs::create_dir_all(&volume).map_err(|source| ImageError::Io {
            doing: format!("creating {}", volume.display()),
            source,
        })?;
        Ok(volume)
    }

    async fn unmount_rootfs(&self, key: &str) -> Result<(), ImageError> {
        if self.mounted.lock().remove(key).is_none() {
            return Ok(());
        }
        std::fs::remove_dir_all(self.directory.join(key)).map_err(|source| ImageError::Io {
            doing: format!("removing the root file system {key}"),
            source,
        })
    }

    async fn writable_layers(&self) -> Vec<(String, PathBuf)> {
        let mounted = self.mounted.lock();
        let place = |key: &String| (key.clone(), self.directory.join(key));
        mounted.keys().map(place).collect()
    }

    async fn in_use(&self) -> Result<BTreeSet<String>, ImageError> {
        Ok(self.mounted.lock().values().cloned().collect())
    }

    async fn collect_garbage(&self) -> Result<u64, ImageError> {
        Ok(self.garbage.swap(0, Ordering::Relaxed))
    }
}
