//! What a claim's status must say.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::field::{ErrorList, Path};
use crate::kinds::pod_spec;
use crate::names;
use crate::quantity::Quantity;

const STORAGE: &str = "storage";

/// How far the growing of a volume is.
const RESIZING: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

/// Checks an amount; answers whether it can be one. What is none was refused when the object was decoded.
fn check_amount(amount: &ApiQuantity, path: &Path, errors: &mut ErrorList) -> bool {
    let units = amount.0.parse::<Quantity>().map(|amount| amount.units());
    match units {
        Ok(units) if units < 0 => {
            errors.invalid(path, units, "must be a valid resource quantity");
            false
        }
        _ => true,
    }
}

/// Checks what is counted: of Kubernetes' own resources storage alone.
fn check_resource(resource: &str, path: &Path, errors: &mut ErrorList) -> bool {
    let details = names::qualified_name(resource);
    let is_native = !resource.contains('/') || resource.contains("kubernetes.io/");
    let is_known = !is_native || resource == STORAGE;
    let is_good = details.is_empty() && is_known;
    if details.is_empty() && !is_known {
        errors.not_supported(path, resource, &[STORAGE]);
    }
    errors.invalid_each(path, resource, details);
    is_good
}

/// Checks the status of a claim.
pub(super) fn validate(object: &PersistentVolumeClaim, errors: &mut ErrorList) {
    let modes = object
        .spec
        .as_ref()
        .and_then(|spec| spec.access_modes.as_ref());
    if modes.is_none_or(Vec::is_empty) {
        errors.required(&Path::new("Spec").child("accessModes"), "");
    }
    let Some(status) = &object.status else {
        return;
    };
    let path = Path::new("status");
    for (resource, amount) in status.capacity.iter().flatten() {
        check_amount(amount, &path.child("capacity").key(resource), errors);
    }
    let resizing_path = path.child("allocatedResourceStatus");
    for (resource, state) in status.allocated_resource_statuses.iter().flatten() {
        check_resource(resource, &resizing_path, errors);
        if !RESIZING.contains(&state.as_str()) {
            errors.not_supported(&resizing_path, resource, &RESIZING);
        }
    }
    let allocated_path = path.child("allocatedResources");
    for (resource, amount) in status.allocated_resources.iter().flatten() {
        let path = allocated_path.key(resource);
        if check_resource(resource, &allocated_path, errors) && check_amount(amount, &path, errors)
        {
            pod_spec::check_amount(STORAGE, amount, &path, errors);
        }
    }
}
