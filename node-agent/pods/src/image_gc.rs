//! Image garbage collection: when images fill the disk, those unused longest go, until enough is free.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_cri::image::{Image, ImageError, Images};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::disk::{Disk, Share};
use crate::traits::Objects;

/// Hundredths of the disk in use at which images are removed, and at which that stops; a kubelet's defaults.
const HIGH_PERCENT: u64 = 85;
const LOW_PERCENT: u64 = 80;
/// An image is not removed within this time of its arrival: its pod may be on its way.
const MIN_AGE: Duration = Duration::from_secs(2 * 60);
/// Between looks at the disk, as a kubelet's.
pub const PERIOD: Duration = Duration::from_secs(5 * 60);

/// How much has to go, in bytes; `None` below the high threshold.
fn to_free(disk: Share) -> Option<u64> {
    if disk.percent_used() < HIGH_PERCENT {
        return None;
    }
    let wanted = u128::from(disk.total) * u128::from(100 - LOW_PERCENT) / 100;
    Some(u64::try_from(wanted).map_or(0, |wanted| wanted.saturating_sub(disk.available)))
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    first: Instant,
    /// When something used it last; its arrival, when nothing has.
    used: Instant,
}

/// What is known of the use of images, since this process began.
#[derive(Debug, Default)]
struct History(BTreeMap<String, Seen>);

impl History {
    fn observe(&mut self, images: &[Image], used: &BTreeSet<String>, now: Instant) {
        self.0
            .retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let seen = self.0.entry(image.id.clone()).or_insert(Seen {
                first: now,
                used: now,
            });
            if used.contains(&image.id) {
                seen.used = now;
            }
        }
    }

    /// What may be removed, the one to go first in front: unused longest, then here longest.
    fn candidates(&self, used: &BTreeSet<String>, now: Instant) -> Vec<String> {
        let mut unused: Vec<(&String, &Seen)> = self
            .0
            .iter()
            .filter(|(id, seen)| !used.contains(*id) && now.duration_since(seen.first) >= MIN_AGE)
            .collect();
        unused.sort_by_key(|(_, seen)| (seen.used, seen.first));
        unused.into_iter().map(|(id, _)| id.clone()).collect()
    }
}

/// A kubelet's image garbage collector.
pub struct ImageCollector {
    images: Arc<dyn Images>,
    objects: Arc<dyn Objects>,
    data_dir: PathBuf,
    history: History,
}

/// Has images removed that nobody uses, for others than who has the collector: a kubelet's eviction manager asks its image
/// garbage collector the same.
#[derive(Clone)]
pub struct UnusedImages(mpsc::Sender<oneshot::Sender<()>>);

impl UnusedImages {
    /// With what the one listens to who has the collector.
    pub fn new() -> (Self, mpsc::Receiver<oneshot::Sender<()>>) {
        let (asks, asked) = mpsc::channel(1);
        (Self(asks), asked)
    }

    /// Returns when it is done.
    pub async fn remove(&self) {
        let (done, wait) = oneshot::channel();
        // Where nobody collects, there is nothing to wait for.
        if self.0.send(done).await.is_ok() {
            wait.await.ok();
        }
    }
}

/// What one look came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Bytes that had to go; 0 below the high threshold.
    pub wanted: u64,
    /// Bytes that went.
    pub freed: u64,
    /// Ids of the images that went, in their order.
    pub removed: Vec<String>,
}

impl ImageCollector {
    /// Of a node whose images are on the disk of `data_dir`.
    pub fn new(images: Arc<dyn Images>, objects: Arc<dyn Objects>, data_dir: PathBuf) -> Self {
        Self {
            images,
            objects,
            data_dir,
            history: History::default(),
        }
    }

    /// Removes every image that nobody uses, however much is free.
    pub async fn remove_unused(&mut self) -> Result<Collected, ImageError> {
        let images = self.images.list().await?;
        let used = self.used().await?;
        let now = Instant::now();
        self.history.observe(&images, &used, now);
        self.remove(u64::MAX, &used, now).await
    }

    /// Looks, and removes what has to go. Never an image in use.
    pub async fn look(&mut self) -> Result<Collected, ImageError> {
        let disk = Disk::of(&self.data_dir).map_err(|source| ImageError::Io {
            doing: format!("measuring the disk of {}", self.data_dir.display()),
            source,
        })?;
        self.collect(disk.bytes, Instant::now()).await
    }

    async fn collect(&mut self, disk: Share, now: Instant) -> Result<Collected, ImageError> {
        let images = self.images.list().await?;
        let used = self.used().await?;
        self.history.observe(&images, &used, now);
        let Some(wanted) = to_free(disk) else {
            return Ok(Collected::default());
        };
        self.remove(wanted, &used, now).await
    }

