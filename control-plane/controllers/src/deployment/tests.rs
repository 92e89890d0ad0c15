//! Whole rollouts, on a model of replica sets that do as they are told.

mod canaries;
mod rollbacks;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, ReplicaSetStatus,
    RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::canary::Canary;
use super::plan::{Observed, Plan, Told, plan, set_name};
use super::policy::Policy;
use super::revision::{DESIRED_REPLICAS, REVISION, count, revision_of, same_template};
use super::sizing::{allowed, available, max_surge, max_unavailable, size, total, wanted};
use super::status::{condition, is_complete, is_paused};
use crate::figures::PodValue;

/// A deployment, its sets and their pods.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    events: Vec<String>,
    now: Timestamp,
    old_pods_run: bool,
    policy: Policy,
    /// The pods of the current set, as far as they are evidence.
    pods: Vec<Arc<Pod>>,
    /// What a failing probe was answered.
    answer: Option<String>,
    told: Vec<Told>,
    /// What the metric of a step is.
    figures: Option<Result<Vec<PodValue>, String>>,
}

impl World {
    fn new(replicas: i32, strategy: DeploymentStrategy) -> Self {
        let labels = || Some([("app".to_owned(), "x".to_owned())].into());
        Self {
            deployment: Deployment {
                metadata: ObjectMeta {
                    name: Some("web".to_owned()),
                    namespace: Some("ns".to_owned()),
                    uid: Some("deployment".to_owned()),
                    generation: Some(1),
                    ..ObjectMeta::default()
                },
                spec: Some(DeploymentSpec {
                    replicas: Some(replicas),
                    selector: LabelSelector {
                        match_labels: labels(),
                        match_expressions: None,
                    },
                    template: PodTemplateSpec {
                        metadata: Some(ObjectMeta {
                            labels: labels(),
                            ..ObjectMeta::default()
                        }),
                        spec: Some(PodSpec {
                            containers: vec![Container {
                                image: Some("nginx:1".to_owned()),
                                ..Container::default()
                            }],
                            ..PodSpec::default()
                        }),
                    },
                    strategy: Some(strategy),
                    progress_deadline_seconds: Some(600),
                    revision_history_limit: Some(10),
                    ..DeploymentSpec::default()
                }),
                status: None,
            },
            sets: Vec::new(),
            events: Vec::new(),
            now: Timestamp::from_second(1_000_000).expect("in range"),
            old_pods_run: false,
            policy: Policy::default(),
            pods: Vec::new(),
            answer: None,
            told: Vec::new(),
            figures: None,
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut DeploymentSpec)) {
        change(self.deployment.spec.get_or_insert_default());
        *self.deployment.metadata.generation.get_or_insert_default() += 1;
    }

    fn annotate(&mut self, name: &str, value: &str) {
        let metadata = &mut self.deployment.metadata;
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(name.to_owned(), value.to_owned());
    }

    fn set_image(&mut self, image: &str) {
        self.change(|spec| {
            spec.template.spec.get_or_insert_default().containers[0].image = Some(image.to_owned());
        });
    }

    fn image(&self) -> String {
        let spec = self.deployment.spec.as_ref().expect("a spec");
        let pod = spec.template.spec.as_ref().expect("a pod");
        pod.containers[0].image.clone().expect("an image")
    }

    /// One pass of the controller; its plan is carried out.
    fn pass(&mut self) -> Plan {
        let hash = self.image().replace("nginx:", "hash");
        let plan = plan(Observed {
            deployment: &self.deployment,
            sets: self.sets.clone(),
            old_pods_run: self.old_pods_run,
            hash,
            policy: self.policy.clone(),
            canary: Canary::of(&self.deployment),
            figures: self.figures.clone(),
            pods: self.pods.clone(),
            answer: self.answer.clone(),
            now: self.now,
        });
        if let Some(mut set) = plan.create.clone() {
            self.now += SignedDuration::from_secs(1);
            set.metadata.creation_timestamp = Some(Time(self.now));
            set.metadata.uid.clone_from(&set.metadata.name);
            set.metadata.generation = Some(1);
            self.sets.push(set);
        }
        for changed in &plan.update {
            let known = self
                .sets
                .iter_mut()
                .find(|set| set.metadata.name == changed.metadata.name);
            *known.expect("only known sets are changed") = changed.clone();
        }
        self.sets.retain(|set| {
            let name = set.metadata.name.clone().unwrap_or_default();
            !plan.delete.contains(&name)
        });
        if let Some(deployment) = plan.deployment.clone() {
            self.deployment = deployment;
        }
        if let Some(deployment) = plan.rewrite.clone() {
            self.deployment = deployment;
            *self.deployment.metadata.generation.get_or_insert_default() += 1;
        }
        self.events.extend(plan.events.clone());
        self.told.extend(plan.told.clone());
        plan
    }

