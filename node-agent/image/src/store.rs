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
use gantry_cri::image::{
    Credentials, Image, ImageError, Images, Progress, ProgressSink, digest, reference,
};
use gantry_idmap::Users;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, watch};

use crate::allowance::Errand;
use crate::archive;
use crate::index::{Index, LayerRecord, Record};
use crate::layers::{Called, Staged, Staging, stage};
use crate::manifest::{ConfigFile, Descriptor};
use crate::parents::Parents;
use crate::pins::{Pinned, Pins};
use crate::registry::Remote;
use crate::rootfs::Rootfs;

/// Layers transferred at once for one image.
const PARALLEL_LAYERS: usize = 4;
/// Layers unpacked at once on the node: each may take a thread, the window of its compression, and what is remembered of it.
const UNPACKING: usize = 4;
/// Layers on the node that are unpacked before those below them are in their place, and wait for that. Without such leave a
/// layer is unpacked when it is its turn.
const AHEAD: usize = 3;

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
    /// Never held while something is written.
    index: Mutex<Index>,
    /// Held from a look at the index until its change is written.
    changing: Mutex<()>,
    /// One pull at a time per reference, and one at a time who gives a layer its place: whoever comes second finds the work
    /// done. Who waits for a registry holds no layer's: which those are is an image's word alone, until it is unpacked.
    transfers: Mutex<BTreeMap<String, Arc<AsyncMutex<()>>>>,
    /// Held by who unpacks, never by who waits for a registry or another layer.
    unpacking: Arc<Semaphore>,
    /// Held by layers that were unpacked before their turn.
    ahead: Arc<Semaphore>,
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
            gantry_durable::remove_tree(&temporary).map_err(failed)?;
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
                    changing: Mutex::default(),
                    transfers: Mutex::default(),
                    unpacking: Arc::new(Semaphore::new(UNPACKING)),
                    ahead: Arc::new(Semaphore::new(AHEAD)),
                    pins: Pins::default(),
                    mounting: Mutex::default(),
                    data_dir,
                }),
            })
        })
        .await
    }
}

/// An image on its way, as its layers see it.
struct Pull<'a> {
    remote: Remote,
    /// The image, as the user wrote it.
    written: &'a str,
    /// The chain ids of all layers, lowest first.
    chain: Vec<String>,
    errand: Errand,
    /// How many layers are in their place, of the lowest.
    settled: watch::Sender<usize>,
    progress: Option<&'a ProgressSink>,
}

impl Pull<'_> {
    /// Returns when as many layers are in their place.
    async fn reached(&self, layers: usize) {
        let mut settled = self.settled.subscribe();
        // Its sender is here.
        drop(settled.wait_for(|settled| *settled >= layers).await);
    }
}

/// A layer of an image at its registry.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// How many layers are below it.
    at: usize,
    descriptor: &'a Descriptor,
    diff_id: &'a str,
    chain_id: &'a str,
}

/// A layer that was unpacked, and is not in its place yet.
struct Arrived {
    staged: Option<Staged>,
    /// When it is before its turn.
    _ahead: Option<OwnedSemaphorePermit>,
}

impl Drop for Arrived {
    /// Removing what was unpacked takes as long as its maker wants: no async worker does it.
    fn drop(&mut self) {
        let Some(staged) = self.staged.take() else {
            return;
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(staged))),
            Err(_) => drop(staged),
        }
    }
}

fn tell(progress: Option<&ProgressSink>, event: Progress) {
    if let Some(progress) = progress {
        progress(event);
    }
}

impl Shared {
    fn transfer(&self, what: &str) -> Arc<AsyncMutex<()>> {
        let mut transfers = self.transfers.lock();
        transfers.retain(|_, lock| Arc::strong_count(lock) > 1);
        transfers.entry(what.to_owned()).or_default().clone()
    }

    /// Keeps layers until the value is dropped. Whoever removes layers has either not looked yet which are kept, or is done:
    /// those that are here afterwards stay.
    fn pin(&self, layers: &[String]) -> Pinned {
        let _changing = self.changing.lock();
        self.pins.pin(layers)
    }

