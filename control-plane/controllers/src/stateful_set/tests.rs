//! Whole lives of sets, on a model of pods that do as they are told, and sometimes otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::identity::{Version, ordinal_of, ordinals, revision_of};
use super::plan::{Observed, Phase, Then, is_healthy, is_parallel, plan};
use super::status::{Revisions, status};

/// A set, its pods and its claims.
struct World {
    set: StatefulSet,
    current: String,
    update: String,
    pods: BTreeMap<String, Pod>,
    claims: BTreeMap<String, PersistentVolumeClaim>,
    now: Timestamp,
    made: u32,
}

fn version(name: &str) -> Version {
    let template = json!({
        "metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": name}]},
    });
    Version {
        name: name.to_owned(),
        template: serde_json::from_value(template).expect("a template"),
    }
}

impl World {
    fn new(spec: Value) -> Self {
        let mut whole = json!({
            "replicas": 3, "selector": {"matchLabels": {"app": "x"}}, "template": {}, "podManagementPolicy": "OrderedReady",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        });
        for (key, value) in spec.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        let set = json!({"metadata": {"name": "db", "namespace": "ns", "uid": "s", "generation": 1}, "spec": whole});
        Self {
            set: serde_json::from_value(set).expect("a set"),
            current: "v1".to_owned(),
            update: "v1".to_owned(),
            pods: BTreeMap::new(),
            claims: BTreeMap::new(),
            now: Timestamp::from_second(1_000_000).expect("in range"),
            made: 0,
        }
    }

    fn spec(&mut self) -> &mut StatefulSetSpec {
        self.set.spec.get_or_insert_default()
    }

    fn own(&self) -> Vec<Arc<Pod>> {
        self.pods.values().cloned().map(Arc::new).collect()
    }

    fn plan(&self) -> Vec<Phase> {
        let claims = |name: &str| self.claims.get(name).cloned().map(Arc::new);
        plan(&Observed {
            set: &self.set,
            pods: &self.own(),
            claims: &claims,
            current: &version(&self.current),
            update: &version(&self.update),
            now: self.now,
        })
    }

    /// One pass of the controller; says whether anything was done.
    fn pass(&mut self) -> bool {
        let steps: Vec<_> = self.plan().into_iter().flatten().collect();
        self.check(&steps.iter().map(|step| &step.then).collect::<Vec<_>>());
        for step in &steps {
            for claim in &step.claims.make {
                let name = claim.metadata.name.clone().expect("a name");
                let before = self.claims.insert(name, claim.clone());
                assert_eq!(before, None, "no claim is made twice");
            }
            for (claim, owners) in &step.claims.own {
                let name = claim.metadata.name.as_ref().expect("a name");
                let known = self.claims.get_mut(name).expect("it is there");
                known.metadata.owner_references = Some(owners.clone());
            }
            match &step.then {
                Then::Nothing => {}
                Then::Create(pod) => self.create(pod),
                Then::Update(patch) => {
                    assert_eq!(*patch, json!({}), "the pods are as they were made");
                }
                Then::Delete(pod) => {
                    let name = pod.metadata.name.as_ref().expect("a name");
                    let known = self
                        .pods
                        .get_mut(name)
                        .expect("only those that are there go");
                    assert_eq!(known.metadata.deletion_timestamp, None, "and go once");
                    known.metadata.deletion_timestamp = Some(Time(self.now));
                }
            }
        }
        let of = Revisions {
            current: &self.current,
            update: &self.update,
            collisions: 0,
        };
        let (status, _) = status(&self.set, &self.own(), of, self.now);
        self.current = status.current_revision.clone().expect("it has one");
        self.set.status = Some(status);
        !steps.is_empty()
    }

    fn create(&mut self, pod: &Pod) {
        let mut pod = pod.clone();
        self.made += 1;
        pod.metadata.uid = Some(format!("p{}", self.made));
        pod.status.get_or_insert_default().phase = Some("Pending".to_owned());
        for volume in pod
            .spec
            .iter()
            .flat_map(|spec| spec.volumes.iter().flatten())
        {
            let claim = volume.persistent_volume_claim.as_ref().expect("a claim");
            assert!(
                self.claims.contains_key(&claim.claim_name),
                "claims come first"
            );
        }
        let name = pod.metadata.name.clone().expect("a name");
        let before = self.pods.insert(name, pod);
        assert_eq!(before, None, "never two of one ordinal");
    }

