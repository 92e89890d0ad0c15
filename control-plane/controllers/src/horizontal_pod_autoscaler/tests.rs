//! Kubernetes' own cases of the controller, as far as they are about what is decided.

mod calculation;
mod properties;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use gantry_informer::clock::seconds;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::history::Kept;
use super::metrics::Reading;
use super::monitor::Computation;
use super::observed::{Observed, Selection, Target, Told};
use super::plan::{Decision, decide};
use super::replicas::Sample;
use super::*;

/// An instant, long after pods have begun.
fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).expect("a time")
}

fn later(seconds: i64) -> Timestamp {
    now()
        .checked_add(SignedDuration::from_secs(seconds))
        .expect("a time")
}

/// A pod that asks for a processor, began ten minutes ago and has been ready since then.
fn pod(name: &str, phase: &str, ready: &str) -> Pod {
    let (began, turned) = (later(-600), later(-599));
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]},
        "status": {
            "phase": phase, "startTime": began.to_string(),
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": turned.to_string()}],
        },
    }))
    .expect("a pod")
}

/// Pods that run and are ready.
fn running(count: usize) -> Vec<Arc<Pod>> {
    static MADE: LazyLock<Vec<Arc<Pod>>> = LazyLock::new(|| {
        let names = (0..128).map(|number| format!("p{number}"));
        names
            .map(|name| Arc::new(pod(&name, "Running", "True")))
            .collect()
    });
    assert!(count <= MADE.len(), "{count} pods");
    MADE.iter().take(count).cloned().collect()
}

fn sample(value: i64, at: Timestamp) -> Sample {
    Sample {
        value,
        at,
        window: Duration::from_secs(1),
    }
}

/// Figures of the first pods.
fn levels(values: &[i64]) -> Reading {
    let samples = values.iter().map(|value| Some(sample(*value, now())));
    Reading::Pods(samples.collect())
}

fn autoscaler(spec: Value) -> HorizontalPodAutoscaler {
    let mut whole = json!({
        "minReplicas": 1, "maxReplicas": 100,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "metrics": [cpu(50)],
    });
    if let (Value::Object(whole), Value::Object(own)) = (&mut whole, spec) {
        whole.extend(own);
    }
    let metadata = json!({"name": "web", "namespace": "ns", "uid": "1"});
    serde_json::from_value(json!({"metadata": metadata, "spec": whole})).expect("an autoscaler")
}

fn cpu(percent: i32) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn of_queue(target: Value) -> Value {
    json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": target}})
}

fn selecting(pods: Vec<Arc<Pod>>) -> Selection {
    Selection::Pods {
        selector: "app=web".to_owned(),
        pods,
        autoscalers: vec![Key::new("ns", "web")],
    }
}

/// What is decided, once it was done, if all goes well.
fn decided(
    autoscaler: &HorizontalPodAutoscaler,
    replicas: i32,
    selection: &Selection,
    readings: &[Reading],
    kept: &mut Kept,
    now: Timestamp,
) -> Decision {
    let observed = Observed {
        autoscaler,
        target: Ok(Target {
            replicas,
            observed: replicas,
            selection,
        }),
        readings,
        bad_period: None,
        now,
    };
    decide(&observed, kept).settle(autoscaler, Ok(()), kept, now)
}

/// As [`decided`] for the first time.
fn at_first(
    spec: Value,
    replicas: i32,
    pods: Vec<Arc<Pod>>,
    readings: &[Reading],
) -> HorizontalPodAutoscalerStatus {
    let autoscaler = autoscaler(spec);
    let mut kept = Kept::default();
    let selection = selecting(pods);
    decided(
        &autoscaler,
        replicas,
        &selection,
        readings,
        &mut kept,
        now(),
    )
    .status
}

/// The status, reason and message of a condition.
fn condition(status: &HorizontalPodAutoscalerStatus, type_: &str) -> Option<[String; 3]> {
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions.find(|condition| condition.type_ == type_)?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some([
        found.status.clone(),
        text(&found.reason),
        text(&found.message),
    ])
}

fn reason(status: &HorizontalPodAutoscalerStatus, type_: &str) -> String {
    let found = condition(status, type_);
    found.map_or_else(String::new, |[status, reason, _]| {
        format!("{status} {reason}")
    })
}

