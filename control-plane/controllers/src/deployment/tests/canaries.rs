//! Rollouts that go step by step.

mod properties;

use std::time::Duration;

use serde_json::json;

use super::rollbacks::{BROKEN, on};
use super::*;
use crate::deployment::canary::{CONTINUE, MARK};

const STEPS: &str = "10%,30s;50%,1m";

/// A world of ten pods whose first template is complete, and whose next ones go step by step.
fn world(steps: &str) -> World {
    let mut world = World::new(10, quarter());
    world.settle();
    world.annotate("gantry.dev/canary", steps);
    world
}

/// A pod of the current set that is ready since then, and whose container has begun so often, the last time at that time.
fn pod(ready: i64, restarts: i32, started: i64) -> Arc<Pod> {
    let at = |second: i64| {
        Timestamp::from_second(second)
            .expect("in range")
            .to_string()
    };
    let pod = json!({
        "metadata": {"name": "web-1"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(ready)}],
            "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": restarts,
                "state": {"running": {"startedAt": at(started)}}}],
        },
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn figures(millis: i64) -> Option<Result<Vec<PodValue>, String>> {
    Some(Ok(vec![PodValue {
        pod: "web-1".to_owned(),
        millis,
        at: Timestamp::UNIX_EPOCH,
        window: Duration::ZERO,
    }]))
}

impl World {
    fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn current(&self) -> Option<&ReplicaSet> {
        let name = self.image().replace("nginx:", "web-hash");
        let mut sets = self.sets.iter();
        sets.find(|set| set.metadata.name.as_deref() == Some(name.as_str()))
    }

    /// How far the current set is.
    fn mark(&self) -> String {
        let set = self.current();
        let annotations = set.and_then(|set| set.metadata.annotations.as_ref());
        annotations
            .and_then(|all| all.get(MARK).cloned())
            .unwrap_or_default()
    }

    /// The step that the current set is at, from one; none when there is none to walk.
    fn step(&self) -> Option<usize> {
        let mark = self.mark();
        let mut parts = mark.split(' ');
        parts.find_map(|part| part.strip_prefix("step=")?.parse().ok())
    }

    fn says(&self) -> String {
        self.told
            .iter()
            .map(|told| told.message.as_str())
            .collect::<Vec<_>>()
            .join("|")
    }

    /// Lets steps take their time until nothing is left to do; the pods of one template never come up.
    fn walk_through(&mut self, broken: u8, bad: &[u8]) {
        for _ in 0..40 {
            self.settle_but(broken, bad);
            match self.pass().wake {
                Some(wake) if !self.is_complete() => {
                    self.now += SignedDuration::try_from(wake).expect("a short time");
                }
                _ => return,
            }
        }
    }
}

#[test]
fn a_rollout_goes_step_by_step_and_wakes_when_each_is_over() {
    let mut world = world(STEPS);
    world.set_image("nginx:2");
    world.settle();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 9), ("web-hash2", 1)]));
    let since = world.now;
    assert_eq!(world.mark(), format!("revision=2 step=1 since={since:.3}"));
    assert_eq!(world.reason("Progressing"), "CanaryStep");
    let end = since + SignedDuration::from_secs(30);
    let words = format!("step 1 of 2: 10% for 30s, until {end}; 1 of 10 pods are new");
    assert_eq!(world.message("Progressing"), words);
    // A moment before, nothing is done but waiting for the rest.
    world.wait(29);
    let plan = world.pass();
    assert_eq!(plan.wake, Some(Duration::from_secs(1)));
    assert!(plan.update.is_empty() && plan.deployment.is_none());
    world.wait(1);
    world.pass();
    assert_eq!(world.mark(), "revision=2 step=2");
    assert_eq!(world.reason("Progressing"), "ReplicaSetUpdated");
    world.settle();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 5), ("web-hash2", 5)]));
    assert!(
        world
            .message("Progressing")
            .ends_with("; 5 of 10 pods are new")
    );
    world.wait(60);
    world.settle();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 0), ("web-hash2", 10)]));
    assert!(world.is_complete());
    assert_eq!(world.mark(), "done");
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
    assert_eq!(
        world.says(),
        "Revision 2 begins step 1 of 2: 10% for 30s|Revision 2 begins step 2 of 2: 50% for 1m|Revision 2 is through its 2 steps"
    );
    assert!(
        world
            .told
            .iter()
            .all(|told| told.reason == "CanaryStep" && !told.is_warning)
    );
}