    /// The replica set controller: as many pods as told, those not available going first.
    fn run_sets(&mut self) {
        for set in &mut self.sets {
            let size = size(set);
            let available = available(set).min(size);
            report(set, size, available);
        }
    }

    /// Up to `count` more pods of a set become available; or are so no more, below zero.
    fn become_available(&mut self, at: usize, count: i32) {
        if let Some(set) = self.sets.get_mut(at) {
            let replicas = set.status.as_ref().map_or(0, |status| status.replicas);
            let available = (available(set) + count).min(replicas).max(0);
            report(set, replicas, available);
        }
    }

    fn snapshot(&self) -> (Deployment, Vec<ReplicaSet>) {
        (self.deployment.clone(), self.sets.clone())
    }

    /// Runs until nothing changes any more.
    fn settle(&mut self) {
        for _ in 0..200 {
            let before = self.snapshot();
            self.pass();
            self.run_sets();
            for at in 0..self.sets.len() {
                self.become_available(at, 1);
            }
            if self.snapshot() == before {
                return;
            }
        }
    }

    fn is_complete(&self) -> bool {
        let status = self.deployment.status.clone().unwrap_or_default();
        is_complete(&self.deployment, &status)
    }

    fn reason(&self, type_: &str) -> String {
        let status = self.deployment.status.clone().unwrap_or_default();
        condition(&status, type_)
            .and_then(|condition| condition.reason.clone())
            .unwrap_or_default()
    }

    /// Whether the next pass has a change of size to follow.
    fn is_resized(&self) -> bool {
        let wanted = wanted(&self.deployment);
        self.sets
            .iter()
            .filter(|set| size(set) > 0)
            .any(|set| count(&set.metadata, DESIRED_REPLICAS) != Some(wanted))
    }

    /// How many pods are available when the sets have done as they are told.
    fn up(&self) -> i32 {
        self.sets
            .iter()
            .map(|set| available(set).min(size(set)))
            .sum()
    }

    fn sizes(&self) -> Vec<(String, i32)> {
        let name = |set: &ReplicaSet| set.metadata.name.clone().unwrap_or_default();
        self.sets.iter().map(|set| (name(set), size(set))).collect()
    }
}

fn report(set: &mut ReplicaSet, replicas: i32, available: i32) {
    let some = |count: i32| Some(count).filter(|count| *count != 0);
    set.status = Some(ReplicaSetStatus {
        replicas,
        ready_replicas: some(available),
        available_replicas: some(available),
        terminating_replicas: Some(0),
        observed_generation: set.metadata.generation,
        ..ReplicaSetStatus::default()
    });
}

fn rolling(surge: IntOrString, unavailable: IntOrString) -> DeploymentStrategy {
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(surge),
            max_unavailable: Some(unavailable),
        }),
    }
}

fn quarter() -> DeploymentStrategy {
    let percent = || IntOrString::String("25%".to_owned());
    rolling(percent(), percent())
}

fn recreate() -> DeploymentStrategy {
    DeploymentStrategy {
        type_: Some("Recreate".to_owned()),
        rolling_update: None,
    }
}

fn pairs(pairs: &[(&str, i32)]) -> Vec<(String, i32)> {
    pairs
        .iter()
        .map(|(name, size)| ((*name).to_owned(), *size))
        .collect()
}