#[test]
fn the_metric_that_asks_for_the_most_wins_and_others_may_fail() {
    let two = json!({"metrics": [cpu(50), of_queue(json!({"type": "AverageValue", "averageValue": "10"}))]});
    let both = [levels(&[1000, 1000]), Reading::Values(vec![30_000])];
    let status = at_first(two.clone(), 2, running(2), &both);
    assert_eq!(status.desired_replicas, 4);
    let active = "the HPA was able to successfully calculate a replica count from cpu resource utilization (percentage of request)";
    assert_eq!(
        condition(&status, "ScalingActive"),
        Some(["True", "ValidMetricFound", active].map(str::to_owned))
    );
    let gone =
        || Reading::Failed("unable to fetch metrics from external metrics API: gone".to_owned());
    let status = at_first(two.clone(), 2, running(2), &[levels(&[1000, 1000]), gone()]);
    assert_eq!(status.desired_replicas, 4);
    assert_eq!(reason(&status, "ScalingActive"), "True ValidMetricFound");
    assert_eq!(
        json!(status.current_metrics).pointer("/1"),
        Some(&json!({"type": ""}))
    );
    // What cannot be measured may need them.
    let status = at_first(two, 2, running(2), &[levels(&[10, 10]), gone()]);
    assert_eq!(
        reason(&status, "ScalingActive"),
        "False FailedGetExternalMetric"
    );
    assert_eq!(status.desired_replicas, 0, "nothing was decided yet");
}

#[test]
fn what_became_of_each_metric_and_of_the_whole_is_noted() {
    let two = json!({"metrics": [cpu(50), of_queue(json!({"type": "AverageValue", "averageValue": "10"}))]});
    let two = autoscaler(two);
    let unknown = autoscaler(json!({"metrics": [{"type": "Other"}]}));
    let gone = || Reading::Failed("gone".to_owned());
    let up = Computation::new("Resource", Ok(Action::ScaleUp));
    let down = Computation::new("Resource", Ok(Action::ScaleDown));
    let none = Computation::new("External", Err(Fault::Internal));
    let other = Computation::new("Other", Err(Fault::Spec));
    let selected = selecting(running(2));
    for (autoscaler, selection, readings, computed, fault) in [
        (
            &two,
            &selected,
            vec![levels(&[1000, 1000]), gone()],
            vec![up, none.clone()],
            None,
        ),
        // The other metric may need them.
        (
            &two,
            &selected,
            vec![levels(&[10, 10]), gone()],
            vec![down, none],
            Some(Fault::Internal),
        ),
        (
            &unknown,
            &selected,
            vec![gone()],
            vec![other],
            Some(Fault::Spec),
        ),
        (
            &two,
            &Selection::Missing,
            Vec::new(),
            Vec::new(),
            Some(Fault::Internal),
        ),
    ] {
        let mut kept = Kept::default();
        let decision = decided(autoscaler, 2, selection, &readings, &mut kept, now());
        assert_eq!((decision.computed, decision.fault), (computed, fault));
    }
}

#[test]
fn what_cannot_be_measured_is_told_in_kubernetes_words() {
    let autoscaler = autoscaler(json!({}));
    let mut kept = Kept::default();
    let none = [Reading::Failed(
        "no metrics returned from resource metrics API".to_owned(),
    )];
    let selection = selecting(running(2));
    let decision = decided(&autoscaler, 2, &selection, &none, &mut kept, now());
    let why = "failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API";
    let all = format!(
        "invalid metrics (1 invalid out of 1), first error is: failed to get cpu resource metric value: {why}"
    );
    let told = |reason, message: &str| Told {
        is_warning: true,
        reason,
        message: message.to_owned(),
    };
    assert_eq!(
        decision.events,
        [
            told("FailedGetResourceMetric", why),
            told("FailedComputeMetricsReplicas", &all)
        ]
    );
    let message = format!("the HPA was unable to compute the replica count: {why}");
    let found = condition(&decision.status, "ScalingActive");
    assert_eq!(
        found,
        Some([
            "False".to_owned(),
            "FailedGetResourceMetric".to_owned(),
            message
        ])
    );
    assert_eq!(
        reason(&decision.status, "AbleToScale"),
        "True SucceededGetScale"
    );
    let again = decided(&autoscaler, 2, &selection, &none, &mut kept, later(1));
    assert_eq!(again.events, [], "it was just told");
    let again = decided(&autoscaler, 2, &selection, &none, &mut kept, later(16));
    assert_eq!(again.events.len(), 2);
    for (selection, event, condition) in [
        (
            Selection::Missing,
            "SelectorRequired",
            "False InvalidSelector",
        ),
        (
            Selection::Invalid("bad".to_owned()),
            "InvalidSelector",
            "False InvalidSelector",
        ),
        (
            Selection::Pods {
                selector: "app=web".to_owned(),
                pods: running(1),
                autoscalers: vec![Key::new("ns", "a"), Key::new("ns", "b")],
            },
            "AmbiguousSelector",
            "False AmbiguousSelector",
        ),
    ] {
        let decision = decided(&autoscaler, 2, &selection, &[], &mut Kept::default(), now());
        let reasons: Vec<_> = decision.events.iter().map(|told| told.reason).collect();
        assert_eq!(reasons, [event, "FailedComputeMetricsReplicas"]);
        assert_eq!(reason(&decision.status, "ScalingActive"), condition);
    }
}