#[test]
fn the_first_rollout_and_a_way_back_have_no_steps() {
    let mut world = World::new(10, quarter());
    world.annotate("gantry.dev/canary", STEPS);
    world.settle();
    assert_eq!((world.mark().as_str(), world.is_complete()), ("", true));
    for steps in [1, 2] {
        world.set_image("nginx:2");
        world.settle();
        if steps == 2 {
            world.wait(30);
            world.settle();
        }
        assert_eq!(world.step(), Some(steps));
        world.set_image("nginx:1");
        world.settle();
        assert!(world.is_complete(), "{:?}", world.sizes());
    }
    // After a success as well.
    world.set_image("nginx:2");
    world.walk_through(0, &[]);
    assert_eq!(world.mark(), "done");
    world.set_image("nginx:1");
    world.settle();
    assert!(world.is_complete(), "{:?}", world.sizes());
}

#[test]
fn another_template_begins_at_the_first_step_and_takes_the_place_of_the_one_before() {
    let mut world = world(STEPS);
    world.set_image("nginx:2");
    world.settle();
    world.wait(30);
    world.settle();
    world.set_image("nginx:4");
    world.settle();
    assert_eq!(world.step(), Some(1));
    assert_eq!(
        world.sizes(),
        pairs(&[("web-hash1", 5), ("web-hash2", 4), ("web-hash4", 1)]),
        "what was there longest stays"
    );
    // The one before, again.
    world.set_image("nginx:2");
    world.pass();
    assert_eq!(world.step(), Some(1));
    assert!(world.mark().starts_with("revision=4 "), "{}", world.mark());
    world.walk_through(0, &[]);
    assert_eq!(
        world.sizes(),
        pairs(&[("web-hash1", 0), ("web-hash2", 10), ("web-hash4", 0)])
    );
}

#[test]
fn what_did_not_work_before_gives_its_places_to_what_does_while_a_step_holds() {
    let mut world = World::new(10, quarter());
    world.settle();
    // Nobody takes it back, and it goes no further than its pods come up.
    world.set_image(&format!("nginx:{BROKEN}"));
    world.settle_but(BROKEN, &[]);
    let broken = format!("web-hash{BROKEN}");
    let before = pairs(&[("web-hash1", 8), (broken.as_str(), 5)]);
    assert_eq!(world.sizes(), before);
    world.annotate("gantry.dev/canary", STEPS);
    world.set_image("nginx:2");
    world.settle_but(BROKEN, &[]);
    assert_eq!(world.step(), Some(1));
    let restored = [("web-hash1", 9), (broken.as_str(), 0), ("web-hash2", 1)];
    assert_eq!(world.sizes(), pairs(&restored));
    assert_eq!(world.up(), 10);
    let quiet = world.pass();
    assert!(quiet.update.is_empty() && quiet.deployment.is_none());
}

