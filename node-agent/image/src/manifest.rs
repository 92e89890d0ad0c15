//! The parts of OCI and Docker manifests and image configs that running an image needs.

use std::fmt;
use std::marker::PhantomData;

use gantry_cri::image::{ImageConfig, digest};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

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
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

/// As Go decodes: `null` is no value.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What a manifest of an index is for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Platform {
    #[serde(deserialize_with = "or_default")]
    architecture: String,
    #[serde(deserialize_with = "or_default")]
    os: String,
    #[serde(deserialize_with = "or_default")]
    variant: String,
}

impl Platform {
    /// Architecture and variant by their usual names, as containerd normalises those that others have given them.
    fn machine(&self) -> (String, String) {
        let architecture = self.architecture.to_lowercase();
        let variant = self.variant.to_lowercase();
        let named = |name: &str| name.to_owned();
        match architecture.as_str() {
            "x86_64" | "x86-64" => (named("amd64"), variant),
            "i386" => (named("386"), String::new()),
            "aarch64" => (named("arm64"), variant),
            "armhf" => (named("arm"), named("v7")),
            "armel" => (named("arm"), named("v6")),
            _ => (architecture, variant),
        }
    }

    /// How well a machine runs it, 0 best, as containerd ranks what has no better match; `None` when not at all.
    fn rank(&self, machine: &str) -> Option<usize> {
        let (architecture, variant) = self.machine();
        let (architecture, variant) = (architecture.as_str(), variant.as_str());
        // What names no system is for that of whoever asks.
        let is_linux = self.os.is_empty() || self.os.eq_ignore_ascii_case("linux");
        let runs: &[(&str, &[&str])] = match machine {
            // Higher levels than the first need instructions that not every such machine has.
            "x86_64" => &[("amd64", &["", "v1"]), ("386", &[""])],
            "aarch64" => &[
                ("arm64", &["", "8", "v8", "v8.0"]),
                ("arm", &["8", "v8"]),
                ("arm", &["", "7", "v7"]),
                ("arm", &["6", "v6"]),
                ("arm", &["5", "v5"]),
            ],
            other => return (is_linux && architecture == other).then_some(0),
        };
        let known = runs
            .iter()
            .position(|(own, variants)| architecture == *own && variants.contains(&variant));
        known.filter(|_| is_linux)
    }
}

/// More indexes in indexes than anybody makes.
pub(crate) const NESTED: usize = 4;
/// The largest manifest or image config, as registries and other runtimes bound them.
pub(crate) const DOCUMENT_BYTES: u64 = 8 << 20;

/// Layers of an image: overlayfs mounts no more (`OVL_MAX_STACK`).
pub(crate) const LAYERS: usize = 500;
/// More images than an index has.
pub(crate) const MANIFESTS: usize = 1_000;
/// Longer than a digest is.
const DIGEST_BYTES: usize = 256;
/// What an image may say of how it is run, its strings with [`STRING_BYTES`] for each. It is in memory, and written anew with
/// every change of the index, for as long as the image is here; real ones have some KiB.
const SETTINGS_BYTES: usize = 256 << 10;
/// What a string takes beside its letters.
const STRING_BYTES: usize = 32;
/// Strings of one setting.
const STRINGS: usize = SETTINGS_BYTES / STRING_BYTES;
/// More volumes than an image asks for: every container of it has each mounted.
const VOLUMES: usize = 256;

/// A list of which no more is kept than is allowed.
#[derive(Clone, Debug)]
pub(crate) struct Few<T, const MOST: usize> {
    kept: Vec<T>,
    /// How many there are.
    count: usize,
}

impl<T, const MOST: usize> Few<T, MOST> {
    /// All of it; otherwise what there are how many of, and `why` that is refused.
    pub(crate) fn all(self, what: &str, why: &str) -> Result<Vec<T>, String> {
        self.check(what, why)?;
        Ok(self.kept)
    }

    fn check(&self, what: &str, why: &str) -> Result<(), String> {
        match self.count <= MOST {
            true => Ok(()),
            false => Err(format!(
                "it has {} {what}, more than {MOST}: {why}",
                self.count
            )),
        }
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Few<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FewVisitor(PhantomData))
    }
}

struct FewVisitor<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for FewVisitor<T, MOST> {
    type Value = Few<T, MOST>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let (mut kept, mut count) = (Vec::new(), 0);
        loop {
            if count < MOST {
                match list.next_element()? {
                    Some(element) => kept.push(element),
                    None => return Ok(Few { kept, count }),
                }
            } else if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(Few { kept, count });
            }
            count += 1;
        }
    }
}

/// The names of an object's members, of which no more are kept than is allowed.
#[derive(Clone, Debug)]
struct Names<const MOST: usize>(Few<String, MOST>);

impl<'de, const MOST: usize> Deserialize<'de> for Names<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NamesVisitor::<MOST>)
    }
}

struct NamesVisitor<const MOST: usize>;