#[test]
fn replicas_stay_between_the_least_and_the_most() {
    let spec = || json!({"minReplicas": 2, "maxReplicas": 5});
    for (replicas, wanted, why) in [
        (
            9,
            5,
            "New size: 5; reason: Current number of replicas above Spec.MaxReplicas",
        ),
        (
            1,
            2,
            "New size: 2; reason: Current number of replicas below Spec.MinReplicas",
        ),
    ] {
        let mut kept = Kept::default();
        let autoscaler = autoscaler(spec());
        let selection = selecting(running(1));
        let decision = decided(&autoscaler, replicas, &selection, &[], &mut kept, now());
        assert_eq!(decision.status.desired_replicas, wanted);
        assert_eq!(
            decision.events,
            [Told {
                is_warning: false,
                reason: "SuccessfulRescale",
                message: why.to_owned()
            }]
        );
        assert_eq!(
            reason(&decision.status, "AbleToScale"),
            "True SucceededRescale"
        );
        assert_eq!(decision.status.last_scale_time, Some(seconds(now())));
        assert_eq!(condition(&decision.status, "ScaledToZero"), None);
    }
    let status = at_first(spec(), 4, running(4), &[levels(&[1000; 4])]);
    assert_eq!(status.desired_replicas, 5);
    assert_eq!(reason(&status, "ScalingLimited"), "True TooManyReplicas");
    let status = at_first(json!({}), 4, running(4), &[levels(&[9000; 4])]);
    assert_eq!(status.desired_replicas, 8);
    assert_eq!(reason(&status, "ScalingLimited"), "True ScaleUpLimit");
    let status = at_first(json!({}), 0, Vec::new(), &[]);
    assert_eq!(status.desired_replicas, 0);
    assert_eq!(reason(&status, "ScalingActive"), "False ScalingDisabled");
}

#[test]
fn a_target_goes_to_zero_and_comes_back_by_what_is_measured_elsewhere() {
    let queue = of_queue(json!({"type": "AverageValue", "averageValue": "10"}));
    let down = json!({"scaleDown": {"stabilizationWindowSeconds": 0}});
    let spec = json!({"minReplicas": 0, "metrics": [queue], "behavior": down});
    let mut autoscaler = autoscaler(spec);
    let mut kept = Kept::default();
    let (some, none) = (selecting(running(2)), selecting(Vec::new()));
    let empty = [Reading::Values(vec![0])];
    let decision = decided(&autoscaler, 2, &some, &empty, &mut kept, now());
    assert_eq!(decision.status.desired_replicas, 0);
    assert_eq!(
        reason(&decision.status, "ScaledToZero"),
        "True ScaledToZero"
    );
    autoscaler.status = Some(decision.status);
    let decision = decided(&autoscaler, 0, &none, &empty, &mut kept, later(1));
    assert_eq!(decision.events, []);
    assert_eq!(
        reason(&decision.status, "ScaledToZero"),
        "True ScaledToZero"
    );
    let decision = decided(
        &autoscaler,
        0,
        &none,
        &[Reading::Values(vec![25_000])],
        &mut kept,
        later(2),
    );
    assert_eq!(decision.status.desired_replicas, 3);
    assert_eq!(
        reason(&decision.status, "ScaledToZero"),
        "False NotScaledToZero"
    );
    // Somebody turned it off: it stays so.
    autoscaler.status = Some(decision.status);
    let decision = decided(
        &autoscaler,
        0,
        &none,
        &[Reading::Values(vec![25_000])],
        &mut kept,
        later(3),
    );
    assert_eq!(
        reason(&decision.status, "ScalingActive"),
        "False ScalingDisabled"
    );
}

#[test]
fn who_leads_next_knows_of_a_target_that_is_about_to_be_scaled_to_zero() {
    let queue = of_queue(json!({"type": "AverageValue", "averageValue": "10"}));
    let down = json!({"scaleDown": {"stabilizationWindowSeconds": 0}});
    let some = selecting(running(2));
    for (least, value, is_told) in [(0, 0, true), (0, 20_000, false), (1, 0, false)] {
        let spec = json!({"minReplicas": least, "metrics": [queue], "behavior": down});
        let autoscaler = autoscaler(spec);
        let observed = Observed {
            autoscaler: &autoscaler,
            target: Ok(Target {
                replicas: 2,
                observed: 2,
                selection: &some,
            }),
            readings: &[Reading::Values(vec![value])],
            bad_period: None,
            now: now(),
        };
        let before = decide(&observed, &mut Kept::default()).before_zero(&autoscaler, now());
        assert_eq!(before.is_some(), is_told, "{least} {value}");
        if let Some(status) = before {
            assert_eq!(reason(&status, "ScaledToZero"), "True ScaledToZero");
        }
    }
}