#[test]
fn a_pod_that_is_lost_or_begins_anew_begins_the_time_anew() {
    let mut world = world(STEPS);
    world.set_image("nginx:2");
    world.settle();
    let begun = world.now.as_second();
    for (after, pods, rest) in [
        // Before its time, and after.
        (10, pod(begun - 5, 1, begun - 3), 20),
        (20, pod(begun + 12, 1, begun - 3), 22),
        (25, pod(begun + 12, 2, begun + 24), 29),
        // A node's clock is ahead: its time counts once it has come.
        (30, pod(begun + 12, 3, begun + 40), 24),
        (41, pod(begun + 12, 3, begun + 40), 29),
    ] {
        world.now = Timestamp::from_second(begun + after).expect("in range");
        world.pods = vec![pods];
        let wake = world.pass().wake;
        assert_eq!(wake, Some(Duration::from_secs(rest)), "after {after} s");
    }
    // One more pod, since the set has grown, is none that was lost.
    let mut young = (*pod(begun + 45, 0, begun + 45)).clone();
    let made = Timestamp::from_second(begun + 42).expect("in range");
    young.metadata.creation_timestamp = Some(Time(made));
    world.pods.push(Arc::new(young));
    world.wait(9);
    assert_eq!(world.pass().wake, Some(Duration::from_secs(20)));
    // One is not available any more.
    world.pods.clear();
    report(&mut world.sets[1], 1, 0);
    world.pass();
    assert_eq!(world.mark(), "revision=2 step=1");
    assert_eq!(
        world.reason("Progressing"),
        "ReplicaSetUpdated",
        "the deadline counts again"
    );
    world.wait(600);
    world.pass();
    assert_eq!(world.reason("Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 9), ("web-hash2", 1)]));
    report(&mut world.sets[1], 1, 1);
    world.pass();
    assert_eq!(
        world.mark(),
        format!("revision=2 step=1 since={:.3}", world.now)
    );
    assert_eq!(world.reason("Progressing"), "CanaryStep");
}

#[test]
fn a_step_that_would_begin_later_begins_now() {
    let mut world = world(STEPS);
    world.set_image("nginx:2");
    world.settle();
    world.wait(-3600);
    let plan = world.pass();
    assert_eq!(plan.wake, Some(Duration::from_secs(30)));
    let since = world.now;
    assert_eq!(world.mark(), format!("revision=2 step=1 since={since:.3}"));
}

#[test]
fn a_set_that_only_grows_keeps_its_time_but_does_not_go_on() {
    for (was_there, is_kept) in [(true, true), (false, false)] {
        let mut world = world(STEPS);
        world.set_image("nginx:2");
        world.settle();
        let mark = world.mark();
        world.wait(40);
        let mut first = (*pod(0, 0, 0)).clone();
        if !was_there {
            // Made in the place of another one that is gone.
            first.metadata.creation_timestamp = Some(Time(world.now));
        }
        world.pods = vec![Arc::new(first)];
        world.change(|spec| spec.replicas = Some(20));
        for _ in 0..5 {
            world.pass();
            world.run_sets();
        }
        let expected = if is_kept {
            mark.as_str()
        } else {
            "revision=2 step=1"
        };
        assert_eq!(world.mark(), expected);
        assert_eq!(world.sizes(), pairs(&[("web-hash1", 18), ("web-hash2", 2)]));
        world.settle();
        assert_eq!(world.step(), Some(if is_kept { 2 } else { 1 }));
    }
}

#[test]
fn no_deadline_counts_while_a_step_holds() {
    let mut world = world("1,24h");
    world.policy = on();
    world.policy.stall = Some(Duration::from_secs(20));
    world.set_image("nginx:2");
    world.settle();
    let plan = world.pass();
    assert_eq!(plan.wake, Some(Duration::from_secs(24 * 3600)));
    world.wait(3600);
    world.settle();
    assert_eq!(world.reason("Progressing"), "CanaryStep");
    assert_eq!(world.image(), "nginx:2");
    // What comes afterwards has all of the deadline.
    world.wait(24 * 3600);
    let plan = world.pass();
    assert_eq!(world.reason("Progressing"), "ReplicaSetUpdated");
    assert!(plan.wake.is_some_and(|wake| wake > Duration::from_secs(19)));
}

#[test]
fn a_step_without_a_time_waits_until_it_is_promoted() {
    let mut world = world("2,pause;50%,0s;60%,1m;70%,1h");
    world.set_image("nginx:2");
    world.settle();
    world.wait(1_000_000);
    let plan = world.pass();
    assert_eq!((world.step(), plan.wake), (Some(1), None));
    let words = "step 1 of 4: 2 until it is promoted; 2 of 10 pods are new";
    assert_eq!(world.message("Progressing"), words);
    // Of another step, and of none.
    for stale in ["2", "0", "", "some", "ALL"] {
        world.annotate(CONTINUE, stale);
        world.settle();
        assert_eq!(
            (world.step(), world.note(CONTINUE)),
            (Some(1), None),
            "{stale}"
        );
    }
    world.annotate(CONTINUE, "1");
    world.settle();
    // The second takes no time, and the third does.
    assert_eq!((world.step(), world.note(CONTINUE)), (Some(3), None));
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 4), ("web-hash2", 6)]));
    world.annotate(CONTINUE, "all");
    world.settle();
    assert!(world.is_complete());
    assert_eq!(
        (world.mark().as_str(), world.note(CONTINUE)),
        ("done", None)
    );
}

#[test]
fn what_promotes_a_step_is_not_for_the_next_template() {
    let mut world = world("2,pause");
    world.annotate(CONTINUE, "1");
    world.set_image("nginx:2");
    world.settle();
    assert_eq!((world.step(), world.note(CONTINUE)), (Some(1), None));
}