    fn serves(&self, pod: &Pod) -> bool {
        pod.metadata.deletion_timestamp.is_none() && self.is_available(pod)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        let min_ready = self
            .set
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds);
        let since = crate::pods::ready_since(pod);
        let long_enough = since.is_some_and(|since| {
            self.now.duration_since(since).as_secs() >= i64::from(min_ready.unwrap_or(0))
        });
        is_healthy(pod) && long_enough
    }

    /// What must hold of every step, whatever the pods do.
    fn check(&self, steps: &[&Then]) {
        let spec = self.set.spec.as_ref().expect("a spec");
        let wanted = ordinals(spec);
        let rolling = spec.update_strategy.as_ref();
        let rolling = rolling.and_then(|strategy| strategy.rolling_update.as_ref());
        let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.clone());
        let at = |ordinal: i64| self.pods.get(&format!("db-{ordinal}"));
        let of = |pod: &Pod| ordinal_of(&self.set, &pod.metadata).expect("an ordinal");
        let mut taken_down = 0;
        for step in steps {
            match step {
                Then::Create(pod) => {
                    let ordinal = of(pod);
                    assert!(wanted.contains(&ordinal));
                    assert!(at(ordinal).is_none());
                    if !is_parallel(&self.set) {
                        let before = (wanted.start..ordinal)
                            .all(|before| at(before).is_some_and(|pod| self.serves(pod)));
                        assert!(before, "{ordinal} waits for those before it");
                    }
                    let kept = ordinal - wanted.start < i64::from(partition);
                    let expected = if kept { &self.current } else { &self.update };
                    assert_eq!(revision_of(pod), Some(expected.as_str()));
                }
                Then::Delete(pod) if !wanted.contains(&of(pod)) => {
                    if !is_parallel(&self.set) {
                        let highest = self
                            .pods
                            .values()
                            .map(of)
                            .filter(|other| !wanted.contains(other))
                            .max();
                        assert_eq!(Some(of(pod)), highest, "the highest goes first");
                        let deletes = steps.iter().filter(|step| matches!(step, Then::Delete(_)));
                        assert_eq!(deletes.count(), 1, "and alone");
                        assert!(
                            wanted
                                .clone()
                                .all(|ordinal| at(ordinal).is_some_and(|pod| self.serves(pod)))
                        );
                    }
                }
                Then::Delete(pod) if crate::pods::is_finished(pod) => {}
                Then::Delete(pod) => {
                    assert_ne!(
                        revision_of(pod),
                        Some(self.update.as_str()),
                        "no pod goes for nothing"
                    );
                    assert!(
                        of(pod) - wanted.start >= i64::from(partition),
                        "nor below the partition"
                    );
                    if unavailable.is_none() {
                        let above = of(pod) + 1..wanted.end;
                        let settled = above.clone().all(|ordinal| {
                            at(ordinal).is_some_and(|pod| {
                                self.serves(pod) && revision_of(pod) == Some(self.update.as_str())
                            })
                        });
                        assert!(settled, "those above are of the update, and serve");
                    }
                    taken_down += 1;
                }
                Then::Nothing | Then::Update(_) => {}
            }
        }
        let most = match unavailable {
            Some(IntOrString::Int(most)) => most,
            _ => 1,
        };
        if taken_down > 0 && (unavailable.is_some() || !is_parallel(&self.set)) {
            let serving = wanted
                .clone()
                .filter(|ordinal| at(*ordinal).is_some_and(|pod| self.serves(pod)));
            let down = i32::try_from(wanted.clone().count() - serving.count()).expect("few");
            assert!(down + taken_down <= most, "no more are down than may be");
        }
        assert!(taken_down <= most.max(1));
    }

    fn ready(&mut self, name: &str, ready: bool) {
        let now = Time(self.now);
        let Some(pod) = self.pods.get_mut(name) else {
            return;
        };
        if crate::pods::is_finished(pod) {
            return;
        }
        let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": now});
        pod.status = Some(
            serde_json::from_value(json!({"phase": "Running", "conditions": [condition]}))
                .expect("a status"),
        );
    }

    /// What a pod's node does about pods in the end: those that go are gone, those that stay are ready.
    fn settle_pods(&mut self) {
        self.pods
            .retain(|_, pod| pod.metadata.deletion_timestamp.is_none());
        let down: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| !is_healthy(pod))
            .map(|(name, _)| name.clone())
            .collect();
        for name in down {
            self.ready(&name, true);
        }
        // Claims go with the pods and sets that own them.
        let uids: Vec<_> = self
            .pods
            .values()
            .filter_map(|pod| pod.metadata.uid.clone())
            .collect();
        self.claims.retain(|_, claim| {
            let owners = claim.metadata.owner_references.clone().unwrap_or_default();
            owners.is_empty()
                || owners
                    .iter()
                    .any(|owner| owner.uid == "s" || uids.contains(&owner.uid))
        });
        self.now += SignedDuration::from_secs(30);
    }

    /// Until nothing is done any more.
    fn settle(&mut self) {
        for _ in 0..200 {
            let acted = self.pass();
            self.settle_pods();
            if !acted && !self.pass() {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.pods.keys());
    }

    fn names(&self) -> Vec<&str> {
        self.pods.keys().map(String::as_str).collect()
    }

    fn of_revision(&self, revision: &str) -> Vec<&str> {
        let pods = self.pods.iter();
        pods.filter(|(_, pod)| revision_of(pod) == Some(revision))
            .map(|(name, _)| name.as_str())
            .collect()
    }

    fn deletes(&self) -> Vec<String> {
        let steps = self.plan().into_iter().flatten();
        steps
            .filter(|step| matches!(step.then, Then::Delete(_)))
            .map(|step| step.pod)
            .collect()
    }
}

