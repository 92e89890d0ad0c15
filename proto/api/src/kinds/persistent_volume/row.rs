//! What tables show of a volume, and what they show of claims in the same way.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, PersistentVolumeStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::CLASS_ANNOTATION;
use crate::kinds::table::{self, Printer};
use crate::quantity::Quantity;

/// Shown of what may be unset.
const UNSET: &str = "<unset>";

/// Ways of mounting in short, each once, in the order that Kubernetes has for them.
pub(in crate::kinds) fn access_modes(modes: Option<&Vec<String>>) -> String {
    let short = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| modes.is_some_and(|modes| modes.iter().any(|given| given == mode));
    let shown = short.into_iter().filter(|(mode, _)| has(mode));
    let shown: Vec<&str> = shown.map(|(_, short)| short).collect();
    shown.join(",")
}

/// Whether an annotation, of before there was a field for it, names a class.
pub fn has_class_annotation(metadata: &ObjectMeta) -> bool {
    let annotations = metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(CLASS_ANNOTATION))
}

/// The class of a volume or a claim: the annotation's before the field's.
pub fn class(metadata: &ObjectMeta, field: Option<&String>) -> String {
    let annotations = metadata.annotations.as_ref();
    let annotated = annotations.and_then(|annotations| annotations.get(CLASS_ANNOTATION));
    annotated.or(field).cloned().unwrap_or_default()
}

/// How much storage there is.
pub(in crate::kinds) fn storage(amounts: Option<&BTreeMap<String, ApiQuantity>>) -> String {
    let amount = amounts.and_then(|amounts| amounts.get("storage"));
    let amount = amount.and_then(|amount| amount.0.parse::<Quantity>().ok());
    amount.unwrap_or_default().to_string()
}

/// The phase, of what is not about to go.
pub(in crate::kinds) fn phase(metadata: &ObjectMeta, phase: Option<&String>) -> String {
    match &metadata.deletion_timestamp {
        Some(_) => "Terminating".to_owned(),
        None => phase.cloned().unwrap_or_default(),
    }
}

/// A field that may be unset.
pub(in crate::kinds) fn or_unset(field: Option<&String>) -> Value {
    json!(field.map_or(UNSET, String::as_str))
}

fn cells(object: &PersistentVolume) -> [Value; 8] {
    let empty = PersistentVolumeSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&empty);
    let status = object.status.as_ref();
    let claim = spec.claim_ref.as_ref().map(|claim| {
        let namespace = claim.namespace.as_deref().unwrap_or_default();
        let name = claim.name.as_deref().unwrap_or_default();
        format!("{namespace}/{name}")
    });
    let policy = spec.persistent_volume_reclaim_policy.as_deref();
    let reason = status.and_then(|status| status.reason.as_deref());
    [
        json!(storage(spec.capacity.as_ref())),
        json!(access_modes(spec.access_modes.as_ref())),
        json!(policy.unwrap_or_default()),
        json!(phase(
            &object.metadata,
            status.and_then(|status| status.phase.as_ref())
        )),
        json!(claim.unwrap_or_default()),
        json!(class(&object.metadata, spec.storage_class_name.as_ref())),
        or_unset(spec.volume_attributes_class_name.as_ref()),
        json!(reason.unwrap_or_default()),
    ]
}

pub(super) fn printer() -> Printer<PersistentVolume> {
    let spec = |name, field| {
        let description = table::field_doc::<PersistentVolumeSpec>(field);
        table::column(name, "string", description, 0)
    };
    let status = |name, field| {
        let description = table::field_doc::<PersistentVolumeStatus>(field);
        table::column(name, "string", description, 0)
    };
    let mode = table::field_doc::<PersistentVolumeSpec>("volumeMode");
    Printer::<PersistentVolume>::named()
        .columns(
            [
                spec("Capacity", "capacity"),
                spec("Access Modes", "accessModes"),
                spec("Reclaim Policy", "persistentVolumeReclaimPolicy"),
                status("Status", "phase"),
                spec("Claim", "claimRef"),
                table::column("StorageClass", "string", "StorageClass of the pv", 0),
                table::column(
                    "VolumeAttributesClass",
                    "string",
                    "VolumeAttributesClass of the pv",
                    0,
                ),
                status("Reason", "reason"),
            ],
            |object, _| cells(object),
        )
        .age()
        .column(table::column("VolumeMode", "string", mode, 1), |object| {
            let spec = object.spec.as_ref();
            or_unset(spec.and_then(|spec| spec.volume_mode.as_ref()))
        })
}
