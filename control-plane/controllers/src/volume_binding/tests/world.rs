//! Volumes and claims as an API server keeps them, and what the controller would write of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_informer::Key;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::super::index::{free, reserved, volume_of, waiting};
use super::super::matching::{self, claim_uid, claimant};
use super::super::plan::{self, ClaimPlan, Storage, VolumePlan};
use super::super::steps::{self, AVAILABLE, BOUND, Write};

/// Volumes and claims as they are stored, and writes that are under way.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) volumes: BTreeMap<String, Value>,
    pub(super) claims: BTreeMap<String, Value>,
    revision: u64,
    pub(super) under_way: Vec<(Object, Write)>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    Volume(String),
    Claim(String),
}

pub(super) fn decoded<K: DeserializeOwned>(object: &Value) -> Arc<K> {
    Arc::new(serde_json::from_value(object.clone()).expect("an object of the kind"))
}

/// As RFC 7386 has it.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("it is one");
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

impl World {
    fn all<K: DeserializeOwned>(
        objects: &BTreeMap<String, Value>,
        values: fn(&K) -> Vec<String>,
        value: &str,
    ) -> Vec<Arc<K>> {
        let objects = objects.values().map(decoded::<K>);
        objects
            .filter(|object| values(object).iter().any(|own| own == value))
            .collect()
    }

