//! Volumes and claims: they stay while somebody uses them, and grow only where there is somebody to make them larger.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::kinds::{persistent_volume, persistent_volume_claim};
use gantry_api::quantity::Quantity;
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::plugin::{Attributes, Operation, Plugin};

const VOLUME: &str = "PersistentVolume";
const CLAIM: &str = "PersistentVolumeClaim";
const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Gives new ones the finalizer that a controller takes off again when nobody uses them.
pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.creates("", VOLUME) || attributes.creates("", CLAIM)
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let protection = match attributes.creates("", CLAIM) {
            true => persistent_volume_claim::PROTECTION,
            false => persistent_volume::PROTECTION,
        };
        let finalizers = draft.metadata_mut().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|known| known == protection) {
            finalizers.push(protection.to_owned());
        }
        Ok(())
    }
}

/// Notes when the phase of a volume changed, where the client does not say. Kubernetes does it where it stores them.
pub(super) struct PhaseTransitions;

#[async_trait]
impl Plugin for PhaseTransitions {
    fn name(&self) -> &'static str {
        "PhaseTransitions"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", VOLUME)
            && attributes.subresource() == "status"
            && attributes.operation == Operation::Update
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let old = draft.typed_old::<PersistentVolume>();
        let old = old.and_then(|volume| volume.status.clone());
        let old = old.unwrap_or_default();
        let new = draft.typed_mut::<PersistentVolume>();
        let Some(status) = new.and_then(|volume| volume.status.as_mut()) else {
            return Ok(());
        };
        let at = &mut status.last_phase_transition_time;
        if status.phase != old.phase && (at.is_none() || *at == old.last_phase_transition_time) {
            let seconds = attributes.context.api.clock.now() / NANOS_PER_SECOND;
            *at = Timestamp::from_second(seconds).ok().map(Time);
        }
        Ok(())
    }
}

/// Refuses claims that ask for more than before: no class of storage that could give it is served.
pub(super) struct PersistentVolumeClaimResize;

fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let storage = requests.and_then(|requests| requests.get("storage"));
    let storage = storage.and_then(|storage| storage.0.parse().ok());
    storage.unwrap_or_default()
}

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.writes("", CLAIM) && attributes.operation == Operation::Update
    }

    fn validate(
        &self,
        attributes: &Attributes<'_>,
        draft: &dyn Draft,
    ) -> Result<Vec<String>, StatusError> {
        let (Some(new), Some(old)) = (
            draft.typed::<PersistentVolumeClaim>(),
            draft.typed_old::<PersistentVolumeClaim>(),
        ) else {
            return Ok(Vec::new());
        };
        if requested(new) <= requested(old) {
            return Ok(Vec::new());
        }
        let phase = old
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let why = match phase {
            Some("Bound") => {
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"
            }
            _ => "Only bound persistent volume claims can be expanded",
        };
        let name = new.metadata.name.as_deref().unwrap_or_default();
        Err(StatusError::forbidden(attributes.info(), name, why))
    }
}