#[test]
fn in_order_each_waits_for_the_one_before() {
    let mut world = World::new(json!({}));
    assert!(world.pass());
    assert_eq!(world.names(), ["db-0"]);
    assert!(!world.pass(), "it is not ready yet");
    world.ready("db-0", true);
    assert!(world.pass());
    assert_eq!(world.names(), ["db-0", "db-1"]);
    let told = world.set.status.clone().expect("a status");
    assert_eq!(
        (told.replicas, told.ready_replicas, told.available_replicas),
        (2, Some(1), Some(1))
    );
    assert_eq!(
        (told.current_replicas, told.updated_replicas),
        (Some(2), Some(2))
    );
    world.ready("db-1", true);
    world.ready("db-0", false);
    assert!(!world.pass(), "the first is down again");
}

#[test]
fn min_ready_seconds_are_waited_for_and_then_gone_on() {
    let mut world = World::new(json!({"minReadySeconds": 5}));
    world.pass();
    world.ready("db-0", true);
    assert!(!world.pass());
    let of = Revisions {
        current: "v1",
        update: "v1",
        collisions: 0,
    };
    let (told, wake) = status(&world.set, &world.own(), of, world.now);
    assert_eq!(wake, Some(std::time::Duration::from_secs(5)));
    assert_eq!(
        (told.ready_replicas, told.available_replicas),
        (Some(1), Some(0))
    );
    world.now += SignedDuration::from_secs(5);
    assert!(world.pass());
    assert_eq!(world.names(), ["db-0", "db-1"]);
}

#[test]
fn a_parallel_set_makes_all_at_once_from_its_first_ordinal() {
    let mut world =
        World::new(json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}}));
    world.pass();
    assert_eq!(world.names(), ["db-5", "db-6", "db-7"]);
}

#[test]
fn a_huge_parallel_set_is_made_in_parts() {
    let mut world = World::new(json!({"podManagementPolicy": "Parallel", "replicas": i32::MAX}));
    world.pass();
    assert_eq!(world.names().len(), crate::pod_control::BURST);
}

#[test]
fn scaled_down_the_highest_goes_first() {
    let mut world = World::new(json!({"replicas": 4}));
    world.settle();
    world.spec().replicas = Some(1);
    assert_eq!(world.deletes(), ["db-3"]);
    world.pass();
    assert_eq!(world.deletes(), [""; 0], "it is waited for");
    world.pods.remove("db-3");
    world.ready("db-1", false);
    assert_eq!(world.deletes(), ["db-2"]);
    world.ready("db-2", false);
    assert_eq!(world.deletes(), [""; 0], "a lower one is down as well");
    world.ready("db-1", true);
    assert_eq!(world.deletes(), ["db-2"], "it is the only one that is down");
    world.ready("db-0", false);
    assert_eq!(world.deletes(), [""; 0], "one that stays is down");
    world.ready("db-0", true);
    world.ready("db-1", false);
    let pod = world.pods.get_mut("db-2").expect("it is there");
    pod.status.get_or_insert_default().phase = Some("Failed".to_owned());
    assert_eq!(world.deletes(), ["db-2"], "it has ended");
}

