mod convergence;
mod world;

use serde_json::{Value, json};

use self::world::{Object, World, merge};
use super::WRITES;
use super::plan::{self, ClaimPlan};
use super::steps::{self, AVAILABLE, BOUND, FAILED, RELEASED};

fn size(capacity: &str) -> Value {
    json!({"spec": {"capacity": {"storage": capacity}}})
}

fn asking(storage: &str) -> Value {
    json!({"spec": {"resources": {"requests": {"storage": storage}}}})
}

fn reserved_for(claim: &str, uid: Option<&str>) -> Value {
    json!({"spec": {"claimRef": {"namespace": "ns", "name": claim, "uid": uid}}})
}

#[test]
fn a_claim_and_its_volume_know_of_each_other_in_four_writes() {
    let mut world = World::default()
        .with_volume("v", &size("2Gi"))
        .with_claim("c", &asking("1Gi"));
    let version = world.claims["c"]["metadata"]["resourceVersion"].clone();
    for _ in 0..WRITES {
        let (about, write) = world.next(&Object::Claim("c".to_owned())).expect("a write");
        assert!(world.apply(&about, write));
    }
    assert_eq!(world.next(&Object::Claim("c".to_owned())), None);
    assert_eq!(world.next(&Object::Volume("v".to_owned())), None);
    let (volume, claim) = (&world.volumes["v"], &world.claims["c"]);
    assert_eq!(
        volume["spec"]["claimRef"],
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "ns", "name": "c", "uid": "uid-c",
            "resourceVersion": version})
    );
    let annotations = json!({"pv.kubernetes.io/bound-by-controller": "yes"});
    assert_eq!(volume["metadata"]["annotations"], annotations);
    assert_eq!(volume["status"], json!({"phase": "Bound"}));
    assert_eq!(claim["spec"]["volumeName"], "v");
    assert_eq!(
        claim["metadata"]["annotations"],
        json!({"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"})
    );
    assert_eq!(
        claim["status"],
        json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}})
    );
}

#[test]
fn a_volume_that_became_anothers_meanwhile_is_let_be() {
    for (owner, uid) in [("other", None), ("c", Some("uid-of-an-earlier-one"))] {
        let world = World::default()
            .with_claim("c", &json!({}))
            .with_volume("v", &reserved_for(owner, uid));
        let write = steps::bind(&world.volume_named("v"), &world.claim_named("c"));
        assert_eq!(write, None, "{owner} {uid:?}");
    }
}

#[test]
fn the_smallest_that_suits_is_taken_and_one_that_allows_no_more_before_that() {
    let modes = |modes: &[&str]| json!({"spec": {"accessModes": modes}});
    let taken = |world: &World| match plan::claim(&world.claim_named("c"), world) {
        ClaimPlan::Bind(volume) => volume.metadata.name.clone().expect("a name"),
        other => panic!("{other:?}"),
    };
    let mut world = World::default()
        .with_claim("c", &asking("2Gi"))
        .with_volume("large", &size("9Gi"))
        .with_volume("small", &size("1Gi"))
        .with_volume("right", &size("2560Mi"));
    assert_eq!(taken(&world), "right");
    world = world.with_volume("shared", &size("2Gi"));
    let both = modes(&["ReadWriteOnce", "ReadWriteMany"]);
    merge(world.volumes.get_mut("shared").expect("it is there"), &both);
    assert_eq!(taken(&world), "right");
    // One that is for it goes first, but not before those that allow less.
    let mut mine = size("5Gi");
    merge(&mut mine, &reserved_for("c", None));
    let mut shared = mine.clone();
    merge(&mut shared, &both);
    world = world.with_volume("mine and more", &shared);
    assert_eq!(taken(&world), "right");
    world = world.with_volume("mine", &mine);
    assert_eq!(taken(&world), "mine");
}

