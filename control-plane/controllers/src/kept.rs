//! Kinds that are kept and that nobody acts on: who makes an object of one is told so, by an event of the object.

use std::sync::Arc;

use gantry_informer::{Informer, Informers, Object, Recorder, Reference};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::context::Context;

pub(crate) const COMPONENT: &str = "gantry-kept-kinds";

const REASON: &str = "NotSupported";
/// The events that have been told, by whomever led before.
const TOLD: &str = "reason=NotSupported";
/// Index: events by the uid of what they are about.
const ABOUT: &str = "about";

/// What is needed to follow a kind.
struct Telling {
    informers: Informers,
    told: Informer<Event>,
    recorder: Recorder,
}

type Follow = fn(&Telling, &'static str);

/// Each kind, and what is told of its objects. One that is not served has none.
const KINDS: [(Follow, &str); 4] = [
    (
        follow::<Ingress>,
        "Ingresses are kept, and nothing in this version serves them unless a controller for them is installed",
    ),
    (
        follow::<StorageClass>,
        "StorageClasses are kept, and nothing in this version makes volumes unless a provisioner is installed",
    ),
    (
        follow::<CSIDriver>,
        "CSIDrivers are kept, and nodes of this version mount no volumes of drivers",
    ),
    (
        follow::<VolumeAttachment>,
        "VolumeAttachments are kept, and nothing in this version attaches volumes unless a driver does",
    ),
];

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, informers: &Informers, recorder: Recorder) {
    let told = informers.only::<Event>(TOLD).index(ABOUT, about);
    if context
        .stop
        .run_until_cancelled(told.synced())
        .await
        .is_none()
    {
        return;
    }
    let telling = Telling {
        informers: informers.clone(),
        told,
        recorder,
    };
    for (follow, message) in KINDS {
        follow(&telling, message);
    }
    // What was subscribed to ends with the token; the caches are others'.
    context.stop.cancelled().await;
}

fn about(event: &Event) -> Vec<String> {
    event.involved_object.uid.iter().cloned().collect()
}

/// Whether an object that was just seen has not been seen before, and stays.
fn is_new(old: Option<&ObjectMeta>, new: &ObjectMeta) -> bool {
    old.is_none_or(|old| old.uid != new.uid) && new.deletion_timestamp.is_none()
}

fn follow<K: Object>(telling: &Telling, message: &'static str) {
    let (told, recorder) = (telling.told.clone(), telling.recorder.clone());
    telling
        .informers
        .of::<K>()
        .subscribe(Box::new(move |change| {
            let Some(new) = change.new else { return };
            let metadata = new.meta();
            if !is_new(change.old.map(|old| old.meta()), metadata) {
                return;
            }
            let uid = metadata.uid.as_deref().unwrap_or_default();
            if told.count(ABOUT, uid) == 0 {
                recorder.warning(Reference::to::<K>(new), REASON, message.to_owned());
            }
        }));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_told_of_once() {
        let metadata = |uid: &str, deleted: Option<&str>| {
            let metadata = json!({"uid": uid, "deletionTimestamp": deleted});
            serde_json::from_value::<ObjectMeta>(metadata).expect("metadata")
        };
        let (one, other) = (metadata("1", None), metadata("2", None));
        assert!(is_new(None, &one));
        assert!(!is_new(Some(&one), &one));
        assert!(is_new(Some(&one), &other));
        let leaving = metadata("1", Some("2026-01-02T03:04:05Z"));
        assert!(!is_new(None, &leaving));
    }
}