#[test]
fn nothing_goes_on_while_it_is_paused() {
    let mut world = world(STEPS);
    world.set_image("nginx:2");
    world.settle();
    world.change(|spec| spec.paused = Some(true));
    world.annotate(CONTINUE, "all");
    world.wait(3600);
    world.settle();
    assert_eq!(world.mark(), "revision=2 step=1");
    assert_eq!(world.reason("Progressing"), "DeploymentPaused");
    world
        .deployment
        .metadata
        .annotations
        .get_or_insert_default()
        .remove(CONTINUE);
    world.change(|spec| spec.paused = None);
    world.settle();
    assert_eq!(
        world.mark(),
        format!("revision=2 step=1 since={:.3}", world.now)
    );
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 9), ("web-hash2", 1)]));
}

#[test]
fn a_share_is_of_the_size_that_is_wanted_now() {
    let mut world = world(STEPS);
    world.set_image("nginx:2");
    world.settle();
    let mark = world.mark();
    for (wanted, old, new) in [(5, 4, 1), (10, 9, 1), (20, 18, 2)] {
        assert_eq!(world.mark(), mark, "it has not grown");
        world.change(|spec| spec.replicas = Some(wanted));
        world.settle();
        assert_eq!(
            world.sizes(),
            pairs(&[("web-hash1", old), ("web-hash2", new)])
        );
    }
    world.wait(30);
    world.settle();
    for (wanted, old, new) in [(40, 20, 20), (3, 1, 2), (11, 5, 6)] {
        world.change(|spec| spec.replicas = Some(wanted));
        // Not for a moment there are more new pods than the step's.
        for _ in 0..20 {
            world.pass();
            let most = world.current().map(size);
            assert!(most <= Some(new), "{wanted}: {:?}", world.sizes());
            world.run_sets();
            world.become_available(0, 1);
            world.become_available(1, 1);
        }
        world.settle();
        assert_eq!(
            world.sizes(),
            pairs(&[("web-hash1", old), ("web-hash2", new)])
        );
        assert_eq!(world.step(), Some(2));
    }
}

#[test]
fn a_revision_that_crashes_at_a_step_is_taken_back_if_that_is_asked_for_and_held_otherwise() {
    for is_on in [true, false] {
        let mut world = world(STEPS);
        world.policy.is_on = is_on;
        world.settle();
        world.set_image(&format!("nginx:{BROKEN}"));
        world.walk_through(BROKEN, &[BROKEN]);
        let step = world.step();
        match is_on {
            true => {
                assert_eq!((world.image().as_str(), step), ("nginx:1", None));
                assert_eq!(world.reason("RolledBack"), "CrashLoopBackOff");
                assert_eq!(world.sizes(), pairs(&[("web-hash1", 10), ("web-hash3", 0)]));
            }
            false => {
                assert_eq!((world.image().as_str(), step), ("nginx:3", Some(1)));
                assert_eq!(world.sizes(), pairs(&[("web-hash1", 9), ("web-hash3", 1)]));
                assert_eq!(world.reason("Progressing"), "ProgressDeadlineExceeded");
            }
        }
        assert_eq!(world.up(), if is_on { 10 } else { 9 });
    }
}

