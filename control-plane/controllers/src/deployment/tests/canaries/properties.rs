//! Whatever happens in the middle of steps.

use super::*;
use crate::deployment::tests::rollbacks::FLAKY;

fn plans() -> impl Strategy<Value = Vec<(String, i64)>> {
    let share = prop_oneof![
        (1..=100u8).prop_map(|percent| format!("{percent}%")),
        (1..12u8).prop_map(|pods| pods.to_string()),
    ];
    prop::collection::vec((share, 0..60i64), 1..5)
}

/// What happens in the middle, and what time does.
#[derive(Clone, Debug)]
enum Event {
    Change(Change),
    Wait(i64),
    /// Pods of a set are not available any more.
    Lost(usize, i32),
    Promote(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => step().prop_map(|step| Event::Change(Change::Between(step))),
        1 => (0..12i32).prop_map(|to| Event::Change(Change::Resize(to))),
        2 => (1..7u8).prop_map(|image| Event::Change(Change::Image(image))),
        1 => any::<bool>().prop_map(|paused| Event::Change(Change::Pause(paused))),
        4 => (1..40i64).prop_map(Event::Wait),
        1 => (0..3usize, 1..3i32).prop_map(|(at, count)| Event::Lost(at, count)),
        1 => (1..5usize).prop_map(Event::Promote),
    ]
}

/// A step's share, by itself.
fn share(text: &str, wanted: i32) -> i32 {
    let pods = match text.strip_suffix('%') {
        Some(percent) => (f64::from(wanted) * percent.parse::<f64>().expect("a number") / 100.0
            - 1e-9)
            .ceil() as i32,
        None => text.parse().expect("a number"),
    };
    pods.max(1).min(wanted)
}

proptest! {
    /// Whatever happens in the middle: the bounds of a rollout hold, no step has more new pods than its share and those before,
    /// none is over before its time, and in the end all is new, or what failed is taken back, with nothing left to do.
    #[test]
    fn steps_keep_the_bounds_take_their_time_and_converge(
        replicas in 1..12i32,
        surge in limit(),
        unavailable in limit(),
        steps in plans(),
        events in prop::collection::vec(event(), 0..80),
        is_on in any::<bool>(),
    ) {
        let bad = [BROKEN, FLAKY];
        let mut world = World::new(replicas, rolling(surge, unavailable));
        world.policy.is_on = is_on;
        world.settle();
        let said: Vec<_> = steps.iter().map(|(share, hold)| format!("{share},{hold}s")).collect();
        world.annotate("gantry.dev/canary", &said.join(";"));
        let mut up_since: Option<Timestamp> = None;
        let mut seen = world.image();
        let mut taken_back = 0;
        for event in events {
            match event {
                Event::Wait(seconds) => world.wait(seconds),
                Event::Promote(step) => world.annotate(CONTINUE, &step.to_string()),
                Event::Lost(at, count) => world.become_available(at, -count),
                Event::Change(Change::Between(Step::RunSets)) => world.run_sets(),
                Event::Change(Change::Between(Step::Available(at, count))) => {
                    let broken = format!("web-hash{BROKEN}");
                    if world.sets.get(at).is_some_and(|set| set.metadata.name != Some(broken)) {
                        world.become_available(at, count);
                    }
                }
                Event::Change(Change::Resize(to)) => world.change(|spec| spec.replicas = Some(to)),
                Event::Change(Change::Pause(paused)) => {
                    world.change(|spec| spec.paused = Some(paused));
                }
                Event::Change(Change::Image(image)) => {
                    if world.image() != format!("nginx:{image}") {
                        taken_back = 0;
                    }
                    world.set_image(&format!("nginx:{image}"));
                }
                Event::Change(Change::Between(Step::Pass)) => {
                    world.look(&bad);
                    // A template that was another one for a moment, and nobody saw it, is the same.
                    if seen != world.image() {
                        (seen, up_since) = (world.image(), None);
                    }
                    let (before, up) = (total(&world.sets), world.up());
                    let free = !world.is_resized() && !is_paused(&world.deployment);
                    let (wanted, step) = (wanted(&world.deployment), world.step());
                    let promoted = world.note(CONTINUE).is_some();
                    let (size_before, is_up) = match world.current() {
                        Some(set) => (size(set), available(set) >= size(set)),
                        None => (0, false),
                    };
                    let runs = is_up && step.is_some() && !is_paused(&world.deployment);
                    up_since = up_since.or(Some(world.now)).filter(|_| runs);
                    let now = world.now;
                    let plan = world.pass();
                    if plan.rewrite.is_some() {
                        taken_back += 1;
                    }
                    prop_assert!(taken_back <= 1, "it flaps");
                    let most = allowed(&world.deployment).max(before);
                    prop_assert!(total(&world.sets) <= most, "{:?}", world.sizes());
                    let least = wanted - max_unavailable(&world.deployment);
                    let kept = world.up() >= up.min(least);
                    prop_assert!(kept || !free, "{up} of {least}: {:?}", world.sizes());
                    if plan.rewrite.is_some() || world.has_condition("RolledBack") {
                        continue;
                    }
                    let new = world.current().map_or(0, size);
                    if let Some(at) = world.step() {
                        let most = steps[..at].iter().map(|(text, _)| share(text, wanted)).max();
                        let most = most.unwrap_or(0).max(size_before);
                        prop_assert!(new <= most, "step {at}: {:?}", world.sizes());
                    }
                    let is_done = world.mark() == "done" && before > size_before;
                    let goes_on = world.step() > step || is_done;
                    let goes_on = step.filter(|_| goes_on && !promoted);
                    if let Some(at) = goes_on {
                        let hold = SignedDuration::from_secs(steps[at - 1].1);
                        let is_over = up_since.is_some_and(|since| now.duration_since(since) >= hold);
                        prop_assert!(is_over, "step {at} since {up_since:?} at {now}");
                    }
                    if world.step() != step {
                        // Its time may begin in this very pass.
                        up_since = Some(now);
                    }
                }
            }
        }
        world.change(|spec| spec.paused = None);
        if !is_on && bad.iter().any(|bad| world.image() == format!("nginx:{bad}")) {
            world.set_image("nginx:1");
        }
        world.walk_through(BROKEN, &bad);
        prop_assert!(world.is_complete(), "{:?} {}", world.sizes(), world.mark());
        prop_assert_eq!(total(&world.sets), wanted(&world.deployment));
        prop_assert!(matches!(world.mark().as_str(), "" | "done"), "{}", world.mark());
        let quiet = world.pass();
        prop_assert!(quiet.create.is_none() && quiet.update.is_empty() && quiet.delete.is_empty());
        prop_assert!(quiet.deployment.is_none() && quiet.rewrite.is_none() && quiet.told.is_empty());
    }
}
