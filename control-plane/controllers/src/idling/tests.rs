//! What is decided: by tables, and by properties of whatever may happen.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::annotations::{IDLE_AFTER, IDLE_REPLICAS};
use super::demand::Connections;
use super::marking::may_be_woken;
use super::marks::Obstacle;
use super::plan::{Observed, Plan, Step, plan};
use super::quiet::{Pods, Quiet};
use super::waking::woken;
use super::*;

const AFTER: Duration = Duration::from_secs(60);

fn deployment(replicas: i32, annotations: &Value) -> Deployment {
    let spec = json!({"replicas": replicas, "selector": {}, "template": {}});
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "generation": 1, "annotations": annotations},
        "spec": spec,
        "status": {
            "observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas,
            "readyReplicas": replicas, "availableReplicas": replicas,
        },
    }))
    .expect("a deployment")
}

fn idling(replicas: i32) -> Deployment {
    deployment(replicas, &json!({IDLE_AFTER: "60s"}))
}

/// Pods of one opening and open connections each.
fn pods(of: &[(u64, u64)]) -> Pods {
    let of = of.iter().enumerate();
    of.map(|(number, (open, opened))| {
        let (open, opened) = (*open, *opened);
        (number.to_string(), Some(Connections { open, opened }))
    })
    .collect()
}

fn look(deployment: &Deployment, pods: Pods, now: Instant, quiet: &mut Option<Quiet>) -> Plan {
    let observed = Observed {
        deployment,
        obstacle: None,
        pods,
        now,
    };
    plan(observed, quiet)
}

const IDLE: Step = Step::Idle {
    replicas: 1,
    after: AFTER,
};

#[test]
fn it_idles_after_its_time_without_connections_and_not_before() {
    let (web, start) = (idling(1), Instant::now());
    let mut quiet = None;
    let mut at = |seconds: u64, open, opened| {
        let now = start + Duration::from_secs(seconds);
        look(&web, pods(&[(open, opened)]), now, &mut quiet).step
    };
    let wait = |seconds| Step::Wait(Some(Duration::from_secs(seconds)));
    assert_eq!(
        at(0, 0, 0),
        wait(3),
        "a whole period from when it is first seen"
    );
    assert_eq!(at(59, 0, 0), wait(1));
    assert_eq!(at(59, 0, 1), wait(3), "one came and went");
    assert_eq!(at(100, 1, 2), wait(3));
    assert_eq!(at(300, 1, 2), wait(3), "it is open all the time");
    assert_eq!(at(301, 0, 2), wait(3), "it may have ended just now");
    assert_eq!(at(360, 0, 2), wait(1));
    assert_eq!(at(361, 0, 2), IDLE);
}

