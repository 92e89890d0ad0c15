//! Images and the root file systems made of them: the seam between pod workers and whatever fetches and unpacks them.

mod error;
mod fake;
pub mod reference;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use gantry_idmap::Users;
use sha2::{Digest as _, Sha256};

pub use error::ImageError;
pub use fake::FakeImages;
pub use reference::{normalise, repository};

/// What the image's config says about running it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageConfig {
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user[:group]`, names or numbers; empty for root.
    pub user: String,
    /// Empty for `/`.
    pub working_dir: String,
    /// The signal that asks it to stop, e.g. `SIGTERM`.
    pub stop_signal: Option<String>,
    /// `VOLUME`: paths of directories that are not to be in the root file system. An earlier process may have written none.
    #[serde(default)]
    pub volumes: Vec<String>,
}

/// An image that is complete on this node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// `sha256:...` of the image config: its identity.
    pub id: String,
    /// Normalised references that name it, e.g. `docker.io/library/nginx:1.29`.
    pub tags: Vec<String>,
    /// `name@sha256:...` of the manifests it was pulled by.
    pub digests: Vec<String>,
    /// Bytes unpacked.
    pub size: u64,
    /// How to run it.
    pub config: ImageConfig,
}

/// User name and password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or identity token.
    pub password: String,
}

impl Credentials {
    /// Tells these from others, and does not tell what they are: `sha256:...`.
    pub fn fingerprint(&self) -> String {
        let pair = format!(
            "{} {}\n{}",
            self.username.len(),
            self.username,
            self.password
        );
        digest(pair.as_bytes())
    }
}

/// `sha256:...` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Progress of one pull or import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A layer is known; `total` bytes compressed.
    Layer {
        /// The layer's digest.
        digest: String,
        /// Compressed size in bytes.
        total: u64,
    },
    /// `done` bytes of a layer have arrived.
    Bytes {
        /// The layer's digest.
        digest: String,
        /// Bytes so far.
        done: u64,
    },
    /// A layer is unpacked (or was present).
    Unpacked {
        /// The layer's digest.
        digest: String,
    },
}

/// Receives progress; must not block.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// Images and the root file systems made of them. Concurrent pulls of one reference share one transfer.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// The image a reference names, when it is complete on this node. Accepts tags, digests and ids; short names
    /// are normalised as Docker does (`nginx` is `docker.io/library/nginx:latest`).
    async fn find(&self, reference: &str) -> Option<Image>;
    /// Fetches an image; returns it at once when every layer is present and the manifest is unchanged. Dropped before its
    /// end it lists none.
    async fn pull(
        &self,
        reference: &str,
        credentials: Option<Credentials>,
        progress: Option<ProgressSink>,
    ) -> Result<Image, ImageError>;
    /// Imports every image of an OCI-layout or docker-archive tarball (gzip or zstd accepted), each once, with the tags that
    /// the archive gives it. A name that is none refuses the whole archive.
    async fn import(
        &self,
        archive: &Path,
        progress: Option<ProgressSink>,
    ) -> Result<Vec<Image>, ImageError>;
    /// All images.
    async fn list(&self) -> Result<Vec<Image>, ImageError>;
    /// Removes a tag, and the image with its last one, unless a root file system uses it.
    async fn remove(&self, reference: &str) -> Result<(), ImageError>;
    /// Mounts a writable root file system of an image; `key` is unique per container attempt. Idempotent: an
    /// existing mount for the key is returned as it is, also after the agent's restart. With `users` its files are those
    /// of a pod with users of its own.
    async fn mount_rootfs(
        &self,
        image_id: &str,
        key: &str,
        users: Option<Users>,
    ) -> Result<PathBuf, ImageError>;
    /// Makes a directory for a volume of a mounted root file system and fills it with what the image has at `path`, modes and
    /// owners included; where that is nothing, it is empty and root's. It goes with the root file system. Idempotent: one
    /// that was made is returned as it is. With the same users as that.
    async fn make_volume(
        &self,
        key: &str,
        path: &str,
        users: Option<Users>,
    ) -> Result<PathBuf, ImageError>;
    /// Unmounts and deletes a root file system, with its volumes. Unknown keys are fine.
    async fn unmount_rootfs(&self, key: &str) -> Result<(), ImageError>;
    /// Where writes to root file systems go, by their keys.
    async fn writable_layers(&self) -> Vec<(String, PathBuf)>;
    /// Ids of the images that root file systems are made of.
    async fn in_use(&self) -> Result<BTreeSet<String>, ImageError>;
    /// Removes layers and content that no image, no root file system and no transfer needs; returns bytes freed.
    async fn collect_garbage(&self) -> Result<u64, ImageError>;
}
