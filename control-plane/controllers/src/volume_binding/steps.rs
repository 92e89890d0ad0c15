//! What is written, one write after the other: each is worked out from what is there, so that whatever was lost between two of
//! them is done by the next who looks.
//!
//! A claim and its volume come together in four writes: the volume names the claim and is `Bound`, then the claim names the
//! volume and is `Bound`. All are merge patches that fail where the object has changed meanwhile.

use gantry_api::json::Members as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::index::volume_of;
use super::matching::{claim_uid, claimant, is_for, phase_of_volume};

/// On a claim, from when it and its volume know of each other.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On what names the other because it was chosen here.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume that was made for a claim, by whom.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a volume that something else than its kind says looks after.
const MIGRATED_TO: &str = "pv.kubernetes.io/migrated-to";

pub(super) const AVAILABLE: &str = "Available";
pub(super) const BOUND: &str = "Bound";
pub(super) const RELEASED: &str = "Released";
pub(super) const FAILED: &str = "Failed";
const PENDING: &str = "Pending";
const LOST: &str = "Lost";

/// What an event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) is_warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Told {
    pub(super) fn normal(reason: &'static str, message: String) -> Self {
        Self {
            is_warning: false,
            reason,
            message,
        }
    }

    pub(super) fn warning(reason: &'static str, message: String) -> Self {
        Self {
            is_warning: true,
            reason,
            message,
        }
    }
}

/// A patch, and of what.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    Volume(Value),
    VolumeStatus(Value),
    Claim(Value),
    ClaimStatus(Value),
}

fn annotation<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    let annotations = metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(name))
        .map(String::as_str)
}

/// Whether the claim and its volume have known of each other.
pub(super) fn is_complete(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

pub(super) fn is_provisioned(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY).is_some()
}

/// The next write by which the claim gets the volume; none when it has it, and none when the volume is another's.
pub(super) fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Write> {
    if claimant(volume).is_some() && !is_for(volume, claim) {
        return None;
    }
    let first = name_claim(volume, claim).map(Write::Volume);
    first
        .or_else(|| phase(volume, BOUND, None).map(Write::VolumeStatus))
        .or_else(|| name_volume(claim, volume).map(Write::Claim))
        .or_else(|| be_bound(claim, volume).map(Write::ClaimStatus))
}

fn name_claim(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Value> {
    let metadata = &claim.metadata;
    let reference = claimant(volume);
    if reference.is_some_and(|reference| claim_uid(reference) == metadata.uid.as_deref()) {
        return None;
    }
    // Who names a claim by its name alone wants it to be that one.
    let annotations = reference
        .is_none()
        .then(|| json!({BOUND_BY_CONTROLLER: "yes"}));
    let mut patch = json!({
        "metadata": {"resourceVersion": volume.metadata.resource_version},
        "spec": {"claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": metadata.namespace,
            "name": metadata.name,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
        }},
    });
    if let Some(annotations) = annotations {
        *patch.member(&["metadata", "annotations"]) = annotations;
    }
    Some(patch)
}

/// The volume is in that phase; for the reason, if there is one to be told.
pub(super) fn phase(
    volume: &PersistentVolume,
    phase: &str,
    message: Option<&str>,
) -> Option<Value> {
    if phase_of_volume(volume) == phase {
        return None;
    }
    Some(json!({
        "metadata": {"resourceVersion": volume.metadata.resource_version},
        "status": {"phase": phase, "message": message},
    }))
}

