//! [`ImageStore`]: the real [`Images`].
//!
//! ```text
//! data_dir/index.json   what is complete
//! data_dir/layers/N     an unpacked layer
//! data_dir/tmp/         transfers and half-unpacked layers; emptied at start
//! data_dir/rootfs/KEY   a mounted root file system
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use crate::archive;
use crate::error::ImageError;
use crate::index::{Index, LayerRecord, Record};
use crate::layers::unpack_blob;
use crate::manifest::{ConfigFile, Descriptor, digest};
use crate::pins::Pins;
use crate::reference;
use crate::registry::Remote;
use crate::rootfs::Rootfs;
use crate::traits::{Credentials, Image, Images, Progress, ProgressSink};

/// Layers transferred at once for one image.
const PARALLEL_LAYERS: usize = 4;

/// Where and how images are kept.
#[derive(Clone, Debug)]
pub struct ImageStoreConfig {
    /// Everything lives below it; on one file system that overlayfs accepts as upper layer (ext4, xfs, btrfs).
    pub data_dir: PathBuf,
}

/// The node's images. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    shared: Arc<Shared>,
}

struct Shared {
    data_dir: PathBuf,
    rootfs: Rootfs,
    index: Mutex<Index>,
    /// One transfer at a time per reference and per blob: whoever comes second finds the work done.
    transfers: Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>>,
    pins: Pins,
    /// Held while an image becomes a root file system, and while one is removed: never both at once.
    mounting: Mutex<()>,
}

impl ImageStore {
    /// Unmounts and removes every root file system below a store's directory, without the store: what is damaged there does
    /// not keep mounts from going. Blocks.
    pub fn remove_root_filesystems(data_dir: &Path) -> Result<(), ImageError> {
        let rootfs = Rootfs {
            directory: data_dir.join("rootfs"),
        };
        for (key, _) in rootfs.writable_layers() {
            rootfs.unmount(&key).map_err(|source| ImageError::Io {
                doing: format!("removing the root file system {key}"),
                source,
            })?;
        }
        Ok(())
    }

    /// Opens (or creates) the store and removes what an earlier process left half done.
    pub async fn open(config: ImageStoreConfig) -> Result<Self, ImageError> {
        blocking(move || {
            let data_dir = config.data_dir;
            let failed = |source: std::io::Error| ImageError::Io {
                doing: format!("preparing the image store in {}", data_dir.display()),
                source,
            };
            let temporary = data_dir.join("tmp");
            match std::fs::remove_dir_all(&temporary) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
            for directory in ["tmp", "layers", "rootfs"] {
                std::fs::create_dir_all(data_dir.join(directory)).map_err(failed)?;
            }
            let index = Index::load(&data_dir.join("index.json"))?;
            Ok(Self {
                shared: Arc::new(Shared {
                    rootfs: Rootfs {
                        directory: data_dir.join("rootfs"),
                    },
                    index: Mutex::new(index),
                    transfers: Mutex::default(),
                    pins: Pins::default(),
                    mounting: Mutex::default(),
                    data_dir,
                }),
            })
        })
        .await
    }
}

impl Shared {
    fn transfer(&self, what: &str) -> Arc<AsyncMutex<()>> {
        let mut transfers = self.transfers.lock();
        transfers.retain(|_, lock| Arc::strong_count(lock) > 1);
        transfers.entry(what.to_owned()).or_default().clone()
    }

    /// Changes the index and writes it; memory keeps the old state when writing fails.
    fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> Result<T, ImageError> {
        let mut index = self.index.lock();
        let mut next = index.clone();
        let result = change(&mut next);
        if next != *index {
            next.save(&self.data_dir.join("index.json"))?;
            *index = next;
        }
        Ok(result)
    }

