//! Amounts of resources: what nodes offer and pods ask for.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gantry_base::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// A pod that asks for nothing counts for scoring as if it asked for this, so that such pods are spread, too.
pub(crate) const LEAST_MILLI_CPU: i64 = 100;
/// See [`LEAST_MILLI_CPU`]; in bytes.
pub(crate) const LEAST_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts by resource. The three that every pod has are fields: most pods and nodes have no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) milli_cpu: i64,
    /// In bytes.
    pub(crate) memory: i64,
    /// In bytes.
    pub(crate) ephemeral: i64,
    /// All others, by name; few.
    pub(crate) extended: Vec<(Arc<str>, i64)>,
}

/// The most of anything that counts: 512 TiB. So nobody's amounts add up to more than a number can say.
const MOST: i64 = 1 << 49;

type List = BTreeMap<String, Text>;

fn parsed(quantity: &Text) -> Quantity {
    // The API server has validated it; a quantity nobody understands counts as nothing.
    quantity.0.parse().unwrap_or_default()
}

impl Resources {
    pub(crate) fn from_list(list: Option<&List>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            let quantity = parsed(quantity);
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.millis().clamp(-MOST, MOST),
                "memory" => resources.memory = quantity.units().clamp(-MOST, MOST),
                "ephemeral-storage" => resources.ephemeral = quantity.units().clamp(-MOST, MOST),
                "pods" => {}
                other => {
                    let amount = quantity.units().clamp(-MOST, MOST);
                    resources.extended.push((other.into(), amount));
                }
            }
        }
        resources
    }

    /// The amount of an extended resource.
    pub(crate) fn extended(&self, name: &str) -> i64 {
        let found = self.extended.iter().find(|(known, _)| &**known == name);
        found.map_or(0, |(_, amount)| *amount)
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral = with(self.ephemeral, other.ephemeral);
        for (name, amount) in &other.extended {
            match self.extended.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = with(*known, *amount),
                None => self.extended.push((name.clone(), with(0, *amount))),
            }
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.combine(other, i64::saturating_add);
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.combine(other, i64::saturating_sub);
    }

    /// Whether there is more here of something than there.
    pub(crate) fn exceeds(&self, other: &Self) -> bool {
        let mut extended = self.extended.iter();
        self.milli_cpu > other.milli_cpu
            || self.memory > other.memory
            || self.ephemeral > other.ephemeral
            || extended.any(|(name, amount)| *amount > other.extended(name))
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    /// What is stated here replaces what the containers add up to.
    fn replace(&mut self, list: &List) {
        let stated = Self::from_list(Some(list));
        if list.contains_key("cpu") {
            self.milli_cpu = stated.milli_cpu;
        }
        if list.contains_key("memory") {
            self.memory = stated.memory;
        }
    }
}

fn requests(resources: Option<&ResourceRequirements>) -> Resources {
    Resources::from_list(resources.and_then(|resources| resources.requests.as_ref()))
}

/// What a pod's node tells of its containers' resources: until a resize is done they are others than the pod asks for.
struct Told<'a> {
    statuses: HashMap<&'a str, &'a ContainerStatus>,
    /// The node will never have what the pod asks for.
    infeasible: bool,
}

impl<'a> Told<'a> {
    fn of(pod: &'a Pod) -> Self {
        let status = pod.status.as_ref();
        let inits = status.and_then(|status| status.init_container_statuses.as_ref());
        let mains = status.and_then(|status| status.container_statuses.as_ref());
        let all = [mains, inits].into_iter().flatten().flatten();
        let all = all.filter(|status| status.resources.is_some());
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        let pending = conditions.find(|condition| condition.type_ == "PodResizePending");
        Self {
            statuses: all.map(|status| (status.name.as_str(), status)).collect(),
            infeasible: pending
                .is_some_and(|pending| pending.reason.as_deref() == Some("Infeasible")),
        }
    }

    /// Whichever is more of what a container asks for, what it has been given, and what it has.
    fn requests(&self, container: &Container) -> Resources {
        let asked = requests(container.resources.as_ref());
        let Some(status) = self.statuses.get(container.name.as_str()) else {
            return asked;
        };
        let mut most = match self.infeasible {
            true => Resources::default(),
            false => asked,
        };
        most.raise_to(&requests(status.resources.as_ref()));
        most.raise_to(&Resources::from_list(status.allocated_resources.as_ref()));
        most
    }
}

