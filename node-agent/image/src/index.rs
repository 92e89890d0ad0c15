//! What is on this node: images, layers, and which compressed blob became which layer. One JSON file, replaced
//! atomically; a layer or image is in it only when it is complete.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gantry_cri::image::{Image, ImageError};
use serde::{Deserialize, Serialize};

/// An image and the layers it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) image: Image,
    /// Chain ids, lowest first: each says what a layer is and on which others it lies.
    pub(crate) layers: Vec<String>,
}

/// A layer on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Its directory's name under `layers/`: short, since overlayfs takes at most a page of mount options.
    pub(crate) directory: String,
    /// Bytes unpacked.
    pub(crate) size: u64,
}

/// The whole index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    /// By image id.
    pub(crate) images: BTreeMap<String, Record>,
    /// By chain id. Not by what the layer alone is: what it leaves out is as below.
    pub(crate) layers: BTreeMap<String, LayerRecord>,
    /// The next layer directory's number.
    pub(crate) next_directory: u64,
}

impl Index {
    pub(crate) fn load(path: &Path) -> Result<Self, ImageError> {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| ImageError::Io {
                doing: format!(
                    "{} is damaged ({error}): remove the directory beside it to start with no images",
                    path.display()
                ),
                source: error.into(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ImageError::Io {
                doing: format!("reading {}", path.display()),
                source,
            }),
        }
    }

    /// Replaces the file, for good.
    pub(crate) fn save(&self, path: &Path) -> Result<(), ImageError> {
        let write = || gantry_durable::replace(path, &serde_json::to_vec(self)?, 0o600);
        write().map_err(|source| ImageError::Io {
            doing: format!("writing {}", path.display()),
            source,
        })
    }

    /// The image that a normalised reference, a digest reference or an id (whole or a prefix of 12 or more) names.
    pub(crate) fn find(&self, reference: &str) -> Option<&Record> {
        let id = reference.strip_prefix("sha256:").unwrap_or(reference);
        let is_id =
            id.len() >= 12 && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.images.values().find(|record| {
            record.image.tags.iter().any(|tag| tag == reference)
                || record
                    .image
                    .digests
                    .iter()
                    .any(|digest| same_digest(digest, reference))
                || (is_id
                    && record
                        .image
                        .id
                        .trim_start_matches("sha256:")
                        .starts_with(id))
        })
    }

    /// Adds an image; its tags are taken away from whichever image had them.
    pub(crate) fn add(&mut self, image: Image, layers: Vec<String>) -> Image {
        for record in self.images.values_mut() {
            if record.image.id != image.id {
                record.image.tags.retain(|tag| !image.tags.contains(tag));
            }
        }
        let record = self
            .images
            .entry(image.id.clone())
            .or_insert_with(|| Record {
                image: Image {
                    tags: Vec::new(),
                    digests: Vec::new(),
                    ..image.clone()
                },
                layers,
            });
        // The same, but for what an earlier version of this program left out of it.
        record.image.config = image.config;
        merge(&mut record.image.tags, image.tags);
        merge(&mut record.image.digests, image.digests);
        record.image.clone()
    }

    /// The directories of layers, in the same order; `None` when one is missing.
    pub(crate) fn layer_directories(&self, layers: &[String]) -> Option<Vec<PathBuf>> {
        layers
            .iter()
            .map(|layer| {
                self.layers
                    .get(layer)
                    .map(|layer| PathBuf::from(&layer.directory))
            })
            .collect()
    }
}

/// Compares `name@sha256:x` with a reference that may carry a tag before the digest.
fn same_digest(digest: &str, reference: &str) -> bool {
    let (Some((name, ours)), Some((other, theirs))) =
        (digest.split_once('@'), reference.split_once('@'))
    else {
        return false;
    };
    let other = match other.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => other,
    };
    ours == theirs && name == other
}

fn merge(into: &mut Vec<String>, from: Vec<String>) {
    for item in from {
        if !into.contains(&item) {
            into.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_cri::image::ImageConfig;

    use super::*;

    fn image(id: &str, tag: &str) -> Image {
        Image {
            id: format!("sha256:{}", id.repeat(64)),
            tags: vec![tag.to_owned()],
            digests: vec![format!("r.example/a@sha256:{}", id.repeat(64))],
            size: 1,
            config: ImageConfig::default(),
        }
    }

    #[test]
    fn a_tag_names_one_image_and_moves() {
        let mut index = Index::default();
        index.add(image("a", "r.example/a:v1"), vec![]);
        index.add(image("b", "r.example/a:v1"), vec![]);
        let found = index.find("r.example/a:v1").expect("tagged");
        assert_eq!(found.image.id, image("b", "").id);
        assert!(index.images[&image("a", "").id].image.tags.is_empty());
    }

    #[test]
    fn ids_prefixes_and_digests_find_the_image() {
        let mut index = Index::default();
        index.add(image("a", "r.example/a:v1"), vec![]);
        let hex = "a".repeat(64);
        for reference in [
            format!("sha256:{hex}"),
            hex.clone(),
            hex[..12].to_owned(),
            format!("r.example/a@sha256:{hex}"),
            format!("r.example/a:v9@sha256:{hex}"),
        ] {
            assert!(index.find(&reference).is_some(), "{reference}");
        }
        assert!(index.find("aaaa").is_none());
        assert!(
            index
                .find(&format!("r.example/other@sha256:{hex}"))
                .is_none()
        );
    }

    #[test]
    fn a_damaged_index_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("index.json");
        std::fs::write(&path, b"{").expect("write");
        let error = Index::load(&path).expect_err("damaged").to_string();
        assert!(error.contains("index.json is damaged"), "{error}");
    }
}
