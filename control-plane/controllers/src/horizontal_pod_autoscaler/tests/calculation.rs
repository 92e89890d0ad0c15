//! Kubernetes' own cases of the replica calculator, and those in which ours is stricter.

use super::*;

#[test]
fn utilization_is_brought_to_its_target() {
    // Replicas, what pods use in thousandths of the processor that each asks for, and the replicas that follow at 50 %.
    for (replicas, used, wanted) in [
        (3, &[300, 500, 700][..], 3),
        (3, &[540, 540, 540], 3),
        (3, &[560, 560, 560], 4),
        (3, &[1000, 1000, 1000], 6),
        (1, &[1000], 2),
        (1, &[3000], 4),
    ] {
        let pods = running(used.len());
        let status = at_first(json!({}), replicas, pods, &[levels(used)]);
        assert_eq!(status.desired_replicas, wanted, "{replicas} {used:?}");
        assert_eq!(status.current_replicas, Some(replicas));
    }
    let status = at_first(json!({}), 3, running(3), &[levels(&[300, 500, 703])]);
    assert_eq!(
        json!(status.current_metrics),
        json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 50, "averageValue": "501m"}}}])
    );
}

#[test]
fn pods_that_say_nothing_weigh_against_what_is_done() {
    let counted = |replicas: i32, pods: Vec<Pod>, used: &[Option<i64>]| {
        let samples = used
            .iter()
            .map(|value| value.map(|value| sample(value, now())));
        let pods = pods.into_iter().map(Arc::new).collect();
        let readings = [Reading::Pods(samples.collect())];
        // Down at once, so that what is recommended is seen.
        let down = json!({"scaleDown": {"stabilizationWindowSeconds": 0}});
        at_first(json!({"behavior": down}), replicas, pods, &readings).desired_replicas
    };
    let run = |name: &str| pod(name, "Running", "True");
    // Growth: a pod without figures uses nothing, and so does one that begins.
    let three = || vec![run("a"), run("b"), run("c")];
    assert_eq!(counted(3, three(), &[Some(1000), Some(1000), None]), 4);
    let begins = vec![run("a"), run("b"), pod("c", "Pending", "False")];
    assert_eq!(counted(3, begins, &[Some(1000), Some(1000), None]), 4);
    // Less: a pod without figures uses all that it asks for.
    assert_eq!(counted(3, three(), &[Some(100), Some(100), None]), 3);
    assert_eq!(counted(3, three(), &[Some(0), Some(0), None]), 2);
    // One that is on its way out is nobody's concern.
    let mut leaving = run("c");
    leaving.metadata.deletion_timestamp = Some(seconds(now()));
    let two = vec![run("a"), run("b"), leaving];
    assert_eq!(counted(2, two, &[Some(1000), Some(1000), Some(1000)]), 4);
    let failed = vec![run("a"), run("b"), pod("c", "Failed", "False")];
    assert_eq!(counted(2, failed, &[Some(1000), Some(1000), Some(1000)]), 4);
    // Who was never ready does not count, who turned unready later does.
    let mut never = pod("c", "Running", "False");
    let unready = vec![run("a"), run("b"), never.clone()];
    assert_eq!(
        counted(3, unready, &[Some(1000), Some(1000), Some(1000)]),
        4
    );
    let status = never.status.as_mut().expect("a status");
    for condition in status.conditions.iter_mut().flatten() {
        let turned = seconds(later(-100));
        condition.last_transition_time = Some(turned);
    }
    let unready = vec![run("a"), run("b"), never];
    assert_eq!(
        counted(3, unready, &[Some(1000), Some(1000), Some(1000)]),
        6
    );
}

#[test]
fn a_pod_that_has_just_begun_is_measured_once_it_is_ready() {
    let begun = |turned: i64| {
        let mut pod = pod("b", "Running", "True");
        if let Some(status) = &mut pod.status {
            status.start_time = Some(seconds(later(-20)));
            for condition in status.conditions.iter_mut().flatten() {
                let turned = seconds(later(turned));
                condition.last_transition_time = Some(turned);
            }
        }
        vec![Arc::new(self::pod("a", "Running", "True")), Arc::new(pod)]
    };
    let used = [levels(&[1000, 1000])];
    // Its window began before it was ready, or may have.
    assert_eq!(at_first(json!({}), 2, begun(0), &used).desired_replicas, 2);
    assert_eq!(at_first(json!({}), 2, begun(-1), &used).desired_replicas, 2);
    assert_eq!(at_first(json!({}), 2, begun(-2), &used).desired_replicas, 4);
    assert_eq!(
        at_first(json!({}), 2, begun(-10), &used).desired_replicas,
        4
    );
}

#[test]
fn the_surge_of_a_rollout_multiplies_nothing() {
    // Ten are wanted, thirteen run: a metric that does not fall by it asks for no more than with ten.
    let target = json!({"type": "AverageValue", "averageValue": "100"});
    let memory = json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": target}});
    let queue = of_queue(json!({"type": "Value", "value": "100"}));
    for (metric, reading, wanted) in [
        (&memory, levels(&[85_000; 13]), 10),
        (&memory, levels(&[120_000; 13]), 12),
        (&queue, Reading::Values(vec![85_000]), 10),
        (&queue, Reading::Values(vec![120_000]), 12),
    ] {
        let spec = json!({"metrics": [metric]});
        let status = at_first(spec, 10, running(13), &[reading]);
        assert_eq!(status.desired_replicas, wanted, "{metric}");
    }
}

#[test]
fn values_of_something_else_are_brought_to_their_target() {
    let object = |target: Value| {
        let described =
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "main"});
        json!({"type": "Object", "object": {"metric": {"name": "hits"}, "describedObject": described, "target": target}})
    };
    let value = json!({"type": "Value", "value": "100"});
    let average = json!({"type": "AverageValue", "averageValue": "100"});
    for (metric, reading, wanted, current) in [
        (
            object(value.clone()),
            Reading::Value(200_000),
            6,
            json!({"value": "200"}),
        ),
        (
            object(average.clone()),
            Reading::Value(500_000),
            5,
            json!({"averageValue": "166667m"}),
        ),
        (
            of_queue(value),
            Reading::Values(vec![150_000, 50_000]),
            6,
            json!({"value": "200"}),
        ),
        (
            of_queue(average),
            Reading::Values(vec![310_000]),
            3,
            json!({"averageValue": "103334m"}),
        ),
    ] {
        let spec = json!({"metrics": [metric]});
        let status = at_first(spec, 3, running(3), &[reading]);
        assert_eq!(status.desired_replicas, wanted, "{metric}");
        let told = json!(status.current_metrics);
        let told = told
            .pointer("/0/object/current")
            .or(told.pointer("/0/external/current"));
        assert_eq!(told, Some(&current));
    }
}
