//! Pods that get more or less while they run: what they have been given, for whom there is room, and what a running container
//! takes to come to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_base::field::aggregate;
use gantry_base::quantity::Quantity;
use gantry_cri::runtime::{ContainerId, PodUid, Resources, Runtime, RuntimeError, Usage};
use gantry_cri::words;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::record::{Role, containers};

/// What a running pod may get more or less of: CPU time, counted in thousandths of a CPU, and memory in bytes.
const RESOURCES: [&str; 2] = ["cpu", "memory"];

/// Why a pod keeps what it has for now, or for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `Deferred` or `Infeasible`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What a pod's status tells of a resize that is not done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) pending: Option<Refusal>,
    pub(crate) is_under_way: bool,
    /// Why it has failed so far.
    pub(crate) error: Option<String>,
}

/// What containers, and the pod as a whole, have been given: what the API says, but for a resize that has to wait.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Allotted {
    whole: Option<ResourceRequirements>,
    containers: BTreeMap<String, ResourceRequirements>,
}

impl Allotted {
    pub(crate) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let all = spec.into_iter().flat_map(containers);
        let of_container = |(_, container): (Role, &Container)| {
            let resources = container.resources.clone().unwrap_or_default();
            (container.name.clone(), resources)
        };
        Self {
            whole: spec.and_then(|spec| spec.resources.clone()),
            containers: all.map(of_container).collect(),
        }
    }

    /// The pod with what it has been given; the same when that is what it asks for.
    pub(crate) fn given_to(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        if Self::of(pod) == *self {
            return Arc::clone(pod);
        }
        let mut pod = Pod::clone(pod);
        if let Some(spec) = &mut pod.spec {
            spec.resources.clone_from(&self.whole);
            let inits = spec.init_containers.iter_mut().flatten();
            for container in spec.containers.iter_mut().chain(inits) {
                if let Some(resources) = self.containers.get(&container.name) {
                    container.resources = Some(resources.clone());
                }
            }
        }
        Arc::new(pod)
    }
}

/// What all pods of a node request together, of CPU time and of memory, by their uids: what they have been given.
#[derive(Debug, Default)]
pub struct Allocations(Mutex<BTreeMap<String, [i64; 2]>>);

impl Allocations {
    /// Counts a pod that is here, whether there is room for it or not.
    pub(crate) fn hold(self: &Arc<Self>, uid: &str, requests: [i64; 2]) -> Allocation {
        self.0.lock().insert(uid.to_owned(), requests);
        Allocation {
            all: Arc::clone(self),
            uid: uid.to_owned(),
        }
    }
}

/// A pod's part of what its node has; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Allocation {
    all: Arc<Allocations>,
    uid: String,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.uid);
    }
}

impl Allocation {
    /// Makes the pod's part another one, if there is room in what the node has; `None` is room for everything.
    pub(crate) fn resize(&self, asked: [i64; 2], room: [Option<i64>; 2]) -> Result<(), Refusal> {
        let mut all = self.all.0.lock();
        let had = all.get(&self.uid).copied().unwrap_or_default();
        let mut used = [0_i64; 2];
        for others in all.iter().filter(|(uid, _)| **uid != self.uid) {
            for (used, other) in used.iter_mut().zip(others.1) {
                *used = used.saturating_add(*other);
            }
        }
        for (index, resource) in RESOURCES.into_iter().enumerate() {
            let Some(room) = room[index] else {
                continue;
            };
            check(resource, asked[index], had[index], used[index], room)?;
        }
        all.insert(self.uid.clone(), asked);
        Ok(())
    }
}

/// Checks that a pod gets no more of a resource than the others leave. Less is always there.
fn check(resource: &str, asked: i64, had: i64, used: i64, room: i64) -> Result<(), Refusal> {
    if asked <= had || asked.saturating_add(used) <= room {
        return Ok(());
    }
    Err(match asked > room {
        true => Refusal {
            reason: "Infeasible",
            message: format!(
                "Node didn't have enough capacity: {resource}, requested: {asked}, capacity: {room}"
            ),
        },
        false => Refusal {
            reason: "Deferred",
            message: format!(
                "Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {room}"
            ),
        },
    })
}

fn amount(amounts: Option<&BTreeMap<String, Written>>, resource: &str) -> Option<Quantity> {
    amounts?.get(resource)?.0.parse().ok()
}

