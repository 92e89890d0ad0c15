//! What tables show of a claim.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus,
};
use serde_json::{Value, json};

use super::empty;
use crate::kinds::persistent_volume::{access_modes, class, or_unset, phase, storage};
use crate::kinds::table::{self, Printer};

fn cells(object: &PersistentVolumeClaim) -> [Value; 6] {
    let spec = object.spec.as_ref().unwrap_or(empty());
    let status = object.status.as_ref();
    let volume = spec.volume_name.as_deref().unwrap_or_default();
    let (capacity, modes) = match volume {
        "" => (String::new(), String::new()),
        _ => (
            storage(status.and_then(|status| status.capacity.as_ref())),
            access_modes(status.and_then(|status| status.access_modes.as_ref())),
        ),
    };
    let phase = phase(
        &object.metadata,
        status.and_then(|status| status.phase.as_ref()),
    );
    [
        json!(phase),
        json!(volume),
        json!(capacity),
        json!(modes),
        json!(class(&object.metadata, spec.storage_class_name.as_ref())),
        or_unset(spec.volume_attributes_class_name.as_ref()),
    ]
}

pub(super) fn printer() -> Printer<PersistentVolumeClaim> {
    let status = |name, field| {
        let description = table::field_doc::<PersistentVolumeClaimStatus>(field);
        table::column(name, "string", description, 0)
    };
    let volume = table::field_doc::<PersistentVolumeClaimSpec>("volumeName");
    let mode = table::field_doc::<PersistentVolumeClaimSpec>("volumeMode");
    Printer::<PersistentVolumeClaim>::named()
        .columns(
            [
                status("Status", "phase"),
                table::column("Volume", "string", volume, 0),
                status("Capacity", "capacity"),
                status("Access Modes", "accessModes"),
                table::column("StorageClass", "string", "StorageClass of the pvc", 0),
                table::column(
                    "VolumeAttributesClass",
                    "string",
                    "VolumeAttributesClass of the pvc",
                    0,
                ),
            ],
            |object, _| cells(object),
        )
        .age()
        .column(table::column("VolumeMode", "string", mode, 1), |object| {
            let spec = object.spec.as_ref();
            or_unset(spec.and_then(|spec| spec.volume_mode.as_ref()))
        })
}
