//! What a pod's containers ask for, taken together, and the quality of service that follows from it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::Quantity;

pub(super) type Amounts = BTreeMap<String, ApiQuantity>;

static NONE: Amounts = BTreeMap::new();

/// How much of a resource there is; none where none is given.
pub(super) fn amount(amounts: &Amounts, resource: &str) -> Option<Quantity> {
    amounts.get(resource)?.0.parse().ok()
}

fn limits(resources: Option<&ResourceRequirements>) -> &Amounts {
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    limits.unwrap_or(&NONE)
}

fn requests(resources: Option<&ResourceRequirements>) -> &Amounts {
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    requests.unwrap_or(&NONE)
}

/// A container's limits.
pub(super) fn limits_of(container: &Container) -> &Amounts {
    limits(container.resources.as_ref())
}

/// Whether requests and limits of a pod as a whole may be of it.
pub(super) fn is_for_pods(resource: &str) -> bool {
    ["cpu", "memory"].contains(&resource) || resource.starts_with("hugepages-")
}

/// A container's requests.
pub(super) fn requests_of(container: &Container) -> &Amounts {
    requests(container.resources.as_ref())
}

fn add<'a>(sum: &mut BTreeMap<&'a str, Quantity>, amounts: &'a Amounts) {
    for resource in amounts.keys() {
        if let Some(more) = amount(amounts, resource) {
            let all = sum.entry(resource).or_default();
            *all = all.plus(more);
        }
    }
}

/// The most that the containers have, of requests or of limits, at once: those that stay together, and before them one
/// initialising after the other, each beside those that were told to stay.
pub(super) fn most_at_once(
    spec: &PodSpec,
    of: fn(&Container) -> &Amounts,
) -> BTreeMap<&str, Quantity> {
    let mut staying: BTreeMap<&str, Quantity> = BTreeMap::new();
    let mut most = staying.clone();
    for container in spec.init_containers.iter().flatten() {
        let mut now = staying.clone();
        add(&mut now, of(container));
        if container.restart_policy.as_deref() == Some("Always") {
            staying.clone_from(&now);
        }
        for (resource, needed) in now {
            let found = most.entry(resource).or_insert(needed);
            *found = needed.max(*found);
        }
    }
    for container in &spec.containers {
        add(&mut staying, of(container));
    }
    for (resource, needed) in staying {
        let found = most.entry(resource).or_insert(needed);
        *found = needed.max(*found);
    }
    most
}

/// What a pod asks for as a whole: what it says of itself, and otherwise the most that its containers ask for at once.
pub fn requests_at_once(spec: &PodSpec) -> BTreeMap<&str, Quantity> {
    of_the_whole(spec, requests, requests_of)
}

/// As [`requests_at_once`], of its limits.
pub fn limits_at_once(spec: &PodSpec) -> BTreeMap<&str, Quantity> {
    of_the_whole(spec, limits, limits_of)
}

fn of_the_whole(
    spec: &PodSpec,
    own: fn(Option<&ResourceRequirements>) -> &Amounts,
    of: fn(&Container) -> &Amounts,
) -> BTreeMap<&str, Quantity> {
    let mut all = most_at_once(spec, of);
    let own = own(spec.resources.as_ref());
    for resource in own.keys().filter(|resource| is_for_pods(resource)) {
        if let Some(amount) = amount(own, resource) {
            all.insert(resource, amount);
        }
    }
    all
}

/// How readily the pod gives way under pressure: `Guaranteed`, `Burstable` or `BestEffort`. What is said of the pod as a whole
/// goes before what its containers say.
pub(in crate::kinds) fn qos_class(spec: &PodSpec) -> &'static str {
    let (mut any, mut all) = (false, true);
    let whole = spec.resources.as_ref().filter(|resources| {
        let resources = Some(*resources);
        [limits(resources), requests(resources)]
            .iter()
            .any(|amounts| amounts.keys().any(|resource| is_for_pods(resource)))
    });
    let init = spec.init_containers.iter().flatten();
    let containers = spec.containers.iter().chain(init);
    let each: Vec<Option<&ResourceRequirements>> = match whole {
        Some(whole) => vec![Some(whole)],
        None => containers
            .map(|container| container.resources.as_ref())
            .collect(),
    };
    for resources in each {
        for name in ["cpu", "memory"] {
            let positive =
                |amounts: &Amounts| amount(amounts, name).filter(|amount| amount.sign() > 0);
            let (request, limit) = (positive(requests(resources)), positive(limits(resources)));
            any |= request.is_some() || limit.is_some();
            all &= limit.is_some() && request == limit;
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn containers_that_initialise_follow_each_other() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let spec = spec(json!({
            "containers": [{"name": "a", "resources": cpu("1")}, {"name": "b", "resources": cpu("2")}],
            "initContainers": [
                {"name": "i", "resources": cpu("5")},
                {"name": "s", "restartPolicy": "Always", "resources": cpu("500m")},
                {"name": "j", "resources": cpu("4")}
            ]
        }));
        let most = most_at_once(&spec, requests_of);
        assert_eq!(
            most.get("cpu").map(ToString::to_string).as_deref(),
            Some("5")
        );
    }

    #[test]
    fn the_pod_as_a_whole_decides_its_class() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        let container = json!({"name": "a"});
        let class = |pod: Value, container: &Value| {
            qos_class(&spec(json!({"resources": pod, "containers": [container]})))
        };
        assert_eq!(class(json!({}), &container), "BestEffort");
        let guaranteed = json!({"limits": both, "requests": both});
        assert_eq!(class(guaranteed.clone(), &container), "Guaranteed");
        let whole = json!({"name": "a", "resources": guaranteed});
        assert_eq!(class(json!({}), &whole), "Guaranteed");
        assert_eq!(
            class(json!({"requests": {"cpu": "1"}}), &whole),
            "Burstable"
        );
    }
}