    /// Turns a blob file into a layer, unless the layer is there.
    fn unpack(
        &self,
        written: &str,
        blob_digest: &str,
        diff_id: &str,
        blob: &Path,
    ) -> Result<(), ImageError> {
        if self.index.lock().layers.contains_key(diff_id) {
            return self.change(|index| {
                index
                    .blobs
                    .insert(blob_digest.to_owned(), diff_id.to_owned());
            });
        }
        let directory = self.change(|index| {
            index.next_directory += 1;
            index.next_directory.to_string()
        })?;
        let staging = self.data_dir.join("tmp").join(format!("layer-{directory}"));
        let destination = self.data_dir.join("layers").join(&directory);
        let size = unpack_blob(written, blob_digest, diff_id, blob, &staging, &destination)?;
        self.change(|index| {
            index
                .layers
                .insert(diff_id.to_owned(), LayerRecord { directory, size });
            index
                .blobs
                .insert(blob_digest.to_owned(), diff_id.to_owned());
        })
    }

    fn has_layer(&self, diff_id: &str) -> bool {
        self.index.lock().layers.contains_key(diff_id)
    }

    /// Lists an image whose layers are all present.
    fn add(
        &self,
        config_bytes: &[u8],
        tags: Vec<String>,
        digests: Vec<String>,
    ) -> Result<Image, ImageError> {
        let config = ConfigFile::parse(config_bytes).map_err(|cause| ImageError::Pull {
            reference: tags.join(", "),
            cause,
        })?;
        self.change(|index| {
            let size = config
                .diff_ids()
                .iter()
                .filter_map(|layer| index.layers.get(layer))
                .map(|layer| layer.size)
                .sum();
            let image = Image {
                id: digest(config_bytes),
                tags,
                digests,
                size,
                config: config.run(),
            };
            index.add(image, config.diff_ids().to_vec())
        })
    }

    fn find(&self, reference: &str) -> Option<Record> {
        let index = self.index.lock();
        let full = reference::normalise(reference).ok();
        full.and_then(|full| index.find(&full).cloned())
            .or_else(|| index.find(reference).cloned())
    }

    async fn layer(
        self: &Arc<Self>,
        remote: &Remote,
        written: &str,
        descriptor: &Descriptor,
        diff_id: &str,
        progress: Option<&ProgressSink>,
    ) -> Result<(), ImageError> {
        let tell = |event: Progress| {
            if let Some(progress) = progress {
                progress(event);
            }
        };
        tell(Progress::Layer {
            digest: descriptor.digest.clone(),
            total: descriptor.size,
        });
        let lock = self.transfer(diff_id);
        let _transfer = lock.lock().await;
        if !self.has_layer(diff_id) {
            let blob = tempfile::Builder::new()
                .prefix("blob-")
                .tempfile_in(self.data_dir.join("tmp"))
                .map_err(|source| ImageError::Io {
                    doing: format!("storing layer {}", descriptor.digest),
                    source,
                })?
                .into_temp_path();
            remote.download(descriptor, &blob, progress).await?;
            let (shared, written) = (self.clone(), written.to_owned());
            let (blob_digest, diff_id) = (descriptor.digest.clone(), diff_id.to_owned());
            blocking(move || shared.unpack(&written, &blob_digest, &diff_id, &blob)).await?;
        }
        tell(Progress::Unpacked {
            digest: descriptor.digest.clone(),
        });
        Ok(())
    }

    fn import(
        &self,
        path: &Path,
        progress: Option<&ProgressSink>,
    ) -> Result<Vec<Image>, ImageError> {
        let directory = tempfile::Builder::new()
            .prefix("import-")
            .tempdir_in(self.data_dir.join("tmp"))
            .map_err(|source| ImageError::Io {
                doing: format!("importing {}", path.display()),
                source,
            })?;
        let written = path.display().to_string();
        let mut images = Vec::new();
        for archived in archive::open(path, directory.path())? {
            let refused = |cause: String| ImageError::Archive {
                path: written.clone(),
                cause,
            };
            let config = ConfigFile::parse(&archived.config).map_err(refused)?;
            if config.diff_ids().len() != archived.layers.len() {
                return Err(refused(
                    "the image config and the manifest disagree on the number of layers".to_owned(),
                ));
            }
            let _pinned = self.pins.pin(config.diff_ids());
            for (layer, diff_id) in archived.layers.iter().zip(config.diff_ids()) {
                if let Some(progress) = progress {
                    progress(Progress::Layer {
                        digest: layer.digest.clone(),
                        total: layer.size,
                    });
                }
                self.unpack(&written, &layer.digest, diff_id, &layer.path)?;
                if let Some(progress) = progress {
                    progress(Progress::Unpacked {
                        digest: layer.digest.clone(),
                    });
                }
            }
            images.push(self.add(&archived.config, archived.tags, Vec::new())?);
        }
        Ok(images)
    }

