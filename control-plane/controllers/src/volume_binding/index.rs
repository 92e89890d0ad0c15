//! How the caches find the volumes that a claim may get, and the claims that a volume matters to.

use gantry_informer::Key;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::matching::{
    Access, claim_key, claimant, class_of_claim, class_of_volume, mode_of_claim, mode_of_volume,
    phase_of_volume,
};
use super::steps::{AVAILABLE, is_complete};

/// Index of volumes: those that are nobody's, by what they are: see [`Groups`].
pub(super) const FREE: &str = "free";
/// Index of volumes: those that are a claim's, or will be, by the claim.
pub(super) const RESERVED: &str = "reserved";
/// Index of claims: those that wait for any volume, by its class.
pub(super) const WAITING: &str = "waiting for a volume";
/// Index of claims: those that name a volume, by it.
pub(super) const NAMING: &str = "naming a volume";

/// Volumes of one class and mode, in groups by their ways of access.
pub(super) struct Groups {
    class: String,
    mode: String,
}

impl Groups {
    pub(super) fn of_claim(claim: &PersistentVolumeClaim) -> Self {
        Self {
            class: class_of_claim(claim),
            mode: mode_of_claim(claim).to_owned(),
        }
    }

    /// The value by which the group's volumes are found.
    pub(super) fn with(&self, access: Access) -> String {
        format!("{:x}/{}/{}", access.bits(), self.mode, self.class)
    }
}

pub(super) fn free(volume: &PersistentVolume) -> Vec<String> {
    let is_free = claimant(volume).is_none()
        && volume.metadata.deletion_timestamp.is_none()
        && phase_of_volume(volume) == AVAILABLE;
    if !is_free {
        return Vec::new();
    }
    let groups = Groups {
        class: class_of_volume(volume),
        mode: mode_of_volume(volume).to_owned(),
    };
    vec![groups.with(Access::of_volume(volume))]
}

pub(super) fn reserved(volume: &PersistentVolume) -> Vec<String> {
    let claim = claimant(volume).map(|reference| claim_key(reference).to_string());
    claim.into_iter().collect()
}

pub(super) fn waiting(claim: &PersistentVolumeClaim) -> Vec<String> {
    let waits = volume_of(claim).is_none()
        && !is_complete(claim)
        && claim.metadata.deletion_timestamp.is_none();
    waits.then(|| class_of_claim(claim)).into_iter().collect()
}

pub(super) fn naming(claim: &PersistentVolumeClaim) -> Vec<String> {
    volume_of(claim).map(str::to_owned).into_iter().collect()
}

/// The volume that a claim names.
pub(super) fn volume_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref()?;
    let volume = spec.volume_name.as_deref();
    volume.filter(|volume| !volume.is_empty())
}

/// The key of a volume.
pub(super) fn volume_key(name: &str) -> Key {
    Key::new("", name)
}
