//! Reading manifests and blobs from a registry, verified, with errors in the registry's own words.

use std::path::Path;

use futures::StreamExt;
use gantry_cri::image::{Credentials, ImageError, Progress, ProgressSink, digest};
use oci_spec::distribution::Reference;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::allowance::LAYER_BYTES;
use crate::distribution::Repository;
use crate::manifest::{
    ACCEPTED, DOCUMENT_BYTES, Descriptor, Manifest, NESTED, for_this_platform, hex,
};
use crate::room;

/// One image at its registry.
pub(crate) struct Remote {
    repository: Repository,
    reference: Reference,
    /// As the user wrote it, for messages.
    written: String,
}

/// What a reference stands for on this platform.
pub(crate) struct Resolved {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    /// Digest of what the reference names: the index's, when it is one.
    pub(crate) digest: String,
}

impl Remote {
    pub(crate) fn new(
        written: &str,
        reference: Reference,
        credentials: Option<Credentials>,
    ) -> Result<Self, ImageError> {
        let repository =
            Repository::new(&reference, credentials).map_err(|failure| ImageError::Pull {
                reference: written.to_owned(),
                cause: failure.to_string(),
            })?;
        Ok(Self {
            repository,
            reference,
            written: written.to_owned(),
        })
    }

    fn failed(&self, cause: impl ToString) -> ImageError {
        ImageError::Pull {
            reference: self.written.clone(),
            cause: cause.to_string(),
        }
    }

    fn storing(&self, descriptor: &Descriptor, source: std::io::Error) -> ImageError {
        ImageError::Io {
            doing: format!(
                "storing layer {} of image \"{}\"",
                descriptor.digest, self.written
            ),
            source,
        }
    }

    /// Fetches the manifest, through an index when there is one.
    pub(crate) async fn resolve(&self) -> Result<Resolved, ImageError> {
        let named = self.reference.digest().or(self.reference.tag());
        let (mut manifest, top) = self.manifest(named.unwrap_or("latest")).await?;
        for _ in 0..NESTED {
            let chosen = match &manifest {
                Manifest::Image { .. } => break,
                Manifest::Index { manifests } => for_this_platform(manifests)
                    .map_err(|cause| self.failed(cause))?
                    .digest
                    .clone(),
            };
            // A registry may take its time for the next.
            drop(manifest);
            (manifest, _) = self.manifest(&chosen).await?;
        }
        match manifest {
            Manifest::Image { config, layers } => Ok(Resolved {
                config,
                layers,
                digest: top,
            }),
            Manifest::Index { .. } => Err(self.failed("there are too many indexes in each other")),
        }
    }

    /// A manifest by its tag or digest, and its digest.
    async fn manifest(&self, named: &str) -> Result<(Manifest, String), ImageError> {
        let answer = self.repository.get(&["manifests", named], ACCEPTED).await;
        let answer = answer.map_err(|failure| self.failed(failure))?;
        let bytes = answer.whole(DOCUMENT_BYTES).await;
        let bytes = bytes.map_err(|failure| self.failed(failure))?;
        let found = digest(&bytes);
        if named.contains(':') && named != found {
            return Err(ImageError::Corrupt {
                reference: self.written.clone(),
                digest: named.to_owned(),
                cause: format!("the registry sent a manifest that hashes to {found}"),
            });
        }
        let manifest = Manifest::parse(&bytes).map_err(|cause| self.failed(cause))?;
        Ok((manifest, found))
    }

    /// A small blob in memory: the image config.
    pub(crate) async fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        self.stream(descriptor, DOCUMENT_BYTES, None, &mut bytes, None)
            .await?;
        Ok(bytes)
    }

    /// A blob into a file, as long as images may have more of the disk.
    pub(crate) async fn download(
        &self,
        descriptor: &Descriptor,
        path: &Path,
        progress: Option<&ProgressSink>,
    ) -> Result<(), ImageError> {
        let failed = |source: std::io::Error| self.storing(descriptor, source);
        if descriptor.size > LAYER_BYTES {
            return Err(self.failed(format!(
                "layer {} has {} bytes, more than the {LAYER_BYTES} that a layer may have",
                descriptor.digest, descriptor.size
            )));
        }
        let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
        self.stream(descriptor, descriptor.size, progress, &mut file, Some(path))
            .await?;
        file.flush().await.map_err(failed)
    }

    /// Passes a blob on piece by piece, and fails unless all of it came, no more than `most` bytes, and hashes to its digest.
    async fn stream(
        &self,
        descriptor: &Descriptor,
        most: u64,
        progress: Option<&ProgressSink>,
        into: &mut (dyn AsyncWrite + Send + Unpin),
        disk: Option<&Path>,
    ) -> Result<(), ImageError> {
        let failed = |source: std::io::Error| self.storing(descriptor, source);
        let corrupt = |cause: String| ImageError::Corrupt {
            reference: self.written.clone(),
            digest: descriptor.digest.clone(),
            cause,
        };
        let path = ["blobs", descriptor.digest.as_str()];
        let answer = self.repository.get(&path, &[]).await;
        let answer = answer.map_err(|failure| self.failed(failure))?;
        let mut pieces = answer.pieces();
        let mut hasher = Sha256::new();
        let (mut done, mut unseen): (u64, u64) = (0, 0);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|failure| {
                corrupt(format!(
                    "the transfer broke off after {done} bytes: {failure}"
                ))
            })?;
            hasher.update(&piece);
            done += piece.len() as u64;
            if done > most {
                return Err(corrupt(format!("more than its {most} bytes came")));
            }
            unseen += piece.len() as u64;
            if let Some(disk) = disk.filter(|_| unseen >= room::LOOK) {
                unseen = 0;
                room::check(disk).map_err(failed)?;
            }
            into.write_all(&piece).await.map_err(failed)?;
            if let Some(progress) = progress {
                progress(Progress::Bytes {
                    digest: descriptor.digest.clone(),
                    done,
                });
            }
        }
        let found = format!("sha256:{}", hex(&hasher.finalize()));
        match found == descriptor.digest {
            true => Ok(()),
            false => Err(corrupt(format!("{done} bytes came that hash to {found}"))),
        }
    }
}