#[test]
fn a_target_that_somebody_wakes_is_kept_as_long_as_one_that_was_recommended() {
    let queue = of_queue(json!({"type": "AverageValue", "averageValue": "10"}));
    let mut autoscaler = autoscaler(json!({"minReplicas": 0, "metrics": [queue]}));
    let mut kept = Kept::default();
    let (one, none) = (selecting(running(1)), selecting(Vec::new()));
    let empty = [Reading::Values(vec![0])];
    let mut at = |replicas, seconds| {
        let pods = if replicas == 0 { &none } else { &one };
        let decision = decided(
            &autoscaler,
            replicas,
            pods,
            &empty,
            &mut kept,
            later(seconds),
        );
        autoscaler.status = Some(decision.status);
        let status = autoscaler.status.clone().expect("a status");
        let zero = reason(&status, "ScaledToZero");
        (status.desired_replicas, zero)
    };
    assert_eq!(at(1, 0).0, 1);
    let scaled = (0, "True ScaledToZero".to_owned());
    assert_eq!(at(1, 301), scaled);
    assert_eq!(at(0, 1000), scaled);
    // Its window begins with the wake, though the metric has not seen anything yet.
    let woken = (1, "False NotScaledToZero".to_owned());
    assert_eq!(at(1, 1001), woken);
    assert_eq!(at(1, 1300), woken);
    assert_eq!(at(1, 1302), scaled);
}

#[test]
fn a_scale_that_is_not_there_or_not_written_is_told() {
    let mut autoscaler = autoscaler(json!({"maxReplicas": 5}));
    let mut kept = Kept::default();
    let observed = Observed {
        autoscaler: &autoscaler,
        target: Err("deployments.apps \"web\" not found"),
        readings: &[],
        bad_period: Some("malformed"),
        now: now(),
    };
    let decision = decide(&observed, &mut kept);
    let told: Vec<_> = decision
        .events
        .iter()
        .map(|told| (told.reason, told.message.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("InvalidSyncPeriod", "malformed"),
            ("FailedGetScale", "deployments.apps \"web\" not found")
        ]
    );
    let message = "the HPA controller was unable to get the target's current scale: deployments.apps \"web\" not found";
    assert_eq!(
        condition(&decision.status, "AbleToScale"),
        Some(["False", "FailedGetScale", message].map(str::to_owned))
    );
    assert_eq!(
        reason(&decision.status, "SyncPeriodValid"),
        "False InvalidSyncPeriod"
    );
    autoscaler.status = Some(decision.status);
    let selection = selecting(running(1));
    let observed = Observed {
        autoscaler: &autoscaler,
        target: Ok(Target {
            replicas: 9,
            observed: 9,
            selection: &selection,
        }),
        readings: &[],
        bad_period: None,
        now: later(1),
    };
    let decision = decide(&observed, &mut kept);
    let settled = decision.settle(&autoscaler, Err("no".to_owned()), &mut kept, later(1));
    let told = settled.events.last().expect("an event");
    let words = "New size: 5; reason: Current number of replicas above Spec.MaxReplicas; error: no";
    assert_eq!(
        (told.reason, told.message.as_str()),
        ("FailedRescale", words)
    );
    assert_eq!(
        reason(&settled.status, "AbleToScale"),
        "False FailedUpdateScale"
    );
    assert_eq!(condition(&settled.status, "SyncPeriodValid"), None);
    assert_eq!(settled.status.desired_replicas, 0);
}

#[test]
fn a_status_is_written_for_its_figures_now_and_then() {
    let of = |percent: i32, desired: i32| {
        let current = json!({"averageUtilization": percent, "averageValue": "1"});
        let metrics =
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": current}}]);
        let status =
            json!({"currentReplicas": 0, "desiredReplicas": desired, "currentMetrics": metrics});
        serde_json::from_value::<HorizontalPodAutoscalerStatus>(status).expect("a status")
    };
    let old = of(1, 1);
    let worth = |new: &HorizontalPodAutoscalerStatus, seconds: u64| {
        is_worth_writing(Some(&old), new, Some(Duration::from_secs(seconds)))
    };
    assert!(!worth(&of(1, 1), 100));
    assert!(!worth(&of(2, 1), 4));
    assert!(worth(&of(2, 1), 5));
    assert!(worth(&of(1, 2), 0));
    let kept = HorizontalPodAutoscalerStatus {
        current_replicas: None,
        ..old.clone()
    };
    assert!(!worth(&kept, 100));
}
