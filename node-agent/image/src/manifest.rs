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
    #[serde(default)]
    variant: String,
}

impl Platform {
    /// How well a machine runs it, 0 best, as containerd ranks what has no better match; `None` when not at all.
    fn rank(&self, machine: &str) -> Option<usize> {
        let variant = self.variant.as_str();
        let runs: &[(&str, &[&str])] = match machine {
            // Higher levels than the first need instructions that not every such machine has.
            "x86_64" => &[("amd64", &["", "v1"]), ("386", &[""])],
            "aarch64" => &[
                ("arm64", &["", "8", "v8"]),
                ("arm", &["8", "v8"]),
                ("arm", &["", "7", "v7"]),
                ("arm", &["6", "v6"]),
                ("arm", &["5", "v5"]),
            ],
            other => return (self.os == "linux" && self.architecture == other).then_some(0),
        };
        let known = runs.iter().position(|(architecture, variants)| {
            self.architecture == *architecture && variants.contains(&variant)
        });
        known.filter(|_| self.os == "linux")
    }
}

/// More indexes in indexes than anybody makes.
pub(crate) const NESTED: usize = 4;
/// The largest manifest or image config, as registries and other runtimes bound them.
pub(crate) const DOCUMENT_BYTES: u64 = 8 << 20;

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
    for_machine(manifests, std::env::consts::ARCH)
}

fn for_machine<'a>(manifests: &'a [Descriptor], machine: &str) -> Result<&'a Descriptor, String> {
    let ranked = manifests.iter().filter_map(|manifest| {
        let rank = match &manifest.platform {
            Some(platform) => platform.rank(machine)?,
            // Whatever it is for: better than nothing.
            None => usize::MAX,
        };
        Some((rank, manifest))
    });
    let best = ranked.min_by_key(|(rank, _)| *rank);
    best.map(|(_, manifest)| manifest).ok_or_else(|| {
        let architecture = match machine {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
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

    /// For each layer, what it is together with those below it (OCI image specification, "ChainID"), lowest first.
    pub(crate) fn chain_ids(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::new();
        for diff_id in self.diff_ids() {
            chain.push(match chain.last() {
                None => diff_id.clone(),
                Some(below) => digest(format!("{below} {diff_id}").as_bytes()),
            });
        }
        chain
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
    fn the_best_of_an_index_is_chosen() {
        let index = |platforms: &[(&str, &str, &str)]| -> Vec<Descriptor> {
            let descriptors = platforms.iter().map(|(os, architecture, variant)| {
                serde_json::json!({"digest": format!("{architecture}{variant}"),
                    "platform": {"os": os, "architecture": architecture, "variant": variant}})
            });
            let mut descriptors: Vec<serde_json::Value> = descriptors.collect();
            descriptors.push(serde_json::json!({"digest": "unnamed"}));
            serde_json::from_value(descriptors.into()).expect("descriptors")
        };
        let all = index(&[
            ("unknown", "unknown", ""),
            ("windows", "amd64", ""),
            ("linux", "386", ""),
            ("linux", "amd64", "v3"),
            ("linux", "amd64", ""),
            ("linux", "arm", "v6"),
            ("linux", "arm", "v7"),
            ("linux", "arm64", "v8"),
        ]);
        let best = |manifests: &[Descriptor], machine| {
            for_machine(manifests, machine).map(|chosen| chosen.digest.clone())
        };
        assert_eq!(best(&all, "x86_64").as_deref(), Ok("amd64"));
        assert_eq!(best(&all, "aarch64").as_deref(), Ok("arm64v8"));
        assert_eq!(best(&all, "s390x").as_deref(), Ok("unnamed"));
        let old = index(&[
            ("linux", "arm", "v6"),
            ("linux", "arm", "v7"),
            ("linux", "386", ""),
        ]);
        assert_eq!(best(&old, "aarch64").as_deref(), Ok("armv7"));
        assert_eq!(best(&old, "x86_64").as_deref(), Ok("386"));
        assert!(best(&all[..2], "aarch64").is_err());
    }

    #[test]
    fn a_layer_is_named_by_all_that_is_below_it() {
        let config =
            br#"{"rootfs":{"type":"layers","diff_ids":["sha256:a","sha256:b","sha256:b"]}}"#;
        let chain = ConfigFile::parse(config).expect("valid").chain_ids();
        assert_eq!(chain[0], "sha256:a");
        assert_eq!(chain[1], digest(b"sha256:a sha256:b"));
        assert_eq!(
            chain[2],
            digest(format!("{} sha256:b", chain[1]).as_bytes())
        );
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
