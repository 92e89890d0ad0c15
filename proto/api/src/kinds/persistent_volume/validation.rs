//! What a volume must say.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec};

use super::sources;
use crate::field::{ErrorList, Path};
use crate::kinds::pod_spec;
use crate::quantity::Quantity;

const RECLAIM_POLICIES: [&str; 3] = ["Delete", "Recycle", "Retain"];
const MOUNT_OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";

fn check_capacity(spec: &PersistentVolumeSpec, path: &Path, errors: &mut ErrorList) {
    let capacity = spec.capacity.as_ref();
    if capacity.is_none_or(|capacity| capacity.is_empty()) {
        errors.required(path, "");
    }
    let only_storage =
        capacity.is_some_and(|capacity| capacity.len() == 1 && capacity.contains_key("storage"));
    if !only_storage {
        errors.not_supported(path, &spec.capacity, &["storage"]);
    }
    for (resource, amount) in capacity.into_iter().flatten() {
        // One that is none was refused when the object was decoded.
        let Ok(amount) = amount.0.parse::<Quantity>() else {
            continue;
        };
        let path = path.key(resource);
        if amount.units() < 0 {
            errors.invalid(&path, amount.units(), "must be a valid resource quantity");
        }
        if amount.sign() <= 0 {
            errors.invalid(&path, amount.to_string(), "must be greater than zero");
        }
    }
}

/// Whether a path is the root directory, however it is written.
fn is_root(file: &str) -> bool {
    let mut depth = 0_usize;
    for part in file.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    file.starts_with('/') && depth == 0
}

fn check_classes(spec: &PersistentVolumeSpec, path: &Path, errors: &mut ErrorList) {
    let class = spec.storage_class_name.as_deref().unwrap_or_default();
    pod_spec::check_class(class, &path.child("storageClassName"), errors);
    let mode = spec.volume_mode.as_ref();
    pod_spec::check_volume_mode(mode, &path.child("volumeMode"), errors);
    check_attributes(spec, path, errors);
}

fn check_attributes(spec: &PersistentVolumeSpec, path: &Path, errors: &mut ErrorList) {
    let Some(class) = &spec.volume_attributes_class_name else {
        return;
    };
    let class_path = path.child("volumeAttributesClassName");
    if class.is_empty() {
        errors.required(&class_path, "an empty string is disallowed");
    }
    pod_spec::check_class(class, &class_path, errors);
    if spec.csi.is_none() {
        let detail = "has to be specified when using volumeAttributesClassName";
        errors.required(&path.child("csi"), detail);
    }
}

fn check_modes(spec: &PersistentVolumeSpec, path: &Path, errors: &mut ErrorList) {
    let path = path.child("accessModes");
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errors.required(&path, "");
    }
    pod_spec::check_access_modes(modes, &path, errors);
}

fn check_policy(spec: &PersistentVolumeSpec, path: &Path, errors: &mut ErrorList) {
    let policy = spec.persistent_volume_reclaim_policy.as_deref();
    let policy = policy.unwrap_or_default();
    if !policy.is_empty() && !RECLAIM_POLICIES.contains(&policy) {
        errors.not_supported(path, policy, &RECLAIM_POLICIES);
    }
}

fn check_affinity(spec: &PersistentVolumeSpec, path: &Path, errors: &mut ErrorList) {
    if let Some(affinity) = &spec.node_affinity {
        let path = path.child("nodeAffinity").child("required");
        match &affinity.required {
            Some(required) => pod_spec::check_node_selector(required, &path, errors),
            None => errors.required(&path, "must specify required node constraints"),
        }
    }
}

fn check_recycled_root(spec: &PersistentVolumeSpec, path: &Path, errors: &mut ErrorList) {
    let is_recycled = spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle");
    let host = spec.host_path.as_ref();
    if is_recycled && host.is_some_and(|host| is_root(&host.path)) {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.forbidden(path, detail);
    }
}

/// Checks what is told of a volume that is no object.
pub(in crate::kinds) fn validate_inline(
    spec: &PersistentVolumeSpec,
    path: &Path,
    errors: &mut ErrorList,
) {
    const NOT_INLINE: &str = "may not be specified in the context of inline volumes";
    if spec.claim_ref.is_some() {
        errors.forbidden(&path.child("claimRef"), NOT_INLINE);
    }
    if spec
        .capacity
        .as_ref()
        .is_some_and(|capacity| !capacity.is_empty())
    {
        errors.forbidden(&path.child("capacity"), NOT_INLINE);
    }
    if spec.csi.is_none() {
        let detail = "has to be specified in the context of inline volumes";
        errors.required(&path.child("csi"), detail);
    }
    check_modes(spec, path, errors);
    let policy = path.child("persistentVolumeReclaimPolicy");
    check_policy(spec, &policy, errors);
    check_affinity(spec, path, errors);
    sources::validate(spec, "", spec.node_affinity.is_some(), path, errors);
    check_recycled_root(spec, &policy, errors);
    if spec
        .storage_class_name
        .as_ref()
        .is_some_and(|class| !class.is_empty())
    {
        errors.forbidden(&path.child("storageClassName"), NOT_INLINE);
    }
    if spec
        .volume_mode
        .as_ref()
        .is_some_and(|mode| mode != "Filesystem")
    {
        let detail =
            "may not specify volumeMode other than Filesystem in the context of inline volumes";
        errors.forbidden(&path.child("volumeMode"), detail);
    }
    check_attributes(spec, path, errors);
}

/// Checks the spec.
pub(super) fn validate(object: &PersistentVolume, errors: &mut ErrorList) {
    let empty = PersistentVolumeSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let path = Path::new("spec");
    check_modes(spec, &path, errors);
    check_capacity(spec, &path.child("capacity"), errors);
    let policy = path.child("persistentVolumeReclaimPolicy");
    check_policy(spec, &policy, errors);
    check_affinity(spec, &path, errors);
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let is_placed = spec.node_affinity.is_some();
    sources::validate(spec, name, is_placed, &path, errors);
    check_recycled_root(spec, &policy, errors);
    check_classes(spec, &path, errors);
}

/// Refuses options of mounting, where an annotation has them, for sources that are not mounted with any.
pub(super) fn check_mount_options(object: &PersistentVolume, errors: &mut ErrorList) {
    let annotations = object.metadata.annotations.as_ref();
    if !annotations.is_some_and(|annotations| annotations.contains_key(MOUNT_OPTIONS)) {
        return;
    }
    let takes_them = object.spec.as_ref().is_some_and(|spec| {
        spec.gce_persistent_disk.is_some()
            || spec.aws_elastic_block_store.is_some()
            || spec.glusterfs.is_some()
            || spec.nfs.is_some()
            || spec.rbd.is_some()
            || spec.quobyte.is_some()
            || spec.iscsi.is_some()
            || spec.cinder.is_some()
            || spec.cephfs.is_some()
            || spec.azure_file.is_some()
            || spec.vsphere_volume.is_some()
            || spec.azure_disk.is_some()
            || spec.photon_persistent_disk.is_some()
            || spec.flocker.is_some()
            || spec.scale_io.is_some()
            || spec.fc.is_some()
            || spec.portworx_volume.is_some()
    });
    if !takes_them {
        let path = Path::new("metadata").child("annotations");
        let detail = "may not specify mount options for this volume type";
        errors.forbidden(&path.child(MOUNT_OPTIONS), detail);
    }
}
