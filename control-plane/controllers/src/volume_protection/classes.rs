//! Classes of volumes' attributes, which stay while a claim or a volume names them.

use gantry_api::kinds::persistent_volume_claim::classes_of_attributes;
use gantry_api::kinds::volume_attributes_class::PROTECTION;
use gantry_informer::{Informer, Informers, Key};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::Api;

use super::{Due, due, write};
use crate::context::Context;
use crate::error::Result;

/// Index: claims and volumes by the classes of attributes that they name.
const ATTRIBUTES: &str = "attributes";

#[derive(Clone)]
pub(super) struct Classes {
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

fn of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let classes = classes_of_attributes(claim).into_iter();
    classes.map(str::to_owned).collect()
}

fn of_volume(volume: &PersistentVolume) -> Vec<String> {
    let spec = volume.spec.as_ref();
    let class = spec.and_then(|spec| spec.volume_attributes_class_name.clone());
    class
        .into_iter()
        .filter(|class| !class.is_empty())
        .collect()
}

impl Classes {
    pub(super) fn of(
        informers: &Informers,
        claims: &Informer<PersistentVolumeClaim>,
        volumes: &Informer<PersistentVolume>,
    ) -> Self {
        Self {
            classes: informers.of(),
            claims: claims.clone().index(ATTRIBUTES, of_claim),
            volumes: volumes.clone().index(ATTRIBUTES, of_volume),
        }
    }

    /// Calls for every class that something may be due to.
    pub(super) fn follow(&self, look: impl Fn(Key) + Clone + Send + Sync + 'static) {
        let of_class = look.clone();
        self.classes.subscribe(Box::new(move |change| {
            if let Some(class) = change.new {
                of_class(Key::of(&class.metadata));
            }
        }));
        // What is named no more may go now.
        let let_go = move |before: Vec<String>, now: Vec<String>| {
            let gone = before.into_iter().filter(|class| !now.contains(class));
            gone.for_each(|class| look(Key::new("", &class)));
        };
        let of_claims = let_go.clone();
        self.claims.subscribe(Box::new(move |change| {
            if let Some(before) = change.old {
                let now = change.new.map(|claim| of_claim(claim));
                of_claims(of_claim(before), now.unwrap_or_default());
            }
        }));
        self.volumes.subscribe(Box::new(move |change| {
            if let Some(before) = change.old {
                let now = change.new.map(|volume| of_volume(volume));
                let_go(of_volume(before), now.unwrap_or_default());
            }
        }));
    }

    pub(super) async fn settle(&self, context: &Context, key: &Key) -> Result<()> {
        let Some(class) = self.classes.get(key) else {
            return Ok(());
        };
        let Some(due) = due(&class.metadata, PROTECTION) else {
            return Ok(());
        };
        let is_named = self.claims.count(ATTRIBUTES, &key.name) > 0
            || self.volumes.count(ATTRIBUTES, &key.name) > 0;
        if due == Due::Removing && is_named {
            return Ok(());
        }
        let api: Api<VolumeAttributesClass> = Api::all(context.client.clone());
        write(&api, &self.classes, (&class.metadata, PROTECTION), due).await
    }
}