    /// Changes the index and writes it; memory keeps the old state when writing fails.
    fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> Result<T, ImageError> {
        let _changing = self.changing.lock();
        let mut next = self.index.lock().clone();
        let result = change(&mut next);
        let is_new = next != *self.index.lock();
        if is_new {
            next.save(&self.data_dir.join("index.json"))?;
            *self.index.lock() = next;
        }
        Ok(result)
    }

    /// Gives a staged layer its place on top of `below`, the chain ids of the layers under it.
    fn settle(
        &self,
        called: Called<'_>,
        chain_id: &str,
        below: &[String],
        staged: Staged,
    ) -> Result<(), ImageError> {
        let parents = Parents::new(&self.directories_of(below).ok_or_else(|| ImageError::Io {
            doing: format!("completing layer {}", called.digest),
            source: std::io::Error::other("a layer below it is gone"),
        })?);
        let directory = self.change(|index| {
            index.next_directory += 1;
            index.next_directory.to_string()
        })?;
        let destination = self.data_dir.join("layers").join(&directory);
        let size = staged.settle(called, &parents, &destination)?;
        self.change(|index| {
            let record = LayerRecord { directory, size };
            index.layers.insert(chain_id.to_owned(), record);
        })
    }

    /// The directories of layers, in the same order; `None` when one is missing.
    fn directories_of(&self, layers: &[String]) -> Option<Vec<PathBuf>> {
        let directories = self.index.lock().layer_directories(layers)?;
        let directories = directories.iter();
        Some(
            directories
                .map(|directory| self.data_dir.join("layers").join(directory))
                .collect(),
        )
    }

    fn has_layer(&self, chain_id: &str) -> bool {
        self.index.lock().layers.contains_key(chain_id)
    }

    /// Lists an image whose layers are all present.
    fn add(
        &self,
        id: String,
        config: &ConfigFile,
        tags: Vec<String>,
        digests: Vec<String>,
    ) -> Result<Image, ImageError> {
        self.change(|index| {
            let layers = config.chain_ids();
            let size = layers
                .iter()
                .filter_map(|layer| index.layers.get(layer))
                .map(|layer| layer.size)
                .sum();
            let image = Image {
                id,
                tags,
                digests,
                size,
                config: config.run(),
            };
            index.add(image, layers)
        })
    }

    fn find(&self, reference: &str) -> Option<Record> {
        let index = self.index.lock();
        let full = reference::normalise(reference).ok();
        full.and_then(|full| index.find(&full).cloned())
            .or_else(|| index.find(reference).cloned())
    }

    /// Brings a layer here and puts it on those below it, unless it is here already.
    async fn layer(
        self: &Arc<Self>,
        pull: &Pull<'_>,
        wanted: Wanted<'_>,
    ) -> Result<(), ImageError> {
        let digest = wanted.descriptor.digest.clone();
        let total = wanted.descriptor.size;
        tell(pull.progress, Progress::Layer { digest, total });
        let arrived = match self.has_layer(wanted.chain_id) {
            true => None,
            false => self.bring(pull, wanted).await?,
        };
        pull.reached(wanted.at).await;
        if let Some(arrived) = arrived {
            self.place(pull, wanted, arrived).await?;
        }
        pull.settled.send_replace(wanted.at + 1);
        let digest = wanted.descriptor.digest.clone();
        tell(pull.progress, Progress::Unpacked { digest });
        Ok(())
    }

