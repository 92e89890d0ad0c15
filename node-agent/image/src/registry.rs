//! Reading manifests and blobs from a registry, verified, with errors in the registry's own words.

use std::path::Path;

use futures::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::error::ImageError;
use crate::manifest::{ACCEPTED, Descriptor, Manifest, digest, for_this_platform, hex};
use crate::reference::is_loopback;
use crate::traits::{Credentials, Progress, ProgressSink};

/// One image at its registry.
pub(crate) struct Remote {
    client: Client,
    auth: RegistryAuth,
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
    ) -> Self {
        // A provider may already be installed by the process; either serves.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let registry = reference.resolve_registry().to_owned();
        let protocol = match is_loopback(&registry) {
            true => ClientProtocol::HttpsExcept(vec![registry]),
            false => ClientProtocol::Https,
        };
        let client = Client::new(ClientConfig {
            protocol,
            connect_timeout: Some(std::time::Duration::from_secs(20)),
            read_timeout: Some(std::time::Duration::from_secs(60)),
            user_agent: concat!("gantry/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let auth = match credentials {
            Some(credentials) => RegistryAuth::Basic(credentials.username, credentials.password),
            None => RegistryAuth::Anonymous,
        };
        Self {
            client,
            auth,
            reference,
            written: written.to_owned(),
        }
    }

    fn failed(&self, cause: impl Into<String>) -> ImageError {
        ImageError::Pull {
            reference: self.written.clone(),
            cause: cause.into(),
        }
    }

    /// Fetches the manifest, through an index when there is one.
    pub(crate) async fn resolve(&self) -> Result<Resolved, ImageError> {
        let (bytes, top) = self.manifest(&self.reference).await?;
        let manifest = Manifest::parse(&bytes).map_err(|cause| self.failed(cause))?;
        let manifest = match manifest {
            Manifest::Image { .. } => manifest,
            Manifest::Index { manifests } => {
                let chosen = for_this_platform(&manifests).map_err(|cause| self.failed(cause))?;
                let (bytes, _) = self
                    .manifest(&self.reference.clone_with_digest(chosen.digest.clone()))
                    .await?;
                Manifest::parse(&bytes).map_err(|cause| self.failed(cause))?
            }
        };
        match manifest {
            Manifest::Image { config, layers } => Ok(Resolved {
                config,
                layers,
                digest: top,
            }),
            Manifest::Index { .. } => Err(self.failed("the index names another index")),
        }
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String), ImageError> {
        let (bytes, _) = self
            .client
            .pull_manifest_raw(reference, &self.auth, ACCEPTED)
            .await
            .map_err(|error| self.failed(words(&error)))?;
        let found = digest(&bytes);
        match reference.digest() {
            Some(wanted) if wanted != found => Err(ImageError::Corrupt {
                reference: self.written.clone(),
                digest: wanted.to_owned(),
                cause: format!("the registry sent a manifest that hashes to {found}"),
            }),
            _ => Ok((bytes.to_vec(), found)),
        }
    }

    /// A small blob in memory: the image config.
    pub(crate) async fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        self.stream(descriptor, None, &mut bytes).await?;
        Ok(bytes)
    }

    /// A blob into a file.
    pub(crate) async fn download(
        &self,
        descriptor: &Descriptor,
        path: &Path,
        progress: Option<&ProgressSink>,
    ) -> Result<(), ImageError> {
        let failed = |source: std::io::Error| ImageError::Io {
            doing: format!(
                "storing layer {} of image \"{}\"",
                descriptor.digest, self.written
            ),
            source,
        };
        let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
        self.stream(descriptor, progress, &mut file).await?;
        file.flush().await.map_err(failed)
    }

    /// Passes a blob on piece by piece, and fails unless all of it came and hashes to its digest.
    async fn stream(
        &self,
        descriptor: &Descriptor,
        progress: Option<&ProgressSink>,
        into: &mut (dyn AsyncWrite + Send + Unpin),
    ) -> Result<(), ImageError> {
        let corrupt = |cause: String| ImageError::Corrupt {
            reference: self.written.clone(),
            digest: descriptor.digest.clone(),
            cause,
        };
        let mut blob = self
            .client
            .pull_blob_stream(&self.reference, descriptor.digest.as_str())
            .await
            .map_err(|error| self.failed(words(&error)))?;
        let mut hasher = Sha256::new();
        let mut done: u64 = 0;
        while let Some(piece) = blob.stream.next().await {
            let piece = piece.map_err(|error| {
                corrupt(format!(
                    "the transfer broke off after {done} bytes: {error}"
                ))
            })?;
            hasher.update(&piece);
            done += piece.len() as u64;
            into.write_all(&piece)
                .await
                .map_err(|source| ImageError::Io {
                    doing: format!("storing layer {}", descriptor.digest),
                    source,
                })?;
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

/// The registry's words, without the client library's wrapping.
fn words(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::RegistryError { envelope, .. } => {
            let words: Vec<String> = envelope
                .errors
                .iter()
                .map(|error| {
                    let code = serde_json::to_value(&error.code)
                        .ok()
                        .and_then(|code| {
                            code.as_str()
                                .map(|code| code.to_lowercase().replace('_', " "))
                        })
                        .unwrap_or_default();
                    match error.message.is_empty() || error.message == code {
                        true => code,
                        false => format!("{code}: {}", error.message),
                    }
                })
                .collect();
            words.join(", ")
        }
        OciDistributionError::ServerError { code, message, .. } => {
            format!("the registry answered {code}: {message}")
        }
        OciDistributionError::UnauthorizedError { url } => {
            format!(
                "unauthorized: authentication required ({url}); give credentials in an imagePullSecret"
            )
        }
        OciDistributionError::RequestError(error) => {
            let mut cause: &dyn std::error::Error = error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            match error.url() {
                Some(url) => format!("{}: {cause}", url.host_str().unwrap_or_default()),
                None => cause.to_string(),
            }
        }
        other => other.to_string(),
    }
}