    fn in_use(&self) -> Result<BTreeSet<String>, ImageError> {
        let ids = self.rootfs.images_in_use();
        let ids = ids.map_err(|source| ImageError::Io {
            doing: "looking for images in use".to_owned(),
            source,
        })?;
        Ok(ids.into_iter().collect())
    }

    fn mount(&self, image_id: &str, key: &str) -> Result<PathBuf, ImageError> {
        let _mounting = self.mounting.lock();
        let missing = || ImageError::NotFound(image_id.to_owned());
        let record = self.find(image_id).ok_or_else(missing)?;
        let directories = self
            .index
            .lock()
            .layer_directories(&record)
            .ok_or_else(missing)?;
        let layers: Vec<PathBuf> = directories
            .iter()
            .map(|directory| self.data_dir.join("layers").join(directory))
            .collect();
        self.rootfs
            .mount(key, &record.image.id, &layers)
            .map_err(|source| ImageError::Io {
                doing: format!("mounting image \"{image_id}\" for {key}"),
                source,
            })
    }

    fn remove(&self, written: &str) -> Result<(), ImageError> {
        let _mounting = self.mounting.lock();
        let record = self
            .find(written)
            .ok_or_else(|| ImageError::NotFound(written.to_owned()))?;
        let full = reference::normalise(written).unwrap_or_else(|_| written.to_owned());
        let by_tag = record.image.tags.contains(&full);
        let last = !by_tag || record.image.tags.len() == 1;
        if last && self.in_use()?.contains(&record.image.id) {
            return Err(ImageError::InUse(written.to_owned()));
        }
        self.change(|index| match last {
            true => {
                index.images.remove(&record.image.id);
            }
            false => {
                if let Some(record) = index.images.get_mut(&record.image.id) {
                    record.image.tags.retain(|tag| *tag != full);
                }
            }
        })
    }

