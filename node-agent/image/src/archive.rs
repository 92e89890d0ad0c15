//! OCI-layout and docker-archive tarballs.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use gantry_cri::image::{ImageError, reference};
use serde::Deserialize;

use crate::allowance::{Errand, Meter};
use crate::layers::decompressed;
use crate::manifest::{
    ConfigFile, DOCUMENT_BYTES, Descriptor, Few, LAYERS, LAYERS_WHY, MANIFESTS, Manifest, NESTED,
    for_this_platform,
};
use crate::unpack::unpack;

/// Names that archives give an image: the full one, as containerd writes it, and the one of the specification, which may be
/// a tag alone.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What all documents of an archive may come to: each is read for every image that names it.
const DOCUMENTS_BYTES: u64 = 4 * DOCUMENT_BYTES;
/// More names than an image has.
const NAMES: usize = 1_000;
/// What `docker save` has written for an image without a name.
const NAMELESS: &str = "<none>:<none>";

/// One image of an unpacked archive, with the files it is made of.
#[derive(Debug)]
pub(crate) struct ArchivedImage {
    /// Whatever it is called in the archive, in full.
    pub(crate) tags: Vec<String>,
    /// `name@sha256:...`, where the archive calls it so.
    pub(crate) digests: Vec<String>,
    pub(crate) config: Vec<u8>,
    /// Path and digest (as far as the archive tells) of each layer, lowest first.
    pub(crate) layers: Vec<ArchivedLayer>,
}

/// A layer's file.
#[derive(Debug)]
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
    repo_tags: Option<Few<String, NAMES>>,
    #[serde(default)]
    layers: Option<Few<String, LAYERS>>,
}

/// Why the images of an archive cannot be listed.
#[derive(Debug)]
enum Refusal {
    /// Of the archive.
    Archive(String),
    /// Of a name in it.
    Name(ImageError),
}

impl From<String> for Refusal {
    fn from(cause: String) -> Self {
        Self::Archive(cause)
    }
}

/// Unpacks an archive into `directory` and lists the images found, each once. A name that is none refuses the whole.
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
    list(directory).map_err(|refusal| match refusal {
        Refusal::Archive(cause) => refused(cause),
        Refusal::Name(error) => error,
    })
}

fn list(directory: &Path) -> Result<Vec<ArchivedImage>, Refusal> {
    let documents = &Documents {
        directory,
        left: Cell::new(DOCUMENTS_BYTES),
    };
    let is_layout = directory.join("index.json").is_file();
    // docker save writes both forms; its own carries the full names.
    if directory.join("manifest.json").is_file() {
        let found = docker_archive(documents)?;
        let named = found.iter().any(|image| !image.tags.is_empty());
        if named || !is_layout {
            return Ok(merged(found));
        }
    }
    if is_layout {
        return oci_layout(documents).map(merged);
    }
    Err(Refusal::Archive(
        "neither an OCI layout (index.json) nor a docker archive (manifest.json); make one with \
         'docker save', 'podman save' or 'skopeo copy ... oci-archive:'"
            .to_owned(),
    ))
}

