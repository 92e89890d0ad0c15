//! The parts of OCI and Docker manifests and image configs that running an image needs.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::traits::ImageConfig;

/// Manifest types that are asked for, image manifests and indexes of both families.
pub(crate) const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// A piece of content.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Descriptor {
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

/// What a manifest of an index is for.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
}

/// An image manifest or an index of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Manifest {
    /// One image.
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
    /// One image per platform.
    Index { manifests: Vec<Descriptor> },
}

impl Manifest {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|_| {
            "the manifest is neither an image manifest nor an index (schema 1 is not supported)"
                .to_owned()
        })
    }
}

/// The manifest of an index for this machine.
pub(crate) fn for_this_platform(manifests: &[Descriptor]) -> Result<&Descriptor, String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    manifests
        .iter()
        .find(|manifest| {
            manifest.platform.as_ref().is_none_or(|platform| {
                platform.os == "linux" && platform.architecture == architecture
            })
        })
        .ok_or_else(|| {
            format!("no match for platform in manifest: it has no image for linux/{architecture}")
        })
}

/// An image config file: how to run it, and the digests of its uncompressed layers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

impl ConfigFile {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes)
            .map_err(|error| format!("the image config is not valid: {error}"))
    }

    /// `sha256:...` of each uncompressed layer, lowest first.
    pub(crate) fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }

    pub(crate) fn run(&self) -> ImageConfig {
        let run = self.config.clone().unwrap_or_default();
        ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
        }
    }
}

/// `sha256:...` of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_manifest_shapes_are_told_apart() {
        let image = br#"{"schemaVersion":2,"config":{"digest":"sha256:a"},"layers":[{"digest":"sha256:b","size":3}]}"#;
        assert!(
            matches!(Manifest::parse(image), Ok(Manifest::Image { layers, .. }) if layers.len() == 1)
        );
        let index = br#"{"manifests":[{"digest":"sha256:a","platform":{"os":"linux","architecture":"s390x"}}]}"#;
        let Ok(Manifest::Index { manifests }) = Manifest::parse(index) else {
            panic!("an index");
        };
        assert!(
            for_this_platform(&manifests)
                .expect_err("another platform")
                .contains("no match for platform")
        );
        assert!(Manifest::parse(b"{}").is_err());
    }

    #[test]
    fn a_config_without_settings_runs_nothing_by_itself() {
        let config = ConfigFile::parse(
            br#"{"rootfs":{"type":"layers","diff_ids":["sha256:a"]},"config":{"Cmd":null}}"#,
        );
        let config = config.expect("valid");
        assert_eq!(config.run(), ImageConfig::default());
        assert_eq!(config.diff_ids(), ["sha256:a"]);
    }
}
