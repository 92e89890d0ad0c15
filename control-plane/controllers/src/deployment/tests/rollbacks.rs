//! Revisions that take themselves back.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::deployment::rollback::{FAILED, HEALTHY, WARM};

/// Never available, and crashes.
pub(super) const BROKEN: u8 = 3;
/// Available for a moment, and crashes.
pub(super) const FLAKY: u8 = 6;

pub(super) fn on() -> Policy {
    Policy {
        is_on: true,
        ..Policy::default()
    }
}

/// A world in which revisions take themselves back, and the first one is complete.
fn world(replicas: i32, strategy: DeploymentStrategy) -> World {
    let mut world = World::new(replicas, strategy);
    world.policy = on();
    world.settle();
    world
}

fn crashing() -> Arc<Pod> {
    let pod = json!({
        "metadata": {"name": "web-1", "uid": "pod", "creationTimestamp": "1970-01-12T13:46:40Z"},
        "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no database"}},
        }]},
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

impl World {
    pub(super) fn note(&self, name: &str) -> Option<String> {
        let annotations = self.deployment.metadata.annotations.as_ref()?;
        annotations.get(name).cloned()
    }

    pub(super) fn message(&self, type_: &str) -> String {
        let status = self.deployment.status.clone().unwrap_or_default();
        condition(&status, type_)
            .and_then(|condition| condition.message.clone())
            .unwrap_or_default()
    }

    pub(super) fn has_condition(&self, type_: &str) -> bool {
        let status = self.deployment.status.clone().unwrap_or_default();
        condition(&status, type_).is_some()
    }

    /// Which pods the current set has that are evidence.
    pub(super) fn look(&mut self, bad: &[u8]) {
        let image = self.image();
        let is_bad = bad.iter().any(|bad| image == format!("nginx:{bad}"));
        let name = image.replace("nginx:", "web-hash");
        let reported = self.sets.iter().any(|set| {
            let replicas = set.status.as_ref().map_or(0, |status| status.replicas);
            set.metadata.name.as_deref() == Some(name.as_str()) && replicas > 0
        });
        self.pods = match is_bad && reported {
            true => vec![crashing()],
            false => Vec::new(),
        };
    }

    /// Runs until nothing changes any more; the pods of one template never come up.
    pub(super) fn settle_but(&mut self, broken: u8, bad: &[u8]) {
        let name = format!("web-hash{broken}");
        for _ in 0..200 {
            let before = self.snapshot();
            self.look(bad);
            self.pass();
            self.run_sets();
            for at in 0..self.sets.len() {
                if self.sets[at].metadata.name.as_deref() != Some(name.as_str()) {
                    self.become_available(at, 1);
                }
            }
            if self.snapshot() == before {
                return;
            }
        }
    }
}

#[test]
fn a_revision_that_crashes_takes_itself_back_and_says_why() {
    let mut world = world(4, quarter());
    assert_eq!(world.note(HEALTHY).as_deref(), Some("hash1"));
    world.set_image("nginx:3");
    for _ in 0..3 {
        world.pass();
        world.run_sets();
    }
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 3), ("web-hash3", 2)]));
    world.look(&[BROKEN]);
    // It is given up before anything more is taken away, and whoever waits for it learns of that.
    world.pass();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 3), ("web-hash3", 2)]));
    assert_eq!(world.reason("RolledBack"), "CrashLoopBackOff");
    assert_eq!(world.reason("Progressing"), "ProgressDeadlineExceeded");
    let message = "Revision 2 failed and was taken back to revision 1: pod web-1, container c: CrashLoopBackOff: \
                   back-off 10s; last ended with exit code 1 (Error): no database";
    assert_eq!(world.message("RolledBack"), message);
    assert_eq!(world.message("Progressing"), message);
    assert_eq!(world.note(FAILED).as_deref(), Some("hash3"));
    assert!(world.told.is_empty());
    world.pass();
    assert_eq!(world.image(), "nginx:1");
    assert_eq!(
        world.told,
        [Told::warning("RolledBack", message.to_owned())]
    );
    // What failed goes and what works takes its place in one pass.
    world.look(&[BROKEN]);
    world.pass();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 4), ("web-hash3", 0)]));
    world.settle();
    assert!(world.is_complete());
    assert_eq!(world.reason("RolledBack"), "CrashLoopBackOff");
    assert_eq!(world.reason("Progressing"), "ProgressDeadlineExceeded");
    let quiet = world.pass();
    assert!(quiet.update.is_empty() && quiet.deployment.is_none() && quiet.rewrite.is_none());
}

