//! From any state, by any order of looks, writes and losses, to one where nothing is left to do.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::index::{free, volume_of, waiting};
use super::super::matching::{self, claim_uid, claimant};
use super::super::steps::{self, BOUND};
use super::world::{World, decoded};

fn subset(modes: u8) -> Vec<&'static str> {
    let all = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"];
    let has = |bit: usize| modes & (1 << bit) != 0;
    let mut found: Vec<_> = (0..3).filter(|bit| has(*bit)).map(|bit| all[bit]).collect();
    if found.is_empty() {
        found.push(all[0]);
    }
    found
}

prop_compose! {
    /// Anything that half a binding, or somebody's hand, may leave of a claim.
    fn any_claim()(
        storage in 1..5u8, modes in 1..8u8, class in 0..2u8, block in prop::bool::weighted(0.2),
        volume in prop::option::weighted(0.4, 0..5usize), complete in prop::bool::weighted(0.3),
        phase in prop::sample::select(vec!["Pending", "Bound", "Lost"]),
    ) -> Value {
        json!({
            "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": complete.then_some("yes")}},
            "spec": {
                "accessModes": subset(modes), "volumeMode": if block { "Block" } else { "Filesystem" },
                "storageClassName": if class == 0 { "" } else { "s" },
                "resources": {"requests": {"storage": format!("{storage}Gi")}},
                "volumeName": volume.map(|at| format!("v{at}")),
            },
            "status": {"phase": phase},
        })
    }
}

prop_compose! {
    /// The same of a volume.
    fn any_volume()(
        storage in 1..5u8, modes in 1..8u8, class in 0..2u8, block in prop::bool::weighted(0.2),
        claim in prop::option::of((0..5usize, 0..3u8)), ours in any::<bool>(),
        phase in prop::sample::select(vec!["Pending", "Available", "Bound", "Released", "Failed"]),
        policy in prop::sample::select(vec!["Retain", "Delete", "Recycle"]),
    ) -> Value {
        let reference = claim.map(|(at, uid)| json!({"namespace": "ns", "name": format!("c{at}"), "uid": match uid {
            0 => Value::Null,
            1 => json!(format!("uid-c{at}")),
            _ => json!("uid-of-an-earlier-one"),
        }}));
        json!({
            "metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": ours.then_some("yes")}},
            "spec": {
                "accessModes": subset(modes), "volumeMode": if block { "Block" } else { "Filesystem" },
                "storageClassName": if class == 0 { "" } else { "s" },
                "capacity": {"storage": format!("{storage}Gi")}, "persistentVolumeReclaimPolicy": policy,
                "claimRef": reference,
            },
            "status": {"phase": phase},
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// What an object needs is thought of, and on its way.
    Look(usize),
    /// A write arrives, however old it is.
    Arrive(usize),
    /// A write is lost.
    Lose(usize),
    DeleteClaim(usize),
    DeleteVolume(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..10usize).prop_map(Step::Look),
        5 => (0..10usize).prop_map(Step::Arrive),
        1 => (0..10usize).prop_map(Step::Lose),
        1 => (0..5usize).prop_map(Step::DeleteClaim),
        1 => (0..5usize).prop_map(Step::DeleteVolume),
    ]
}

impl World {
    fn step(&mut self, step: &Step) {
        let at = |at: &usize, of: usize| (of > 0).then(|| at % of);
        match step {
            Step::Look(object) => {
                let all = self.every();
                let object = at(object, all.len()).map(|at| &all[at]);
                self.under_way
                    .extend(object.and_then(|object| self.next(object)));
            }
            Step::Arrive(write) => {
                if let Some(at) = at(write, self.under_way.len()) {
                    let (about, write) = self.under_way.remove(at);
                    self.apply(&about, write);
                }
            }
            Step::Lose(write) => {
                if let Some(at) = at(write, self.under_way.len()) {
                    self.under_way.remove(at);
                }
            }
            Step::DeleteClaim(claim) => drop(self.claims.remove(&format!("c{claim}"))),
            Step::DeleteVolume(volume) => drop(self.volumes.remove(&format!("v{volume}"))),
        }
    }

    /// What holds once nothing is left to do.
    fn check_settled(&self) {
        for (name, claim) in &self.claims {
            let claim: Arc<PersistentVolumeClaim> = decoded(claim);
            if self.phases()[name.as_str()] == BOUND {
                let volume = volume_of(&claim).expect("a bound claim names its volume");
                let volume = self.volume_named(volume);
                let owner = claimant(&volume).and_then(claim_uid);
                assert_eq!(owner, claim.metadata.uid.as_deref(), "{self:#?}");
                assert_eq!(matching::phase_of_volume(&volume), BOUND);
                assert!(steps::is_complete(&claim));
            }
            if !waiting(&claim).is_empty() {
                let volumes = self.volumes.values().map(decoded::<PersistentVolume>);
                let mut nobodys = volumes.filter(|volume| !free(volume).is_empty());
                assert!(
                    !nobodys.any(|volume| matching::suits(&volume, &claim)),
                    "{self:#?}"
                );
            }
        }
    }
}

proptest! {
    /// From whatever state, in whatever order things are looked at and writes come or are lost: no volume that is one claim's
    /// becomes another's, nobody who names none gets one that is too small, and it ends with all that can be bound.
    #[test]
    fn what_is_half_done_is_finished(
        volumes in prop::collection::vec(any_volume(), 0..5),
        claims in prop::collection::vec(any_claim(), 0..5),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let mut world = World::default();
        for (at, volume) in volumes.iter().enumerate() {
            world = world.with_volume(&format!("v{at}"), volume);
        }
        for (at, claim) in claims.iter().enumerate() {
            world = world.with_claim(&format!("c{at}"), claim);
        }
        for step in &steps {
            world.step(step);
        }
        world.under_way.clear();
        world.settle();
        world.check_settled();
    }
}