#[test]
fn what_is_not_known_or_not_settled_is_not_idle() {
    let start = Instant::now();
    let late = start + Duration::from_secs(1000);
    let of = |between: &Deployment, seen: Pods| {
        let (web, mut quiet) = (idling(2), None);
        let known = || pods(&[(0, 1), (0, 1)]);
        look(&web, known(), start, &mut quiet);
        look(between, seen, start + AFTER / 2, &mut quiet);
        look(&web, known(), late, &mut quiet).step
            == Step::Idle {
                replicas: 2,
                after: AFTER,
            }
    };
    let known = || pods(&[(0, 1), (0, 1)]);
    assert!(of(&idling(2), known()));
    let unknown: Pods = [("0".to_owned(), None), ("1".to_owned(), None)].into();
    assert!(!of(&idling(2), unknown), "no figures");
    assert!(!of(&idling(2), pods(&[(0, 1)])), "a pod is not seen yet");
    assert!(!of(&idling(2), pods(&[(0, 0), (0, 1)])), "a pod began anew");
    let mut others = known();
    if let Some(figures) = others.remove("1") {
        others.insert("2".to_owned(), figures);
    }
    assert!(!of(&idling(2), others), "another pod");
    for change in [
        json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 2}}),
        json!({"metadata": {"generation": 2}}),
        json!({"spec": {"paused": true}}),
        json!({"status": {"updatedReplicas": 1}}),
        json!({"status": {"availableReplicas": 1}}),
        json!({"status": {"replicas": 3}}),
        json!({"metadata": {"annotations": {IDLE_AFTER: "soon"}}}),
        json!({"spec": {"replicas": 3}}),
    ] {
        let mut between = serde_json::to_value(idling(2)).expect("JSON");
        merge(&mut between, &change);
        let between = serde_json::from_value(between).expect("a deployment");
        assert!(!of(&between, known()), "{change}");
    }
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (name, value) in change {
                merge(into.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

#[test]
fn what_has_no_replicas_is_brought_back_where_it_would_not_idle() {
    let both = json!({IDLE_AFTER: "60s", IDLE_REPLICAS: "3"});
    let back = |why: &str| Step::Return {
        replicas: 3,
        why: why.to_owned(),
    };
    let no_service = Some(Obstacle::NoService);
    for (annotations, obstacle, step, complains) in [
        (both.clone(), None, Step::Wait(None), false),
        (
            both.clone(),
            Some(Obstacle::Unmarked),
            Step::Wait(None),
            false,
        ),
        (
            both,
            no_service.clone(),
            back(&Obstacle::NoService.to_string()),
            false,
        ),
        (
            json!({IDLE_REPLICAS: "3"}),
            None,
            back("it is not to idle any more"),
            false,
        ),
        (
            json!({IDLE_REPLICAS: "3", IDLE_AFTER: "soon"}),
            None,
            Step::Wait(None),
            true,
        ),
        (
            json!({IDLE_REPLICAS: "many", IDLE_AFTER: "60s"}),
            no_service.clone(),
            Step::Wait(None),
            true,
        ),
        (
            json!({IDLE_AFTER: "60s"}),
            no_service,
            Step::Wait(None),
            false,
        ),
    ] {
        let observed = Observed {
            deployment: &deployment(0, &annotations),
            obstacle,
            pods: Pods::new(),
            now: Instant::now(),
        };
        let plan = plan(observed, &mut None);
        assert_eq!(
            (plan.step, plan.complaint.is_some()),
            (step, complains),
            "{annotations}"
        );
    }
    let scaled_up = deployment(2, &json!({IDLE_AFTER: "60s", IDLE_REPLICAS: "3"}));
    let plan = look(&scaled_up, pods(&[(0, 0)]), Instant::now(), &mut None);
    assert_eq!(plan.step, Step::Forget);
}

#[test]
fn what_nothing_could_wake_says_so_and_stays() {
    let start = Instant::now();
    let mut quiet = None;
    for (seconds, obstacle, told) in [
        (0, Obstacle::NoService, Some("NotIdling")),
        (1000, Obstacle::NoService, Some("NotIdling")),
        (2000, Obstacle::Unmarked, None),
        (3000, Obstacle::Unmarked, None),
    ] {
        let observed = Observed {
            deployment: &idling(1),
            obstacle: Some(obstacle),
            pods: pods(&[(0, 0)]),
            now: start + Duration::from_secs(seconds),
        };
        let plan = plan(observed, &mut quiet);
        assert!(
            matches!(plan.step, Step::Wait(_)),
            "{seconds}: {:?}",
            plan.step
        );
        assert_eq!(plan.complaint.map(|complaint| complaint.reason), told);
    }
}

/// An autoscaler of `web` that has scaled it to zero, if `is_zero`.
fn autoscaler(least: i32, is_zero: bool) -> Arc<HorizontalPodAutoscaler> {
    let target = json!({"type": "AverageValue", "averageValue": "10"});
    let queue =
        json!({"type": "External", "external": {"metric": {"name": "q"}, "target": target}});
    let status = if is_zero { "True" } else { "False" };
    let autoscaler = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns"},
        "spec": {
            "minReplicas": least, "maxReplicas": 9, "metrics": [queue],
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
        "status": {"desiredReplicas": 0, "conditions": [{"type": "ScaledToZero", "status": status}]},
    }));
    Arc::new(autoscaler.expect("an autoscaler"))
}

#[test]
fn only_what_idles_is_woken() {
    let idled = deployment(0, &json!({IDLE_REPLICAS: "3"}));
    let by_hand = idling(0);
    for (deployment, autoscaler, replicas, is_marked) in [
        (&idled, None, Some(3), true),
        (&by_hand, None, None, false),
        (&by_hand, Some(autoscaler(0, true)), Some(1), true),
        (&by_hand, Some(autoscaler(0, false)), None, true),
        (&by_hand, Some(autoscaler(1, true)), None, false),
        (&idled, Some(autoscaler(0, true)), Some(3), true),
        (
            &deployment(2, &json!({IDLE_REPLICAS: "3"})),
            None,
            None,
            false,
        ),
        (&idling(2), None, None, true),
        (
            &deployment(2, &json!({})),
            Some(autoscaler(0, false)),
            None,
            true,
        ),
        (&deployment(2, &json!({})), None, None, false),
        (
            &deployment(2, &json!({IDLE_AFTER: "soon"})),
            None,
            None,
            false,
        ),
    ] {
        let autoscalers: Vec<_> = autoscaler.into_iter().collect();
        assert_eq!(woken(deployment, &autoscalers), replicas);
        assert_eq!(may_be_woken(deployment, &autoscalers), is_marked);
        let mut leaving = deployment.clone();
        leaving.metadata.deletion_timestamp = Some(gantry_informer::clock::seconds(
            k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
        ));
        assert_eq!(woken(&leaving, &autoscalers), None);
        assert!(!may_be_woken(&leaving, &autoscalers));
    }
}

/// What may happen between two looks.
#[derive(Clone, Debug)]
enum Happening {
    Opens(usize),
    Closes(usize),
    /// Opens and closes at once.
    Passes(usize),
    /// Another pod takes its place.
    Replaced(usize),
    /// Nothing is known of a pod.
    Unknown(usize),
    Known(usize),
    Changes,
    Unavailable,
    Available,
    Looked,
}

