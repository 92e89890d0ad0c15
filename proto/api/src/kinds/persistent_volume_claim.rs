//! PersistentVolumeClaim: what somebody asks for of storage.

mod row;
mod status;
mod update;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus,
    TypedLocalObjectReference, TypedObjectReference,
};

use super::persistent_volume::{
    CLASS_ANNOTATION, CLASS_WARNING, PENDING, fill, has_class_annotation,
};
use super::pod_spec;
use super::table::Printer;
use crate::field::{ErrorList, Path};
use crate::kind::{Kind, Parts, StaticInfo};
use crate::parts;

/// The finalizer of claims that pods use.
pub const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// See [`PersistentVolumeClaim`].
pub struct PersistentVolumeClaimKind;

fn empty() -> &'static PersistentVolumeClaimSpec {
    static EMPTY: std::sync::OnceLock<PersistentVolumeClaimSpec> = std::sync::OnceLock::new();
    EMPTY.get_or_init(PersistentVolumeClaimSpec::default)
}

/// Whether a claim can be filled from this by the older of both fields.
fn is_claim_or_snapshot(source: &TypedLocalObjectReference) -> bool {
    let group = source.api_group.as_deref().unwrap_or_default();
    matches!(
        (group, source.kind.as_str()),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    )
}

/// Lets both fields for what a claim is filled from say the same, as far as they can.
fn settle_sources(spec: &mut PersistentVolumeClaimSpec, old: Option<&PersistentVolumeClaimSpec>) {
    let elsewhere = |reference: &TypedObjectReference| {
        let namespace = reference.namespace.as_deref().unwrap_or_default();
        !namespace.is_empty()
    };
    // Other namespaces are behind a gate in Kubernetes, which is closed.
    if spec.data_source_ref.as_ref().is_some_and(elsewhere)
        && old.is_none_or(|old| old.data_source_ref.is_none())
    {
        spec.data_source_ref = None;
    }
    let was_filled =
        old.is_some_and(|old| old.data_source.is_some() || old.data_source_ref.is_some());
    if !was_filled
        && spec.data_source_ref.is_none()
        && spec
            .data_source
            .as_ref()
            .is_some_and(|source| !is_claim_or_snapshot(source))
    {
        spec.data_source = None;
    }
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
                namespace: None,
            });
        }
        (None, Some(reference)) if !elsewhere(reference) => {
            spec.data_source = Some(TypedLocalObjectReference {
                api_group: reference.api_group.clone(),
                kind: reference.kind.clone(),
                name: reference.name.clone(),
            });
        }
        _ => {}
    }
}

/// The classes of attributes that a claim's volume has, is to have, or is on the way to.
pub fn classes_of_attributes(claim: &PersistentVolumeClaim) -> BTreeSet<&str> {
    let (spec, status) = (claim.spec.as_ref(), claim.status.as_ref());
    let target = status.and_then(|status| status.modify_volume_status.as_ref());
    let named = [
        spec.and_then(|spec| spec.volume_attributes_class_name.as_deref()),
        status.and_then(|status| status.current_volume_attributes_class_name.as_deref()),
        target.and_then(|target| target.target_volume_attributes_class_name.as_deref()),
    ];
    let named = named.into_iter().flatten();
    named.filter(|name| !name.is_empty()).collect()
}

impl Kind for PersistentVolumeClaimKind {
    type Object = PersistentVolumeClaim;

    const INFO: StaticInfo = StaticInfo {
        group: "",
        version: "v1",
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        categories: &[],
        namespaced: true,
        has_status: true,
        has_scale: false,
        has_generation: false,
        create_on_update: false,
    };

    const PARTS: Parts<PersistentVolumeClaim> = parts!(PersistentVolumeClaim: spec, status);

    fn default(object: &mut PersistentVolumeClaim) {
        let status = object.status.get_or_insert_default();
        fill(&mut status.phase, PENDING);
        let spec = object.spec.get_or_insert_default();
        spec.volume_mode
            .get_or_insert_with(|| "Filesystem".to_owned());
    }

    fn prepare_create(object: &mut PersistentVolumeClaim) {
        object.status = Some(PersistentVolumeClaimStatus {
            phase: Some(PENDING.to_owned()),
            ..PersistentVolumeClaimStatus::default()
        });
        if let Some(spec) = &mut object.spec {
            settle_sources(spec, None);
        }
    }

    fn validate(object: &PersistentVolumeClaim, errors: &mut ErrorList) {
        let spec = object.spec.as_ref().unwrap_or(empty());
        pod_spec::check_claim_spec(spec, true, &Path::new("spec"), errors);
    }

    fn prepare_update(new: &mut PersistentVolumeClaim, old: &PersistentVolumeClaim) {
        if let Some(spec) = &mut new.spec {
            settle_sources(spec, Some(old.spec.as_ref().unwrap_or(empty())));
        }
    }

    fn validate_update(
        new: &PersistentVolumeClaim,
        old: &PersistentVolumeClaim,
        errors: &mut ErrorList,
    ) {
        update::validate(new, old, errors);
    }

    fn validate_status_update(
        new: &PersistentVolumeClaim,
        _old: &PersistentVolumeClaim,
        errors: &mut ErrorList,
    ) {
        status::validate(new, errors);
    }

    fn warnings(new: &PersistentVolumeClaim, _old: Option<&PersistentVolumeClaim>) -> Vec<String> {
        let mut warnings = Vec::new();
        if has_class_annotation(&new.metadata) {
            warnings.push(format!(
                "metadata.annotations[{CLASS_ANNOTATION}]: {CLASS_WARNING}"
            ));
        }
        let spec = new.spec.as_ref().unwrap_or(empty());
        warnings.extend(pod_spec::claim_warnings(spec, &Path::new("spec")));
        warnings
    }

    fn printer() -> Printer<PersistentVolumeClaim> {
        row::printer()
    }
}

#[cfg(test)]
mod tests;
