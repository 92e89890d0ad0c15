//! Where the pods of a node write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::nameless::Nameless;
use super::uid_of;
use super::usage::{Usage, Walk};
use super::verdict::PodUsage;
use crate::pod::containers;

/// Where pods of this node write.
pub(super) struct Places<'a> {
    pub(super) pods_dir: &'a Path,
    pub(super) logs_dir: &'a Path,
    /// By the key of a container's attempt.
    pub(super) layers: &'a [(String, PathBuf)],
}

/// What a place counts as.
enum Part {
    Rest,
    Container(String),
    Volume(String),
}

impl Places<'_> {
    /// Begins to count what a pod takes. Its volumes and containers are those of this moment.
    pub(super) fn begin(&self, pod: &Pod, nameless: Nameless) -> Count {
        let uid = uid_of(pod);
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let logs = self.logs_dir.join(format!(
            "{}_{}_{uid}",
            text(&meta.namespace),
            text(&meta.name)
        ));
        // Containers have hosts, hostname and resolv.conf mounted to write to.
        let mut parts = vec![(Part::Rest, self.pods_dir.join(uid).join("etc"))];
        for (_, container) in pod.spec.iter().flat_map(containers) {
            let name = || Part::Container(container.name.clone());
            parts.push((name(), logs.join(&container.name)));
            let prefix = format!("{uid}-{}-", container.name);
            for (key, layer) in self.layers {
                let attempt = key.strip_prefix(&prefix);
                if attempt.is_some_and(|attempt| attempt.bytes().all(|byte| byte.is_ascii_digit()))
                {
                    parts.push((name(), layer.clone()));
                }
            }
        }
        let volumes = self.pods_dir.join(uid).join("volumes");
        let directories = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
        for plugin in directories(volumes) {
            for volume in directories(plugin.path()) {
                // One in memory, or somebody else's, is mounted there, and a walk does not begin at a mount.
                if let Ok(name) = volume.file_name().into_string() {
                    parts.push((Part::Volume(name), volume.path()));
                }
            }
        }
        Count {
            usage: PodUsage::default(),
            nameless,
            parts,
            walk: None,
            lost: false,
            took: Duration::ZERO,
        }
    }
}

/// A count of what one pod takes, which may be left and gone on with.
pub(super) struct Count {
    /// Of the places that are done.
    usage: PodUsage,
    nameless: Nameless,
    /// The places still to be walked over.
    parts: Vec<(Part, PathBuf)>,
    /// The one that is.
    walk: Option<(Part, Walk)>,
    lost: bool,
    /// How long it took so far.
    took: Duration,
}

impl Count {
    /// Goes on until it is through, or out of time. Whether it is through.
    pub(super) fn go_on(&mut self, deadline: Instant) -> bool {
        let begun = Instant::now();
        let through = self.advance(deadline);
        self.took += begun.elapsed();
        through
    }

    fn advance(&mut self, deadline: Instant) -> bool {
        if !self.nameless.go_on(deadline) {
            return false;
        }
        loop {
            if let Some((_, walk)) = &mut self.walk
                && !walk.go_on(deadline)
            {
                return false;
            }
            if let Some((part, walk)) = self.walk.take() {
                self.lost |= walk.has_lost();
                add(&mut self.usage, &part, walk.usage());
            }
            let Some((part, path)) = self.parts.pop() else {
                return true;
            };
            match Walk::begin(&path) {
                Ok(Some(walk)) => self.walk = Some((part, walk)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "measuring what a pod takes");
                }
            }
        }
    }

    /// What it has found so far: at least this much is taken.
    pub(super) fn usage(&self) -> PodUsage {
        let mut usage = self.usage.clone();
        if let Some((part, walk)) = &self.walk {
            add(&mut usage, part, walk.usage());
        }
        add(&mut usage, &Part::Rest, self.nameless.held());
        usage
    }

    /// Whether it has missed something, see [`Walk::has_lost`].
    pub(super) fn has_lost(&self) -> bool {
        self.lost
    }

    pub(super) fn took(&self) -> Duration {
        self.took
    }

    /// What it takes itself, in bytes of memory.
    pub(super) fn memory(&self) -> usize {
        let walk = self.walk.as_ref().map_or(0, |(_, walk)| walk.memory());
        self.nameless.memory() + walk
    }
}

fn add(usage: &mut PodUsage, part: &Part, used: Usage) {
    match part {
        Part::Rest => usage.rest += used,
        Part::Container(name) => *usage.containers.entry(name.clone()).or_default() += used,
        Part::Volume(name) => *usage.volumes.entry(name.clone()).or_default() += used,
    }
}