#[test]
fn the_first_rollout_creates_one_set_of_full_size() {
    let mut world = World::new(2, quarter());
    let plan = world.pass();
    let set = plan.create.expect("a set");
    assert_eq!(size(&set), 2);
    let annotations = set.metadata.annotations.unwrap_or_default();
    let of = |name: &str| {
        annotations
            .get(&format!("deployment.kubernetes.io/{name}"))
            .cloned()
    };
    assert_eq!(of("desired-replicas").as_deref(), Some("2"));
    assert_eq!(of("max-replicas").as_deref(), Some("3"));
    assert_eq!(of("revision").as_deref(), Some("1"));
    assert_eq!(plan.events, ["Scaled up replica set web-hash1 from 0 to 2"]);
    assert_eq!(revision_of(&world.deployment.metadata), 1);
    assert_eq!(world.reason("Progressing"), "NewReplicaSetCreated");
    assert_eq!(world.reason("Available"), "MinimumReplicasUnavailable");
    world.settle();
    assert!(world.is_complete());
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
    let quiet = world.pass();
    assert!(quiet.create.is_none() && quiet.update.is_empty() && quiet.deployment.is_none());
}

#[test]
fn unavailable_old_pods_make_room_at_once() {
    // As recorded: four pods that never became ready, then another image.
    let mut world = World::new(4, quarter());
    world.pass();
    world.run_sets();
    world.set_image("nginx:2");
    for _ in 0..5 {
        world.pass();
        world.run_sets();
    }
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 3), ("web-hash2", 2)]));
    assert_eq!(world.reason("Progressing"), "ReplicaSetUpdated");
    let status = world.deployment.status.clone().unwrap_or_default();
    assert_eq!(
        (
            status.replicas,
            status.updated_replicas,
            status.unavailable_replicas
        ),
        (Some(5), Some(2), Some(5))
    );
}

#[test]
fn going_back_takes_the_old_set_under_a_new_revision() {
    let mut world = World::new(3, quarter());
    world.settle();
    world.set_image("nginx:2");
    world.settle();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 0), ("web-hash2", 3)]));
    world.set_image("nginx:1");
    world.settle();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 3), ("web-hash2", 0)]));
    let annotations = world.sets[0]
        .metadata
        .annotations
        .clone()
        .unwrap_or_default();
    assert_eq!(annotations.get(REVISION).map(String::as_str), Some("3"));
    assert_eq!(
        annotations
            .get("deployment.kubernetes.io/revision-history")
            .map(String::as_str),
        Some("1")
    );
    assert_eq!(revision_of(&world.deployment.metadata), 3);
    assert!(world.is_complete());
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::new(2, recreate());
    world.settle();
    world.set_image("nginx:2");
    world.old_pods_run = true;
    world.pass();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 0)]));
    world.run_sets();
    world.pass();
    assert_eq!(world.sets.len(), 1, "old pods still run");
    world.old_pods_run = false;
    world.pass();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 0), ("web-hash2", 2)]));
    world.settle();
    assert!(world.is_complete());
}

#[test]
fn a_paused_deployment_is_scaled_but_not_rolled_out() {
    let mut world = World::new(2, quarter());
    world.settle();
    world.change(|spec| spec.paused = Some(true));
    world.set_image("nginx:2");
    world.change(|spec| spec.replicas = Some(5));
    world.settle();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 5)]));
    assert_eq!(world.reason("Progressing"), "DeploymentPaused");
    world.change(|spec| spec.paused = None);
    world.settle();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 0), ("web-hash2", 5)]));
    assert!(world.is_complete());
}

#[test]
fn a_resize_during_a_rollout_is_shared_in_proportion() {
    let mut world = World::new(10, rolling(IntOrString::Int(3), IntOrString::Int(2)));
    world.settle();
    world.set_image("nginx:2");
    for _ in 0..3 {
        world.pass();
        world.run_sets();
    }
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 8), ("web-hash2", 5)]));
    world.change(|spec| spec.replicas = Some(15));
    world.pass();
    assert_eq!(world.sizes(), pairs(&[("web-hash1", 11), ("web-hash2", 7)]));
}

#[test]
fn a_rollout_that_stands_still_is_reported_after_its_deadline() {
    let mut world = World::new(1, quarter());
    world.settle();
    world.set_image("nginx:2");
    world.pass();
    world.run_sets();
    let plan = world.pass();
    let wake = plan.wake.expect("the deadline wakes it");
    assert!((600..=601).contains(&wake.as_secs()), "{wake:?}");
    world.now += SignedDuration::from_secs(602);
    world.pass();
    assert_eq!(world.reason("Progressing"), "ProgressDeadlineExceeded");
    world.settle();
    assert!(world.is_complete(), "late is better than never");
    assert_eq!(world.reason("Progressing"), "NewReplicaSetAvailable");
}

