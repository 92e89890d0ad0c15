//! Amounts of resources: what nodes offer and pods ask for.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_base::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
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

/// What a pod needs of its node: the larger of what its containers take together, and what each of its init
/// containers takes beside the sidecars started before it; and its overhead.
pub(crate) fn of_pod(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&requests(container.resources.as_ref()));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container.resources.as_ref());
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
    use k8s_openapi::api::core::v1::PodSpec;

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
