//! What may change in a volume once it exists: not where its storage is.

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, PersistentVolume, PersistentVolumeSpec, VolumeNodeAffinity,
};

use crate::field::{ErrorList, ErrorType, Path};
use crate::kinds::difference;
use crate::kinds::internal::Internal;

/// Labels of nodes that have another name today.
const RENAMED: [(&str, &str); 3] = [
    (
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/zone",
    ),
    (
        "failure-domain.beta.kubernetes.io/region",
        "topology.kubernetes.io/region",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
    ),
];

fn sources(spec: &PersistentVolumeSpec) -> Internal {
    Internal::of(spec, "PersistentVolumeSource")
}

fn requirements(affinity: &mut VolumeNodeAffinity) -> Vec<&mut NodeSelectorRequirement> {
    let terms = affinity.required.iter_mut();
    let terms = terms.flat_map(|required| &mut required.node_selector_terms);
    let expressions = terms.flat_map(|term| term.match_expressions.iter_mut().flatten());
    expressions.collect()
}

/// Checks that a volume is where it was: a label may take its new name.
fn check_affinity(
    new: Option<&VolumeNodeAffinity>,
    old: &VolumeNodeAffinity,
    errors: &mut ErrorList,
) {
    let mut renamed = old.clone();
    let mut now = new.cloned().unwrap_or_default();
    let pairs = requirements(&mut renamed)
        .into_iter()
        .zip(requirements(&mut now));
    for (old, new) in pairs {
        if RENAMED.contains(&(old.key.as_str(), new.key.as_str())) {
            old.key.clone_from(&new.key);
        }
    }
    let shown = |affinity: &VolumeNodeAffinity| Internal::of(affinity, "VolumeNodeAffinity");
    let told = new.map(shown);
    if told != Some(shown(&renamed)) {
        errors.push(ErrorType::Invalid, &Path::new("nodeAffinity"), || {
            let told = told.map_or_else(|| "null".to_owned(), |told| told.text());
            format!("Invalid value: {told}: field is immutable")
        });
    }
}

/// Checks an update of a volume that is valid by itself.
pub(super) fn validate(new: &PersistentVolume, old: &PersistentVolume, errors: &mut ErrorList) {
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else {
        return;
    };
    let mut now = spec.clone();
    if let (Some(csi), Some(old)) = (&mut now.csi, &before.csi)
        && old.controller_expand_secret_ref.is_none()
    {
        // It may be given later.
        csi.controller_expand_secret_ref = None;
    }
    let (now, then) = (sources(&now), sources(before));
    if now != then {
        let difference = difference::unified(&then.lines(), &now.lines());
        let detail =
            format!("spec.persistentvolumesource is immutable after creation\n{difference}");
        let path = Path::new("spec").child("persistentvolumesource");
        errors.forbidden(&path, &detail);
    }
    if spec.volume_mode != before.volume_mode {
        let path = Path::new("volumeMode");
        errors.invalid(&path, &spec.volume_mode, "field is immutable");
    }
    if let Some(affinity) = &before.node_affinity {
        check_affinity(spec.node_affinity.as_ref(), affinity, errors);
    }
    if before.volume_attributes_class_name.is_some() && spec.volume_attributes_class_name.is_none()
    {
        let path = Path::new("spec").child("volumeAttributesClassName");
        errors.forbidden(&path, "update from non-nil value to nil is forbidden");
    }
}