#[test]
fn history_is_kept_up_to_its_limit() {
    let mut world = World::new(1, quarter());
    world.change(|spec| spec.revision_history_limit = Some(2));
    for image in 1..=5 {
        world.set_image(&format!("nginx:{image}"));
        world.settle();
    }
    assert_eq!(
        world.sizes(),
        pairs(&[("web-hash3", 0), ("web-hash4", 0), ("web-hash5", 1)])
    );
}

#[test]
fn a_deployment_being_deleted_only_counts() {
    let mut world = World::new(2, quarter());
    world.deployment.metadata.deletion_timestamp = Some(Time(world.now));
    let plan = world.pass();
    assert!(plan.create.is_none() && plan.update.is_empty() && plan.events.is_empty());
}

#[test]
fn a_set_that_nobody_has_looked_at_yet_has_no_pods_on_their_way_out() {
    let mut world = World::new(2, quarter());
    world.pass();
    // As the API server answers: a status, and nothing in it.
    world.sets[0].status = Some(ReplicaSetStatus::default());
    world.pass();
    let terminating = |world: &World| {
        let status = world.deployment.status.clone().unwrap_or_default();
        status.terminating_replicas
    };
    assert_eq!(terminating(&world), Some(0));
    // Looked at by somebody who does not count them.
    world.sets[0].status = Some(ReplicaSetStatus {
        observed_generation: Some(1),
        ..ReplicaSetStatus::default()
    });
    world.pass();
    assert_eq!(terminating(&world), None);
}

#[test]
fn a_name_that_would_be_too_long_is_cut() {
    let mut deployment = Deployment::default();
    for (length, kept) in [(13, 13), (242, 242), (250, 242)] {
        deployment.metadata.name = Some("a".repeat(length));
        let name = set_name(&deployment, "86588d599b");
        assert_eq!(name, format!("{}-86588d599b", "a".repeat(kept)));
    }
}

#[test]
fn an_earlier_revision_is_gone_back_to_when_the_old_annotation_asks() {
    let mut world = World::new(2, quarter());
    world.annotate("kubernetes.io/change-cause", "first");
    world.settle();
    world.annotate("kubernetes.io/change-cause", "second");
    world.set_image("nginx:2");
    world.settle();
    for (to, told, image) in [
        (
            "7",
            "Unable to find the revision to rollback to.",
            "nginx:2",
        ),
        (
            "2",
            "The rollback revision contains the same template as current deployment \"web\"",
            "nginx:2",
        ),
        (
            "0",
            "Rolled back deployment \"web\" to revision 1",
            "nginx:1",
        ),
    ] {
        world.annotate("deprecated.deployment.rollback.to", to);
        let plan = world.pass();
        assert_eq!(plan.told.len(), 1);
        assert_eq!(plan.told[0].message, told);
        assert_eq!(plan.told[0].is_warning, image == "nginx:2");
        assert_eq!(world.image(), image);
    }
    let annotations = world.deployment.metadata.annotations.clone();
    let cause = annotations.unwrap_or_default();
    let cause = cause.get("kubernetes.io/change-cause").cloned();
    assert_eq!(cause.as_deref(), Some("first"));
    world.settle();
    assert!(world.is_complete());
    assert_eq!(revision_of(&world.deployment.metadata), 3);
}

fn limit() -> impl Strategy<Value = IntOrString> {
    prop_oneof![
        (0..4i32).prop_map(IntOrString::Int),
        (0..=100i32).prop_map(|percent| IntOrString::String(format!("{percent}%"))),
    ]
}

/// What happens between passes.
#[derive(Clone, Debug)]
enum Step {
    Pass,
    RunSets,
    Available(usize, i32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Pass),
        Just(Step::RunSets),
        (0..3usize, 1..4i32).prop_map(|(at, count)| Step::Available(at, count)),
    ]
}

/// What a user does, or what happens between passes.
#[derive(Clone, Debug)]
enum Change {
    Between(Step),
    Resize(i32),
    Image(u8),
    Pause(bool),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => step().prop_map(Change::Between),
        1 => (0..12i32).prop_map(Change::Resize),
        1 => (1..4u8).prop_map(Change::Image),
        1 => any::<bool>().prop_map(Change::Pause),
    ]
}

