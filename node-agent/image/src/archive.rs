//! OCI-layout and docker-archive tarballs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::allowance::{Errand, Meter};
use crate::error::ImageError;
use crate::layers::decompressed;
use crate::manifest::{ConfigFile, DOCUMENT_BYTES, Manifest, NESTED, for_this_platform};
use crate::reference::normalise;
use crate::unpack::unpack;

/// One image of an unpacked archive, with the files it is made of.
pub(crate) struct ArchivedImage {
    pub(crate) tags: Vec<String>,
    pub(crate) config: Vec<u8>,
    /// Path and digest (as far as the archive tells) of each layer, lowest first.
    pub(crate) layers: Vec<ArchivedLayer>,
}

/// A layer's file.
pub(crate) struct ArchivedLayer {
    pub(crate) path: PathBuf,
    pub(crate) digest: String,
    pub(crate) size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Unpacks an archive into `directory` and lists the images found.
pub(crate) fn open(
    archive: &Path,
    directory: &Path,
    errand: &Errand,
) -> Result<Vec<ArchivedImage>, ImageError> {
    let refused = |cause: String| ImageError::Archive {
        path: archive.display().to_string(),
        cause,
    };
    let file = File::open(archive).map_err(|error| refused(error.to_string()))?;
    let found = file
        .metadata()
        .map_err(|error| refused(error.to_string()))?;
    let meter = Meter::new(errand, found.len()).on(directory);
    let stream = decompressed(file, &meter).map_err(|error| refused(error.to_string()))?;
    unpack(stream, directory, &meter)
        .map_err(|error| refused(format!("not a readable tar archive: {error}")))?;
    // docker save writes both forms; its own carries the full names.
    if directory.join("manifest.json").is_file() {
        docker_archive(directory).map_err(refused)
    } else if directory.join("index.json").is_file() {
        oci_layout(directory).map_err(refused)
    } else {
        Err(refused(
            "neither an OCI layout (index.json) nor a docker archive (manifest.json); make one with \
             'docker save', 'podman save' or 'skopeo copy ... oci-archive:'"
                .to_owned(),
        ))
    }
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, String> {
    let path = inside(directory, name)?;
    let read = || {
        let mut bytes = Vec::new();
        let file = File::open(&path)?;
        file.take(DOCUMENT_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error: std::io::Error| format!("{name}: {error}"))?;
    match bytes.len() as u64 <= DOCUMENT_BYTES {
        true => Ok(bytes),
        false => Err(format!("{name} is larger than {DOCUMENT_BYTES} bytes")),
    }
}

/// A path named by a document of the archive, which must stay within it.
fn inside(directory: &Path, name: &str) -> Result<PathBuf, String> {
    let path = directory.join(name);
    let real = path
        .canonicalize()
        .map_err(|error| format!("{name}: {error}"))?;
    let root = directory
        .canonicalize()
        .map_err(|error| error.to_string())?;
    match real.starts_with(root) {
        true => Ok(real),
        false => Err(format!("{name} leads out of the archive")),
    }
}

fn layer(directory: &Path, name: &str, digest: String) -> Result<ArchivedLayer, String> {
    let path = inside(directory, name)?;
    let size = path
        .metadata()
        .map_err(|error| format!("{name}: {error}"))?
        .len();
    Ok(ArchivedLayer { path, digest, size })
}

fn docker_archive(directory: &Path) -> Result<Vec<ArchivedImage>, String> {
    let images: Vec<DockerImage> = serde_json::from_slice(&read(directory, "manifest.json")?)
        .map_err(|error| format!("manifest.json: {error}"))?;
    images
        .into_iter()
        .map(|image| {
            let config = read(directory, &image.config)?;
            // Layers of a docker archive are named by path only; the config's diff ids identify them.
            let diff_ids = ConfigFile::parse(&config)?.diff_ids().to_vec();
            if diff_ids.len() != image.layers.len() {
                return Err(format!(
                    "{} names {} layers, manifest.json {}",
                    image.config,
                    diff_ids.len(),
                    image.layers.len()
                ));
            }
            Ok(ArchivedImage {
                tags: tags(image.repo_tags.unwrap_or_default()),
                layers: image
                    .layers
                    .iter()
                    .zip(diff_ids)
                    .map(|(name, diff_id)| layer(directory, name, diff_id))
                    .collect::<Result<_, _>>()?,
                config,
            })
        })
        .collect()
}

fn oci_layout(directory: &Path) -> Result<Vec<ArchivedImage>, String> {
    let Manifest::Index { manifests } = Manifest::parse(&read(directory, "index.json")?)? else {
        return Err("index.json is not an index".to_owned());
    };
    manifests
        .iter()
        .map(|descriptor| {
            let names = [
                "io.containerd.image.name",
                "org.opencontainers.image.ref.name",
            ]
            .iter()
            .filter_map(|key| descriptor.annotations.get(*key).cloned())
            // A bare tag (`v1`) names no repository.
            .filter(|name| name.contains(['/', ':']))
            .take(1)
            .collect();
            let mut manifest = Manifest::parse(&blob(directory, &descriptor.digest)?)?;
            for _ in 0..NESTED {
                let Manifest::Index { manifests } = &manifest else {
                    break;
                };
                let chosen = for_this_platform(manifests)?;
                manifest = Manifest::parse(&blob(directory, &chosen.digest)?)?;
            }
            let Manifest::Image { config, layers } = manifest else {
                return Err(format!("{} is not an image manifest", descriptor.digest));
            };
            Ok(ArchivedImage {
                tags: tags(names),
                config: blob(directory, &config.digest)?,
                layers: layers
                    .iter()
                    .map(|found| layer(directory, &blob_path(&found.digest), found.digest.clone()))
                    .collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn blob(directory: &Path, digest: &str) -> Result<Vec<u8>, String> {
    let bytes = read(directory, &blob_path(digest))?;
    match crate::manifest::digest(&bytes) == digest {
        true => Ok(bytes),
        false => Err(format!(
            "{digest} is corrupt: its content has another digest"
        )),
    }
}

/// Full names; names that cannot be parsed are left out.
fn tags(names: Vec<String>) -> Vec<String> {
    names
        .iter()
        .filter_map(|name| normalise(name).ok())
        .collect()
}
