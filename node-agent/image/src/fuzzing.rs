//! What a registry's bytes meet, for the fuzzer; no interface of the crate.

use std::io;
use std::path::Path;

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

/// A layer, unpacked into a directory.
pub fn layer(bytes: &[u8], root: &Path) -> io::Result<u64> {
    crate::unpack::unpack(bytes, root)
}