/// Request and limit of a resource.
fn amounts(resources: &ResourceRequirements, resource: &str) -> [Option<Quantity>; 2] {
    [&resources.requests, &resources.limits].map(|amounts| amount(amounts.as_ref(), resource))
}

/// How a running container comes to what it has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It has it.
    Nothing,
    /// Its limits are changed.
    Update,
    /// It is started anew, as its `resizePolicy` says.
    Restart,
}

/// What there is to do for a container which was started, or changed last, with these resources.
pub(crate) fn action(container: &Container, had: &ResourceRequirements) -> Action {
    let none = ResourceRequirements::default();
    let given = container.resources.as_ref().unwrap_or(&none);
    let is_changed = |resource: &&str| amounts(given, resource) != amounts(had, resource);
    let changed: Vec<&str> = RESOURCES.into_iter().filter(is_changed).collect();
    let mut policies = container.resize_policy.iter().flatten();
    let restarts = policies.any(|policy| {
        policy.restart_policy == "RestartContainer"
            && changed.contains(&policy.resource_name.as_str())
    });
    match (changed.is_empty(), restarts) {
        (true, _) => Action::Nothing,
        (false, true) => Action::Restart,
        (false, false) => Action::Update,
    }
}

/// Whether a container's limit of memory is lower than it was, or new.
pub(crate) fn lowers_memory(container: &Container, had: &ResourceRequirements) -> bool {
    let limits = container.resources.as_ref();
    let limits = limits.and_then(|resources| resources.limits.as_ref());
    match (
        amount(limits, "memory"),
        amount(had.limits.as_ref(), "memory"),
    ) {
        (Some(now), Some(before)) => now < before,
        (now, None) => now.is_some(),
        (None, Some(_)) => false,
    }
}

/// New limits of a running container.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) id: ContainerId,
    pub(crate) resources: Resources,
    /// Its limit of memory is one that it may exceed by now.
    pub(crate) lowers_memory: bool,
}

/// New limits of a pod, and of those of its containers that run.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) pod: PodUid,
    pub(crate) whole: Resources,
    pub(crate) containers: Vec<Change>,
    /// Other containers are about to begin anew with limits that fit those of the pod.
    pub(crate) others_follow: bool,
}

impl Update {
    /// Does it; whether all of it is done. A pod has at least the limits of its containers all the time: the kernel refuses
    /// others, whichever come first.
    pub(crate) async fn apply(&self, runtime: &dyn Runtime) -> Result<bool, String> {
        let lowers_memory = self.containers.iter().any(|change| change.lowers_memory);
        if lowers_memory {
            let usage = runtime.usage(&self.pod).await;
            let usage = usage.map_err(|error| {
                let why = words(&error);
                format!(
                    "unable to read memory usage for pod {:?}: {why}",
                    self.pod.0
                )
            })?;
            self.check_memory(&usage)?;
        }
        let first = runtime.update_sandbox(&self.pod, &self.whole).await;
        for change in &self.containers {
            let updated = runtime
                .update_container(&change.id, &change.resources)
                .await;
            match updated {
                // It is started with what it has been given, if it is.
                Ok(()) | Err(RuntimeError::NotRunning(_)) => {}
                Err(error) => return Err(words(&error)),
            }
        }
        match first {
            Ok(()) => Ok(true),
            Err(_) if self.others_follow => Ok(false),
            Err(_) => {
                let again = runtime.update_sandbox(&self.pod, &self.whole).await;
                again.map(|()| true).map_err(|error| words(&error))
            }
        }
    }

    /// Refuses limits of memory that are exceeded already: the kernel would end processes to keep them.
    fn check_memory(&self, usage: &BTreeMap<String, Usage>) -> Result<(), String> {
        let mut wrong = Vec::new();
        let all = usage.values().map(|usage| usage.memory_working_set);
        let all = all.fold(0_u64, u64::saturating_add);
        let exceeds = |used: u64, limit: i64| i64::try_from(used).is_ok_and(|used| used >= limit);
        if let Some(limit) = self.whole.memory_limit
            && exceeds(all, limit)
        {
            wrong.push(format!(
                "attempting to set pod memory limit ({limit}) below current usage ({all})"
            ));
        }
        for change in self.containers.iter().filter(|one| one.lowers_memory) {
            let used = usage.get(&change.id.name);
            let used = used.map_or(0, |usage| usage.memory_working_set);
            if let Some(limit) = change.resources.memory_limit
                && exceeds(used, limit)
            {
                wrong.push(format!(
                    "attempting to set container {:?} memory limit ({limit}) below current usage ({used})",
                    change.id.name
                ));
            }
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "cannot decrease memory limits: {}",
                aggregate(&wrong)
            )),
        }
    }
}

