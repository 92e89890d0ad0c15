//! What holds of every decision, whatever is measured.

use proptest::prelude::*;

use super::*;

/// What a target's pods use where a load is shared by them, each of which could use two processors.
fn shared(load: i64, pods: usize) -> Reading {
    let each = (load / i64::try_from(pods.max(1)).expect("few")).min(2000);
    levels(&vec![each; pods])
}

/// A target under a load, second by second: the replicas after each.
fn followed(spec: Value, replicas: i32, loads: impl Iterator<Item = i64>) -> Vec<i32> {
    let mut autoscaler = autoscaler(spec);
    let (mut kept, mut replicas) = (Kept::default(), replicas);
    let mut seen = Vec::new();
    for (second, load) in loads.enumerate() {
        let time = later(i64::try_from(second).expect("few"));
        let pods = usize::try_from(replicas).expect("some");
        let selection = selecting(running(pods));
        let Reading::Pods(samples) = shared(load, pods) else {
            continue;
        };
        let samples = samples.into_iter().flatten();
        let samples = samples.map(|of| Some(sample(of.value, time)));
        let readings = [Reading::Pods(samples.collect())];
        let decision = decided(
            &autoscaler,
            replicas,
            &selection,
            &readings,
            &mut kept,
            time,
        );
        replicas = decision.status.desired_replicas;
        autoscaler.status = Some(decision.status);
        seen.push(replicas);
    }
    seen
}