    async fn remove(
        &mut self,
        wanted: u64,
        used: &BTreeSet<String>,
        now: Instant,
    ) -> Result<Collected, ImageError> {
        let mut collected = Collected {
            wanted,
            ..Collected::default()
        };
        for id in self.history.candidates(used, now) {
            if collected.freed >= wanted {
                break;
            }
            match self.images.remove(&id).await {
                Ok(()) => {
                    collected.freed += self.images.collect_garbage().await?;
                    collected.removed.push(id);
                }
                // Somebody came first, with the opposite wish or the same.
                Err(ImageError::InUse(_) | ImageError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(collected)
    }

    /// Images that containers run from, and those that this node's pods name: between two attempts of a container
    /// nothing else holds its image.
    async fn used(&self) -> Result<BTreeSet<String>, ImageError> {
        let mut used = self.images.in_use().await?;
        for pod in self.objects.pods() {
            let Some(spec) = &pod.spec else { continue };
            let containers = spec
                .init_containers
                .iter()
                .flatten()
                .chain(&spec.containers);
            for reference in containers.filter_map(|container| container.image.as_deref()) {
                used.extend(self.images.find(reference).await.map(|image| image.id));
            }
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use gantry_cri::image::{FakeImages, ImageConfig};
    use serde_json::json;

    use super::*;
    use crate::traits::fake::{FakeObjects, Resource, change};

    const FULL: Share = Share {
        available: 10,
        total: 100,
    };

    struct Bed {
        images: Arc<FakeImages>,
        objects: Arc<FakeObjects>,
        collector: ImageCollector,
        now: Instant,
        _directory: tempfile::TempDir,
    }

    impl Bed {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let images = Arc::new(FakeImages::new(directory.path()));
            let objects = Arc::new(FakeObjects::default());
            let data_dir = directory.path().to_owned();
            Self {
                collector: ImageCollector::new(images.clone(), objects.clone(), data_dir),
                images,
                objects,
                now: Instant::now(),
                _directory: directory,
            }
        }

        async fn pull(&self, name: &str, size: u64) -> String {
            self.images.offer(name, ImageConfig::default());
            let id = self.images.pull(name, None, None).await.unwrap().id;
            self.images.resize(&id, size);
            id
        }

        async fn look(&mut self, disk: Share, later: Duration) -> Collected {
            self.now += later;
            self.collector.collect(disk, self.now).await.unwrap()
        }
    }

    #[test]
    fn between_the_thresholds() {
        let at = |available| {
            to_free(Share {
                available,
                total: 100,
            })
        };
        assert_eq!(
            [at(16), at(15), at(10), at(0)],
            [None, Some(5), Some(10), Some(20)]
        );
        assert_eq!(to_free(Share::default()), None);
    }

    #[tokio::test]
    async fn the_image_unused_longest_goes_first_and_no_more_than_needed() {
        let mut bed = Bed::new();
        let old = bed.pull("old:1", 6).await;
        let used_once = bed.pull("used-once:1", 6).await;
        bed.look(FULL, Duration::ZERO).await;
        bed.images
            .mount_rootfs(&used_once, "k", None)
            .await
            .unwrap();
        bed.look(FULL, Duration::from_secs(60)).await;
        bed.images.unmount_rootfs("k").await.unwrap();
        let newer = bed.pull("newer:1", 6).await;
        let roomy = Share {
            available: 20,
            total: 100,
        };
        assert_eq!(bed.look(roomy, MIN_AGE).await, Collected::default());
        let collected = bed.look(FULL, MIN_AGE).await;
        assert_eq!((collected.wanted, collected.freed), (10, 12));
        assert_eq!(collected.removed, [old, used_once]);
        assert!(bed.images.find(&newer).await.is_some());
    }

    #[tokio::test]
    async fn an_image_in_use_or_just_arrived_stays() {
        let mut bed = Bed::new();
        let mounted = bed.pull("mounted:1", 50).await;
        bed.images.mount_rootfs(&mounted, "k", None).await.unwrap();
        bed.pull("named:1", 50).await;
        let pod = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "named:1"}]},
        });
        bed.objects.apply(&change(Resource::Pod, &pod)).unwrap();
        bed.look(FULL, Duration::ZERO).await;
        let fresh = bed.pull("fresh:1", 1).await;
        let collected = bed.look(FULL, MIN_AGE).await;
        assert_eq!((collected.wanted, collected.freed), (10, 0));
        assert!(collected.removed.is_empty());
        let collected = bed.look(FULL, MIN_AGE).await;
        assert_eq!(collected.removed, [fresh]);
        assert_eq!(bed.images.list().await.unwrap().len(), 2);
    }
}