proptest! {
    /// Whatever the order in which pods come up and the controller looks, there are never too many pods and never too
    /// few available, and in the end all are new.
    #[test]
    fn a_rolling_update_keeps_its_bounds_and_converges(
        replicas in 0..12i32,
        surge in limit(),
        unavailable in limit(),
        steps in prop::collection::vec(step(), 0..60),
        second in 0..40usize,
    ) {
        let mut world = World::new(replicas, rolling(surge, unavailable));
        world.settle();
        prop_assert!(world.is_complete());
        let most = wanted(&world.deployment) + max_surge(&world.deployment);
        let least = wanted(&world.deployment) - max_unavailable(&world.deployment);
        world.set_image("nginx:2");
        for (at, step) in steps.iter().enumerate() {
            if at == second {
                world.set_image("nginx:3");
            }
            match step {
                Step::Pass => drop(world.pass()),
                Step::RunSets => world.run_sets(),
                Step::Available(at, count) => world.become_available(*at, *count),
            }
            prop_assert!(total(&world.sets) <= most, "{:?}", world.sizes());
            let up: i32 = world.sets.iter().map(|set| available(set).min(size(set))).sum();
            prop_assert!(up >= least, "{up} of {least}: {:?}", world.sizes());
        }
        world.settle();
        prop_assert!(world.is_complete(), "{:?}", world.sizes());
    }

    /// Whatever a user does in the middle of whatever is under way: no pass makes more pods than there may be, none takes
    /// away an available pod that is needed, and in the end all is as wanted and nothing is left to do.
    #[test]
    fn changes_in_the_middle_keep_the_bounds_and_converge(
        replicas in 0..12i32,
        surge in limit(),
        unavailable in limit(),
        steps in prop::collection::vec(change(), 0..60),
    ) {
        let mut world = World::new(replicas, rolling(surge, unavailable));
        world.settle();
        for step in steps {
            match step {
                Change::Between(Step::Pass) => {
                    let (before, up) = (total(&world.sets), world.up());
                    let free = !world.is_resized() && !is_paused(&world.deployment);
                    world.pass();
                    let most = allowed(&world.deployment).max(before);
                    prop_assert!(total(&world.sets) <= most, "{:?}", world.sizes());
                    let least = wanted(&world.deployment) - max_unavailable(&world.deployment);
                    let kept = world.up() >= up.min(least);
                    prop_assert!(kept || !free, "{up} of {least}: {:?}", world.sizes());
                }
                Change::Between(Step::RunSets) => world.run_sets(),
                Change::Between(Step::Available(at, count)) => world.become_available(at, count),
                Change::Resize(to) => world.change(|spec| spec.replicas = Some(to)),
                Change::Image(image) => world.set_image(&format!("nginx:{image}")),
                Change::Pause(paused) => world.change(|spec| spec.paused = Some(paused)),
            }
        }
        world.change(|spec| spec.paused = None);
        world.settle();
        prop_assert!(world.is_complete(), "{:?}", world.sizes());
        prop_assert_eq!(total(&world.sets), wanted(&world.deployment));
        let spec = world.deployment.spec.clone().unwrap_or_default();
        for set in world.sets.iter().filter(|set| size(set) > 0) {
            let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            prop_assert!(own.is_some_and(|own| same_template(own, &spec.template)));
        }
        let quiet = world.pass();
        prop_assert!(quiet.create.is_none() && quiet.update.is_empty() && quiet.delete.is_empty());
        prop_assert!(quiet.deployment.is_none() && quiet.rewrite.is_none());
    }

    /// A resize at any moment of a rollout ends in the new size.
    #[test]
    fn a_resize_converges(from in 0..10i32, to in 0..10i32, passes in 0..6usize) {
        let mut world = World::new(from, quarter());
        world.settle();
        world.set_image("nginx:2");
        for _ in 0..passes {
            world.pass();
            world.run_sets();
        }
        world.change(|spec| spec.replicas = Some(to));
        world.settle();
        prop_assert!(world.is_complete(), "{:?}", world.sizes());
        prop_assert_eq!(total(&world.sets), to);
    }
}
