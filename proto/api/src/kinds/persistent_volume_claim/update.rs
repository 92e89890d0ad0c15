//! What may change in a claim once it exists: what it is bound to, once, and how much it asks for while it is bound.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec};

use super::empty;
use crate::field::{ErrorList, Path};
use crate::kinds::internal::Internal;
use crate::kinds::persistent_volume::CLASS_ANNOTATION;
use crate::kinds::{difference, pod_spec};
use crate::quantity::Quantity;

const STORAGE: &str = "storage";

fn internal(spec: &PersistentVolumeClaimSpec) -> Internal {
    Internal::of(spec, "PersistentVolumeClaimSpec")
}

fn annotated(claim: &PersistentVolumeClaim) -> Option<&String> {
    let annotations = claim.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(CLASS_ANNOTATION))
}

fn requested(spec: &PersistentVolumeClaimSpec) -> Quantity {
    let resources = spec.resources.as_ref();
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get(STORAGE));
    let storage = storage.and_then(|storage| storage.0.parse().ok());
    storage.unwrap_or_default()
}

/// Takes over from the old spec, or from the new one, what may differ between them.
fn keep_what_may_change(
    now: &mut PersistentVolumeClaimSpec,
    then: &mut PersistentVolumeClaimSpec,
    is_bound: bool,
) {
    if then.volume_name.as_deref().unwrap_or_default().is_empty() {
        then.volume_name.clone_from(&now.volume_name);
    }
    if !is_bound {
        return;
    }
    let old = then.resources.as_ref();
    let old = old.and_then(|resources| resources.requests.as_ref()?.get(STORAGE));
    let requests = now.resources.as_mut();
    if let (Some(requests), Some(old)) = (
        requests.and_then(|resources| resources.requests.as_mut()),
        old,
    ) {
        requests.insert(STORAGE.to_owned(), old.clone());
    }
    if now.volume_attributes_class_name.is_some() {
        now.volume_attributes_class_name
            .clone_from(&then.volume_attributes_class_name);
    }
}

/// Lets a class move from the annotation to the field, and a claim without one get one.
fn keep_class(
    (new, now): (&PersistentVolumeClaim, &mut PersistentVolumeClaimSpec),
    (old, then): (&PersistentVolumeClaim, &PersistentVolumeClaimSpec),
    errors: &mut ErrorList,
) {
    let (annotation, before) = (annotated(new), annotated(old));
    let had_none = then.storage_class_name.is_none();
    let class = now.storage_class_name.as_ref();
    if had_none
        && before.is_some()
        && class == before
        && annotation.is_none_or(|annotation| Some(annotation) == before)
    {
        now.storage_class_name = None;
        return;
    }
    let text = |annotation: Option<&String>| annotation.cloned().unwrap_or_default();
    if text(annotation) != text(before) {
        let path = Path::new("metadata").child("annotations");
        let path = path.child(CLASS_ANNOTATION);
        errors.invalid(&path, text(annotation), "field is immutable");
    }
    if had_none && class.is_some() && before.is_none_or(|before| class == Some(before)) {
        now.storage_class_name = None;
    }
}

fn check_sizes(
    claim: &PersistentVolumeClaim,
    now: &PersistentVolumeClaimSpec,
    then: &PersistentVolumeClaimSpec,
    errors: &mut ErrorList,
) {
    if requested(now) >= requested(then) {
        return;
    }
    let status = claim.status.as_ref();
    let capacity = status.and_then(|status| status.capacity.as_ref()?.get(STORAGE));
    let capacity = capacity.and_then(|capacity| capacity.0.parse::<Quantity>().ok());
    if requested(now) <= capacity.unwrap_or_default() {
        let path = Path::new("spec").child("resources").child("requests");
        let detail = "field can not be less than status.capacity";
        errors.forbidden(&path.child(STORAGE), detail);
    }
}

/// Checks an update of a claim.
pub(super) fn validate(
    new: &PersistentVolumeClaim,
    old: &PersistentVolumeClaim,
    errors: &mut ErrorList,
) {
    let spec = new.spec.as_ref().unwrap_or(empty());
    let before = old.spec.as_ref().unwrap_or(empty());
    let path = Path::new("spec");
    let source = before.data_source.as_ref();
    let reference = before.data_source_ref.as_ref();
    let had_group = source.is_some_and(|source| source.api_group.is_some())
        || reference.is_some_and(|reference| reference.api_group.is_some());
    // Kubernetes does so, too, and tells of both.
    for _ in 0..2 {
        pod_spec::check_claim_spec(spec, !had_group, &path, errors);
    }
    let (mut now, mut then) = (spec.clone(), before.clone());
    let phase = new
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    keep_class((new, &mut now), (old, &then), errors);
    keep_what_may_change(&mut now, &mut then, phase == Some("Bound"));
    let (now, then) = (internal(&now), internal(&then));
    if now != then {
        let difference = difference::unified(&then.lines(), &now.lines());
        let detail = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{difference}"
        );
        errors.forbidden(&path, &detail);
    }
    check_sizes(old, spec, before, errors);
    if spec.volume_mode != before.volume_mode {
        let path = Path::new("volumeMode");
        errors.invalid(&path, &spec.volume_mode, "field is immutable");
    }
    if before.volume_attributes_class_name.is_some() {
        let what = match spec.volume_attributes_class_name.as_deref() {
            None => "nil",
            Some("") => "an empty string",
            Some(_) => return,
        };
        if spec.volume_attributes_class_name != before.volume_attributes_class_name {
            let detail = format!("update from non-nil value to {what} is forbidden");
            errors.forbidden(&path.child("volumeAttributesClassName"), &detail);
        }
    }
}