    /// Downloads and unpacks a layer; `None` when another pull has meanwhile.
    async fn bring(
        self: &Arc<Self>,
        pull: &Pull<'_>,
        wanted: Wanted<'_>,
    ) -> Result<Option<Arrived>, ImageError> {
        let Wanted {
            at,
            descriptor,
            diff_id,
            chain_id,
        } = wanted;
        let blob = tempfile::Builder::new()
            .prefix("blob-")
            .tempfile_in(self.data_dir.join("tmp"))
            .map_err(|source| ImageError::Io {
                doing: format!("storing layer {}", descriptor.digest),
                source,
            })?
            .into_temp_path();
        pull.remote
            .download(descriptor, &blob, pull.progress)
            .await?;
        // Neither semaphore is ever closed.
        let ahead = tokio::select! {
            biased;
            () = pull.reached(at) => None,
            ahead = self.ahead.clone().acquire_owned() => ahead.ok(),
        };
        let unpacking = self.unpacking.clone().acquire_owned().await.ok();
        if self.has_layer(chain_id) {
            return Ok(None);
        }
        let (shared, written) = (self.clone(), pull.written.to_owned());
        let (digest, diff_id) = (descriptor.digest.clone(), diff_id.to_owned());
        let errand = pull.errand.clone();
        blocking(move || {
            // For as long as this runs, whether or not anybody waits for it.
            let _unpacking = unpacking;
            let called = Called {
                image: &written,
                digest: &digest,
            };
            let temporary = shared.data_dir.join("tmp");
            let staged = stage(called, &diff_id, &blob, &temporary, &errand)?;
            Ok(Some(Arrived {
                staged: Some(staged),
                _ahead: ahead,
            }))
        })
        .await
    }

    /// Gives a layer that was unpacked its place, unless another pull has: those below it have theirs.
    async fn place(
        self: &Arc<Self>,
        pull: &Pull<'_>,
        wanted: Wanted<'_>,
        mut arrived: Arrived,
    ) -> Result<(), ImageError> {
        let turn = self.transfer(wanted.chain_id).lock_owned().await;
        let (shared, written) = (self.clone(), pull.written.to_owned());
        let digest = wanted.descriptor.digest.clone();
        let chain_id = wanted.chain_id.to_owned();
        let below = pull.chain.iter().take(wanted.at).cloned();
        let below: Vec<String> = below.collect();
        blocking(move || {
            let _turn = turn;
            let called = Called {
                image: &written,
                digest: &digest,
            };
            match arrived.staged.take() {
                Some(staged) if !shared.has_layer(&chain_id) => {
                    shared.settle(called, &chain_id, &below, staged)
                }
                _ => Ok(()),
            }
        })
        .await
    }

