//! Whole lives of sets, on a model of nodes and of pods that do as they are told, and sometimes otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::backoff::Failures;
use super::placement::{Place, Placement, places, spots};
use super::plan::{Observed, Plan, Why, allows_surge, limits, plan, rolling};
use super::pod::{Version, bound_to, is_leaving, pod_of, target};
use super::status::status;
use crate::pods::{Availability, availability, is_finished, is_ready, phase};

/// A set, the nodes and its pods.
struct World {
    set: DaemonSet,
    hash: String,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, Pod>,
    failures: Failures,
    now: Timestamp,
    made: u32,
}

fn rolling_by(unavailable: &str, surge: &str) -> Value {
    let amount = |text: &str| match text.parse::<i32>() {
        Ok(number) => json!(number),
        Err(_) => json!(text),
    };
    let limits = json!({"maxUnavailable": amount(unavailable), "maxSurge": amount(surge)});
    json!({"type": "RollingUpdate", "rollingUpdate": limits})
}

impl World {
    fn new(nodes: usize, strategy: Value) -> Self {
        let labels = json!({"app": "x"});
        let template =
            json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c"}]}});
        let spec = json!({"selector": {"matchLabels": labels}, "template": template, "updateStrategy": strategy});
        let metadata = json!({"name": "d", "namespace": "ns", "uid": "s", "generation": 1});
        let set = json!({"metadata": metadata, "spec": spec});
        let mut world = Self {
            set: serde_json::from_value(set).expect("a set"),
            hash: "v0".to_owned(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            failures: Failures::default(),
            now: Timestamp::from_second(1_000_000).expect("in range"),
            made: 0,
        };
        for at in 0..nodes {
            world.add_node(at);
        }
        world
    }

    fn add_node(&mut self, at: usize) {
        let name = format!("n{at}");
        let node = json!({"metadata": {"name": name}});
        let node = serde_json::from_value(node).expect("a node");
        self.nodes.insert(name, node);
    }

    fn taint(&mut self, at: usize, effect: Option<&str>) {
        let taint = effect.map(|effect| json!({"key": "k", "effect": effect}));
        let taints: Vec<Value> = taint.into_iter().collect();
        if let Some(node) = self.nodes.get_mut(&format!("n{at}")) {
            node.spec = serde_json::from_value(json!({"taints": taints})).expect("a spec");
        }
    }

    fn spec(&mut self) -> &mut DaemonSetSpec {
        self.set.spec.get_or_insert_default()
    }

    fn change_template(&mut self, number: u32) {
        self.hash = format!("v{number}");
        *self.set.metadata.generation.get_or_insert_default() += 1;
    }

    fn version(&self) -> Version {
        Version {
            hash: self.hash.clone(),
            hashes: [self.hash.clone()].into(),
            generation: None,
        }
    }

    fn all(&self) -> (Vec<Arc<Node>>, Vec<Arc<Pod>>) {
        let nodes = self.nodes.values().cloned().map(Arc::new);
        let pods = self.pods.values().cloned().map(Arc::new);
        (nodes.collect(), pods.collect())
    }

    fn plan(&self) -> Plan {
        let (nodes, pods) = self.all();
        let places = places(&Placement::of(&self.set), &nodes);
        plan(&Observed {
            set: &self.set,
            spots: &spots(&places, &pods),
            version: &self.version(),
            held: &self.failures.held(&self.set, self.now),
            now: self.now,
        })
    }

    fn status(&self) -> DaemonSetStatus {
        let (nodes, pods) = self.all();
        let places = places(&Placement::of(&self.set), &nodes);
        status(&self.set, &spots(&places, &pods), &self.version(), self.now).0
    }

    /// One pass of the controller.
    fn pass(&mut self) -> Plan {
        let plan = self.plan();
        self.check(&plan);
        for node in &plan.create {
            self.make(node);
        }
        for removal in &plan.delete {
            let name = removal.pod.metadata.name.as_ref().expect("a name");
            if removal.why == Why::Failed {
                self.failures.note(&self.set, &removal.node, self.now);
            }
            let pod = self.pods.get_mut(name).expect("it was there");
            assert!(!is_leaving(pod), "pods are deleted once");
            pod.metadata.deletion_timestamp = Some(Time(self.now));
        }
        plan
    }

    fn make(&mut self, node: &str) -> String {
        self.made += 1;
        let mut pod = pod_of(&self.set, &self.version(), node);
        let name = format!("p{:04}", self.made);
        pod.metadata.name = Some(name.clone());
        pod.metadata.creation_timestamp = Some(Time(self.now));
        pod.status.get_or_insert_default().phase = Some("Pending".to_owned());
        self.pods.insert(name.clone(), pod);
        name
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let spec = self.set.spec.as_ref();
        let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        !is_leaving(pod) && availability(pod, min_ready, self.now) == Availability::Available
    }

    fn is_new(&self, pod: &Pod) -> bool {
        self.version().is_of(pod)
    }

    fn on(&self, node: &str) -> Vec<&Pod> {
        let pods = self.pods.values();
        pods.filter(|pod| target(pod) == Some(node)).collect()
    }

    /// The nodes that are to have a pod.
    fn wanted(&self) -> Vec<String> {
        let placement = Placement::of(&self.set);
        let nodes = self.nodes.iter();
        let wanted = nodes.filter(|(_, node)| placement.place(node) == Place::Wanted);
        wanted.map(|(name, _)| name.clone()).collect()
    }

    /// What must hold of every plan, whatever the world is like.
    fn check(&self, plan: &Plan) {
        let wanted = self.wanted();
        let goes = |pod: &Pod| {
            let gone = plan.delete.iter();
            let mut gone = gone.map(|removal| &removal.pod.metadata.name);
            gone.any(|name| *name == pod.metadata.name)
        };
        let surges = allows_surge(&self.set);
        let limits = rolling(&self.set).map(|rolling| limits(rolling, wanted.len()));
        let (most_surge, most_down) = limits.unwrap_or_default();
        let (mut surging, mut surged) = (0, 0);
        let (mut down, mut down_then) = (0, 0);
        for (at, node) in plan.create.iter().enumerate() {
            assert!(wanted.contains(node), "no pod is made where none belongs");
            assert!(!plan.create[..at].contains(node), "one at a time");
        }
        for node in &wanted {
            let staying: Vec<_> = self
                .on(node)
                .into_iter()
                .filter(|pod| !is_leaving(pod))
                .collect();
            let is_made = plan.create.contains(node);
            let left = staying.iter().filter(|pod| !goes(pod)).count();
            let most = if surges { 2 } else { 1 };
            assert!(!is_made || left < most, "{node} gets too many pods");
            if is_made && !surges {
                let mut others = self.on(node).into_iter();
                let is_waited_for = others.all(|pod| is_finished(pod) && is_leaving(pod));
                assert!(is_waited_for, "the old one is waited for");
            }
            let serves = staying.iter().any(|pod| self.is_available(pod));
            let will = staying
                .iter()
                .any(|pod| self.is_available(pod) && !goes(pod));
            down += usize::from(!serves);
            down_then += usize::from(!will);
            let is_old = |pod: &&Pod| !self.is_new(pod);
            let running = || staying.iter().copied().filter(|pod| !is_finished(pod));
            let has_both =
                running().any(|pod| self.is_new(pod)) && running().any(|pod| is_old(&pod));
            surging += usize::from(has_both);
            let serves_old = staying
                .iter()
                .any(|pod| self.is_available(pod) && is_old(pod));
            surged += usize::from(is_made && serves_old);
        }
        match surges {
            true => {
                assert_eq!(down_then, down, "a surge takes no pod that serves alone");
                assert!(
                    surged == 0 || surging + surged <= most_surge.max(surging),
                    "more pods above than may be"
                );
            }
            false => assert!(
                down_then <= most_down.max(down),
                "{down_then} of {} are down, and {down} were",
                wanted.len()
            ),
        }
        if rolling(&self.set).is_none() {
            let replaced = plan.delete.iter().any(|gone| gone.why == Why::Outdated);
            assert!(!replaced, "their deletion is waited for");
        }
    }

    fn with_pod(&mut self, at: usize, change: impl FnOnce(&mut Pod, Timestamp)) {
        let now = self.now;
        let count = self.pods.len().max(1);
        if let Some(pod) = self.pods.values_mut().nth(at % count) {
            change(pod, now);
        }
    }

    fn bind(pod: &mut Pod) {
        let node = target(pod).map(str::to_owned);
        pod.spec.get_or_insert_default().node_name = node;
    }

    fn run(pod: &mut Pod, now: Timestamp, ready: bool) {
        Self::bind(pod);
        if matches!(phase(pod), "Failed" | "Succeeded") {
            return;
        }
        let since = Time(now);
        let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": since});
        let status = json!({"phase": "Running", "conditions": [condition]});
        pod.status = serde_json::from_value(status).expect("a status");
    }

    fn end(pod: &mut Pod, phase: &str) {
        Self::bind(pod);
        let status = json!({"phase": phase});
        pod.status = serde_json::from_value(status).expect("a status");
    }

    /// Those that leave have left, and those of nodes that are gone with them.
    fn leave(&mut self) {
        let nodes = &self.nodes;
        self.pods.retain(|_, pod| {
            let is_lost = bound_to(pod).is_some_and(|node| !nodes.contains_key(node));
            !is_leaving(pod) && !is_lost
        });
    }

    fn pass_time(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// Runs until nothing is done any more.
    fn settle(&mut self) {
        for _ in 0..400 {
            let plan = self.pass();
            self.leave();
            for pod in self.pods.values_mut() {
                if !is_leaving(pod) && !is_ready(pod) {
                    Self::run(pod, self.now, true);
                }
            }
            self.pass_time(60);
            if plan.is_idle() && plan.wake.is_none() && self.plan() == Plan::default() {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.plan());
    }

    fn check_settled(&self) {
        let (wanted, status) = (self.wanted(), self.status());
        for node in self.nodes.keys() {
            let pods = self.on(node);
            match wanted.contains(node) {
                true => {
                    assert_eq!(pods.len(), 1, "{node}");
                    let is_replaced = rolling(&self.set).is_some();
                    assert!(!is_replaced || self.is_new(pods[0]), "{node}");
                    assert!(self.is_available(pods[0]), "{node}");
                }
                false => assert!(pods.len() <= 1, "{node}"),
            }
        }
        let count = i32::try_from(wanted.len()).expect("few nodes");
        assert_eq!(status.desired_number_scheduled, count);
        assert_eq!(status.current_number_scheduled, count);
        assert_eq!(status.number_ready, count);
        assert_eq!(status.number_available.unwrap_or(0), count);
        assert_eq!(status.number_unavailable, None);
        if rolling(&self.set).is_some() {
            assert_eq!(status.updated_number_scheduled.unwrap_or(0), count);
        }
    }
}

#[test]
fn every_node_gets_a_pod_and_then_nothing_is_done() {
    let mut world = World::new(3, rolling_by("1", "0"));
    world.taint(1, Some("NoSchedule"));
    let plan = world.pass();
    assert_eq!(plan.create, ["n0", "n2"]);
    assert!(plan.delete.is_empty());
    world.settle();
    world.check_settled();
    assert_eq!(world.plan(), Plan::default());
    // A node that comes, and one that is free again.
    world.add_node(3);
    world.taint(1, None);
    assert_eq!(world.pass().create, ["n1", "n3"]);
}

#[test]
fn a_taint_spares_a_pod_or_drives_it_off() {
    let mut world = World::new(2, rolling_by("1", "0"));
    world.settle();
    world.taint(0, Some("NoSchedule"));
    assert!(world.plan().is_idle());
    let status = world.status();
    assert_eq!(status.desired_number_scheduled, 1);
    assert_eq!(status.number_misscheduled, 1);
    world.taint(0, Some("NoExecute"));
    let plan = world.pass();
    assert!(plan.create.is_empty());
    assert_eq!(plan.delete.len(), 1);
    assert_eq!(plan.delete[0].why, Why::Superfluous);
    assert_eq!(plan.delete[0].node, "n0");
}

#[test]
fn an_update_takes_as_many_as_may_be_unavailable() {
    for (unavailable, expected) in [("1", 1), ("3", 3), ("50%", 5), ("1%", 1)] {
        let mut world = World::new(10, rolling_by(unavailable, "0"));
        world.settle();
        world.change_template(1);
        let plan = world.pass();
        assert!(plan.create.is_empty());
        assert_eq!(plan.delete.len(), expected, "{unavailable}");
        assert!(plan.delete.iter().all(|gone| gone.why == Why::Outdated));
        // None more while those are gone, and their nodes get others when they have left.
        assert!(world.pass().is_idle(), "{unavailable}");
        world.leave();
        assert_eq!(world.pass().create.len(), expected, "{unavailable}");
        world.settle();
        world.check_settled();
    }
}

#[test]
fn old_pods_that_serve_nobody_do_not_hold_up_an_update() {
    let mut world = World::new(4, rolling_by("1", "0"));
    world.settle();
    for at in 0..2 {
        world.with_pod(at, |pod, now| World::run(pod, now, false));
    }
    world.change_template(1);
    let gone: Vec<String> = world
        .pass()
        .delete
        .into_iter()
        .map(|gone| gone.node)
        .collect();
    assert_eq!(gone, ["n0", "n1"]);
}

#[test]
fn a_surge_makes_the_new_pod_first() {
    let mut world = World::new(4, rolling_by("0", "2"));
    world.settle();
    world.change_template(1);
    let plan = world.pass();
    assert!(plan.delete.is_empty());
    assert_eq!(plan.create, ["n0", "n1"]);
    assert!(world.pass().is_idle(), "new pods are waited for");
    for pod in world.pods.values_mut() {
        if !is_ready(pod) {
            World::run(pod, world.now, true);
        }
    }
    let plan = world.pass();
    let gone: Vec<&str> = plan.delete.iter().map(|gone| gone.node.as_str()).collect();
    assert_eq!(gone, ["n0", "n1"]);
    world.settle();
    world.check_settled();
}

#[test]
fn a_surge_takes_a_pod_from_a_spared_node_when_all_others_serve() {
    let mut world = World::new(2, rolling_by("0", "1"));
    world.settle();
    world.taint(0, Some("NoSchedule"));
    world.add_node(2);
    world.change_template(1);
    // The new node has no pod yet: without the misplaced one, there would be one less than there should be.
    assert_eq!(world.pass().create, ["n2"]);
    let plan = world.pass();
    assert!(plan.delete.is_empty(), "{plan:?}");
    world.settle();
    world.check_settled();
    assert!(world.on("n0").is_empty());
}

#[test]
fn who_deletes_pods_decides_when_they_are_replaced() {
    let mut world = World::new(2, json!({"type": "OnDelete"}));
    world.settle();
    world.change_template(1);
    assert!(world.plan().is_idle());
    world.with_pod(0, |pod, now| {
        pod.metadata.deletion_timestamp = Some(Time(now));
    });
    assert!(world.plan().is_idle(), "it is waited for");
    world.leave();
    assert_eq!(world.pass().create, ["n0"]);
    world.settle();
    world.check_settled();
    assert_eq!(world.status().updated_number_scheduled, Some(1));
}

#[test]
fn pods_that_ended_are_made_anew_and_ever_later_where_they_fail() {
    let mut world = World::new(1, rolling_by("1", "0"));
    world.settle();
    world.with_pod(0, |pod, _| World::end(pod, "Succeeded"));
    assert_eq!(world.pass().delete[0].why, Why::Succeeded);
    let mut waits = Vec::new();
    for _ in 0..3 {
        world.settle_without_time();
        world.with_pod(0, |pod, _| World::end(pod, "Failed"));
        let plan = world.pass();
        if let Some(wait) = plan.wake {
            assert!(plan.is_idle(), "it stays for a while");
            waits.push(wait.as_secs());
            world.pass_time(i64::try_from(wait.as_secs()).expect("short"));
            assert_eq!(world.pass().delete[0].why, Why::Failed);
        } else {
            assert_eq!(plan.delete[0].why, Why::Failed);
        }
    }
    assert_eq!(waits, [1, 2]);
}

impl World {
    /// The pods that are missing are made, and run at once.
    fn settle_without_time(&mut self) {
        self.leave();
        self.pass();
        for pod in self.pods.values_mut() {
            Self::run(pod, self.now, true);
        }
        assert!(self.plan().is_idle());
    }
}

#[test]
fn with_a_surge_a_pod_that_failed_and_stays_is_not_joined_by_others() {
    let mut world = World::new(1, rolling_by("0", "1"));
    world.settle_without_time();
    world.with_pod(0, |pod, _| World::end(pod, "Failed"));
    let plan = world.pass();
    assert_eq!((plan.create.len(), plan.delete.len()), (1, 1));
    world.leave();
    world.with_pod(0, |pod, _| World::end(pod, "Failed"));
    for _ in 0..3 {
        let plan = world.pass();
        assert!(plan.is_idle(), "{plan:?}");
        assert!(plan.wake.is_some());
    }
}

#[test]
fn of_several_pods_of_a_node_the_oldest_that_is_bound_stays() {
    let mut world = World::new(1, rolling_by("1", "0"));
    world.settle();
    let first = world.pods.keys().next().cloned().expect("a pod");
    world.pass_time(5);
    let second = world.make("n0");
    let plan = world.plan();
    let gone = plan.delete[0].pod.metadata.name.clone();
    assert_eq!((plan.delete.len(), gone), (1, Some(second.clone())));
    // One that is bound is preferred to an older one that is not.
    let pod = world.pods.get_mut(&first).expect("it is there");
    pod.spec.get_or_insert_default().node_name = None;
    let pod = world.pods.get_mut(&second).expect("it is there");
    World::bind(pod);
    let gone = world.pass().delete[0].pod.metadata.name.clone();
    assert_eq!(gone, Some(first));
    world.settle();
    world.check_settled();
}

#[test]
fn pods_that_wait_for_a_node_that_is_gone_go_too() {
    let mut world = World::new(2, rolling_by("1", "0"));
    world.pass();
    world.nodes.remove("n1");
    let plan = world.pass();
    let gone: Vec<&str> = plan.delete.iter().map(|gone| gone.node.as_str()).collect();
    assert_eq!(gone, ["n1"]);
    assert!(plan.create.is_empty());
    // One that is bound is left to who takes care of lost nodes.
    world.settle();
    world.nodes.remove("n0");
    assert!(world.plan().is_idle());
}

#[test]
fn a_pod_counts_when_it_has_been_ready_for_long_enough() {
    let mut world = World::new(1, rolling_by("1", "0"));
    world.spec().min_ready_seconds = Some(30);
    world.pass();
    world.with_pod(0, |pod, now| World::run(pod, now, true));
    world.pass_time(10);
    let (nodes, pods) = world.all();
    let places = places(&Placement::of(&world.set), &nodes);
    let spots = spots(&places, &pods);
    let (status, wake) = status(&world.set, &spots, &world.version(), world.now);
    assert_eq!(status.number_ready, 1);
    assert_eq!(status.number_available, None);
    assert_eq!(status.number_unavailable, Some(1));
    assert_eq!(wake.map(|wake| wake.as_secs()), Some(20));
    world.pass_time(20);
    assert_eq!(world.status().number_available, Some(1));
}

/// Something that happens.
#[derive(Clone, Debug)]
enum Event {
    Pass,
    Bind(usize),
    Ready(usize),
    Unready(usize),
    Fail(usize),
    Succeed(usize),
    DeletePod(usize),
    Leave,
    Time(i64),
    AddNode(usize),
    RemoveNode(usize),
    Taint(usize, u8),
    Template(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let pod = 0_usize..20;
    let node = 0_usize..6;
    prop_oneof![
        6 => Just(Event::Pass),
        3 => pod.clone().prop_map(Event::Bind),
        6 => pod.clone().prop_map(Event::Ready),
        2 => pod.clone().prop_map(Event::Unready),
        1 => pod.clone().prop_map(Event::Fail),
        1 => pod.clone().prop_map(Event::Succeed),
        1 => pod.prop_map(Event::DeletePod),
        3 => Just(Event::Leave),
        2 => (1_i64..100).prop_map(Event::Time),
        1 => node.clone().prop_map(Event::AddNode),
        1 => node.clone().prop_map(Event::RemoveNode),
        1 => (node, 0_u8..3).prop_map(|(node, how)| Event::Taint(node, how)),
        2 => (0_u32..3).prop_map(Event::Template),
    ]
}

impl World {
    fn happen(&mut self, event: &Event) {
        match event {
            Event::Pass => drop(self.pass()),
            Event::Bind(at) => self.with_pod(*at, |pod, _| Self::bind(pod)),
            Event::Ready(at) => self.with_pod(*at, |pod, now| Self::run(pod, now, true)),
            Event::Unready(at) => self.with_pod(*at, |pod, now| Self::run(pod, now, false)),
            Event::Fail(at) => self.with_pod(*at, |pod, _| Self::end(pod, "Failed")),
            Event::Succeed(at) => self.with_pod(*at, |pod, _| Self::end(pod, "Succeeded")),
            Event::DeletePod(at) => self.with_pod(*at, |pod, now| {
                pod.metadata.deletion_timestamp.get_or_insert(Time(now));
            }),
            Event::Leave => self.leave(),
            Event::Time(seconds) => self.pass_time(*seconds),
            Event::AddNode(at) => self.add_node(*at),
            Event::RemoveNode(at) => drop(self.nodes.remove(&format!("n{at}"))),
            Event::Taint(at, 0) => self.taint(*at, None),
            Event::Taint(at, 1) => self.taint(*at, Some("NoSchedule")),
            Event::Taint(at, _) => self.taint(*at, Some("NoExecute")),
            Event::Template(number) => self.change_template(*number),
        }
    }
}

fn strategy() -> impl Strategy<Value = Value> {
    let amount = prop_oneof![
        Just("1".to_owned()),
        Just("2".to_owned()),
        Just("10".to_owned()),
        Just("30%".to_owned()),
        Just("100%".to_owned()),
    ];
    prop_oneof![
        4 => amount.clone().prop_map(|amount| rolling_by(&amount, "0")),
        4 => amount.prop_map(|amount| rolling_by("0", &amount)),
        1 => Just(json!({"type": "OnDelete"})),
    ]
}

proptest! {
    #[test]
    fn a_set_keeps_its_bounds_whatever_happens_and_comes_to_rest(
        nodes in 0_usize..6,
        strategy in strategy(),
        min_ready in prop_oneof![Just(0), Just(10)],
        events in prop::collection::vec(event(), 0..80),
    ) {
        let mut world = World::new(nodes, strategy);
        world.spec().min_ready_seconds = Some(min_ready);
        for event in &events {
            world.happen(event);
        }
        world.settle();
        world.check_settled();
        prop_assert_eq!(world.plan(), Plan::default(), "there is nothing left to do");
    }

    #[test]
    fn limits_are_never_both_nothing_and_never_less_than_asked_for(
        nodes in 0_usize..1000, surge in 0..200, unavailable in 0..200, is_share in any::<bool>(),
    ) {
        let amount = |number: i32| match is_share {
            true => IntOrString::String(format!("{}%", number / 2)),
            false => IntOrString::Int(number),
        };
        let rolling = k8s_openapi::api::apps::v1::RollingUpdateDaemonSet {
            max_surge: Some(amount(surge)),
            max_unavailable: Some(amount(unavailable)),
        };
        let (most, down) = limits(&rolling, nodes);
        prop_assert!(nodes == 0 || most + down > 0);
        if is_share {
            let share = |number: i32| (usize::try_from(number / 2).unwrap() * nodes).div_ceil(100);
            prop_assert_eq!(most, share(surge));
            prop_assert_eq!(down, share(unavailable).max(usize::from(nodes > 0 && most == 0)));
        }
    }
}