#[test]
fn an_update_goes_from_the_highest_to_the_partition() {
    let mut world = World::new(json!({}));
    world.settle();
    world.update = "v2".to_owned();
    world.spec().update_strategy =
        serde_json::from_value(json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}))
            .expect("a strategy");
    assert_eq!(world.deletes(), ["db-2"]);
    world.settle();
    assert_eq!(world.of_revision("v2"), ["db-1", "db-2"]);
    let told = world.set.status.clone().expect("a status");
    assert_eq!(
        (told.current_replicas, told.updated_replicas),
        (Some(1), Some(2))
    );
    assert_eq!(told.current_revision.as_deref(), Some("v1"));
    world.pods.remove("db-0");
    world.settle();
    assert_eq!(
        world.of_revision("v1"),
        ["db-0"],
        "below the partition nothing changes"
    );
    world.spec().update_strategy =
        serde_json::from_value(json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}))
            .expect("a strategy");
    world.settle();
    let told = world.set.status.clone().expect("a status");
    assert_eq!(told.current_revision.as_deref(), Some("v2"));
    assert_eq!(
        (told.current_replicas, told.updated_replicas),
        (Some(3), Some(3))
    );
}

#[test]
fn on_delete_nothing_goes_by_itself() {
    let mut world = World::new(json!({"updateStrategy": {"type": "OnDelete"}}));
    world.settle();
    world.update = "v2".to_owned();
    assert!(!world.pass());
    world.pods.remove("db-1");
    world.settle();
    assert_eq!(world.of_revision("v2"), ["db-1"]);
}

#[test]
fn as_many_are_updated_at_once_as_may_be_unavailable() {
    let mut world = World::new(
        json!({"replicas": 5, "podManagementPolicy": "Parallel", "updateStrategy":
        {"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 2}}}),
    );
    world.settle();
    world.update = "v2".to_owned();
    assert_eq!(world.deletes(), ["db-4", "db-3"]);
    world.ready("db-0", false);
    assert_eq!(world.deletes(), ["db-4"]);
    world.ready("db-1", false);
    assert_eq!(world.deletes(), [""; 0]);
}

#[test]
fn a_pod_that_ended_is_replaced() {
    let mut world = World::new(json!({}));
    world.settle();
    for phase in ["Failed", "Succeeded"] {
        let before = world.pods["db-1"].metadata.uid.clone();
        let pod = world.pods.get_mut("db-1").expect("it is there");
        pod.status.get_or_insert_default().phase = Some(phase.to_owned());
        assert_eq!(world.deletes(), ["db-1"]);
        world.pass();
        world.settle();
        assert_ne!(world.pods["db-1"].metadata.uid, before);
    }
}

#[test]
fn claims_stay_or_go_as_asked() {
    for (when_scaled, left) in [("Retain", 3), ("Delete", 1)] {
        let mut world = World::new(json!({
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": when_scaled},
        }));
        world.settle();
        let names: Vec<_> = world.claims.keys().cloned().collect();
        assert_eq!(names, ["data-db-0", "data-db-1", "data-db-2"]);
        world.spec().replicas = Some(1);
        world.settle();
        assert_eq!(world.claims.len(), left, "{when_scaled}");
        world.spec().replicas = Some(3);
        world.settle();
        assert_eq!(world.names(), ["db-0", "db-1", "db-2"]);
    }
}

#[test]
fn a_claim_that_is_lost_is_made_again_while_the_pod_waits() {
    let mut world = World::new(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}}]}));
    world.pass();
    world.claims.clear();
    world.pass();
    assert_eq!(world.claims.len(), 1);
    world.ready("db-0", true);
    world.claims.clear();
    world.pass();
    assert_eq!(
        world.claims.keys().collect::<Vec<_>>(),
        ["data-db-1"],
        "one that runs has had its own"
    );
}

#[test]
fn a_set_that_goes_does_nothing() {
    let mut world = World::new(json!({}));
    world.set.metadata.deletion_timestamp = Some(Time(world.now));
    assert_eq!(world.plan(), Vec::<Phase>::new());
}