fn happenings() -> impl Strategy<Value = Vec<(u64, Happening)>> {
    let pod = 0..2usize;
    let one = prop_oneof![
        2 => pod.clone().prop_map(Happening::Opens),
        3 => pod.clone().prop_map(Happening::Closes),
        2 => pod.clone().prop_map(Happening::Passes),
        1 => pod.clone().prop_map(Happening::Replaced),
        1 => pod.clone().prop_map(Happening::Unknown),
        2 => pod.prop_map(Happening::Known),
        1 => Just(Happening::Changes),
        1 => Just(Happening::Unavailable),
        2 => Just(Happening::Available),
        12 => Just(Happening::Looked),
    ];
    prop::collection::vec((0..45u64, one), 1..80)
}

/// A Deployment of two pods, and what is true of it.
struct World {
    deployment: Deployment,
    /// Of each: its uid's serial, what is known, and whether that is told.
    pods: [(u64, Connections, bool); 2],
    now: Instant,
    /// The last instant at which it was used, changed, or was seen to be in doubt.
    active: Instant,
    quiet: Option<Quiet>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            deployment: idling(2),
            pods: [(0, Connections::default(), true); 2],
            now,
            active: now,
            quiet: None,
        }
    }

    fn is_open(&self) -> bool {
        self.pods
            .iter()
            .any(|(_, connections, _)| connections.open > 0)
    }

    /// Whether nothing can be told by what is known.
    fn is_doubtful(&self) -> bool {
        let status = self.deployment.status.as_ref();
        let available = status.and_then(|status| status.available_replicas);
        available != Some(2) || self.pods.iter().any(|(_, _, told)| !told)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        if self.is_open() {
            self.active = self.now;
        }
    }

    fn available(&mut self, replicas: i32) {
        if let Some(status) = &mut self.deployment.status {
            status.available_replicas = Some(replicas);
        }
    }

    /// The step of a look; none where nobody looks.
    fn happens(&mut self, happening: &Happening) -> Option<Step> {
        match *happening {
            Happening::Opens(pod) => {
                self.pods[pod].1.open += 1;
                self.pods[pod].1.opened += 1;
                self.active = self.now;
            }
            Happening::Closes(pod) => {
                let connections = &mut self.pods[pod].1;
                connections.open = connections.open.saturating_sub(1);
            }
            Happening::Passes(pod) => {
                self.pods[pod].1.opened += 1;
                self.active = self.now;
            }
            Happening::Replaced(pod) => {
                self.pods[pod] = (self.pods[pod].0 + 1, Connections::default(), true);
                self.active = self.now;
            }
            Happening::Unknown(pod) => self.pods[pod].2 = false,
            Happening::Known(pod) => self.pods[pod].2 = true,
            Happening::Changes => {
                let generation = self.deployment.metadata.generation.map(|last| last + 1);
                self.deployment.metadata.generation = generation;
                if let Some(status) = &mut self.deployment.status {
                    status.observed_generation = generation;
                }
                self.active = self.now;
            }
            Happening::Unavailable => self.available(1),
            Happening::Available => self.available(2),
            Happening::Looked => {
                if self.is_doubtful() {
                    self.active = self.now;
                }
                return Some(self.look());
            }
        }
        None
    }

    fn look(&mut self) -> Step {
        let pods = self.pods.iter().enumerate();
        let pods = pods.map(|(number, (serial, connections, told))| {
            (format!("{number}-{serial}"), told.then_some(*connections))
        });
        look(&self.deployment, pods.collect(), self.now, &mut self.quiet).step
    }
}

proptest! {
    #[test]
    fn whatever_happens_it_never_idles_within_the_time_and_always_after_it(all in happenings()) {
        let mut world = World::new();
        for (seconds, happening) in &all {
            world.pass(*seconds);
            if let Some(Step::Idle { .. }) = world.happens(happening) {
                prop_assert!(world.now.duration_since(world.active) >= AFTER, "{all:?}");
                prop_assert!(!world.is_open() && !world.is_doubtful());
            }
        }
        for pod in &mut world.pods {
            (pod.1.open, pod.2) = (0, true);
        }
        world.available(2);
        let begun = world.now;
        let mut steps = 0;
        loop {
            match world.look() {
                Step::Idle { replicas, after } => {
                    prop_assert_eq!((replicas, after), (2, AFTER));
                    break;
                }
                Step::Wait(Some(wait)) => world.now += wait,
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
            steps += 1;
            prop_assert!(steps < 50, "it idles some time");
        }
        prop_assert!(world.now.duration_since(begun) <= AFTER + Duration::from_secs(3));
        // Nothing is to be done after that, until it is woken; and then it is as it was.
        let mut web = deployment(0, &json!({IDLE_AFTER: "60s", IDLE_REPLICAS: "2"}));
        prop_assert_eq!(look(&web, Pods::new(), world.now, &mut world.quiet).step, Step::Wait(None));
        prop_assert_eq!(woken(&web, &[]), Some(2));
        web = idling(2);
        prop_assert!(matches!(look(&web, pods(&[(0, 0), (0, 0)]), world.now, &mut world.quiet).step, Step::Wait(Some(_))));
    }
}