#[test]
fn a_volume_that_does_not_suit_is_not_taken() {
    let unfit = [
        size("1Gi"),
        json!({"spec": {"storageClassName": "other"}}),
        json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": "other"}}}),
        json!({"spec": {"volumeMode": "Block"}}),
        json!({"spec": {"volumeAttributesClassName": "fast"}}),
        json!({"spec": {"accessModes": ["ReadOnlyMany"]}}),
        json!({"metadata": {"labels": {"disk": "slow"}}}),
        json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}}),
        json!({"status": {"phase": "Pending"}}),
        json!({"status": {"phase": "Failed"}}),
        reserved_for("other", None),
        reserved_for("c", Some("uid-of-an-earlier-one")),
    ];
    let mut claim = asking("2Gi");
    merge(
        &mut claim,
        &json!({"spec": {"selector": {"matchLabels": {"disk": "fast"}}}}),
    );
    let mut fit = size("2Gi");
    merge(&mut fit, &json!({"metadata": {"labels": {"disk": "fast"}}}));
    let world = |volume: &Value| {
        World::default()
            .with_claim("c", &claim)
            .with_volume("v", volume)
    };
    let bound = |world: &World| {
        let plan = plan::claim(&world.claim_named("c"), world);
        matches!(plan, ClaimPlan::Bind(_))
    };
    assert!(bound(&world(&fit)));
    for change in unfit {
        let mut volume = fit.clone();
        merge(&mut volume, &change);
        assert!(!bound(&world(&volume)), "{change}");
    }
}

#[test]
fn a_claim_is_told_why_it_has_no_volume() {
    let named = json!({"spec": {"volumeName": "v"}});
    let class = |class: &str| json!({"spec": {"storageClassName": class}});
    let alone = |claim: &Value| World::default().with_claim("c", claim);
    let beside = |volume: &Value| alone(&named).with_volume("v", volume);
    let none = "no persistent volumes available for this claim and no storage class is set";
    let cannot = |why: &str| format!("Cannot bind to requested volume \"v\": {why}");
    for (world, reason, message) in [
        (alone(&json!({})), "FailedBinding", none.to_owned()),
        (alone(&class("")), "FailedBinding", none.to_owned()),
        (
            alone(&class("fast")),
            "ProvisioningFailed",
            "storageclass.storage.k8s.io \"fast\" not found".to_owned(),
        ),
        (
            beside(&reserved_for("other", None)),
            "FailedBinding",
            "volume \"v\" already bound to a different claim.".to_owned(),
        ),
        (
            beside(&size("1Mi")),
            "VolumeMismatch",
            cannot("requested PV is too small"),
        ),
        (
            beside(&class("fast")),
            "VolumeMismatch",
            cannot("storageClassName does not match"),
        ),
        (
            beside(&json!({"spec": {"volumeMode": "Block"}})),
            "VolumeMismatch",
            cannot("incompatible volumeMode"),
        ),
        (
            beside(&json!({"spec": {"accessModes": ["ReadOnlyMany"]}})),
            "VolumeMismatch",
            cannot("incompatible accessMode"),
        ),
    ] {
        assert_eq!(world.told("c"), (reason, message));
    }
    // Of a volume that may still come, nothing is told.
    let plan = plan::claim(&alone(&named).claim_named("c"), &alone(&named));
    assert!(matches!(plan, ClaimPlan::Wait(None)), "{plan:?}");
}

#[test]
fn a_claim_that_was_bound_loses_its_volume_only_once() {
    let complete = json!({"pv.kubernetes.io/bind-completed": "yes"});
    let bound = json!({"metadata": {"annotations": complete}, "spec": {"volumeName": "v"},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}});
    let mut world = World::default().with_claim("c", &bound);
    let gone = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    assert_eq!(world.told("c"), ("ClaimLost", gone.to_owned()));
    world.settle();
    assert_eq!(world.claims["c"]["status"], json!({"phase": "Lost"}));
    let misbound = "Two claims are bound to the same volume, this one is bound incorrectly";
    let taken = world
        .clone()
        .with_volume("v", &reserved_for("other", Some("uid-other")));
    assert_eq!(taken.told("c"), ("ClaimMisbound", misbound.to_owned()));
    // It is its again when it comes back and is nobody's.
    world = world.with_volume("v", &json!({}));
    world.settle();
    assert_eq!(world.phases(), [("c", "Bound"), ("v", "Bound")].into());
}