/// What happens to a set.
#[derive(Clone, Debug)]
enum Event {
    Scale(i32),
    Start(i32),
    Template(u8),
    Partition(i32),
    Unavailable(Option<i32>),
    MinReady(i32),
    Ready(usize, bool),
    End(usize),
    Delete(usize),
    Gone(usize),
    Later,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (0..6).prop_map(Event::Scale),
        1 => (0..3).prop_map(Event::Start),
        1 => (1..4_u8).prop_map(Event::Template),
        1 => (0..6).prop_map(Event::Partition),
        1 => proptest::option::of(1..4).prop_map(Event::Unavailable),
        1 => (0..20).prop_map(Event::MinReady),
        4 => (0..8_usize, prop::bool::weighted(0.8)).prop_map(|(at, ready)| Event::Ready(at, ready)),
        1 => (0..8_usize).prop_map(Event::End),
        1 => (0..8_usize).prop_map(Event::Delete),
        3 => (0..8_usize).prop_map(Event::Gone),
        2 => Just(Event::Later),
    ]
}

impl World {
    fn name_at(&self, at: usize) -> Option<String> {
        self.pods.keys().nth(at % self.pods.len().max(1)).cloned()
    }

    fn happen(&mut self, event: &Event) {
        let rolling = |world: &mut Self, change: &dyn Fn(&mut Value)| {
            let spec = world.spec();
            let mut strategy = serde_json::to_value(&spec.update_strategy).expect("JSON");
            if strategy["type"] == "RollingUpdate" {
                change(&mut strategy["rollingUpdate"]);
            }
            spec.update_strategy = serde_json::from_value(strategy).expect("a strategy");
        };
        match *event {
            Event::Scale(replicas) => self.spec().replicas = Some(replicas),
            Event::Start(start) => self.spec().ordinals.get_or_insert_default().start = Some(start),
            Event::Template(version) => self.update = format!("v{version}"),
            Event::Partition(partition) => {
                rolling(self, &|rolling| rolling["partition"] = json!(partition))
            }
            Event::Unavailable(most) => {
                rolling(self, &|rolling| rolling["maxUnavailable"] = json!(most))
            }
            Event::MinReady(seconds) => self.spec().min_ready_seconds = Some(seconds),
            Event::Later => self.now += SignedDuration::from_secs(7),
            Event::Ready(at, ready) => {
                if let Some(name) = self.name_at(at) {
                    self.ready(&name, ready);
                }
            }
            Event::End(at) | Event::Delete(at) | Event::Gone(at) => {
                let Some(name) = self.name_at(at) else { return };
                let now = Time(self.now);
                let pod = self.pods.get_mut(&name).expect("it is there");
                match event {
                    Event::End(_) => {
                        pod.status.get_or_insert_default().phase = Some("Failed".to_owned())
                    }
                    Event::Delete(_) => {
                        pod.metadata.deletion_timestamp.get_or_insert(now);
                    }
                    _ if pod.metadata.deletion_timestamp.is_some() => {
                        self.pods.remove(&name);
                    }
                    _ => {}
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold_and_it_comes_to_rest(
        policy in prop::sample::select(vec!["OrderedReady", "Parallel"]),
        strategy in prop::sample::select(vec!["RollingUpdate", "OnDelete"]),
        when_deleted in prop::sample::select(vec!["Retain", "Delete"]),
        when_scaled in prop::sample::select(vec!["Retain", "Delete"]),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let update = match strategy {
            "OnDelete" => json!({"type": strategy}),
            _ => json!({"type": strategy, "rollingUpdate": {"partition": 0}}),
        };
        let mut world = World::new(json!({
            "podManagementPolicy": policy, "updateStrategy": update,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": when_deleted, "whenScaled": when_scaled},
        }));
        for event in &events {
            world.happen(event);
            world.pass();
        }
        // From here on the pods do as they should.
        world.settle();
        let wanted = ordinals(world.set.spec.as_ref().expect("a spec"));
        let start = wanted.start;
        let names: Vec<_> = wanted.map(|ordinal| format!("db-{ordinal}")).collect();
        prop_assert_eq!(world.names(), names);
        prop_assert!(world.pods.values().all(|pod| world.serves(pod)));
        if strategy == "RollingUpdate" {
            let spec = world.set.spec.clone().unwrap_or_default();
            let rolling = spec.update_strategy.and_then(|strategy| strategy.rolling_update);
            let partition = rolling.and_then(|rolling| rolling.partition).unwrap_or(0);
            for pod in world.pods.values() {
                let ordinal = ordinal_of(&world.set, &pod.metadata).expect("an ordinal");
                if ordinal - start >= i64::from(partition) {
                    prop_assert_eq!(revision_of(pod), Some(world.update.as_str()));
                }
            }
        }
        prop_assert!(!world.pass(), "nothing is left to do");
    }
}
