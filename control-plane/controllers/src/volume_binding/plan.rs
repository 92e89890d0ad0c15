//! What is to become of a claim or a volume, by Kubernetes' rules and in its words. Nothing is done here.

use std::sync::Arc;

use gantry_informer::Key;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::index::volume_of;
use super::matching::{
    best, check_named, claim_key, claim_uid, claimant, class_of_claim, class_of_volume, is_for,
    mode_of_claim, mode_of_volume, suits,
};
use super::steps::{Told, is_complete, is_provisioned};

pub(super) const MISMATCH: &str = "VolumeMismatch";

/// The volumes and claims that there are.
pub(super) trait Storage {
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    /// The volumes that are the claim's, or will be, as far as they go by its name.
    fn reserved(&self, claim: &Key) -> Vec<Arc<PersistentVolume>>;
    /// The volumes of a group that are nobody's.
    fn free(&self, group: &str) -> Vec<Arc<PersistentVolume>>;
    fn claim(&self, claim: &Key) -> Option<Arc<PersistentVolumeClaim>>;
    /// The claims that wait for any volume of the class.
    fn waiting(&self, class: &str) -> Vec<Arc<PersistentVolumeClaim>>;
}

/// What is to become of a claim.
#[derive(Debug)]
pub(super) enum ClaimPlan {
    /// It has the volume, or gets it.
    Bind(Arc<PersistentVolume>),
    /// It waits, and is told why.
    Wait(Option<Told>),
    /// It has lost its volume; this one, if it seems to be gone.
    Lost(Told, Option<String>),
    Nothing,
}

/// What is to become of a volume.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum VolumePlan {
    /// It is nobody's.
    Available,
    /// It is for the claim of that name, which does not have it yet.
    Reserved(Key),
    /// It is a claim's.
    Bound,
    /// It is this claim's, which has to be told.
    Finish(Key),
    /// It is a claim's that cannot have it: what is told of the volume, and of the claim.
    Unfit(Told, Key, Told),
    /// Its claim is gone: this one, if it only seems to be.
    Release(Option<Key>),
    /// Its claim has another.
    Unbind,
}

/// What is to become of the claim.
pub(super) fn claim(claim: &PersistentVolumeClaim, storage: &impl Storage) -> ClaimPlan {
    match (is_complete(claim), volume_of(claim)) {
        (true, volume) => bound_claim(claim, volume, storage),
        (false, Some(volume)) => choosy_claim(claim, volume, storage),
        (false, None) => any_volume(claim, storage),
    }
}

fn bound_claim(
    claim: &PersistentVolumeClaim,
    volume: Option<&str>,
    storage: &impl Storage,
) -> ClaimPlan {
    let lost = |reason, message: &str| Told::warning(reason, message.to_owned());
    let Some(name) = volume else {
        let message =
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return ClaimPlan::Lost(lost("ClaimLost", message), None);
    };
    let Some(volume) = storage.volume(name) else {
        let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return ClaimPlan::Lost(lost("ClaimLost", message), Some(name.to_owned()));
    };
    let is_its = claimant(&volume)
        .is_none_or(|reference| claim_uid(reference) == claim.metadata.uid.as_deref());
    if is_its {
        return ClaimPlan::Bind(volume);
    }
    let message = "Two claims are bound to the same volume, this one is bound incorrectly";
    ClaimPlan::Lost(lost("ClaimMisbound", message), None)
}

/// Of one that somebody wants to have a certain volume.
fn choosy_claim(claim: &PersistentVolumeClaim, name: &str, storage: &impl Storage) -> ClaimPlan {
    let Some(volume) = storage.volume(name) else {
        return ClaimPlan::Wait(None);
    };
    if is_for(&volume, claim) {
        return ClaimPlan::Bind(volume);
    }
    if claimant(&volume).is_some() {
        let message = format!("volume {name:?} already bound to a different claim.");
        return ClaimPlan::Wait(Some(Told::warning("FailedBinding", message)));
    }
    match check_named(&volume, claim) {
        Ok(()) => ClaimPlan::Bind(volume),
        Err(why) => {
            let message = format!("Cannot bind to requested volume {name:?}: {why}");
            ClaimPlan::Wait(Some(Told::warning(MISMATCH, message)))
        }
    }
}

fn any_volume(claim: &PersistentVolumeClaim, storage: &impl Storage) -> ClaimPlan {
    if claim.metadata.deletion_timestamp.is_some() {
        return ClaimPlan::Nothing;
    }
    let reserved = storage.reserved(&Key::of(&claim.metadata));
    if let Some(volume) = best(claim, reserved, |group| storage.free(group)) {
        return ClaimPlan::Bind(volume);
    }
    let class = class_of_claim(claim);
    ClaimPlan::Wait(Some(match class.is_empty() {
        true => {
            let message =
                "no persistent volumes available for this claim and no storage class is set";
            Told::normal("FailedBinding", message.to_owned())
        }
        // Classes of storage are not served, so there is none that could make a volume.
        false => {
            let message = format!("storageclass.storage.k8s.io {class:?} not found");
            Told::warning("ProvisioningFailed", message)
        }
    }))
}

/// What is to become of the volume.
pub(super) fn volume(volume: &PersistentVolume, storage: &impl Storage) -> VolumePlan {
    let Some(reference) = claimant(volume) else {
        return VolumePlan::Available;
    };
    let key = claim_key(reference);
    let Some(uid) = claim_uid(reference) else {
        return VolumePlan::Reserved(key);
    };
    let claim = storage.claim(&key);
    let claim = claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid));
    let Some(claim) = claim else {
        return VolumePlan::Release(Some(key));
    };
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    match volume_of(&claim) {
        Some(other) if other == name => VolumePlan::Bound,
        Some(_) if is_provisioned(volume) && is_to_be_deleted(volume) => VolumePlan::Release(None),
        Some(_) => VolumePlan::Unbind,
        None if mode_of_volume(volume) != mode_of_claim(&claim) => {
            let of_volume = format!(
                "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
                &*key.name
            );
            let of_claim = format!(
                "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
            );
            let of_volume = Told::warning(MISMATCH, of_volume);
            VolumePlan::Unfit(of_volume, key, Told::warning(MISMATCH, of_claim))
        }
        None => VolumePlan::Finish(key),
    }
}

fn is_to_be_deleted(volume: &PersistentVolume) -> bool {
    let spec = volume.spec.as_ref();
    let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    policy == Some("Delete")
}

/// The claim that has waited longest for a volume like this one, which is nobody's. It may get another.
pub(super) fn taker(
    volume: &PersistentVolume,
    storage: &impl Storage,
) -> Option<Arc<PersistentVolumeClaim>> {
    let waiting = storage.waiting(&class_of_volume(volume)).into_iter();
    let willing = waiting.filter(|claim| suits(volume, claim));
    willing.min_by_key(|claim| {
        let since = claim.metadata.creation_timestamp.as_ref();
        (since.map(|time| time.0), Key::of(&claim.metadata))
    })
}