/// How often the direction changes.
fn turns(seen: &[i32]) -> usize {
    let steps = seen.windows(2).map(|pair| (pair[1] - pair[0]).signum());
    let steps: Vec<i32> = steps.filter(|step| *step != 0).collect();
    steps.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

fn behaviors() -> impl Strategy<Value = Value> {
    let policy = (prop::bool::ANY, 1..200i32, 1..60i32).prop_map(|(is_percent, value, period)| {
        let sort = if is_percent { "Percent" } else { "Pods" };
        let value = if is_percent { value.min(100) } else { value };
        json!({"type": sort, "value": value, "periodSeconds": period})
    });
    let select = prop_oneof![Just("Max"), Just("Min"), Just("Disabled")];
    let rules = (prop::collection::vec(policy, 1..3), select, 0..120i32).prop_map(
        |(policies, select, window)| {
            json!({"policies": policies, "selectPolicy": select, "stabilizationWindowSeconds": window})
        },
    );
    let both = (rules.clone(), rules)
        .prop_map(|(up, down)| json!({"behavior": {"scaleUp": up, "scaleDown": down}}));
    prop_oneof![Just(json!({})), both]
}

fn joined(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn replicas_stay_within_their_bounds(
        behavior in behaviors(), least in 1..10i32, more in 0..20i32, start in 1..40i32,
        loads in prop::collection::vec(0i64..40_000, 1..40),
    ) {
        let most = least + more;
        let spec = joined(behavior, json!({"minReplicas": least, "maxReplicas": most}));
        for replicas in followed(spec, start, loads.into_iter()) {
            prop_assert!((least..=most).contains(&replicas), "{replicas}");
        }
    }

    #[test]
    fn noise_within_the_tolerance_moves_nothing(
        start in 2..20i32, noise in prop::collection::vec(-45i64..45, 120),
    ) {
        // Half a processor each, give or take nine percent.
        let loads = noise.into_iter().map(|noise| (500 + noise) * i64::from(start));
        let seen = followed(json!({}), start, loads);
        prop_assert!(seen.iter().all(|replicas| *replicas == start), "{seen:?}");
    }

    #[test]
    fn more_load_never_asks_for_less(
        replicas in 1..30i32, known in 1..30usize, missing in 0..6usize, begin in 0..6usize,
        less in 0i64..60_000, more in 0i64..60_000,
    ) {
        let mut pods = running(known + missing);
        pods.extend((0..begin).map(|number| Arc::new(pod(&format!("b{number}"), "Pending", "False"))));
        let selection = selecting(pods);
        let autoscaler = autoscaler(json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}));
        let asked = |load: i64| {
            let each = load / i64::try_from(known).expect("few");
            let readings = [levels(&vec![each; known])];
            let decision = decided(&autoscaler, replicas, &selection, &readings, &mut Kept::default(), now());
            decision.status.desired_replicas
        };
        prop_assert!(asked(less.min(more)) <= asked(less.max(more)));
    }

    #[test]
    fn no_period_sees_more_than_its_policy_allows(
        pods in 1..6i32, period in 2..20i64, loads in prop::collection::vec(0i64..30_000, 2..60),
    ) {
        let rules = json!({
            "policies": [{"type": "Pods", "value": pods, "periodSeconds": period}], "selectPolicy": "Max",
            "stabilizationWindowSeconds": 0,
        });
        let spec = json!({"behavior": {"scaleUp": rules, "scaleDown": rules}});
        let mut seen = vec![10];
        seen.extend(followed(spec, 10, loads.into_iter()));
        let period = usize::try_from(period).expect("small");
        for at in 1..seen.len() {
            let start = seen[at.saturating_sub(period)];
            prop_assert!(seen[at] <= seen[at - 1].max(start + pods), "{at} {seen:?}");
            prop_assert!(seen[at] >= seen[at - 1].min(start - pods), "{at} {seen:?}");
        }
    }

    #[test]
    fn nothing_that_is_measured_breaks_it(
        values in prop::collection::vec(any::<Option<i64>>(), 0..6), replicas in any::<i32>(), observed in any::<i32>(),
        least in any::<i32>(), most in any::<i32>(), target in any::<i32>(), one in any::<i64>(),
    ) {
        let sorts = |target: Value| json!({"type": "Object", "object": {
            "metric": {"name": "m"}, "describedObject": {"kind": "Service", "name": "s"}, "target": target}});
        let text = target.to_string();
        let spec = json!({"minReplicas": least, "maxReplicas": most, "metrics": [
            cpu(target), of_queue(json!({"type": "Value", "value": text})),
            of_queue(json!({"type": "AverageValue", "averageValue": text})),
            sorts(json!({"type": "Value", "value": text})), sorts(json!({"type": "AverageValue", "averageValue": text})),
        ]});
        let autoscaler = autoscaler(spec);
        let samples: Vec<_> = values.iter().map(|value| value.map(|value| sample(value, now()))).collect();
        let selection = selecting(running(values.len()));
        let several: Vec<i64> = values.iter().flatten().copied().collect();
        let readings = [
            Reading::Pods(samples), Reading::Values(several.clone()), Reading::Values(several),
            Reading::Value(one), Reading::Value(one),
        ];
        let observed = Observed {
            autoscaler: &autoscaler,
            target: Ok(Target { replicas, observed, selection: &selection }),
            readings: &readings,
            bad_period: None,
            now: now(),
        };
        let mut kept = Kept::default();
        decide(&observed, &mut kept).settle(&autoscaler, Ok(()), &mut kept, now());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn under_constant_load_replicas_settle(
        start in 1..30i32, load in 100i64..12_000,
    ) {
        let seen = followed(json!({}), start, std::iter::repeat_n(load, 700));
        let last = *seen.last().expect("some");
        let mut all = vec![start];
        all.extend(&seen);
        // What was recommended in the first moment holds for a window, and what was rounded shows once: no more than that.
        prop_assert!(turns(&all) <= 1, "{all:?}");
        // Nobody waits longer than for the window of five minutes, twice.
        prop_assert!(seen.iter().rev().take(60).all(|replicas| *replicas == last));
        // What there is in the end is near half a processor per pod.
        let each = load / i64::from(last);
        prop_assert!(last == 1 || each >= 250, "{last} pods of {each}");
        prop_assert!(each <= 560 || last == 100, "{last} pods of {each}");
    }
}