#[test]
fn a_volume_whose_claim_is_gone_is_kept_or_says_that_nobody_deletes_it() {
    let released = |policy: &str, more: Value| {
        let mut volume = reserved_for("gone", Some("uid"));
        let policy = json!({"spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": "Bound"}});
        merge(&mut volume, &policy);
        merge(&mut volume, &more);
        let mut world = World::default().with_volume("v", &volume);
        world.settle();
        let status = &world.volumes["v"]["status"];
        let text = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
        (text("phase"), text("message"))
    };
    let is = |phase: &str, message: &str| (phase.to_owned(), message.to_owned());
    let provisioned =
        |by: &str| json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": by}}});
    assert_eq!(released("Retain", json!({})), is(RELEASED, ""));
    let no_recycler = "No recycler plugin found for the volume!";
    assert_eq!(released("Recycle", json!({})), is(FAILED, no_recycler));
    let no_deleter =
        "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched";
    assert_eq!(released("Delete", json!({})), is(FAILED, no_deleter));
    // These are others' to delete.
    let csi = json!({"spec": {"csi": {"driver": "d", "volumeHandle": "h"}}});
    assert_eq!(released("Delete", csi), is(RELEASED, ""));
    assert_eq!(
        released("Delete", provisioned("example.org/p")),
        is(RELEASED, "")
    );
    let no_plugin = "no volume plugin matched name: kubernetes.io/old";
    assert_eq!(
        released("Delete", provisioned("kubernetes.io/old")),
        is(FAILED, no_plugin)
    );
}

#[test]
fn what_was_chosen_here_in_vain_is_free_again_and_what_others_chose_stays_reserved() {
    let elsewhere = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"volumeName": "w"}});
    let bound = reserved_for("c", Some("uid-c"));
    let mut ours = bound.clone();
    let annotation =
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}}});
    merge(&mut ours, &annotation);
    let mut world = World::default()
        .with_claim("c", &elsewhere)
        .with_volume("w", &bound)
        .with_volume("ours", &ours)
        .with_volume("theirs", &bound);
    world.settle();
    let reference = |name: &str| world.volumes[name]["spec"]["claimRef"].clone();
    assert_eq!(reference("ours"), Value::Null);
    assert_eq!(reference("theirs"), json!({"namespace": "ns", "name": "c"}));
    let available = [("ours", AVAILABLE), ("theirs", AVAILABLE)];
    let bound = [("c", BOUND), ("w", BOUND)];
    assert_eq!(world.phases(), available.into_iter().chain(bound).collect());
}

#[test]
fn a_volume_is_offered_to_who_has_waited_longest_for_one_like_it() {
    let since = |second: u32, storage: &str| {
        let mut claim = asking(storage);
        let created =
            json!({"metadata": {"creationTimestamp": format!("2026-01-02T03:04:{second:02}Z")}});
        merge(&mut claim, &created);
        claim
    };
    let mut world = World::default()
        .with_claim("greedy", &since(1, "9Gi"))
        .with_claim("late", &since(3, "1Gi"))
        .with_claim("next", &since(2, "1Gi"))
        .with_volume("v", &size("2Gi"));
    let taker = plan::taker(&world.volume_named("v"), &world).expect("a claim");
    assert_eq!(taker.metadata.name.as_deref(), Some("next"));
    world.settle();
    let bound = world
        .phases()
        .into_iter()
        .filter(|(_, phase)| *phase == BOUND);
    assert_eq!(bound.count(), 2);
}