#[test]
fn a_metric_that_does_not_hold_is_waited_for_and_then_taken_back() {
    for (is_on, stall, patience) in [(true, None, 30), (true, Some(5), 5), (false, None, 30)] {
        let mut world = world(STEPS);
        world.annotate("gantry.dev/canary-metric", "errors<5");
        world.policy.is_on = is_on;
        world.policy.stall = stall.map(Duration::from_secs);
        world.settle();
        world.set_image("nginx:2");
        world.pods = vec![pod(0, 0, 0)];
        world.figures = Some(Err("not served".to_owned()));
        world.settle();
        // Nothing is known: the time does not begin.
        let words = "step 1 of 2: 10% for 30s; 1 of 10 pods are new; waits for errors<5, of which there are no figures: not served";
        assert_eq!(world.message("Progressing"), words);
        assert_eq!(world.mark(), "revision=2 step=1");
        assert_eq!(world.pass().wake, Some(Duration::from_secs(2)));
        world.figures = figures(4999);
        world.pass();
        let begun = format!("revision=2 step=1 since={:.3}", world.now);
        assert_eq!(world.mark(), begun);
        // Nor does it end.
        world.figures = Some(Err("not served".to_owned()));
        world.wait(31);
        world.pass();
        assert_eq!(world.mark(), begun);
        world.told.clear();
        world.figures = figures(12_000);
        world.settle();
        let since = world.now;
        assert_eq!(
            world.mark(),
            format!("revision=2 step=1 failing-since={since:.3}")
        );
        let words = "step 1 of 2: the average of errors over 1 of its pods is 12, not <5";
        assert_eq!(world.told, [Told::warning("CanaryStep", words.to_owned())]);
        // When it holds again, all of the time is to come.
        world.wait(patience - 1);
        world.figures = figures(0);
        world.settle();
        assert_eq!(world.pass().wake, Some(Duration::from_secs(2)));
        assert_eq!(
            world.mark(),
            format!("revision=2 step=1 since={:.3}", world.now)
        );
        world.figures = figures(7000);
        world.pass();
        world.wait(patience - 1);
        let wake = world.pass().wake;
        assert_eq!(wake, Some(Duration::from_secs(1)));
        assert!(
            world
                .message("Progressing")
                .ends_with("; waits for errors<5, which does not hold")
        );
        world.wait(1);
        world.pass();
        world.pass();
        if !is_on {
            assert_eq!((world.image().as_str(), world.step()), ("nginx:2", Some(1)));
            continue;
        }
        assert_eq!(world.image(), "nginx:1");
        assert_eq!(world.reason("RolledBack"), "CanaryMetric");
        let words = format!(
            "Revision 2 failed and was taken back to revision 1: the average of errors over 1 of its pods is 7, not <5, for {patience}s"
        );
        assert_eq!(world.message("RolledBack"), words);
        world.settle();
        assert!(world.is_complete());
    }
}

#[test]
fn what_is_said_of_steps_in_vain_is_told() {
    let told = |name: &str, value: &str, strategy: DeploymentStrategy| {
        let mut world = World::new(2, strategy);
        world.annotate(name, value);
        world.settle();
        world.set_image("nginx:2");
        world.settle();
        assert!(world.is_complete());
        assert_eq!(world.reason("InvalidAnnotations"), "InvalidAnnotation");
        assert_eq!(world.told.len(), 1);
        world.message("InvalidAnnotations")
    };
    let steps = "gantry.dev/canary";
    let words = told(steps, "10%", quarter());
    assert!(words.starts_with(
        "metadata.annotations[gantry.dev/canary]: Invalid value: \"10%\": must be steps"
    ));
    let words = told("gantry.dev/canary-metric", "errors", quarter());
    assert!(words.starts_with("metadata.annotations[gantry.dev/canary-metric]: Invalid value: \"errors\": must be a metric"));
    assert_eq!(
        told(steps, STEPS, recreate()),
        "metadata.annotations[gantry.dev/canary]: Invalid value: \"10%,30s;50%,1m\": the strategy Recreate replaces all pods at once: use RollingUpdate for steps"
    );
}

#[test]
fn a_slip_in_the_middle_of_a_step_holds_it_there() {
    for (name, value) in [
        ("gantry.dev/canary", "10%,30s;50%,1"),
        ("gantry.dev/canary-metric", "errors"),
    ] {
        let mut world = world(STEPS);
        world.set_image("nginx:2");
        world.settle();
        world.annotate(name, value);
        for _ in 0..3 {
            world.wait(60);
            world.settle();
        }
        assert!(!world.is_complete());
        assert_eq!(world.step(), Some(1));
        let annotations = world
            .deployment
            .metadata
            .annotations
            .get_or_insert_default();
        annotations.remove("gantry.dev/canary-metric");
        world.annotate("gantry.dev/canary", STEPS);
        world.settle();
        world.wait(30);
        world.settle();
        assert_eq!(world.step(), Some(2), "it is corrected");
    }
}

#[test]
fn who_takes_the_steps_away_goes_on_without() {
    for left in [None, Some("10%,1h")] {
        let mut world = world(STEPS);
        world.set_image("nginx:2");
        world.settle();
        world.wait(30);
        world.settle();
        assert_eq!(world.step(), Some(2));
        let annotations = world
            .deployment
            .metadata
            .annotations
            .get_or_insert_default();
        annotations.remove("gantry.dev/canary");
        if let Some(left) = left {
            world.annotate("gantry.dev/canary", left);
        }
        world.settle();
        assert!(world.is_complete());
        assert_eq!(world.mark(), "done");
    }
}