impl<'de, const MOST: usize> Visitor<'de> for NamesVisitor<MOST> {
    type Value = Names<MOST>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut kept, mut count) = (Vec::new(), 0);
        loop {
            let more = if count < MOST {
                let name = map.next_key::<String>()?;
                let found = name.is_some();
                kept.extend(name);
                found
            } else {
                map.next_key::<IgnoredAny>()?.is_some()
            };
            if !more {
                return Ok(Names(Few { kept, count }));
            }
            map.next_value::<IgnoredAny>()?;
            count += 1;
        }
    }
}

pub(crate) const LAYERS_WHY: &str = "overlayfs mounts no more layers";

/// An image manifest or an index of them.
#[derive(Clone, Debug)]
pub(crate) enum Manifest {
    /// One image.
    Image {
        config: Descriptor,
        /// No more than can be mounted.
        layers: Vec<Descriptor>,
    },
    /// One image per platform.
    Index { manifests: Vec<Descriptor> },
}

impl Manifest {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Document {
            config: Option<Descriptor>,
            layers: Option<Few<Descriptor, LAYERS>>,
            manifests: Option<Few<Descriptor, MANIFESTS>>,
        }
        let neither = || {
            "the manifest is neither an image manifest nor an index (schema 1 is not supported)"
                .to_owned()
        };
        let document: Document = serde_json::from_slice(bytes).map_err(|_| neither())?;
        match document {
            Document {
                config: Some(mut config),
                layers,
                manifests,
            } if layers.is_some() || manifests.is_none() => {
                // Go writes no list for one that is empty.
                let layers = layers.map(|layers| layers.all("layers", LAYERS_WHY));
                let mut layers = layers.transpose()?.unwrap_or_default();
                for part in layers.iter_mut().chain([&mut config]) {
                    if part.digest.len() > DIGEST_BYTES {
                        return Err("the manifest has a digest that is none".to_owned());
                    }
                    // Kept for as long as the image is on its way, and nobody asks for them.
                    part.annotations.clear();
                }
                Ok(Self::Image { config, layers })
            }
            Document {
                manifests: Some(manifests),
                ..
            } => Ok(Self::Index {
                manifests: manifests.all("manifests", "there are not so many platforms")?,
            }),
            _ => Err(neither()),
        }
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
    #[serde(default)]
    diff_ids: Option<Few<String, LAYERS>>,
}

type Strings = Few<String, STRINGS>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Strings>,
    cmd: Option<Strings>,
    env: Option<Strings>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<Names<VOLUMES>>,
}