#[test]
fn what_failed_is_not_tried_again_until_another_template_is_wanted() {
    let mut world = world(2, quarter());
    world.set_image("nginx:3");
    world.settle_but(BROKEN, &[BROKEN]);
    assert_eq!(world.image(), "nginx:1");
    let events = world.events.len();
    world.told.clear();
    world.set_image("nginx:3");
    world.pass();
    assert_eq!(world.image(), "nginx:1");
    assert_eq!(world.told.len(), 1, "it is told again");
    world.settle();
    assert_eq!(world.events.len(), events, "and no pod was made");
    world.set_image("nginx:2");
    world.pass();
    assert!(!world.has_condition("RolledBack"));
    assert_eq!(world.reason("Progressing"), "NewReplicaSetCreated");
    assert_eq!(world.note(FAILED), None);
    world.settle();
    assert!(world.is_complete());
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
    assert_eq!(world.note(HEALTHY).as_deref(), Some("hash2"));
    // Another template was wanted meanwhile: this one gets its chance.
    world.set_image("nginx:3");
    world.settle();
    assert_eq!(
        (world.image().as_str(), world.is_complete()),
        ("nginx:3", true)
    );
}

#[test]
fn a_revision_that_stands_still_is_taken_back_with_what_its_probe_was_answered() {
    let mut world = world(2, quarter());
    world.set_image("nginx:3");
    for _ in 0..3 {
        world.pass();
        world.run_sets();
    }
    let mut unready = (*crashing()).clone();
    if let Some(status) = &mut unready.status {
        status.container_statuses = None;
    }
    world.pods = vec![Arc::new(unready)];
    world.now += SignedDuration::from_secs(601);
    // The first plan asks for the answer; nothing of it would be written before.
    let before = (world.deployment.clone(), world.sets.clone());
    let plan = world.pass();
    assert_eq!(plan.asks.as_deref(), Some("pod"));
    (world.deployment, world.sets) = before;
    world.answer =
        Some("Readiness probe failed: HTTP probe failed with statuscode: 500".to_owned());
    let plan = world.pass();
    assert_eq!(plan.asks, None);
    assert_eq!(world.reason("RolledBack"), "ProgressDeadlineExceeded");
    assert!(world.message("RolledBack").ends_with(
        "pod web-1: is not ready: Readiness probe failed: HTTP probe failed with statuscode: 500"
    ));
    world.pass();
    assert_eq!(world.image(), "nginx:1");
}

#[test]
fn a_tighter_budget_of_time_wakes_and_decides() {
    let mut world = world(2, quarter());
    world.policy.stall = Some(Duration::from_secs(20));
    world.set_image("nginx:3");
    for _ in 0..3 {
        world.pass();
        world.run_sets();
    }
    let plan = world.pass();
    let wake = plan.wake.expect("it wakes");
    assert!(wake <= Duration::from_secs(20), "{wake:?}");
    world.now += SignedDuration::try_from(wake).expect("a short time");
    world.pass();
    assert_eq!(world.reason("RolledBack"), "NoProgress");
}

#[test]
fn a_revision_that_fails_after_its_success_goes_back_while_the_one_before_is_warm() {
    for (later, back) in [(30, true), (61, false)] {
        let mut world = world(2, quarter());
        world.set_image("nginx:6");
        world.settle();
        assert_eq!(world.note(HEALTHY).as_deref(), Some("hash6"));
        assert_eq!(world.note(WARM).as_deref(), Some("hash1"));
        let plan = world.pass();
        let wake = plan.wake.expect("it looks again when that is over");
        assert!(wake <= Duration::from_secs(60), "{wake:?}");
        world.now += SignedDuration::from_secs(later);
        world.look(&[FLAKY]);
        world.pass();
        assert_eq!(world.note(WARM), None, "after {later} s");
        world.pass();
        let image = if back { "nginx:1" } else { "nginx:6" };
        assert_eq!(world.image(), image, "after {later} s");
        let healthy = if back { "hash1" } else { "hash6" };
        assert_eq!(world.note(HEALTHY).as_deref(), Some(healthy));
    }
}

#[test]
fn the_set_to_go_back_to_outlives_the_history() {
    let mut world = World::new(2, quarter());
    world.policy = on();
    world.change(|spec| spec.revision_history_limit = Some(0));
    world.settle();
    world.set_image("nginx:6");
    world.settle();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 0), ("web-hash6", 2)]));
    world.now += SignedDuration::from_secs(61);
    world.settle();
    assert_eq!(
        world.sizes(),
        pairs(&[("web-hash6", 2)]),
        "its time is over"
    );
}

#[test]
fn who_switches_it_on_with_a_broken_template_goes_back_to_what_runs() {
    let mut world = World::new(4, quarter());
    world.settle();
    world.policy = on();
    world.set_image("nginx:3");
    world.settle_but(BROKEN, &[BROKEN]);
    assert_eq!(world.image(), "nginx:1");
    assert_eq!(world.note(HEALTHY).as_deref(), Some("hash1"));
    // Switched off, everything of it is forgotten, and what is asked for is done.
    world.policy.is_on = false;
    world.pass();
    for name in [HEALTHY, WARM, FAILED] {
        assert_eq!(world.note(name), None);
    }
    assert!(!world.has_condition("RolledBack"));
    world.set_image("nginx:3");
    world.settle_but(BROKEN, &[BROKEN]);
    assert_eq!(world.image(), "nginx:3");
}