/// What an Event says of a resize, in a kubelet's words and its JSON of what the pod's containers are to have.
pub(crate) fn summary(what: &str, pod: &Pod, error: Option<&str>) -> String {
    #[derive(Serialize)]
    struct One<'a> {
        name: &'a str,
        resources: ResourceRequirements,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct All<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<One<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        containers: Vec<One<'a>>,
        generation: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    }
    fn list<'a>(all: Vec<(Role, &'a Container)>) -> Vec<One<'a>> {
        let one = |(_, container): (Role, &'a Container)| One {
            name: &container.name,
            resources: container.resources.clone().unwrap_or_default(),
        };
        all.into_iter().map(one).collect()
    }
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(containers);
    let (mains, inits) = all.partition::<Vec<_>, _>(|(role, _)| *role == Role::Main);
    let all = All {
        init_containers: list(inits),
        containers: list(mains),
        generation: pod.metadata.generation.unwrap_or_default(),
        error,
    };
    match serde_json::to_string(&all) {
        Ok(all) => format!("{what}: {all}"),
        Err(_) => what.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resources(value: Value) -> ResourceRequirements {
        serde_json::from_value(value).unwrap()
    }

    fn container(value: Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_gets_more_when_the_others_leave_it() {
        let all = Arc::new(Allocations::default());
        let first = all.hold("a", [1000, 100]);
        let second = all.hold("b", [1000, 100]);
        let room = [Some(4000), Some(1000)];
        let told = |result: Result<(), Refusal>| result.map_err(|refusal| refusal.message);
        assert_eq!(first.resize([3000, 100], room), Ok(()));
        let refused = second.resize([2000, 100], room).unwrap_err();
        assert_eq!(refused.reason, "Deferred");
        assert_eq!(
            refused.message,
            "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000"
        );
        let refused = second.resize([1000, 2000], room).unwrap_err();
        assert_eq!(refused.reason, "Infeasible");
        assert_eq!(
            refused.message,
            "Node didn't have enough capacity: memory, requested: 2000, capacity: 1000"
        );
        assert_eq!(told(second.resize([1000, 2000], [None, None])), Ok(()));
        // Less is there however full the node is.
        assert_eq!(told(second.resize([1000, 1500], room)), Ok(()));
        drop(first);
        assert_eq!(told(second.resize([4000, 1500], room)), Ok(()));
    }

    #[test]
    fn what_a_container_takes_follows_from_its_policy() {
        let had = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}});
        let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"},
            {"resourceName": "cpu", "restartPolicy": "NotRequired"}]);
        let with = |given: Value| {
            let own = json!({"name": "c", "resources": given, "resizePolicy": policy});
            (
                action(&container(own.clone()), &resources(had.clone())),
                container(own),
            )
        };
        let (same, _) = with(
            json!({"requests": {"cpu": "1000m", "memory": "1Gi"}, "limits": {"memory": "1024Mi"}}),
        );
        assert_eq!(same, Action::Nothing);
        let (faster, given) =
            with(json!({"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}));
        assert_eq!(faster, Action::Update);
        assert!(!lowers_memory(&given, &resources(had.clone())));
        let (smaller, given) =
            with(json!({"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"memory": "512Mi"}}));
        assert_eq!(smaller, Action::Restart);
        assert!(lowers_memory(&given, &resources(had.clone())));
    }

    #[test]
    fn a_pod_has_what_it_was_given() {
        let pod = |cpu: &str| -> Arc<Pod> {
            let resources = json!({"requests": {"cpu": cpu}});
            let containers = json!([{"name": "c", "image": "x:1", "resources": resources}]);
            let pod = json!({"metadata": {"generation": 2}, "spec": {"containers": containers}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let (one, two) = (pod("1"), pod("2"));
        let allotted = Allotted::of(&one);
        assert!(Arc::ptr_eq(&allotted.given_to(&one), &one));
        assert_eq!(allotted.given_to(&two), one);
        assert_eq!(
            summary("Pod resize started", &two, None),
            "Pod resize started: {\"containers\":[{\"name\":\"c\",\"resources\":{\"requests\":{\"cpu\":\"2\"}}}],\"generation\":2}"
        );
    }
}