/// What a pod needs of its node: the larger of what its containers take together, and what each of its init
/// containers takes beside the sidecars started before it; and its overhead.
pub(crate) fn of_pod(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let told = Told::of(pod);
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&told.requests(container));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = told.requests(container);
        if is_sidecar(container) {
            running.add(&own);
            sidecars.add(&own);
            starting.raise_to(&sidecars);
        } else {
            let mut while_it_runs = own;
            while_it_runs.add(&sidecars);
            starting.raise_to(&while_it_runs);
        }
    }
    running.raise_to(&starting);
    if let Some(stated) = spec
        .resources
        .as_ref()
        .and_then(|stated| stated.requests.as_ref())
    {
        running.replace(stated);
    }
    running.add(&Resources::from_list(spec.overhead.as_ref()));
    running
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// How many pods a node takes.
pub(crate) fn pod_limit(allocatable: Option<&List>) -> i64 {
    allocatable
        .and_then(|list| list.get("pods"))
        .map_or(0, |quantity| parsed(quantity).units())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodSpec, PodStatus};

    use super::*;

    fn asking(cpu: &str, sidecar: bool) -> Container {
        Container {
            restart_policy: sidecar.then(|| "Always".to_owned()),
            resources: Some(ResourceRequirements {
                requests: Some([("cpu".to_owned(), Text(cpu.to_owned()))].into()),
                ..ResourceRequirements::default()
            }),
            ..Container::default()
        }
    }

    #[test]
    fn init_containers_count_by_their_peak_and_sidecars_all_along() {
        let cases = [
            (vec!["100m", "200m"], vec![], 300),
            (vec!["100m"], vec![("500m", false)], 500),
            (vec!["100m"], vec![("300m", true)], 400),
            (vec!["100m"], vec![("300m", true), ("500m", false)], 800),
            (vec!["100m"], vec![("500m", false), ("300m", true)], 500),
        ];
        for (containers, inits, expected) in cases {
            let pod = Pod {
                spec: Some(PodSpec {
                    containers: containers.iter().map(|cpu| asking(cpu, false)).collect(),
                    init_containers: Some(
                        inits
                            .iter()
                            .map(|(cpu, sidecar)| asking(cpu, *sidecar))
                            .collect(),
                    ),
                    ..PodSpec::default()
                }),
                ..Pod::default()
            };
            assert_eq!(of_pod(&pod).milli_cpu, expected, "{containers:?} {inits:?}");
        }
    }

    #[test]
    fn a_pod_that_is_resized_counts_by_the_most_of_what_it_asks_for_and_has() {
        let amounts =
            |cpu: &str| -> Option<List> { Some([("cpu".to_owned(), Text(cpu.to_owned()))].into()) };
        let pod = |asked: &str, given: &str, has: &str, reason: Option<&str>| {
            let container = Container {
                name: "c".to_owned(),
                ..asking(asked, false)
            };
            let status = ContainerStatus {
                name: "c".to_owned(),
                allocated_resources: amounts(given),
                resources: Some(ResourceRequirements {
                    requests: amounts(has),
                    ..ResourceRequirements::default()
                }),
                ..ContainerStatus::default()
            };
            let pending = reason.map(|reason| PodCondition {
                type_: "PodResizePending".to_owned(),
                reason: Some(reason.to_owned()),
                ..PodCondition::default()
            });
            Pod {
                spec: Some(PodSpec {
                    containers: vec![container],
                    ..PodSpec::default()
                }),
                status: Some(PodStatus {
                    container_statuses: Some(vec![status]),
                    conditions: pending.map(|pending| vec![pending]),
                    ..PodStatus::default()
                }),
                ..Pod::default()
            }
        };
        for (asked, given, has, reason, expected) in [
            ("1", "1", "1", None, 1000),
            ("1", "1", "2", None, 2000),
            ("1", "3", "2", None, 3000),
            ("4", "1", "1", Some("Deferred"), 4000),
            ("4", "1", "2", Some("Infeasible"), 2000),
        ] {
            let found = of_pod(&pod(asked, given, has, reason)).milli_cpu;
            assert_eq!(found, expected, "{asked} {given} {has} {reason:?}");
        }
    }

    #[test]
    fn what_is_added_can_be_taken_away() {
        let gpu = |count: i64| Resources {
            milli_cpu: 5,
            extended: vec![("example.com/gpu".into(), count)],
            ..Resources::default()
        };
        let mut total = gpu(1);
        total.add(&gpu(2));
        assert_eq!(
            (total.milli_cpu, total.extended("example.com/gpu")),
            (10, 3)
        );
        total.subtract(&gpu(2));
        assert_eq!(total, gpu(1));
    }
}