#[test]
fn who_takes_the_annotations_away_ends_what_they_tell_of() {
    let mut world = world(2, quarter());
    world.set_image("nginx:3");
    world.settle_but(BROKEN, &[BROKEN]);
    assert!(world.has_condition("RolledBack"));
    // As kubectl does with `rollout undo`.
    let annotations = world
        .deployment
        .metadata
        .annotations
        .get_or_insert_default();
    annotations.retain(|name, _| name == REVISION);
    world.settle();
    assert!(!world.has_condition("RolledBack"));
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
    assert_eq!(world.note(HEALTHY).as_deref(), Some("hash1"));
}

#[test]
fn the_first_revision_has_nothing_to_go_back_to() {
    let mut world = World::new(2, quarter());
    world.policy = on();
    world.set_image("nginx:3");
    world.settle_but(BROKEN, &[BROKEN]);
    assert_eq!(world.image(), "nginx:3");
    assert!(!world.has_condition("RolledBack"));
    assert_eq!(world.note(HEALTHY), None);
}

#[test]
fn a_malformed_annotation_is_told_once_and_withdrawn() {
    let mut world = World::new(1, quarter());
    world.policy.faults = vec!["metadata.annotations[a]: Invalid value".to_owned()];
    for _ in 0..3 {
        world.pass();
    }
    assert_eq!(world.reason("InvalidAnnotations"), "InvalidAnnotation");
    assert_eq!(world.told.len(), 1);
    assert!(world.told[0].is_warning && world.told[0].message.contains("Invalid value"));
    world.policy.faults.clear();
    world.pass();
    assert!(!world.has_condition("InvalidAnnotations"));
}

#[test]
fn with_recreate_the_way_back_waits_like_the_way_there() {
    let mut world = world(2, recreate());
    world.set_image("nginx:3");
    world.settle_but(BROKEN, &[BROKEN]);
    assert_eq!(world.image(), "nginx:1");
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 2), ("web-hash3", 0)]));
}

proptest! {
    /// Whatever is wanted, scaled and paused when: there are never too many pods and never too few, what does not work is
    /// taken back once, to what has worked, and in the end nothing is left to do.
    #[test]
    fn taking_back_keeps_the_bounds_never_flaps_and_converges(
        replicas in 1..10i32,
        surge in limit(),
        unavailable in limit(),
        steps in prop::collection::vec(wish(), 0..60),
    ) {
        let bad = [BROKEN, FLAKY];
        let mut world = World::new(replicas, rolling(surge, unavailable));
        world.policy = on();
        world.settle();
        let mut worked = BTreeSet::from([world.image()]);
        let mut taken_back = 0;
        for step in steps {
            match step {
                Change::Between(Step::Pass) => {
                    let (before, up) = (total(&world.sets), world.up());
                    let free = !world.is_resized() && !is_paused(&world.deployment);
                    world.look(&bad);
                    let plan = world.pass();
                    if plan.rewrite.is_some() {
                        taken_back += 1;
                        prop_assert!(worked.contains(&world.image()), "{}", world.image());
                    }
                    prop_assert!(taken_back <= 1, "it flaps");
                    let most = allowed(&world.deployment).max(before);
                    prop_assert!(total(&world.sets) <= most, "{:?}", world.sizes());
                    let least = wanted(&world.deployment) - max_unavailable(&world.deployment);
                    let kept = world.up() >= up.min(least);
                    prop_assert!(kept || !free, "{up} of {least}: {:?}", world.sizes());
                    if world.is_complete() && wanted(&world.deployment) > 0 {
                        worked.insert(world.image());
                    }
                }
                Change::Between(Step::RunSets) => world.run_sets(),
                Change::Between(Step::Available(at, count)) => {
                    let name = format!("web-hash{BROKEN}");
                    let set = world.sets.get(at);
                    if set.is_some_and(|set| set.metadata.name != Some(name)) {
                        world.become_available(at, count);
                    }
                }
                Change::Resize(to) => world.change(|spec| spec.replicas = Some(to)),
                Change::Image(image) => {
                    taken_back = 0;
                    world.set_image(&format!("nginx:{image}"));
                }
                Change::Pause(paused) => world.change(|spec| spec.paused = Some(paused)),
            }
        }
        world.change(|spec| spec.paused = None);
        world.settle_but(BROKEN, &bad);
        prop_assert!(world.is_complete(), "{:?}", world.sizes());
        let is_bad = bad.iter().any(|bad| world.image() == format!("nginx:{bad}"));
        prop_assert!(!is_bad || wanted(&world.deployment) == 0, "{}", world.image());
        let quiet = world.pass();
        prop_assert!(quiet.create.is_none() && quiet.update.is_empty() && quiet.delete.is_empty());
        prop_assert!(quiet.deployment.is_none() && quiet.rewrite.is_none() && quiet.told.is_empty());
    }
}

fn wish() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => step().prop_map(Change::Between),
        1 => (0..10i32).prop_map(Change::Resize),
        2 => (1..7u8).prop_map(Change::Image),
        1 => any::<bool>().prop_map(Change::Pause),
    ]
}