/// An image that is listed for each of its names is one image with all of them.
fn merged(found: Vec<ArchivedImage>) -> Vec<ArchivedImage> {
    let mut images: Vec<ArchivedImage> = Vec::new();
    for image in found {
        let Some(known) = images.iter_mut().find(|known| known.config == image.config) else {
            images.push(image);
            continue;
        };
        for (names, more) in [
            (&mut known.tags, image.tags),
            (&mut known.digests, image.digests),
        ] {
            for name in more {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    images
}

/// The documents of an unpacked archive.
struct Documents<'a> {
    directory: &'a Path,
    /// Bytes that may still be read.
    left: Cell<u64>,
}

impl Documents<'_> {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        let path = inside(self.directory, name)?;
        let most = self.left.get().min(DOCUMENT_BYTES);
        let read = || {
            let mut bytes = Vec::new();
            File::open(&path)?.take(most + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error: std::io::Error| format!("{name}: {error}"))?;
        let left = self.left.get().checked_sub(bytes.len() as u64);
        match left {
            _ if bytes.len() as u64 > DOCUMENT_BYTES => {
                Err(format!("{name} is larger than {DOCUMENT_BYTES} bytes"))
            }
            Some(left) => {
                self.left.set(left);
                Ok(bytes)
            }
            None => Err(format!(
                "its manifests and image configs come to more than {DOCUMENTS_BYTES} bytes"
            )),
        }
    }

    fn blob(&self, digest: &str) -> Result<Vec<u8>, String> {
        let bytes = self.read(&blob_path(digest))?;
        match gantry_cri::image::digest(&bytes) == digest {
            true => Ok(bytes),
            false => Err(format!(
                "{digest} is corrupt: its content has another digest"
            )),
        }
    }
}

/// A file named by a document of the archive, which must be within it: to open a pipe would wait for ever.
fn inside(directory: &Path, name: &str) -> Result<PathBuf, String> {
    let path = directory.join(name);
    let real = path
        .canonicalize()
        .map_err(|error| format!("{name}: {error}"))?;
    let root = directory
        .canonicalize()
        .map_err(|error| error.to_string())?;
    match real.starts_with(root) {
        true if real.is_file() => Ok(real),
        true => Err(format!("{name} is no file")),
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

fn docker_archive(documents: &Documents<'_>) -> Result<Vec<ArchivedImage>, Refusal> {
    let images: Few<DockerImage, MANIFESTS> =
        serde_json::from_slice(&documents.read("manifest.json")?)
            .map_err(|error| format!("manifest.json: {error}"))?;
    let images = images.all("images", "no archive has so many")?;
    images
        .into_iter()
        .map(|image| {
            let config = documents.read(&image.config)?;
            let named = image.layers.map(|layers| layers.all("layers", LAYERS_WHY));
            let named = named.transpose()?.unwrap_or_default();
            // Layers of a docker archive are named by path only; the config's diff ids identify them.
            let diff_ids = ConfigFile::parse(&config)?.diff_ids().to_vec();
            if diff_ids.len() != named.len() {
                return Err(Refusal::Archive(format!(
                    "{} names {} layers, manifest.json {}",
                    image.config,
                    diff_ids.len(),
                    named.len()
                )));
            }
            let names = image
                .repo_tags
                .map(|names| names.all("RepoTags", "each is kept"));
            let names = names.transpose()?.unwrap_or_default();
            let names = names.iter().filter(|name| *name != NAMELESS);
            Ok(ArchivedImage {
                tags: names.map(|name| tag(name)).collect::<Result<_, _>>()?,
                digests: Vec::new(),
                layers: named
                    .iter()
                    .zip(diff_ids)
                    .map(|(name, diff_id)| layer(documents.directory, name, diff_id))
                    .collect::<Result<_, String>>()?,
                config,
            })
        })
        .collect()
}

fn oci_layout(documents: &Documents<'_>) -> Result<Vec<ArchivedImage>, Refusal> {
    let Manifest::Index { manifests } = Manifest::parse(&documents.read("index.json")?)? else {
        return Err(Refusal::Archive("index.json is not an index".to_owned()));
    };
    // Those for other machines are left out, and so is what belongs to an image and is none; unless that is all there is.
    let runs = |descriptor: &&Descriptor| {
        descriptor.platform.is_none()
            || for_this_platform(std::slice::from_ref(*descriptor)).is_ok()
    };
    if !manifests.iter().any(|descriptor| runs(&descriptor)) {
        for_this_platform(&manifests)?;
    }
    manifests
        .iter()
        .filter(runs)
        .map(|descriptor| {
            let annotation = |key: &str| {
                let name = descriptor.annotations.get(key).map(String::as_str);
                name.filter(|name| !name.is_empty())
            };
            let name = match (annotation(FULL_NAME), annotation(REF_NAME)) {
                (Some(name), _) => Some(name),
                // A tag alone names no repository.
                (None, name) => name.filter(|name| !is_bare_tag(name)),
            };
            let mut manifest = Manifest::parse(&documents.blob(&descriptor.digest)?)?;
            for _ in 0..NESTED {
                let Manifest::Index { manifests } = &manifest else {
                    break;
                };
                let chosen = for_this_platform(manifests)?;
                manifest = Manifest::parse(&documents.blob(&chosen.digest)?)?;
            }
            let Manifest::Image { config, layers } = manifest else {
                let cause = format!("{} is not an image manifest", descriptor.digest);
                return Err(Refusal::Archive(cause));
            };
            let (tags, digests) = match name {
                Some(name) if name.contains('@') => (vec![], vec![by_digest(name, descriptor)?]),
                Some(name) => (vec![tag(name)?], vec![]),
                None => (vec![], vec![]),
            };
            Ok(ArchivedImage {
                tags,
                digests,
                config: documents.blob(&config.digest)?,
                layers: layers
                    .iter()
                    .map(|found| {
                        let path = blob_path(&found.digest);
                        layer(documents.directory, &path, found.digest.clone())
                    })
                    .collect::<Result<_, String>>()?,
            })
        })
        .collect()
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

fn no_name(name: &str, cause: &str) -> Refusal {
    Refusal::Name(ImageError::InvalidReference {
        reference: name.to_owned(),
        cause: cause.to_owned(),
    })
}

/// The full form of a name.
fn tag(name: &str) -> Result<String, Refusal> {
    let parsed = reference::parse(name).map_err(Refusal::Name)?;
    match parsed.digest() {
        None => Ok(parsed.whole()),
        Some(_) => Err(no_name(name, "an archive of this form names no digests")),
    }
}

/// The full form of a name with a digest, which is that of what it names.
fn by_digest(name: &str, descriptor: &Descriptor) -> Result<String, Refusal> {
    let parsed = reference::parse(name).map_err(Refusal::Name)?;
    match parsed.digest() {
        Some(digest) if digest == descriptor.digest => {
            let (registry, repository) = (parsed.registry(), parsed.repository());
            Ok(format!("{registry}/{repository}@{digest}"))
        }
        _ => Err(no_name(name, "what it names has another digest")),
    }
}

/// Whether a name is what follows the colon in others, as the specification of image references says.
fn is_bare_tag(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins = name.bytes().next().is_some_and(letter);
    let goes_on = name
        .bytes()
        .all(|byte| letter(byte) || b".-".contains(&byte));
    begins && goes_on && name.len() <= 128
}

#[cfg(test)]
mod tests;