fn name_volume(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Value> {
    let name = volume.metadata.name.as_deref();
    let names_it = volume_of(claim) == name;
    if names_it && is_complete(claim) {
        return None;
    }
    let mut patch = json!({"metadata": {
        "resourceVersion": claim.metadata.resource_version,
        "annotations": {BIND_COMPLETED: "yes"},
    }});
    if !names_it {
        *patch.member(&["metadata", "annotations", BOUND_BY_CONTROLLER]) = json!("yes");
        *patch.member(&["spec"]) = json!({"volumeName": name});
    }
    Some(patch)
}

fn be_bound(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Value> {
    let spec = volume.spec.as_ref();
    let modes = spec.and_then(|spec| spec.access_modes.as_ref());
    let status = claim.status.as_ref();
    let becomes = status.and_then(|status| status.phase.as_deref()) != Some(BOUND);
    if !becomes && status.and_then(|status| status.access_modes.as_ref()) == modes {
        return None;
    }
    let mut patch = json!({
        "metadata": {"resourceVersion": claim.metadata.resource_version},
        "status": {"phase": BOUND, "accessModes": modes},
    });
    // Of one that was bound before, somebody else may know better how much there is of it.
    if becomes {
        *patch.member(&["status", "capacity"]) = json!(spec.map(|spec| &spec.capacity));
        let attributes = spec.and_then(|spec| spec.volume_attributes_class_name.as_ref());
        if let Some(attributes) = attributes {
            *patch.member(&["status", "currentVolumeAttributesClassName"]) = json!(attributes);
        }
    }
    Some(patch)
}

fn without_volume(claim: &PersistentVolumeClaim, phase: &str) -> Option<Value> {
    let status = claim.status.as_ref();
    let is_so = status.is_some_and(|status| {
        status.phase.as_deref() == Some(phase)
            && status.access_modes.is_none()
            && status.capacity.is_none()
    });
    (!is_so).then(|| {
        json!({
            "metadata": {"resourceVersion": claim.metadata.resource_version},
            "status": {"phase": phase, "accessModes": null, "capacity": null},
        })
    })
}

/// The claim waits for a volume.
pub(super) fn wait(claim: &PersistentVolumeClaim) -> Option<Value> {
    without_volume(claim, PENDING)
}

/// The claim has lost its volume; nothing where it is known to have.
pub(super) fn lose(claim: &PersistentVolumeClaim) -> Option<Value> {
    let status = claim.status.as_ref();
    let is_lost = status.and_then(|status| status.phase.as_deref()) == Some(LOST);
    without_volume(claim, LOST).filter(|_| !is_lost)
}

/// The volume is the claim's no more: it is anybody's where it was chosen here, and the claim's by its name where somebody else
/// had named that.
pub(super) fn unbind(volume: &PersistentVolume) -> Option<Value> {
    let reference = claimant(volume)?;
    let version = &volume.metadata.resource_version;
    if annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some() {
        return Some(json!({
            "metadata": {"resourceVersion": version, "annotations": {BOUND_BY_CONTROLLER: null}},
            "spec": {"claimRef": null},
        }));
    }
    claim_uid(reference).map(|_| {
        json!({
            "metadata": {"resourceVersion": version},
            "spec": {"claimRef": {"uid": null}},
        })
    })
}

/// What is next for a volume whose claim is gone: its new phase, and what there is to be told.
pub(super) fn release(volume: &PersistentVolume) -> Option<(Value, Option<Told>)> {
    let current = phase_of_volume(volume);
    if current != RELEASED && current != FAILED {
        return phase(volume, RELEASED, None).map(|patch| (patch, None));
    }
    let told = reclaim(volume)?;
    let patch = phase(volume, FAILED, Some(&told.message))?;
    Some((patch, Some(told)))
}

/// Why what the volume's policy asks for cannot be done; none where there is nothing to do, or where it is somebody else's to do.
fn reclaim(volume: &PersistentVolume) -> Option<Told> {
    let spec = volume.spec.as_ref()?;
    match spec.persistent_volume_reclaim_policy.as_deref() {
        None | Some("Retain") => None,
        Some("Recycle") => {
            let message = "No recycler plugin found for the volume!".to_owned();
            Some(Told::warning("VolumeFailedRecycle", message))
        }
        Some("Delete") => {
            let why = cannot_delete(volume)?;
            Some(Told::warning("VolumeFailedDelete", why))
        }
        Some(_) => {
            let message = "Volume has unrecognized PersistentVolumeReclaimPolicy".to_owned();
            Some(Told::warning("VolumeUnknownReclaimPolicy", message))
        }
    }
}

fn cannot_delete(volume: &PersistentVolume) -> Option<String> {
    let provisioner = annotation(&volume.metadata, PROVISIONED_BY);
    if let Some(provisioner) = provisioner.filter(|name| !name.is_empty()) {
        let is_kubernetes_own = provisioner.starts_with("kubernetes.io/");
        return is_kubernetes_own.then(|| format!("no volume plugin matched name: {provisioner}"));
    }
    let spec = volume.spec.as_ref()?;
    if annotation(&volume.metadata, MIGRATED_TO).is_some() || spec.csi.is_some() {
        return None;
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    Some(format!(
        "error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"
    ))
}