    fn import(
        &self,
        path: &Path,
        progress: Option<&ProgressSink>,
        errand: &Errand,
    ) -> Result<Vec<Image>, ImageError> {
        let directory = Staging::new(&self.data_dir.join("tmp"), "import-").map_err(|source| {
            ImageError::Io {
                doing: format!("importing {}", path.display()),
                source,
            }
        })?;
        let written = path.display().to_string();
        let mut images = Vec::new();
        for archived in archive::open(path, directory.path(), errand)? {
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
            let chain = config.chain_ids();
            let _pinned = self.pin(&chain);
            let layers = archived.layers.iter().zip(config.diff_ids()).enumerate();
            for (at, (layer, diff_id)) in layers {
                let digest = layer.digest.clone();
                tell(
                    progress,
                    Progress::Layer {
                        digest: digest.clone(),
                        total: layer.size,
                    },
                );
                if !self.has_layer(&chain[at]) {
                    let called = Called {
                        image: &written,
                        digest: &digest,
                    };
                    let temporary = self.data_dir.join("tmp");
                    let staged = stage(called, diff_id, &layer.path, &temporary, errand)?;
                    let _turn = self.transfer(&chain[at]).blocking_lock_owned();
                    if !self.has_layer(&chain[at]) {
                        self.settle(called, &chain[at], &chain[..at], staged)?;
                    }
                }
                tell(progress, Progress::Unpacked { digest });
            }
            let id = digest(&archived.config);
            let (tags, digests) = (archived.tags, archived.digests);
            let image = self.add(id, &config, tags.clone(), digests)?;
            // What it is called beside that is no news.
            images.push(Image { tags, ..image });
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

    fn mount(
        &self,
        image_id: &str,
        key: &str,
        users: Option<&Users>,
    ) -> Result<PathBuf, ImageError> {
        let _mounting = self.mounting.lock();
        let missing = || ImageError::NotFound(image_id.to_owned());
        let record = self.find(image_id).ok_or_else(missing)?;
        let layers = self.directories_of(&record.layers).ok_or_else(missing)?;
        self.rootfs
            .mount(key, &record.image.id, &layers, users)
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
                .filter(|(chain_id, _)| !needed.contains(*chain_id))
                .map(|(_, layer)| layer.clone())
                .collect();
            index.layers.retain(|chain_id, _| needed.contains(chain_id));
            let freed = victims.iter().map(|layer| layer.size).sum();
            (victims, freed)
        })?;
        for layer in victims {
            let directory = self.data_dir.join("layers").join(&layer.directory);
            gantry_durable::remove_tree(&directory).map_err(failed)?;
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
                gantry_durable::remove_tree(&entry.path()).map_err(failed)?;
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
        let repository = reference::repository(written)?;
        let tags = match parsed.digest() {
            Some(_) => Vec::new(),
            None => vec![full.clone()],
        };
        let remote = Remote::new(written, parsed, credentials)?;
        let resolved = remote.resolve().await?;
        let refused = |cause: String| ImageError::Pull {
            reference: written.to_owned(),
            cause,
        };
        let (id, config) = {
            let bytes = remote.blob(&resolved.config).await?;
            let config = ConfigFile::parse(&bytes).map_err(refused)?;
            (digest(&bytes), config)
        };
        if config.diff_ids().len() != resolved.layers.len() {
            return Err(refused(
                "the image config and the manifest disagree on the number of layers".to_owned(),
            ));
        }
        let chain = config.chain_ids();
        let (shared, pinned) = (self.shared.clone(), chain.clone());
        let _pinned = blocking(move || Ok(shared.pin(&pinned))).await?;
        let (errand, _ends) = Errand::begin();
        let pull = Pull {
            remote,
            written,
            chain,
            errand,
            settled: watch::Sender::new(0),
            progress: progress.as_ref(),
        };
        let mut layers = Vec::new();
        for (at, ((descriptor, diff_id), chain_id)) in resolved
            .layers
            .iter()
            .zip(config.diff_ids())
            .zip(&pull.chain)
            .enumerate()
        {
            let wanted = Wanted {
                at,
                descriptor,
                diff_id,
                chain_id,
            };
            layers.push(self.shared.layer(&pull, wanted).boxed());
        }
        // Each waits for those below it, which began before.
        let layers = futures::stream::iter(layers).buffered(PARALLEL_LAYERS);
        layers.try_collect::<Vec<()>>().await?;
        let digests = vec![format!("{repository}@{}", resolved.digest)];
        // Here and not beside, where it would be done for somebody who has gone.
        self.shared.add(id, &config, tags, digests)
    }

    async fn import(
        &self,
        archive: &Path,
        progress: Option<ProgressSink>,
    ) -> Result<Vec<Image>, ImageError> {
        let (shared, path) = (self.shared.clone(), archive.to_owned());
        let (errand, _ends) = Errand::begin();
        let unpacking = shared.unpacking.clone().acquire_owned().await.ok();
        blocking(move || {
            let _unpacking = unpacking;
            shared.import(&path, progress.as_ref(), &errand)
        })
        .await
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

    async fn mount_rootfs(
        &self,
        image_id: &str,
        key: &str,
        users: Option<Users>,
    ) -> Result<PathBuf, ImageError> {
        let (shared, image_id, key) = (self.shared.clone(), image_id.to_owned(), key.to_owned());
        blocking(move || shared.mount(&image_id, &key, users.as_ref())).await
    }

    async fn make_volume(
        &self,
        key: &str,
        path: &str,
        users: Option<Users>,
    ) -> Result<PathBuf, ImageError> {
        let (shared, key, path) = (self.shared.clone(), key.to_owned(), path.to_owned());
        blocking(move || {
            let made = shared.rootfs.volume(&key, &path, users.as_ref());
            made.map_err(|source| ImageError::Io {
                doing: format!("making the image's volume {path} for {key}"),
                source,
            })
        })
        .await
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
