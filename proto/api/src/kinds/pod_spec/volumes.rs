//! Volumes: each has one source, which is checked by its own rules.

mod claim;
mod projected;
mod remote;
mod sources;

pub(in crate::kinds) use claim::{
    check_access_modes, check_class, check_spec as check_claim_spec, check_volume_mode,
};
pub(in crate::kinds) use remote::{check_initiator, is_iscsi_name, validate as check_remote};
pub(in crate::kinds) use sources::{check_driver_name, check_host_path};

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::Volume;
use serde_json::Value;

use super::Surroundings;
use crate::field::{ErrorList, Path};
use crate::names;

/// Sources in the order in which Kubernetes looks for them: the first is the volume's, any further is one too many. Beside
/// each its name in what is told of one too many, which is not always the field's.
const SOURCES: [(&str, &str); 30] = [
    ("emptyDir", "emptyDir"),
    ("hostPath", "hostPath"),
    ("gitRepo", "gitRepo"),
    ("gcePersistentDisk", "gcePersistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret"),
    ("nfs", "nfs"),
    ("iscsi", "iscsi"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd"),
    ("cinder", "cinder"),
    ("cephfs", "cephFS"),
    ("quobyte", "quobyte"),
    ("downwardAPI", "downwarAPI"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("configMap", "configMap"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("storageos", "storageos"),
    ("projected", "projected"),
    ("scaleIO", "scaleIO"),
    ("csi", "csi"),
    ("ephemeral", "ephemeral"),
    ("image", "image"),
];

/// The longest name of an iSCSI volume and its portal together, where its initiator has a name.
pub(in crate::kinds) const MAX_ISCSI_NAME: usize = 64;

/// Checks that no part of a path leads upwards.
pub(in crate::kinds) fn check_no_backsteps(file: &str, path: &Path, errors: &mut ErrorList) {
    if has_backsteps(file) {
        errors.invalid(path, file, "must not contain '..'");
    }
}

/// Whether a part of a path leads upwards.
pub(super) fn has_backsteps(file: &str) -> bool {
    file.split('/').any(|part| part == "..")
}

/// Checks a path that must stay below some directory.
pub(super) fn check_descending(file: &str, path: &Path, errors: &mut ErrorList) {
    if file.starts_with('/') {
        errors.invalid(path, file, "must be a relative path");
    }
    check_no_backsteps(file, path, errors);
}

/// As [`check_descending`], and not a name that the volume keeps for itself.
fn check_unreserved(file: &str, path: &Path, errors: &mut ErrorList) {
    check_descending(file, path, errors);
    if file.starts_with("..") && !file.starts_with("../") {
        errors.invalid(path, file, "must not start with '..'");
    }
}

fn check_volume(
    volume: &Volume,
    surroundings: &Surroundings<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let is_given = |(field, _): &(&str, &str)| fields.get(*field).is_some_and(Value::is_object);
    let given: Vec<(&str, &str)> = SOURCES.into_iter().filter(is_given).collect();
    if given.is_empty() {
        errors.required(path, "must specify a volume type");
    }
    for (index, (field, told)) in given.into_iter().enumerate() {
        if index == 0 {
            sources::validate(volume, field, surroundings, path, errors);
        } else {
            let detail = "may not specify more than 1 volume type";
            errors.forbidden(&path.child(told), detail);
        }
        if let ("iscsi", Some(iscsi)) = (field, &volume.iscsi)
            && iscsi.initiator_name.is_some()
            && volume.name.len() + 1 + iscsi.target_portal.len() > MAX_ISCSI_NAME
        {
            let detail = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.";
            errors.invalid(&path.child("name"), &volume.name, detail);
        }
    }
}

/// The volumes that containers may mount.
pub(super) type Volumes<'a> = BTreeMap<&'a str, &'a Volume>;

/// Checks every volume; answers those without fault.
pub(super) fn validate<'a>(
    volumes: &'a [Volume],
    surroundings: &Surroundings<'_>,
    path: &Path,
    errors: &mut ErrorList,
) -> Volumes<'a> {
    let mut good = Volumes::new();
    let pod = surroundings.pod_name.unwrap_or_default();
    let ephemeral = volumes.iter().filter(|volume| volume.ephemeral.is_some());
    let made: HashSet<String> = ephemeral
        .map(|volume| format!("{pod}-{}", volume.name))
        .collect();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        let before = errors.0.len();
        check_volume(volume, surroundings, &path, errors);
        let name_path = path.child("name");
        if volume.name.is_empty() {
            errors.required(&name_path, "");
        } else {
            errors.invalid_each(&name_path, &volume.name, names::dns1123_label(&volume.name));
        }
        if good.contains_key(volume.name.as_str()) {
            errors.duplicate(&name_path, &volume.name);
        }
        if errors.0.len() == before {
            good.insert(&volume.name, volume);
        }
        let claim = volume.persistent_volume_claim.as_ref();
        if let Some(claim) =
            claim.filter(|claim| !pod.is_empty() && made.contains(&claim.claim_name))
        {
            let path = path.child("persistentVolumeClaim").child("claimName");
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            errors.invalid(&path, &claim.claim_name, detail);
        }
    }
    good
}

#[cfg(test)]
mod tests;