    fn collect_garbage(&self) -> Result<u64, ImageError> {
        let failed = |source: std::io::Error| ImageError::Io {
            doing: "collecting unused image layers".to_owned(),
            source,
        };
        let (victims, freed) = self.change(|index| {
            let needed: BTreeSet<String> = index
                .images
                .values()
                .flat_map(|record| record.layers.iter().cloned())
                .chain(self.pins.pinned())
                .collect();
            let victims: Vec<LayerRecord> = index
                .layers
                .iter()
                .filter(|(diff_id, _)| !needed.contains(*diff_id))
                .map(|(_, layer)| layer.clone())
                .collect();
            index.layers.retain(|diff_id, _| needed.contains(diff_id));
            index.blobs.retain(|_, diff_id| needed.contains(diff_id));
            let freed = victims.iter().map(|layer| layer.size).sum();
            (victims, freed)
        })?;
        for layer in victims {
            match std::fs::remove_dir_all(self.data_dir.join("layers").join(&layer.directory)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
        }
        // Directories that were unpacked but never entered the index, because the process died in between.
        let known: BTreeSet<String> = self
            .index
            .lock()
            .layers
            .values()
            .map(|layer| layer.directory.clone())
            .collect();
        let newest = self.index.lock().next_directory;
        for entry in std::fs::read_dir(self.data_dir.join("layers")).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let settled = name.parse::<u64>().is_ok_and(|number| number < newest);
            if settled && !known.contains(&name) && self.pins.pinned().is_empty() {
                std::fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Ok(freed)
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn find(&self, reference: &str) -> Option<Image> {
        self.shared.find(reference).map(|record| record.image)
    }

    async fn pull(
        &self,
        written: &str,
        credentials: Option<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Image, ImageError> {
        let parsed = reference::parse(written)?;
        let full = parsed.whole();
        let lock = self.shared.transfer(&full);
        let _transfer = lock.lock().await;
        let repository = format!("{}/{}", parsed.registry(), parsed.repository());
        let tags = match parsed.digest() {
            Some(_) => Vec::new(),
            None => vec![full.clone()],
        };
        let remote = Remote::new(written, parsed, credentials);
        let resolved = remote.resolve().await?;
        let config_bytes = remote.blob(&resolved.config).await?;
        let refused = |cause: String| ImageError::Pull {
            reference: written.to_owned(),
            cause,
        };
        let config = ConfigFile::parse(&config_bytes).map_err(refused)?;
        if config.diff_ids().len() != resolved.layers.len() {
            return Err(refused(
                "the image config and the manifest disagree on the number of layers".to_owned(),
            ));
        }
        let _pinned = self.shared.pins.pin(config.diff_ids());
        let mut transfers = Vec::new();
        for (descriptor, diff_id) in resolved.layers.iter().zip(config.diff_ids()) {
            let layer = self
                .shared
                .layer(&remote, written, descriptor, diff_id, progress.as_ref());
            transfers.push(layer.boxed());
        }
        futures::stream::iter(transfers)
            .buffer_unordered(PARALLEL_LAYERS)
            .try_collect::<Vec<()>>()
            .await?;
        let shared = self.shared.clone();
        blocking(move || {
            shared.add(
                &config_bytes,
                tags,
                vec![format!("{repository}@{}", resolved.digest)],
            )
        })
        .await
    }

    async fn import(
        &self,
        archive: &Path,
        progress: Option<ProgressSink>,
    ) -> Result<Vec<Image>, ImageError> {
        let (shared, path) = (self.shared.clone(), archive.to_owned());
        blocking(move || shared.import(&path, progress.as_ref())).await
    }

    async fn list(&self) -> Result<Vec<Image>, ImageError> {
        Ok(self
            .shared
            .index
            .lock()
            .images
            .values()
            .map(|record| record.image.clone())
            .collect())
    }

    async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let (shared, reference) = (self.shared.clone(), reference.to_owned());
        blocking(move || shared.remove(&reference)).await
    }

    async fn mount_rootfs(&self, image_id: &str, key: &str) -> Result<PathBuf, ImageError> {
        let (shared, image_id, key) = (self.shared.clone(), image_id.to_owned(), key.to_owned());
        blocking(move || shared.mount(&image_id, &key)).await
    }

    async fn unmount_rootfs(&self, key: &str) -> Result<(), ImageError> {
        let (shared, key) = (self.shared.clone(), key.to_owned());
        blocking(move || {
            shared
                .rootfs
                .unmount(&key)
                .map(drop)
                .map_err(|source| ImageError::Io {
                    doing: format!("removing the root file system {key}"),
                    source,
                })
        })
        .await
    }

    async fn writable_layers(&self) -> Vec<(String, PathBuf)> {
        let shared = self.shared.clone();
        let listed = blocking(move || Ok(shared.rootfs.writable_layers())).await;
        listed.unwrap_or_default()
    }

    async fn in_use(&self) -> Result<BTreeSet<String>, ImageError> {
        let shared = self.shared.clone();
        blocking(move || shared.in_use()).await
    }

    async fn collect_garbage(&self) -> Result<u64, ImageError> {
        let shared = self.shared.clone();
        blocking(move || shared.collect_garbage()).await
    }
}

/// Runs file system work off the async workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::Io {
            doing: "working on images".to_owned(),
            source: std::io::Error::other(error),
        }),
    }
}
