//! PersistentVolume: storage that somebody has, for claims to be bound to.

mod row;
mod sources;
mod update;
mod validation;

pub(super) use row::{access_modes, or_unset, phase, storage};
pub use row::{class, has_class_annotation};
pub(super) use validation::validate_inline;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, PersistentVolumeStatus};

use super::pod_spec;
use super::table::Printer;
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, MetadataChecks, Parts, StaticInfo};
use crate::parts;

/// Where a class was named before there was a field for it.
pub(super) const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// What is told of one that is named there.
pub(super) const CLASS_WARNING: &str =
    "deprecated since v1.8; use \"storageClassName\" attribute instead";

/// The finalizer of volumes that claims are bound to.
pub const PROTECTION: &str = "kubernetes.io/pv-protection";

/// The phase of a volume or a claim that nobody has looked at.
pub(super) const PENDING: &str = "Pending";

/// See [`PersistentVolume`].
pub struct PersistentVolumeKind;

/// Fills a text that is empty.
pub(super) fn fill(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

fn default_source(spec: &mut PersistentVolumeSpec) {
    if let Some(host) = &mut spec.host_path {
        host.type_.get_or_insert_default();
    }
    if let Some(iscsi) = &mut spec.iscsi {
        fill(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = &mut spec.rbd {
        fill(&mut rbd.pool, "rbd");
        fill(&mut rbd.user, "admin");
        fill(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(disk) = &mut spec.azure_disk {
        disk.caching_mode
            .get_or_insert_with(|| "ReadWrite".to_owned());
        disk.kind.get_or_insert_with(|| "Shared".to_owned());
        disk.fs_type.get_or_insert_with(|| "ext4".to_owned());
        disk.read_only.get_or_insert(false);
    }
    if let Some(scale) = &mut spec.scale_io {
        fill(&mut scale.storage_mode, "ThinProvisioned");
        fill(&mut scale.fs_type, "xfs");
    }
}

fn warnings(object: &PersistentVolume) -> Vec<String> {
    let mut warnings = Vec::new();
    if has_class_annotation(&object.metadata) {
        warnings.push(format!(
            "metadata.annotations[{CLASS_ANNOTATION}]: {CLASS_WARNING}"
        ));
    }
    let Some(spec) = &object.spec else {
        return warnings;
    };
    if spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle") {
        let warning = "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.";
        warnings.push(warning.to_owned());
    }
    let affinity = spec.node_affinity.as_ref();
    if let Some(required) = affinity.and_then(|affinity| affinity.required.as_ref()) {
        let path = Path::new("spec").child("nodeAffinity").child("required");
        let path = path.child("nodeSelectorTerms");
        let terms = &required.node_selector_terms;
        warnings.extend(pod_spec::node_terms_warnings(terms, &path));
    }
    for (is_given, field, since) in [
        (
            spec.cephfs.is_some(),
            "cephfs",
            "v1.28, non-functional in v1.31+",
        ),
        (
            spec.photon_persistent_disk.is_some(),
            "photonPersistentDisk",
            "v1.11, non-functional in v1.16+",
        ),
        (
            spec.scale_io.is_some(),
            "scaleIO",
            "v1.16, non-functional in v1.22+",
        ),
        (
            spec.storageos.is_some(),
            "storageOS",
            "v1.22, non-functional in v1.25+",
        ),
        (
            spec.glusterfs.is_some(),
            "glusterfs",
            "v1.25, non-functional in v1.26+",
        ),
        (spec.rbd.is_some(), "rbd", "v1.28, non-functional in v1.31+"),
    ] {
        if is_given {
            warnings.push(format!("spec.{field}: deprecated in {since}"));
        }
    }
    warnings
}

impl Kind for PersistentVolumeKind {
    type Object = PersistentVolume;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        categories: &[],
        namespaced: false,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const PARTS: Parts<PersistentVolume> = parts!(PersistentVolume: spec, status);

    const UPDATE_METADATA: MetadataChecks = MetadataChecks::Whole;

    fn default(object: &mut PersistentVolume) {
        let status = object.status.get_or_insert_default();
        fill(&mut status.phase, PENDING);
        let spec = object.spec.get_or_insert_default();
        fill(&mut spec.persistent_volume_reclaim_policy, "Retain");
        spec.volume_mode
            .get_or_insert_with(|| "Filesystem".to_owned());
        default_source(spec);
    }

    fn prepare_create(object: &mut PersistentVolume) {
        object.status = Some(PersistentVolumeStatus {
            phase: Some(PENDING.to_owned()),
            last_phase_transition_time: object.metadata.creation_timestamp.clone(),
            ..PersistentVolumeStatus::default()
        });
    }

    fn validate(object: &PersistentVolume, errors: &mut ErrorList) {
        validation::validate(object, errors);
        validation::check_mount_options(object, errors);
    }

    fn validate_update(new: &PersistentVolume, old: &PersistentVolume, errors: &mut ErrorList) {
        Self::validate(new, errors);
        validation::validate(new, errors);
        update::validate(new, old, errors);
    }

    fn prepare_status_update(new: &mut PersistentVolume, old: &PersistentVolume) {
        let (Some(new), Some(old)) = (&mut new.status, &old.status) else {
            return;
        };
        // Who changes the phase is told apart before: what is missing here is what was there.
        if new.phase == old.phase && new.last_phase_transition_time.is_none() {
            new.last_phase_transition_time
                .clone_from(&old.last_phase_transition_time);
        }
    }

    fn warnings(new: &PersistentVolume, _old: Option<&PersistentVolume>) -> Vec<String> {
        warnings(new)
    }

    fn printer() -> Printer<PersistentVolume> {
        row::printer()
    }
}

#[cfg(test)]
mod tests;
