//! Where the pods of a node write.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::uid_of;
use super::usage::{Usage, measure};
use super::verdict::PodUsage;
use crate::pod::containers;

/// What a pod's containers have written to their termination messages, in bytes. They are in the run directory, which is
/// in memory, and each is a file that a container may write to as it likes.
pub(super) fn last_words(run_dir: &Path, uid: &str) -> u64 {
    let attempts = run_dir.join("pods").join(uid).join("c");
    let attempts = std::fs::read_dir(attempts).into_iter().flatten().flatten();
    attempts
        .filter_map(|attempt| {
            let file = attempt.path().join(gantry_runtime::TERMINATION);
            Some(file.symlink_metadata().ok()?.blocks().saturating_mul(512))
        })
        .fold(0, u64::saturating_add)
}

/// Where pods of this node write.
pub(super) struct Places<'a> {
    pub(super) pods_dir: &'a Path,
    pub(super) logs_dir: &'a Path,
    /// By the key of a container's attempt.
    pub(super) layers: &'a [(String, PathBuf)],
}

impl Places<'_> {
    pub(super) fn usage(&self, pod: &Pod, deadline: Instant) -> PodUsage {
        let look = |path: &Path| {
            measure(path, deadline).unwrap_or_else(|error| {
                tracing::debug!(path = %path.display(), %error, "measuring what a pod takes");
                Usage::default()
            })
        };
        let uid = uid_of(pod);
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let logs = self.logs_dir.join(format!(
            "{}_{}_{uid}",
            text(&meta.namespace),
            text(&meta.name)
        ));
        // Containers have hosts, hostname and resolv.conf mounted to write to.
        let mut usage = PodUsage {
            rest: look(&self.pods_dir.join(uid).join("etc")),
            ..PodUsage::default()
        };
        for (_, container) in pod.spec.iter().flat_map(containers) {
            let mut used = look(&logs.join(&container.name));
            let prefix = format!("{uid}-{}-", container.name);
            for (key, layer) in self.layers {
                let attempt = key.strip_prefix(&prefix);
                if attempt.is_some_and(|attempt| attempt.bytes().all(|byte| byte.is_ascii_digit()))
                {
                    used += look(layer);
                }
            }
            usage.containers.insert(container.name.clone(), used);
        }
        let volumes = self.pods_dir.join(uid).join("volumes");
        let own = std::fs::metadata(&volumes).map_or(0, |metadata| metadata.dev());
        let directories = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
        for plugin in directories(volumes) {
            for volume in directories(plugin.path()) {
                let on_disk = volume
                    .path()
                    .symlink_metadata()
                    .is_ok_and(|metadata| metadata.dev() == own);
                if let (true, Ok(name)) = (on_disk, volume.file_name().into_string()) {
                    usage.volumes.insert(name, look(&volume.path()));
                }
            }
        }
        usage
    }
}