    pub(super) fn with_volume(mut self, name: &str, more: &Value) -> Self {
        let mut volume = json!({
            "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"},
            "status": {"phase": "Available"},
        });
        merge(&mut volume, more);
        self.store(&Object::Volume(name.to_owned()), volume);
        self
    }

    pub(super) fn with_claim(mut self, name: &str, more: &Value) -> Self {
        let mut claim = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"},
        });
        merge(&mut claim, more);
        self.store(&Object::Claim(name.to_owned()), claim);
        self
    }

    fn objects(&mut self, about: &Object) -> (&mut BTreeMap<String, Value>, String) {
        match about {
            Object::Volume(name) => (&mut self.volumes, name.clone()),
            Object::Claim(name) => (&mut self.claims, name.clone()),
        }
    }

    fn store(&mut self, about: &Object, mut object: Value) {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let (objects, name) = self.objects(about);
        objects.insert(name, object);
    }

    /// Does a write, unless the object has changed since it was thought of.
    pub(super) fn apply(&mut self, about: &Object, write: Write) -> bool {
        let (Write::Volume(patch)
        | Write::VolumeStatus(patch)
        | Write::Claim(patch)
        | Write::ClaimStatus(patch)) = write;
        let (objects, name) = self.objects(about);
        let Some(mut object) = objects.get(&name).cloned() else {
            return false;
        };
        if object["metadata"]["resourceVersion"] != patch["metadata"]["resourceVersion"] {
            return false;
        }
        merge(&mut object, &patch);
        self.store(about, object);
        true
    }

    pub(super) fn volume_named(&self, name: &str) -> Arc<PersistentVolume> {
        decoded(&self.volumes[name])
    }

    pub(super) fn claim_named(&self, name: &str) -> Arc<PersistentVolumeClaim> {
        decoded(&self.claims[name])
    }

    /// What would be written next of an object.
    pub(super) fn next(&self, about: &Object) -> Option<(Object, Write)> {
        match about {
            Object::Claim(name) => self.next_of_claim(name),
            Object::Volume(name) => self.next_of_volume(name),
        }
    }

    fn next_of_claim(&self, name: &str) -> Option<(Object, Write)> {
        let claim = decoded(self.claims.get(name)?);
        let status = match plan::claim(&claim, self) {
            ClaimPlan::Bind(volume) => {
                let write = steps::bind(&volume, &claim)?;
                let about = match &write {
                    Write::Volume(_) | Write::VolumeStatus(_) => {
                        Object::Volume(volume.metadata.name.clone().expect("a name"))
                    }
                    Write::Claim(_) | Write::ClaimStatus(_) => Object::Claim(name.to_owned()),
                };
                self.check(&volume, &claim, &write);
                return Some((about, write));
            }
            ClaimPlan::Wait(_) => steps::wait(&claim),
            ClaimPlan::Lost(..) => steps::lose(&claim),
            ClaimPlan::Nothing => None,
        };
        status.map(|patch| (Object::Claim(name.to_owned()), Write::ClaimStatus(patch)))
    }

    fn next_of_volume(&self, name: &str) -> Option<(Object, Write)> {
        let volume = decoded(self.volumes.get(name)?);
        let status = match plan::volume(&volume, self) {
            VolumePlan::Available => match steps::phase(&volume, AVAILABLE, None) {
                Some(patch) => Some(patch),
                None => {
                    let claim = plan::taker(&volume, self)?;
                    return self.next_of_claim(claim.metadata.name.as_deref()?);
                }
            },
            VolumePlan::Reserved(_) => steps::phase(&volume, AVAILABLE, None),
            VolumePlan::Bound => steps::phase(&volume, BOUND, None),
            VolumePlan::Release(_) => steps::release(&volume).map(|(patch, _)| patch),
            VolumePlan::Unbind => {
                let patch = steps::unbind(&volume)?;
                return Some((Object::Volume(name.to_owned()), Write::Volume(patch)));
            }
            VolumePlan::Finish(_) | VolumePlan::Unfit(..) => None,
        };
        status.map(|patch| {
            let about = Object::Volume(name.to_owned());
            (about, Write::VolumeStatus(patch))
        })
    }

    /// What must hold of every write that brings a claim and a volume together.
    fn check(&self, volume: &PersistentVolume, claim: &PersistentVolumeClaim, write: &Write) {
        let uid = claim.metadata.uid.as_deref();
        let owner = claimant(volume);
        if let Write::Volume(_) = write {
            let is_anothers = owner
                .and_then(claim_uid)
                .is_some_and(|own| Some(own) != uid);
            assert!(!is_anothers, "{self:?}");
        } else {
            assert_eq!(owner.and_then(claim_uid), uid, "{self:?}");
        }
        if volume_of(claim).is_none() {
            assert!(matching::capacity(volume) >= matching::requested(claim));
        }
    }

    pub(super) fn every(&self) -> Vec<Object> {
        let volumes = self.volumes.keys().cloned().map(Object::Volume);
        volumes
            .chain(self.claims.keys().cloned().map(Object::Claim))
            .collect()
    }

    /// Writes what is to be written until nothing is.
    pub(super) fn settle(&mut self) {
        for _ in 0..100 {
            let mut is_settled = true;
            for object in self.every() {
                if let Some((about, write)) = self.next(&object) {
                    assert!(self.apply(&about, write), "nothing is older than it is");
                    is_settled = false;
                }
            }
            if is_settled {
                return;
            }
        }
        panic!("it does not end: {self:#?}");
    }

    pub(super) fn phases(&self) -> BTreeMap<&str, &str> {
        let all = self.volumes.iter().chain(&self.claims);
        all.map(|(name, object)| {
            (
                name.as_str(),
                object["status"]["phase"].as_str().unwrap_or_default(),
            )
        })
        .collect()
    }

    /// What is told of a claim that does not get a volume.
    pub(super) fn told(&self, claim: &str) -> (&'static str, String) {
        match plan::claim(&self.claim_named(claim), self) {
            ClaimPlan::Wait(Some(told)) | ClaimPlan::Lost(told, _) => (told.reason, told.message),
            other => panic!("nothing is told: {other:?}"),
        }
    }
}

impl Storage for World {
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(name).map(decoded)
    }

    fn reserved(&self, claim: &Key) -> Vec<Arc<PersistentVolume>> {
        Self::all(&self.volumes, reserved, &claim.to_string())
    }

    fn free(&self, group: &str) -> Vec<Arc<PersistentVolume>> {
        Self::all(&self.volumes, free, group)
    }

    fn claim(&self, claim: &Key) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(&*claim.name).map(decoded)
    }

    fn waiting(&self, class: &str) -> Vec<Arc<PersistentVolumeClaim>> {
        Self::all(&self.claims, waiting, class)
    }
}
