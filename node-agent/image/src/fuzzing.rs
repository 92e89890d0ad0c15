//! What a registry's bytes meet, for the fuzzer; no interface of the crate.

use std::io;
use std::path::Path;

use crate::allowance::{Errand, Meter};
use crate::manifest::{ConfigFile, Manifest, for_this_platform};

/// A manifest or an index of them.
pub fn manifest(bytes: &[u8]) {
    if let Ok(Manifest::Index { manifests }) = Manifest::parse(bytes) {
        drop(for_this_platform(&manifests));
    }
}

/// An image's config.
pub fn config(bytes: &[u8]) {
    if let Ok(config) = ConfigFile::parse(bytes) {
        drop((config.run(), config.diff_ids().len()));
    }
}

/// A registry's `WWW-Authenticate` header.
pub fn challenge(text: &str) {
    for challenge in crate::challenge::challenges(text) {
        assert!(
            challenge
                .parameter("realm")
                .is_none_or(|realm| realm.len() <= text.len())
        );
    }
}

/// A layer, unpacked into a directory.
pub fn layer(bytes: &[u8], root: &Path) -> io::Result<()> {
    let (errand, _ends) = Errand::begin();
    let meter = Meter::new(&errand, bytes.len() as u64);
    let unpacked = crate::unpack::unpack(bytes, root, &meter)?;
    crate::parents::Parents::default().complete(&unpacked, root)
}