impl ConfigFile {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| format!("the image config is not valid: {error}"))?;
        config
            .check()
            .map_err(|error| format!("the image config is not valid: {error}"))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if let Some(diff_ids) = &self.rootfs.diff_ids {
            diff_ids.check("layers", LAYERS_WHY)?;
        }
        if self.diff_ids().iter().any(|id| id.len() > DIGEST_BYTES) {
            return Err("a diff id is no digest".to_owned());
        }
        let Some(run) = &self.config else {
            return Ok(());
        };
        let why = "the node keeps them in memory";
        let mut size = 0;
        for (name, list) in [
            ("strings in Entrypoint", &run.entrypoint),
            ("strings in Cmd", &run.cmd),
            ("strings in Env", &run.env),
        ] {
            if let Some(list) = list {
                list.check(name, why)?;
                let each = list.kept.iter().map(|text| text.len() + STRING_BYTES);
                size += each.sum::<usize>();
            }
        }
        if let Some(Names(volumes)) = &run.volumes {
            volumes.check("Volumes", "each is mounted")?;
            let each = volumes.kept.iter().map(|path| path.len() + STRING_BYTES);
            size += each.sum::<usize>();
        }
        let single = [&run.user, &run.working_dir, &run.stop_signal];
        size += single.into_iter().flatten().map(String::len).sum::<usize>();
        match size <= SETTINGS_BYTES {
            true => Ok(()),
            false => Err(format!(
                "Entrypoint, Cmd, Env, Volumes and its other settings come to {size} bytes, more than {SETTINGS_BYTES}: {why}"
            )),
        }
    }

    /// `sha256:...` of each uncompressed layer, lowest first.
    pub(crate) fn diff_ids(&self) -> &[String] {
        let diff_ids = self.rootfs.diff_ids.as_ref();
        diff_ids.map_or(&[], |diff_ids| &diff_ids.kept)
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
        fn list<const MOST: usize>(list: Option<Few<String, MOST>>) -> Vec<String> {
            list.map(|list| list.kept).unwrap_or_default()
        }
        let run = self.config.clone().unwrap_or_default();
        ImageConfig {
            entrypoint: list(run.entrypoint),
            cmd: list(run.cmd),
            env: list(run.env),
            user: run.user.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: list(run.volumes.map(|Names(volumes)| volumes)),
        }
    }
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
    fn platforms_have_many_names_and_null_is_none() {
        let best = |platforms: serde_json::Value| {
            let index = serde_json::json!({"manifests": platforms}).to_string();
            let Ok(Manifest::Index { manifests }) = Manifest::parse(index.as_bytes()) else {
                panic!("an index");
            };
            let chosen = for_machine(&manifests, "x86_64");
            chosen
                .map(|chosen| chosen.digest.clone())
                .unwrap_or_default()
        };
        for platform in [
            serde_json::json!({"os": "linux", "architecture": "x86_64"}),
            serde_json::json!({"os": "Linux", "architecture": "AMD64", "variant": "V1"}),
            serde_json::json!({"architecture": "amd64", "variant": null}),
            serde_json::json!({"os": null, "architecture": "x86-64"}),
            serde_json::json!({"os": "linux", "architecture": "i386", "variant": "x"}),
        ] {
            let found = best(serde_json::json!([
                {"digest": "unknown", "platform": {"os": "unknown", "architecture": "unknown"}},
                {"digest": "empty", "platform": {}},
                {"digest": "own", "platform": platform, "size": null, "annotations": null}
            ]));
            assert_eq!(found, "own", "{platform}");
        }
    }

    #[test]
    fn an_image_may_have_no_layers() {
        for layers in ["", r#","layers":null"#, r#","layers":[]"#] {
            let manifest = format!(r#"{{"config":{{"digest":"sha256:a"}}{layers}}}"#);
            let Ok(Manifest::Image { layers, .. }) = Manifest::parse(manifest.as_bytes()) else {
                panic!("an image: {manifest}");
            };
            assert!(layers.is_empty());
        }
        let config = ConfigFile::parse(br#"{"rootfs":{"type":"layers","diff_ids":null}}"#);
        assert!(config.expect("valid").chain_ids().is_empty());
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

    #[test]
    fn an_image_has_no_more_layers_than_can_be_mounted() {
        let list = |element: &str, count: usize| vec![element; count].join(",");
        let image = |count| {
            let layers = list(r#"{"digest":"sha256:b","annotations":{"a":"b"}}"#, count);
            format!(r#"{{"config":{{"digest":"sha256:a"}},"layers":[{layers}]}}"#)
        };
        let Ok(Manifest::Image { layers, .. }) = Manifest::parse(image(500).as_bytes()) else {
            panic!("an image");
        };
        assert!(layers.iter().all(|layer| layer.annotations.is_empty()));
        let config = |count| {
            let layers = list(r#""sha256:a""#, count);
            format!(r#"{{"rootfs":{{"diff_ids":[{layers}]}}}}"#)
        };
        ConfigFile::parse(config(500).as_bytes()).expect("valid");
        for error in [
            Manifest::parse(image(100_000).as_bytes()).map(drop),
            ConfigFile::parse(config(100_000).as_bytes()).map(drop),
        ] {
            let error = error.expect_err("too many");
            assert!(error.contains("100000 layers, more than 500"), "{error}");
        }
        let manifests = list(r#"{"digest":"sha256:b"}"#, 1_001);
        let index = format!(r#"{{"manifests":[{manifests}]}}"#);
        let error = Manifest::parse(index.as_bytes()).expect_err("too many");
        assert!(error.contains("1001 manifests"), "{error}");
        let long = format!(
            r#"{{"config":{{"digest":"{}"}},"layers":[]}}"#,
            "a".repeat(257)
        );
        Manifest::parse(long.as_bytes()).expect_err("no digest");
    }

    #[test]
    fn what_an_image_says_of_running_it_is_small() {
        let config = |settings: serde_json::Value| {
            let config = serde_json::json!({"rootfs": {"diff_ids": []}, "config": settings});
            ConfigFile::parse(config.to_string().as_bytes())
        };
        let large = "x".repeat(SETTINGS_BYTES - STRING_BYTES);
        let parsed = config(serde_json::json!({"Env": [large]})).expect("as much as may be");
        assert_eq!(parsed.run().env, std::slice::from_ref(&large));
        for settings in [
            serde_json::json!({"Env": [large], "User": "x"}),
            serde_json::json!({"Cmd": [large], "Entrypoint": [""]}),
            serde_json::json!({"WorkingDir": "x".repeat(SETTINGS_BYTES + 1)}),
        ] {
            let error = config(settings).expect_err("too much");
            assert!(error.contains("more than 262144"), "{error}");
        }
        let volumes = |count: usize| -> serde_json::Map<String, serde_json::Value> {
            let names = (0..count).map(|number| format!("/{number}"));
            names.map(|name| (name, serde_json::json!({}))).collect()
        };
        let parsed =
            config(serde_json::json!({"Volumes": volumes(256)})).expect("as many as may be");
        assert_eq!(parsed.run().volumes.len(), 256);
        let error = config(serde_json::json!({"Volumes": volumes(300)})).expect_err("too many");
        assert!(error.contains("300 Volumes, more than 256"), "{error}");
        for none in [serde_json::json!({"Volumes": null}), serde_json::json!({})] {
            assert!(config(none).expect("valid").run().volumes.is_empty());
        }
        let many = vec![""; STRINGS + 1];
        let error = config(serde_json::json!({"Env": many})).expect_err("too many");
        assert!(error.contains("8193 strings in Env"), "{error}");
    }
}
