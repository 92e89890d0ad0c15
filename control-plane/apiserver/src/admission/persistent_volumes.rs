//! Volumes, claims and their classes: they stay while somebody uses them, and grow only where there is somebody to make them larger.

use async_trait::async_trait;
use gantry_api::kind::Draft;
use gantry_api::kinds::{
    persistent_volume, persistent_volume_claim, storage_class, volume_attributes_class,
};
use gantry_api::quantity::Quantity;
use gantry_api::status::StatusError;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::plugin::{Attributes, Operation, Plugin, stored};
use super::view::{View, newest};
use crate::tables::table;

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
        protection(attributes).is_some()
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let Some(protection) = protection(attributes) else {
            return Ok(());
        };
        let finalizers = draft.metadata_mut().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|known| known == protection) {
            finalizers.push(protection.to_owned());
        }
        Ok(())
    }
}

/// The finalizer of what is created, if it gets one.
fn protection(attributes: &Attributes<'_>) -> Option<&'static str> {
    let kinds = [
        ("", VOLUME, persistent_volume::PROTECTION),
        ("", CLAIM, persistent_volume_claim::PROTECTION),
        (
            storage_class::GROUP,
            "VolumeAttributesClass",
            volume_attributes_class::PROTECTION,
        ),
    ];
    let mut kinds = kinds.into_iter();
    let created = kinds.find(|(group, kind, _)| attributes.creates(group, kind));
    created.map(|(_, _, protection)| protection)
}

/// DefaultStorageClass: a claim that names no class gets the cluster's default one.
pub(super) struct DefaultStorageClass {
    /// Those that say that they are the default.
    defaults: View<StorageClass>,
}

impl Default for DefaultStorageClass {
    fn default() -> Self {
        let table = table(storage_class::GROUP, storage_class::PLURAL);
        Self {
            defaults: View::new(table, |class| storage_class::is_default(&class.metadata)),
        }
    }
}

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.creates("", CLAIM)
    }

    async fn admit(
        &self,
        attributes: &Attributes<'_>,
        draft: &mut dyn Draft,
    ) -> Result<(), StatusError> {
        let Some(claim) = draft.typed_mut::<PersistentVolumeClaim>() else {
            return Ok(());
        };
        if persistent_volume::has_class_annotation(&claim.metadata) {
            return Ok(());
        }
        let class = &mut claim.spec.get_or_insert_default().storage_class_name;
        if class.is_none() {
            let defaults = self.defaults.of(&attributes.context.api.store, "");
            *class = newest(defaults.iter().map(|class| &**class));
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

/// Refuses claims that ask for more than before, unless their class says that its volumes can grow.
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
        let named = new
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.as_ref());
        let class = persistent_volume::class(&new.metadata, named);
        let (group, plural) = (storage_class::GROUP, storage_class::PLURAL);
        let class = stored::<StorageClass>(attributes.context, group, plural, "", &class);
        let may_grow = class.is_some_and(|class| class.allow_volume_expansion == Some(true));
        let why = match phase {
            Some("Bound") if may_grow => return Ok(Vec::new()),
            Some("Bound") => {
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"
            }
            _ => "Only bound persistent volume claims can be expanded",
        };
        let name = new.metadata.name.as_deref().unwrap_or_default();
        Err(StatusError::forbidden(attributes.info(), name, why))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use crate::testing::{send, server};

    #[tokio::test]
    async fn a_claim_gets_the_newest_default_class_and_grows_where_its_class_lets_it() {
        let server = server().await;
        let classes = "/apis/storage.k8s.io/v1/storageclasses";
        let default = "storageclass.kubernetes.io/is-default-class";
        let class = |name: &str, is_default: &str| {
            json!({
                "metadata": {"name": name, "annotations": {default: is_default}},
                "provisioner": "example.com/p", "allowVolumeExpansion": true,
            })
        };
        let claims = "/api/v1/namespaces/default/persistentvolumeclaims";
        let claim = |name: &str, class: Value| {
            json!({"metadata": {"name": name}, "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": "1Gi"}}}})
        };
        let made = async |path: &str, object: Value| {
            let (status, made) = send(&server, Method::POST, path, object).await;
            assert_eq!(status, 201, "{made}");
            made["spec"]["storageClassName"].clone()
        };
        assert_eq!(
            made(claims, claim("before", Value::Null)).await,
            Value::Null
        );
        made(classes, class("b", "true")).await;
        made(classes, class("c", "false")).await;
        assert_eq!(made(claims, claim("a", Value::Null)).await, "b");
        assert_eq!(made(claims, claim("own", json!(""))).await, "");
        let grow = async |name: &str| {
            let path = format!("{claims}/{name}");
            let bound = json!({"status": {"phase": "Bound"}});
            let told = send(&server, Method::PATCH, &format!("{path}/status"), bound).await;
            assert_eq!(told.0, 200, "{}", told.1);
            let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
            send(&server, Method::PATCH, &path, more).await
        };
        let (status, told) = grow("a").await;
        assert_eq!(status, 200, "{told}");
        assert_eq!(grow("own").await.0, 403);
    }
}
